"""Fine-tuning of the whole network: BiT-HyperRule (Kolesnikov et al. 2020) and the variant of Cherti & Jitsev (2021).

One run, one seed, one fit on the train split; test is scored once, after the last step. The rows are those of the full
probes, with probe "finetune", so that the two can be compared.
"""

from __future__ import annotations

import csv
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fastxfer.backbones import load_backbone, load_network
from fastxfer.backbones.checkpoint import SUFFIXES
from fastxfer.errors import DataError, FastxferError
from fastxfer.hyperrule import PRESETS, Schedule, Settings, settle
from fastxfer.metrics import softmax
from fastxfer.plans import PlanEntry
from fastxfer.progress import progress, say
from fastxfer.results import NO_EPISODE, Cell, ResultStore, complete
from fastxfer.statistics import measure_split
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, load_target
from fastxfer.training import (
    Batches,
    Images,
    Normaliser,
    Trainer,
    Transform,
    choose_device,
    head_of,
    loader,
    predict,
)

SINGLE_LABEL_METRICS = ("accuracy", "balanced_accuracy", "auc")
MULTI_LABEL_METRICS = ("auc", "average_precision")
# Pixels a forward pass: 64 images at 128 or 4 at 480, the paper's own micro-batches.
MICRO_BATCH_PIXELS = 1 << 20


def _paths(target: Target, rows: NDArray[np.int64]) -> list[Path]:
    if target.root is None:
        raise DataError(f"target '{target.name}': its images are not known, only its table: load it from --data-root")
    return [target.root / str(i) for i in target.image_id[rows]]


