"""All pairs of contenders: how far apart, how sure, and what that means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.comparing import paired
from fastxfer.comparing.contests import AT_ONCE, NOTHING, Contest
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
    tables: list[pd.DataFrame] = []
    with progress("comparing", len(contests), "settings") as advance:
        for contest in contests:
            tables.append(compare_pairs(contest, margin=margin, level=level))
            advance(1)
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
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


def compare_pairs(contest: Contest, *, margin: float = 1.0, level: float = 0.95) -> pd.DataFrame:
    """The lines of `compare` of one contest, without what is corrected for the others."""
    a, b = contest.pairs()
    over, metric = contest.over, contest.setting["metric"]
    episodes = contest.differences(a, b, EPISODES)
    wide = contest.differences(a, b, EPISODES_AND_IMAGES if contest.n > 1 else TEST_IMAGES)
    (low, high), (low_images, high_images) = episodes.interval(level), wide.interval(level)
    judged, means = episodes if over == EPISODES else wide, POINT * contest.values.mean(axis=0)
    p_episodes, unknown = over_episodes(contest, a, b), np.full(len(a), math.nan)
    test, p = test_of(contest, a, b)
    parts = []
    for each in _apart(contest, a, b):
        sign = -1 if lower_is_better(metric) else 1
        parts.append(
            (each.mean(axis=0), paired.effect_size(each), paired.superiority(sign * each),
             paired.resampled_p(each, contest.overlap))
        )  # fmt: skip
    difference, d, superiority, p_resampled = map(np.concatenate, zip(*parts, strict=True))
    return pd.DataFrame(
        {
            **contest.setting,
            "a": [contest.names[i] for i in a],
            "b": [contest.names[i] for i in b],
            "mean_a": means[a],
            "mean_b": means[b],
            "difference": POINT * difference,
            "low": POINT * low,
            "high": POINT * high,
            "low_images": POINT * low_images,
            "high_images": POINT * high_images,
            "n": contest.n,
            "n_images": contest.n_groups,
            "d": d,
            "superiority": superiority,
            "p_episodes": p_episodes,
            "p_images": unknown if over in (EPISODES, NOTHING) else p,
            "overlap": contest.overlap,
            "p_resampled": p_resampled,
            "over": over,
            "test": test,
            "p": p,
            "margin": margin,
            "p_equivalent": judged.p_equivalent(margin / POINT) if over != NOTHING else unknown,
        }
    )


def test_of(contest: Contest, a: Array, b: Array) -> tuple[str, Array]:
    """The test of no difference between contenders, places (n_pairs,), over the widest population that is known: its name
    and p (n_pairs,).
    """
    metric = contest.setting["metric"]
    if contest.over == NOTHING:
        return "none", np.full(len(a), math.nan)
    if contest.over == EPISODES:
        return "sign flips", over_episodes(contest, a, b)
    assert contest.halves is not None
    if contest.over == TEST_IMAGES and metric == "accuracy" and not contest.grouped:
        # An image's influence on a share of right answers is (right - share) / images.
        right = contest.halves[0] * contest.n_groups + contest.values[0] > 0.5
        return "McNemar", paired.mcnemar_p(right[:, a], right[:, b])
    p = contest.differences(a, b, contest.over).p()
    if contest.over == EPISODES_AND_IMAGES:
        return "crossed t", p
    if metric == "auc" and not contest.grouped:
        return "DeLong", p
    return "t over patients" if contest.grouped else "t over images", p


def over_episodes(contest: Contest, a: Array, b: Array) -> Array:
    """p (n_pairs,) of the paired permutation tests over episodes; NaN for a single replicate."""
    if contest.n == 1:
        return np.full(len(a), math.nan)
    step = 1 / contest.queries if contest.queries else 0.0
    return np.concatenate([paired.sign_flip_p(each, step) for each in _apart(contest, a, b)])


def _apart(contest: Contest, a: Array, b: Array) -> Iterator[Array]:
    """Differences (n, some pairs) of a less b; what is equal is equal, whatever the rounding."""
    step = max(1, AT_ONCE // contest.n)
    for start in range(0, len(a), step):
        some = slice(start, start + step)
        yield (contest.values[:, a[some]] - contest.values[:, b[some]]).round(12)
