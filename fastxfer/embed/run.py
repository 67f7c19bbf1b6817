"""One pass over the images of each target, for all backbones that lack some of them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastxfer import __version__
from fastxfer.backbones import Backbone
from fastxfer.embed.checks import check_images, join
from fastxfer.embed.feed import Feed, Pixels
from fastxfer.embed.forward import Forward, default_batch, one_thread_each
from fastxfer.errors import DataError, UsageError
from fastxfer.progress import progress, say
from fastxfer.store import BLOCK_ROWS, EmbeddingStore, Writer, check_name
from fastxfer.targets.changes import digest_of_sizes
from fastxfer.targets.table import Target

DTYPES = ("float16", "float32")
# What the last bits depend on besides weights and pixels.
_BITS = ("device", "threads", "batch_size", "torch_version")
_AHEAD = 2  # pieces a worker that wait for their turn or for being written


@dataclass
class Embedded:
    """What one (backbone, target) came to. `bound`: what the time went to: "decode", "forward" or "write"."""

    backbone: str
    target: str
    n_images: int
    dim: int
    dtype: str
    state: str
    embedded: int
    bad: int
    seconds: float
    images_per_second: float | None
    bound: str | None
    identity: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def embed(
    backbones: Backbone | Sequence[Backbone],
    targets: Sequence[Target],
    store: EmbeddingStore,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    dtype: str = "float16",
    device: str = "auto",
    block_rows: int = BLOCK_ROWS,
) -> list[Embedded]:
    """Embed the images of `targets` by one or several backbones, only the row blocks that the store lacks.

    Gives one `Embedded` a (target, backbone), in this order.

    batch_size: images a forward pass [on a CPU as many as stay in the cache, 4 at 224 x 224; on a GPU 256, halved while
                memory runs out]
    workers:    threads that decode, and on a CPU compute, each on its own images [one a core, at most 16 on a GPU]
    skip_bad:   leave out (and record) images that cannot be decoded, instead of stopping before the first forward pass
    dtype:      of the stored embeddings;  block_rows: rows written at once, the most a kill can cost

    Raises DataError for undecodable or missing images (named, as far as two seconds show them before anything is
    computed), for embeddings of another backbone under this name, or if somebody else is writing; OSError for a full
    disk. What was written stays.
    """
    some = [backbones] if isinstance(backbones, Backbone) else list(backbones)
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    for option, number in (("--batch-size", batch_size), ("--workers", workers), ("--block-rows", block_rows)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    names = [check_name(b.name, "backbone") for b in some]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two backbones are called {', '.join(twice)}: give them different names with --name")
    place = _device(device)
    threads = workers or (_cores() if place.type == "cpu" else min(16, _cores()))
    jobs = [_Job(b, min(batch_size or default_batch(b, place), block_rows), dtype, place) for b in some]

    # First everything that can be refused, for all targets; then the hours.
    for target in targets:
        if target.root is None:
            raise DataError(f"target '{target.name}' comes without its images (root is None)")
        store.add_target(target, files=digest_of_sizes(target.root, target.image_id))
        with ExitStack() as stack:
            outs = [stack.enter_context(job.writer(store, target, block_rows)) for job in jobs]
            lacking = {row for out in outs for block in out.missing for row in block if row not in out.bad}
        check_images(target, sorted(lacking), threads, contents=not skip_bad)

    done = []
    with one_thread_each(place), ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        for target in targets:
            with ExitStack() as stack:
                for job in jobs:
                    job.open(stack.enter_context(job.writer(store, target, block_rows)))
                done += _Pass(target, jobs, pool, threads, skip_bad).run()
    return done


class _Job:
    """A backbone's part in a pass: how it computes, and where its embeddings go."""

    def __init__(self, backbone: Backbone, batch: int, dtype: str, device: torch.device) -> None:
        self.backbone = backbone
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.geometry = backbone.preprocessing.geometry_key
        self.attributes = {
            **backbone.provenance(),
            "dtype": dtype,
            "code_version": __version__,
            "torch_version": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": 1 if device.type == "cpu" else torch.get_num_threads(),
            "batch_size": batch,
        }
        self._forward: Forward | None = None

    def writer(self, store: EmbeddingStore, target: Target, block_rows: int) -> Any:
        b = self.backbone
        return store.writer(
            b.name, target.name, dim=b.dim, dtype=self.dtype, attributes=self.attributes, block_rows=block_rows
        )

    def open(self, out: Writer) -> None:
        """Begin a target, whose embeddings go to `out`."""
        self.out = out
        self.missing = out.missing
        self.total = sum(len(block) for block in self.missing)
        self.seconds = 0.0  # of forward passes

    @property
    def forward(self) -> Forward:
        """Made when it is first needed, in whichever thread: where nothing is missing, nothing is made."""
        if self._forward is None:
            self._forward = Forward(self.backbone, self.device, self.batch)
        return self._forward


