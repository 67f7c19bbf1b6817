"""Learning rates, one a step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Warm-up from `start`·peak to `peak`, then constant, cosine to `min_lr`, or ×`decay` at each milestone.

    All times are in steps. Cherti & Jitsev (2021): start = 1/workers, milestones at epochs 30, 60 and 80 counted from
    the very beginning, or a cosine over what follows the warm-up.
    """

    kind: str
    peak: float
    steps: int
    warmup: int
    start: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    min_lr: float = 0.0

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, … steps − 1."""
        if step < self.warmup:
            return self.peak * (self.start + (1 - self.start) * step / self.warmup)
        if self.kind == "cosine":
            done = (step - self.warmup) / max(self.steps - self.warmup, 1)
            return self.min_lr + (self.peak - self.min_lr) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        if self.kind == "step":
            return self.peak * self.decay ** sum(step >= m for m in self.milestones)
        return self.peak
