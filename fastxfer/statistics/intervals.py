"""Intervals of a mean from variances: over the episodes of a cell, and over its test images as their influences tell.

Two populations. Over episodes: other draws of support and queries from these images; the episodes are independent given the
images, so Student's t does. Over episodes and test images: other images of the same kind, too. There

    Var(mean) = S² / E + Σ_g θ_g²,

S² the variance of the E values and θ_g the mean influence of group g (a patient, else an image) on them. The two overlap: an
image's influences in the E episodes vary from one to the next, which S² holds already. So θ_g² is taken from products of
what g did in even and in odd episodes, which share nothing but the image: unbiased, for patients and for differences of
cells alike. This is the two-way variance of Cameron, Gelbach & Miller (2011), V_E + V_G − V_EG, without a term to subtract.

A share near 0 or 1 has a skewed mean, so its interval is a score interval (Wilson 1927), with the effective sample size
n = m (1 − m) / Var that clustered samples need (Franco, Little, Louis & Slud 2019) and a t quantile.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import stdtrit

from fastxfer.metrics import Array

FEWEST_GROUPS = 10
# Shares and mean shares, whose variance is that of n shares alike; what varies otherwise gets its degrees of freedom from
# how unequal the influences are.
SHARES = frozenset({"accuracy", "balanced_accuracy", "auc"})
UNBOUNDED = frozenset({"log_loss", "brier"})


@dataclass(frozen=True, eq=False)
class ImageVariance:
    """Variance of the values of cells over test images: arrays (n_cells,).

    variance  unbiased, so it may be below 0 where it is small
    spread    the variance of `variance`, from how unequal the groups' parts are
    groups    patients, else images
    effective as many groups, all asked alike often, would be worth the same: (Σ n)² / Σ n²
    design    how many times larger the variance is for the groups' sake than for single images, at least 1
    df        of a share's variance: `effective` − 1 where groups hold several images; else ∞, for then it follows from the share
    """

    variance: Array
    spread: Array
    groups: Array
    effective: Array
    design: Array
    df: Array

    def take(self, cells: Array) -> ImageVariance:
        """Those of some cells."""
        return ImageVariance(**{field.name: getattr(self, field.name)[cells] for field in fields(self)})


def variance_over_images(
    cell: Array, group: Array, n: Array, total: Array, odd: Array, episodes: Array
) -> ImageVariance:
    """Σ_g θ_g² of each cell from the lines of `ResultStore.read_images`, or from differences of their sums.

    cell      (n_lines,) 0 … n_cells − 1; group, n, total, odd: the columns `group`, `n`, `sum`, `odd`
    episodes  (n_cells,) how many; with one, or none, the squares themselves are summed, as for a split that is scored once
    """
    episodes, cell, group = np.asarray(episodes), np.asarray(cell), np.asarray(group)
    # As numbers of (cell, group), sorted: by a tenth of what a data frame takes for a single split.
    width = int(group.max(initial=0)) + 1
    key, of = np.unique(cell * width + group, return_inverse=True)
    cell_of_group = key // width
    asked, once, half = (np.bincount(of, np.asarray(v, float), minlength=len(key)) for v in (n, total, odd))

    def products(cell: Array, once: Array, half: Array) -> Array:
        many = episodes[cell]
        return np.where(many > 1, half * (once - half) / np.maximum((many // 2) * (many - many // 2), 1), once**2)

    def sums(cell: Array, values: Array | None = None) -> Array:
        return np.bincount(cell, values, minlength=len(episodes))

    parts, groups = products(cell_of_group, once, half), sums(cell_of_group)
    variance, least = sums(cell_of_group, parts), np.maximum(groups, 2)
    single = sums(cell, products(cell, np.asarray(total), np.asarray(odd)))
    # Patients that hold several images each aren't independent draws of n images: G / (G − 1), which is 1 for many.
    clustered = groups < sums(cell)
    small = np.where(clustered, least / (least - 1), 1.0)
    spread = (sums(cell_of_group, parts**2) - variance**2 / least) * least / (least - 1)
    effective = sums(cell_of_group, asked) ** 2 / np.maximum(sums(cell_of_group, asked**2), 1e-300)
    design = np.maximum(np.divide(variance, single, out=np.ones_like(variance), where=single > 0), 1.0)
    df = np.where(clustered, np.maximum(effective - 1, 1), np.inf)
    return ImageVariance(variance * small, spread * small**2, groups, effective, design, df)


def t_interval(mean: Array, variance: Array, df: Array, level: float) -> tuple[Array, Array]:
    """mean ± t √variance; NaN without degrees of freedom."""
    with np.errstate(invalid="ignore"):
        half = stdtrit(np.asarray(df, float), 0.5 + level / 2) * np.sqrt(variance)
    return mean - half, mean + half


def score_interval(mean: Array, variance: Array, df: Array, worth: Array | float, level: float) -> tuple[Array, Array]:
    """Wilson's interval of a share whose estimate has this variance, with a t quantile.

    worth: how many independent images to count with where the mean is 0 or 1, which has no variance; NaN: none
    """
    mean = np.asarray(mean, float)
    inner = mean * (1 - mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = np.where(inner > 0, inner / variance, worth)
        t = stdtrit(np.maximum(df, 1), 0.5 + level / 2)
        centre = (mean + t**2 / (2 * n)) / (1 + t**2 / n)
        half = t * np.sqrt(inner / n + t**2 / (4 * n**2)) / (1 + t**2 / n)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def interval_over_images(
    metric: str, mean: Array, episode_variance: Array, episodes: Array, images: ImageVariance, more: Array, level: float
) -> tuple[Array, Array]:
    """Interval over test images, and over episodes where there are any, of cells of one metric: arrays (n_cells,).

    episode_variance  S² / E, 0 without episodes; episodes: E
    more              `fastxfer.metrics.rarity`
    """
    of_images = np.maximum(images.variance, 0) + more * images.design
    variance = episode_variance + of_images
    if metric in SHARES:
        of_its_own = 2 * of_images**2 / images.df
    else:
        of_its_own = images.spread
    doubt = 2 * episode_variance**2 / np.maximum(episodes - 1, 1) + of_its_own
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(doubt > 0, 2 * variance**2 / doubt, np.inf)  # Satterthwaite (1946)
    if metric in UNBOUNDED:
        return t_interval(mean, variance, df, level)
    # What ranks everything right says nothing of how it varies; a share of n right ones does.
    worth = images.effective if metric in ("accuracy", "balanced_accuracy") else np.nan
    return score_interval(mean, variance, df, worth, level)
