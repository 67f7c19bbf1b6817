"""Calls of the compiled ops on the CPU. Every function returns the answer's arrays, episodes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backend import compiled
from fastxfer.ops.pool import Pool, blocks, first_places, windows

Array = NDArray[Any]
# No weights: all classes count alike.
NO_WEIGHT = np.empty(0)
Call = tuple[Pool, Array, Array, Array, int]  # pool, support, labels, query, ways


def logistic(
    call: Call, l2: Array, tol: float, max_iter: int, *, class_weight: Array = NO_WEIGHT, balanced: bool = False
) -> list[Array]:
    """scores, objective, iterations, converged, doubtful"""
    pool, support, labels, query, ways = call
    (count, m), q = support.shape, query.shape[1]

    def solve(with_coefficients: bool) -> Callable[..., tuple[Array, ...]]:
        options = (l2, tol, max_iter, class_weight, balanced, with_coefficients, pool.threads)
        return lambda *e: compiled.logistic(*e, *options)

    if not by_weights(pool, count, m, q, len(l2) * ways):
        return _run(call, solve(False))[:5]
    answer = _run((pool, support, labels, query[:, :0], ways), solve(True))
    return [_scores_by_weights(pool, support, query, *answer[5:]), *answer[1:5]]


def by_weights(pool: Pool, count: int, m: int, q: int, weights: int) -> bool:
    """Whether it costs less to make the weight vectors, and to let queries meet them and not the support."""
    return weights * (m + q) < m * q and not pool.uses_gram(count, m, q, weights)


def _scores_by_weights(pool: Pool, support: Array, query: Array, coefficients: Array, bias: Array) -> Array:
    """(E, L, q, ways) scores from coefficients (E, L, ways, m) of the support's centred embeddings and bias (E, L, ways)."""
    if len(query) == len(support):
        images, rows, mean = pool.lying(support, query)
        return compiled.scores_by_weights(images, *rows, coefficients, bias, mean, pool.threads)
    (count, n_l2, ways, m), q = coefficients.shape, query.shape[1]
    # Equal images get one product: BLAS may give them two that differ in their last bits.
    places, where = np.unique(query[0], return_inverse=True)
    images = pool.centred[places]
    scores = np.empty((count, n_l2, q, ways), np.float32)
    for window in blocks(count, pool.dtype.itemsize * ((m + n_l2 * ways) * pool.dim + n_l2 * ways * len(places))):
        own = coefficients[window].reshape(-1, n_l2 * ways, m).astype(pool.dtype)
        weights = own @ pool.centred[support[window]]
        by_image = (weights.reshape(-1, pool.dim) @ images.T).reshape(-1, n_l2, ways, len(places))
        by_image += bias[window][..., None]
        scores[window] = by_image[..., where].transpose(0, 1, 3, 2)
    return scores


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
            lying, at, mean = pool.lying(support[window], query[window])
            block = compiled.products(lying, *at, mean, pool.threads)
            places = np.arange(m + q)[None]  # equal images have equal products here, wherever they stand
        images = (np.ascontiguousarray(v[rows]) for v in (pool.offset, pool.inverse_length, pool.square))
        own_labels = labels if len(labels) == 1 else labels[window]
        at_support, at_query = (np.ascontiguousarray(part) for part in (places[:, :m], places[:, m:]))
        yield block, at_support, at_query, own_labels, *images, n, ways
