"""Full kNN, 20,000 x 2,048, 2,000 queries, k = 20: ours against FAISS's flat index alone.

Ours counts everything from embeddings as they are to scores: checks, unit vectors, equal images, search, votes. The peer is
faiss.normalize_L2 of both sides, IndexFlatIP, add and search. `recall` is of ivf and hnsw, whose peer is FAISS flat too.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import many
from benchmarks.machine import side_by_side
from fastxfer import ops

K = 20


def run(options: Any) -> list[dict[str, Any]]:
    """One entry an index."""
    import faiss

    m, q, dim = (1000, 100, 64) if options.tiny else (20_000, 2000, 2048)
    x, labels, words = many(m + q, dim, synthetic=options.tiny)
    x, y, query = x[:m], labels[:m], x[m:]
    entries = []
    faiss.omp_set_num_threads(options.threads)
    for index in ops.INDEXES:
        print(f"knn/{index}", file=sys.stderr)
        with threadpool_limits(options.threads):
            ours: list[Any] = []
            peer: list[Any] = []
            fields = side_by_side(
                lambda _, index=index, ours=ours: ours.append(_ours(x, y, query, index)),  # type: ignore[misc]
                lambda _, peer=peer: peer.append(_peer(x, query)),  # type: ignore[misc]
                rounds=2 if options.tiny else 7 if index == "flat" else 1,
            )
        got = ours[-1]
        same = _same(got.scores[0], y, *peer[-1])
        entries.append(
            {
                "name": f"knn/{index}",
                "ways": 10,
                "shots": None,
                "queries": q,
                "dim": dim,
                "pool": m,
                "episodes": None,
                "k": K,
                "peer": "FAISS IndexFlatIP: normalize_L2, add, search",
                **fields,
                "recall": got.recall,
                "same_scores": same,
                "checked": same >= 0.99 if index == "flat" else got.recall >= 0.5,
                "threads": options.threads,
                "embeddings": words,
                "tiny": options.tiny,
            }
        )
    return entries


def _ours(x: NDArray[np.float32], y: NDArray[Any], query: NDArray[np.float32], index: str) -> Any:
    return ops.knn_full(x, y, query, 10, k=[K], index=index)


def _peer(x: NDArray[np.float32], query: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    import faiss

    x, query = x.copy(), query.copy()
    faiss.normalize_L2(x)
    faiss.normalize_L2(query)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    similarity, rows = index.search(query, K)
    return similarity, rows


def _same(scores: NDArray[Any], y: NDArray[Any], similarity: NDArray[Any], rows: NDArray[Any]) -> float:
    """Share of queries whose scores are those of the peer's neighbours, to float32's digits."""
    weight = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / 0.07)
    expected = np.stack([(weight * (y[rows] == c)).sum(axis=1) for c in range(scores.shape[1])], axis=1)
    expected /= weight.sum(axis=1, keepdims=True)
    return float((np.abs(scores - expected).max(axis=1) < 1e-4).mean())
