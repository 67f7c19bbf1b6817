"""Knowledge gradient per cost: what a comparison is expected to add to the value of the final choice, by what it costs.

Frazier, Powell and Dayanik 2009 (INFORMS J. Computing 21) for correlated normal beliefs. A single noisy run may be worth nothing where
several are worth a lot, so comparisons of one, two, three and five seeds compete by their value a cost (Frazier and Powell 2010, Decision
Analysis 7, on values of information that are not concave); a comparison is a rival's runs against the favourite's of the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastxfer.selection.belief import Belief, Ints, expected_best
from fastxfer.selection.policy import Choice, Policy, Situation, unopposed

REPEATS = (1, 2, 3, 5)


@dataclass(frozen=True)
class _Comparison:
    """The rival's runs and the favourite's, of the same seeds; `first` of the two is to be run next."""

    rival: int
    mine: Ints
    theirs: Ints
    first: int


@dataclass(frozen=True)
class KnowledgeGradient(Policy):
    @property
    def words(self) -> str:
        return "knowledge gradient per cost, under a hierarchical model"

    def rank(self, situation: Situation) -> list[Choice]:
        belief, names = situation.belief, situation.names
        left = belief.left()
        best: dict[int, tuple[float, Choice]] = {}
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
            for c, gain, cost in zip(compared, worth, price, strict=True):
                rate = float(gain / cost)
                if c.first not in best or rate > best[c.first][0]:
                    other = names[c.rival] if c.first == favourite else names[favourite]
                    many = len(c.mine) + len(c.theirs)
                    reason = (
                        f"{many} {'run' if many == 1 else 'runs'} to compare it with {other}: worth {gain:.2f} points"
                    )
                    best[c.first] = rate, Choice(c.first, float(gain), reason)
        ranked = sorted(best.values(), key=lambda item: -item[0])
        return unopposed(situation, [choice for _, choice in ranked])


def _comparisons(belief: Belief, left: list[Ints], rival: int, favourite: int) -> list[_Comparison]:
    """In the rival's next seeds, one, two, …; where it has none left, the favourite's alone."""
    of_favourite = left[favourite]
    found: list[_Comparison] = []
    for repeats in REPEATS:
        mine = left[rival][:repeats]
        seeds = belief.seed[mine] if len(mine) else belief.seed[of_favourite[:repeats]]
        theirs = of_favourite[(belief.seed[of_favourite][:, None] == seeds).any(axis=1)]
        if not len(mine) + len(theirs) or (
            found and len(mine) + len(theirs) == len(found[-1].mine) + len(found[-1].theirs)
        ):
            break
        favourite_first = len(theirs) and (not len(mine) or belief.seed[theirs[0]] <= belief.seed[mine[0]])
        found.append(_Comparison(rival, mine, theirs, favourite if favourite_first else rival))
    return found
