"""One pass over the images of each target, for all backbones that lack some of them."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backbones import Backbone
from fastxfer.embed.cache import CachedPixels, bytes_needed, check_room, content_store, keep_target, pixel_store
from fastxfer.embed.checks import check_images, join
from fastxfer.embed.feed import Feed, Pixels
from fastxfer.embed.forward import COMPILED, default_batch, device_of, one_thread_each
from fastxfer.embed.jobs import ContentJob, EmbedJob, Job, PixelJob, begin, writer
from fastxfer.embed.reuse import Digests, Reuse, find, read_digests
from fastxfer.errors import DataError, UsageError
from fastxfer.progress import Advance, progress, say, shares
from fastxfer.ranks import cores_here
from fastxfer.store import BLOCK_ROWS, EmbeddingStore, Team, check_name
from fastxfer.targets.changes import digest_of_sizes
from fastxfer.targets.table import Target

DTYPES = ("float16", "float32")
# What the last bits depend on besides weights and pixels.
_BITS = ("device", "threads", "batch_size", "torch_version", "compiled")
_AHEAD = 2  # pieces a worker that wait for their turn or for being written


@dataclass
class Embedded:
    """What one (backbone, target) came to.

    embedded: rows computed;  reused: rows found in the store under other names
    bound:    what the time went to: "decode", "forward" or "write"
    """

    backbone: str
    target: str
    n_images: int
    dim: int
    dtype: str
    state: str
    embedded: int
    reused: int
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
    block_rows: int | None = None,
    cache: str = "off",
    compiled: str = "",
    team: Team | None = None,
) -> list[Embedded]:
    """Embed the images of `targets` by one or several backbones, only the row blocks that the store lacks.

    Gives one `Embedded` a (target, backbone), in this order.

    batch_size: images a forward pass [on a CPU 1 to 64, the larger the network the fewer; on a GPU 256, halved while memory
                runs out]
    workers:    threads that decode, and on a CPU compute, each on its own images [one a core, at most 16 on a GPU]
    skip_bad:   leave out (and record) images that cannot be decoded, instead of stopping before the first forward pass
    dtype:      of the stored embeddings
    block_rows: rows written at once, some of which are the most that a kill can cost [256, more for millions of images]
    team:       this process's place among several that share the work, block by block
    compiled:   "plain" lets torch.compile make one program of each network first, which takes some tens of seconds;
                "graphs" lets it replay that program as a CUDA graph
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
    place = device_of(device)
    if compiled not in ("", *COMPILED):
        raise UsageError(f"--compile {compiled}: one of {', '.join(COMPILED)}")
    if compiled == "graphs" and place.type != "cuda":
        raise UsageError(f"--compile graphs: CUDA graphs need a CUDA device, and this is {place}: use --compile plain")
    threads = workers or (cores_here() if place.type == "cpu" else min(16, cores_here()))
    jobs: list[Job] = [
        EmbedJob(b, store, min(batch_size or default_batch(b, place), block_rows or BLOCK_ROWS), dtype, place, compiled)
        for b in some
    ]
    kept = pixel_store(store, cache)
    if kept is not None:
        geometries = {b.preprocessing.geometry_key: b.preprocessing for b in some}
        check_room(kept, bytes_needed(targets, list(geometries.values())))
        jobs += [PixelJob(p, kept, max(job.batch for job in jobs)) for p in geometries.values()]

    jobs.append(ContentJob(content_store(store), max(job.batch for job in jobs)))

    # First everything that can be refused, for all targets; then the hours.
    for target in targets:
        if target.root is None:
            raise DataError(f"target '{target.name}' comes without its images (root is None)")
        digest = digest_of_sizes(target.root, target.image_id)
        store.add_target(target, files=digest)
        for where in {id(job.store): job.store for job in jobs if job.store is not store}.values():
            keep_target(where, target, digest)
        with ExitStack() as stack:
            some_jobs = [job for job in jobs if isinstance(job, EmbedJob)]
            outs = [stack.enter_context(writer(job, target, block_rows, team)) for job in some_jobs]
            lacking = np.zeros(target.n_images, bool)
            for block in (block for out in outs for block in out.missing):
                lacking[block.start : block.stop] = True
            lacking[list(outs[0].bad)] = False
        check_images(target, np.flatnonzero(lacking), threads, contents=not skip_bad)

    done = []
    with one_thread_each(place), ThreadPoolExecutor(threads, thread_name_prefix="embed") as pool:
        for target in targets:
            with ExitStack() as stack:
                for job in jobs:
                    begin(job, stack.enter_context(writer(job, target, block_rows, team)))
                done += _Pass(target, jobs, pool, threads, skip_bad, on_cpu=place.type == "cpu").run()
    return done


