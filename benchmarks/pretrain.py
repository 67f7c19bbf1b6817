"""`fastxfer pretrain` against a bare training loop of the same network: images a second, goal 95 % of it and more.

`ours` is the documented function on files, by the median step of each turn: with order, augmentation, schedule, progress and
logs, but without decoding into memory, validation and checkpoints, which come once an epoch. `peer` is forward, loss, backward
and optimiser on batches that lie in memory as normalised floats, at the same batch size and number of threads. They take turns
within one run, after so many steps: this machine's speed moves by a tenth within seconds. The first steps of ours in each turn
do not count: the loader process worked ahead meanwhile. `ratio` is of wall time, the median of the turns' ratios;
`ratio_per_core` of the core seconds of the process that trains: the loader process beside it (`workers`) has a core of its own,
or on a busy machine has not.

* bit_tiny/none, bit_tiny/crop: 32 pixels, batches of 64; pictures of 40 pixels.
* bit_r50x1/crop: resnetv2_50x1_bit at 96 pixels, batches of 16; photographs with a shorter side of 128.

Checked: fed the same batches, the bare loop has the losses of ours over five steps, to 1e-4.
"""

from __future__ import annotations

import math
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
SKIPPED = 3  # steps of ours before the clock starts, in each turn: one more than the loader has in hand
SAME = 1e-4


def run(options: Any) -> list[dict[str, Any]]:
    """An entry a network and augmentation."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            small, large = (_images(Path(folder) / str(side), 500, side) for side in (40, 128))
            entries = [
                _entry("bit_tiny/none", replace(TINY, augment="none"), small, (20, 5), options),
                _entry("bit_tiny/crop", TINY, small, (20, 5), options),
            ]
            if not options.tiny:
                entries.append(_entry("bit_r50x1/crop", LARGE, large, (7, 3), options))
            return entries
    finally:
        torch.set_num_threads(before)


def _entry(
    name: str, recipe: Recipe, images: tuple[Target, str], turns: tuple[int, int], options: Any
) -> dict[str, Any]:
    """turns: how many, and the steps of each that count."""
    print(f"pretrain/{name}", file=sys.stderr)
    target, words = images
    rounds, steps = (2, 3) if options.tiny else turns
    count = len(open_source(target, recipe.classes).train.paths)
    recipe = replace(recipe, epochs=rounds * (SKIPPED + steps) * recipe.batch_size / count)
    bare = _Bare(recipe, target)
    alternation = _Alternation(bare, steps)
    with tempfile.TemporaryDirectory() as folder:
        pretrain(
            recipe,
            target,
            Path(folder) / "net.pt",
            overwrite=True,
            workers=1,
            logs=[alternation],
            on_step=alternation.tick,
        )
    ours, peer = (np.array(who) / recipe.batch_size for who in (alternation.ours, alternation.peer))
    wall, core = np.median(peer / ours, axis=0)
    return {
        "name": name,
        "peer_is": "bare loop on tensors in memory",
        "threads": options.threads,
        "embeddings": words,
        "tiny": options.tiny,
        "versions_of_networks": {"timm": timm.__version__, "torch": torch.__version__},
        "batch": recipe.batch_size,
        "workers": 1,
        **rates(list(map(float, ours[:, 0])), list(map(float, peer[:, 0]))),
        "ours_core_ms": 1e3 * float(np.median(ours[:, 1])),
        "peer_core_ms": 1e3 * float(np.median(peer[:, 1])),
        "ratio": float(wall),
        "ratio_per_core": float(core),
        "checked": bool(np.allclose(alternation.losses[:5], bare.losses, rtol=SAME)),
    }


class _Alternation:
    """Steps of ours that count, then as many of the bare loop; of both the median (seconds of the clock, of this core)."""

    def __init__(self, bare: _Bare, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.losses: list[float] = []
        self.ours: list[Any] = []
        self.peer: list[Any] = []
        self.ticks: list[tuple[float, float]] = []

    def on_begin(self, step: int, steps: int) -> None:
        self.ticks.append(_now())

    def tick(self, step: int) -> None:
        self.ticks.append(_now())
        if len(self.ticks) <= SKIPPED + self.steps:
            return
        # The median step: an epoch's end, where validation comes between two, is not what is measured.
        self.ours.append(np.median(np.diff(self.ticks[SKIPPED:], axis=0), axis=0))
        self.peer.append(self.bare.median_step(self.steps))
        self.ticks = [_now()]

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        self.losses.append(loss)

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        pass

    def on_end(self) -> None:
        pass


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class _Bare:
    """The network of a recipe on its own first batches, and nothing else."""

    def __init__(self, recipe: Recipe, target: Target) -> None:
        source = open_source(target, recipe.classes)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
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
        per_epoch = n / self.recipe.batch_size
        warmup = min(round(self.recipe.warmup_epochs * per_epoch), math.ceil(self.recipe.epochs * per_epoch))
        return self.recipe.lr * self.recipe.batch_size / 256 * step / warmup

    def _step(self, step: int, lr: float) -> float:
        images, labels = self.batches[step % len(self.batches)]
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def median_step(self, steps: int) -> Any:
        """(seconds of the clock, of this process's core)"""
        ticks = [_now()]
        for step in range(steps):
            self._step(step, 1e-3)
            ticks.append(_now())
        return np.median(np.diff(ticks, axis=0), axis=0)


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
