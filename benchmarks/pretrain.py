"""`fastxfer pretrain` against a bare training loop of the same network: images a second, goal 95 % of it and more.

`ours` is the documented function on files, by the median of a run's steps after the first: with order, augmentation,
schedule, progress and logs, but without decoding into memory, validation and checkpoints, which come once an epoch. `peer`
is forward, loss, backward and optimiser on batches that lie in memory as normalised floats, at the same batch size and number
of threads. Both in turn, medians. `ratio` is of wall time; `ratio_per_core` of the core seconds of the process that trains: the
loader process beside it (`workers`) has a core of its own, or on a busy machine has not.

* bit_tiny/none, bit_tiny/crop: 32 pixels, batches of 64; pictures of 40 pixels.
* bit_r50x1/crop: resnetv2_50x1_bit at 96 pixels, batches of 16; photographs with a shorter side of 128.

Checked: fed the same batches, the bare loop has the losses of ours over five steps, to 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.embeddings import REAL
from benchmarks.machine import rates
from fastxfer.batches import Batches, Images
from fastxfer.targets.table import Target
from fastxfer.training import Normaliser
from pretrain.augment import train_transform
from pretrain.loop import pretrain
from pretrain.recipe import Recipe
from pretrain.source import open_source
from pretrain.state import create_network

TINY = Recipe(batch_size=64, classes=("a", "b"))
LARGE = Recipe(arch="resnetv2_50x1_bit", image_size=96, batch_size=16, lr=0.01, classes=("a", "b"))
SKIPPED = 5  # steps before the clock starts
SAME = 1e-4


def run(options: Any) -> list[dict[str, Any]]:
    """An entry a network and augmentation."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            small, large = (_images(Path(folder) / str(side), 500, side) for side in (40, 128))
            entries = [
                _entry("bit_tiny/none", replace(TINY, augment="none"), small, 40, options),
                _entry("bit_tiny/crop", TINY, small, 40, options),
            ]
            if not options.tiny:
                entries.append(_entry("bit_r50x1/crop", LARGE, large, 5, options))
            return entries
    finally:
        torch.set_num_threads(before)


def _entry(name: str, recipe: Recipe, images: tuple[Target, str], steps: int, options: Any) -> dict[str, Any]:
    print(f"pretrain/{name}", file=sys.stderr)
    target, words = images
    steps, rounds = (5, 1) if options.tiny else (steps, 5)
    clock = _Clock()
    count = len(open_source(target, recipe.classes).train.paths)
    recipe = replace(recipe, epochs=(SKIPPED + steps - 0.5) * recipe.batch_size / count)
    bare = _Bare(recipe, target, steps)
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            peer.append(bare.seconds_an_image())
            pretrain(
                recipe, target, Path(folder) / "net.pt", overwrite=True, workers=1, logs=[clock], on_step=clock.tick
            )
            # The median step: an epoch's end, where validation comes between two, is not what is measured.
            # The median step: an epoch's end, where validation comes between two, is not what is measured.
            ours.append(np.median(np.diff(clock.ticks[SKIPPED:], axis=0), axis=0) / recipe.batch_size)
    wall, core = ([list(map(float, np.array(who)[:, which])) for who in (ours, peer)] for which in (0, 1))
    return {
        "name": name,
        "peer_is": "bare loop on tensors in memory",
        "threads": options.threads,
        "embeddings": words,
        "tiny": options.tiny,
        "versions_of_networks": {"timm": timm.__version__, "torch": torch.__version__},
        "batch": recipe.batch_size,
        "workers": 1,
        **rates(*wall),
        "ours_core_ms": 1e3 * float(np.median(core[0])),
        "peer_core_ms": 1e3 * float(np.median(core[1])),
        "ratio_per_core": float(np.median(core[1]) / np.median(core[0])),
        "checked": bool(np.allclose(clock.losses[:5], bare.losses, rtol=SAME)),
    }


class _Clock:
    """When each step was done, in seconds of the clock and of this process's core, and its loss."""

    def on_begin(self, step: int, steps: int) -> None:
        self.losses: list[float] = []
        self.ticks: list[tuple[float, float]] = []

    def tick(self, step: int) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        self.losses.append(loss)

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        pass

    def on_end(self) -> None:
        pass


class _Bare:
    """The network of a recipe on its own first batches, and nothing else."""

    def __init__(self, recipe: Recipe, target: Target, steps: int) -> None:
        source = open_source(target, recipe.classes)
        torch.manual_seed(recipe.seed)
        self.recipe, self.steps = recipe, steps
        self.network = create_network(recipe, len(source.class_names)).train()
        cfg: Any = self.network.pretrained_cfg
        normalise = Normaliser(cfg["mean"], cfg["std"], torch.device("cpu"))
        transform = train_transform(recipe, recipe.image_size or 32, cfg["interpolation"])
        batches = Batches(Images(source.train.paths), transform, recipe.batch_size, recipe.seed)
        labels = torch.from_numpy(source.train.labels)
        items = [batches[step] for step in range(5)]
        self.batches = [(normalise(pixels), labels[rows]) for pixels, rows in items]
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
        self.losses = [self._step(step, self._lr(step, len(source.train.paths))) for step in range(5)]

    def _lr(self, step: int, n: int) -> float:
        """The warm-up, written again."""
        warmup = min(round(self.recipe.warmup_epochs * n / self.recipe.batch_size), SKIPPED + self.steps)
        return self.recipe.lr * self.recipe.batch_size / 256 * step / warmup

    def _step(self, step: int, lr: float) -> float:
        images, labels = self.batches[step % len(self.batches)]
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def seconds_an_image(self) -> Any:
        """Of the clock and of this process's core, by the median step."""
        ticks = []
        for step in range(self.steps + 1):
            ticks.append((time.perf_counter(), time.process_time()))
            self._step(step, 1e-3)
        return np.median(np.diff(ticks, axis=0), axis=0) / self.recipe.batch_size


def _images(folder: Path, count: int, side: int) -> tuple[Target, str]:
    """`count` images below `folder` and their table: dtd10's, with a shorter side of `side`; noise where it isn't there."""
    folder.mkdir()
    sources = sorted((REAL / "dtd10/images").glob("*/*.jpg"))[:: max(1, 1200 // count)][:count]
    rng = np.random.default_rng(0)
    for i in range(count):
        if sources:
            with Image.open(sources[i % len(sources)]) as image:
                scale = side / min(image.size)
                image.convert("RGB").resize((round(image.width * scale), round(image.height * scale))).save(
                    folder / f"{i:04}.png"
                )
        else:
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{i:04}.png")
    table = Target(
        name="benchmark",
        image_id=np.array([f"{i:04}.png" for i in range(count)]),
        class_names=("a", "b"),
        labels=np.arange(count) % 2,
        split=np.where(np.arange(count) % 10 == 9, "val", "train"),
        root=folder,
    )
    return table, f"{count} images of {'dtd10' if sources else 'noise'}, shorter side {side}"
