"""Distances and overlaps of two independent samples x (n, d) and y (m, d), each with a standard error.

The population is that of the images: another n and m of the same kinds, the network that embedded them being what it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fastxfer.ops_full import logistic_full, nearest_full
from fastxfer.statistics import split_interval

Array = NDArray[Any]
Floats = NDArray[np.float64]

LEVEL = 0.95
_Z = float(stats.norm.ppf(0.5 + LEVEL / 2))
# Parts of the sample that the Fréchet distance is extrapolated from, each so many times.
FRACTIONS, REPEATS = (0.5, 0.625, 0.75, 0.875, 1.0), 20
GROUPS = 20  # of a jackknife
FOLDS = 5
L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the domain classifier, for embeddings of length 1 on average


class Measured(NamedTuple):
    """A value, its standard error, and an interval at LEVEL."""

    value: float
    se: float
    low: float
    high: float


def _around(value: float, se: float, df: float = np.inf) -> Measured:
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * se
    return Measured(value, se, value - half, value + half)


# -- Fréchet distance --------------------------------------------------------------------------------------------------


def frechet(x: Array, y: Array, *, dims: int | None = 64, seed: int = 0) -> Measured:
    """Squared Fréchet distance of the Gaussians with the samples' means and covariances (Dowson & Landau 1982; FID).

    ‖μ − ν‖² + tr(Σ + T − 2 (Σ T)^½), on the first `dims` principal axes of both samples together, each weighing as much
    (None: on all). What it is too large by falls like 1/n: it is fitted on parts of the samples and extrapolated to 1/n = 0
    (Chong & Forsyth 2020), so that the value of two equal populations is about 0, now above, now below. Where n is not
    several times the number of axes this line is no line.

    The standard error is that of a jackknife over GROUPS groups of images.
    """
    x, y = _on_axes(x, y, dims)
    rng = np.random.default_rng(seed)
    means = []
    for fraction in FRACTIONS:
        n, m = round(fraction * len(x)), round(fraction * len(y))
        repeats = REPEATS if fraction < 1 else 1
        means.append(
            np.mean([_frechet(x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:m]]) for _ in range(repeats)])
        )
    value = np.polyfit(1 / np.asarray(FRACTIONS), means, 1)[1]
    return _around(float(value), _jackknife(_frechet, x, y, rng), GROUPS - 1)


def _frechet(x: Floats, y: Floats) -> float:
    """The plug-in value, by singular values: tr (Σ T)^½ is the nuclear norm of the product of the samples' factors."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    # R of a QR decomposition is a factor as good as the centred sample, and no taller than it is wide.
    a, b = (np.linalg.qr(z, mode="r") / np.sqrt(rows - 1) for z, rows in ((x - mean_x, len(x)), (y - mean_y, len(y))))
    fidelity = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * fidelity)


def _on_axes(x: Array, y: Array, dims: int | None) -> tuple[Floats, Floats]:
    wide = [np.asarray(z, np.float64) for z in (x, y)]
    centre = (wide[0].mean(axis=0) + wide[1].mean(axis=0)) / 2
    wide = [z - centre for z in wide]
    if dims is None or dims >= wide[0].shape[1]:
        return wide[0], wide[1]
    weighted = np.concatenate([z / np.sqrt(len(z)) for z in wide])
    axes = np.linalg.svd(weighted, full_matrices=False)[2][:dims].T
    return wide[0] @ axes, wide[1] @ axes


def _jackknife(of: Any, x: Floats, y: Floats, rng: np.random.Generator) -> float:
    """Standard error of `of(x, y)` from leaving out a group of both samples at a time (Shao & Tu 1995)."""
    group_x, group_y = (rng.permutation(np.arange(len(z)) % GROUPS) for z in (x, y))
    without = np.array([of(x[group_x != g], y[group_y != g]) for g in range(GROUPS)])
    return float(np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean()) ** 2).sum()))


# -- kernel MMD --------------------------------------------------------------------------------------------------------


def mmd(x: Array, y: Array, *, bandwidth: float | None = None) -> Measured:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased (Gretton et al. 2012, eq. 3): 0 on average for equal
    populations, now above, now below.

    bandwidth: σ of exp(−‖a − b‖² / (2 σ²)); None: the median distance between images of x

    The standard error is the root of an unbiased estimate of the variance (`mmd_variance`), or of the part of it that equal
    populations have, if that is more.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    xx, yy, xy = _squares(x, x), _squares(y, y), _squares(x, y)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(xx[np.triu_indices(len(x), 1)])))
    kxx, kyy, kxy = (np.exp(-square / (2 * bandwidth**2)) for square in (xx, yy, xy))
    return _around(*mmd_of(kxx, kyy, kxy))


