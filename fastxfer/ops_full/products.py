"""The two products of a pass: a block of images with weights, and with residuals.

Few columns go through kernels of our own, since BLAS would spend more time on packing than on multiplying; many, and any
without the compiled module, through BLAS. Blocks are shared out among threads (`fastxfer.crew`); a product has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backend import compiled, spread_rows

Array = NDArray[Any]
Gradient = tuple[Array, Array]  # (columns, d) of the weights, (columns,) of the bias

# Columns up to which our kernels are faster than BLAS.
FEW = 32


def logits_of(w: NDArray[np.float64], dtype: type[np.floating[Any]]) -> Callable[[Array], Array]:
    """The function that takes images (b, d) to logits (columns, b), by weights w (d + 1, columns), last row the bias."""
    weights, bias = w[:-1].astype(dtype), w[-1].astype(dtype)[:, None]
    if not _few(w.shape[1]):
        return lambda x: np.ascontiguousarray((x @ weights).T) + bias
    rows = spread_rows(w.shape[1], len(weights), dtype)
    rows[:] = weights.T

    def logits(x: Array) -> Array:
        z: Array = compiled.skinny(_by_rows(x), rows, True)
        z += bias
        return z

    return logits


def gradient_of(x: Array, residual: Array) -> Gradient:
    """What images (b, d) with residuals (columns, b) have of a gradient."""
    if _few(len(residual)):
        product = compiled.skinny(_by_rows(x), np.ascontiguousarray(residual, x.dtype), False)
    else:
        product = residual @ x
    return product, residual.sum(axis=1, dtype=np.float64)


class Sum:
    """The float64 sum of gradients."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """shape: (d + 1, columns), of the weights, last row the bias."""
        self._sum = np.zeros(shape[::-1])

    def add(self, some: Gradient) -> None:
        self._sum[:, :-1] += some[0]
        self._sum[:, -1] += some[1]

    def total(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self._sum.T)


def _few(columns: int) -> bool:
    return columns <= FEW and compiled is not None


def _by_rows(x: Array) -> Array:
    return x if x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize else np.ascontiguousarray(x)
