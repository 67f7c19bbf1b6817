"""L-BFGS along a path of penalties, with Newton's last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.ops_full.losses import Problem

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Pairs that L-BFGS remembers, and the bytes they may take (at least ten are kept).
HISTORY = 60
HISTORY_BYTES = 2**28
MAX_CG = 200

_Dot = Callable[[Floats, Floats], Floats]
_Pair = tuple[Floats, Floats, Floats]  # step, change of the gradient, 1 / their product


class Path:
    """L-BFGS along a path of penalties, every group of columns on its own; one product each way an iteration.

    Logits along a direction are linear, so the line search (Newton on the convex function of the step) costs
    exponentials only. Three things make the next penalty cheap: it starts at the last solution, carried on along the
    path where that is better; the pairs of steps and changes of the gradient are kept, since the penalty's part of a
    change is known; and the first approximation of the Hessian is the mean curvature of the losses on principal axes.
    """

    def __init__(self, features: Floats, problem: Problem) -> None:
        self.features, self.problem = features, problem
        m, r = features.shape
        # Products in float32 where the input has no more digits; the end of each solve is checked in float64.
        self.fast = features.astype(np.float32)
        self.spread = np.append(np.einsum("ij,ij->j", features, features) / m, 1.0)[:, None]
        self.w = np.zeros((r + 1, problem.columns))  # the last row is the bias
        self.z = np.zeros((m, problem.columns))
        self.before: tuple[float, Floats, Floats] | None = None  # l2, w and z of the solution before
        self.l2 = np.nan
        self.steps: list[tuple[Floats, Floats]] = []  # step, change of the losses' gradient
        self.history = int(np.clip(HISTORY_BYTES // (16 * self.w.size), 10, HISTORY))

    def solve_to(self, l2: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """`solve`, by way of larger penalties, roughly solved, where the last one is far away."""
        last = self.l2 if np.isfinite(self.l2) else float(self.spread.max() * self.problem.curvature(self.z).max())
        n_between = int(np.ceil(np.log10(last / l2))) - 1 if last > l2 else 0
        total = 0
        for between in np.geomspace(last, l2, n_between + 2)[1:-1] if n_between > 0 else ():
            total += self.solve(float(between), max(tol, 1e-5), max_iter)[1]
        objective, iterations, converged = self.solve(l2, tol, max_iter)
        return objective, total + iterations, converged

    def solve(self, l2: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """Move `w` and `z` to the minimum at `l2`; objective, iterations, converged."""
        problem, dot = self.problem, self._dot
        penalty = np.full((len(self.w), 1), l2)
        penalty[-1] = 0.0
        start = self.w, self.z
        self._extrapolate(l2, penalty)
        self.before, self.l2 = (self.l2, *start) if np.isfinite(self.l2) else None, l2
        features: Array = self.fast
        pairs = [_pair(s, loss_change + penalty * s, dot) for s, loss_change in self.steps]

        inverse = self._inverse(penalty)
        f, g = self._total(penalty), self._gradient(features, penalty)
        for iteration in range(max_iter + 1):
            direction = _two_loops(g, pairs, inverse, dot)
            left, arrived = -dot(g, direction)[: problem.groups], False
            if (0.5 * left <= tol * f).all():
                if features is self.fast:
                    # From here on in float64: the rounding of float32 products has added up in z.
                    features, inverse = self.features, self._inverse(penalty)
                    self.z = features @ self.w[:-1] + self.w[-1]
                    f, g = self._total(penalty), self._gradient(features, penalty)
                direction, left = self._newton(g, pairs, inverse, penalty)
                arrived = bool((0.5 * left <= tol * f).all())
            if iteration == max_iter and not arrived:
                break
            dz = _times(features, direction[:-1]) + direction[-1]
            linear, quadratic = dot(self.w, penalty * direction), dot(direction, penalty * direction)
            t = _line_search(problem, self.z, dz, linear[: problem.groups], quadratic[: problem.groups])
            step = np.broadcast_to(t, problem.columns) * direction
            self.w, self.z = self.w + step, self.z + np.broadcast_to(t, problem.columns) * dz
            g_old = g
            f, g = self._total(penalty), self._gradient(features, penalty)
            if arrived:
                return float(f.sum()), iteration, True
            if not step.any():
                break  # rounding: nothing descends any further
            pairs.append(_pair(step, g - g_old, dot))
            self.steps.append((step, g - g_old - penalty * step))
            del pairs[: -self.history], self.steps[: -self.history]
        self.z = self.features @ self.w[:-1] + self.w[-1]
        return float(self._total(penalty).sum()), iteration, False

    def _newton(self, g: Floats, pairs: list[_Pair], inverse: Floats, penalty: Floats) -> tuple[Floats, Floats]:
        """Newton's direction and the squared Newton decrement of each group, twice what is left to gain.

        By conjugate gradients on the true Hessian, preconditioned by L-BFGS (Morales & Nocedal 2000). The decrement
        grows from one to the next, and is taken when it has stopped to.
        """
        dot, second = self._dot, self.problem.second(self.z)
        x, residual = np.zeros_like(g), -g
        direction = y = _two_loops(g, pairs, inverse, dot)
        square = dot(residual, y)
        gains = []
        for _ in range(MAX_CG):
            curved = second(_times(self.fast, direction[:-1]) + direction[-1])
            product = np.vstack([_times(self.fast.T, curved), curved.sum(axis=0)]) + penalty * direction
            length = dot(direction, product)
            alpha = np.divide(square, length, out=np.zeros_like(square), where=(square > 0) & (length > 0))
            x, residual = x + alpha * direction, residual - alpha * product
            gains.append(alpha * square)
            if np.all(sum(gains[-3:]) <= 0.1 * sum(gains)):
                break
            y = _two_loops(-residual, pairs, inverse, dot)
            square, old = dot(residual, y), square
            direction = y + np.divide(square, old, out=np.zeros_like(square), where=old > 0) * direction
        return x, np.asarray(sum(gains))[: self.problem.groups]

    def _inverse(self, penalty: Floats) -> Floats:
        """Diagonal of the inverse Hessian, were the losses' curvature the same for all images."""
        kappa = np.maximum(self.problem.curvature(self.z), 1e-300)
        return np.asarray(1.0 / (self.spread * kappa + penalty))

    def _extrapolate(self, l2: float, penalty: Floats) -> None:
        """Go on along the line of the last two solutions in log l2, for the groups that are better off there."""
        if self.before is None:
            return
        l2_before, w_before, z_before = self.before
        if l2_before == self.l2 or l2 == self.l2:
            return
        ahead = min(np.log(l2 / self.l2) / np.log(self.l2 / l2_before), 2.0)
        f, w, z = self._total(penalty), self.w, self.z
        self.w, self.z = w + ahead * (w - w_before), z + ahead * (z - z_before)
        better = np.broadcast_to(self._total(penalty) < f, self.problem.columns)
        self.w, self.z = np.where(better, self.w, w), np.where(better, self.z, z)

    def _dot(self, a: Floats, b: Floats) -> Floats:
        """Inner product of each group, (groups,); it broadcasts over the columns."""
        if self.problem.groups > 1:
            return np.asarray(np.einsum("ij,ij->j", a, b))
        return np.array([np.vdot(a, b)])

    def _total(self, penalty: Floats) -> Floats:
        return self.problem.value(self.z) + (0.5 * self._dot(self.w, penalty * self.w))[: self.problem.groups]

    def _gradient(self, features: Array, penalty: Floats) -> Floats:
        residual = self.problem.residual(self.z)
        return np.vstack([_times(features.T, residual), residual.sum(axis=0)]) + penalty * self.w


