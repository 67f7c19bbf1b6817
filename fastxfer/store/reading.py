"""Blocks read from a local folder: whole ranges straight into the result, scattered rows from mapped files.

No byte is handed out unchecked. A range is read and its checksums computed while it is still in the processor's cache;
for scattered rows, a block's frame and a chunk's checksum are checked when the first row of it is asked for, and later
rows of the same chunk are only copied. So a gather costs what NumPy's costs on a mapped file, after the first touch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.store.blocks import SEAL_BYTES, Layout, crc
from fastxfer.store.layout import block_file

THREADS = 4
_PARALLEL_BYTES = 4 << 20  # below it threads cost more than they bring
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
        first, last = max(rows.start, mine.start) - mine.start, min(rows.stop, mine.stop) - mine.start
        descriptor = os.open(self.folder / block_file(number), os.O_RDONLY)
        try:
            checksums = bytearray(_CRC * layout.chunks(number))
            views = [memoryview(checksums)[i : i + _CRC] for i in range(0, len(checksums), _CRC)]
            gap = bytearray(layout.stride - layout.chunk_bytes - _CRC)
            chunks = range(first // layout.chunk_rows, (last - 1) // layout.chunk_rows + 1)
            # Chunks that are wanted whole land where they belong; of the others the part that is wanted is copied.
            parts: list[NDArray[np.uint8]] = []
            for chunk in chunks:
                start = (mine.start + chunk * layout.chunk_rows - rows.start) * layout.row_bytes
                whole = first <= chunk * layout.chunk_rows and (chunk + 1) * layout.chunk_rows <= last
                parts.append(
                    flat[start : start + layout.chunk_bytes] if whole else np.empty(layout.chunk_bytes, np.uint8)
                )
            buffers: list[Any] = [
                b for chunk, part in zip(chunks, parts, strict=True) for b in (part, views[chunk], gap)
            ]
            size = os.fstat(descriptor).st_size
            tail = SEAL_BYTES + layout.index_bytes
            got = os.preadv(descriptor, buffers, chunks.start * layout.stride)
            for chunk in range(layout.chunks(number)):
                if chunk not in chunks:
                    os.preadv(descriptor, [views[chunk]], chunk * layout.stride + layout.chunk_bytes)
            wrong = layout.check_frame(
                number, size, os.pread(descriptor, tail, max(0, size - tail)), bytes(checksums)
            ) or ("it is shorter than it was" if got < sum(len(b) for b in buffers) else "")
        finally:
            os.close(descriptor)
        if wrong:
            raise DamagedBlockError(number, wrong)
        for chunk, part in zip(chunks, parts, strict=True):
            _check_chunk(layout, number, chunk, part, checksums)
            begin, end = max(first, chunk * layout.chunk_rows), min(last, (chunk + 1) * layout.chunk_rows)
            if (end - begin) < layout.chunk_rows:
                inside = (begin - chunk * layout.chunk_rows) * layout.row_bytes
                to = (mine.start + begin - rows.start) * layout.row_bytes
                length = (end - begin) * layout.row_bytes
                flat[to : to + length] = part[inside : inside + length]


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
        self.mapped = np.zeros(layout.n_blocks, bool)
        chunk = np.arange(-(-layout.n_rows // layout.chunk_rows))
        self.checked = np.zeros(len(chunk), bool)
        # Row r of chunk c is item `base[c] + r * step`.
        self.step = layout.row_bytes // 2
        in_block = layout.block_rows // layout.chunk_rows
        at = chunk // in_block * self.stride + chunk % in_block * layout.stride
        self.base = at // 2 - chunk * layout.chunk_rows * self.step

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        layout = self.layout
        chunks = rows // layout.chunk_rows
        if not self.checked[chunks].all():  # IndexError if there is no such row
            self._touch(np.unique(chunks[~self.checked[chunks]]))
        items = rows * self.step
        items += self.base[chunks]
        return self.rows[items].view(layout.dtype).reshape(len(rows), layout.dim)

    def _touch(self, chunks: NDArray[np.int64]) -> None:
        in_block = self.layout.block_rows // self.layout.chunk_rows
        by_block: dict[int, list[int]] = {}
        for chunk in chunks.tolist():
            by_block.setdefault(chunk // in_block, []).append(chunk % in_block)
        _each(
            lambda number: self._touch_block(number, by_block[number]), by_block, len(chunks) * self.layout.chunk_bytes
        )

    def _touch_block(self, number: int, chunks: list[int]) -> None:
        layout = self.layout
        descriptor = os.open(self.folder / block_file(number), os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            tail = SEAL_BYTES + layout.index_bytes
            ends = (c * layout.stride + layout.chunk_bytes for c in range(layout.chunks(number)))
            checksums = b"".join(os.pread(descriptor, _CRC, end) for end in ends)
            if wrong := layout.check_frame(number, size, os.pread(descriptor, tail, max(0, size - tail)), checksums):
                raise DamagedBlockError(number, wrong)
            # Read, not looked at through the map: a failing disk is an error here, and a crash there.
            content = np.empty(layout.chunk_bytes, np.uint8)
            for chunk in chunks:
                os.preadv(descriptor, [content.data], chunk * layout.stride)
                _check_chunk(layout, number, chunk, content, checksums)
            if not self.mapped[number]:
                _map_file(self.address + number * self.stride, size, descriptor)
                self.mapped[number] = True
        finally:
            os.close(descriptor)
        self.checked[[number * (layout.block_rows // layout.chunk_rows) + chunk for chunk in chunks]] = True


def _check_chunk(
    layout: Layout, number: int, chunk: int, content: NDArray[np.uint8], checksums: bytes | bytearray
) -> None:
    if crc(content) != checksums[_CRC * chunk : _CRC * (chunk + 1)]:
        raise DamagedBlockError(number, layout.words(number, [chunk]))


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
