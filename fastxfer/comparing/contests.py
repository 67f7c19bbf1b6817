"""Contenders on the same episodes: their values side by side, and how far means and differences of them may be off.

Episodes share test images, so there are two questions. Over **episodes**: what other draws of support and queries from
these same images would give. Over **episodes and test images**: what new images of the same kind would give, too. The
first is the variance of a mean of independent draws. The second adds what images do whatever the episode: the products of
their influences on two halves of the episodes, which have nothing but the images in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fastxfer.statistics import (
    EPISODES,
    EPISODES_AND_IMAGES,
    TEST_IMAGES,
    ImageVariance,
    interval_over_images,
    t_interval,
)
from fastxfer.statistics.intervals import FEWEST_GROUPS

Array = NDArray[Any]

NOTHING = "nothing"
SETTING = ("label", "target", "ways", "shots", "probe", "split", "metric")
SHARES_OF_RIGHT = ("accuracy", "balanced_accuracy")


class Estimate(NamedTuple):
    """A mean, the variance of its error and the degrees of freedom of that; NaN where it is not known."""

    mean: float
    variance: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval."""
        low, high = t_interval(np.array(self.mean), np.array(self.variance), np.array(self.df), level)
        return float(low), float(high)

    def p(self) -> float:
        """Of the two-sided t test that the mean is 0."""
        if self.variance == 0:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(abs(self.mean) / np.sqrt(self.variance), self.df))

    def p_equivalent(self, margin: float) -> float:
        """Of the two one-sided t tests (Schuirmann 1987) that the mean is further from 0 than `margin`."""
        if self.variance == 0:
            return float(abs(self.mean) >= margin)
        return float(stats.t.sf((margin - abs(self.mean)) / np.sqrt(self.variance), self.df))


@dataclass(frozen=True)
class Contest:
    """What contenders scored in one setting, all of them in the same replicates.

    A replicate is an episode, or, of full probes and fine-tunings, a seed.

    setting    what they have in common: some of SETTING
    names      (k,) what they differ in, a string each (or a tuple, where they differ in several columns)
    values     (n, k)
    queries    of a replicate, how many
    halves     (2, n_groups, k) of a group of test images (an image, or a patient's): its influence on the mean of each
               contender over one half of the replicates and over the other; of a single replicate (1, n_groups, k). None
               where nobody knows
    n_images   how many images these are
    overlap    share of its queries that a replicate has in common with another one, on average; NaN where nobody knows
    alone      what images do to each contender's own mean, and `rarity` (k,), what belongs to its variance beside that
    """

    setting: dict[str, str]
    names: tuple[Any, ...]
    values: Array
    queries: int
    halves: Array | None = None
    n_images: int = 0
    overlap: float = float("nan")
    alone: ImageVariance | None = None
    rarity: Array | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def n_groups(self) -> int:
        return 0 if self.halves is None else self.halves.shape[1]

    @property
    def grouped(self) -> bool:
        """Whether some groups have several images."""
        return self.n_groups < self.n_images

    @property
    def over(self) -> str:
        """The widest population that these data can speak of."""
        if self.n_groups < FEWEST_GROUPS:
            return EPISODES if self.n > 1 else NOTHING
        return EPISODES_AND_IMAGES if self.n > 1 else TEST_IMAGES

    def intervals(self, level: float = 0.95) -> tuple[Array, Array]:
        """(k,) each: the interval of each contender's own mean over `over`, as `fastxfer.statistics.summarise` has it."""
        mean, n = self.values.mean(axis=0), self.n
        episodes = self.values.var(axis=0, ddof=1) / n if n > 1 else np.zeros(len(mean))
        if self.over in (EPISODES, NOTHING) or self.alone is None or self.rarity is None:
            return t_interval(mean, episodes, np.full(len(mean), n - 1), level)
        metric, replicates = self.setting["metric"], np.full(len(mean), n)
        return interval_over_images(metric, mean, episodes, replicates, self.alone, self.rarity, level)

    def difference(self, a: int, b: int, over: str) -> Estimate:
        """The mean of a less b over a population: EPISODES, TEST_IMAGES (those of one replicate) or EPISODES_AND_IMAGES."""
        weights = np.zeros((len(self.names), 1))
        weights[a], weights[b] = 1, -1
        mean, covariance, df = self.estimates(weights, over)
        return Estimate(float(mean[0]), float(covariance[0, 0]), float(df[0]))

    def estimates(self, weights: Array, over: str) -> tuple[Array, Array, Array]:
        """Of several combinations, weights (k, m): means (m,), covariance (m, m), degrees of freedom (m,).

        NaN where the data do not speak of that population: neither does a metric that no image has moved, unless it is a
        share of right answers.

        Of a share of right answers, the image that moves it most is counted twice, and where a handful do all the moving, an
        image more on which contenders are always of two minds. So Agresti & Min (2005) add a half to each cell of the table
        of two answers: a few images on which contenders differ would else look as if there could be no others.

        Degrees of freedom are Satterthwaite's (1946): those of the images' part come from how unlike its summands are, so
        that a few positives, or a few images on which contenders differ, count as few.
        """
        m = weights.shape[1]
        each = self.values @ weights
        mean, unknown = each.mean(axis=0), np.full((m, m), np.nan)
        episodes = np.cov(each, rowvar=False).reshape(m, m) / self.n if self.n > 1 else unknown
        if over in (EPISODES, NOTHING):
            return mean, episodes, np.full(m, max(self.n - 1.0, 1.0))
        if over != self.over or self.halves is None:
            return mean, unknown, np.ones(m)
        shifts, n = self.halves @ weights, self.n_groups
        images, summands = shifts[0].T @ shifts[-1], shifts[0] * shifts[-1]
        if over == TEST_IMAGES:
            # Influences are made for independent images: their squares sum to an unbiased variance.
            images *= n / (n - 1) * (self.n_images - 1) / self.n_images
        else:
            values, vectors = np.linalg.eigh((images + images.T) / 2)
            images = (vectors * np.maximum(values, 0)) @ vectors.T
        moved = np.abs(summands).sum(axis=1)
        if self.setting["metric"] in SHARES_OF_RIGHT:
            few = moved.sum() ** 2 < FEWEST_GROUPS * (moved**2).sum() or not moved.any()
            most = np.full(m, 1 / n) if few else shifts[:, moved.argmax()].mean(axis=0)
            images, summands = images + np.outer(most, most), np.vstack([summands, most**2])
        elif not moved.any():
            return mean, unknown, np.ones(m)
        total = images if over == TEST_IMAGES else episodes + images
        error = len(summands) * summands.var(axis=0, ddof=1)
        if over == EPISODES_AND_IMAGES:
            error += 2 * np.diag(episodes) ** 2 / (self.n - 1)
        df = 2 * np.diag(total) ** 2 / np.maximum(error, 1e-300)
        return mean, total, np.clip(df, 1.0, self.n + n - 2.0)


def words_of(setting: Mapping[str, str]) -> str:
    """ "pets, 5 ways, 1 shots, logistic, test, accuracy": a setting, for people."""
    named = {"ways": "{} ways", "shots": "{} shots"}
    return ", ".join(named.get(column, "{}").format(value) for column, value in setting.items())
