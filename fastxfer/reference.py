"""What every op means: NumPy in float64, slow and obvious, from the embeddings themselves. The tests' oracle.

An episode is a row of `support` (m rows of `x`) with `labels` 0 … ways − 1, and a row of `query` (q rows of `x`); a
`query` of one row serves all episodes. All ops return scores whose largest entry names the predicted class.

Classes without support
    An N-way episode may hold no image of some class (imbalanced support, a label nobody knows). Such a class can not
    win: logistic and prototype score it −inf, ridge gives it −1 (the value it was fitted to), kNN no vote. For the
    logistic probe this is the limit, not a convention: its bias is unpenalised, so the objective falls as the bias of
    an unseen class goes to −∞, and its infimum is the minimum over the classes seen. That infimum is the `objective`.
    With one class seen it is 0, and every query is of that class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

# None: every class counts alike; "balanced", or a weight a class (see `logistic`).
ClassWeight = Literal["balanced"] | Sequence[float] | None

MAX_ITERATIONS = 500
# Up to here Newton's equations are solved by Cholesky, beyond by conjugate gradients (20-way 20-shot has 8,000).
DENSE_VARIABLES = 1500
# Images at a smaller cosine distance count as equal where votes go by distance: float32 products tell no more.
SAME_IMAGE = 1e-5


class LogisticResult(NamedTuple):
    """E episodes at L penalties: scores (E, L, q, ways), objective, iterations, converged (E, L).

    The full probe (`ops.logistic_full`) returns the same without the axis of episodes.
    """

    scores: Array
    objective: Array
    iterations: Array
    converged: Array


def logistic(
    x: ArrayLike,
    support: Array,
    labels: Array,
    query: Array,
    ways: int,
    l2: Sequence[float],
    tol: float = 1e-12,
    class_weight: ClassWeight = None,
) -> LogisticResult:
    """Logistic regression: the minimum of (1/m) Σ w(y_i) loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F, bias unpenalised.

    x (n, d); support (E, m) rows of x; labels (m,) or (E, m); query (E, q) or (1, q); l2 (L,) > 0.

    More than two ways: softmax cross-entropy; scores are the logits, which sum to zero over the classes seen. Two ways:
    the binary logistic loss with one weight vector, as in scikit-learn; with z = w·x + b, scores are (−z/2, z/2). The
    loss goes by `ways`, not by how many classes are seen. scikit-learn's C is 1/(m·l2).

    class_weight: None, w = 1; (ways,) the w of each class, or "balanced", w = m / (classes seen · images of the class).
    Both are scikit-learn's at the same C: weights do not change m, whatever they add up to.

    Solved by Newton's method until half the squared Newton decrement, which estimates what is left to gain, is below
    `tol` times the objective.
    """
    x, support, labels, query = _arguments(x, support, labels, query)
    shape = (len(support), len(l2))
    scores = np.full((*shape, query.shape[1], ways), -np.inf)
    objective, iterations, converged = np.zeros(shape), np.zeros(shape, np.int32), np.ones(shape, bool)
    for e in range(shape[0]):
        seen, y = np.unique(labels[e], return_inverse=True)
        for i in range(shape[1]):
            if len(seen) == 1:
                scores[e, i, :, seen[0]] = 0.0
                continue
            fit = _binary if ways == 2 else _multinomial
            w = image_weights(labels[e], class_weight)
            weights, bias, objective[e, i], iterations[e, i], converged[e, i] = fit(x[support[e]], y, l2[i], tol, w)
            z = x[query[e]] @ weights.T + bias
            scores[e, i][:, seen] = np.hstack([-z / 2, z / 2]) if ways == 2 else z
    return LogisticResult(scores, objective, iterations, converged)


def image_weights(labels: Array, class_weight: ClassWeight) -> Floats:
    """(m,) weight of each image's loss from its class (`logistic`)."""
    if class_weight is None:
        return np.ones(len(labels))
    if isinstance(class_weight, str):
        seen, place, count = np.unique(labels, return_inverse=True, return_counts=True)
        return np.asarray(len(labels) / len(seen) / count[place])
    return np.asarray(class_weight, np.float64)[labels]


