"""L-BFGS along a path of penalties, preconditioned by the covariance, with Newton's last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fastxfer.crew import Crew
from fastxfer.ops_full.history import History
from fastxfer.ops_full.losses import Loss
from fastxfer.ops_full.products import Gradient, Sum, gradient_of, logits_of
from fastxfer.ops_full.rows import Block, Rows

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Pairs that L-BFGS remembers, and the bytes they may take (at least ten are kept).
HISTORY = 60
HISTORY_BYTES = 2**29
# What the losses' curvature is made of is kept during conjugate gradients, if it takes no more than this.
KEEP_BYTES = 2**30
MAX_CG = 200
# Conjugate gradients end where the square of the residual has fallen by this: float32 products tell no more.
RESIDUAL_ROUNDING = 1e-16
# When L-BFGS guesses that less than this part of the objective is left, Newton takes over.
NEAR = 1e-5
# As long as it is clear that there is more to gain than the tolerance allows, a step of conjugate gradients that brings
# less than this part of what they have brought is the last.
LOOSE = 0.05
# The axes are found anew after that many passes, or more where they cost more.
AXES_AGAIN = 30
# Directions in which features vary less than this part of the largest variance are held to be noise.
LEAST_SPREAD = 1e-7


class Path:
    """Solves for one l2 after another; `w` (d + 1, columns) are the weights for `Rows`' features, last row the bias.

    All that is known of the embeddings comes from passes over their blocks: a block is read once for logits and once,
    still in the cache, for their part of the gradient; nothing is kept of an image. Groups of columns are solved side
    by side, each with its own step. `spread` (d,) is the features' variance along the columns of `axes` (d, d), or along
    themselves. Both are found anew at some of the solutions, from `sample` of the rows; never if that is 0.
    """

    def __init__(self, rows: Rows, loss: Loss, spread: Floats, axes: Array | None, crew: Crew, sample: int = 0) -> None:
        self.rows, self.loss, self.axes, self.crew = rows, loss, axes, crew
        self.w = np.zeros((rows.shape[1] + 1, loss.columns))
        self.spread = np.append(spread, 1.0)[:, None]
        self.steepest = 2.0 * loss.steepest  # rows are scaled: the mean of |x|² is 1
        capacity = int(np.clip(HISTORY_BYTES // (16 * self.w.size), 10, HISTORY))
        self.history = History(*self.w.shape, loss.groups, capacity)
        self.before: tuple[float, Floats] | None = None  # l2 and w of the solution before
        self.l2 = np.nan
        self.sample = sample
        self.passes = self.passes_at_axes = 0

    def solve_to(self, l2: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """`solve`, by way of larger penalties, roughly solved, where the last one is far away."""
        last = self.l2 if np.isfinite(self.l2) else float(self.spread.max() * 0.25)
        n_between = int(np.ceil(np.log10(last / l2))) - 1 if last > l2 else 0
        total = 0
        for between in np.geomspace(last, l2, n_between + 2)[1:-1] if n_between > 0 else ():
            total += self.solve(float(between), max(tol, 1e-3), max_iter, rough=True)[1]
        objective, iterations, converged = self.solve(l2, tol, max_iter)
        return objective, total + iterations, converged

    def solve(self, l2: float, tol: float, max_iter: int, rough: bool = False) -> tuple[float, int, bool]:
        """Move `w` to the minimum at `l2`; objective, iterations, converged. `rough`: as L-BFGS guesses, unchecked."""
        groups, dot = self.loss.groups, self._dot
        penalty = np.full((len(self.w), 1), l2)
        penalty[-1] = 0.0
        self._extrapolate(l2)
        if not rough:
            self._find_axes()
        self.history.move_to(l2)
        dtype: type[np.floating[Any]] = np.float32
        f, g, kappa = self._evaluate(self.w, penalty, dtype)
        for iteration in range(max_iter + 1):
            descend = self._descent(kappa, penalty)
            direction = descend(g)
            slope, arrived = dot(g, direction)[:groups], False
            if (-0.5 * slope <= max(tol, 0.0 if rough else NEAR) * f).all():
                if rough:
                    return float(f.sum()), iteration, True
                if dtype is np.float32:
                    # From here on in float64, so that float32's rounding is not taken for a slope.
                    dtype = np.float64
                    f, g, kappa = self._evaluate(self.w, penalty, dtype)
                direction, left = self._newton(f, g, descend, penalty, tol)
                slope, arrived = dot(g, direction)[:groups], bool((0.5 * left <= 5 * tol * f).all())
            if arrived:
                self.w = self.w + direction
                return float(self._evaluate(self.w, penalty, np.float64)[0].sum()), iteration + 1, True
            if iteration == max_iter:
                break
            step, f, g_new, kappa = self._search(direction, slope, g, penalty, dtype)
            if not step.any():
                break  # rounding: nothing descends any further
            self.history.add(step, g_new - g, self.steepest + l2)
            self.w, g = self.w + step, g_new
        return float(self._evaluate(self.w, penalty, np.float64)[0].sum()), iteration, False

    def _search(
        self, direction: Floats, at_zero: Floats, g: Floats, penalty: Floats, dtype: type[np.floating[Any]]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """A step along `direction`, and objective, gradient and curvature there.

        The objective is convex, so its slope grows along the line: a step is taken where it lies between 0.9 and −0.4
        of the first, nearly always the full one. Where the direction does not descend, the group stays.
        """
        columns, groups = self.loss.columns, self.loss.groups
        moves = at_zero < 0
        t = np.where(moves, 1.0, 0.0)
        low, low_slope = np.zeros(groups), at_zero
        high, high_slope = np.full(groups, np.inf), np.full(groups, np.inf)
        for _ in range(12):
            step = np.broadcast_to(t, columns) * direction
            f, g_new, kappa = self._evaluate(self.w + step, penalty, dtype)
            slope = self._dot(g_new, direction)[:groups]
            wrong = moves & ((slope < 0.9 * at_zero) | (slope > -0.4 * at_zero))
            if not wrong.any():
                break
            low, low_slope = np.where(slope < 0, t, low), np.where(slope < 0, slope, low_slope)
            high, high_slope = np.where(slope >= 0, t, high), np.where(slope >= 0, slope, high_slope)
            with np.errstate(invalid="ignore"):
                secant = low - low_slope * (high - low) / (high_slope - low_slope)
            t = np.where(wrong, np.where(np.isfinite(high), secant, 4.0 * t), t)
        return step, f, g_new, kappa

    def _evaluate(self, w: Floats, penalty: Floats, dtype: type[np.floating[Any]]) -> tuple[Floats, Floats, Floats]:
        """Objective (groups,), gradient (d + 1, columns) and mean curvature (columns,) at w, in one pass."""
        self.passes += 1
        loss, logits = self.loss, logits_of(w, dtype)

        def part(block: Block) -> tuple[Floats, Floats, Gradient]:
            rows, x = block[0], block[1]()
            value, residual, curvature = loss.first(rows, logits(x))
            return value, curvature, gradient_of(x, residual)

        value, curvature, gradient = np.zeros(loss.groups), np.zeros(loss.columns), Sum(w.shape)
        for some, curved, its in self.crew.each(part, self.rows.blocks(dtype)):
            value += some
            curvature += curved
            gradient.add(its)
        value /= loss.images[: loss.groups]
        f = value + (0.5 * self._dot(w, penalty * w))[: loss.groups]
        g = self._determined(gradient.total() / loss.images)
        return f, g + penalty * w, curvature / loss.images

    def _hessian(self, w: Floats, penalty: Floats) -> Callable[[Floats], Floats]:
        """The function that multiplies a direction by the Hessian at w, in one pass."""
        loss, logits_at_w = self.loss, logits_of(w, np.float32)
        keeps = 4 * self.rows.shape[0] * loss.columns <= KEEP_BYTES
        kept: dict[int, Array] = {}  # the loss's weights of a block, by its first row

        def times(direction: Floats) -> Floats:
            self.passes += 1
            logits = logits_of(direction, np.float32)

            def part(block: Block) -> Gradient:
                rows, x = block[0], block[1]()
                weights = kept.get(rows.start)
                if weights is None:
                    weights = loss.weights(rows, logits_at_w(x))
                    if keeps:
                        kept[rows.start] = weights
                return gradient_of(x, loss.second(rows, weights, logits(x)))

            product = Sum(direction.shape)
            for some in self.crew.each(part, self.rows.blocks(np.float32)):
                product.add(some)
            return np.asarray(self._determined(product.total() / loss.images) + penalty * direction)

        return times

    def _determined(self, g: Floats) -> Floats:
        """A gradient without what is rounding: a number added to all biases of a softmax changes nothing.

        Along that direction nothing curves, so a step that rounding made would be taken for a hint of how little.
        """
        if self.loss.columns > self.loss.groups:
            g[-1] -= g[-1].mean()
        return g

    def _find_axes(self) -> None:
        """The axes of the covariance in which images weigh as much as their losses curve at w: the Hessian's, nearly.

        Where classes separate, few images curve, and their covariance is another than that of all.
        """
        (m, d), since = self.rows.shape, self.passes - self.passes_at_axes
        # They take about 8·d³ flops, at twice the speed of the 4·m·d·columns of a pass: worth it if it saves a fourth.
        if not self.sample or since < max(AXES_AGAIN, 4 * d**2 / (m * self.loss.columns)):
            return
        self.passes += 1
        self.passes_at_axes = self.passes
        loss, logits, weights = self.loss, logits_of(self.w, np.float32), np.empty(m)

        def part(block: Block) -> None:
            weights[block[0]] = loss.curvature(block[0], logits(block[1]()))

        self.crew.do(part, self.rows.blocks(np.float32))
        if weights.max() <= 0:
            return
        weights /= weights.max()
        spread, self.axes = principal_axes(self.rows.covariance(self.sample, self.crew, weights))
        self.spread = np.append(spread, 1.0)[:, None]

    def _newton(
        self, f: Floats, g: Floats, descend: Callable[[Floats], Floats], penalty: Floats, tol: float
    ) -> tuple[Floats, Floats]:
        """Newton's direction and the squared Newton decrement of each group, twice what is left to gain.

        By conjugate gradients on the true Hessian, preconditioned by L-BFGS (Morales & Nocedal 2000). The decrement
        grows from one to the next. It is taken when it has stopped to, and sooner where it is already too large for the
        tolerance `tol` of the objective f.
        """
        dot = self._dot
        hessian = self._hessian(self.w, penalty)
        x, residual = np.zeros_like(g), -g
        direction = y = descend(g)
        square = first = dot(residual, y)
        gains = []
        for _ in range(MAX_CG):
            scale = np.abs(direction).max(axis=0 if self.loss.groups > 1 else None)
            scale = np.where(scale > 0, scale, 1.0)
            product = hessian(direction / scale) * scale
            length = dot(direction, product)
            alpha = np.divide(square, length, out=np.zeros_like(square), where=(square > 0) & (length > 0))
            x, residual = x + alpha * direction, residual - alpha * product
            gains.append(alpha * square)
            total = np.asarray(sum(gains))
            # Slow gains are watched for longer: the last quarter of them must have brought next to nothing, of the sum
            # or of what may be left.
            late = np.asarray(sum(gains[-max(5, len(gains) // 4) :]))
            settled = (late <= 0.03 * np.maximum(total, 10 * tol * f)) & (len(gains) >= 5)
            far = (total > 100 * tol * f) & (gains[-1] <= LOOSE * total)
            if not np.isfinite(x).all() or (settled | far).all():
                break
            y = descend(-residual)
            square, old = dot(residual, y), square
            # Nothing is left of the residual but rounding, whose gains would be noise, or infinite.
            if np.all(square <= RESIDUAL_ROUNDING * first):
                break
            direction = y + np.divide(square, old, out=np.zeros_like(square), where=old > 0) * direction
        return x, np.asarray(sum(gains))[: self.loss.groups]

    def _inverse(self, v: Floats, kappa: Floats, penalty: Floats) -> Floats:
        """The inverse Hessian times v, were the losses' curvature the same for all images."""
        scale = 1.0 / (self.spread * np.maximum(kappa, 1e-300) + penalty)
        if self.axes is None:
            return np.asarray(scale * v)
        size = np.abs(v).max() or 1.0
        turned = self.crew.product(self.axes.T, (v[:-1] / size).astype(np.float32))
        turned *= scale[:-1].astype(np.float32)
        return np.vstack([self.crew.product(self.axes, turned).astype(np.float64) * size, scale[-1] * v[-1]])

    def _extrapolate(self, l2: float) -> None:
        """Go on along the line of the last two solutions in log l2."""
        w = self.w
        if self.before is not None and len({self.before[0], self.l2, l2}) == 3:
            l2_before, w_before = self.before
            self.w = w + min(np.log(l2 / self.l2) / np.log(self.l2 / l2_before), 2.0) * (w - w_before)
        self.before, self.l2 = (self.l2, w) if np.isfinite(self.l2) else None, l2

    def _dot(self, a: Floats, b: Floats) -> Floats:
        """Inner product of each group, (groups,); it broadcasts over the columns."""
        if self.loss.groups > 1:
            return np.asarray(np.einsum("ij,ij->j", a, b))
        return np.array([np.vdot(a, b)])

    def _descent(self, kappa: Floats, penalty: Floats) -> Callable[[Floats], Floats]:
        """The function that takes g to L-BFGS's direction, starting from `_inverse`, scaled by the newest pair."""
        size = np.ones(self.loss.groups)
        if self.history:
            change = self.history.last_change()
            square = self._dot(change, self._inverse(change, kappa, penalty))
            size = np.divide(self.history.last_product(), square, out=size, where=square > 0)
            size[size <= 0] = 1.0
        return self.history.descent(lambda v: self._inverse(v, kappa, penalty) * size)


def principal_axes(covariance: NDArray[np.float32]) -> tuple[Floats, Array]:
    """Variances (d,) and axes (d, d), a column each, of a covariance whose upper triangle is given, and overwritten."""
    square, axes = scipy.linalg.eigh(covariance, lower=False, driver="evd", overwrite_a=True, check_finite=False)
    return np.maximum(square, LEAST_SPREAD * square[-1]).astype(np.float64), axes
