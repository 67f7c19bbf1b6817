"""Knowledge gradient per cost: what a comparison is expected to add to the value of the final choice, by what it costs.

Frazier, Powell and Dayanik 2009 (INFORMS J. Computing 21) for correlated normal beliefs. A single noisy run may be worth nothing where
several are worth a lot, so comparisons of one, two, three and five seeds compete by their value a cost (Frazier and Powell 2010, Decision
Analysis 7, on values of information that are not concave); a comparison is a rival's runs, alone or against the favourite's of the same
seeds, which share their noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastxfer.selection.belief import Belief, Ints, expected_best
from fastxfer.selection.policy import Choice, Policy, Situation, said_runs, with_rest

REPEATS = (1, 2, 3, 5)


@dataclass(frozen=True)
class _Comparison:
    """Runs of the rival and of the favourite; `due`, those of the two that they are of, the first next."""

    rival: int
    favourite: int
    mine: Ints
    theirs: Ints
    due: tuple[int, ...]


@dataclass(frozen=True)
class KnowledgeGradient(Policy):
    @property
    def words(self) -> str:
        return "knowledge gradient per cost, under a hierarchical model"

    def rank(self, situation: Situation) -> list[Choice]:
        belief, names = situation.belief, situation.names
        left = belief.left()
        rated: list[tuple[float, float, _Comparison]] = []
        for members in belief.contests():
            favourite = int(members[np.argmax(belief.values[members])])
            compared = [c for k in members if k != favourite for c in _comparisons(belief, left, int(k), favourite)]
            if not compared:
                continue
            runs = np.flatnonzero((belief.of[:, None] == members).any(axis=1))
            weights = np.zeros((len(compared), len(runs)))
            for row, c in zip(weights, compared, strict=True):
                row[np.searchsorted(runs, c.mine)] = 1.0
                row[np.searchsorted(runs, c.theirs)] = -1.0
            across = belief.covariance[:, belief.n + runs] @ weights.T
            spread = np.sqrt(np.maximum((weights.T * across[belief.n + runs]).sum(axis=0), 1e-12))
            reach = belief.scale * across[members] / spread
            worth = expected_best(belief.values[members], reach.T, belief.freedom)
            price = np.abs(weights) @ situation.cost[belief.of[runs]]
            rated += zip(worth / price, worth, compared, strict=True)
        ranked: dict[int, Choice] = {}
        for _, gain, c in sorted(rated, key=lambda item: -item[0]):
            for k in c.due:
                other = names[c.rival if k == c.favourite else c.favourite]
                many = len(c.mine) + len(c.theirs)
                reason = f"{said_runs(many)} to compare it with {other}: worth {gain:.2f} points"
                ranked.setdefault(k, Choice(k, float(gain), reason))
        return with_rest(situation, list(ranked.values()))


def _comparisons(belief: Belief, left: list[Ints], rival: int, favourite: int) -> list[_Comparison]:
    """The rival's next run, two, three, …, alone and beside the favourite's of those seeds; the latter alone where it has none."""
    of_favourite = left[favourite]
    found: list[_Comparison] = []
    for repeats in REPEATS:
        mine = left[rival][:repeats]
        if len(mine):
            theirs = of_favourite[(belief.seed[of_favourite][:, None] == belief.seed[mine]).any(axis=1)]
        else:
            theirs = of_favourite[:repeats]
        if max(len(mine), len(theirs)) < repeats:
            break
        if len(mine):
            found.append(_Comparison(rival, favourite, mine, of_favourite[:0], (rival,)))
        if len(theirs):
            pair = (
                (favourite, rival)
                if not len(mine) or belief.seed[theirs[0]] <= belief.seed[mine[0]]
                else (rival, favourite)
            )
            found.append(_Comparison(rival, favourite, mine, theirs, pair if len(mine) else (favourite,)))
    return found
