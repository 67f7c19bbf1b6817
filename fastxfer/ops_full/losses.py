"""The losses of the full logistic probe, as the solver wants them: functions of a block of logits.

Logits stand with the columns first, (columns, b), so that softmax sums over the slow axis. They are float32 or float64,
and so is what is made of them; sums over images are float64. Nothing is divided by the number of images here.
`weight` is that of each image's loss in each group, broadcastable to (columns, m); None: 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.reference import ClassWeight

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Loss(ABC):
    """`columns` logits an image, in `groups` that are solved independently; `images` (columns,): the m of each column.

    `steepest` (groups,), times the mean of |x|² + 1 over all rows, is more than any eigenvalue of the losses' Hessian.
    """

    columns: int
    groups: int
    images: Floats
    steepest: Floats

    @abstractmethod
    def first(self, rows: slice, z: Array) -> tuple[Floats, Array, Floats]:
        """Sums of the losses (groups,), their derivatives by each logit (in place of z), sums of curvatures (columns,)."""

    @abstractmethod
    def curvature(self, rows: slice, z: Array) -> Floats:
        """(b,) how much the loss of each image curves, over all columns, up to a common factor. Overwrites z."""

    @abstractmethod
    def weights(self, rows: slice, z: Array) -> Array:
        """What `second` wants to know of each logit, in place of z."""

    @abstractmethod
    def second(self, rows: slice, weights: Array, dz: Array) -> Array:
        """The change of the derivatives along dz, to first order, in place of dz."""


class Binary(Loss):
    """One binary loss log(1 + exp(−sz)) a column; `sign` (columns, m) int8: 1, −1, or 0 where the label is unknown."""

    def __init__(self, sign: NDArray[np.int8], weight: Array | None = None) -> None:
        """weight (columns, 2): of the negative and of the positive images of each column."""
        self.sign, self.weight = sign, weight
        self.columns = self.groups = len(sign)
        self.images = np.count_nonzero(sign, axis=1).astype(np.float64)
        heaviest = 1.0 if weight is None else weight.max(axis=1)
        self.steepest = np.asarray(heaviest * 0.25 * sign.shape[1] / self.images)

    def first(self, rows: slice, z: Array) -> tuple[Floats, Array, Floats]:
        sign = self.sign[:, rows]
        counts = self._counts(sign)
        z *= -sign
        value = np.where(counts, np.logaddexp(0, z) * counts, 0).sum(axis=1, dtype=np.float64)
        p = _sigmoid(z)
        curvature = np.where(counts, p * (1 - p) * counts, 0).sum(axis=1, dtype=np.float64)
        p *= -sign * counts
        return value, p, curvature

    def curvature(self, rows: slice, z: Array) -> Floats:
        p = _sigmoid(-np.abs(z))
        weight = self._counts(self.sign[:, rows]) / self.images[:, None]
        return np.asarray((weight * p * (1 - p)).sum(axis=0))

    def weights(self, rows: slice, z: Array) -> Array:
        sign = self.sign[:, rows]
        z *= -sign
        p = _sigmoid(z)
        np.multiply(p, 1 - p, out=z)
        z *= self._counts(sign)
        return z

    def second(self, rows: slice, weights: Array, dz: Array) -> Array:
        dz *= weights
        return dz

    def _counts(self, sign: NDArray[np.int8]) -> Array:
        """(columns, b) what each loss counts for: its weight, or whether its label is known."""
        if self.weight is None:
            return sign != 0
        weight = self.weight.astype(np.float32)
        return np.where(sign > 0, weight[:, 1:], np.where(sign < 0, weight[:, :1], 0))


class Softmax(Loss):
    """Cross-entropy of `columns` classes; `codes` (m,) from 0, all of them present."""

    def __init__(self, codes: Array, columns: int, weight: Array | None = None) -> None:
        """weight (columns,): of the images of each class."""
        self.codes, self.columns, self.groups = codes, columns, 1
        self.weight = weight
        self.images = np.full(columns, float(len(codes)))
        self.steepest = np.array([0.5 if weight is None else 0.5 * weight.max()])

    def first(self, rows: slice, z: Array) -> tuple[Floats, Array, Floats]:
        own = self.codes[rows], np.arange(z.shape[1])
        top, rest = _odds(z, own)
        # log Σ_j exp(z_j − z_y), exact also where the loss is tiny.
        loss = top + np.log1p(rest + np.expm1(-top))
        weight = 1.0 if self.weight is None else self.weight[self.codes[rows]]
        value = (loss * weight).sum(dtype=np.float64)
        z /= rest + np.exp(-top)
        missing = z.sum(axis=0)  # 1 − p_y without cancellation
        curvature = (_one_minus_squares(z, missing) * weight).sum(dtype=np.float64) / self.columns
        z[own] = -missing
        if self.weight is not None:
            z *= weight
        return np.array([value]), z, np.full(self.columns, curvature)

    def curvature(self, rows: slice, z: Array) -> Floats:
        top, rest = _odds(z, (self.codes[rows], np.arange(z.shape[1])))
        z /= rest + np.exp(-top)
        weight = 1.0 if self.weight is None else self.weight[self.codes[rows]]
        return np.asarray(_one_minus_squares(z, z.sum(axis=0)) * weight, np.float64)

    def weights(self, rows: slice, z: Array) -> Array:
        """Probabilities, but 0 for the own class, whose digits are lost where it is nearly one."""
        top, rest = _odds(z, (self.codes[rows], np.arange(z.shape[1])))
        z /= rest + np.exp(-top)
        return z

    def second(self, rows: slice, weights: Array, dz: Array) -> Array:
        own = self.codes[rows], np.arange(dz.shape[1])
        # Against the own class, so that nothing cancels where p_y is nearly one.
        dz -= dz[own]
        mean = np.einsum("ij,ij->j", weights, dz)
        p_own = 1 - weights.sum(axis=0)
        dz -= mean
        dz *= weights
        dz[own] = -p_own * mean
        if self.weight is not None:
            dz *= self.weight[self.codes[rows]]
        return dz


def _odds(z: Array, own: tuple[Array, Array]) -> tuple[Array, Array]:
    """z becomes exp(z_j − z_y − top), 0 for the own class y; top (b,) ≥ 0 and the sums over j."""
    z -= z[own]
    z[own] = -np.inf
    top = np.maximum(z.max(axis=0), 0)
    z -= top
    np.exp(z, out=z)
    return top, z.sum(axis=0)


def _one_minus_squares(others: Array, missing: Array) -> Array:
    """(b,) 1 − Σ_j p_j², from the probabilities of the other classes and their sum, with all its digits."""
    return np.asarray(missing * (2 - missing) - np.einsum("ij,ij->j", others, others))


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(−z)), with all its digits where it is small."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z > 0, 1, small) / (1 + small))


def loss_of(y: Array, n_classes: int, class_weight: ClassWeight = None) -> tuple[Floats, Array, Loss | None]:
    """Constant scores (n_classes,) where nothing is to be solved; the classes that are solved; the loss."""
    balanced = isinstance(class_weight, str)
    given = None if class_weight is None or isinstance(class_weight, str) else np.asarray(class_weight, np.float64)
    if y.ndim == 2:
        known, positive = ~np.isnan(y), y > 0.5
        n_known, n_positive = known.sum(axis=0), positive.sum(axis=0)
        one_sided = np.where(n_positive > 0, np.inf, -np.inf)
        constant = np.where(n_known > 0, one_sided, np.nan)
        solved = np.flatnonzero((n_positive > 0) & (n_positive < n_known))
        sign = np.where(positive, 1, -1).astype(np.int8) * known
        if not len(solved):
            return constant, solved, None
        if balanced:
            count = np.stack([n_known - n_positive, n_positive], axis=1)[solved]
            weight: Floats | None = count.sum(axis=1, keepdims=True) / 2 / count
        else:
            weight = None if given is None else np.tile(given, (len(solved), 1))
        return constant, solved, Binary(np.ascontiguousarray(sign[:, solved].T), weight)
    seen, codes, count = np.unique(y, return_inverse=True, return_counts=True)
    constant = np.full(n_classes, -np.inf)
    if len(seen) == 1:
        constant[seen] = 0.0
        return constant, seen, None
    weight = len(y) / len(seen) / count if balanced else None if given is None else given[seen]
    if n_classes == 2:
        sign = np.where(codes == 1, 1, -1).astype(np.int8)[None]
        return constant, seen, Binary(sign, None if weight is None else weight[None])
    return constant, seen, Softmax(codes, len(seen), weight)
