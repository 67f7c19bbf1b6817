"""Feature transforms that few-shot work applies to embeddings before a probe: written once, shared by all probes.

`transform(x, ["centre", "l2", "power"], train=rows)` applies them in the order of the list. All but `standardise` are of
each image alone, so they are applied once to a whole pool; `standardise` looks at the support, so it is done anew for
every episode, and comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import UsageError, nearest

Array = NDArray[Any]
Floats = NDArray[np.float64]

STANDARDISE = "standardise"
# What big_vision's fewshot_lsr adds to a standard deviation.
STANDARDISE_FLOOR = 1e-5
# Rows are transformed about this many bytes (float64) at a time.
BLOCK_BYTES = 8 * 2**20


def _centre(x: Floats, mean: Floats) -> Floats:
    return x - mean


def _l2(x: Floats, mean: Floats) -> Floats:
    # Scaled first, so that tiny and huge rows neither under- nor overflow; zero rows stay zero.
    scale = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(scale > 0, scale, 1.0)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return np.asarray(x / np.where(norm > 0, norm, 1.0))


def _power(x: Floats, mean: Floats) -> Floats:
    return np.asarray(np.sign(x) * np.sqrt(np.abs(x)))


_PER_IMAGE: dict[str, Callable[[Floats, Floats], Floats]] = {"centre": _centre, "l2": _l2, "power": _power}

# name -> one line of what it does
TRANSFORMS = {
    "centre": "subtract the mean of the train images (SimpleShot, Wang et al. 2019)",
    "l2": "scale every image to length 1",
    "power": "square root of every feature, its sign kept (Hu et al. 2021)",
    STANDARDISE: "subtract the support's mean, divide by its standard deviation + 1e-5 (big_vision); comes last",
}


def check_transforms(names: Sequence[str]) -> None:
    """`UsageError` for an unknown name, or one that comes after `standardise`."""
    for name in names:
        if name not in TRANSFORMS:
            raise UsageError(
                f"unknown transform '{name}': choose among {', '.join(TRANSFORMS)}.{nearest(name, TRANSFORMS)}"
            )
    if STANDARDISE in names[:-1]:
        raise UsageError(f"transform '{STANDARDISE}' is of each episode's support, so it must come last, and once")


def per_image(names: Sequence[str]) -> tuple[str, ...]:
    """The transforms of a list that do not depend on the episode."""
    return tuple(name for name in names if name != STANDARDISE)


def transform(x: ArrayLike, names: Sequence[str], *, train: ArrayLike | None = None) -> Array:
    """The embeddings `x` (n, d) after the transforms `names`, in order; float32, or float64 if `x` is.

    train  rows of `x` whose mean `centre` subtracts, and whose mean and spread `standardise` takes (default: all). The
           statistics are of what the transforms before have made of those rows.

    Work is in float64. `UsageError` as `check_transforms`.
    """
    check_transforms(names)
    values = np.asarray(x)
    if not names:
        return values
    out = np.array(values, np.float64 if values.dtype == np.float64 else np.float32)
    rows = np.arange(len(out)) if train is None else np.asarray(train)
    step = max(1, BLOCK_BYTES // (8 * max(1, out.shape[1])))
    for name in names:
        if name == STANDARDISE:
            return standardise(out[rows], out)[1]
        mean = out[rows].mean(axis=0, dtype=np.float64) if name == "centre" else np.zeros(0)
        for start in range(0, len(out), step):
            out[start : start + step] = _PER_IMAGE[name](out[start : start + step].astype(np.float64), mean)
    return out


def standardise(support: Array, query: Array) -> tuple[Array, Array]:
    """Support (…, m, d) and query (…, q, d) less the support's mean, over its standard deviation + 1e-5.

    A feature that all of the support shares tells it nothing; it is 0 in the queries too, where a division by 1e-5
    would let it drown the others. Probes that are linear in the support score the same either way.
    """
    wide = support.astype(np.float64)
    mean = wide.mean(axis=-2, keepdims=True)
    scale = wide.std(axis=-2, keepdims=True) + STANDARDISE_FLOOR
    factor = np.where(wide.max(axis=-2, keepdims=True) > wide.min(axis=-2, keepdims=True), 1.0 / scale, 0.0)
    kind = np.float64 if support.dtype == np.float64 else np.float32
    return ((wide - mean) * factor).astype(kind), ((query.astype(np.float64) - mean) * factor).astype(kind)


def standardise_episodes(x: Array, support: Array, query: Array) -> Array:
    """(E, m + q, d) embeddings of each episode's support (E, m) and query (E, q), rows of `x`, after `standardise`."""
    values = x.astype(np.float32) if x.dtype == np.float16 else x
    kind = np.float64 if x.dtype == np.float64 else np.float32
    out = np.empty((len(support), support.shape[1] + query.shape[1], x.shape[1]), kind)
    rows = np.concatenate([support, query], axis=1)
    _standardise(np.ascontiguousarray(values), np.ascontiguousarray(rows), support.shape[1], STANDARDISE_FLOOR, out)
    return out


@numba.njit(cache=True, nogil=True)
def _standardise(x: Any, rows: Any, m: int, floor: float, out: Any) -> None:
    """Row by row, so that memory is read in one stream; sums in float64, as `standardise` has them."""
    n_episodes, n_rows = rows.shape
    d = x.shape[1]
    mean, spread, factor = np.empty(d), np.empty(d), np.empty(d)
    low, high = np.empty(d, x.dtype), np.empty(d, x.dtype)
    for e in range(n_episodes):
        first = x[rows[e, 0]]
        for j in range(d):
            mean[j] = spread[j] = 0.0
            low[j] = high[j] = first[j]
        for i in range(m):
            row = x[rows[e, i]]
            for j in range(d):
                mean[j] += row[j]
                low[j] = min(low[j], row[j])
                high[j] = max(high[j], row[j])
        for j in range(d):
            mean[j] /= m
        for i in range(m):
            row = x[rows[e, i]]
            for j in range(d):
                spread[j] += (row[j] - mean[j]) ** 2
        for j in range(d):
            factor[j] = 1.0 / (np.sqrt(spread[j] / m) + floor) if high[j] > low[j] else 0.0
        for i in range(n_rows):
            row, to = x[rows[e, i]], out[e, i]
            for j in range(d):
                to[j] = (row[j] - mean[j]) * factor[j]
