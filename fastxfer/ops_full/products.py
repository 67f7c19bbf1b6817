"""The two products of a pass: a block of images with weights, and with residuals.

Few columns go through kernels of our own, since BLAS would spend more time on packing than on multiplying; many, and any
without the compiled module, through BLAS. Either way a block has the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from fastxfer.backend import compiled, spread_rows

Array = NDArray[Any]

# Columns up to which our kernels are faster than BLAS.
FEW = 32


def blas_threads() -> int:
    """As many as BLAS has just now: whoever limits one limits the other."""
    return max((int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def logits_of(w: NDArray[np.float64], dtype: type[np.floating[Any]], threads: int) -> Callable[[Array], Array]:
    """The function that takes images (b, d) to logits (columns, b), by weights w (d + 1, columns), last row the bias."""
    weights, bias = w[:-1].astype(dtype), w[-1].astype(dtype)[:, None]
    if not _few(w.shape[1]):
        return lambda x: np.ascontiguousarray((x @ weights).T) + bias
    rows = spread_rows(w.shape[1], len(weights), dtype)
    rows[:] = weights.T

    def logits(x: Array) -> Array:
        z: Array = compiled.skinny(_by_rows(x), rows, True, threads)
        z += bias
        return z

    return logits


def add_gradient(gradient: NDArray[np.float64], x: Array, residual: Array, threads: int) -> None:
    """gradient (d + 1, columns) += images (b, d) transposed times residuals (columns, b) transposed; last row the bias."""
    if _few(len(residual)):
        gradient[:-1] += compiled.skinny(_by_rows(x), np.ascontiguousarray(residual, x.dtype), False, threads).T
    else:
        gradient[:-1] += x.T @ residual.T
    gradient[-1] += residual.sum(axis=1, dtype=np.float64)


def _few(columns: int) -> bool:
    return columns <= FEW and compiled is not None


def _by_rows(x: Array) -> Array:
    return x if x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize else np.ascontiguousarray(x)
