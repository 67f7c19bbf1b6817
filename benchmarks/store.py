"""The store on a local disk: whole reads, writes and an episode's rows at random, against plain NumPy on one flat file.

Ours counts everything that a caller waits for: metadata, which blocks are there, checksums and seals of every byte, for
writes one synced file a block. The files are in the page cache on both sides. `store_gather_first` is a view's first
episode, which checks the chunks that it touches; `store_gather` is those after it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import ROOT, side_by_side
from fastxfer.store import EmbeddingStore
from fastxfer.store.reading import THREADS
from fastxfer.store.writing import AT_ONCE
from fastxfer.targets.table import Target

ROWS = 100  # of an episode: 5 ways, 5 shots, 15 queries a class
IDENTITY = {"identity": "0" * 64, "architecture": "none"}


def run(options: Any) -> list[dict[str, Any]]:
    """Four entries a size; the second size is larger than the processor's caches and named for its rows."""
    sizes = [(2000, 64, "")] if options.tiny else [(20_000, 2048, ""), (100_000, 2048, "/100k")]
    entries = []
    for n_images, dim, mark in sizes:
        scratch = ROOT / "build"
        scratch.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="store-", dir=scratch))
        try:
            for entry in _compare(folder, _values(n_images, dim), tiny=options.tiny):
                entry["name"] += mark
                entry |= {"threads": options.threads, "reading_threads": THREADS, "blocks_written_at_once": AT_ONCE}
                entries.append(entry)
        finally:
            shutil.rmtree(folder)
    return entries


def _values(n_images: int, dim: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(0)
    part = np.maximum(rng.normal(size=(min(n_images, 10_000), dim)), 0).astype(np.float16)
    return np.concatenate([np.roll(part, i, axis=1) for i in range(-(-n_images // len(part)))])[:n_images]


def _compare(folder: Path, x: NDArray[np.float16], *, tiny: bool) -> list[dict[str, Any]]:
    n_images, dim = x.shape
    store = EmbeddingStore.open(folder / "store", mode="a")
    labels = np.arange(n_images) % 5
    names = np.array([f"{i:07}" for i in range(n_images)])
    store.add_target(Target("t", names, tuple("abcde"), labels, np.full(n_images, "train")))
    flat = folder / "flat.bin"

    def write(backbone: str) -> None:
        with store.writer(backbone, "t", dim=dim, dtype="float16", attributes=IDENTITY) as out:
            for block in list(out.missing):
                out.write(block, x[block.start : block.stop])

    def write_flat(name: str) -> None:
        with (folder / name).open("wb") as file:
            x.tofile(file)
            file.flush()
            os.fsync(file.fileno())

    write("b")
    write_flat(flat.name)
    mapped = np.memmap(flat, np.float16, mode="r", shape=x.shape)
    view = store.array("b", "t")
    rng = np.random.default_rng(1)
    episodes = [rng.choice(n_images, ROWS, replace=False) for _ in range(20 if tiny else 400)]
    for rows in np.array_split(np.arange(n_images), 50):
        view[rows[::-1]]  # every chunk touched
        mapped[rows[::-1]]

    def entry(
        name: str, peer: str, checked: bool, n_bytes: int, rounds: int, ours: Any, other: Any, pieces: int = 1
    ) -> dict[str, Any]:
        print(f"{name} {n_images:,} x {dim:,}", file=sys.stderr)
        fields = side_by_side(ours, other, rounds=2 if tiny else rounds, work=(pieces, pieces))
        return {
            "name": name,
            "ours": fields["ours_ms"],
            "peer": fields["peer_ms"],
            "unit": "ms",
            "peer_is": peer,
            **fields,
            "ours_gb_per_second": n_bytes / fields["ours_ms"] / 1e6,
            "peer_gb_per_second": n_bytes / fields["peer_ms"] / 1e6,
            "checked": checked,
            "ways": None,
            "shots": None,
            "episodes": len(episodes) if "gather" in name else None,
            "dim": dim,
            "pool": n_images,
            "bytes": n_bytes,
            "embeddings": "synthetic, ReLU-like, float16",
            "tiny": tiny,
        }

    def each(array: Any) -> Callable[[int], None]:
        def all_episodes(_: int) -> None:
            for rows in episodes:
                array[rows]

        return all_episodes

    same = np.array_equal(store.embeddings("b", "t"), x)
    gathered = all(np.array_equal(view[rows], x[rows]) for rows in episodes)
    first = all(np.array_equal(store.array("b", "t")[rows], x[rows]) for rows in episodes[:5])
    rounds = 15 if n_images <= 20_000 else 7
    few = ROWS * dim * 2
    return [
        entry("store_read", "numpy.fromfile", same, x.nbytes, rounds,
              lambda _: store.embeddings("b", "t"), lambda _: np.fromfile(flat, np.float16)),
        entry("store_write", "numpy.tofile, fsync", _written(store, write, x), x.nbytes, rounds,
              lambda i: write(f"w{i}"), lambda i: write_flat(f"w{i}.bin")),
        entry("store_gather", "numpy.memmap[rows]", gathered, few, rounds, each(view), each(mapped), len(episodes)),
        entry("store_gather_first", "numpy.memmap(file)[rows]", first, few, rounds,
              lambda i: store.array("b", "t")[episodes[i]],
              lambda i: np.memmap(flat, np.float16, mode="r", shape=x.shape)[episodes[i]]),
    ]  # fmt: skip


def _written(store: EmbeddingStore, write: Callable[[str], None], x: NDArray[np.float16]) -> bool:
    write("check")
    same = np.array_equal(store.embeddings("check", "t"), x)
    store.remove("check", "t")
    return same
