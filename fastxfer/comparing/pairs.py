"""All pairs of contenders: how far apart, how sure, and what that means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.comparing import paired
from fastxfer.comparing.contests import NOTHING, Contest
from fastxfer.metrics import lower_is_better
from fastxfer.progress import progress
from fastxfer.statistics import EPISODES, EPISODES_AND_IMAGES, TEST_IMAGES

Array = NDArray[Any]

A_BETTER, B_BETTER, EQUIVALENT, UNDECIDED = "a better", "b better", "equivalent", "undecided"
POINT = 100  # points in a metric's 1


def compare(contests: Sequence[Contest], *, margin: float = 1.0, level: float = 0.95) -> pd.DataFrame:
    """One line a pair of contenders of each contest; differences, intervals and means in points (hundredths).

    the setting's columns, a, b, mean_a, mean_b, difference (a less b)
    n            replicates: episodes, or seeds of full probes
    n_images     test images (groups of them, where patients are known); 0 where nobody knows
    low, high                 t interval of the difference over episodes; NaN for a single replicate
    low_images, high_images   over episodes and test images (of a single replicate: test images); NaN where not known
    d            Cohen's d of the paired differences
    superiority  share of replicates in which a is the better one, ties counted half
    p_episodes   paired permutation test over episodes
    p_images     over test images: of one split, McNemar's exact test for accuracy, and for AUC DeLong's variance with a t
                 instead of a normal distribution, which few positives ask for; of episodes, the t test of a crossed design
    overlap, p_resampled      share of queries that two replicates have in common, and the corrected resampled t test with it
    over         the population of which the verdict speaks, the widest that is known; test, p: its test of no difference
    p_equivalent              two one-sided t tests over the same population: whether the difference is above `margin` points
    p_holm, p_equivalent_holm, p_bh   corrected over all lines: Holm (1979), Benjamini & Hochberg (1995)
    verdict      "equivalent" (by p_equivalent_holm), else "a better" or "b better" (by p_holm), else "undecided"

    A difference that is there but smaller than the margin is "equivalent": the margin is what does not matter. The share
    of families with a wrong "better" is at most 1 - level, and so is that of families with a wrong "equivalent".
    """
    lines: list[dict[str, Any]] = []
    with progress("comparing", len(contests), "settings") as advance:
        for contest in contests:
            k = len(contest.names)
            lines += [
                compare_pair(contest, a, b, margin=margin, level=level) for a in range(k) for b in range(a + 1, k)
            ]
            advance(1)
    table = pd.DataFrame(lines)
    if table.empty:
        return table
    p, p_equivalent = (table[name].to_numpy(float) for name in ("p", "p_equivalent"))
    table["p_holm"], table["p_equivalent_holm"] = holm(p), holm(p_equivalent)
    known = np.isfinite(p)
    table["p_bh"] = np.nan
    table.loc[known, "p_bh"] = stats.false_discovery_control(p[known], method="bh")
    up = (table["difference"] > 0) != table["metric"].map(lower_is_better)
    sure, alike = table["p_holm"] <= 1 - level, table["p_equivalent_holm"] <= 1 - level
    table["verdict"] = np.select([alike, sure & up, sure], [EQUIVALENT, A_BETTER, B_BETTER], UNDECIDED)
    return table


def holm(p: Array) -> Array:
    """p (n,) corrected for many tests (Holm 1979); those that are NaN stay so and count for nothing.

    statsmodels' `multipletests` gives the same numbers, but collects garbage each time: seconds, over a few hundred contests.
    """
    order = np.argsort(p)  # NaN comes last
    left = np.isfinite(p).sum() - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * left), 1.0)
    return corrected


def compare_pair(contest: Contest, a: int, b: int, *, margin: float = 1.0, level: float = 0.95) -> dict[str, Any]:
    """One line of `compare`, without what is corrected for the others."""
    each = (contest.values[:, a] - contest.values[:, b]).round(12)  # what is equal is equal, whatever the rounding
    over = contest.over
    episodes = contest.difference(a, b, EPISODES)
    wide = contest.difference(a, b, EPISODES_AND_IMAGES if contest.n > 1 else TEST_IMAGES)
    metric = contest.setting["metric"]
    flips = paired.sign_flip_p(each, 1 / contest.queries if contest.queries else 0.0) if contest.n > 1 else math.nan
    test, p_images = _over_images(contest, a, b, metric)
    if over == EPISODES:
        test = "sign flips"
    (low, high), (low_images, high_images) = episodes.interval(level), wide.interval(level)
    judged = episodes if over == EPISODES else wide
    return {
        **contest.setting,
        "a": contest.names[a],
        "b": contest.names[b],
        "mean_a": POINT * contest.values[:, a].mean(),
        "mean_b": POINT * contest.values[:, b].mean(),
        "difference": POINT * each.mean(),
        "low": POINT * low,
        "high": POINT * high,
        "low_images": POINT * low_images,
        "high_images": POINT * high_images,
        "n": contest.n,
        "n_images": contest.n_groups,
        "d": paired.effect_size(each),
        "superiority": paired.superiority(-each if lower_is_better(metric) else each),
        "p_episodes": flips,
        "p_images": p_images,
        "overlap": contest.overlap,
        "p_resampled": paired.resampled_p(each, contest.overlap),
        "over": over,
        "test": test,
        "p": flips if over == EPISODES else p_images,
        "margin": margin,
        "p_equivalent": judged.p_equivalent(margin / POINT) if over != NOTHING else math.nan,
    }


def _over_images(contest: Contest, a: int, b: int, metric: str) -> tuple[str, float]:
    """The test over test images, by name, and its p."""
    if contest.over in (EPISODES, NOTHING):
        return "none", math.nan
    assert contest.halves is not None
    if contest.over == EPISODES_AND_IMAGES:
        return "crossed t", contest.difference(a, b, EPISODES_AND_IMAGES).p()
    estimate = contest.difference(a, b, TEST_IMAGES)
    if metric == "auc" and not contest.grouped:
        return "DeLong", estimate.p()
    if metric == "accuracy" and not contest.grouped:
        # An image's influence on a share of right answers is (right - share) / images.
        right = contest.halves[0][:, [a, b]] * contest.n_groups + contest.values[0, [a, b]] > 0.5
        return "McNemar", paired.mcnemar_p(right[:, 0], right[:, 1])
    return "t over patients" if contest.grouped else "t over images", estimate.p()