@dataclass
class _Block:
    """Rows that some backbones lack, while they come in."""

    rows: range
    jobs: list[_Job]
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # by the backbone's name
    bad: dict[int, str] = field(default_factory=dict)
    forward: dict[str, float] = field(default_factory=dict)  # seconds


@dataclass
class _Piece:
    """Some rows of a block, decoded together."""

    block: _Block
    rows: range


@dataclass
class _Result:
    """What a worker made of a piece: embeddings of all batches (or pixels, if the device is not the worker's)."""

    pixels: Pixels
    values: dict[str, NDArray[np.float32]]
    bad: dict[int, str]
    spent: dict[str, float]  # seconds: "decode", and forward passes by backbone


class _Pass:
    """One target, all backbones."""

    def __init__(
        self, target: Target, jobs: list[_Job], pool: ThreadPoolExecutor, threads: int, skip_bad: bool
    ) -> None:
        self.target, self.pool, self.threads = target, pool, threads
        self.jobs = jobs
        self.known_bad = jobs[0].out.bad
        self.on_cpu = jobs[0].device.type == "cpu"
        # Batches are powers of two, or all the same; so each fits into the largest.
        self.piece_rows = max(job.batch for job in jobs)
        self.feed = Feed(target, [job.backbone.preprocessing for job in jobs], self.known_bad, skip_bad)
        self.spent = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    def run(self) -> list[Embedded]:
        started = time.perf_counter()
        busy = [job for job in self.jobs if job.total]
        for job in self.jobs:
            self._say_what_is_there(job)
        blocks: dict[range, _Block] = {}
        for job in busy:
            for rows in job.missing:
                blocks.setdefault(rows, _Block(rows, [])).jobs.append(job)
        if blocks:
            if self.on_cpu:
                for job in busy:
                    _ = job.forward  # not in several workers at once
            names = ", ".join(job.backbone.name for job in busy)
            total = sum(map(len, blocks))
            with progress(f"embed {names} on {self.target.name}", total, "images") as advance:
                self._all(sorted(blocks.values(), key=lambda b: (b.rows.start, b.rows.stop)), advance)
        seconds = time.perf_counter() - started if blocks else 0.0
        bad = self.jobs[0].out.bad
        if blocks and bad:
            say(f"{self.target.name}: {len(bad):,} images left out that cannot be decoded: {join(list(bad.values()))}")
        if len(bad) == self.target.n_images:
            raise DataError(f"target '{self.target.name}': not one of its {len(bad):,} images can be decoded")
        forward = sum(job.seconds for job in busy) or 1.0
        return [self._embedded(job, seconds * job.seconds / forward, len(bad)) for job in self.jobs]

    def _embedded(self, job: _Job, seconds: float, bad: int) -> Embedded:
        """seconds: this backbone's share of the pass."""
        return Embedded(
            backbone=job.backbone.name,
            target=self.target.name,
            n_images=self.target.n_images - bad,
            dim=job.backbone.dim,
            dtype=job.dtype,
            state="embedded" if job.total else "complete already",
            embedded=job.total,
            bad=bad,
            seconds=seconds,
            images_per_second=job.total / seconds if job.total and seconds else None,
            bound=max(self.spent, key=lambda name: self.spent[name]) if job.total else None,
            identity=job.backbone.identity,
        )

    def _say_what_is_there(self, job: _Job) -> None:
        title, n = f"{job.backbone.name} on {self.target.name}", self.target.n_images
        if not job.total:
            say(f"{title}: complete ({n:,} images), nothing to do")
        elif job.total < n:
            say(f"{title}: {n - job.total:,} of {n:,} rows are there, doing the rest")
            began = job.out.attributes
            other = [k for k in _BITS if began.get(k) != job.attributes.get(k)]
            if other:
                say(f"{title}: begun with another {', '.join(other)}: last bits may differ from an unbroken run's")

    def _all(self, blocks: list[_Block], advance: Callable[[int], None]) -> None:
        pieces = (
            _Piece(b, range(i, min(i + self.piece_rows, b.rows.stop)))
            for b in blocks
            for i in range(b.rows.start, b.rows.stop, self.piece_rows)
        )
        waiting: deque[tuple[_Piece, Future[_Result]]] = deque()
        try:
            for piece in pieces:
                waiting.append((piece, self.pool.submit(self._work, piece)))
                if len(waiting) > _AHEAD * self.threads:
                    self._take(*waiting.popleft(), advance)
            while waiting:
                self._take(*waiting.popleft(), advance)
        finally:
            for _, future in waiting:
                future.cancel()

    def _work(self, piece: _Piece) -> _Result:
        clock = time.perf_counter()
        wanted = {job.geometry for job in piece.block.jobs}
        pixels, bad = self.feed.pixels(piece.rows, wanted, self.piece_rows)
        result = _Result(pixels, {}, bad, {"decode": time.perf_counter() - clock})
        if self.on_cpu:
            self._forward(piece, result)
        return result

    def _forward(self, piece: _Piece, result: _Result) -> None:
        for job in piece.block.jobs:
            clock = time.perf_counter()
            used = -(-len(piece.rows) // job.batch) * job.batch
            pixels = result.pixels[job.geometry][:used]
            out = [job.forward(pixels[i : i + job.batch]) for i in range(0, used, job.batch)]
            result.values[job.backbone.name] = np.concatenate(out)[: len(piece.rows)]
            result.spent[job.backbone.name] = time.perf_counter() - clock
        result.pixels = {}

    def _take(self, piece: _Piece, future: Future[_Result], advance: Callable[[int], None]) -> None:
        """Bring a piece to its block, and a block that is whole to the store."""
        result, block = future.result(), piece.block
        if not self.on_cpu:
            self._forward(piece, result)
        shared = self.threads if self.on_cpu else 1
        self.spent["decode"] += result.spent.pop("decode") / self.threads
        self.spent["forward"] += sum(result.spent.values()) / shared
        for job in block.jobs:
            name = job.backbone.name
            seconds = result.spent[name] / shared
            job.seconds += seconds
            if piece.rows.start == block.rows.start:
                block.values[name] = np.full((len(block.rows), job.backbone.dim), np.nan, np.float32)
            start = piece.rows.start - block.rows.start
            block.values[name][start : start + len(piece.rows)] = result.values[name]
            block.forward[name] = block.forward.get(name, 0.0) + seconds
        block.bad |= result.bad
        if piece.rows.stop == block.rows.stop:
            self._write(block)
        advance(len(piece.rows))

    def _write(self, block: _Block) -> None:
        clock = time.perf_counter()
        block.jobs[0].out.mark_bad(block.bad)
        empty = [row - block.rows.start for row in block.rows if row in self.known_bad or row in block.bad]
        for job in block.jobs:
            values = block.values.pop(job.backbone.name)
            values[empty] = np.nan
            job.out.write(block.rows, values, seconds=block.forward[job.backbone.name])
        self.spent["write"] += time.perf_counter() - clock


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible to PyTorch; use --device cpu, or auto")
    return device


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
