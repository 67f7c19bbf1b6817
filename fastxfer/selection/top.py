"""Top-k: the best by what was probed, and those that the probe cannot tell from the best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastxfer.selection.policy import Choice, Policy, Situation


@dataclass(frozen=True)
class TopK(Policy):
    """k: configurations of a contest that are wanted outright; the nearest rivals follow"""

    again = False
    k: int = 1

    @property
    def words(self) -> str:
        return f"top-{self.k} per target by the full probe on validation, then near-ties"

    def rank(self, situation: Situation) -> list[Choice]:
        probed, names = situation.probed, situation.names
        wanted: list[tuple[tuple[bool, float, int], Choice]] = []
        rejected = []
        for members in situation.belief.contests():
            order = members[np.lexsort(([names[k] for k in members], -probed[members, 0]))]
            best = probed[order[0], 0]
            for rank, k in enumerate(order):
                behind = float(best - probed[k, 0])
                # A rival whose interval nobody knows (too few images to resample) has not been told apart either.
                near = not probed[k, 2] < best
                reason = self._reason(rank, len(order), behind, near, math.isnan(probed[k, 2]))
                choice = Choice(int(k), float("nan"), reason, wanted=rank < self.k or near)
                if choice.wanted:
                    wanted.append(((rank >= self.k, behind, rank), choice))
                else:
                    rejected.append(choice)
        wanted.sort(key=lambda item: item[0])
        return [*(choice for _, choice in wanted), *rejected]

    def _reason(self, rank: int, of: int, behind: float, near: bool, unknown: bool) -> str:
        if rank == 0:
            return f"best of {of} backbones on validation" if of > 1 else "the only backbone"
        if rank < self.k:
            return f"number {rank + 1} of {of} on validation, {behind:.1f} points behind"
        if near:
            why = "its interval is unknown" if unknown else "its interval reaches the best"
            return f"not told apart from the best by validation ({behind:.1f} points behind, {why})"
        return f"{behind:.1f} points behind the best on validation, beyond its own interval"
