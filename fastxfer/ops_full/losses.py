"""The losses of the full logistic probe, as the solver wants them: functions of the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What the solver needs to know of a loss. `columns` logits an image, in `groups` that are solved independently.

    value(z) (groups,); residual(z) (m, columns), the derivative of the value by the logits;
    second(z)(dz) the change of the residual along dz; slope(z, dz) first and second derivative of the value along dz,
    (groups,) each; curvature(z) (columns,), the mean of the second derivatives by each logit.
    """

    columns: int
    groups: int
    value: Callable[[Floats], Floats]
    residual: Callable[[Floats], Floats]
    second: Callable[[Floats], Callable[[Floats], Floats]]
    slope: Callable[[Floats, Floats], tuple[Floats, Floats]]
    curvature: Callable[[Floats], Floats]


def problem_of(y: Array, n_classes: int) -> tuple[Floats, Array, Problem | None]:
    """Constant scores (n_classes,) where nothing is to be solved; the classes that are solved; the problem."""
    if y.ndim == 2:
        known, positive = ~np.isnan(y), np.nan_to_num(y) > 0.5
        n_known, n_positive = known.sum(axis=0), positive.sum(axis=0)
        one_sided = np.where(n_positive > 0, np.inf, -np.inf)
        constant = np.where(n_known > 0, one_sided, np.nan)
        solved = np.flatnonzero((n_positive > 0) & (n_positive < n_known))
        known, positive = known[:, solved], positive[:, solved]
        return constant, solved, _binary(positive, known / n_known[solved]) if len(solved) else None
    seen, codes = np.unique(y, return_inverse=True)
    constant = np.full(n_classes, -np.inf)
    if len(seen) == 1:
        constant[seen] = 0.0
        return constant, seen, None
    if n_classes == 2:
        return constant, seen, _binary(codes[:, None] == 1, np.full((len(y), 1), 1.0 / len(y)))
    return constant, seen, _softmax(codes, len(seen))


def _binary(positive: NDArray[np.bool_], share: Floats) -> Problem:
    """Independent binary losses, one a column; `share` (m, columns) is the weight of an image in its label's mean."""
    sign = np.where(positive, 1.0, -1.0)

    def wrong(z: Floats) -> Floats:
        """Probability of the other label."""
        return np.asarray(np.exp(-np.logaddexp(0.0, sign * z)))

    def value(z: Floats) -> Floats:
        return np.asarray((share * np.logaddexp(0.0, -sign * z)).sum(axis=0))

    def residual(z: Floats) -> Floats:
        return -sign * share * wrong(z)

    def slope(z: Floats, dz: Floats) -> tuple[Floats, Floats]:
        p = wrong(z)
        first = -sign * share * p * dz
        return first.sum(axis=0), (share * p * (1.0 - p) * dz**2).sum(axis=0)

    def curvature(z: Floats) -> Floats:
        p = wrong(z)
        return np.asarray((share * p * (1.0 - p)).sum(axis=0))

    def second(z: Floats) -> Callable[[Floats], Floats]:
        p = wrong(z)
        weight = share * p * (1.0 - p)
        return lambda dz: weight * dz

    columns = sign.shape[1]
    return Problem(columns, columns, value, residual, second, slope, curvature)


def _softmax(codes: Array, columns: int) -> Problem:
    """Cross-entropy of `columns` classes, all of them present in `codes`."""
    m = len(codes)
    rows = np.arange(m)

    def probabilities(z: Floats) -> Floats:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return np.asarray(p)

    def value(z: Floats) -> Floats:
        # log Σ_j exp(z_j − z_y), exact also where the loss is tiny.
        margin = z - z[rows, codes][:, None]
        margin[rows, codes] = -np.inf
        top = np.maximum(margin.max(axis=1), 0.0)
        rest = np.exp(margin - top[:, None]).sum(axis=1)
        loss = top + np.log1p(rest + np.expm1(-top))
        return np.array([loss.mean()])

    def residual(z: Floats) -> Floats:
        p = probabilities(z)
        p[rows, codes] = 0.0
        p[rows, codes] = -p.sum(axis=1)  # p_y − 1 without cancellation
        p /= m
        return p

    def slope(z: Floats, dz: Floats) -> tuple[Floats, Floats]:
        p = probabilities(z)
        rise = dz - dz[rows, codes][:, None]
        mean = (p * rise).sum(axis=1)
        return np.array([mean.mean()]), np.array([((p * rise**2).sum(axis=1) - mean**2).mean()])

    def curvature(z: Floats) -> Floats:
        p = probabilities(z)
        return np.full(columns, (1.0 - (p**2).sum(axis=1)).mean() / columns)

    def second(z: Floats) -> Callable[[Floats], Floats]:
        p = probabilities(z)

        def along(dz: Floats) -> Floats:
            rise = dz - dz[rows, codes][:, None]  # as in `slope`, without cancellation where p_y is nearly one
            return np.asarray(p * (rise - (p * rise).sum(axis=1, keepdims=True)) / m)

        return along

    return Problem(columns, 1, value, residual, second, slope, curvature)
