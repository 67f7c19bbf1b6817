"""A policy: the cheapest run first, whatever it may bring."""

from dataclasses import dataclass

import numpy as np

from fastxfer.selection import Choice, Policy, Situation, with_rest


@dataclass(frozen=True)
class Cheapest(Policy):
    @property
    def words(self) -> str:
        return "the cheapest run first"

    def rank(self, situation: Situation) -> list[Choice]:
        left = situation.belief.left()
        order = [int(k) for k in np.argsort(situation.cost, kind="stable") if len(left[k])]
        return with_rest(situation, [Choice(k, float("nan"), f"costs {situation.cost[k]:g}") for k in order])
