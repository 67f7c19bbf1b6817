"""A recipe: everything that decides the weights, as a small TOML file and as options of the same names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from fastxfer.errors import DataError, UsageError, nearest


@dataclass(frozen=True)
class Architecture:
    """A network of timm by its name and the keyword arguments of `create_model`; pixels a side that suit it, 0 = timm's."""

    name: str
    args: dict[str, Any]
    image_size: int = 0


# Short names beside timm's own.
# bit_tiny: BiT's own parts (pre-activation bottlenecks, GroupNorm(32), weight standardisation, zero-padded max-pool)
# in two stages, 366,629 weights with 5 classes, dim 256; 32 pixels become 8x8 after the stem. timm goes through as many
# stages as `channels` has entries. The others are the sizes of BiT.
ARCHITECTURES: dict[str, Architecture] = {
    "bit_tiny": Architecture("resnetv2_50x1_bit", {"channels": [128, 256], "stem_chs": 32}, 32),
    **{
        f"R{size}": Architecture(f"resnetv2_{size}_bit", {})
        for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")
    },
}
SCHEDULES = ("cosine", "step", "constant")
AUGMENTATIONS = ("crop", "xray", "none")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos")
PRECISIONS = ("float32", "bf16", "fp16")
PARALLEL = ("ddp", "fsdp")
KINDS = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    bool: "true or false",
    tuple: "a list",
    dict: "a table",
}
# How the machine does it, not what comes of it: may change when a run goes on.
MEANS = ("micro_batch", "channels_last", "checkpoint_activations", "compile", "parallel", "sharded_checkpoints")


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, how. The fields are the keys of the TOML file and the options of the command line."""

    source: str = _field("", "Target (data set) to train on, by name.")
    classes: tuple[str, ...] = _field((), "Only these classes of the source.")
    source_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the source's reader: KEY=VALUE, such as views=('AP','PA')."}
    )
    source_name: str = _field("", "What the results call the source (default: its name and classes).")
    arch: str = _field("bit_tiny", "timm architecture, bit_tiny, or a size of BiT (R50x1 … R152x4).")
    arch_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Keyword arguments of the architecture: KEY=VALUE."}
    )
    num_classes: int = _field(0, "Outputs of the head; 0 = as many as the source has classes.")
    image_size: int = _field(0, "Pixels a side; 0 = the architecture's own (bit_tiny: 32).")
    mean: tuple[float, ...] = _field((), "Three channel means in 0…1; empty = the architecture's own.")
    std: tuple[float, ...] = _field((), "Three channel deviations in 0…1; empty = the architecture's own.")
    interpolation: str = _field(
        "", "bilinear, bicubic, box (area), lanczos or nearest; empty = the architecture's own."
    )
    crop_pct: float = _field(0.0, "Share of the resized shorter side that validation sees; 0 = the architecture's own.")
    epochs: float = _field(30.0, "Passes over the train images.")
    batch_size: int = _field(64, "Images a step.")
    micro_batch: int = _field(0, "Images a forward pass and process; 0 = all that a process has of the batch.")
    lr: float = _field(0.4, "Peak learning rate for 256 images a step; scaled with the batch size.")
    warmup_epochs: float = _field(2.0, "Epochs of linear warm-up.")
    warmup_start: float = _field(0.0, "Share of the peak that the warm-up starts from (the paper: 1/workers).")
    schedule: str = _field("cosine", "cosine, step or constant.")
    milestones: tuple[float, ...] = _field((), "Epochs of the step schedule's decays; empty = at 1/3, 2/3 and 8/9.")
    decay: float = _field(0.1, "Factor of the step schedule.")
    min_lr: float = _field(0.0, "Where the cosine ends.")
    momentum: float = _field(0.9, "SGD momentum.")
    nesterov: bool = _field(True, "Nesterov's momentum.")
    weight_decay: float = _field(1e-4, "Weight decay.")
    agc: float = _field(0.0, "Adaptive gradient clipping factor, without the head; 0 = off (the paper: 0.01).")
    label_smoothing: float = _field(0.0, "Label smoothing.")
    mixup: float = _field(0.0, "Mixup's alpha: pairs of images blended by a Beta(alpha, alpha) share; 0 = off.")
    cutmix: float = _field(0.0, "CutMix's alpha, likewise a pasted box; with mixup, each step takes one of both.")
    augment: str = _field("crop", "crop (random resized crop), xray (shift, rotate, scale) or none.")
    crop_scale: float = _field(0.5, "Smallest share of the area in a crop (ImageNet's usual: 0.08).")
    hflip: float = _field(0.5, "Probability of a horizontal flip; 0 for digits and text.")
    shift: float = _field(0.25, "xray: largest shift, as a share of the side.")
    rotate: float = _field(45.0, "xray: largest rotation in degrees.")
    scale: float = _field(0.1, "xray: largest change of scale.")
    randaugment: str = _field("", "crop: timm's words, such as rand-m9-n2; empty = off.")
    val_fraction: float = _field(0.1, "Share of train held out where the source has no val split; 0 = none.")
    seed: int = _field(0, "Random seed of weights, order and augmentation.")
    ema: float = _field(0.0, "Decay of a moving average of the weights, which is what is validated and kept; 0 = off.")
    precision: str = _field("float32", "float32, or mixed with bf16 or fp16 (with a gradient scaler).")
    channels_last: bool = _field(False, "Channels last in memory: faster on GPUs with tensor cores.")
    checkpoint_activations: bool = _field(False, "Compute activations again in the backward pass: less memory, slower.")
    compile: bool = _field(False, "Let torch.compile make one program of the network.")
    parallel: str = _field("ddp", "Many processes: ddp = a copy of the network in each; fsdp = a share (FSDP2).")
    sharded_checkpoints: bool = _field(False, "With fsdp: each process writes its share; one file at the end.")

    def __post_init__(self) -> None:
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("augment", self.augment, AUGMENTATIONS)
        _choice("precision", self.precision, PRECISIONS)
        _choice("parallel", self.parallel, PARALLEL)
        for name in ("epochs", "batch_size", "lr", "decay"):
            self._check(name, lambda v: v > 0 and math.isfinite(v), "be above 0")
        for name in ("momentum", "val_fraction", "ema", "label_smoothing", "shift", "scale"):
            self._check(name, lambda v: 0 <= v < 1, "lie in [0, 1)")
        for name in ("warmup_start", "hflip", "crop_pct"):
            self._check(name, lambda v: 0 <= v <= 1, "lie in [0, 1]")
        for name in (
            "micro_batch",
            "num_classes",
            "image_size",
            "warmup_epochs",
            "min_lr",
            "weight_decay",
            "agc",
            "mixup",
            "cutmix",
            "rotate",
            "seed",
        ):
            self._check(name, lambda v: v >= 0 and math.isfinite(v), "not be negative")
        self._check("crop_scale", lambda v: 0 < v <= 1, "lie in (0, 1]")
        for name, length in (("mean", len(self.mean)), ("std", len(self.std))):
            if length not in (0, 3):
                raise UsageError(f"{name} needs three values, one a channel, not {length}")
        if any(not s > 0 for s in self.std):
            raise UsageError(f"std must be above 0, not {min(self.std)}")
        if self.interpolation:
            _choice("interpolation", self.interpolation, INTERPOLATIONS)
        if list(self.milestones) != sorted(self.milestones):
            raise UsageError(f"milestones must ascend, not {', '.join(f'{m:g}' for m in self.milestones)}")
        if self.randaugment and self.augment != "crop":
            raise UsageError(f"randaugment goes with augment = 'crop', not '{self.augment}'")
        if self.sharded_checkpoints and self.parallel != "fsdp":
            raise UsageError("sharded_checkpoints needs parallel = 'fsdp': with ddp each process has the whole network")

    def _check(self, name: str, holds: Callable[[float], bool], words: str) -> None:
        if not holds(getattr(self, name)):
            raise UsageError(f"{name} must {words}, not {getattr(self, name)}")

    @property
    def architecture(self) -> tuple[str, dict[str, Any]]:
        """timm's name and the keyword arguments of its `create_model`."""
        known = ARCHITECTURES.get(self.arch, Architecture(self.arch, {}))
        return known.name, {**known.args, **self.arch_args}

    def changed(self, since: dict[str, Any]) -> list[str]:
        """ "key (old → new)" of what would make other weights than the plain recipe `since`."""
        old, new = {**Recipe().plain(), **since}, self.plain()
        return [f"{k} ({old[k]!r} → {v!r})" for k, v in new.items() if old[k] != v and k not in MEANS]

    def plain(self) -> dict[str, Any]:
        """Plain values only, for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_plain(cls, values: dict[str, Any], where: str = "recipe") -> Recipe:
        """A recipe of plain values; `DataError` for an unknown key (nearest named) or a value of the wrong kind."""
        return cls().override(values, where)

    def override(self, values: dict[str, Any], where: str) -> Recipe:
        """The same recipe with these values instead."""
        return replace(self, **self.checked(values, where))

    @classmethod
    def checked(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """These values as the fields want them; `DataError` for an unknown key or a value of the wrong kind."""
        defaults: dict[str, Any] = {f.name: {} if f.default is MISSING else f.default for f in fields(cls)}
        for key in values:
            if key not in defaults:
                raise DataError(f"{where}: unknown key '{key}'.{nearest(key, defaults)} Known: {', '.join(defaults)}")
        return {key: _as(defaults[key], key, value, where) for key, value in values.items()}


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} '{value}' is not one of {', '.join(known)}.{nearest(value, known)}")


def _as(default: Any, key: str, value: Any, where: str) -> Any:
    """`value` if it is of the kind of the field's default."""
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        if key == "classes":
            return tuple(str(v) for v in value)
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            return tuple(float(v) for v in value)
    elif isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise DataError(f"{where}: {key} = {value!r} should be {KINDS[kind]}")
