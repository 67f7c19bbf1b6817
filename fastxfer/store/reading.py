"""Blocks read from a local folder: whole ranges straight into the result, scattered rows from mapped files.

No byte is handed out unchecked. A range is read and its checksums computed while it is still in the processor's cache;
for scattered rows, a block's frame and a chunk's checksum are checked when the first row of it is asked for, and later
rows of the same chunk are only copied. So a gather costs what NumPy's costs on a mapped file, after the first touch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.store.blocks import SEAL_BYTES, Layout, crc
from fastxfer.store.layout import block_file

THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_PARALLEL_BYTES = 4 << 20  # below it threads cost more than they bring
_AT_ONE_GO = 256  # chunks: the system takes at most 1,024 buffers a call
_CRC = 4


class DamagedBlockError(Exception):
    """A block that cannot be read: its number and a few words."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


class LocalBlocks:
    """The blocks of one array in a folder, opened when they are asked for."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._map: _Map | None = None

    def read(self, rows: range) -> NDArray[Any]:
        """(len(rows), dim): consecutive rows. DamagedBlockError or OSError."""
        layout = self.layout
        out = np.empty((len(rows), layout.dim), layout.dtype)
        if not len(rows):
            return out
        flat = out.view(np.uint8).reshape(-1)

        def read_block(number: int) -> None:
            self._read_block(number, rows, flat)

        blocks = range(rows.start // layout.block_rows, (rows.stop - 1) // layout.block_rows + 1)
        _each(read_block, blocks, out.nbytes)
        return out

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(len(rows), dim): any rows, in this order. DamagedBlockError or OSError."""
        if self._map is None:
            self._map = _Map(self.folder, self.layout)
        return self._map.take(rows)

    def _read_block(self, number: int, rows: range, flat: NDArray[np.uint8]) -> None:
        layout = self.layout
        mine = layout.rows(number)
        first, last = max(rows.start, mine.start), min(rows.stop, mine.stop)
        out = flat[(first - rows.start) * layout.row_bytes : (last - rows.start) * layout.row_bytes]
        descriptor = os.open(self.folder / block_file(number), os.O_RDONLY)
        try:
            if last - first == layout.block_rows and layout.chunks(number) <= _AT_ONE_GO:
                self._read_whole(descriptor, number, out)
            else:
                self._read_part(descriptor, number, range(first - mine.start, last - mine.start), out)
        finally:
            os.close(descriptor)

    def _read_whole(self, descriptor: int, number: int, out: NDArray[np.uint8]) -> None:
        """All rows of a block straight into `out`, by one call, and checked while they are in the cache."""
        layout = self.layout
        size, n = layout.chunk_bytes, layout.chunks(number)
        stored = bytearray(_CRC * n)
        gap = bytearray(layout.stride - size - _CRC)
        tail = bytearray(SEAL_BYTES + layout.index_bytes + 1)  # a byte more than there should be
        parts = [out[i : i + size] for i in range(0, n * size, size)]
        checksums = (memoryview(stored)[i : i + _CRC] for i in range(0, _CRC * n, _CRC))
        buffers: list[Any] = [b for part, one in zip(parts, checksums, strict=True) for b in (part, one, gap)]
        got = os.preadv(descriptor, [*buffers, tail], 0)
        wrong = layout.check_frame(number, got, bytes(tail[:-1]), bytes(stored))
        if not wrong:
            damaged = [c for c, part in enumerate(parts) if crc(part) != stored[_CRC * c : _CRC * (c + 1)]]
            wrong = layout.words(number, damaged) if damaged else ""
        if wrong:
            raise DamagedBlockError(number, wrong)

    def _read_part(self, descriptor: int, number: int, rows: range, out: NDArray[np.uint8]) -> None:
        """Some rows of a block, by way of the chunks that hold them."""
        layout = self.layout
        chunks = range(rows.start // layout.chunk_rows, (rows.stop - 1) // layout.chunk_rows + 1)
        content = np.empty((len(chunks), layout.chunk_bytes), np.uint8)
        _check_chunks(layout, number, descriptor, chunks, content)
        start = (rows.start - chunks.start * layout.chunk_rows) * layout.row_bytes
        out[:] = content.reshape(-1)[start : start + len(out)]


class _Map:
    """All blocks side by side in one stretch of addresses, each mapped on its first touch."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.stride = -(-layout.size(0) // mmap.PAGESIZE) * mmap.PAGESIZE
        # Addresses only: nothing can be written to them, so the system reserves no memory for them.
        self.region = mmap.mmap(
            -1, self.stride * layout.n_blocks, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ
        )
        self.address = np.frombuffer(self.region, np.uint8).ctypes.data
        # A row is one item of NumPy's; items may begin at every even address, as chunks have gaps between them.
        count = (len(self.region) - layout.row_bytes) // 2 + 1
        self.rows: NDArray[Any] = np.ndarray((count,), f"V{layout.row_bytes}", buffer=self.region, strides=(2,))
        self.first: NDArray[np.uint8] = np.ndarray((count,), np.uint8, buffer=self.region, strides=(2,))
        self.mapped = np.zeros(layout.n_blocks, bool)
        chunk = np.arange(-(-layout.n_rows // layout.chunk_rows))
        self.checked = np.zeros(len(chunk), bool)
        self.all_checked = False
        # Row r of chunk c is item `base[c] + r * step`.
        self.step = layout.row_bytes // 2
        in_block = layout.block_rows // layout.chunk_rows
        at = chunk // in_block * self.stride + chunk % in_block * layout.stride
        self.base = at // 2 - chunk * layout.chunk_rows * self.step

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        layout = self.layout
        chunks = rows // layout.chunk_rows
        if not self.all_checked and not self.checked[chunks].all():
            self._touch(np.unique(chunks[~self.checked[chunks]]))
        items = rows * self.step
        items += self.base[chunks]
        # One byte of every row first: the processor waits for all rows at once, where copying would wait for each in turn.
        self.first[items]
        return self.rows[items].view(layout.dtype).reshape(len(rows), layout.dim)

    def _touch(self, chunks: NDArray[np.int64]) -> None:
        in_block = self.layout.block_rows // self.layout.chunk_rows
        by_block: dict[int, list[int]] = {}
        for chunk in chunks.tolist():
            by_block.setdefault(chunk // in_block, []).append(chunk % in_block)
        _each(
            lambda number: self._touch_block(number, by_block[number]), by_block, len(chunks) * self.layout.chunk_bytes
        )

        self.all_checked = bool(self.checked.all())

    def _touch_block(self, number: int, chunks: list[int]) -> None:
        layout = self.layout
        descriptor = os.open(self.folder / block_file(number), os.O_RDONLY)
        try:
            # Read, not looked at through the map: a failing disk is an error here, and a crash there.
            size = _check_chunks(layout, number, descriptor, chunks, np.empty((1, layout.chunk_bytes), np.uint8))
            if not self.mapped[number]:
                _map_file(self.address + number * self.stride, size, descriptor)
                self.mapped[number] = True
        finally:
            os.close(descriptor)
        self.checked[[number * (layout.block_rows // layout.chunk_rows) + chunk for chunk in chunks]] = True


def _check_chunks(
    layout: Layout, number: int, descriptor: int, chunks: Sequence[int], content: NDArray[np.uint8]
) -> int:
    """Check a block's frame and some chunks, read into the rows of `content` in turn; the file's size."""
    size = os.fstat(descriptor).st_size
    tail = SEAL_BYTES + layout.index_bytes
    ends = (c * layout.stride + layout.chunk_bytes for c in range(layout.chunks(number)))
    checksums = b"".join(os.pread(descriptor, _CRC, end) for end in ends)
    wrong = layout.check_frame(number, size, os.pread(descriptor, tail, max(0, size - tail)), checksums)
    if wrong:
        raise DamagedBlockError(number, wrong)
    for i, chunk in enumerate(chunks):
        into = content[i % len(content)]
        os.preadv(descriptor, [into.data], chunk * layout.stride)
        if crc(into) != checksums[_CRC * chunk : _CRC * (chunk + 1)]:
            raise DamagedBlockError(number, layout.words(number, [chunk]))
    return size


def _map_file(address: int, size: int, descriptor: int) -> None:
    """Map a file to an address inside a region of ours: what Python's own mmap cannot, as it chooses the address."""
    fixed = 0x10  # MAP_FIXED on Linux and macOS
    got = _libc().mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | fixed, descriptor, 0)
    if got != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    return libc


def _each(work: Callable[[int], None], numbers: Iterable[int], n_bytes: int) -> None:
    numbers = list(numbers)
    if len(numbers) < 2 or n_bytes < _PARALLEL_BYTES:
        for number in numbers:
            work(number)
        return

    def work_all(some: list[int]) -> None:
        for number in some:
            work(number)

    with ThreadPoolExecutor(min(THREADS, len(numbers))) as pool:
        for done in [pool.submit(work_all, some) for some in _shares(numbers)]:
            done.result()


def _shares(numbers: list[int]) -> list[list[int]]:
    """In a few runs each thread, so that one that is held up doesn't hold up all."""
    step = max(1, len(numbers) // (4 * THREADS))
    return [numbers[i : i + step] for i in range(0, len(numbers), step)]
