"""Upper confidence bound: the rival that could be furthest ahead.

Srinivas, Krause, Kakade and Seeger 2010 (arXiv 0912.3995), algorithm 1; here the bound is the upper end of a rival's 95 % interval of its
difference to the favourite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fastxfer.selection.policy import Choice, Policy, Situation, by_duels, duels


@dataclass(frozen=True)
class UpperBound(Policy):
    """level: of the interval whose upper end counts"""

    level: float = 0.95

    @property
    def words(self) -> str:
        return (
            f"upper confidence bound: the highest upper end of a {100 * self.level:g} % interval against the favourite"
        )

    def rank(self, situation: Situation) -> list[Choice]:
        fought = duels(situation.belief)
        reach = float(stats.t.ppf(0.5 + self.level / 2, situation.belief.freedom))
        score = np.array([duel.mean + reach * duel.scale for duel in fought])
        return by_duels(situation, score, fought)
