"""Probes of a full train split: logistic regression in the primal with BLAS products, and kNN by FAISS.

`fastxfer.ops` re-exports both. Few-shot episodes, where there are fewer images than dimensions, are solved elsewhere
(`ops.logistic`, `ops.knn`), in the span of the support.
"""

from fastxfer.ops_full.logistic import logistic_full
from fastxfer.ops_full.neighbours import INDEXES, knn_full, nearest_full

__all__ = ["INDEXES", "knn_full", "logistic_full", "nearest_full"]