def finetune(
    ckpt: str,
    target: Target,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    backbone_name: str | None = None,
    source: str | None = None,
    settings: Settings | None = None,
    preset: str = "bit",
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    image_size: int | None = None,
    base_lr: float | None = None,
    hflip: float = 0.5,
    oversample: bool = False,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
    cache_bytes: int = 1 << 30,
    curve: Path | None = None,
) -> pd.DataFrame:
    """Fine-tune a checkpoint on a target's train split; return the rows of its val (if any) and test splits.

    settings: as `settle` made them; else made from `preset` … `oversample`
    curve:    CSV to write, one line a step: step, lr, loss
    Multi-label targets get a binary cross-entropy over known entries. One row a metric and split, with a bootstrap
    interval over the split's images; one row "seconds" (train): training alone, decoding and evaluation apart.
    """
    chosen = settings or settle(
        target,
        preset,
        steps=steps,
        batch_size=batch_size,
        image_size=image_size,
        base_lr=base_lr,
        hflip=hflip,
        oversample=oversample,
    )
    if len(target.rows("test")) == 0:
        raise DataError(f"target '{target.name}' has no test images to score on")
    on = choose_device(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = load_backbone(ckpt, arch=arch, arch_args=arch_args)
        network = load_network(ckpt, arch, arch_args, len(target.class_names))
        rule = PRESETS[chosen.preset]
        _start_head(network, rule.zero_head)
        wanted = backbone.preprocessing
        half = (0.5,) * wanted.input_size[0]
        statistics = (wanted.mean, wanted.std) if rule.source_statistics else (half, half)
        normalise = Normaliser(*statistics, device=on)
        name = backbone_name or backbone.name
        say(f"fine-tuning {name} on {target.name}: {_params(target, chosen)}, seed {seed}, on {on}")
        micro = micro_batch or max(1, MICRO_BATCH_PIXELS // chosen.crop**2)
        losses, seconds = _fit(
            network.to(on),
            target,
            chosen,
            normalise,
            micro,
            seed,
            workers,
            cache_bytes,
            f"{name} on {target.name}",
        )
        if curve is not None:
            _write_curve(curve, chosen.schedule, losses)
        common = {
            "source": source or backbone.source,
            "backbone": name,
            "target": target.name,
            "ways": "all",
            "shots": "full",
            "seed": seed,
            "episode": NO_EPISODE,
            "probe": "finetune",
            "params": _params(target, chosen),
            "episodes_hash": "",
        }
        rows = [
            {**common, **row}
            for split in ("val", "test")
            if len(target.rows(split))
            for row in _score(network, target, split, chosen, normalise, micro, workers)
        ]
    rows.append({**common, "split": "train", "metric": "seconds", "value": seconds, "n_queries": 0})
    return complete(pd.DataFrame(rows))


def cells(source: str, backbone: str, target: Target, settings: Settings, seed: int) -> list[Cell]:
    """The cells (keys without episode) of the test rows that a run will give: whether it was done already."""
    return [
        (source, backbone, target.name, "all", "full", seed, "finetune", _params(target, settings), "test", metric)
        for metric in _metrics(target)
    ]


@dataclass(frozen=True)
class Run:
    """One fine-tuning to be done: of which checkpoint, under which names, on what, how."""

    entry: PlanEntry
    target: Target
    settings: Settings

    def is_done(self, results: ResultStore, seed: int) -> bool:
        return all(
            cell in results for cell in cells(self.entry.source, self.entry.backbone, self.target, self.settings, seed)
        )


def prepare(entries: Sequence[PlanEntry], store: EmbeddingStore, data_root: Path, **overrides: Any) -> list[Run]:
    """What a plan asks for, checked before any work is done: targets, checkpoints and settings (`settle`).

    Targets keep the rows that the store's embeddings have (images skipped there are skipped here), so that probe and
    fine-tuning see the same images (and are without the same leaks); `DataError` if labels or splits have changed since.
    """
    runs = []
    for entry in entries:
        try:
            target = _as_embedded(store.target(entry.target), load_target(entry.target, data_root), store)
            if not entry.checkpoint:
                raise DataError("the plan names no checkpoint: run `fastxfer select` again, or use --ckpt")
            if entry.checkpoint.endswith(SUFFIXES) and not Path(entry.checkpoint).exists():
                raise DataError(f"checkpoint '{entry.checkpoint}' is not there any more")
            runs.append(Run(entry, target, settle(target, **overrides)))
        except FastxferError as error:
            raise type(error)(f"plan entry {entry.number} ({entry.backbone} on {entry.target}): {error}") from error
    return runs


def prepare_checkpoint(
    ckpt: str,
    targets: Sequence[Target],
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    name: str | None = None,
    source: str | None = None,
    **overrides: Any,
) -> list[Run]:
    """The runs of one checkpoint on these targets, named as the checkpoint says unless told otherwise."""
    backbone = load_backbone(ckpt, arch=arch, arch_args=arch_args or None)
    runs = []
    for number, target in enumerate(targets, start=1):
        entry = PlanEntry(
            backbone=name or backbone.name,
            target=target.name,
            checkpoint=ckpt,
            source=source or backbone.source,
            architecture=arch or "",
            arch_args=dict(arch_args or {}),
            number=number,
        )
        runs.append(Run(entry, target, settle(target, **overrides)))
    return runs


def run_all(
    runs: Sequence[Run], results: ResultStore, *, seed: int = 0, curves: Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Do the runs in their order, append the rows of each as it ends, leave out what the results have already.

    curves: folder for one CSV a run. options: those of `finetune` that concern the machine. One dict a run:
    backbone, target, source, params, state ("done" or "already there"), and the test metrics and seconds if done.
    """
    outcomes = []
    for run in runs:
        entry = run.entry
        outcome: dict[str, Any] = {
            "backbone": entry.backbone,
            "target": run.target.name,
            "source": entry.source,
            "params": _params(run.target, run.settings),
            "state": "already there",
        }
        outcomes.append(outcome)
        if run.is_done(results, seed):
            say(f"already there: {entry.backbone} on {run.target.name}, {outcome['params']}, seed {seed}")
            continue
        rows = finetune(
            entry.checkpoint,
            run.target,
            arch=entry.architecture or None,
            arch_args=entry.arch_args or None,
            backbone_name=entry.backbone,
            source=entry.source,
            settings=run.settings,
            seed=seed,
            curve=curves / f"{entry.backbone}-{run.target.name}-seed{seed}.csv" if curves else None,
            **options,
        )
        results.append(rows)
        shown = rows[rows["split"] != "val"]
        outcome.update(state="done", **dict(zip(shown["metric"], shown["value"], strict=True)))
    return outcomes


def _as_embedded(stored: Target, loaded: Target, store: EmbeddingStore) -> Target:
    """The stored table with the loaded target's folder, if both say the same of the stored images."""
    position = {str(name): i for i, name in enumerate(loaded.image_id)}
    try:
        rows = np.array([position[str(name)] for name in stored.image_id], np.int64)
    except KeyError as error:
        raise DataError(f"image {error} of the store '{store.path}' is not in the target any more") from None
    now = replace(loaded.take(rows), dropped=stored.dropped)
    if now.fingerprint != replace(stored, root=None).fingerprint:
        raise DataError(
            f"labels, classes or splits of target '{loaded.name}' have changed since it was embedded into "
            f"'{store.path}': embed it again, or restore them"
        )
    return now


def _params(target: Target, settings: Settings) -> str:
    return settings.params + (f";dropped={target.dropped}" if target.dropped else "")


def _metrics(target: Target) -> tuple[str, ...]:
    return MULTI_LABEL_METRICS if target.multi_label else SINGLE_LABEL_METRICS


def _start_head(network: nn.Module, zero: bool) -> None:
    """Zeros, or the random default of the head's own layers, whatever the network's author chose."""
    for layer in head_of(network).modules():
        if zero:
            for p in layer.parameters(recurse=False):
                nn.init.zeros_(p)
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]


def _fit(
    network: nn.Module,
    target: Target,
    settings: Settings,
    normalise: Normaliser,
    micro: int,
    seed: int,
    workers: int,
    cache_bytes: int,
    what: str,
) -> tuple[list[float], float]:
    """Train; (loss of each step, seconds)."""
    rule, schedule = PRESETS[settings.preset], settings.schedule
    rows = target.rows("train")
    images = Images(_paths(target, rows), _resize(settings.resize, rule.square), cache_bytes, target.pixels)
    images.load(f"decode {target.name}")
    labels = torch.from_numpy(target.labels[rows])
    weights = None
    if settings.oversample:
        weights = 1.0 / np.bincount(labels.numpy())[labels.numpy()]
        weights /= weights.sum()
    optimizer = torch.optim.SGD(network.parameters(), lr=schedule.base_lr, momentum=0.9, nesterov=rule.nesterov)
    trainer = Trainer(network, optimizer, normalise, micro, agc=rule.agc)
    batches = Batches(
        images,
        _random_crop(settings.crop, settings.hflip, len(normalise.mean)),
        settings.batch_size,
        seed,
        weights,
    )
    losses: list[float] = []
    started = time.perf_counter()
    network.train()
    with progress(f"fine-tune {what}", schedule.steps * settings.batch_size, "images") as advance:
        for pixels, taken in loader(batches, range(schedule.steps), workers, normalise.device):
            step = len(losses)
            mix = None
            if settings.mixup > 0:
                rng = np.random.default_rng([seed, 2, step])
                share = float(rng.beta(settings.mixup, settings.mixup))
                mix = (share, torch.from_numpy(rng.permutation(len(taken))))
            loss = trainer.step(pixels, labels[taken], schedule.lr(step), mix)
            if not math.isfinite(loss):
                raise DataError(
                    f"fine-tuning {what}: the loss became {loss} at step {step} (lr {schedule.lr(step):g}): "
                    f"try a smaller --base-lr (now {schedule.base_lr:g}) or --preset paper, which clips gradients"
                )
            losses.append(loss)
            advance(settings.batch_size)
    return losses, time.perf_counter() - started


def _score(
    network: nn.Module,
    target: Target,
    split: str,
    settings: Settings,
    normalise: Normaliser,
    batch_size: int,
    workers: int,
) -> list[dict[str, Any]]:
    rows = target.rows(split)
    images = Images(_paths(target, rows), _resize(settings.crop, square=True), pixels=target.pixels)
    scores = predict(network, images, _to_pixels(len(normalise.mean)), normalise, batch_size, workers)
    labels = target.labels[rows]
    groups = None if target.patient is None else target.patient[rows]
    # One-vs-rest AUCs rank one image's score against another's: probabilities, as for the probes.
    ranked = scores if target.multi_label else softmax(scores)
    return [{"split": split, **row} for row in measure_split(_metrics(target), ranked, labels, groups=groups)]


def _resize(size: int, square: bool) -> Callable[[Image.Image], Image.Image]:
    """To size × size, or the shorter side to `size`; bilinear, antialiased by Pillow."""

    def resize(image: Image.Image) -> Image.Image:
        scale = size / min(image.size)
        wide, high = (size, size) if square else (max(size, round(s * scale)) for s in image.size)
        return image.resize((wide, high), Image.Resampling.BILINEAR)

    return resize


def _random_crop(size: int, hflip: float, channels: int) -> Transform:
    """A random square, mirrored with probability `hflip`; draws from `random`, which `Batches` seeds for each image."""

    to_pixels = _to_pixels(channels)

    def crop(image: Image.Image) -> Tensor:
        left, top = (random.randint(0, side - size) for side in image.size)
        square = image.crop((left, top, left + size, top + size))
        mirrored = random.random() < hflip
        return to_pixels(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else square)

    return crop


def _to_pixels(channels: int) -> Transform:
    """RGB image -> (channels, h, w) uint8; one channel = grey, for networks that see nothing else."""

    def convert(image: Image.Image) -> Tensor:
        if channels == 1:
            return torch.from_numpy(np.array(image.convert("L"), dtype=np.uint8))[None]
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)

    return convert


def _write_curve(path: Path, schedule: Schedule, losses: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "lr", "loss"])
        writer.writerows([step, f"{schedule.lr(step):.6g}", f"{loss:.6g}"] for step, loss in enumerate(losses))
