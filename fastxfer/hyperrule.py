"""BiT-HyperRule (Kolesnikov et al. 2020), the variant of Cherti & Jitsev (2021), and timm's conventions: a fine-tuning's
settings from its target alone. Nothing here trains; nothing here needs torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.images import load_image
from fastxfer.targets.table import Target


@dataclass(frozen=True)
class Schedule:
    """Learning rate of BiT-HyperRule: linear warm-up from 0, ×0.1 one step after each of `decays`, end at `steps`.

    cosine: after the warm-up half a cosine to 0 instead
    """

    base_lr: float
    steps: int
    warmup: int
    decays: tuple[int, ...]
    cosine: bool = False

    def lr(self, step: int) -> float:
        """Learning rate of step 0, 1, … steps − 1."""
        if step < self.warmup:
            return self.base_lr * step / self.warmup
        if self.cosine:
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.base_lr * 0.5 * (1 + math.cos(math.pi * done))
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
    """What the protocols differ in.

    head:         "zero"; "random", its layers' default; or "probe", the linear probe's solution
    square:       train images are resized to a square before the crop, else their shorter side is (evaluation is square
                  in both, as in the paper's code)
    normalise:    "source", as in pre-training, or "half", by 0.5/0.5
    batch_split:  micro-batches a step in the published code, for images under 96×96 and for others: a train set smaller
                  than one of them is drawn from with replacement; None = never
    watched:      the split that is scored on the way, and every how many steps; 0 = a fifth of the run
    """

    batch_size: int
    base_lr: float
    head: str
    agc: float
    nesterov: bool
    square: bool
    normalise: str
    batch_split: tuple[int, int] | None
    watched: tuple[str, int] = ("val", 0)
    adamw: bool = False
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    smoothing: float = 0.0
    drop_path: float = 0.0
    randaugment: str = ""


PRESETS = {
    "bit": Preset(512, 0.003, "zero", 0.0, False, True, "half", (1, 1)),
    "paper": Preset(128, 0.001, "random", 0.01, True, False, "source", (2, 32), watched=("test", 100)),
    "own": Preset(
        128, 5e-4, "zero", 0.0, False, True, "source", None,
        adamw=True, weight_decay=0.05, layer_decay=0.75, smoothing=0.1, drop_path=0.1, randaugment="rand-m6-n2-mstd0.5-inc1",
    ),
}  # fmt: skip

HEADS = ("zero", "random", "probe")
AUGMENTATIONS = ("crop", "xray", "timm")
# The paper drew every class equally often for these, on their full train splits only; PadChest had a pipeline of its own.
OVERSAMPLED, XRAY = ("covidx", "flowers"), ("padchest",)
XRAY_SIZE = 224


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run but weights, data and seed; `params` names it in the results.

    resize, crop: pixels a side; crop 0 = the network's own size
    augment:      "crop" (random crop, flip), "xray" (the paper's for PadChest) or "timm" (RandAugment, random resized crop)
    replacement:  train images are drawn with replacement
    watched:      the split that is scored on the way and every how many steps; 0 = never
    frozen_norm:  batch norm keeps the statistics of pre-training
    """

    preset: str
    schedule: Schedule
    batch_size: int
    resize: int
    crop: int
    mixup: float
    hflip: float = 0.5
    oversample: bool = False
    head: str = "zero"
    head_l2: float | None = None
    augment: str = "crop"
    normalise: str = "half"
    replacement: bool = False
    watched: tuple[str, int] = ("val", 0)
    frozen_norm: bool = False

    @property
    def images(self) -> int:
        """Images forward and backward, if it runs to its end."""
        return self.schedule.steps * self.batch_size

    @property
    def params(self) -> str:
        rule = PRESETS[self.preset]
        parts: dict[str, str | int] = {
            "preset": self.preset,
            "steps": self.schedule.steps,
            "batch": self.batch_size,
            "size": self.crop or "own",
            "lr": f"{self.schedule.base_lr:g}",
        }
        if self.hflip != 0.5:
            parts["flip"] = f"{self.hflip:g}"
        if self.oversample:
            parts["oversample"] = 1
        if self.head != rule.head:
            parts["head"] = self.head
        if self.head == "probe" and self.head_l2 is not None:
            parts["head_l2"] = f"{self.head_l2:g}"
        if self.augment != _augmentation(rule):
            parts["augment"] = self.augment
        if self.frozen_norm:
            parts["norm"] = "frozen"
        if self.watched[0] == "test" and self.watched[1]:
            parts["watched"] = f"test/{self.watched[1]}"
        return ";".join(f"{key}={value}" for key, value in parts.items())


def settle(
    target: Target,
    preset: str = "bit",
    *,
    n_train: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    base_lr: float | None = None,
    hflip: float = 0.5,
    oversample: bool | None = None,
    head: str | None = None,
    head_l2: float | None = None,
    augment: str | None = None,
    eval_every: int | None = None,
    frozen_norm: bool = False,
) -> Settings:
    """The preset's rules applied to a target; whatever is given overrides them.

    n_train: images of a few-shot support; None = the whole train split

    `UsageError` for an unknown preset or a value out of range, `DataError` for a target without train images.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset '{preset}' is not one of {', '.join(PRESETS)}.{nearest(preset, PRESETS)}")
    given = (("--batch-size", batch_size), ("--image-size", image_size), ("--base-lr", base_lr), ("--head-l2", head_l2))
    for option, value in given:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{option} must be above 0, not {value}")
    for option, word, known in (("--head", head, HEADS), ("--augment", augment, AUGMENTATIONS)):
        if word is not None and word not in known:
            raise UsageError(f"{option} '{word}' is not one of {', '.join(known)}.{nearest(word, known)}")
    rule = PRESETS[preset]
    head = head or rule.head
    if head_l2 is not None and head != "probe":
        raise UsageError(f"--head-l2 is the probe's penalty: it goes with --head probe, not with --head {head}")
    if oversample and target.multi_label:
        raise UsageError(f"--oversample needs one label an image; target '{target.name}' is multi-label")
    train = target.rows("train")
    if len(train) == 0:
        raise DataError(f"target '{target.name}' has no train images: nothing to fine-tune on")
    full = n_train is None
    n = len(train) if n_train is None else n_train
    if oversample is None:
        oversample = full and preset == "paper" and not target.multi_label and _named(target, OVERSAMPLED)
    xray = preset == "paper" and _named(target, XRAY)
    augment = augment or ("xray" if xray else _augmentation(rule))
    small = False
    if image_size is not None:
        resize, crop = before_crop(image_size), image_size
        small = image_size <= 128
    elif preset == "own":
        resize = crop = 0
    elif xray:
        resize = crop = XRAY_SIZE
    else:
        resize, crop = resolution(_typical_area(target, train))
        small = crop <= 128
    schedule = replace(hyperrule(n, base_lr or rule.base_lr, steps), cosine=rule.adamw)
    batch_size = batch_size or rule.batch_size
    parts = rule.batch_split and rule.batch_split[0 if small else 1]
    split, every = rule.watched
    # Few-shot runs are many and short: they are watched where the paper watched them, or on wish.
    usual = every or (schedule.steps // 5 if full else 0)
    return Settings(
        preset,
        schedule,
        batch_size,
        resize,
        crop,
        mixup_alpha(n),
        hflip,
        oversample,
        head,
        head_l2,
        augment,
        # PadChest's configuration has 0.5/0.5, whatever the source.
        "half" if xray else rule.normalise,
        replacement=parts is not None and n < batch_size // parts,
        watched=(split, usual if eval_every is None else eval_every),
        frozen_norm=frozen_norm,
    )


def before_crop(size: int) -> int:
    """What the shorter side is resized to before a square of `size` pixels is cropped: with the margins of the two regimes."""
    return round(size * (160 / 128 if size <= 128 else 512 / 480))


def _augmentation(rule: Preset) -> str:
    return "timm" if rule.randaugment else "crop"


def _named(target: Target, families: tuple[str, ...]) -> bool:
    """Whether a target is one of these, or a variant of one: "covidx-cxr2", "flowers_swapped", "PadChest-Cl"."""
    return re.sub(r"[^a-z0-9]", "", target.name.lower()).startswith(families)


def _typical_area(target: Target, rows: NDArray[np.int64]) -> float:
    """Median width × height of up to nine train images, spread over the split."""
    if target.root is None:
        raise DataError(f"target '{target.name}': its images are not known, only its table: load it from --data-root")
    few = rows[np.unique(np.linspace(0, len(rows) - 1, 9).astype(int))]
    return float(np.median([math.prod(load_image(target.root / str(i)).size) for i in target.image_id[few]]))
