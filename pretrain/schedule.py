"""Learning rates, one a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.recipe import Recipe


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


def schedule_of(recipe: Recipe, n: int, steps: int) -> Schedule:
    """The recipe's schedule for a source of n images, in so many steps."""
    per_epoch = n / recipe.batch_size
    milestones = recipe.milestones or tuple(recipe.epochs * share for share in (1 / 3, 2 / 3, 8 / 9))
    return Schedule(
        kind=recipe.schedule,
        peak=recipe.lr * recipe.batch_size / 256,
        steps=steps,
        warmup=min(round(recipe.warmup_epochs * per_epoch), steps),
        start=recipe.warmup_start,
        milestones=tuple(math.ceil(m * per_epoch) for m in milestones),
        decay=recipe.decay,
        min_lr=recipe.min_lr,
    )
