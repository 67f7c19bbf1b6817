"""The loop: train, validate, write checkpoints, go on exactly where a run was stopped."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from fastxfer import __version__, metrics
from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.progress import progress, say
from fastxfer.targets.table import Target
from fastxfer.training import Batches, Images, Normaliser, Trainer, choose_device, loader, loss_sum, predict
from pretrain.augment import eval_transform, train_transform
from pretrain.checkpoint import read_checkpoint, write_checkpoint
from pretrain.log import Log
from pretrain.recipe import ARCHITECTURES, Recipe
from pretrain.schedule import Schedule
from pretrain.source import Source, open_source

UNTRAINED = "untrained"
TINY_SIZE = 32


class DivergedError(DataError):
    """The loss is no number any more."""


def pretrain(
    recipe: Recipe,
    target: Target,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    untrained: bool = False,
    workers: int | None = None,
    device: str = "auto",
    checkpoint_every: int = 0,
    cache_bytes: int = 1 << 30,
    on_step: Callable[[int], None] | None = None,
    logs: Sequence[Log] = (),
) -> dict[str, Any]:
    """Train the recipe's network on the target's train split; write the checkpoint `out`; return what came of it.

    resume:           go on from `out`; without that file, begin (so that a job that is requeued has one command line)
    untrained:        write the randomly initialised network that the same seed starts from, train nothing
    workers:          loader processes; None = none where all images are in memory, else the cores less one
    checkpoint_every: also write a checkpoint every so many steps, not only after an epoch; 0 = epochs only
    on_step:          called with the number of finished steps, after each
    logs:             told of every step and validation

    `UsageError` where `out` exists and nobody said what to do, or on `resume` with another recipe; `DataError` for a
    source without train images; `DivergedError` if the loss becomes NaN. SIGTERM and Ctrl-C write a checkpoint, then
    raise KeyboardInterrupt.
    """
    if out.exists() and not (resume or overwrite):
        raise UsageError(f"'{out}' exists: --resume goes on from it, --overwrite replaces it")
    source = open_source(
        target, recipe.classes, name=recipe.source_name, val_fraction=recipe.val_fraction, seed=recipe.seed
    )
    with torch.random.fork_rng():
        run = _Run(recipe, source, out, choose_device(device))
        if untrained:
            run.save(trained=False)
            say(f"wrote '{out}': {run.name}, {run.parameters:,} weights, untrained")
            return run.summary()
        if resume and out.exists():
            run.restore(read_checkpoint(out))
        run.train(workers, cache_bytes, checkpoint_every, on_step, logs)
        return run.summary()


class _Run:
    def __init__(self, recipe: Recipe, source: Source, out: Path, device: torch.device) -> None:
        self.recipe, self.source, self.out, self.device = recipe, source, out, device
        self.name, self.args = recipe.architecture
        torch.manual_seed(recipe.seed)
        self.network = _create(self.name, self.args, len(source.class_names)).to(device)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        config: dict[str, Any] = self.network.pretrained_cfg  # type: ignore[assignment]
        self.size = recipe.image_size or (TINY_SIZE if recipe.arch in ARCHITECTURES else config["input_size"][1])
        self.preprocessing = {
            "input_size": [3, self.size, self.size],
            "mean": list(recipe.mean or config["mean"]),
            "std": list(recipe.std or config["std"]),
            "interpolation": config["interpolation"],
            # A crop of a picture this small would lose more than its border.
            "crop_pct": 1.0 if self.size <= 64 else config["crop_pct"],
        }
        n = len(source.train.paths)
        self.batch_size = recipe.batch_size
        self.steps = max(1, math.ceil(recipe.epochs * n / self.batch_size))
        self.schedule = _schedule(recipe, n, self.steps)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.schedule.lr(0),
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
        # Dropout and stochastic depth draw from here on; weights were drawn before.
        torch.manual_seed(recipe.seed + 1)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.window: list[float] = []  # losses since the last line of the history

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, trained: bool = True) -> None:
        meta = {
            "architecture": self.name,
            "arch_args": self.args,
            "source": self.source.name if trained else UNTRAINED,
            **self.preprocessing,
            "num_classes": len(self.source.class_names),
            "class_names": list(self.source.class_names),
            "multi_label": self.source.train.labels.ndim == 2,
            "epoch": self.step * self.batch_size / len(self.source.train.paths),
            "step": self.step,
            "seed": self.recipe.seed,
            "fastxfer": __version__,
        }
        training = {
            "recipe": self.recipe.plain(),
            "images": len(self.source.train.paths),
            "history": self.history,
            "window": self.window,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        content = {
            "model": self.network.state_dict(),
            "meta": meta,
            "optimizer": self.optimizer.state_dict(),
            "training": training,
        }
        write_checkpoint(self.out, content)

    def restore(self, content: dict[str, Any]) -> None:
        training, meta = content["training"], content["meta"]
        old, new = training["recipe"], self.recipe.plain()
        changed = [f"{k} ({old.get(k)!r} → {v!r})" for k, v in new.items() if old.get(k) != v]
        if changed:
            raise UsageError(
                f"--resume: '{self.out}' was begun with another recipe: {', '.join(changed)}. "
                "Give the same options, or another --out"
            )
        if meta["source"] == UNTRAINED:
            raise UsageError(f"--resume: '{self.out}' is an untrained network's checkpoint: give another --out")
        if training["images"] != len(self.source.train.paths) or meta["class_names"] != list(self.source.class_names):
            raise DataError(
                f"--resume: '{self.out}' was begun on {training['images']} images of the source, "
                f"which now has {len(self.source.train.paths)}, or on other classes"
            )
        self.network.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = meta["step"]
        self.history, self.window = training["history"], training["window"]
        self.seconds = training["seconds"]
        torch.set_rng_state(training["torch_rng"])
        if training["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(training["cuda_rng"], self.device)
        say(f"going on from step {self.step:,} of {self.steps:,}" if self.step < self.steps else "already finished")

    # -- training ---------------------------------------------------------------------------------------------------

    def train(
        self,
        workers: int | None,
        cache_bytes: int,
        checkpoint_every: int,
        on_step: Callable[[int], None] | None,
        logs: Sequence[Log],
    ) -> None:
        if self.step >= self.steps:
            return
        source, recipe = self.source, self.recipe
        n = len(source.train.paths)
        say(
            f"pre-training {recipe.arch} ({self.parameters:,} weights) on {source.name}: {n:,} images, "
            f"{len(source.class_names)} classes, {self.size} pixels, "
            f"{self.steps:,} steps of {self.batch_size} on {self.device}"
        )
        if source.held_out:
            say(f"no val split: {len(source.val.paths):,} train images held out for validation (seed {recipe.seed})")
        images, val = (
            Images(source.train.paths, cache_bytes=cache_bytes, pixels=source.train.pixels),
            Images(source.val.paths, cache_bytes=cache_bytes, pixels=source.val.pixels),
        )
        in_memory = images.load("decode train") and val.load("decode val")
        if workers is None:
            workers = 0 if in_memory else max((os.cpu_count() or 1) - 1, 1)
        normalise = Normaliser(tuple(self.preprocessing["mean"]), tuple(self.preprocessing["std"]), self.device)
        interpolation, crop_pct = self.preprocessing["interpolation"], self.preprocessing["crop_pct"]
        batches = Batches(images, train_transform(recipe, self.size, interpolation), self.batch_size, recipe.seed)
        evaluation = eval_transform(self.size, interpolation, crop_pct)
        labels = torch.from_numpy(source.train.labels)
        trainer = Trainer(
            self.network,
            self.optimizer,
            normalise,
            recipe.micro_batch or self.batch_size,
            agc=recipe.agc,
            smoothing=recipe.label_smoothing,
        )
        # Clock of this process; what ran before is added.
        before, started = self.seconds, time.perf_counter()
        shown = (started, self.step)
        self.network.train()
        stream = loader(batches, range(self.step, self.steps), workers, self.device)
        with (
            ExitStack() as ends,
            stop_signals() as stopped,
            progress(f"pretrain {recipe.arch}", self.steps * self.batch_size, "images") as advance,
        ):
            advance(self.step * self.batch_size)
            for log in logs:
                log.on_begin(self.step, self.steps)
                ends.callback(log.on_end)
            last = time.perf_counter()
            for pixels, rows in stream:
                lr = self.schedule.lr(self.step)
                loss = trainer.step(pixels, labels[rows], lr)
                if not math.isfinite(loss):
                    raise DivergedError(self._divergence(loss, lr, rows.numpy()))
                self.window.append(loss)
                self.step += 1
                advance(self.batch_size)
                now = time.perf_counter()
                for log in logs:
                    log.on_step(self.step, loss, lr, self.batch_size / max(now - last, 1e-9))
                last = now
                if on_step is not None:
                    on_step(self.step)
                done = self.step * self.batch_size
                epoch_over = done // n > (done - self.batch_size) // n or self.step == self.steps
                self.seconds = before + time.perf_counter() - started
                if epoch_over:
                    now = time.perf_counter()
                    rate = (self.step - shown[1]) * self.batch_size / max(now - shown[0], 1e-9)
                    self._validate(val, evaluation, normalise, lr, rate)
                    for log in logs:
                        log.on_validation(self.step, self.history[-1])
                    shown = (time.perf_counter(), self.step)
                if epoch_over or stopped() or (checkpoint_every and self.step % checkpoint_every == 0):
                    self.seconds = before + time.perf_counter() - started
                    self.save()
                if stopped() and self.step < self.steps:
                    say(
                        f"stopped at step {self.step:,} of {self.steps:,}; '{self.out}' is written, "
                        "--resume goes on from it"
                    )
                    raise KeyboardInterrupt

    def _validate(self, val: Images, transform: Any, normalise: Normaliser, lr: float, rate: float) -> None:
        logits = predict(self.network, val, transform, normalise, min(256, max(self.batch_size, 1)))
        labels = self.source.val.labels
        total, count = loss_sum(torch.from_numpy(logits), torch.from_numpy(labels))
        line: dict[str, Any] = {
            "epoch": self.step * self.batch_size / len(self.source.train.paths),
            "step": self.step,
            "lr": lr,
            "loss": float(np.mean(self.window)),
            "val_loss": float(total / count.clamp(min=1)),
            "images_per_second": rate,
        }
        for metric in ("auc",) if labels.ndim == 2 else ("accuracy", "balanced_accuracy"):
            line[f"val_{metric}"] = float(metrics.METRICS[metric](logits, labels))
        self.window = []
        self.history.append(line)
        quality = next(f"{k.replace('_', ' ')} {v:.3f}" for k, v in line.items() if k in ("val_auc", "val_accuracy"))
        say(
            f"epoch {line['epoch']:.1f}/{self.recipe.epochs:g}: loss {line['loss']:.4f}, "
            f"val loss {line['val_loss']:.4f}, {quality}, lr {lr:.3g}, {rate:,.0f} images/s"
        )

    def _divergence(self, loss: float, lr: float, rows: NDArray[np.int64]) -> str:
        paths = [str(self.source.train.paths[r]) for r in rows[:3]]
        kept = f"'{self.out}' holds the last good epoch" if self.history else "no checkpoint was written yet"
        return (
            f"the loss became {loss} at step {self.step:,} (lr {lr:.3g}; the batch begins with {', '.join(paths)}). "
            f"Try a smaller --lr (now {self.recipe.lr:g}), more --warmup-epochs, or --agc 0.01; {kept}"
        )

    def summary(self) -> dict[str, Any]:
        """What came of it, as plain values."""
        last = self.history[-1] if self.history else {}
        return {
            "checkpoint": str(self.out),
            "source": self.source.name if self.step else UNTRAINED,
            "architecture": self.name,
            "arch_args": self.args,
            "parameters": self.parameters,
            "classes": list(self.source.class_names),
            "train_images": len(self.source.train.paths),
            "val_images": len(self.source.val.paths),
            "steps": self.step,
            "epochs": self.step * self.batch_size / len(self.source.train.paths),
            "seconds": self.seconds,
            "images_per_second": self.step * self.batch_size / self.seconds if self.seconds else None,
            **{k: v for k, v in last.items() if k.startswith("val_") or k == "loss"},
            "history": self.history,
        }


def _create(name: str, args: dict[str, Any], num_classes: int) -> nn.Module:
    if not timm.is_model(name):
        raise UsageError(
            f"--arch '{name}' is neither an architecture of timm nor bit_tiny."
            f"{nearest(name, [*timm.list_models(), *ARCHITECTURES])}"
        )
    try:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **args)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise UsageError(f"--arch {name} does not take the arguments {args}: {error}") from error
    return network


def _schedule(recipe: Recipe, n: int, steps: int) -> Schedule:
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


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield ``stopped()``: whether SIGTERM or Ctrl-C has come. A second one is not held back any more.

    Only the main thread may handle signals; elsewhere nothing is caught.
    """
    import threading

    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    for s in previous:
        signal.signal(s, note)
    try:
        yield lambda: bool(came)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
