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

from fastxfer.comparing import paired
from fastxfer.comparing.contests import NOTHING, Contest, Estimates
from fastxfer.comparing.pairs import POINT, holm, test_of
from fastxfer.metrics import lower_is_better

Array = NDArray[Any]

ALL_TARGETS = "all targets"
FEW_TARGETS = 13  # up to as many SciPy's p is that of all signs, ties or not


def rank(contests: Sequence[Contest], *, level: float = 0.95) -> pd.DataFrame:
    """One line a contender of each contest, best first: the setting's columns, name, mean (points), rank, low, high, over.

    low … high are the ranks that the data leave open, for all contenders of a contest at once: with probability `level`
    none of the true ranks lies outside. A contender's rank is at least 1 + those that are surely better, and at most the
    number of contenders less those that are surely worse, by one-sided tests of all ordered pairs, half the p of `compare`'s
    test over the same population, with Holm's correction
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
    """names and means (k,), differences of all pairs in the order of `Contest.pairs` with their two-sided p, and over what."""

    names: Sequence[str]
    means: Array
    apart: Estimates
    p: Array
    over: str

    @classmethod
    def of(cls, contest: Contest) -> _Standings:
        pairs = contest.pairs()
        apart, p = contest.differences(*pairs, contest.over), test_of(contest, *pairs)[1]
        return cls(contest.names, contest.values.mean(axis=0), apart, p, contest.over)

    @classmethod
    def averaged(cls, contests: Sequence[Contest], names: Sequence[str]) -> _Standings:
        """Of means over targets, whose errors have nothing to do with each other: their variances add up, which exact tests
        of a single target do not, so p is of a t test.
        """
        n, (i, j) = len(contests), np.triu_indices(len(names), 1)
        places = [np.array([contest.names.index(name) for name in names]) for contest in contests]
        each = [c.differences(at[i], at[j], c.over) for c, at in zip(contests, places, strict=True)]
        variance = np.sum([e.variance for e in each], axis=0)
        parts = np.sum([e.variance**2 / e.df for e in each], axis=0)
        df = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1), 1.0)
        apart = Estimates(np.mean([e.mean for e in each], axis=0), variance / n**2, df)
        means = np.mean([c.values[:, at].mean(axis=0) for c, at in zip(contests, places, strict=True)], axis=0)
        populations = dict.fromkeys(contest.over for contest in contests)
        return cls(names, means, apart, apart.p(), " or ".join(populations))


def _lines(setting: dict[str, str], standings: _Standings, level: float) -> list[dict[str, Any]]:
    k, sign = len(standings.names), -1 if lower_is_better(setting["metric"]) else 1
    i, j = np.triu_indices(k, 1)
    # Both directions of each pair are in the family; the one against the data has a p above a half.
    one_sided = np.concatenate([standings.p / 2, 1 - standings.p / 2])
    sure = holm(one_sided)[: len(i)] <= 1 - level
    ahead = sign * standings.apart.mean > 0
    better, worse = np.where(ahead, i, j)[sure], np.where(ahead, j, i)[sure]
    beats, beaten_by = (np.bincount(those, minlength=k) for those in (better, worse))
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
    first, second = np.array(pairs).T
    p = _wilcoxon_p(scores[:, first] - scores[:, second])
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


def _wilcoxon_p(differences: Array) -> Array:
    """(n_targets, n_pairs) -> (n_pairs,); zeros are split between both signs, as Demšar 2006 (3.1.3) does.

    Of few targets all signs of the ranks are gone through, as SciPy does where there are ties, in a tenth of a second a pair.
    """
    if len(differences) <= FEW_TARGETS:
        return paired.sign_flip_p(np.sign(differences) * stats.rankdata(np.abs(differences), axis=0))
    size = np.sort(np.abs(differences), axis=0)
    # SciPy decides for all columns together what zeros and ties ask for, so those that have some come one by one.
    plain = (size[0] > 0) & (np.diff(size, axis=0) > 0).all(axis=0)
    p = np.ones(differences.shape[1])
    for columns in [np.flatnonzero(plain), *np.flatnonzero(~plain & (size[-1] > 0))[:, None]]:
        if len(columns):
            p[columns] = stats.wilcoxon(differences[:, columns], zero_method="zsplit", axis=0).pvalue
    return p


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
