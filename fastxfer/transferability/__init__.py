"""Transferability: what cheap scores of a train split's embeddings say of how a backbone will transfer.

scores    the scores, functions of arrays
run       over a store: embeddings and labels of train -> rows
ranking   how well each score ranks backbones as fine-tuning does
"""

from fastxfer.transferability.ranking import METRIC, rank_agreement
from fastxfer.transferability.run import SCORES, run_transferability, transferability

__all__ = ["METRIC", "SCORES", "rank_agreement", "run_transferability", "transferability"]
