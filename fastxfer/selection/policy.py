"""What a policy is: it sees what is believed of every configuration, and ranks the runs that are worth making."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    """A configuration against the favourite of its contest; `due`, those of the two that are to be run, the first next."""

    rival: int
    favourite: int
    mean: float
    scale: float
    gain: float
    due: tuple[int, ...]


def duels(belief: Belief) -> list[Duel]:
    """Every configuration but the favourites: what it would gain, were its value and the favourite's known exactly.

    The two are to have the same seeds: the favourite runs too where it has no more runs than the rival, and first.
    """
    favourites = belief.favourites()
    mean, scale = belief.against(favourites)
    gain = expected_excess(mean, scale, belief.freedom)
    made, left = belief.runs_made(), belief.left()
    found = []
    for rival, favourite in enumerate(favourites):
        if rival == favourite:
            continue
        alone = made[favourite] > made[rival] and len(left[rival])
        due = tuple(int(k) for k in ([rival] if alone else [favourite, rival]) if len(left[k]))
        found.append(Duel(rival, int(favourite), float(mean[rival]), float(scale[rival]), float(gain[rival]), due))
    return found


def by_duels(situation: Situation, score: Sequence[float] | Floats, fought: Sequence[Duel]) -> list[Choice]:
    """What the duels need run, the duel of the highest score first; then, not wanted, what can't be run."""
    ranked: dict[int, Choice] = {}
    names = situation.names
    for place in np.argsort(-np.asarray(score), kind="stable"):
        duel = fought[place]
        ahead = f"{duel.mean:+.1f} ± {duel.scale:.1f} points"
        for k in duel.due:
            if k == duel.rival:
                reason = f"{ahead} against {names[duel.favourite]}, the favourite; expected to gain {duel.gain:.2f}"
            else:
                reason = f"the favourite; {names[duel.rival]}, {ahead} against it, is expected to gain {duel.gain:.2f}"
            ranked.setdefault(k, Choice(k, duel.gain, reason))
    return with_rest(situation, list(ranked.values()))


def said_runs(n: int) -> str:
    """``1 run``, ``2 runs``: for reasons."""
    return f"{n} run{'' if n == 1 else 's'}"


def with_rest(situation: Situation, ranked: list[Choice]) -> list[Choice]:
    """The ranking, and behind it, not wanted, the configurations that have no place in it."""
    placed = {choice.configuration for choice in ranked}
    left = situation.belief.left()
    rest = [
        Choice(k, 0.0, "no run is of use to the choice" if len(left[k]) else "all its runs are made", wanted=False)
        for k in range(situation.belief.n)
        if k not in placed
    ]
    return [*ranked, *rest]
