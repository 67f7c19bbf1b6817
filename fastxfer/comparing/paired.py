"""Tests of paired differences, each with the question that it answers.

Where SciPy or statsmodels has a test, it is theirs; here is what they lack.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[Any]

LISTED = 16  # up to as many differences that are not 0, all signs are gone through


def sign_flip_p(differences: Array, step: float = 0.0) -> float:
    """Two-sided p of the paired permutation test: of all ways to swap the two contenders in some replicates, the share in
    which the mean difference is as far from 0 as it is.

    differences (n,); step: 1 / queries where values are multiples of that, else 0

    Exact for up to LISTED differences that are not 0. Beyond that, the tail of the sum of randomly signed numbers, whose
    cumulants are those of K(t) = sum log cosh(t d), by the saddlepoint formula of Lugannani & Rice (1980), applied to
    permutations as by Robinson (1982), with the second continuity correction of Daniels (1987) for values on a lattice. It
    draws nothing, and says 1e-9 where that is meant, so that corrections for many tests have something to correct.
    """
    size = np.abs(differences[differences != 0])
    total = abs(float(differences.sum()))
    slack = 1e-9 * size.sum()
    if total <= slack:
        return 1.0
    if len(size) <= LISTED:
        sums = np.zeros(1)
        for one in size:
            sums = np.concatenate([sums + one, sums - one])
        return float(np.mean(np.abs(sums) >= total - slack))
    if total >= size.sum() - slack:
        return float(2.0 ** (1 - len(size)))
    units = np.rint(size / step).astype(int) if step else np.zeros(0, int)
    on_lattice = bool(step) and np.allclose(units * step, size, rtol=0, atol=1e-9)
    gap = 2 * step * float(np.gcd.reduce(units)) if on_lattice else 0.0  # between neighbouring sums
    return _tail(size, total - gap / 2, gap)


def _tail(size: Array, x: float, gap: float) -> float:
    """P(|sum of randomly signed `size`| >= x), its values being `gap` apart."""
    spread = math.sqrt(float(size @ size))
    if x <= 1e-3 * spread:
        return float(2 * stats.norm.sf(x / spread))
    scale = float(size.max())

    def slope(t: float) -> float:
        return float(size @ np.tanh(t * size)) - x

    high = 1 / scale
    while slope(high) < 0:
        high *= 2
    t = float(optimize.brentq(slope, 0.0, high, xtol=1e-14 / scale, rtol=1e-13))
    reach = t * size
    cumulants = float((np.logaddexp(reach, -reach) - math.log(2)).sum())
    curvature = float(((size / np.cosh(np.minimum(reach, 300.0))) ** 2).sum())
    w = math.sqrt(max(2 * (t * x - cumulants), 0.0))
    u = (2 / gap * math.sinh(t * gap / 2) if gap else t) * math.sqrt(curvature)
    return float(min(1.0, 2 * (stats.norm.sf(w) + stats.norm.pdf(w) * (1 / u - 1 / w))))


def resampled_p(differences: Array, overlap: float) -> float:
    """Two-sided p of the corrected resampled t test (Nadeau & Bengio 2003, section 3): would the difference hold in another
    pool of images, with other training sets and other test sets?

    differences (n,); overlap: the correlation assumed between two of them

    Replicates that share images are correlated, so their variance s^2 is too small by 1 - overlap, and that of their mean
    too large to shrink with n: it is s^2 (1/n + overlap / (1 - overlap)). With one pool split into n1 training and n2 test
    images again and again, overlap is n2 / (n1 + n2), the share of test images that two splits have in common; for episodes
    it is the share of queries in common. NaN for an overlap of 1, with which no replicates tell of other images.
    """
    n = len(differences)
    if n < 2 or not 0 <= overlap < 1:
        return math.nan
    variance = float(differences.var(ddof=1)) * (1 / n + overlap / (1 - overlap))
    mean = float(differences.mean())
    if variance == 0:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), n - 1))


def mcnemar_p(right_a: Array, right_b: Array) -> float:
    """Exact two-sided p of McNemar's test (1947): whether two contenders are right on equally many images.

    right_a, right_b (n_images,) bool, of the same images
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def effect_size(differences: Array) -> float:
    """Cohen's d of paired differences: their mean in standard deviations; NaN for fewer than two, or alike ones."""
    sd = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / sd if sd > 0 else math.nan


def superiority(differences: Array) -> float:
    """Share of replicates in which the first contender is ahead, ties counted half; NaN for a single one."""
    if len(differences) < 2:
        return math.nan
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())
