"""Kernels over columns of a table, to be added and multiplied as scikit-learn's are: a hierarchical model is a Gaussian process.

A random effect is a kernel that is 1 inside a group and 0 elsewhere, times its variance; nested and crossed effects, and effects that
change along a number, are sums and products of such (Rasmussen and Williams 2006, section 4.2.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from fastxfer.selection.belief import Floats


class Same(Kernel):
    """1 where all of these columns are equal, else 0."""

    def __init__(self, columns: tuple[int, ...]) -> None:
        self.columns = columns

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        other = X if Y is None else Y
        K = np.ones((len(X), len(other)))
        for column in self.columns:
            K *= X[:, None, column] == other[None, :, column]
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X: Floats) -> Floats:
        return np.ones(len(X))

    def is_stationary(self) -> bool:
        return False


class Slope(Kernel):
    """The product of a column's numbers: a straight line through 0."""

    def __init__(self, column: int) -> None:
        self.column = column

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        K = np.outer(X[:, self.column], (X if Y is None else Y)[:, self.column])
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X: Floats) -> Floats:
        return np.asarray(X[:, self.column] ** 2)

    def is_stationary(self) -> bool:
        return False


class Near(Kernel):
    """Matérn 3/2 in the distance along one column: effects that change smoothly with it (Rasmussen and Williams, eq. 4.17)."""

    def __init__(self, column: int, length_scale: float = 2.0, length_scale_bounds: Any = (0.2, 50.0)) -> None:
        self.column = column
        self.length_scale = length_scale
        self.length_scale_bounds = length_scale_bounds

    @property
    def hyperparameter_length_scale(self) -> Hyperparameter:
        return Hyperparameter("length_scale", "numeric", self.length_scale_bounds)

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:
        other = X if Y is None else Y
        d = np.sqrt(3) * np.abs(X[:, None, self.column] - other[None, :, self.column]) / self.length_scale
        K = (1 + d) * np.exp(-d)
        return (K, (d**2 * np.exp(-d))[:, :, None]) if eval_gradient else K

    def diag(self, X: Floats) -> Floats:
        return np.ones(len(X))

    def is_stationary(self) -> bool:
        return False
