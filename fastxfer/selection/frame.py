"""The frame of every comparison: runs at random, and the choice of one who knows all values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastxfer.selection.belief import Belief, Floats, Ints
from fastxfer.selection.policy import Choice, Policy, Situation, with_rest


@dataclass(frozen=True)
class Random(Policy):
    """Any run that is left, each as likely; the same for the same seed and number of runs made."""

    seed: int = 0

    @property
    def words(self) -> str:
        return f"at random, seed {self.seed}"

    def rank(self, situation: Situation) -> list[Choice]:
        belief = situation.belief
        left = belief.left()
        drawn = np.random.default_rng([self.seed, int(belief.made.sum())]).permutation(belief.n)
        return with_rest(situation, [Choice(int(k), float("nan"), "drawn") for k in drawn if len(left[k])])


@dataclass(frozen=True)
class Oracle(Policy):
    """The best of each contest, once. truth: (n,) values that no policy has; for replays alone."""

    truth: Floats

    @property
    def words(self) -> str:
        return "the best, known beforehand"

    def rank(self, situation: Situation) -> list[Choice]:
        belief = situation.belief
        made = belief.runs_made()
        best = [Choice(int(k), float("nan"), "the best") for k in self.choose(belief) if not made[k]]
        return with_rest(situation, best)

    def choose(self, belief: Belief) -> Ints:
        return np.array([members[np.argmax(self.truth[members])] for members in belief.contests()])
