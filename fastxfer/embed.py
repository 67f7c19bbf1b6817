"""Images -> embeddings: decode ahead in threads, forward in fixed batches, write whole blocks, go on where it stopped.

Bits: every batch has the same shape (the last of a block is padded with black images) and the same place in its block,
whether or not the run was interrupted, so the same machine, torch, device, thread count and batch size give the same
bits. torch promises no more: another batch size, thread count or machine may choose another convolution algorithm and
differ in the last bits, which is why these are kept beside the embeddings.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastxfer import __version__
from fastxfer.backbones import PRECISIONS, Backbone, load_backbone
from fastxfer.errors import DataError, UsageError
from fastxfer.images import check_header, exists, load_image
from fastxfer.progress import progress, say
from fastxfer.store import BLOCK_ROWS, EmbeddingStore, Writer, check_name
from fastxfer.targets.changes import digest_of_sizes
from fastxfer.targets.table import Target

DTYPES = ("float16", "float32")
_SHOWN = 10
_AHEAD = 3  # batches being decoded while one is in the network
# What the last bits depend on besides weights and pixels.
_BITS = ("device", "threads", "batch_size", "torch_version")
_BATCH = {"cpu": 32, "cuda": 256}


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
    backbone: Backbone,
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
    """Embed the images of `targets`, only the row blocks that the store lacks; one `Embedded` a target.

    batch_size: images a forward pass [32 on a CPU, 256 on a GPU, halved there while memory runs out]
    workers:    decoding threads [one a core, at most 16]
    skip_bad:   leave out (and record) images that cannot be decoded, instead of stopping before the first forward pass
    dtype:      of the stored embeddings;  block_rows: rows written at once, the most a kill can cost

    Raises DataError for undecodable or missing images (named, before anything is computed), for embeddings of another
    backbone under this name, or if somebody else is writing; OSError for a full disk. What was written stays.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    for option, number in (("--batch-size", batch_size), ("--workers", workers), ("--block-rows", block_rows)):
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: expected 1 or more")
    check_name(backbone.name, "backbone")
    place = _device(device)
    batch = min(batch_size or _BATCH.get(place.type, 32), block_rows)
    threads = workers or min(16, _cores())
    attributes = {
        **backbone.provenance(),
        "dtype": dtype,
        "code_version": __version__,
        "torch_version": torch.__version__,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": batch,
    }

    def writer(target: Target) -> Any:
        return store.writer(
            backbone.name, target.name, dim=backbone.dim, dtype=dtype, attributes=attributes, block_rows=block_rows
        )

    # First everything that can be refused, for all targets; then the hours.
    for target in targets:
        if target.root is None:
            raise DataError(f"target '{target.name}' comes without its images (root is None)")
        store.add_target(target, files=digest_of_sizes(target.root, target.image_id))
        with writer(target) as out:
            rows = [row for block in out.missing for row in block if row not in out.bad]
        _check_images(target, rows, threads, contents=not skip_bad)

    run = _Run(backbone, place, batch, threads, skip_bad)
    done = []
    for target in targets:
        with writer(target) as out:
            done.append(run.embed(target, out, dtype, attributes))
    return done


