"""Successive halving: all begin, and after each round the worse half of a contest is left behind.

Karnin, Koren and Somekh 2013 (ICML, algorithm 2), with as many runs to begin with as configurations, and rounds of 1, 2, 4, … runs each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastxfer.selection.policy import Choice, Policy, Situation, said_runs, with_rest


@dataclass(frozen=True)
class Halving(Policy):
    """begin: how many of a contest begin, by what was probed (None: all)"""

    begin: int | None = None

    @property
    def words(self) -> str:
        begun = "all" if self.begin is None else f"the best {self.begin}"
        return f"successive halving: {begun} of a contest begin, the better half of each round goes on"

    def rank(self, situation: Situation) -> list[Choice]:
        belief = situation.belief
        made, left = belief.runs_made(), belief.left()
        ranked = []
        for members in belief.contests():
            alive = members[np.argsort(-situation.probed[members, 0], kind="stable")][: self.begin]
            asked, begun = 1, len(alive)
            while (
                len(alive) > 1 and (made[alive] >= np.minimum(asked, made[alive] + [len(left[k]) for k in alive])).all()
            ):
                order = np.argsort(-belief.values[alive], kind="stable")
                alive, asked = alive[order[: (len(alive) + 1) // 2]], 2 * asked
            due = [int(k) for k in alive if made[k] < asked and len(left[k])]
            if len(alive) == 1 and made[alive[0]]:
                continue
            gone = f"among {len(alive)} of {begun} left, of which each gets {said_runs(asked)}"
            ranked += [Choice(k, float("nan"), gone) for k in due]
        ranked.sort(key=lambda choice: made[choice.configuration])  # so the earlier round of two contests goes first
        return with_rest(situation, ranked)


def runs_needed(begin: int) -> int:
    """Runs until one of so many configurations is left."""
    needed, alive, asked = begin, begin, 1
    while (alive := (alive + 1) // 2) > 1:
        needed, asked = needed + alive * asked, 2 * asked
    return needed


def affordable(runs: float) -> int:
    """How many configurations may begin, two at least, with so many runs a contest."""
    begin = 2
    while runs_needed(begin + 1) <= runs:
        begin += 1
    return begin
