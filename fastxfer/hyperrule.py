"""BiT-HyperRule (Kolesnikov et al. 2020) and the variant of Cherti & Jitsev (2021): a fine-tuning's settings from the
target's size alone. Nothing here trains; nothing here needs torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.images import load_image
from fastxfer.targets.table import Target


@dataclass(frozen=True)
class Schedule:
    """Learning rate of BiT-HyperRule: linear warm-up from 0, ×0.1 one step after each of `decays`, end at `steps`."""

    base_lr: float
    steps: int
    warmup: int
    decays: tuple[int, ...]

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, … steps − 1."""
        if step < self.warmup:
            return self.base_lr * step / self.warmup
        return float(self.base_lr * 0.1 ** sum(s < step for s in self.decays))


def hyperrule(n_train: int, base_lr: float, steps: int | None = None) -> Schedule:
    """The schedule by size of the train split; with `steps`, the same shape on that many steps.

    < 20,000 images: 500 steps, warm-up 100, decay after 200, 300, 400. < 500,000: 10,000 steps (500; 3,000, 6,000,
    9,000). Else 20,000 (500; 6,000, 12,000, 18,000).
    """
    if n_train < 20_000:
        marks = (100, 200, 300, 400, 500)
    elif n_train < 500_000:
        marks = (500, 3_000, 6_000, 9_000, 10_000)
    else:
        marks = (500, 6_000, 12_000, 18_000, 20_000)
    if steps is not None:
        if steps < 1:
            raise UsageError(f"--steps must be at least 1, not {steps}")
        marks = tuple(round(m * steps / marks[-1]) for m in marks)  # type: ignore[assignment]
    warmup, *decays, last = marks
    return Schedule(base_lr, last, warmup, tuple(decays))


def mixup_alpha(n_train: int) -> float:
    """Parameter of mixup's Beta distribution by size of the train split; 0 = no mixup."""
    return 0.0 if n_train < 20_000 else 0.1


def resolution(area: float) -> tuple[int, int]:
    """(resize, crop) in pixels a side by the area of the target's images."""
    return (160, 128) if area < 96 * 96 else (512, 480)


@dataclass(frozen=True)
class Preset:
    """What the two protocols differ in.

    zero_head:         the head starts at zero, else at its layer's random default
    square:            train images are resized to a square before the crop, else their shorter side is (evaluation is
                       square in both, as in the paper's code)
    source_statistics: pixels are normalised as in pre-training, else by 0.5/0.5
    """

    batch_size: int
    base_lr: float
    zero_head: bool
    agc: float
    nesterov: bool
    square: bool
    source_statistics: bool


PRESETS = {
    "bit": Preset(512, 0.003, True, 0.0, False, True, False),
    "paper": Preset(128, 0.001, False, 0.01, True, False, True),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run but weights, data and seed; `params` names it in the results."""

    preset: str
    schedule: Schedule
    batch_size: int
    resize: int
    crop: int
    mixup: float
    hflip: float = 0.5
    oversample: bool = False

    @property
    def params(self) -> str:
        parts: dict[str, str | int] = {
            "preset": self.preset,
            "steps": self.schedule.steps,
            "batch": self.batch_size,
            "size": self.crop,
            "lr": f"{self.schedule.base_lr:g}",
        }
        if self.hflip != 0.5:
            parts["flip"] = f"{self.hflip:g}"
        if self.oversample:
            parts["oversample"] = 1
        return ";".join(f"{key}={value}" for key, value in parts.items())


def settle(
    target: Target,
    preset: str = "bit",
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    base_lr: float | None = None,
    hflip: float = 0.5,
    oversample: bool = False,
) -> Settings:
    """The preset's rules applied to a target; whatever is given overrides them.

    `UsageError` for an unknown preset or a value out of range, `DataError` for a target without train images.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset '{preset}' is not one of {', '.join(PRESETS)}.{nearest(preset, PRESETS)}")
    for option, value in (("--batch-size", batch_size), ("--image-size", image_size), ("--base-lr", base_lr)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} must be above 0, not {value}")
    if oversample and target.multi_label:
        raise UsageError(f"--oversample needs one label an image; target '{target.name}' is multi-label")
    train = target.rows("train")
    if len(train) == 0:
        raise DataError(f"target '{target.name}' has no train images: nothing to fine-tune on")
    if image_size is None:
        resize, crop = resolution(_typical_area(target, train))
    else:
        # The two regimes' own margins.
        resize, crop = round(image_size * (160 / 128 if image_size <= 128 else 512 / 480)), image_size
    rule = PRESETS[preset]
    return Settings(
        preset,
        hyperrule(len(train), base_lr or rule.base_lr, steps),
        batch_size or rule.batch_size,
        resize,
        crop,
        mixup_alpha(len(train)),
        hflip,
        oversample,
    )


def _typical_area(target: Target, rows: NDArray[np.int64]) -> float:
    """Median width × height of up to nine train images, spread over the split."""
    if target.root is None:
        raise DataError(f"target '{target.name}': its images are not known, only its table: load it from --data-root")
    few = rows[np.unique(np.linspace(0, len(rows) - 1, 9).astype(int))]
    return float(np.median([math.prod(load_image(target.root / str(i)).size) for i in target.image_id[few]]))
