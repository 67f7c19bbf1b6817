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
from numpy.typing import ArrayLike, NDArray
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
AT_ONCE = 1 << 22  # values of replicates or images that pairs are compared by at a time


class Estimates(NamedTuple):
    """Means, the variances of their errors and the degrees of freedom of those, (n_pairs,) each; NaN where not known."""

    mean: Array
    variance: Array
    df: Array

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The t intervals."""
        return t_interval(self.mean, self.variance, self.df, level)

    def p(self) -> Array:
        """Of the two-sided t tests that a mean is 0."""
        return np.where(self.variance == 0, self.mean == 0, 2 * self._beyond(np.abs(self.mean)))

    def p_equivalent(self, margin: float) -> Array:
        """Of the two one-sided t tests (Schuirmann 1987) that a mean is further from 0 than `margin`."""
        far = np.abs(self.mean)
        return np.where(self.variance == 0, far >= margin, self._beyond(margin - far))

    def _beyond(self, x: Array) -> Array:
        return np.asarray(stats.t.sf(x / np.sqrt(np.where(self.variance == 0, 1, self.variance)), self.df))


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

    def pairs(self) -> tuple[Array, Array]:
        """(n_pairs,) each: all pairs of contenders, by their places."""
        return np.triu_indices(len(self.names), 1)

    def differences(self, a: ArrayLike, b: ArrayLike, over: str) -> Estimates:
        """The means of a less b, places of contenders (n_pairs,), over a population: EPISODES, TEST_IMAGES (those of one
        replicate) or EPISODES_AND_IMAGES.
        """
        a, b, parts = np.asarray(a), np.asarray(b), []
        step = max(1, AT_ONCE // max(self.n, 2 * self.n_groups))
        for start in range(0, len(a), step):
            some = slice(start, start + step)
            weights = np.zeros((len(self.names), len(a[some]), 1))
            np.put_along_axis(weights, a[None, some, None], 1, axis=0)
            np.put_along_axis(weights, b[None, some, None], -1, axis=0)
            mean, covariance, df = self._combined(weights, over)
            parts.append((mean[:, 0], covariance[:, 0, 0], df[:, 0]))
        return Estimates(*map(np.concatenate, zip(*parts, strict=True)))

    def estimates(self, weights: Array, over: str) -> tuple[Array, Array, Array]:
        """Of several combinations, weights (k, m): means (m,), covariance (m, m), degrees of freedom (m,); see `_combined`."""
        mean, covariance, df = self._combined(weights[:, None], over)
        return mean[0], covariance[0], df[0]

    def _combined(self, weights: Array, over: str) -> tuple[Array, Array, Array]:
        """Of families of combinations, weights (k, n_families, m): means (n_families, m), covariances (n_families, m, m) and
        degrees of freedom (n_families, m).

        NaN where the data do not speak of that population: neither does a metric that no image has moved, unless it is a
        share of right answers.

        Of a share of right answers, the image that moves a family most is counted twice, and where a handful do all the
        moving, an image more on which contenders are always of two minds. So Agresti & Min (2005) add a half to each cell of
        the table of two answers: a few images on which contenders differ would else look as if there could be no others.

        Degrees of freedom are Satterthwaite's (1946): those of the images' part come from how unlike its summands are, so
        that a few positives, or a few images on which contenders differ, count as few.
        """
        f, m = weights.shape[1:]
        each = np.tensordot(self.values, weights, 1)
        mean, unknown = each.mean(axis=0), np.full((f, m, m), np.nan)
        apart = each - mean
        episodes = _products(apart, apart) / (self.n - 1) / self.n if self.n > 1 else unknown
        if over in (EPISODES, NOTHING):
            return mean, episodes, np.full((f, m), max(self.n - 1.0, 1.0))
        if over != self.over or self.halves is None:
            return mean, unknown, np.ones((f, m))
        shifts, n = np.tensordot(self.halves, weights, 1), self.n_groups
        images, summands = _products(shifts[0], shifts[-1]), shifts[0] * shifts[-1]
        if over == TEST_IMAGES:
            # Influences are made for independent images: their squares sum to an unbiased variance.
            images *= n / (n - 1) * (self.n_images - 1) / self.n_images
        else:
            values, vectors = np.linalg.eigh((images + images.transpose(0, 2, 1)) / 2)
            images = (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
        moved = np.abs(summands).sum(axis=2)
        still = ~moved.any(axis=0)
        if self.setting["metric"] in SHARES_OF_RIGHT:
            few = (moved.sum(axis=0) ** 2 < FEWEST_GROUPS * (moved**2).sum(axis=0)) | still
            most = shifts[:, moved.argmax(axis=0), np.arange(f)].mean(axis=0)
            most = np.where(few[:, None], 1 / n, most)
            images = images + most[:, :, None] * most[:, None]
            summands = np.concatenate([summands, most[None] ** 2])
        total = images if over == TEST_IMAGES else episodes + images
        variance = np.diagonal(total, axis1=1, axis2=2)
        error = len(summands) * summands.var(axis=0, ddof=1)
        if over == EPISODES_AND_IMAGES:
            error = error + 2 * np.diagonal(episodes, axis1=1, axis2=2) ** 2 / (self.n - 1)
        df = np.clip(2 * variance**2 / np.maximum(error, 1e-300), 1.0, self.n + n - 2.0)
        if self.setting["metric"] not in SHARES_OF_RIGHT:
            total, df = np.where(still[:, None, None], np.nan, total), np.where(still[:, None], 1.0, df)
        return mean, total, df


def _products(x: Array, y: Array) -> Array:
    """(n, f, m) each -> (f, m, m): sums of products over n."""
    return x.transpose(1, 2, 0) @ y.transpose(1, 0, 2)


def words_of(setting: Mapping[str, str]) -> str:
    """ "pets, 5 ways, 1 shots, logistic, test, accuracy": a setting, for people."""
    named = {"ways": "{} ways", "shots": "{} shots"}
    return ", ".join(named.get(column, "{}").format(value) for column, value in setting.items())