def mmd_of(kxx: Floats, kyy: Floats, kxy: Floats) -> tuple[float, float]:
    """Unbiased squared MMD and its standard error from kernel matrices (n, n), (m, m), (n, m), n and m ≥ 4."""
    kxx, kyy = (k - np.diag(np.diag(k)) for k in (kxx, kyy))
    n, m = kxy.shape
    value = kxx.sum() / (n * (n - 1)) + kyy.sum() / (m * (m - 1)) - 2 * kxy.mean()
    variance, null = mmd_variance(kxx, kyy, kxy)
    return float(value), float(np.sqrt(max(variance, null)))


def mmd_variance(kxx: Floats, kyy: Floats, kxy: Floats) -> tuple[float, float]:
    """Unbiased estimate of the variance of the unbiased squared MMD, and of the part that remains for equal populations;
    kernel matrices as in `mmd_of`, with zeros on the diagonals.

    The value is U_x + U_y − 2 U_xy, U-statistics whose variances and covariances follow from those of the kernel and of its
    means over one argument (Hoeffding 1948). Each of these is estimated from products over different images only, as
    Sutherland & Deka (2019) do for n = m; Bounliphone et al. (2016) keep the terms of order 1/n.
    """
    n, m = kxy.shape

    def of_own(k: Floats, count: int) -> tuple[float, float]:
        """Variance of the kernel's mean over one argument, and of the kernel, within one sample."""
        rows, square, total = k.sum(axis=1), (k**2).sum(), k.sum()
        mean_square = square / (count * (count - 1))
        shared = ((rows**2).sum() - square) / (count * (count - 1) * (count - 2))
        apart = (total**2 - 4 * (rows**2).sum() + 2 * square) / (count * (count - 1) * (count - 2) * (count - 3))
        return shared - apart, mean_square - apart

    rows, columns, square, total = kxy.sum(axis=1), kxy.sum(axis=0), (kxy**2).sum(), kxy.sum()
    shared_x = ((rows**2).sum() - square) / (n * m * (m - 1))
    shared_y = ((columns**2).sum() - square) / (n * m * (n - 1))
    apart = (total**2 - (rows**2).sum() - (columns**2).sum() + square) / (n * (n - 1) * m * (m - 1))
    over_x, over_y, both = shared_x - apart, shared_y - apart, square / (n * m) - apart

    def with_cross(k: Floats, cross: Floats, count: int, others: int) -> float:
        """Covariance of the two means, of the kernel within a sample and across, over the image they share."""
        own_rows, cross_rows = k.sum(axis=1), cross.sum(axis=1)
        together = (own_rows * cross_rows).sum()
        shared = together / (count * (count - 1) * others)
        apart = (k.sum() * cross.sum() - 2 * together) / (count * (count - 1) * (count - 2) * others)
        return float(shared - apart)

    (one_x, two_x), (one_y, two_y) = of_own(kxx, n), of_own(kyy, m)
    variance = (
        (4 * (n - 2) * one_x + 2 * two_x) / (n * (n - 1))
        + (4 * (m - 2) * one_y + 2 * two_y) / (m * (m - 1))
        + 4 * ((m - 1) * over_x + (n - 1) * over_y + both) / (n * m)
        - 8 * with_cross(kxx, kxy, n, m) / n
        - 8 * with_cross(kyy, kxy.T, m, n) / m
    )
    # For equal populations the means' parts cancel, and what no mean explains is left.
    null = (
        2 * (two_x - 2 * one_x) / (n * (n - 1))
        + 2 * (two_y - 2 * one_y) / (m * (m - 1))
        + 4 * (both - over_x - over_y) / (n * m)
    )
    return float(variance), float(max(null, 0.0))


def _squares(a: Floats, b: Floats) -> Floats:
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(square, 0.0)


# -- domain classifier -------------------------------------------------------------------------------------------------


