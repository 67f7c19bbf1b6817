"""Probes of a full train split: logistic regression in the primal with BLAS products, and exact kNN by FAISS.

`fastxfer.ops` re-exports `logistic_full` and `knn_full`. Few-shot episodes, where there are fewer images than
dimensions, are solved elsewhere (`ops.logistic`), in the span of the support.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import UsageError
from fastxfer.reference import LogisticResult

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Up to this many dimensions (or images, if fewer) the features are turned into their principal axes first: n^3 once,
# a third to a tenth of the iterations for each l2. Beyond, each feature is only scaled.
DECORRELATE = 3072
# Pairs that L-BFGS remembers, and the bytes they may take (at least ten are kept).
HISTORY = 60
HISTORY_BYTES = 2**28


def logistic_full(
    x: ArrayLike,
    y: ArrayLike,
    query: ArrayLike,
    n_classes: int,
    l2: Sequence[float],
    *,
    tol: float = 3e-8,
    max_iter: int = 1000,
) -> LogisticResult:
    """Logistic regression on all of `x`, at every `l2`: (1/m) Σ loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F, bias unpenalised.

    x (m, d), query (q, d), any float dtype; y (m,) class indices 0 … n_classes − 1, or (m, n_classes) floats, 1 for
    positive, 0 for negative, NaN for unknown. l2 (L,) > 0 in any order. Returns scores (L, q, n_classes), objective,
    iterations, converged (L,), in the order of `l2`.

    Single-label: softmax cross-entropy, or for two classes the binary loss with one weight vector; scores and classes
    without images as in `fastxfer.reference.logistic`. Multi-label: one binary problem a label over the images where
    it is known, whose number is the m of that label; scores are the decision values w·x + b, the objective is the sum
    over labels. A label known only as negative scores −inf, only as positive +inf; one that nobody knows scores NaN.

    The penalties are solved from the largest to the smallest, each starting at the solution before, by preconditioned
    L-BFGS: vectors in float64, the products with the features in float32, the end checked in float64. It ends where
    half the squared gradient in the preconditioner's norm, an estimate of what is left to gain, is below `tol` times
    the objective; measured on real embeddings, the gap then is up to 15 times that, still below 1e-6.

    Memory beyond the arguments, with r = min(m, d) and q queries, in bytes: 20·m·r + 8·q·r for the features (float64
    before and after turning, float32), 8·r² for their axes while r ≤ DECORRELATE, HISTORY_BYTES for the solver's
    memory (or ten pairs, 160·c·r, if that is more), and about 80·c·m for logits.
    """
    x, query, y = np.asarray(x), np.asarray(query), np.asarray(y)
    _check(x, query, y, n_classes)
    penalties = np.asarray(l2, np.float64)
    if penalties.ndim != 1 or not len(penalties) or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise UsageError(f"l2 must be a list of positive numbers, got {l2}")
    multi_label = y.ndim == 2
    constant, solved, problem = _problem(y, n_classes)
    scores = np.broadcast_to(constant, (len(penalties), len(query), n_classes)).copy()
    objective, iterations = np.zeros(len(penalties)), np.zeros(len(penalties), np.int32)
    converged = np.ones(len(penalties), bool)
    if problem is None:
        return LogisticResult(scores.astype(np.float32), objective, iterations, converged)

    features, query_features = _features(x, query)
    path = _Path(features, problem)
    for i in np.argsort(-penalties, kind="stable"):
        objective[i], iterations[i], converged[i] = path.solve(float(penalties[i]), tol, max_iter)
        z = query_features @ path.w[:-1] + path.w[-1]
        if multi_label:
            scores[i][:, solved] = z
        elif problem.columns == 1:
            scores[i] = np.hstack([-z / 2, z / 2])
        else:
            scores[i][:, solved] = z - z.mean(axis=1, keepdims=True)
    return LogisticResult(scores.astype(np.float32), objective, iterations, converged)


def _check(x: Array, query: Array, y: Array, n_classes: int) -> None:
    if x.ndim != 2 or query.ndim != 2 or x.shape[1] != query.shape[1] or not len(x):
        raise UsageError(f"embeddings must be (m, d) and (q, d), got {x.shape} and {query.shape}")
    if y.shape not in ((len(x),), (len(x), n_classes)):
        raise UsageError(f"labels must be ({len(x)},) or ({len(x)}, {n_classes}) for {len(x)} images, got {y.shape}")
    if y.ndim == 1 and not (y.dtype.kind in "iu" and y.min() >= 0 and y.max() < n_classes):
        raise UsageError(f"labels must be integers from 0 to {n_classes - 1}, got {y.dtype} {y.min()} to {y.max()}")
    for name, values in (("train", x), ("query", query)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise UsageError(f"{name} embeddings hold NaN or infinity, first in row {int(bad.argmax())}")


# ---- losses -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """What the solver needs to know of a loss. `columns` logits an image, in `groups` that are solved independently.

    value(z) (groups,); residual(z) (m, columns), the derivative of the value by the logits;
    slope(z, dz) first and second derivative of the value along dz, (groups,) each; curvature(z) its mean diagonal.
    """

    columns: int
    groups: int
    value: Callable[[Floats], Floats]
    residual: Callable[[Floats], Floats]
    slope: Callable[[Floats, Floats], tuple[Floats, Floats]]
    curvature: Callable[[Floats], Floats]


def _problem(y: Array, n_classes: int) -> tuple[Floats, Array, _Problem | None]:
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


def _binary(positive: NDArray[np.bool_], share: Floats) -> _Problem:
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

    columns = sign.shape[1]
    return _Problem(columns, columns, value, residual, slope, curvature)


def _softmax(codes: Array, columns: int) -> _Problem:
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

    return _Problem(columns, 1, value, residual, slope, curvature)


# ---- features and solver ----------------------------------------------------------------------------------------


def _features(x: Array, query: Array) -> tuple[Floats, Floats]:
    """Centred features of train images and queries, on principal axes where that is affordable. Same minimum.

    With fewer images than dimensions, the weights lie in the span of the images, so min(m, d) features are enough.
    """
    m, d = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    centred, query = x - mean, query - mean
    if m < d:
        if m > DECORRELATE:
            return centred, query
        gram = centred @ centred.T
        square, axes = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        kept = square > square[-1] * 1e-14
        length = np.sqrt(square[kept])
        return axes[:, kept] * length, (query @ centred.T) @ (axes[:, kept] / length)
    if d > DECORRELATE:
        return centred, query
    _, axes = scipy.linalg.eigh(centred.T @ centred, driver="evd", overwrite_a=True, check_finite=False)
    return centred @ axes, query @ axes


class _Path:
    """L-BFGS along a path of penalties, every group of columns on its own; one product each way an iteration.

    Logits along a direction are linear, so the line search (Newton on the convex function of the step) costs
    exponentials only. Three things make the next penalty cheap: it starts at the last solution, carried on along the
    path where that is better; the pairs of steps and changes of the gradient are kept, since the penalty's part of a
    change is known; and the first approximation of the Hessian is the mean curvature of the losses on principal axes.
    """

    def __init__(self, features: Floats, problem: _Problem) -> None:
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

    def solve(self, l2: float, tol: float, max_iter: int) -> tuple[float, int, bool]:
        """Move `w` and `z` to the minimum at `l2`; objective, iterations, converged."""
        problem, dot = self.problem, self._dot
        penalty = np.full((len(self.w), 1), l2)
        penalty[-1] = 0.0
        start = self.w, self.z
        self._extrapolate(l2, penalty)
        self.before, self.l2 = (self.l2, *start) if np.isfinite(self.l2) else None, l2
        kappa = np.maximum(problem.curvature(self.z), 1e-12)
        inverse = 1.0 / (self.spread * kappa + penalty)
        features: Array = self.fast
        pairs = [_pair(s, loss_change + penalty * s, dot) for s, loss_change in self.steps]

        f, g = self._total(penalty), self._gradient(features, penalty)
        for iteration in range(max_iter + 1):
            if (0.5 * dot(g, inverse * g)[: problem.groups] <= tol * f).all():
                if features is self.features:
                    return float(f.sum()), iteration, True
                # Rounding of the float32 products adds up in z: look again in float64, go on in it if need be.
                features = self.features
                self.z = features @ self.w[:-1] + self.w[-1]
                f, g = self._total(penalty), self._gradient(features, penalty)
                if (0.5 * dot(g, inverse * g)[: problem.groups] <= 2 * tol * f).all():
                    return float(f.sum()), iteration, True
            if iteration == max_iter:
                break
            direction = _two_loops(g, pairs, inverse, dot)
            dz = _times(features, direction[:-1]) + direction[-1]
            linear, quadratic = dot(self.w, penalty * direction), dot(direction, penalty * direction)
            t = _line_search(problem, self.z, dz, linear[: problem.groups], quadratic[: problem.groups])
            step = np.broadcast_to(t, problem.columns) * direction
            self.w, self.z = self.w + step, self.z + np.broadcast_to(t, problem.columns) * dz
            g_old = g
            f, g = self._total(penalty), self._gradient(features, penalty)
            if not step.any():
                break  # rounding: nothing descends any further
            pairs.append(_pair(step, g - g_old, dot))
            self.steps.append((step, g - g_old - penalty * step))
            del pairs[: -self.history], self.steps[: -self.history]
        self.z = self.features @ self.w[:-1] + self.w[-1]
        return float(self._total(penalty).sum()), iteration, False

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
        """Inner product of each group, spread over its columns."""
        if self.problem.groups > 1:
            return np.asarray(np.einsum("ij,ij->j", a, b))
        return np.full(self.problem.columns, np.vdot(a, b))

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


_Dot = Callable[[Floats, Floats], Floats]
_Pair = tuple[Floats, Floats, Floats]  # step, change of the gradient, 1 / their product


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


def _line_search(problem: _Problem, z: Floats, dz: Floats, linear: Floats, quadratic: Floats) -> Floats:
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


# ---- nearest neighbours -----------------------------------------------------------------------------------------


def knn_full(
    x: ArrayLike, y: ArrayLike, query: ArrayLike, n_classes: int, *, k: int, temperature: float | None = 0.07
) -> NDArray[np.float32]:
    """The k train images of largest cosine similarity vote, exactly (FAISS flat index); scores (q, n_classes) float32.

    x (m, d), query (q, d); y (m,) class indices or (m, n_classes) with 1 / 0 / NaN. A vote weighs
    exp(similarity / temperature) (Wu et al. 2018, DINO), or 1 with `temperature=None`; of equally similar images the
    one of the lower row is nearer (similarities are float32). A k above m counts as m; a zero vector is at similarity 0.

    Single-label: shares of the vote. Multi-label: share of the vote for positive among the neighbours where the label
    is known, minus 0.5, so that 0 divides; NaN where none of them knows.

    Memory: 4·m·d bytes for the index, 8·q·k for the neighbours.
    """
    import faiss

    x, query, y = np.asarray(x), np.asarray(query), np.asarray(y)
    _check(x, query, y, n_classes)
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if temperature is not None and not temperature > 0:
        raise UsageError(f"temperature must be positive, got {temperature}")
    m = len(x)
    k = min(k, m)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(_unit(x))
    similarity, neighbour = _nearest(index, _unit(query), k)
    weight = np.ones_like(similarity)
    if temperature is not None:
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
    scores = np.zeros((len(query), n_classes))
    if y.ndim == 1:
        np.add.at(scores, (np.arange(len(query))[:, None], y[neighbour]), weight)
        return (scores / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    total = np.zeros_like(scores)
    for j in range(k):
        label = y[neighbour[:, j]]
        known = ~np.isnan(label)
        scores += weight[:, j, None] * (known & (label > 0.5))
        total += weight[:, j, None] * known
    share = np.divide(scores, total, out=np.full_like(scores, np.nan), where=total > 0)
    return (share - 0.5).astype(np.float32)


def _nearest(index: Any, query: NDArray[np.float32], k: int) -> tuple[Floats, Array]:
    """(q, k) similarities, largest first, and rows, the lower row first among equals."""
    m, q = index.ntotal, len(query)
    wanted = min(k + 1, m)
    similarity, rows = np.empty((q, k)), np.empty((q, k), np.int64)
    todo = np.arange(q)
    # One more neighbour than asked for shows whether equals go on beyond the k-th; FAISS keeps any of them, so such
    # queries are asked again for more until all equals are in.
    while len(todo):
        s, r = index.search(query[todo], wanted)
        open_ended = (s[:, -1] == s[:, k - 1]) & (wanted < m)
        order = np.lexsort((r, -s), axis=-1)[:, :k]
        similarity[todo], rows[todo] = np.take_along_axis(s, order, -1), np.take_along_axis(r, order, -1)
        todo = todo[open_ended]
        wanted = min(4 * wanted, m)
    return similarity, rows


def _unit(x: Array) -> NDArray[np.float32]:
    """Rows at length 1 in float32; zero rows stay zero."""
    x = x.astype(np.float64)
    scale = np.abs(x).max(axis=1, keepdims=True)
    x /= np.where(scale > 0, scale, 1.0)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.where(norm > 0, norm, 1.0), dtype=np.float32)
