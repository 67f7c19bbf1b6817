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

from fastxfer.backbones import Backbone
from fastxfer.embed.cache import CachedPixels, bytes_needed, check_room, pixel_store
from fastxfer.embed.checks import check_images, join
from fastxfer.embed.feed import Feed, Pixels
from fastxfer.embed.forward import default_batch, one_thread_each
from fastxfer.embed.jobs import EmbedJob, Job, PixelJob, begin, writer
from fastxfer.errors import DataError, UsageError
from fastxfer.progress import progress, say
from fastxfer.store import BLOCK_ROWS, EmbeddingStore, check_name
from fastxfer.targets.changes import digest_of_sizes
from fastxfer.targets.table import Target

DTYPES = ("float16", "float32")
# What the last bits depend on besides weights and pixels.
_BITS = ("device", "threads", "batch_size", "torch_version", "compiled")
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
    cache: str = "off",
    compiled: bool = False,
) -> list[Embedded]:
    """Embed the images of `targets` by one or several backbones, only the row blocks that the store lacks.

    Gives one `Embedded` a (target, backbone), in this order.

    batch_size: images a forward pass [on a CPU 1 to 64, the larger the network the fewer; on a GPU 256, halved while memory
                runs out]
    workers:    threads that decode, and on a CPU compute, each on its own images [one a core, at most 16 on a GPU]
    skip_bad:   leave out (and record) images that cannot be decoded, instead of stopping before the first forward pass
    dtype:      of the stored embeddings;  block_rows: rows written at once, the most a kill can cost
    compiled:   let torch.compile make one program of each network first, which takes some tens of seconds
    cache:      "disk" keeps the pixels inside the store, "ram" in this process, for backbones to come; "off" does not

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
    jobs: list[Job] = [
        EmbedJob(b, store, min(batch_size or default_batch(b, place), block_rows), dtype, place, compiled) for b in some
    ]
    kept = pixel_store(store, cache)
    if kept is not None:
        geometries = {b.preprocessing.geometry_key: b.preprocessing for b in some}
        check_room(kept, bytes_needed(targets, list(geometries.values())))
        jobs += [PixelJob(p, kept, max(job.batch for job in jobs)) for p in geometries.values()]

    # First everything that can be refused, for all targets; then the hours.
    for target in targets:
        if target.root is None:
            raise DataError(f"target '{target.name}' comes without its images (root is None)")
        digest = digest_of_sizes(target.root, target.image_id)
        for where in {id(job.store): job.store for job in jobs}.values():
            where.add_target(target, files=digest)
        with ExitStack() as stack:
            some_jobs = [job for job in jobs if isinstance(job, EmbedJob)]
            outs = [stack.enter_context(writer(job, target, block_rows)) for job in some_jobs]
            lacking = {row for out in outs for block in out.missing for row in block if row not in out.bad}
        check_images(target, sorted(lacking), threads, contents=not skip_bad)

    done = []
    with one_thread_each(place), ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        for target in targets:
            with ExitStack() as stack:
                for job in jobs:
                    begin(job, stack.enter_context(writer(job, target, block_rows)))
                done += _Pass(target, jobs, pool, threads, skip_bad, on_cpu=place.type == "cpu").run()
    return done


@dataclass
class _Block:
    """Rows that some jobs lack, while they come in."""

    rows: range
    jobs: list[Job]
    values: dict[str, NDArray[Any]] = field(default_factory=dict)  # by the job's name
    bad: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Piece:
    """Some rows of a block, decoded together."""

    block: _Block
    rows: range


@dataclass
class _Result:
    """What a worker made of a piece: embeddings of all batches (or pixels, if the device is not the worker's)."""

    pixels: Pixels
    values: dict[str, NDArray[Any]]
    bad: dict[int, str]
    spent: dict[str, float]  # seconds: "decode", and each job's


class _Pass:
    """One target, all jobs."""

    def __init__(
        self, target: Target, jobs: list[Job], pool: ThreadPoolExecutor, threads: int, skip_bad: bool, on_cpu: bool
    ) -> None:
        self.target, self.pool, self.threads, self.on_cpu = target, pool, threads, on_cpu
        self.jobs = [job for job in jobs if isinstance(job, EmbedJob)]
        self.keeping = [job for job in jobs if isinstance(job, PixelJob)]
        self.known_bad = self.jobs[0].out.bad
        # Batches are powers of two, or all the same; so each fits into the largest.
        self.piece_rows = max(job.batch for job in jobs)
        cached = {
            job.preprocessing.geometry_key: CachedPixels(job.store, target, job.preprocessing) for job in self.keeping
        }
        self.feed = Feed(target, [job.preprocessing for job in self.jobs], self.known_bad, skip_bad, cached)
        self.spent = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    def run(self) -> list[Embedded]:
        started = time.perf_counter()
        for job in self.jobs:
            self._say_what_is_there(job)
        blocks: dict[range, _Block] = {}
        for job in self.jobs:
            for rows in job.missing:
                blocks.setdefault(rows, _Block(rows, [])).jobs.append(job)
        for keeping in self.keeping:
            for rows in keeping.missing:
                if rows in blocks:  # pixels that no backbone asks for are not decoded
                    blocks[rows].jobs.append(keeping)
        if blocks:
            busy = [job for job in self.jobs if job.missing]
            for job in busy:
                job.prepare(self.jobs)
            names = ", ".join(job.name for job in busy)
            with progress(f"embed {names} on {self.target.name}", sum(map(len, blocks)), "images") as advance:
                self._all(sorted(blocks.values(), key=lambda b: (b.rows.start, b.rows.stop)), advance)
        seconds = time.perf_counter() - started if blocks else 0.0
        bad = self.jobs[0].out.bad
        if blocks and bad:
            say(f"{self.target.name}: {len(bad):,} images left out that cannot be decoded: {join(list(bad.values()))}")
        if len(bad) == self.target.n_images:
            raise DataError(f"target '{self.target.name}': not one of its {len(bad):,} images can be decoded")
        forward = sum(job.seconds for job in self.jobs) or 1.0
        return [self._embedded(job, seconds * job.seconds / forward, len(bad)) for job in self.jobs]

    def _embedded(self, job: EmbedJob, seconds: float, bad: int) -> Embedded:
        """seconds: this backbone's share of the pass."""
        embedded = sum(map(len, job.missing))
        return Embedded(
            backbone=job.name,
            target=self.target.name,
            n_images=self.target.n_images - bad,
            dim=job.dim,
            dtype=job.dtype,
            state="embedded" if embedded else "complete already",
            embedded=embedded,
            bad=bad,
            seconds=seconds,
            images_per_second=embedded / seconds if embedded and seconds else None,
            bound=max(self.spent, key=lambda name: self.spent[name]) if embedded else None,
            identity=job.backbone.identity,
        )

    def _say_what_is_there(self, job: EmbedJob) -> None:
        title, n, missing = f"{job.name} on {self.target.name}", self.target.n_images, sum(map(len, job.missing))
        if not missing:
            say(f"{title}: complete ({n:,} images), nothing to do")
        elif missing < n:
            say(f"{title}: {n - missing:,} of {n:,} rows are there, doing the rest")
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
        wanted = {job.preprocessing.geometry_key for job in piece.block.jobs}
        pixels, bad = self.feed.pixels(piece.rows, wanted, self.piece_rows)
        result = _Result(pixels, {}, bad, {"decode": time.perf_counter() - clock})
        if self.on_cpu:
            self._make(piece, result)
        return result

    def _make(self, piece: _Piece, result: _Result) -> None:
        by_maker: dict[int, list[Job]] = {}
        for job in piece.block.jobs:
            by_maker.setdefault(job.maker, []).append(job)
        for jobs in by_maker.values():
            clock, first = time.perf_counter(), jobs[0]
            used = -(-len(piece.rows) // first.batch) * first.batch
            pixels = result.pixels[first.preprocessing.geometry_key][:used]
            made = np.concatenate([first.make(pixels[i : i + first.batch]) for i in range(0, used, first.batch)])
            seconds = (time.perf_counter() - clock) / len(jobs)
            for job in jobs:
                result.values[job.name], result.spent[job.name] = made[: len(piece.rows), job.columns], seconds
        result.pixels = {}

    def _take(self, piece: _Piece, future: Future[_Result], advance: Callable[[int], None]) -> None:
        """Bring a piece to its block, and a block that is whole to the store."""
        result, block = future.result(), piece.block
        if not self.on_cpu:
            self._make(piece, result)
        shared = self.threads if self.on_cpu else 1
        self.spent["decode"] += result.spent.pop("decode") / self.threads
        self.spent["forward"] += sum(result.spent.values()) / shared
        for job in block.jobs:
            made, seconds = result.values[job.name], result.spent[job.name] / shared
            if piece.rows.start == block.rows.start:
                block.values[job.name] = np.empty((len(block.rows), job.dim), made.dtype)
            start = piece.rows.start - block.rows.start
            block.values[job.name][start : start + len(made)] = made
            block.seconds[job.name] = block.seconds.get(job.name, 0.0) + seconds
            job.seconds += seconds
        block.bad |= result.bad
        if piece.rows.stop == block.rows.stop:
            self._write(block)
        advance(len(piece.rows))

    def _write(self, block: _Block) -> None:
        clock = time.perf_counter()
        for store in {id(job.store): job.out for job in block.jobs}.values():
            store.mark_bad(block.bad)
        empty = [row - block.rows.start for row in block.rows if row in self.known_bad or row in block.bad]
        for job in block.jobs:
            values = block.values.pop(job.name)
            values[empty] = np.nan if values.dtype.kind == "f" else 0
            job.out.write(block.rows, values, seconds=block.seconds[job.name])
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