def a_distance(x: Array, y: Array, *, seed: int = 0) -> Measured:
    """2 (1 − 2 ε) with ε the balanced error of a logistic probe that tells x from y (Ben-David et al. 2007): 0 where it
    cannot, 2 where it always can.

    Cross-validated: of FOLDS parts each is scored by a probe that has learnt from the others but one, on which it has chosen
    its penalty among L2. Equal embeddings stay in one part, so that equal samples have distance 0 exactly. The interval is
    over images, the probes staying as they are.
    """
    z = np.concatenate([x, y]).astype(np.float64)
    z -= z.mean(axis=0)
    z /= np.sqrt((z**2).sum(axis=1).mean()) or 1.0
    z = z.astype(np.float32)
    of = np.repeat([0, 1], [len(x), len(y)])
    alike = np.unique(z.view(f"V{z.itemsize * z.shape[1]}").ravel(), return_inverse=True)[1]
    part = (np.random.default_rng(seed).permutation(alike.max() + 1) % FOLDS)[alike]
    scores = np.empty((len(z), 2))
    for fold in range(FOLDS):
        held, judge = part == fold, part == (fold + 1) % FOLDS
        learn = ~held & ~judge
        found = logistic_full(z[learn], of[learn], z[held | judge], 2, L2, tol=1e-5, class_weight="balanced").scores
        judged = judge[held | judge]
        losses = [_log_loss(s[judged], of[judge]) for s in found]
        scores[held] = found[int(np.argmin(losses))][~judged]
    error = np.mean([(scores[of == c].argmax(axis=1) != c).mean() for c in (0, 1)])
    low, high = split_interval("balanced_accuracy", scores, of, level=LEVEL)
    low, high = 4 * low - 2, 4 * high - 2
    return Measured(float(2 * (1 - 2 * error)), (high - low) / (2 * _Z), low, high)


def _log_loss(scores: Array, labels: Array) -> float:
    """Balanced log loss of scores (n, 2)."""
    margin = (scores[:, 1] - scores[:, 0]) * np.where(labels == 1, 1.0, -1.0)
    loss = np.logaddexp(0.0, -margin)
    return float(np.mean([loss[labels == c].mean() for c in (0, 1)]))


# -- overlaps ----------------------------------------------------------------------------------------------------------


def neighbour_overlap(x: Array, y: Array, *, k: int = 10, seed: int = 0) -> Measured:
    """How many of an image's k nearest others (cosine) come from the other sample, in units of what it would be for equal
    populations (after Schilling 1986): 1 for equal ones, 0 where the two lie apart.

    Of the larger sample as many are drawn as the smaller has. The standard error is a jackknife's over groups of images.
    """
    n = min(len(x), len(y))
    rng = np.random.default_rng(seed)
    x, y = (z if len(z) == n else z[np.sort(rng.choice(len(z), n, replace=False))] for z in (x, y))
    of = np.repeat([0, 1], n)
    found = nearest_full(z := np.concatenate([x, y]), z, min(4 * k + 1, 2 * n)).rows
    return _around(_overlap(found, of, np.ones(2 * n, bool), k), _overlap_error(found, of, k, rng), GROUPS - 1)


def _overlap(found: Array, of: Array, there: NDArray[np.bool_], k: int) -> float:
    """The overlap among the images that are `there`, from more neighbours than needed."""
    rows = np.flatnonzero(there)
    near = found[rows]
    other = there[near] & (near != rows[:, None])
    first = other & (np.cumsum(other, axis=1) <= k)
    across = (first & (of[near] != of[rows, None])).sum() / first.sum()
    n = [int((of[rows] == c).sum()) for c in (0, 1)]
    return float(across / (2 * n[0] * n[1] / (len(rows) * (len(rows) - 1))))


def _overlap_error(found: Array, of: Array, k: int, rng: np.random.Generator) -> float:
    group = rng.permutation(np.arange(len(of)) % GROUPS)
    without = np.array([_overlap(found, of, group != g, k) for g in range(GROUPS)])
    return float(np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean()) ** 2).sum()))


def label_overlap(names: Sequence[str], others: Sequence[str]) -> tuple[Measured, int]:
    """Jaccard index of the words of two lists of class names, and the number of words: shared over all.

    The interval is Wilson's of a share, as if the words were drawn from a language; names without words give NaN.
    """
    a, b = (set().union(*(words(name) for name in some)) for some in (names, others))
    every = len(a | b)
    if not every:
        return Measured(*[float("nan")] * 4), 0
    found = stats.binomtest(len(a & b), every).proportion_ci(LEVEL, "wilson")
    low, high = float(found.low), float(found.high)
    return Measured(len(a & b) / every, (high - low) / (2 * _Z), low, high), every


def words(name: str) -> set[str]:
    """Words of a class name, in small letters: "AmericanBulldog_2" and "american bulldog 2" have the same. None of one or
    two letters ("of"), but numbers of any length."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {w for w in re.findall(r"[^\W\d_]+|\d+", apart.lower()) if len(w) > 2 or w.isdigit()}