def ridge(x: ArrayLike, support: Array, labels: Array, query: Array, ways: int, l2: Sequence[float]) -> Floats:
    """Least squares: the minimum of (1/m) Σ ½‖W x_i + b − y_i‖² + (l2/2) ‖W‖²_F, y_i one-hot with −1 for 0.

    Shapes as `logistic`; returns W x + b of the queries, (E, L, q, ways). For two ways the columns are (−z, z).
    """
    x, support, labels, query = _arguments(x, support, labels, query)
    scores = np.empty((len(support), len(l2), query.shape[1], ways))
    for e in range(len(support)):
        xs, y = x[support[e]], 2.0 * (labels[e][:, None] == np.arange(ways)) - 1.0
        x_mean, y_mean = xs.mean(axis=0), y.mean(axis=0)
        # An unpenalised bias makes the fitted plane pass through the means; what is left has no bias.
        xc, yc = xs - x_mean, y - y_mean
        for i in range(len(l2)):
            normal = xc.T @ xc / len(xs) + l2[i] * np.eye(x.shape[1])
            weights = scipy.linalg.solve(normal, xc.T @ yc / len(xs), assume_a="pos")
            scores[e, i] = (x[query[e]] - x_mean) @ weights + y_mean
    return scores


def prototype(
    x: ArrayLike,
    support: Array,
    labels: Array,
    query: Array,
    ways: int,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> Floats:
    """Nearest class mean (Snell et al. 2017): −‖q − μ_c‖², or the cosine of q and μ_c (Chen et al. 2021), (E, q, ways).

    μ_c is the mean of the support embeddings of class c as they are. A zero vector has cosine 0 with everything.
    """
    x, support, labels, query = _arguments(x, support, labels, query)
    scores = np.full((len(support), query.shape[1], ways), -np.inf)
    for e in range(len(support)):
        for c in np.unique(labels[e]):
            mean = x[support[e]][labels[e] == c].mean(axis=0)
            if metric == "euclidean":
                scores[e, :, c] = -((x[query[e]] - mean) ** 2).sum(axis=1)
            else:
                scores[e, :, c] = _unit(x[query[e]]) @ _unit(mean)
    return scores


def knn(
    x: ArrayLike,
    support: Array,
    labels: Array,
    query: Array,
    ways: int,
    *,
    k: Sequence[int],
    temperature: float | None = 0.07,
    by_distance: bool = False,
) -> Floats:
    """The k support images of largest cosine similarity vote; scores are shares of the vote, (E, len(k), q, ways).

    A vote weighs exp(similarity / temperature) (Wu et al. 2018, DINO), or 1 with `temperature=None`. With `by_distance`
    it weighs one over the cosine distance 1 − similarity, whatever the temperature, and images nearer than SAME_IMAGE
    share all the votes: scikit-learn's weights="distance" with metric="cosine". Of equally similar images the one that
    comes first in `support` is nearer. A k above m counts as m.
    """
    x, support, labels, query = _arguments(x, support, labels, query)
    m = support.shape[1]
    scores = np.zeros((len(support), len(k), query.shape[1], ways))
    for e in range(len(support)):
        similarity = _unit(x[query[e]]) @ _unit(x[support[e]]).T
        for j in range(query.shape[1]):
            order = np.argsort(-similarity[j], kind="stable")
            for i in range(len(k)):
                near = order[: min(k[i], m)]
                s = similarity[j, near]
                weight = vote_weights(s, temperature, by_distance)
                votes = np.bincount(labels[e][near], weight, minlength=ways)
                scores[e, i, j] = votes / votes.sum()
    return scores


def vote_weights(similarity: Floats, temperature: float | None, by_distance: bool) -> Floats:
    """(…, k) weights of votes, up to a factor a line; similarities may be −inf: no vote."""
    top = similarity.max(axis=-1, keepdims=True)
    if by_distance:
        same = 1 - similarity < SAME_IMAGE
        with np.errstate(divide="ignore"):
            return np.where(same.any(axis=-1, keepdims=True), same, 1.0 / (1 - similarity))
    if temperature is None:
        return np.isfinite(similarity).astype(np.float64)
    return np.asarray(np.exp((similarity - top) / temperature))


def _arguments(x: ArrayLike, support: Array, labels: Array, query: Array) -> tuple[Floats, Array, Array, Array]:
    support, query = np.asarray(support), np.asarray(query)
    n_episodes = len(support)
    labels = np.broadcast_to(np.asarray(labels), support.shape)
    query = np.broadcast_to(query, (n_episodes, query.shape[1]))
    return np.asarray(x, np.float64), support, labels, query


def _unit(x: Floats) -> Floats:
    """Rows at length 1; zero rows stay zero. Scaled first, so that tiny and huge rows neither under- nor overflow."""
    scale = np.abs(x).max(axis=-1, keepdims=True)
    x = x / np.where(scale > 0, scale, 1.0)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1.0))


