"""Transferability scores of embeddings x (n, d) and class indices y (n,): the larger, the better a backbone should transfer.

Each is its own paper's definition. Where a paper leaves a choice, the default is what its authors' experiments took.
Products and decompositions are float64; n and d may each be the larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from fastxfer.errors import DataError
from fastxfer.ops_full import nearest_full

Array = NDArray[Any]
Floats = NDArray[np.float64]

# LogME looks for the best prior on this many points of a grid before it goes down to the last digit.
_GRID = 64


def leep(probabilities: Array, y: Array) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020), ≤ 0.

    probabilities (n, z): what the source's own classifier says of each image; rows sum to 1.
    """
    y, n_classes = _classes(y)
    n = len(y)
    joint = np.stack([probabilities[y == c].sum(axis=0, dtype=np.float64) for c in range(n_classes)]) / n
    mass = joint.sum(axis=0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    expected = (probabilities @ conditional.T.astype(probabilities.dtype))[np.arange(n), y]
    return float(np.mean(np.log(expected, dtype=np.float64)))


def nleep(
    x: Array, y: Array, *, per_class: int = 5, variance: float = 0.8, most_axes: int = 64, seed: int = 0
) -> float:
    """LEEP with the components of a Gaussian mixture in place of the source's classes (Li et al. 2021), ≤ 0.

    The mixture has `per_class` components a class (at most one for two images) and full covariances, on the principal
    axes that hold `variance` of the variance, or `most_axes` of them if those are fewer.
    """
    y, n_classes = _classes(y)
    turned = PCA(min(most_axes, *x.shape), random_state=seed).fit_transform(x.astype(np.float64))
    held = np.cumsum(turned.var(axis=0)) / x.var(axis=0, dtype=np.float64).sum()
    turned = turned[:, : int(np.searchsorted(held, variance)) + 1]
    components = max(1, min(per_class * n_classes, len(x) // 2))
    mixture = GaussianMixture(components, random_state=seed).fit(turned)
    return leep(mixture.predict_proba(turned), y)


def logme(x: Array, y: Array) -> float:
    """Log of the maximum evidence of a linear model on each class's indicator, a class and an image on average (You et al.
    2021; 2022).

    With prior precision α and noise precision β, their ratio t fixed, the best β is n / E(t), where
    E(t) = Σ z_k² t / (t + s_k²) + what lies outside the span; so a search over t alone finds the maximum. z are the
    coordinates of y along the left singular vectors of x, s its singular values.
    """
    y, n_classes = _classes(y)
    n = len(y)
    u, s = _left_vectors(x.astype(np.float64))
    square = s**2
    sizes = np.bincount(y, minlength=n_classes)
    along = np.stack([u[y == c].sum(axis=0) for c in range(n_classes)]) ** 2
    outside = np.maximum(sizes - along.sum(axis=1), 0.0)

    def evidence(log_t: Floats, c: int) -> Floats:
        t = np.exp(log_t)[..., None]
        left = (along[c] * t / (t + square)).sum(axis=-1) + outside[c]
        fit = 0.5 * (np.log(t) - np.log(t + square)).sum(axis=-1)
        return np.asarray(fit - 0.5 * n * (np.log(2 * np.pi * np.maximum(left, 1e-300) / n) + 1))

    grid = np.linspace(np.log(square[-1]) - 20, np.log(square[0]) + 20, _GRID)
    best = []
    for c in range(n_classes):
        values = evidence(grid, c)
        at = int(values.argmax())
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, _GRID - 1)]
        found = minimize_scalar(lambda v, c=c: -float(evidence(np.asarray(v), c)), bounds=(low, high), method="bounded")
        best.append(max(-found.fun, float(values[at])))
    return float(np.mean(best) / n)


def h_score(x: Array, y: Array, *, shrink: bool = False) -> float:
    """tr(cov(x)⁻¹ cov(E[x|y])) (Bao et al. 2019), between 0 and the number of classes less 1.

    shrink: with the covariance of Ledoit & Wolf, as Ibrahim et al. (2021) propose; without it, fewer images than
    dimensions leave every backbone at the largest value.
    """
    y, n_classes = _classes(y)
    centred = x - x.mean(axis=0, dtype=np.float64)
    u, s = _left_vectors(centred)
    # Averaging within classes is a projection, so tr(Σ⁺ Σ_z) is the sum of squares of what it leaves of u.
    left = sum((u[y == c].sum(axis=0) ** 2) / np.sum(y == c) for c in range(n_classes))
    if not shrink:
        return float(np.sum(left))
    alpha, n = float(ledoit_wolf_shrinkage(centred, assume_centered=True)), len(x)
    variances = (1 - alpha) * s**2 / n
    level = alpha * (s**2).sum() / n / x.shape[1]
    return float(np.sum(left * variances / (variances + level)))


def transrate(x: Array, y: Array, *, eps: float = 1e-4, unit: bool = True) -> float:
    """R(Z, ε) − R(Z, ε | y), coding rates of the centred embeddings in nats (Huang et al. 2022).

    R(Z, ε) = ½ log det(I + Zᵀ Z / (n ε)), and given y the mean of the classes' own, weighted by their size.
    unit: centred embeddings at length 1, as in the authors' code, since the rate depends on their scale
    """
    y, n_classes = _classes(y)
    z = x - x.mean(axis=0, dtype=np.float64)
    if unit:
        length = np.linalg.norm(z, axis=1, keepdims=True)
        z = np.divide(z, length, out=np.zeros_like(z), where=length > 0)

    def rate(part: Floats) -> float:
        products = part.T @ part if len(part) > part.shape[1] else part @ part.T
        square = np.maximum(np.linalg.eigvalsh(products), 0.0)
        return 0.5 * float(np.log1p(square / (len(part) * eps)).sum())

    parts = [z[y == c] for c in range(n_classes)]
    return rate(z) - sum(len(part) * rate(part) for part in parts) / len(z)


def gbc(x: Array, y: Array, *, axes: int = 64, spherical: bool = True) -> float:
    """Minus the Bhattacharyya coefficients of all pairs of classes, each pair twice, each class a Gaussian (Pándy et al.
    2022), from 0 down to −c (c − 1).

    On the first `axes` principal axes; with one variance a class (`spherical`), or one a class and axis. No variance
    counts as less than 1e-4, as in the authors' code.
    """
    y, n_classes = _classes(y)
    turned = PCA(min(axes, *x.shape), svd_solver="full").fit_transform(x.astype(np.float64))
    mean = np.stack([turned[y == c].mean(axis=0) for c in range(n_classes)])
    variance = np.maximum(np.stack([turned[y == c].var(axis=0) for c in range(n_classes)]), 1e-4)
    if spherical:
        variance = np.broadcast_to(variance.mean(axis=1, keepdims=True), variance.shape)
    total = 0.0
    for c in range(n_classes):
        middle = (variance[c] + variance) / 2
        apart = ((mean[c] - mean) ** 2 / middle).sum(axis=1) / 8
        apart += (np.log(middle) - (np.log(variance[c]) + np.log(variance)) / 2).sum(axis=1) / 2
        total += np.exp(-apart).sum() - 1  # itself
    return -float(total)


def knn(x: Array, y: Array, *, k: int = 1, groups: Array | None = None) -> NDArray[np.bool_]:
    """(n,) whether the k nearest others by cosine would call each image right: leave-one-out, k = 1 as Puigcerver et al.
    (2021) rank experts.

    groups: (n,) whose an image is; images of one's own group do not vote. Who has nobody else to ask is wrong. Of classes
    with as many votes the first wins.
    """
    y, n_classes = _classes(y)
    own = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    right, todo, asked = np.zeros(len(y), bool), np.arange(len(y)), k + 1
    while len(todo):
        rows = nearest_full(x, x[todo], min(asked, len(y))).rows
        other = own[rows] != own[todo, None]
        place = np.cumsum(other, axis=1)
        enough = (place[:, -1] >= k) | (asked >= len(y))
        # The votes of the first k others.
        votes = np.zeros((len(todo), n_classes))
        at, column = np.nonzero(other & (place <= k))
        np.add.at(votes, (at, y[rows[at, column]]), 1)
        right[todo] = (votes.argmax(axis=1) == y[todo]) & votes.any(axis=1)
        todo, asked = todo[~enough], 4 * asked
    return right


def _classes(y: Array) -> tuple[NDArray[np.int64], int]:
    """Classes that have images, renumbered from 0; `DataError` for fewer than two."""
    known, place = np.unique(y, return_inverse=True)
    if len(known) < 2:
        raise DataError(f"transferability needs images of at least 2 classes, got {len(known)}")
    return place.astype(np.int64), len(known)


def _left_vectors(x: Floats) -> tuple[Floats, Floats]:
    """Left singular vectors (n, r) and singular values (r,), largest first, of those that are not rounding."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    there = s > s[0] * max(x.shape) * np.finfo(np.float64).eps
    return u[:, there], s[there]
