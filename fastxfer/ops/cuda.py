"""The compiled ops of episodes on a CUDA device; `place` as in `fastxfer.ops_full.device`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backend import compiled
from fastxfer.ops.cpu import NO_WEIGHT, Call
from fastxfer.ops.pool import Pool, first_places, windows
from fastxfer.ops_full.device import launch, tensors

Array = NDArray[Any]


def logistic(
    call: Call, l2: Array, tol: float, max_iter: int, place: str = "cuda", *, class_weight: Array = NO_WEIGHT,
    balanced: bool = False,
) -> list[Array]:  # fmt: skip
    """scores, objective, iterations, converged, doubtful"""
    import torch

    order = np.argsort(-l2, kind="stable")
    sorted_l2, where, weight = tensors(place, l2[order], order.astype(np.int32), class_weight)

    def solve(episodes: Any, count: int, scores: Any, wide: bool = False) -> list[Any]:
        shape = (count, len(l2))
        objective = torch.empty(shape, dtype=torch.float64, device=place)
        iterations = torch.empty(shape, dtype=torch.int32, device=place)
        converged = torch.empty(shape, dtype=torch.bool, device=place)
        doubtful = torch.empty(count, dtype=torch.bool, device=place)
        out = (objective, iterations, converged, doubtful)
        addresses = (t.data_ptr() for t in out)
        params = compiled.LogisticAt(
            episodes, len(l2), sorted_l2.data_ptr(), where.data_ptr(), tol, max_iter,
            weight.data_ptr() if len(class_weight) else 0, balanced, *addresses,
        )  # fmt: skip
        launch(params, count, place, wide=wide, threads=call[0].threads)
        return [scores, *out]

    narrow = _run(call, len(l2), place, solve)
    if call[0].dtype == np.float32:
        # Where rounding stood between float and the tolerance: once more, in double, as the CPU does. What is doubtful
        # is solved again from better inner products anyway.
        again = np.flatnonzero(~narrow[3].all(axis=1) & ~narrow[4])
        if len(again):
            wider = _run(_take(call, again), len(l2), place, partial(solve, wide=True))
            for array, part in zip(narrow, wider, strict=True):
                array[again] = part
    return narrow


def ridge(call: Call, l2: Array, place: str = "cuda") -> list[Array]:
    """scores, doubtful"""
    import torch

    (penalties,) = tensors(place, l2)

    def solve(episodes: Any, count: int, scores: Any) -> list[Any]:
        doubtful = torch.empty(count, dtype=torch.bool, device=place)
        params = compiled.RidgeAt(episodes, len(l2), penalties.data_ptr(), doubtful.data_ptr())
        launch(params, count, place, threads=call[0].threads)
        return [scores, doubtful]

    return _run(call, len(l2), place, solve)


def prototype(call: Call, cosine: bool, place: str = "cuda") -> Array:
    def solve(episodes: Any, count: int, scores: Any) -> list[Any]:
        launch(compiled.PrototypeAt(episodes, cosine), count, place, threads=call[0].threads)
        return [scores]

    return _run(call, 1, place, solve)[0]


def knn(call: Call, k: Array, temperature: float, place: str = "cuda", *, by_distance: bool = False) -> Array:
    (ks,) = tensors(place, k)

    def solve(episodes: Any, count: int, scores: Any) -> list[Any]:
        params = compiled.KnnAt(episodes, len(k), ks.data_ptr(), int(k[-1]), temperature, by_distance)
        launch(params, count, place, threads=call[0].threads)
        return [scores]

    return _run(call, len(k), place, solve)[0]


def _take(call: Call, which: Array) -> Call:
    pool, support, labels, query, ways = call
    return (
        pool,
        support[which],
        labels if len(labels) == 1 else labels[which],
        query if len(query) == 1 else query[which],
        ways,
    )


def _run(call: Call, settings: int, place: str, solve: Callable[[Any, int, Any], list[Any]]) -> list[Array]:
    parts = []
    for episodes, count, scores, keep in _batches(call, settings, place):
        parts.append([t.cpu().numpy() for t in solve(episodes, count, scores)])
        del keep  # until here the device may read it
    return [np.concatenate([p[i] for p in parts]) for i in range(len(parts[0]))]


def _images(pool: Pool, place: str) -> dict[str, Any]:
    """The pool's arrays on the device, copied there once."""
    if pool.device is None:
        pool.device = dict(
            zip(
                ("centred", "offset", "inverse_length", "square"),
                tensors(place, pool.centred, pool.offset, pool.inverse_length, pool.square),
                strict=True,
            )
        )
    return dict(pool.device)


def _batches(call: Call, settings: int, place: str) -> Iterator[tuple[Any, int, Any, Any]]:
    """(episodes at addresses, how many, their scores, what must outlive the call)"""
    import torch

    pool, support, labels, query, ways = call
    (count, m), q = support.shape, query.shape[1]
    on = _images(pool, place)
    s, y, asked = tensors(place, support, labels, query)
    is_double = pool.dtype == np.float64
    label_step = 0 if len(labels) == 1 else m

    def scores(n: int) -> Any:
        return torch.empty((n, settings, q, ways), dtype=torch.float32, device=place)

    if pool.uses_gram(count, m, q):
        if "gram" not in pool.device:
            pool.device["gram"] = on["centred"][: pool.n_support] @ on["centred"].T
        gram, out = pool.device["gram"], scores(count)
        episodes = compiled.EpisodesAt(
            count, m, q, ways, gram.data_ptr(), is_double, pool.n_images, 0,
            s.data_ptr(), m, asked.data_ptr(), 0 if len(query) == 1 else q, y.data_ptr(), label_step,
            on["offset"].data_ptr(), on["inverse_length"].data_ptr(), on["square"].data_ptr(), 0, out.data_ptr(),
        )  # fmt: skip
        yield episodes, count, out, (s, y, asked, gram)
        return
    for window in windows(pool, count, m, q, gathered=m + q):
        n = window.stop - window.start
        queries = asked.expand(n, q) if len(query) == 1 else asked[window]
        rows = torch.cat([s[window], queries], dim=1)
        own = on["centred"][rows]
        block = own[:, :m] @ own.transpose(1, 2)
        images = [on[name][rows].contiguous() for name in ("offset", "inverse_length", "square")]
        places = first_places(rows.cpu().numpy())
        at_support, at_query = tensors(place, places[:, :m].copy(), places[:, m:].copy())
        own_labels, out = (y if len(labels) == 1 else y[window].contiguous()), scores(n)
        episodes = compiled.EpisodesAt(
            n, m, q, ways, block.data_ptr(), is_double, m + q, m * (m + q),
            at_support.data_ptr(), m, at_query.data_ptr(), q, own_labels.data_ptr(), label_step,
            *(v.data_ptr() for v in images), m + q, out.data_ptr(),
        )  # fmt: skip
        yield episodes, n, out, (block, images, own_labels, at_support, at_query)
