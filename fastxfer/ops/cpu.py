"""Calls of the compiled ops on the CPU. Every function returns the answer's arrays, episodes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.ops.backend import compiled
from fastxfer.ops.pool import Pool, first_places, windows

Array = NDArray[Any]
# No weights: all classes count alike.
NO_WEIGHT = np.empty(0)
Call = tuple[Pool, Array, Array, Array, int]  # pool, support, labels, query, ways


def logistic(
    call: Call, l2: Array, tol: float, max_iter: int, *, class_weight: Array = NO_WEIGHT, balanced: bool = False
) -> list[Array]:
    """scores, objective, iterations, converged, doubtful"""
    return _run(call, lambda *e: compiled.logistic(*e, l2, tol, max_iter, class_weight, balanced, call[0].threads))


def ridge(call: Call, l2: Array) -> list[Array]:
    """scores, doubtful"""
    return _run(call, lambda *e: compiled.ridge(*e, l2, call[0].threads))


def prototype(call: Call, cosine: bool) -> Array:
    return _run(call, lambda *e: (compiled.prototype(*e, cosine, call[0].threads),))[0]


def knn(call: Call, k: Array, temperature: float, *, by_distance: bool = False) -> Array:
    return _run(call, lambda *e: (compiled.knn(*e, k, temperature, by_distance, call[0].threads),))[0]


def _run(call: Call, op: Callable[..., tuple[Array, ...]]) -> list[Array]:
    parts = [op(*arguments) for arguments in _batches(*call)]
    return [parts[0][i] if len(parts) == 1 else np.concatenate([p[i] for p in parts]) for i in range(len(parts[0]))]


def _batches(pool: Pool, support: Array, labels: Array, query: Array, ways: int) -> Iterator[tuple[Any, ...]]:
    """All episodes with the pool's Gram matrix, or some at a time with inner products of their own."""
    (count, m), q = support.shape, query.shape[1]
    if pool.uses_gram(count, m, q):
        images = (v[None] for v in (pool.offset, pool.inverse_length, pool.square))
        yield pool.gram(), support, query, labels, *images, count, ways
        return
    shared = len(query) == 1
    for window in windows(pool, count, m, q, gathered=m if shared else 0):
        n = window.stop - window.start
        rows = np.concatenate([support[window], np.broadcast_to(query if shared else query[window], (n, q))], axis=1)
        if shared:  # one product serves the queries that all share
            block = np.empty((n, m, m + q), pool.dtype)
            own = pool.centred[support[window]]
            np.matmul(own, own.transpose(0, 2, 1), out=block[:, :, :m])
            block[:, :, m:] = (own.reshape(n * m, pool.dim) @ pool.centred[query[0]].T).reshape(n, m, q)
            places = first_places(rows)
        else:
            block = compiled.products(pool.centred, support[window], query[window], pool.threads)
            places = np.arange(m + q)[None]  # equal images have equal products here, wherever they stand
        images = (np.ascontiguousarray(v[rows]) for v in (pool.offset, pool.inverse_length, pool.square))
        own_labels = labels if len(labels) == 1 else labels[window]
        at_support, at_query = (np.ascontiguousarray(part) for part in (places[:, :m], places[:, m:]))
        yield block, at_support, at_query, own_labels, *images, n, ways
