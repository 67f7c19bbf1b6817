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
HISTORY = 20
BLOCK_ROWS = 1024


def logistic_full(
    x: ArrayLike,
    y: ArrayLike,
    query: ArrayLike,
    n_classes: int,
    l2: Sequence[float],
    *,
    tol: float = 1e-8,
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

    The penalties are solved from the largest to the smallest, each starting at the solution before, by L-BFGS in
    coordinates in which the average curvature is one, in float64. It ends where half the squared gradient in these
    coordinates, an estimate of the objective's gap, is below `tol` times the objective.

    Memory beyond the arguments, in bytes: 8·m·min(m, d) for the features in float64, 8·min(m, d)² for their axes while
    min(m, d) ≤ DECORRELATE, and 8·(2·HISTORY + 6)·c·min(m, d) + 8·6·c·m for the solver.
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
    r = features.shape[1]
    spread = np.einsum("ij,ij->j", features, features) / len(features)  # curvature of a feature, but for p (1 − p)
    weights, bias = np.zeros((r, problem.columns)), np.zeros(problem.columns)
    for i in np.argsort(-penalties, kind="stable"):
        weights, bias, objective[i], iterations[i], converged[i] = _lbfgs(
            features, spread, problem, weights, bias, float(penalties[i]), tol, max_iter
        )
        z = query_features @ weights + bias
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


def _lbfgs(
    features: Floats,
    spread: Floats,
    problem: _Problem,
    weights: Floats,
    bias: Floats,
    l2: float,
    tol: float,
    max_iter: int,
) -> tuple[Floats, Floats, float, int, bool]:
    """L-BFGS (Nocedal 1980) on V = W / scale, every group of columns on its own; one product each way an iteration.

    Logits along a direction are linear, so the line search (Newton on the convex function of the step) costs
    exponentials only.
    """
    columns = problem.columns
    groups = problem.groups

    def dot(a: Floats, b: Floats) -> Floats:
        """Inner product a group, spread over its columns."""
        s = np.einsum("ij,ij->j", a, b)
        return s if groups > 1 else np.full(columns, s.sum())

    z = features @ weights + bias
    kappa = np.maximum(problem.curvature(z), 1e-12)
    # Rows: features, then the bias, which is not penalised and has the curvature of a constant feature.
    scale = np.vstack([1.0 / np.sqrt(np.outer(spread, kappa) + l2), 1.0 / np.sqrt(kappa)[None]])
    w = np.vstack([weights, bias])
    penalty = np.full((len(w), 1), l2)
    penalty[-1] = 0.0

    def total(z: Floats, w: Floats) -> Floats:
        return problem.value(z) + (0.5 * dot(w, penalty * w))[:groups]

    def gradient(z: Floats, w: Floats) -> Floats:
        residual = problem.residual(z)
        return np.asarray(scale * (np.vstack([features.T @ residual, residual.sum(axis=0)]) + penalty * w))

    f, g = total(z, w), gradient(z, w)
    steps: list[tuple[Floats, Floats, Floats]] = []
    for iteration in range(max_iter + 1):
        if (0.5 * dot(g, g)[:groups] <= tol * f).all():
            return w[:-1], w[-1], float(f.sum()), iteration, True
        if iteration == max_iter:
            break
        direction = _two_loops(g, steps, dot)
        dw = scale * direction
        dz = features @ dw[:-1] + dw[-1]
        t = _line_search(problem, z, dz, dot(w, penalty * dw)[:groups], dot(dw, penalty * dw)[:groups])
        t_columns = np.broadcast_to(t, columns)
        z, w = z + t_columns * dz, w + t_columns * dw
        f, g_old, g = total(z, w), g, gradient(z, w)
        s, change = t_columns * direction, g - g_old
        curvature = dot(s, change)
        # A group that has arrived no longer moves; its pair of zeros must not disturb the others.
        steps.append((s, change, np.divide(1.0, curvature, out=np.zeros_like(curvature), where=curvature > 0)))
        del steps[:-HISTORY]
    return w[:-1], w[-1], float(f.sum()), max_iter, False


def _two_loops(g: Floats, steps: list[tuple[Floats, Floats, Floats]], dot: Any) -> Floats:
    q = -g
    alphas = []
    for s, change, rho in reversed(steps):
        alpha = rho * dot(s, q)
        q = q - alpha * change
        alphas.append(alpha)
    if steps:
        _, change, rho = steps[-1]
        square = dot(change, change)
        q = q * np.divide(1.0, rho * square, out=np.ones_like(square), where=rho * square > 0)
    for (s, change, rho), alpha in zip(steps, reversed(alphas), strict=True):
        q = q + (alpha - rho * dot(change, q)) * s
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