_Fit = tuple[Floats, Floats, float, int, bool]  # weights (c, d), bias (c,), objective, iterations, converged


def _binary(x: Floats, y: Array, l2: float, tol: float, weight: Floats | None = None) -> _Fit:
    """Two classes, one weight vector: loss log(1 + exp(−s z)) with s = ±1."""
    s = 2.0 * y - 1.0

    def loss(z: Floats) -> Floats:
        return np.logaddexp(0.0, -s * z[:, 0])

    def derivatives(z: Floats) -> tuple[Floats, Floats]:
        p = np.exp(-np.logaddexp(0.0, s * z[:, 0]))  # probability of the wrong class, exact when tiny
        return (-s * p)[:, None], (p * np.exp(-np.logaddexp(0.0, -s * z[:, 0])))[:, None, None]

    return _newton(x, 1, loss, derivatives, l2, tol, weight)


def _multinomial(x: Floats, y: Array, l2: float, tol: float, weight: Floats | None = None) -> _Fit:
    """Softmax cross-entropy of c = max(y) + 1 classes, all of them present in `y`."""
    c = int(y.max()) + 1
    one_hot = y[:, None] == np.arange(c)

    def loss(z: Floats) -> Floats:
        # log Σ_j exp(z_j − z_y) = log(1 + Σ_{j≠y} …), exact when tiny.
        margin = z - z[one_hot][:, None]
        top = np.maximum(margin.max(axis=1), 0.0)
        rest = np.where(one_hot, 0.0, np.exp(margin - top[:, None])).sum(axis=1)
        return np.asarray(np.where(top > 0, top + np.log(np.exp(-top) + rest), np.log1p(rest)))

    def derivatives(z: Floats) -> tuple[Floats, Floats]:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        residual = np.where(one_hot, 0.0, p)
        residual[one_hot] = -residual.sum(axis=1)  # p_y − 1, without cancellation
        curvature = -p[:, :, None] * p[:, None, :]
        # Diagonal p_j (1 − p_j), again without cancellation where p_y is nearly one.
        others = np.where(one_hot, -residual, 1.0 - p)
        curvature[:, range(c), range(c)] = p * others
        return residual, curvature

    return _newton(x, c, loss, derivatives, l2, tol, weight)


