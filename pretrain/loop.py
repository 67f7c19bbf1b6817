"""The loop: train, validate, write checkpoints, go on exactly where a run was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint import CheckpointException

from fastxfer import __version__, metrics
from fastxfer.batches import Batches, Group, Images, Transform, key_of, loader
from fastxfer.errors import DataError, UsageError
from fastxfer.progress import progress, say
from fastxfer.ranks import cores_here
from fastxfer.stopping import stop_signals
from fastxfer.targets.table import Target
from fastxfer.training import Normaliser, is_out_of_memory, loss_sum, predict
from pretrain.augment import eval_transform, preprocessing, train_transform
from pretrain.checkpoint import REST, Shelf, read_checkpoint
from pretrain.log import Log, telling
from pretrain.mixing import check_pairs, draw_mix
from pretrain.ranks import agreed, check_shares, gathered, joined
from pretrain.recipe import Recipe
from pretrain.schedule import schedule_of
from pretrain.source import Source, head_size, open_source, read_archives
from pretrain.state import State, create_network

UNTRAINED = "untrained"


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
    keep: int = 2,
    cache_bytes: int = 1 << 30,
    on_step: Callable[[int], None] | None = None,
    logs: Sequence[Log] = (),
) -> dict[str, Any]:
    """Train the recipe's network on the target's train split; write the checkpoint `out`; return what came of it.

    Under torchrun or srun all processes call it and make each batch together; the first alone writes and tells.

    resume:           go on from the newest good checkpoint; begin where there is none (so that a job that is requeued has
                      one command line)
    untrained:        write the randomly initialised network that the same seed starts from, train nothing
    workers:          loader processes; None = the cores less one, eight at most where all images are in memory
    checkpoint_every: also write a checkpoint every so many steps, not only after an epoch; 0 = epochs only
    keep:             how many of the last checkpoints stay, see `Shelf`; the best by validation always does
    on_step:          called with the number of finished steps, after each
    logs:             told of every step and validation

    `UsageError` where `out` exists and nobody said what to do, on `resume` with another recipe, or for more processes than
    images of a batch; `DataError` for a source without train images, or where memory runs out; `DivergedError` if the loss
    becomes NaN. SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C write a checkpoint, then see `Stop`: KeyboardInterrupt.
    """
    shelf = Shelf(out, keep)
    there = next(iter([path for path in (out,) if path.exists()] + shelf.older()), None)
    if there is not None and not (resume or overwrite):
        raise UsageError(f"'{there}' exists: --resume goes on from it, --overwrite replaces it")
    source = open_source(
        target, recipe.classes, name=recipe.source_name, val_fraction=recipe.val_fraction, seed=recipe.seed
    )
    with joined(device) as (group, on), torch.random.fork_rng([on] if on.type == "cuda" else []):
        check_shares(group, recipe.batch_size, source.train.paths)
        check_pairs(recipe, group)
        run = _Run(recipe, source, shelf, group, on)
        if untrained:
            run.save(trained=False)
            run.say(f"wrote '{out}': {run.name}, {run.parameters:,} weights, untrained")
            return run.summary()
        found = agreed(group, run.shelf.newest) if resume else None
        if found is not None:
            run.restore(found)
        elif group.rank == 0:
            run.shelf.clear()
        run.train(workers, cache_bytes, checkpoint_every, on_step, logs)
        return run.summary()


class _Run:
    def __init__(self, recipe: Recipe, source: Source, shelf: Shelf, group: Group, device: torch.device) -> None:
        self.recipe, self.source, self.shelf, self.group = recipe, source, shelf, group
        self.name, self.args = recipe.architecture
        torch.manual_seed(recipe.seed)
        self.num_classes = head_size(recipe, source)
        network = create_network(recipe, self.num_classes)
        self.parameters = sum(p.numel() for p in network.parameters())
        config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        self.preprocessing = preprocessing(recipe, config)
        self.size = self.preprocessing["input_size"][1]
        self.normalise = Normaliser(
            tuple(self.preprocessing["mean"]),
            tuple(self.preprocessing["std"]),
            device,
            torch.channels_last if recipe.channels_last else torch.contiguous_format,
        )
        self.state = State(network, recipe, group, self.normalise)
        n = len(source.train)
        self.batch_size = recipe.batch_size
        self.steps = max(1, math.ceil(recipe.epochs * n / self.batch_size))
        self.schedule = schedule_of(recipe, n, self.steps)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.window: list[float] = []  # losses since the last line of the history

    @property
    def judged(self) -> str:
        """The number of the history by which one checkpoint is better than another."""
        return "val_auc" if self.source.val.labels.ndim == 2 else "val_accuracy"

    def say(self, message: str) -> None:
        """The first process speaks for all."""
        if self.group.rank == 0:
            say(message)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, trained: bool = True, best: bool = False) -> None:
        meta = {
            "architecture": self.name,
            "arch_args": self.args,
            "source": self.source.name if trained else UNTRAINED,
            **self.preprocessing,
            "num_classes": self.num_classes,
            "class_names": list(self.source.class_names),
            "multi_label": self.source.train.labels.ndim == 2,
            "epoch": self.step * self.batch_size / len(self.source.train),
            "step": self.step,
            "seed": self.recipe.seed,
            "ema": self.recipe.ema,
            "fastxfer": __version__,
        }
        training = {
            "recipe": self.recipe.plain(),
            "images": len(self.source.train),
            "history": self.history,
            "window": self.window,
            "seconds": self.seconds,
            "scaler": self.state.trainer.scaler.state_dict(),
        }
        if self.recipe.sharded_checkpoints and self.step < self.steps and trained:
            self.shelf.put_shares(
                self.state.shares(), {"meta": meta, "training": training}, self.step, self.group, best
            )
            return
        state = self.state.whole()
        if self.group.rank == 0:
            self.shelf.put({**state, "meta": meta, "training": training}, self.step, best)

    def restore(self, path: Path) -> None:
        content = read_checkpoint(path / REST if path.is_dir() else path)
        training, meta = content["training"], content["meta"]
        changed = self.recipe.changed(training["recipe"])
        if changed:
            raise UsageError(
                f"--resume: '{path}' was begun with another recipe: {', '.join(changed)}. "
                "Give the same options, or another --out"
            )
        if meta["source"] == UNTRAINED:
            raise UsageError(f"--resume: '{path}' is an untrained network's checkpoint: give another --out")
        if training["images"] != len(self.source.train) or meta["class_names"] != list(self.source.class_names):
            raise DataError(
                f"--resume: '{path}' was begun on {training['images']} images of the source, "
                f"which now has {len(self.source.train)}, or on other classes"
            )
        try:
            if path.is_dir():
                self.state.load_shares(path)
            else:
                self.state.load(content)
        except (DataError, CheckpointException) as error:
            raise DataError(
                f"--resume: the weights of '{path}' do not fit {self.name} as this timm makes it "
                f"({error}): give the timm that began the run, or another --out"
            ) from error
        self.state.trainer.scaler.load_state_dict(training["scaler"])
        self.step = meta["step"]
        self.shelf.step = self.step if path == self.shelf.out else None
        self.history, self.window = training["history"], training["window"]
        self.seconds = training["seconds"]
        if self.recipe.sharded_checkpoints and len(self.source.val) and self.history:
            self.shelf.best_step = max(self.history, key=lambda line: float(line[self.judged]))["step"]
        self.say(
            f"going on from step {self.step:,} of {self.steps:,}" if self.step < self.steps else "already finished"
        )

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
        source, recipe, group, first = self.source, self.recipe, self.group, self.group.rank == 0
        n = len(source.train)
        self.say(
            f"pre-training {recipe.arch} ({self.parameters:,} weights) on {source.name}: {n:,} images, "
            f"{len(source.class_names)} classes, {self.size} pixels, {self.steps:,} steps of {self.batch_size} "
            f"on {self.normalise.device}{f' and {group.count - 1} more ({recipe.parallel})' if group.count > 1 else ''}"
        )
        if not len(source.val):
            self.say("no val split, and nothing held out: no validation; the last checkpoint is the result")
        if source.held_out:
            self.say(f"no val split: {len(source.val):,} train images held out for validation (seed {recipe.seed})")
        read_archives(source)
        images, val = (
            Images(part.paths, cache_bytes=cache_bytes, pixels=part.pixels) for part in (source.train, source.val)
        )
        in_memory = images.load("decode train", first) and val.load("decode val", first)
        if workers is None:  # augmentation costs a tenth of a small network's step: it is done beside it
            workers = max(cores_here() - 1, 1)
            workers = min(workers, 8) if in_memory else workers
        self.val_workers = 0 if in_memory else workers
        interpolation, crop_pct = self.preprocessing["interpolation"], self.preprocessing["crop_pct"]
        transform = train_transform(recipe, self.size, interpolation)
        batches = Batches(images, transform, self.batch_size, recipe.seed, group=group)
        evaluation = eval_transform(self.size, interpolation, crop_pct)
        labels = torch.from_numpy(source.train.labels)
        self.state.network.train()
        stream = loader(batches, range(self.step, self.steps), workers, self.normalise.device)
        with (
            telling(logs if first else (), self.step, self.steps) as told,
            stop_signals() as signals,
            progress(
                f"pretrain {recipe.arch}",
                self.steps * self.batch_size,
                "images",
                before=self.step * self.batch_size,
                shown=first,
            ) as advance,
        ):
            # Clock of this process; what ran before is added.
            before, started = self.seconds, time.perf_counter()
            shown, last = (started, self.step), started
            for pixels, rows in stream:
                lr = self.schedule.lr(self.step)
                # What the network itself draws (dropout, stochastic depth) depends on seed, step and process alone.
                self._seed(key_of("step", recipe.seed, self.step, group.rank))
                loss = self._step(pixels, labels[rows], lr)
                if not math.isfinite(loss):
                    raise DivergedError(self._divergence(loss, lr, rows))
                self.window.append(loss)
                self.step += 1
                self.state.average(self.step)
                advance(self.batch_size, f"loss {loss:.4g}")
                now = time.perf_counter()
                for log in told:
                    log.on_step(self.step, loss, lr, self.batch_size / max(now - last, 1e-9))
                last = now
                if on_step is not None:
                    on_step(self.step)
                done = self.step * self.batch_size
                epoch_over = done // n > (done - self.batch_size) // n or self.step == self.steps
                best = False
                if epoch_over:
                    rate = (self.step - shown[1]) * self.batch_size / max(time.perf_counter() - shown[0], 1e-9)
                    best = self._validate(val, evaluation, lr, rate)
                    for log in told:
                        log.on_validation(self.step, self.history[-1])
                stop = group.any(signals.asked())
                if epoch_over or stop or (checkpoint_every and self.step % checkpoint_every == 0):
                    self.seconds = before + time.perf_counter() - started
                    self.save(best=best)
                if epoch_over:
                    shown = (time.perf_counter(), self.step)
                if stop and self.step < self.steps:
                    self.say(
                        f"asked to stop at step {self.step:,} of {self.steps:,}: a checkpoint is written, --resume goes on"
                    )
                    signals.answer()

    def _seed(self, key: int) -> None:
        """As `torch.manual_seed`, which takes a millisecond: it notes the caller's stack for devices that aren't there."""
        torch.default_generator.manual_seed(key)
        if self.normalise.device.type == "cuda":
            torch.cuda.manual_seed(key)

    def _step(self, pixels: torch.Tensor, labels: torch.Tensor, lr: float) -> float:
        trainer = self.state.trainer
        mix = draw_mix(self.recipe, self.step, len(labels), self.size)
        mixed = None if mix is None else (mix.share, mix.partner)
        try:
            return trainer.step(pixels, labels, lr, mixed, mix.box if mix else None, self.batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        tried = min(trainer.micro_batch, len(labels))
        fitting = tried // 2
        if self.group.count == 1 or self.recipe.parallel == "ddp":  # shares of weights are gathered by all or nobody
            while fitting and not trainer.fits(pixels[:fitting], labels[:fitting]):
                fitting //= 2
        advice = (
            f"--micro-batch {fitting} fits and leaves batch and result as they are"
            if fitting
            else "even one image does not fit: a smaller --image-size or --arch"
        )
        raise DataError(
            f"the memory of {self.normalise.device} does not hold {tried} images of {self.size} pixels at once: {advice}. "
            "--checkpoint-activations and --precision bf16 need less for each"
        )

    def _validate(self, val: Images, transform: Transform, lr: float, rate: float) -> bool:
        """Add a line to the history; whether it is the best so far. Without images to validate on, none is."""
        line: dict[str, Any] = {
            "epoch": self.step * self.batch_size / len(self.source.train),
            "step": self.step,
            "lr": lr,
            "loss": float(np.mean(self.window)),
            "images_per_second": rate,
        }
        said = f"epoch {line['epoch']:.1f}/{self.recipe.epochs:g}: loss {line['loss']:.4f}"
        best = False
        if len(val):
            line |= self._scores(val, transform)
            judged = self.judged
            best = line[judged] > max((earlier[judged] for earlier in self.history), default=-math.inf)
            said += f", val loss {line['val_loss']:.4f}, {judged.replace('_', ' ')} {line[judged]:.3f}"
        self.window = []
        self.history.append(line)
        self.say(f"{said}, lr {lr:.3g}, {rate:,.0f} images/s")
        return best

    def _scores(self, val: Images, transform: Transform) -> dict[str, float]:
        labels = self.source.val.labels
        # As many in every process: sharded weights are gathered by all together.
        each = -(-len(val) // self.group.count)
        rows = [min(i, len(val) - 1) for i in range(self.group.rank * each, (self.group.rank + 1) * each)]
        size = min(256, self.batch_size)
        logits = predict(self.state.result, val, transform, self.normalise, size, self.val_workers, rows)
        logits = np.concatenate(gathered(self.group, logits))[: len(val)]
        total, count = loss_sum(torch.from_numpy(logits), torch.from_numpy(labels))
        scores = {"val_loss": float(total / count.clamp(min=1))}
        for metric in ("auc",) if labels.ndim == 2 else ("accuracy", "balanced_accuracy"):
            scores[f"val_{metric}"] = float(metrics.METRICS[metric](logits, labels))
        return scores

    def _divergence(self, loss: float, lr: float, rows: NDArray[np.int64]) -> str:
        paths = [str(self.source.train.paths[r]) for r in rows[:3]]
        kept = f"'{self.shelf.out}' holds the last good epoch" if self.history else "no checkpoint was written yet"
        return (
            f"the loss became {loss} at step {self.step:,} (lr {lr:.3g}; the batch begins with {', '.join(paths)}). "
            f"Try a smaller --lr (now {self.recipe.lr:g}), more --warmup-epochs, or --agc 0.01; {kept}"
        )

    def summary(self) -> dict[str, Any]:
        """What came of it, as plain values."""
        last = self.history[-1] if self.history else {}
        return {
            "checkpoint": str(self.shelf.out),
            "source": self.source.name if self.step else UNTRAINED,
            "architecture": self.name,
            "arch_args": self.args,
            "parameters": self.parameters,
            "classes": list(self.source.class_names),
            "train_images": len(self.source.train),
            "val_images": len(self.source.val),
            "steps": self.step,
            "epochs": self.step * self.batch_size / len(self.source.train),
            "seconds": self.seconds,
            "images_per_second": self.step * self.batch_size / self.seconds if self.seconds else None,
            **{k: v for k, v in last.items() if k.startswith("val_") or k == "loss"},
            "history": self.history,
        }
