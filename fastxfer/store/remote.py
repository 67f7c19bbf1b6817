"""Blocks read from an object store: a request each, several under way at once, every byte checked."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype

from fastxfer.store import files
from fastxfer.store.blocks import Layout, crc
from fastxfer.store.layout import block_file
from fastxfer.store.reading import DamagedBlockError

THREADS = 16  # requests under way: an object store answers late, but many at once
# Of smaller blocks all is fetched, which one request does and the seal can be looked at; of larger ones, the chunks.
WHOLE_BYTES = 8 << 20
_CRC = 4


class RemoteBlocks:
    """The blocks of one array at a URL; what `LocalBlocks` is for a folder."""

    def __init__(self, backing: Store, path: str, layout: Layout) -> None:
        self.backing, self.path, self.layout = backing, path, layout

    def read(self, rows: range) -> NDArray[Any]:
        """(len(rows), dim): consecutive rows. DamagedBlockError or OSError."""
        return self.take(np.arange(rows.start, rows.stop))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(len(rows), dim): any rows, in this order. DamagedBlockError or OSError."""
        layout = self.layout
        out = np.empty((len(rows), layout.dim), layout.dtype)
        # Chunk by chunk, the places of the rows wanted of it.
        chunks = rows // layout.chunk_rows
        order = np.argsort(chunks, kind="stable")
        starts = np.flatnonzero(np.diff(chunks[order], prepend=-1))
        wanted = dict(zip(chunks[order][starts].tolist(), np.split(order, starts[1:]), strict=True))

        def fetch(some: list[int]) -> None:
            for chunk, values in self._fetch(some):
                places = wanted[chunk]
                out[places] = values[rows[places] - chunk * layout.chunk_rows]

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(fetch, self._requests(wanted)):
                pass
        return out

    def _requests(self, chunks: Iterable[int]) -> list[list[int]]:
        """Chunks, numbered through the array, that one request fetches."""
        in_block = self.layout.block_rows // self.layout.chunk_rows
        by_block: dict[int, list[int]] = {}
        for chunk in chunks:
            by_block.setdefault(chunk // in_block, []).append(chunk)
        requests = []
        for number, some in by_block.items():
            whole = len(some) == self.layout.chunks(number) or self.layout.size(number) <= WHOLE_BYTES
            requests += [some] if whole else [[chunk] for chunk in some]
        return requests

    def _fetch(self, chunks: list[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        """(chunk, its values (chunk_rows, dim)) of one request."""
        layout = self.layout
        number, first = divmod(chunks[0], layout.block_rows // layout.chunk_rows)
        start, end = first * layout.stride, first * layout.stride + layout.chunk_bytes
        if len(chunks) == 1 and layout.size(number) > WHOLE_BYTES:
            content = self._get(number, RangeByteRequest(start, end + _CRC))
            sound = len(content) == layout.chunk_bytes + _CRC and crc(content[:-_CRC]) == content[-_CRC:]
            why = "" if sound else layout.words(number, [first])
            start = 0
        else:
            content = self._get(number)
            why = layout.check(number, content)
        if why:
            raise DamagedBlockError(number, why)
        for chunk in chunks:
            at = start + (chunk - chunks[0]) * layout.stride
            values = np.frombuffer(content, layout.dtype, layout.chunk_rows * layout.dim, at)
            yield chunk, values.reshape(layout.chunk_rows, layout.dim)

    def _get(self, number: int, part: RangeByteRequest | None = None) -> bytes:
        key = f"{self.path}/{block_file(number)}"
        content = files.run(self.backing.get(key, default_buffer_prototype(), part))
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", key)
        return content.to_bytes()