@dataclass
class _Piece:
    """Some rows that several jobs lack, decoded together; `jobs` says which, and in which of their blocks the rows lie."""

    rows: range
    jobs: list[tuple[Job, range]]


@dataclass
class _Block:
    """A job's block of rows while its pieces come in."""

    rows: range
    values: NDArray[Any]
    seconds: float = 0.0


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
        self.keeping = [job for job in jobs if not isinstance(job, EmbedJob)]
        self.content = next(job for job in jobs if isinstance(job, ContentJob))
        self.known_bad = self.jobs[0].out.bad
        # Batches are powers of two, or all the same; so each fits into the largest.
        self.piece_rows = max(job.batch for job in jobs)
        cached = {
            job.source: CachedPixels(job.store, target, job.preprocessing)
            for job in self.keeping
            if isinstance(job, PixelJob)
        }
        self.feed = Feed(target, [job.preprocessing for job in self.jobs], self.known_bad, skip_bad, cached)
        self.reuse: dict[str, Reuse] = {}  # by the job's name
        self.left: Counter[tuple[str, int]] = Counter()  # pieces to come, of a job's block
        self.computed: Counter[str] = Counter()  # rows, by the job's name
        self.open: dict[str, _Block] = {}  # by the job's name
        self.bad: dict[int, str] = {}  # rows found to be undecodable in this pass
        self.spent = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    def run(self) -> list[Embedded]:
        started = time.perf_counter()
        for job in self.jobs:
            self._say_what_is_there(job)
        self._find_again()
        total = self._to_do()
        if total:
            busy = [job for job in self.jobs if job.missing]
            for job in busy:
                job.prepare(self.jobs)
            names = ", ".join(job.name for job in busy)
            with progress(f"embed {names} on {self.target.name}", total, "images") as advance:
                self._all(self._pieces(), advance)
        seconds = time.perf_counter() - started if total else 0.0
        bad = self.jobs[0].out.bad
        if total and bad:
            say(f"{self.target.name}: {len(bad):,} images left out that cannot be decoded: {join(list(bad.values()))}")
        if len(bad) == self.target.n_images:
            raise DataError(f"target '{self.target.name}': not one of its {len(bad):,} images can be decoded")
        forward = sum(job.seconds for job in self.jobs) or 1.0
        return [self._embedded(job, seconds * job.seconds / forward, len(bad)) for job in self.jobs]

    def _embedded(self, job: EmbedJob, seconds: float, bad: int) -> Embedded:
        """seconds: this backbone's share of the pass."""
        missing, embedded = sum(map(len, job.missing)), self.computed[job.name]
        return Embedded(
            backbone=job.name,
            target=self.target.name,
            n_images=self.target.n_images - bad,
            dim=job.dim,
            dtype=job.dtype,
            state="embedded" if missing else "complete already",
            embedded=embedded,
            reused=missing - embedded,
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

    def _find_again(self) -> None:
        """Rows that the store knows by their images' bytes; blocks of which all are known are written at once."""
        digests: list[Digests] = []

        def read() -> Digests:
            if not digests:
                digests.append(read_digests(self.target, self.pool))
                for block in self.content.missing:
                    self.content.out.write(block, digests[0][block.start : block.stop])
                self.content.missing = []
            return digests[0]

        lacking = {job.backbone.identity: job for job in self.jobs if job.missing}
        arrays = self.jobs[0].store.made_by(lacking) if lacking else {}
        for job in self.jobs:
            if not job.missing:
                continue
            known = find(job, self.target, arrays[job.backbone.identity], self.content.store, read)
            if known is None:
                continue
            self.reuse[job.name] = known
            n = known.count(job.missing)
            names = ", ".join(f"'{d.backbone}' on '{d.target}'" for d in known.donors)
            say(f"{job.name} on {self.target.name}: {n:,} rows are known from {names}, not computed again")
            for block in job.missing:
                if known.covers(block):
                    values = np.empty((len(block), job.dim), job.dtype)
                    known.fill(block, values)
                    self._write(job, _Block(block, values))

    def _pieces(self) -> Iterator[_Piece]:
        """The rows that are to be done, ascending, made as they are asked for: a target may have millions."""
        # Pixels and digests of a block are kept if all of it is done for some backbone.
        whole = {b for job in self.jobs for b in job.missing if not self._known(job, b)}
        parts = [self._pieces_of(job, job.missing) for job in self.jobs]
        parts += [self._pieces_of(job, [b for b in job.missing if b in whole]) for job in self.keeping]
        ordered = heapq.merge(*parts, key=lambda part: part[0])
        for (start, stop), same in itertools.groupby(ordered, key=lambda part: part[0]):
            yield _Piece(range(start, stop), [(job, block) for _, job, block in same])

    def _pieces_of(self, job: Job, blocks: list[range]) -> Iterator[tuple[tuple[int, int], Job, range]]:
        reuse = self.reuse.get(job.name)
        for block in blocks:
            rows = [
                range(i, min(i + self.piece_rows, block.stop)) for i in range(block.start, block.stop, self.piece_rows)
            ]
            rows = [r for r in rows if not (reuse and reuse.covers(r))]
            self.left[job.name, block.start] = len(rows)
            for r in rows:
                self.computed[job.name] += len(r)
                yield (r.start, r.stop), job, block

    def _known(self, job: Job, block: range) -> int:
        return self.reuse[job.name].count([block]) if job.name in self.reuse else 0

    def _to_do(self) -> int:
        """Rows that some backbone lacks."""
        lacking = np.zeros(self.target.n_images, bool)
        for job in self.jobs:
            for block in job.missing:
                part = lacking[block.start : block.stop]
                part |= True if job.name not in self.reuse else self.reuse[job.name].donor[block.start : block.stop] < 0
        return int(lacking.sum())

    def _all(self, pieces: Iterator[_Piece], advance: Advance) -> None:
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
        wanted = {job.source for job, _ in piece.jobs}
        pixels, bad = self.feed.pixels(piece.rows, wanted, self.piece_rows)
        result = _Result(pixels, {}, bad, {"decode": time.perf_counter() - clock})
        if self.on_cpu:
            self._make(piece, result)
        return result

    def _make(self, piece: _Piece, result: _Result) -> None:
        by_maker: dict[int, list[Job]] = {}
        for job, _ in piece.jobs:
            by_maker.setdefault(job.maker, []).append(job)
        for jobs in by_maker.values():
            clock, first = time.perf_counter(), jobs[0]
            used = -(-len(piece.rows) // first.batch) * first.batch
            pixels = result.pixels[first.source][:used]
            made = np.concatenate([first.make(pixels[i : i + first.batch]) for i in range(0, used, first.batch)])
            seconds = (time.perf_counter() - clock) / len(jobs)
            for job in jobs:
                result.values[job.name], result.spent[job.name] = made[: len(piece.rows), job.columns], seconds
        result.pixels = {}

    def _take(self, piece: _Piece, future: Future[_Result], advance: Advance) -> None:
        """Bring a piece to the jobs' blocks, and a block that is whole to the store."""
        result = future.result()
        if not self.on_cpu:
            self._make(piece, result)
        shared = self.threads if self.on_cpu else 1
        self.spent["decode"] += result.spent.pop("decode") / self.threads
        self.spent["forward"] += sum(result.spent.values()) / shared
        self.bad |= result.bad
        for job, rows in piece.jobs:
            made, seconds = result.values[job.name], result.spent[job.name] / shared
            job.seconds += seconds
            block = self.open.get(job.name)
            if block is None:
                block = self.open[job.name] = _Block(rows, np.zeros((len(rows), job.dim), made.dtype))
                if job.name in self.reuse:
                    self.reuse[job.name].fill(rows, block.values)
            start = piece.rows.start - block.rows.start
            block.values[start : start + len(made)] = made
            block.seconds += seconds
            self.left[job.name, rows.start] -= 1
            if not self.left[job.name, rows.start]:
                del self.left[job.name, rows.start]
                self._write(job, self.open.pop(job.name))
        advance(len(piece.rows), shares(self.spent))

    def _write(self, job: Job, block: _Block) -> None:
        clock = time.perf_counter()
        job.out.mark_bad({row: why for row, why in self.bad.items() if row in block.rows})
        empty = [row - block.rows.start for row in block.rows if row in self.known_bad or row in self.bad]
        block.values[empty] = np.nan if block.values.dtype.kind == "f" else 0
        job.out.write(block.rows, block.values, seconds=block.seconds)
        self.spent["write"] += time.perf_counter() - clock
