"""Tests of paired differences, each with the question that it answers.

Where SciPy or statsmodels has a test, it is theirs; here is what they lack.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]

LISTED = 16  # up to as many differences that are not 0, all signs are gone through


def sign_flip_p(differences: Array, step: float = 0.0) -> Array:
    """Two-sided p of paired permutation tests: of all ways to swap the two contenders in some replicates, the share in
    which the mean difference is as far from 0 as it is.

    differences (n, …), a test a column; step: 1 / queries where values are multiples of that, else 0

    Exact for up to LISTED differences that are not 0. Beyond that, the tail of the sum of randomly signed numbers, whose
    cumulants are those of K(t) = sum log cosh(t d), by the saddlepoint formula of Lugannani & Rice (1980), applied to
    permutations as by Robinson (1982), with the second continuity correction of Daniels (1987) for values on a lattice. It
    draws nothing, and says 1e-9 where that is meant, so that corrections for many tests have something to correct.
    """
    shape = differences.shape[1:]
    d = differences.reshape(len(differences), -1)
    size, total = np.abs(d), np.abs(d.sum(axis=0))
    whole, moving = size.sum(axis=0), (size > 0).sum(axis=0)
    slack = 1e-9 * whole
    p = np.ones(d.shape[1])
    open_ = total > slack
    for column in np.flatnonzero(open_ & (moving <= LISTED)):
        p[column] = _listed(size[size[:, column] > 0, column], total[column] - slack[column])
    open_ &= moving > LISTED
    one_way = open_ & (total >= whole - slack)
    p[one_way] = 2.0 ** (1.0 - moving[one_way])
    open_ &= ~one_way
    units = np.rint(size / step).astype(np.int64) if step else None
    if units is not None:
        on_lattice = open_ & (np.abs(units * step - size) <= 1e-9).all(axis=0)
        if on_lattice.any():
            counts = _counts(units[:, on_lattice])
            sizes = np.arange(len(counts))[:, None]
            between = np.gcd.reduce(np.where(counts > 0, sizes, 0), axis=0)
            gap = 2 * step * between
            p[on_lattice] = _tail(step * sizes, counts, total[on_lattice] - gap / 2, gap)
        open_ &= ~on_lattice
    if open_.any():
        p[open_] = _tail(size[:, open_], np.ones(1), total[open_], np.zeros(1))
    return p.reshape(shape)


def _listed(size: Array, least: float) -> float:
    """P(|sum of randomly signed `size`| >= least), by going through all signs."""
    sums = np.zeros(1)
    for one in size:
        sums = np.concatenate([sums + one, sums - one])
    return float(np.mean(np.abs(sums) >= least))


def _counts(units: Array) -> Array:
    """(n, n_tests) whole numbers -> (most + 1, n_tests): how often each test has each of them."""
    n_tests, most = units.shape[1], int(units.max()) + 1
    return np.bincount((units * n_tests + np.arange(n_tests)).ravel(), minlength=most * n_tests).reshape(most, n_tests)


def _tail(size: Array, counts: Array, x: Array, gap: Array) -> Array:
    """(n_tests,) P(|sum of randomly signed `size`| >= x), its values being `gap` apart (0: anything).

    size (n, n_tests) or (n, 1), shared by all tests; counts of the same shape or (1,): how often each is there
    """
    variance = (counts * size**2).sum(axis=0)
    near = x <= 1e-3 * np.sqrt(variance)
    beyond = np.where(near, 0.5 * variance / size.max(), x)  # of those that are near, anything that can be solved
    # K' rises and bends down, so Newton's steps from the left stay left of the root and come to it.
    t = beyond / variance
    for _ in range(200):
        tanh = np.tanh(t * size)
        rise = beyond - (counts * size * tanh).sum(axis=0)
        curvature = (counts * size**2 * (1 - tanh) * (1 + tanh)).sum(axis=0)
        step = np.where(rise > 0, rise / curvature, 0.0)
        t = t + step
        if (step <= 1e-13 * t).all():
            break
    reach = t * size
    cumulants = (counts * (np.logaddexp(reach, -reach) - math.log(2))).sum(axis=0)
    curvature = (counts * (size / np.cosh(np.minimum(reach, 300.0))) ** 2).sum(axis=0)
    w = np.sqrt(np.maximum(2 * (t * beyond - cumulants), 0.0))
    on_lattice = gap > 0
    u = np.where(on_lattice, 2 / np.where(on_lattice, gap, 1) * np.sinh(t * gap / 2), t) * np.sqrt(curvature)
    p = 2 * (stats.norm.sf(w) + stats.norm.pdf(w) * (1 / u - 1 / w))
    return np.clip(np.where(near, 2 * stats.norm.sf(x / np.sqrt(variance)), p), 0.0, 1.0)


def resampled_p(differences: Array, overlap: float) -> Array:
    """Two-sided p of the corrected resampled t test (Nadeau & Bengio 2003, section 3): would the difference hold in another
    pool of images, with other training sets and other test sets?

    differences (n, …), a test a column; overlap: the correlation assumed between two of them

    Replicates that share images are correlated, so their variance s^2 is too small by 1 - overlap, and that of their mean
    too large to shrink with n: it is s^2 (1/n + overlap / (1 - overlap)). With one pool split into n1 training and n2 test
    images again and again, overlap is n2 / (n1 + n2), the share of test images that two splits have in common; for episodes
    it is the share of queries in common. NaN for an overlap of 1, with which no replicates tell of other images.
    """
    n = len(differences)
    mean = differences.mean(axis=0)
    if n < 2 or not 0 <= overlap < 1:
        return np.full(np.shape(mean), math.nan)
    variance = differences.var(axis=0, ddof=1) * (1 / n + overlap / (1 - overlap))
    t = np.abs(mean) / np.sqrt(np.where(variance == 0, 1, variance))
    return np.where(variance == 0, mean == 0, 2 * stats.t.sf(t, n - 1))


def mcnemar_p(right_a: Array, right_b: Array) -> Array:
    """Exact two-sided p of McNemar's tests (1947): whether two contenders are right on equally many images.

    right_a, right_b (n_images, …) bool, of the same images, a test a column
    """
    only_a, only_b = (right_a & ~right_b).sum(axis=0), (right_b & ~right_a).sum(axis=0)
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5))


def effect_size(differences: Array) -> Array:
    """Cohen's d of paired differences (n, …): their mean in standard deviations; NaN for fewer than two, or alike ones."""
    mean = differences.mean(axis=0)
    sd = differences.std(axis=0, ddof=1) if len(differences) > 1 else np.zeros_like(mean)
    return np.where(sd > 0, mean / np.where(sd > 0, sd, 1), math.nan)


def superiority(differences: Array) -> Array:
    """Of differences (n, …), the share of replicates in which the first contender is ahead, ties counted half; NaN for a
    single one.
    """
    if len(differences) < 2:
        return np.full(np.shape(differences)[1:], math.nan)
    return np.asarray((differences > 0).mean(axis=0) + 0.5 * (differences == 0).mean(axis=0))
