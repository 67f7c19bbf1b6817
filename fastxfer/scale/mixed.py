"""A linear mixed model of means whose own variances are known: y = X β + Σ_j Z_j u_j + e, u_j ~ N(0, θ_j I), e ~ N(0, diag v).

That is a meta-regression with several random effects. statsmodels' MixedLM knows no variances of single observations, its
`combine_effects` no covariates; where v is 0 and one effect is the identity, both agree with this one (a test).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats

from fastxfer.errors import DataError

Floats = NDArray[np.float64]

# A variance below this part of y's own counts as 0: on the edge of what it can be, it has no slope to tell its error by.
EDGE = 1e-7


class Contrast(NamedTuple):
    """c·β with its standard error, degrees of freedom and interval; NaN where the data do not determine it."""

    value: float
    se: float
    df: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Mixed:
    """A fit. beta (p,), covariance (p, p); theta: variance of each random effect, by name; n: observations."""

    beta: Floats
    covariance: Floats
    theta: dict[str, float]
    n: int
    _estimable: Floats  # (p, p) projector on what the rows of X span
    _slopes: Floats  # (free, p, p) derivatives of the covariance by the variances that are not 0
    _errors: Floats  # (free, free) asymptotic covariance of those variances

    def contrast(self, c: Floats, level: float = 0.95, most_df: float = np.inf) -> Contrast:
        """c (p,). The t distribution has Satterthwaite's degrees of freedom, 2 var² / (gᵀ A g) with g the slope of the variance
        by the variance components and A their asymptotic covariance (Giesbrecht & Burns 1985; Fai & Cornelius 1996).
        They are at most `most_df`: a variance that was estimated as 0 has no error there, but it has one.
        """
        if not np.allclose(self._estimable @ c, c, atol=1e-6):
            return Contrast(*[float("nan")] * 5)
        variance = float(c @ self.covariance @ c)
        slope = np.einsum("i,jik,k->j", c, self._slopes, c)
        noise = float(slope @ self._errors @ slope)
        df = 2 * variance**2 / noise if noise > 0 else np.inf
        # With fewer than one degree of freedom the approximation has left its ground; one is what a single pair has.
        df = min(max(df, 1.0), most_df)
        value, se = float(c @ self.beta), float(np.sqrt(variance))
        half = float(stats.t.ppf(0.5 + level / 2, df)) * se
        return Contrast(value, se, df, value - half, value + half)


def fit_mixed(y: Floats, x: Floats, v: Floats, effects: Mapping[str, Floats]) -> Mixed:
    """Restricted maximum likelihood. y (n,), x (n, p), v (n,) known variances, effects: name -> Z (n, q).

    Columns of x that others span are left out; contrasts that this leaves open are NaN. `DataError` for fewer observations
    than columns leave room for.
    """
    n, p = x.shape
    kept = _independent(x)
    if n - len(kept) < 2:
        raise DataError(f"{n} cells are too few for a model of {len(kept)} coefficients")
    full, x = x, x[:, kept]
    unit = float(np.var(y)) or 1.0  # variances are in units of y's own while they are sought
    squares = [z @ z.T for z in effects.values()]
    known = np.diag(np.maximum(v, 0) / unit + 1e-12)
    scaled = y / np.sqrt(unit)

    def parts(theta: Floats) -> tuple[float, Floats, Floats, Floats]:
        """log |V|, V⁻¹ X, P = V⁻¹ − V⁻¹ X (Xᵀ V⁻¹ X)⁻¹ Xᵀ V⁻¹, and (Xᵀ V⁻¹ X)⁻¹."""
        total = known + sum(t * s for t, s in zip(theta, squares, strict=True))
        factor = linalg.cho_factor(total, lower=True)
        inverse = linalg.cho_solve(factor, np.eye(n))
        vx = inverse @ x
        inner = linalg.inv(x.T @ vx)
        return float(2 * np.log(np.diag(factor[0])).sum()), vx, inverse - vx @ inner @ vx.T, inner

    def objective(theta: Floats) -> tuple[float, Floats]:
        """Minus twice the restricted log-likelihood and its slope."""
        volume, _, p_matrix, inner = parts(theta)
        py = p_matrix @ scaled
        value = volume - np.linalg.slogdet(inner)[1] + scaled @ py
        slope = [np.sum(p_matrix * s) - py @ s @ py for s in squares]
        return float(value), np.array(slope)

    theta = np.zeros(0)
    if squares:
        start, most = np.full(len(squares), 0.1 / len(squares)), {"maxiter": 500}
        bounds = [(0, None)] * len(squares)
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=most)
        theta = np.where(found.x > EDGE, found.x, 0.0)
    _, vx, p_matrix, inner = parts(theta)
    beta = inner @ (vx.T @ scaled)
    free = np.flatnonzero(theta > 0)
    information = np.array(
        [[0.5 * np.sum((p_matrix @ squares[i]) * (p_matrix @ squares[j]).T) for j in free] for i in free]
    )
    errors = linalg.pinv(information) if len(free) else np.zeros((0, 0))
    wide = np.zeros((len(free), p, p))
    for place, i in enumerate(free):
        wide[place][np.ix_(kept, kept)] = inner @ vx.T @ squares[i] @ vx @ inner
    whole_beta, covariance = np.zeros(p), np.zeros((p, p))
    whole_beta[kept], covariance[np.ix_(kept, kept)] = beta, inner
    return Mixed(
        whole_beta * np.sqrt(unit),
        covariance * unit,
        {name: float(t * unit) for name, t in zip(effects, theta, strict=True)},
        n,
        linalg.pinv(full) @ full,
        wide * unit,
        errors,
    )


def _independent(x: Floats) -> NDArray[np.int64]:
    """Columns, in order, that those before them do not span."""
    kept, basis = [], np.zeros((len(x), 0))
    for j, column in enumerate(x.T):
        left = column - basis @ (basis.T @ column)
        left -= basis @ (basis.T @ left)  # twice is enough (Kahan)
        length = np.linalg.norm(left)
        if length > 1e-8 * np.linalg.norm(column):
            kept.append(j)
            basis = np.column_stack([basis, left / length])
    return np.array(kept, np.int64)