def _newton(x: Floats, c: int, loss: Any, derivatives: Any, l2: float, tol: float, of: Floats | None) -> _Fit:
    """Newton's method with a line search on F(W, b) = (1/m) Σ of · loss(x W^T + b) + (l2/2)‖W‖², `of` (m,) or None for 1.

    loss(z) (m, c) -> (m,); derivatives(z) -> first (m, c) and second (m, c, c) derivative of each image's loss.

    Two changes of coordinates leave the minimum where it is. The embeddings are centred, which the free bias makes up
    for. And the weights, which can not leave the span of the centred embeddings, are written in an orthonormal basis
    of it, so that d costs nothing.
    """
    weight = np.ones(len(x)) if of is None else of
    mean = x.mean(axis=0)
    _, singular, basis = np.linalg.svd(x - mean, full_matrices=False)
    basis = basis[singular > singular[0] * 1e-15] if singular[0] > 0 else basis[:0]
    features = np.hstack([(x - mean) @ basis.T, np.ones((len(x), 1))])
    m, r = features.shape  # the last feature is the bias
    penalty = np.r_[np.full(r - 1, l2), 0.0]
    # Adding one number to all biases changes nothing; this term holds that direction still, at zero.
    gauge = np.zeros((c, r, c, r))
    if c > 1:
        gauge[:, -1, :, -1] = 1.0 / c

    def value(v: Floats) -> float:
        return float((weight * loss(features @ v.T)).mean() + 0.5 * (penalty * v**2).sum())

    v = np.zeros((c, r))
    f, done = value(v), False
    iterations = 0
    while iterations < MAX_ITERATIONS and not done:
        first, second = derivatives(features @ v.T)
        first, second = first * weight[:, None], second * weight[:, None, None]
        gradient = first.T @ features / m + penalty * v
        if c * r <= DENSE_VARIABLES:
            weighted = np.einsum("iab,ir->abir", second, features / m, optimize=True)
            hessian = np.tensordot(weighted, features, axes=(2, 0)).transpose(0, 2, 1, 3) + gauge
            hessian[range(c), :, range(c), :] += np.diag(penalty)
            step = -_solve(hessian.reshape(c * r, c * r), gradient.ravel()).reshape(c, r)
        else:
            step = -_conjugate_gradients(features, second, penalty, gradient)
        decrement = -float((gradient * step).sum())
        iterations += 1
        done = 0.5 * decrement <= tol * f
        # The last step is taken too: it squares the error that is left.
        t, slope = 1.0, decrement
        while (f_new := value(v + t * step)) > f - 1e-4 * t * slope and t > 1e-10:
            t /= 2
        if f_new < f:
            v, f = v + t * step, f_new
        else:
            break  # rounding: no step lowers the objective any further
    bias = v[:, -1] - (v[:, :-1] @ basis) @ mean
    if c > 1:
        v = v - v.mean(axis=0)  # rounding only
        bias = bias - bias.mean()
    return v[:, :-1] @ basis, bias, f, iterations, done


def _solve(hessian: Floats, gradient: Floats) -> Floats:
    """Cholesky on the matrix scaled to a unit diagonal; a breath of damping where rounding made it indefinite."""
    d = 1.0 / np.sqrt(np.maximum(np.diag(hessian), 1e-300))
    scaled = hessian * d[:, None] * d
    damping = 0.0
    while True:
        try:
            factor = scipy.linalg.cho_factor(scaled + damping * np.eye(len(scaled)), check_finite=False)
            return np.asarray(d * scipy.linalg.cho_solve(factor, d * gradient, check_finite=False))
        except np.linalg.LinAlgError:
            damping = max(1e-15, damping * 10)


def _conjugate_gradients(features: Floats, second: Floats, penalty: Floats, gradient: Floats) -> Floats:
    """Newton's equations where their matrix would be too large to write down (Hestenes & Stiefel 1952)."""
    m = len(features)

    def product(u: Floats) -> Floats:
        inner = np.einsum("iab,ib->ia", second, features @ u.T)
        return np.asarray(inner.T @ features / m + penalty * u)

    x = np.zeros_like(gradient)
    residual = gradient.copy()
    direction, square = residual.copy(), float((residual**2).sum())
    target = 1e-20 * square
    for _ in range(4 * gradient.size):
        if square <= target:
            break
        hd = product(direction)
        alpha = square / float((direction * hd).sum())
        x += alpha * direction
        residual -= alpha * hd
        square, old = float((residual**2).sum()), square
        direction = residual + (square / old) * direction
    return x