class _Run:
    """One backbone on one device, fed by a pool of decoding threads."""

    def __init__(self, backbone: Backbone, device: torch.device, batch: int, threads: int, skip_bad: bool) -> None:
        self.backbone = backbone
        self.device = device
        self.batch = batch
        self.at_once = batch  # images a forward pass; less than a batch after the GPU's memory ran out
        self.threads = threads
        self.skip_bad = skip_bad
        self.network = backbone.network.to(device).to(memory_format=torch.channels_last)

    def embed(self, target: Target, out: Writer, dtype: str, attributes: dict[str, Any]) -> Embedded:
        backbone = self.backbone
        title = f"{backbone.name} on {target.name}"
        total = sum(len(block) for block in out.missing)
        spent = {"decode": 0.0, "forward": 0.0, "write": 0.0}
        started = time.perf_counter()
        if not total:
            say(f"{title}: complete ({target.n_images:,} images), nothing to do")
        else:
            if total < target.n_images:
                say(f"{title}: {target.n_images - total:,} of {target.n_images:,} rows are there, doing the rest")
                began = out.attributes
                other = [k for k in _BITS if began.get(k) != attributes.get(k)]
                if other:
                    say(f"{title}: begun with another {', '.join(other)}: last bits may differ from an unbroken run's")
            with progress(f"embed {title}", total, "images") as advance:
                self._blocks(target, out, spent, advance)
        seconds = time.perf_counter() - started if total else 0.0
        bad = out.bad
        if total and bad:
            say(f"{title}: {len(bad):,} images left out that cannot be decoded: {_join(list(bad.values()))}")
        if len(bad) == target.n_images:
            raise DataError(f"target '{target.name}': not one of its {len(bad):,} images can be decoded")
        return Embedded(
            backbone=backbone.name,
            target=target.name,
            n_images=target.n_images - len(bad),
            dim=backbone.dim,
            dtype=dtype,
            state="embedded" if total else "complete already",
            embedded=total,
            bad=len(bad),
            seconds=seconds,
            images_per_second=total / seconds if total else None,
            bound=max(spent, key=lambda name: spent[name]) if total else None,
            identity=backbone.identity,
        )

    def _blocks(self, target: Target, out: Writer, spent: dict[str, float], advance: Callable[[int], None]) -> None:
        known_bad = set(out.bad)
        values = np.empty((0, 0), np.float32)
        found: dict[int, str] = {}
        clock = block_started = time.perf_counter()

        def lap(name: str) -> float:
            nonlocal clock
            now = time.perf_counter()
            spent[name] += now - clock
            clock = now
            return now

        for block, rows, pixels, wrong in self._decoded(target, list(out.missing), known_bad):
            lap("decode")
            if rows.start == block.start:
                values = np.full((len(block), self.backbone.dim), np.nan, np.float32)
                found = {}
            found |= wrong
            result = self._forward(pixels)[: len(rows)]
            if result.shape != (len(rows), self.backbone.dim):
                raise DataError(
                    f"{self.backbone.name}: the network gave {result.shape[1:]} an image, expected {self.backbone.dim}"
                )
            values[rows.start - block.start : rows.stop - block.start] = result
            lap("forward")
            if rows.stop == block.stop:
                out.mark_bad(found)
                empty = [row - block.start for row in block if row in known_bad or row in found]
                values[empty] = np.nan
                out.write(block, values, seconds=clock - block_started)
                block_started = lap("write")
            advance(len(rows))

    def _decoded(
        self, target: Target, blocks: list[range], known_bad: set[int]
    ) -> Iterator[tuple[range, range, NDArray[np.uint8], dict[int, str]]]:
        """(block, its rows, pixels (batch, c, h, w), row -> why undecodable), in order, decoded ahead of their use."""
        geometry = self.backbone.preprocessing.geometry()
        shape = (self.batch, *self.backbone.preprocessing.input_size)

        def decode(rows: range, pixels: NDArray[np.uint8], part: int) -> dict[int, str]:
            wrong = {}
            for i in range(part, len(rows), parts):
                if rows[i] not in known_bad:
                    try:
                        pixels[i] = geometry(load_image(_path(target, rows[i]), pixels=target.pixels))
                    except DataError as error:
                        if not self.skip_bad or _is_lost(target, rows[i], error):
                            raise
                        wrong[rows[i]] = str(error)
            return wrong

        parts = self.threads
        batches = (
            (b, range(i, min(i + self.batch, b.stop))) for b in blocks for i in range(b.start, b.stop, self.batch)
        )
        waiting: deque[tuple[range, range, NDArray[np.uint8], list[Future[dict[int, str]]]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            for block, rows in batches:
                pixels = np.zeros(shape, np.uint8)
                waiting.append((block, rows, pixels, [pool.submit(decode, rows, pixels, p) for p in range(parts)]))
                if len(waiting) > _AHEAD:
                    yield _finish(waiting.popleft())
            while waiting:
                yield _finish(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        while True:
            try:
                with torch.inference_mode(), _exact(self.backbone.precision):
                    parts = [
                        self._forward_once(pixels[i : i + self.at_once]) for i in range(0, len(pixels), self.at_once)
                    ]
                return np.concatenate(parts)
            except torch.OutOfMemoryError:
                if self.at_once == 1:
                    raise DataError(
                        f"{self.backbone.name}: one image of {self.backbone.preprocessing.input_size} is more than the "
                        f"device's memory holds: a smaller --input-size, or --device cpu"
                    ) from None
                self.at_once = -(-self.at_once // 2)
                torch.cuda.empty_cache()
                say(f"the device's memory ran out: {self.at_once} images at once from here on")

    def _forward_once(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(pixels).to(self.device)
        images = self.backbone.preprocessing.normalise(images)
        images = images.to(PRECISIONS[self.backbone.precision], memory_format=torch.channels_last)
        return self.network(images).float().cpu().numpy()


def _finish(
    item: tuple[range, range, NDArray[np.uint8], list[Future[dict[int, str]]]],
) -> tuple[range, range, NDArray[np.uint8], dict[int, str]]:
    block, rows, pixels, futures = item
    wrong: dict[int, str] = {}
    for future in futures:
        wrong |= future.result()
    return block, rows, pixels, wrong


@contextmanager
def _exact(precision: str) -> Iterator[None]:
    """No TF32 where float32 was asked for (torch's default for convolutions is TF32), and repeatable algorithms."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


# -- looking before leaping --------------------------------------------------------------------------------------------


def _check_images(target: Target, rows: Sequence[int], threads: int, *, contents: bool) -> None:
    """Raise DataError naming images that are missing or, if `contents`, cannot be decoded."""

    def look(row: int) -> str | None:
        path = _path(target, row)
        if not exists(path):
            return f"{path}: there is no such file"
        if contents:
            try:
                check_header(path)
                if not _looks_whole(path):
                    load_image(path, pixels=target.pixels)
            except DataError as error:
                return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        wrong = [problem for problem in pool.map(look, rows) if problem]
    if wrong:
        lost = sum(problem.endswith("there is no such file") for problem in wrong)
        remedy = (
            "bring the files back, or add the target again"
            if lost
            else "repair or remove them, or leave them out with --skip-bad"
        )
        raise DataError(
            f"target '{target.name}': {len(wrong):,} of {len(rows):,} images "
            f"{'are missing' if lost == len(wrong) else 'cannot be used'}; nothing was computed; {remedy}: "
            f"{_join(wrong)}"
        )


def _looks_whole(path: str) -> bool:
    """Whether an image's first and last bytes are those of a whole JPEG or PNG; if not, only decoding can tell."""
    if not os.path.isfile(path):  # inside a container
        return False
    with open(path, "rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 32))
        tail = file.read()
    if head.startswith(b"\xff\xd8\xff"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    return head == b"\x89PNG\r\n\x1a\n" and tail[-8:-4] == b"IEND"


def _is_lost(target: Target, row: int, error: DataError) -> bool:
    """Whether a file went away or its disk failed, which is no fault of the image: leaving it out would hide it."""
    cause = error.__cause__
    gone = isinstance(cause, OSError) and cause.errno is not None
    return gone or not exists(_path(target, row))


def _path(target: Target, row: int) -> str:
    return os.path.join(str(target.root), str(target.image_id[row]))


def _join(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


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


def embed_again(
    store: EmbeddingStore, backbone: str, target: Target, *, ckpt: str | None = None, arch: str | None = None
) -> Embedded:
    """Embed what an array lacks, by the checkpoint that its provenance names, or by `ckpt`; as the first run did.

    arch: the architecture if it is code (``FILE.py:function``), which runs only when it is named

    DataError if the checkpoint or its identity is not the recorded one any more.
    """
    told = store.attributes(backbone, target.name)
    if arch is None and ".py" in str(told["architecture"]):
        raise DataError(f"the architecture is code ({told['architecture']}), which runs only when you name it: --arch")
    again = load_backbone(
        ckpt or str(told["checkpoint"]),
        arch=arch or str(told["architecture"]),
        arch_args=told.get("arch_args") or None,
        name=backbone,
        source=told.get("source"),
        pool=str(told["pooling"]),
        precision=str(told.get("precision", "float32")),
        preprocessing=told["preprocessing"],
    )
    if again.identity != told["identity"]:
        raise DataError(f"'{ckpt or told['checkpoint']}' is not the checkpoint that '{backbone}' was made with")
    (done,) = embed(again, [target], store, batch_size=told.get("batch_size"), dtype=str(told["dtype"]))
    return done
