"""Expected improvement: the rival from which most is to be expected beyond the favourite.

Jones, Schonlau and Welch 1998 (J. Global Optimization 13), of the difference between two uncertain values.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastxfer.selection.policy import Choice, Policy, Situation, by_duels, duels


@dataclass(frozen=True)
class ExpectedImprovement(Policy):
    @property
    def words(self) -> str:
        return "expected improvement on the favourite, under a hierarchical model"

    def rank(self, situation: Situation) -> list[Choice]:
        fought = duels(situation.belief)
        return by_duels(situation, [duel.gain for duel in fought], fought)
