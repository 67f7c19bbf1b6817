"""Ranks of contenders: on each target and over targets, with sets of ranks that hold at once; and what a few targets say
of all others (critical differences)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.comparing.contests import NOTHING, Contest, Estimate
from fastxfer.comparing.pairs import POINT, holm
from fastxfer.metrics import lower_is_better

Array = NDArray[Any]

ALL_TARGETS = "all targets"


def rank(contests: Sequence[Contest], *, level: float = 0.95) -> pd.DataFrame:
    """One line a contender of each contest, best first: the setting's columns, name, mean (points), rank, low, high, over.

    low … high are the ranks that the data leave open, for all contenders of a contest at once: with probability `level`
    none of the true ranks lies outside. A contender's rank is at least 1 + those that are surely better, and at most the
    number of contenders less those that are surely worse, by one-sided tests of all ordered pairs with Holm's correction
    (Mogstad, Romano, Shaikh & Wilhelm 2024, section 3.2, with Holm's steps for their bootstrap; Klein, Wright & Wieczorek
    2020 take unpaired intervals). over: the population, as in `compare`.

    Where contests differ in nothing but the target, their mean follows as target ALL_TARGETS, of the contenders that each
    of them has: these targets, which of their images or episodes were drawn being the chance.
    """
    lines = [line for contest in contests for line in _lines(contest.setting, _Standings.of(contest), level)]
    for setting, some in _over_targets(contests):
        names = [name for name in some[0].names if all(name in contest.names for contest in some)]
        if len(some) > 1 and len(names) > 1:
            lines += _lines(setting, _Standings.averaged(some, names), level)
    return pd.DataFrame(lines)


@dataclass(frozen=True)
class _Standings:
    """names (k,), means (k,), how far a pair is apart, and over what."""

    names: list[str]
    means: Array
    apart: dict[tuple[int, int], Estimate]
    over: str

    @classmethod
    def of(cls, contest: Contest, names: Sequence[str] | None = None) -> _Standings:
        kept = [contest.names.index(name) for name in names or contest.names]
        apart = {
            (i, j): contest.difference(kept[i], kept[j], contest.over) for i, j in combinations(range(len(kept)), 2)
        }
        return cls([contest.names[i] for i in kept], contest.values[:, kept].mean(axis=0), apart, contest.over)

    @classmethod
    def averaged(cls, contests: Sequence[Contest], names: Sequence[str]) -> _Standings:
        """Of means over targets, whose errors have nothing to do with each other."""
        each, n = [cls.of(contest, names) for contest in contests], len(contests)
        apart = {}
        for pair in each[0].apart:
            some = [standings.apart[pair] for standings in each]
            variance = sum(e.variance for e in some)
            parts = sum(e.variance**2 / e.df for e in some)
            df = variance**2 / parts if parts > 0 else 1.0
            apart[pair] = Estimate(sum(e.mean for e in some) / n, variance / n**2, df)
        populations = list(dict.fromkeys(standings.over for standings in each))
        return cls(list(names), np.mean([s.means for s in each], axis=0), apart, " or ".join(populations))


def _lines(setting: dict[str, str], standings: _Standings, level: float) -> list[dict[str, Any]]:
    k, sign = len(standings.names), -1 if lower_is_better(setting["metric"]) else 1
    pairs = list(standings.apart)
    ahead = np.array([sign * standings.apart[pair].mean for pair in pairs])
    two_sided = np.array([standings.apart[pair].p() for pair in pairs])
    # Both directions of each pair are in the family; the one against the data has a p above a half.
    one_sided = np.concatenate([two_sided / 2, 1 - two_sided / 2])
    sure = holm(one_sided)[: len(pairs)] <= 1 - level
    beaten_by, beats = np.zeros(k, int), np.zeros(k, int)
    for (i, j), lead, certain in zip(pairs, ahead, sure, strict=True):
        better, worse = (i, j) if lead > 0 else (j, i)
        beats[better] += certain
        beaten_by[worse] += certain
    order = np.argsort(-sign * standings.means, kind="stable")
    ranks = stats.rankdata(-sign * standings.means, method="min")
    return [
        {
            **setting,
            "name": standings.names[i],
            "mean": POINT * float(standings.means[i]),
            "rank": int(ranks[i]),
            "low": 1 + int(beaten_by[i]),
            "high": k - int(beats[i]),
            "over": standings.over if standings.over != NOTHING else "",
        }
        for i in order
    ]


def _over_targets(contests: Sequence[Contest]) -> list[tuple[dict[str, str], list[Contest]]]:
    """Contests that differ in nothing but the target, by what they have in common."""
    groups: dict[tuple[tuple[str, str], ...], list[Contest]] = {}
    for contest in contests:
        setting = {name: ALL_TARGETS if name == "target" else value for name, value in contest.setting.items()}
        groups.setdefault(tuple(setting.items()), []).append(contest)
    return [(dict(key), some) for key, some in groups.items()]


@dataclass(frozen=True)
class Critical:
    """What the targets of a study say of targets like them: each counts once, by the ranks on it.

    setting          what the contests have in common
    targets          how many
    friedman_p       Friedman's test that all contenders are alike; iman_davenport_p: its sharper form (Demšar 2006, 3.2.2)
    difference       of mean ranks from which on Nemenyi's test tells two apart (Demšar 2006, 3.2.2)
    ranks            a line a contender, best first: name, mean_rank
    pairs            a line a pair: a, b, p (Wilcoxon's signed-rank test of the means), p_holm, apart (by it), nemenyi (apart
                     by Nemenyi's test)
    groups           a line a bar of the diagram: first, last (names), names: neighbours in mean rank of which no two are apart
    """

    setting: dict[str, str]
    targets: int
    friedman_p: float
    iman_davenport_p: float
    difference: float
    ranks: pd.DataFrame
    pairs: pd.DataFrame
    groups: pd.DataFrame


def critical_differences(contests: Sequence[Contest], *, level: float = 0.95) -> list[Critical]:
    """`Critical` of all contests that differ in nothing but the target, where there are two or more of them."""
    found = []
    for setting, some in _over_targets(contests):
        names = [name for name in some[0].names if all(name in contest.names for contest in some)]
        if len(some) > 1 and len(names) > 1:
            means = [[contest.values[:, contest.names.index(n)].mean() for n in names] for contest in some]
            sign = -1 if lower_is_better(setting["metric"]) else 1
            found.append(critical_difference(setting, names, sign * np.array(means), level=level))
    return found


def critical_difference(
    setting: dict[str, str], names: Sequence[str], scores: Array, *, level: float = 0.95
) -> Critical:
    """Of scores (n_targets, k), larger is better: Demšar 2006, with Wilcoxon's test and Holm's correction for the pairs.

    Whether mean ranks tell two contenders apart depends on which others take part (Benavoli, Corani & Mangili 2016), so
    groups are made by Wilcoxon's test of each pair alone; Nemenyi's is there for those who expect it. With fewer than six
    targets Wilcoxon's test can not reach 0.05.
    """
    n, k = scores.shape
    mean_ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    chi2 = friedman_p = iman_davenport_p = math.nan
    if k > 2:
        chi2, friedman_p = stats.friedmanchisquare(*scores.T)
        if chi2 < n * (k - 1):
            f = (n - 1) * chi2 / (n * (k - 1) - chi2)
            iman_davenport_p = float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
        else:
            iman_davenport_p = 0.0
    difference = stats.studentized_range.ppf(level, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    order = np.argsort(mean_ranks, kind="stable")
    pairs = list(combinations(order, 2))
    p = np.array([_wilcoxon_p(scores[:, i] - scores[:, j]) for i, j in pairs])
    p_holm = holm(p)
    apart = {pair: bool(q <= 1 - level) for pair, q in zip(pairs, p_holm, strict=True)}
    return Critical(
        setting,
        n,
        float(friedman_p),
        iman_davenport_p,
        float(difference),
        pd.DataFrame({"name": [names[i] for i in order], "mean_rank": mean_ranks[order]}),
        pd.DataFrame(
            {
                "a": [names[i] for i, _ in pairs],
                "b": [names[j] for _, j in pairs],
                "p": p,
                "p_holm": p_holm,
                "apart": list(apart.values()),
                "nemenyi": [bool(mean_ranks[j] - mean_ranks[i] >= difference) for i, j in pairs],
            }
        ),
        _groups([names[i] for i in order], [[apart.get((i, j), False) for j in order] for i in order]),
    )


def _wilcoxon_p(differences: Array) -> float:
    """Zeros are split between both signs, as Demšar 2006 (3.1.3) does."""
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def _groups(names: list[str], apart: list[list[bool]]) -> pd.DataFrame:
    """Longest runs of two or more neighbours of which no two are apart; names best first, apart[i][j] for i < j."""
    runs: list[tuple[int, int]] = []
    for i in range(len(names)):
        j = i
        while j + 1 < len(names) and not any(apart[m][j + 1] for m in range(i, j + 1)):
            j += 1
        if j > i and (not runs or j > runs[-1][1]):
            runs.append((i, j))
    lines = [{"first": names[i], "last": names[j], "names": names[i : j + 1]} for i, j in runs]
    return pd.DataFrame(lines, columns=["first", "last", "names"])
