"""One fine-tuning done: trained to its end, or to where it is told to stop; scored."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fastxfer.backbones import Backbone, load_backbone
from fastxfer.batches import Batches, Images, loader
from fastxfer.embed.forward import device_of
from fastxfer.errors import DataError, UsageError, first_line
from fastxfer.finetune import state as states
from fastxfer.finetune.build import chances, images_a_problem, make_network, make_optimizer, mixing
from fastxfer.finetune.cost import Meter, forward_flops
from fastxfer.finetune.head import start_at_probe, start_head
from fastxfer.finetune.images import pipeline
from fastxfer.finetune.run import Machine, Outcome, Run, cost_rows
from fastxfer.finetune.state import State
from fastxfer.finetune.task import Part
from fastxfer.hyperrule import PRESETS, before_crop
from fastxfer.influences import Influences
from fastxfer.metrics import measure, softmax
from fastxfer.progress import progress, say
from fastxfer.results import CELL, complete
from fastxfer.statistics import measure_split
from fastxfer.stopping import stop_signals
from fastxfer.training import Normaliser, Trainer, is_out_of_memory, predict

# Pixels a forward pass: 64 images at 128 or 4 at 480, the paper's own micro-batches.
MICRO_BATCH_PIXELS = 1 << 20


def train(
    run: Run,
    machine: Machine,
    *,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    until: int | None = None,
    stop: Callable[[int], bool] = lambda images: False,
) -> Outcome:
    """Do a run, or go on with it from `checkpoint`; with `until`, up to that step, where it is scored on val.

    checkpoint: file for the run's state, written now and then, at a pause and on a signal; removed at the end
    curve:      CSV to write: step, lr, loss, and what was measured on the way
    stop:       asked after each step with the number of images that this call has trained on; True = pause here

    A signal to stop (`fastxfer.stopping`) finishes the step, writes the checkpoint and raises KeyboardInterrupt.
    """
    device = device_of(machine.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(run.task.stream)
        return _Training(run, machine, device, checkpoint).go(curve, until, stop)


class _Training:
    """A run with its network in memory."""

    def __init__(self, run: Run, machine: Machine, device: torch.device, checkpoint: Path | None) -> None:
        entry, task, settings = run.entry, run.task, run.settings
        rule = PRESETS[settings.preset]
        backbone = load_backbone(entry.checkpoint, arch=entry.architecture or None, arch_args=entry.arch_args or None)
        if settings.crop == 0:
            size = backbone.preprocessing.input_size[1]
            settings = replace(settings, resize=before_crop(size) if settings.augment == "crop" else 0, crop=size)
        self.run, self.task, self.settings, self.machine, self.device = run, task, settings, machine, device
        self.checkpoint = checkpoint
        self.network = make_network(entry, task.n_classes, rule.drop_path)
        self.input_size = (backbone.preprocessing.input_size[0], settings.crop, settings.crop)
        half = (0.5,) * self.input_size[0]
        wanted = backbone.preprocessing
        statistics = (wanted.mean, wanted.std) if settings.normalise == "source" else (half, half)
        self.normalise = Normaliser(*statistics, device=device)
        self.pipeline = pipeline(settings, wanted)
        self.micro = machine.micro_batch or max(1, MICRO_BATCH_PIXELS // settings.crop**2)
        self.images: dict[str, Images] = {}
        start_head(self.network, "random" if settings.head == "random" else "zero")
        self.network.to(device)
        self._check_forward(backbone)
        self.optimizer = make_optimizer(self.network, settings)
        self.identity = self._identity(backbone)
        content = states.load(checkpoint, self.identity) if checkpoint else None
        if content:
            self.state = states.restore(content, self.network, self.optimizer, device)
        else:
            self.state = State()
            if settings.head == "probe":
                l2 = settings.head_l2 or 1 / images_a_problem(task)
                start_at_probe(self.network, task, self.pipeline, self.normalise, l2, self.micro)
                self.state.cost.images_scored += len(task.train.rows)
        self.meter = Meter(self.state.cost, device)

    def _check_forward(self, backbone: Backbone) -> None:
        """Before any image is decoded: whether the network takes images of this size at all."""
        training = self.network.training
        try:
            with torch.no_grad():
                self.network.eval()(torch.zeros(1, *self.input_size, device=self.device))
        except (RuntimeError, AssertionError, ValueError) as error:
            own = backbone.preprocessing.input_size[1]
            raise UsageError(
                f"{self.run.entry.backbone} does not take images of {self.settings.crop} pixels "
                f"({first_line(error)}): give --image-size {own}, its own, or another that it takes"
            ) from None
        finally:
            self.network.train(training)

    def _identity(self, backbone: Backbone) -> str:
        task = self.task
        train = task.train
        return states.digest(
            backbone.weights_sha256,
            self.run.params,
            task.stream,
            *task.target.image_id[train.rows],
            train.labels.tobytes(),
        )

    # -- training ---------------------------------------------------------------------------------------------------

    def go(self, curve: Path | None, until: int | None, stop: Callable[[int], bool]) -> Outcome:
        state, settings, task = self.state, self.settings, self.task
        last = min(until or settings.schedule.steps, settings.schedule.steps)
        say(
            f"{'going on with' if state.step else 'fine-tuning'} {self.run.title}: {self.run.params}, seed {task.seed}, "
            f"on {self.device}" + (f", from step {state.step:,}" if state.step else "")
        )
        paused, before = False, state.cost.images
        with stop_signals() as signals:
            while state.step < last and not paused:
                paused = self._steps(last, stop, signals.asked)
                if signals.asked():
                    self._save()
                    kept = "; its checkpoint is kept: the same command goes on from there" if self.checkpoint else ""
                    say(f"stopped {self.run.title} at step {state.step:,} of {settings.schedule.steps:,}{kept}")
                    signals.answer()  # KeyboardInterrupt, unless somebody has handled it
                    paused = False
        finished = not paused and state.step == settings.schedule.steps
        rows, influences = self._rows() if finished else (None, None)
        if not finished and not paused and task.val is not None:
            self._watch(task.val)
        if not finished:
            self._save()
        if curve is not None:
            self._write_curve(curve)
        return Outcome(state, state.cost.images - before, rows, influences)

    def _steps(self, last: int, stop: Callable[[int], bool], stopped: Callable[[], bool]) -> bool:
        """Train up to step `last`; True if it was asked to stop before."""
        run, task, settings, state, machine = self.run, self.task, self.settings, self.state, self.machine
        rule, schedule = PRESETS[settings.preset], settings.schedule
        images = self.pipeline.train_images(task.target, task.train.rows, machine.cache_bytes)
        images.load(f"decode {task.target.name}")
        labels = torch.from_numpy(task.train.labels)
        trainer = Trainer(
            self.network, self.optimizer, self.normalise, self.micro, agc=rule.agc, smoothing=rule.smoothing
        )
        batches = Batches(images, self.pipeline.train, settings.batch_size, task.stream, chances(task, settings))
        begun, saved = state.step, time.monotonic()
        watched, every = settings.watched
        part = task.val if watched == "val" else task.scored[-1]
        self._train_mode()
        done, total = begun * settings.batch_size, last * settings.batch_size
        with progress(f"fine-tune {run.title}", total, "images", before=done) as advance:
            stream = iter(loader(batches, range(begun, last), machine.workers, self.device))
            for step in range(begun, last):
                with self.meter(seconds=True):
                    pixels, taken = next(stream)
                    mix = mixing(settings, task.stream, step, len(taken))
                    loss = self._step(trainer, pixels, labels[taken], schedule.lr(step), mix)
                if not math.isfinite(loss):
                    raise DataError(
                        f"fine-tuning {run.title}: the loss became {loss} at step {step} (lr {schedule.lr(step):g}): "
                        f"try a smaller --base-lr (now {schedule.base_lr:g}) or --preset paper, which clips gradients"
                    )
                state.losses.append(loss)
                state.step = step + 1
                state.cost.images += len(taken)
                advance(len(taken))
                if every and part is not None and state.step % every == 0 and state.step < schedule.steps:
                    self._watch(part)
                    self._train_mode()
                if stopped() or (state.step < last and stop((state.step - begun) * settings.batch_size)):
                    return True
                late = time.monotonic() - saved > machine.save_seconds
                if late or (machine.save_steps and state.step % machine.save_steps == 0):
                    self._save()
                    saved = time.monotonic()
        return False

    def _train_mode(self) -> None:
        self.network.train()
        for module in self.network.modules() if self.settings.frozen_norm else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _step(self, trainer: Trainer, *batch: Any) -> float:
        try:
            return trainer.step(*batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DataError(
                f"fine-tuning {self.run.title}: a forward and backward pass of {self.micro} images is more than the memory "
                f"holds: give --micro-batch {max(1, self.micro // 2)} (the result stays the same), or a smaller --image-size"
            ) from None

    def _save(self) -> None:
        if self.checkpoint is not None:
            states.save(self.checkpoint, self.identity, self.state, self.network, self.optimizer, self.device)

    # -- scoring ----------------------------------------------------------------------------------------------------

    def _scores(self, part: Part) -> Any:
        """(n_images, n_classes): probabilities, or logits of several labels, which rank as they are."""
        if part.split not in self.images:
            self.images[part.split] = self.pipeline.evaluation_images(
                self.task.target, part.rows, self.machine.cache_bytes // 2
            )
            if self.settings.watched[0] == part.split and self.settings.watched[1]:
                self.images[part.split].load(f"decode {self.task.target.name}, {part.split}")
        with self.meter(seconds=False):
            logits = predict(
                self.network,
                self.images[part.split],
                self.pipeline.evaluation,
                self.normalise,
                self.micro,
                self.machine.workers,
            )
        self.state.cost.images_scored += len(part.rows)
        return logits if self.task.multi_label else softmax(logits)

    def _watch(self, part: Part) -> None:
        """Score a split on the way, once a step."""
        if any(s["step"] == self.state.step and s["split"] == part.split for s in self.state.scores):
            return
        scores = self._scores(part)
        values = {m: float(measure(m, scores, part.labels)[0]) for m in self.task.metrics}
        self.state.scores.append({"step": self.state.step, "split": part.split, **values})
        first = self.task.metrics[0]
        say(f"{self.run.title}, step {self.state.step:,}: {part.split} {first.replace('_', ' ')} {values[first]:.4f}")

    def _rows(self) -> tuple[pd.DataFrame, Influences]:
        task, cost = self.task, self.state.cost
        rows: list[dict[str, Any]] = []
        influences = Influences(task.target)
        episodes = None if task.interval else np.array([task.episode])
        for part in task.scored:
            scores = self._scores(part)
            patient = task.target.patient
            if task.interval:
                groups = None if patient is None else patient[part.rows]
                found = measure_split(task.metrics, scores, part.labels, groups=groups)
            else:
                found = [
                    {"metric": m, "value": float(value), "undefined": int(undefined), "n_queries": len(part.rows)}
                    for m in task.metrics
                    for value, undefined in [measure(m, scores, part.labels)]
                ]
            for row in found:
                cell = tuple({**self.run.key(), "split": part.split, **row}[name] for name in CELL)
                value = np.array([row["value"]])
                influences.add(cell, scores[None], part.labels, value, part.rows[None], episodes, task.sampling)
            rows += [{"split": part.split, **row} for row in found]
            values = {row["metric"]: row["value"] for row in found}
            self.state.scores.append({"step": self.state.step, "split": part.split, **values})
        cost.flops = forward_flops(self.network, self.input_size) * (3 * cost.images + cost.images_scored)
        rows += cost_rows(self.state)
        return complete(pd.DataFrame([{**self.run.key(), **row} for row in rows])), influences

    def _write_curve(self, path: Path) -> None:
        measured = {m: [""] * self.state.step for m in ("split", *self.task.metrics)}
        # Of several splits at one step, the end, the one that was watched.
        for score in sorted(self.state.scores, key=lambda score: score["split"] == self.settings.watched[0]):
            for name in measured:
                measured[name][score["step"] - 1] = score[name] if name == "split" else f"{score[name]:.6g}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "lr", "loss", *measured])
            for step, loss in enumerate(self.state.losses):
                writer.writerow(
                    [
                        step,
                        f"{self.settings.schedule.lr(step):.6g}",
                        f"{loss:.6g}",
                        *(m[step] for m in measured.values()),
                    ]
                )
