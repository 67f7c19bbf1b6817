"""A store of ImageNet-21k's size without its terabytes: `python -m benchmarks.scale [--images N] [--block-rows R] …`

The table is real (ids, labels and splits of N images). Of the embeddings' blocks the files are there, at their true sizes
but sparse, so that they take no room; only those in which the drawn episode's rows lie hold values. What is timed is
what a person waits for: opening, `store ls`, the table, 5,000 episodes, one episode's rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import ROOT
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.store import EmbeddingStore
from fastxfer.store.layout import block_file
from fastxfer.targets.table import Target

IDENTITY = {"identity": "0" * 64, "architecture": "none"}
CLASSES = 21_841


def measure(folder: Path, images: int, dim: int, backbones: int, block_rows: int | None) -> list[dict[str, Any]]:
    """(what, seconds, peak memory so far) a step."""
    steps: list[dict[str, Any]] = []

    def step(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        steps.append({"step": what, "seconds": round(seconds, 3), "peak_GiB": round(peak, 2)})
        print(f"{what:42} {seconds:8.2f} s   peak {peak:.2f} GiB", file=sys.stderr, flush=True)
        return result

    classes = min(CLASSES, images // 200)
    labels = np.arange(images) % classes
    target = step(
        "make the table (no part of it)",
        lambda: Target(
            name="imagenet21k",
            image_id=np.array([f"n{i % classes:08}/n{i % classes:08}_{i}.JPEG" for i in range(images)]),
            class_names=tuple(f"n{i:08}" for i in range(classes)),
            labels=labels,
            split=np.where(np.arange(images) // classes % 5 == 0, "test", "train"),
        ),
    )
    store = EmbeddingStore.open(folder, mode="a")
    step("store the table", lambda: store.add_target(target))
    names = [f"net{i}" for i in range(backbones)]

    def sparse_files() -> None:
        for name in names:
            with store.writer(name, target.name, dim=dim, dtype="float16", attributes=IDENTITY, block_rows=block_rows):
                pass
            array = store.stored(name, target.name)
            assert array.layout is not None
            for number in range(array.layout.n_blocks):
                path = folder / array.path / block_file(number)
                descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
                os.ftruncate(descriptor, array.layout.size(number))
                os.close(descriptor)

    step("make the files (no part of it)", sparse_files)

    opened = step("open", lambda: EmbeddingStore.open(folder))
    entries = step(f"store ls ({backbones} arrays)", opened.entries)
    assert all(entry.complete and entry.n_images == images for entry in entries)
    table = step("read the table", lambda: opened.target("imagenet21k"))
    spec = EpisodeSpec(ways=5, shots=5, queries=15)
    step("draw 5,000 episodes, cold", lambda: sample_episodes(table, spec, seed=0, episodes=5000))
    episodes = step("draw 5,000 episodes again", lambda: sample_episodes(table, spec, seed=0, episodes=5000))
    rows = np.concatenate([episodes.support[0].ravel(), episodes.query[0].ravel()])
    array = opened.stored("net0", "imagenet21k")
    layout = array.layout
    assert layout is not None
    values = np.random.default_rng(0).normal(size=(layout.block_rows, dim)).astype(np.float16)

    def fill() -> None:
        for number in np.unique(rows // layout.block_rows).tolist():
            content = layout.encode(number, values[: len(layout.rows(number))])
            (folder / array.path / block_file(number)).write_bytes(content)

    step("write the episode's blocks (no part of it)", fill)
    view = step("a view of one array", lambda: opened.array("net0", "imagenet21k"))
    got = step(f"an episode's {len(rows)} rows, first", lambda: view[rows])
    assert np.array_equal(got, values[rows % layout.block_rows])
    step("an episode's rows, again", lambda: view[rows])
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--images", type=int, default=14_197_122, help="(default: all of ImageNet-21k)")
    parser.add_argument("--dim", type=int, default=8192, help="(default: R152x4's)")
    parser.add_argument("--backbones", type=int, default=12)
    parser.add_argument("--block-rows", type=int, help="(default: the store's own choice)")
    given = parser.parse_args()
    scratch = ROOT / "build"
    scratch.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=scratch))
    try:
        steps = measure(folder, given.images, given.dim, given.backbones, given.block_rows)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"options": vars(given), "steps": steps}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
