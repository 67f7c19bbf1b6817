"""What a policy is: it sees what is believed of every configuration, and ranks the runs that are worth making."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastxfer.selection.belief import Belief, Floats, Ints, expected_excess


@dataclass(frozen=True)
class Situation:
    """What a policy sees of n configurations; nothing in it comes from test images.

    belief: after all runs so far, in points
    cost:   (n,) of one more run of each, in any unit
    probed: (n, 3) value, low and high before any fine-tuning, in points: the full probe's on validation, or what results on other
            targets foretell. NaN where a bound is unknown.
    names:  what the configurations are called in reasons
    """

    belief: Belief
    cost: Floats
    probed: Floats
    names: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """One more run of a configuration, or why not.

    gain:   points that the run, or the comparison that it is part of, is expected to add to what its contest will choose
    wanted: whether it is worth a run at all, budget and threshold apart
    """

    configuration: int
    gain: float
    reason: str
    wanted: bool = True


class Policy(ABC):
    """A way of going on: stateless, all that was seen is in the situation."""

    again = True
    """Whether a configuration may be run with one seed more."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What a plan says of how it was made."""

    @abstractmethod
    def rank(self, situation: Situation) -> list[Choice]:
        """At most one choice a configuration, best first; what isn't wanted comes last, with its reason."""

    def choose(self, belief: Belief) -> Ints:
        """(contests,) what each contest would choose now: the highest expected value, the first of equals."""
        favourites = belief.favourites()
        return np.array([favourites[members[0]] for members in belief.contests()])


@dataclass(frozen=True)
class Duel:
    """A configuration against the favourite of its contest: `runner` of the two is to be run next (−1: neither can be)."""

    rival: int
    favourite: int
    mean: float
    scale: float
    gain: float
    runner: int


def duels(belief: Belief) -> list[Duel]:
    """Every configuration but the favourites: what it would gain, were its value and the favourite's known exactly.

    The one with fewer runs is to be run next, so that both have the same seeds; the favourite where both have as many.
    """
    favourites = belief.favourites()
    mean, scale = belief.against(favourites)
    gain = expected_excess(mean, scale, belief.freedom)
    made, left = belief.runs_made(), belief.left()
    found = []
    for rival, favourite in enumerate(favourites):
        if rival == favourite:
            continue
        pair = [favourite, rival] if made[favourite] <= made[rival] else [rival, favourite]
        runner = next((int(k) for k in pair if len(left[k])), -1)
        found.append(Duel(rival, int(favourite), float(mean[rival]), float(scale[rival]), float(gain[rival]), runner))
    return found


def by_duels(situation: Situation, score: ArrayLike, fought: Sequence[Duel], words: str) -> list[Choice]:
    """The runs of duels, by score, highest first; each configuration at its best. Those without runs are not in it."""
    chosen: dict[int, Choice] = {}
    names = situation.names
    for place in np.argsort(-np.asarray(score), kind="stable"):
        duel = fought[place]
        if duel.runner < 0 or duel.runner in chosen:
            continue
        ahead = f"{duel.mean:+.1f} ± {duel.scale:.1f} points"
        if duel.runner == duel.rival:
            reason = f"{ahead} against {names[duel.favourite]}, the favourite; {words.format(gain=duel.gain)}"
        else:
            reason = f"the favourite, {names[duel.rival]} being {ahead} against it; {words.format(gain=duel.gain)}"
        chosen[duel.runner] = Choice(duel.runner, duel.gain, reason)
    return list(chosen.values())


def unopposed(situation: Situation, ranked: list[Choice]) -> list[Choice]:
    """The ranking, and behind it, not wanted, the configurations that have no place in it."""
    placed = {choice.configuration for choice in ranked}
    left = situation.belief.left()
    rest = [
        Choice(k, 0.0, "nothing to compare it with" if len(left[k]) else "all its runs are made", wanted=False)
        for k in range(situation.belief.n)
        if k not in placed
    ]
    return [*ranked, *rest]
