"""`knn_full`: exact nearest neighbours among the full train split."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import UsageError
from fastxfer.ops_full.check import check

Array = NDArray[Any]
Floats = NDArray[np.float64]


def knn_full(
    x: ArrayLike, y: ArrayLike, query: ArrayLike, n_classes: int, *, k: int, temperature: float | None = 0.07
) -> NDArray[np.float32]:
    """The k train images of largest cosine similarity vote, exactly (FAISS flat index); scores (q, n_classes) float32.

    x (m, d), query (q, d); y (m,) class indices or (m, n_classes) with 1 / 0 / NaN. A vote weighs
    exp(similarity / temperature) (Wu et al. 2018, DINO), or 1 with `temperature=None`; of equally similar images the
    one of the lower row is nearer (similarities are float32). A k above m counts as m; a zero vector is at similarity 0.

    Single-label: shares of the vote. Multi-label: share of the vote for positive among the neighbours where the label
    is known, minus 0.5, so that 0 divides; 0 where none of them knows; NaN for a label that no train image knows.

    Memory: 4·m·d bytes for the index, 8·q·k for the neighbours.
    """
    import faiss

    x, query, y = np.asarray(x), np.asarray(query), np.asarray(y)
    check(x, query, y, n_classes)
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if temperature is not None and not temperature > 0:
        raise UsageError(f"temperature must be positive, got {temperature}")
    m = len(x)
    k = min(k, m)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(_unit(x))
    similarity, neighbour = _nearest(index, _unit(query), k)
    weight = np.ones_like(similarity)
    if temperature is not None:
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
    scores = np.zeros((len(query), n_classes))
    if y.ndim == 1:
        np.add.at(scores, (np.arange(len(query))[:, None], y[neighbour]), weight)
        return (scores / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    total = np.zeros_like(scores)
    for j in range(k):
        label = y[neighbour[:, j]]
        known = ~np.isnan(label)
        scores += weight[:, j, None] * (known & (label > 0.5))
        total += weight[:, j, None] * known
    share = np.divide(scores, total, out=np.full_like(scores, 0.5), where=total > 0)
    share[:, np.isnan(y).all(axis=0)] = np.nan
    return (share - 0.5).astype(np.float32)


def _nearest(index: Any, query: NDArray[np.float32], k: int) -> tuple[Floats, Array]:
    """(q, k) similarities, largest first, and rows, the lower row first among equals."""
    m, q = index.ntotal, len(query)
    wanted = min(k + 1, m)
    similarity, rows = np.empty((q, k)), np.empty((q, k), np.int64)
    # One more neighbour than asked for shows whether equals go on beyond the k-th; FAISS keeps any of them, so such
    # queries are asked again, few at a time, for more until all equals are in.
    work = [(np.arange(q), wanted)]
    while work:
        todo, wanted = work.pop()
        s, r = index.search(query[todo], wanted)
        order = np.lexsort((r, -s), axis=-1)[:, :k]
        similarity[todo], rows[todo] = np.take_along_axis(s, order, -1), np.take_along_axis(r, order, -1)
        again = todo[(s[:, -1] == s[:, k - 1]) & (wanted < m)]
        work += [(again[i : i + 64], min(4 * wanted, m)) for i in range(0, len(again), 64)]
    return similarity, rows


def _unit(x: Array) -> NDArray[np.float32]:
    """Rows at length 1 in float32; zero rows stay zero."""
    x = x.astype(np.float64)
    scale = np.abs(x).max(axis=1, keepdims=True)
    x /= np.where(scale > 0, scale, 1.0)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.where(norm > 0, norm, 1.0), dtype=np.float32)