def _times(a: Array, b: Floats) -> Floats:
    """a @ b in the precision of `a`, scaled so that tiny numbers keep their digits."""
    if a.dtype == np.float64:
        return np.asarray(a @ b)
    scale = np.abs(b).max() or 1.0
    return np.asarray((a @ (b / scale).astype(np.float32)).astype(np.float64) * scale)


def _pair(step: Floats, change: Floats, dot: _Dot) -> _Pair:
    product = dot(step, change)
    # A group that has arrived no longer moves; its zeros must not disturb the others.
    return step, change, np.divide(1.0, product, out=np.zeros_like(product), where=product > 0)


def _two_loops(g: Floats, pairs: list[_Pair], inverse: Floats, dot: _Dot) -> Floats:
    """The direction −H g of L-BFGS (Nocedal 1980), `inverse` being the diagonal of the first H."""
    q = -g
    alphas = []
    for step, change, rho in reversed(pairs):
        alpha = rho * dot(step, q)
        q = q - alpha * change
        alphas.append(alpha)
    q = inverse * q
    if pairs:
        _, change, rho = pairs[-1]
        square = rho * dot(change, inverse * change)
        q = q * np.divide(1.0, square, out=np.ones_like(square), where=square > 0)
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + (alpha - rho * dot(change, q)) * step
    return q


def _line_search(problem: Problem, z: Floats, dz: Floats, linear: Floats, quadratic: Floats) -> Floats:
    """The step that minimises the objective along dz, a group; 0 where the direction does not descend.

    The objective is convex in the step, so a bracket and Newton's method inside it are safe.
    """
    t = np.ones(problem.groups)
    low, high = np.zeros(problem.groups), np.full(problem.groups, np.inf)
    first, second = problem.slope(z, dz)
    at_zero = first + linear
    for _ in range(8):
        first, second = problem.slope(z + np.broadcast_to(t, z.shape[1]) * dz, dz)
        first, second = first + linear + t * quadratic, second + quadratic
        if (np.abs(first) <= 0.1 * np.abs(at_zero)).all():
            break
        low, high = np.where(first < 0, t, low), np.where(first < 0, high, t)
        newton = t - first / np.maximum(second, 1e-300)
        middle = np.where(np.isfinite(high), 0.5 * (low + high), 4.0 * np.maximum(t, low))
        inside = (newton > low) & (newton < np.where(np.isfinite(high), high, 10.0 * t))
        t = np.where(inside, newton, middle)
    return np.where(at_zero < 0, t, 0.0)
