"""Expected improvement: the rival from which most is to be expected beyond the favourite.

Jones, Schonlau and Welch 1998 (J. Global Optimization 13, equation 15), of the difference between two uncertain values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastxfer.selection.policy import Choice, Policy, Situation, by_duels, duels, unopposed


@dataclass(frozen=True)
class ExpectedImprovement(Policy):
    @property
    def words(self) -> str:
        return "expected improvement on the favourite, under a hierarchical model"

    def rank(self, situation: Situation) -> list[Choice]:
        fought = duels(situation.belief)
        score = np.array([duel.gain for duel in fought])
        return unopposed(situation, by_duels(situation, score, fought, "expected improvement {gain:.2f} points"))
