"""A row block as bytes: one shard of Zarr v3's `sharding_indexed` codec, made, checked and taken apart without zarr.

    chunk 0, its crc32c, zeros, chunk 1, its crc32c, zeros, …, seal, index of (offset, nbytes) as uint64, its crc32c

A chunk is some rows, little-endian, uncompressed. Zeros and seal are ours, in unused space that the specification allows
(`sharding-indexed` 1.0, "binary shard format"), so any Zarr reader takes the block as it is. With the zeros every chunk
begins at a multiple of 64 bytes: the kernel copies a file's bytes twice as fast if they keep their place in a cache line.
The seal is a SHA-256 of whose rows these are (backbone's identity, target's fingerprint, shape, dtype), which rows, and
their checksums: a block in another's place, whose checksums are sound, is found out. Being inside the block it comes and
goes with it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

SEAL_BYTES = 32
ALIGN = 64
_CRC = 4
_EMPTY = 2**64 - 1  # offset and size of a chunk that is not there
_INNER = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
# What the rows of a block that is not full are filled up with, as in zarr.json; pixels (uint8) know no NaN, nor byte order.
FILL: dict[str, Any] = {"float16": "NaN", "float32": "NaN", "uint8": 0}
_TYPES = {"float16": "<f2", "float32": "<f4", "uint8": "|u1"}


@dataclass(frozen=True)
class Layout:
    """How an array (n_rows, dim) lies in blocks of `block_rows` rows, each of chunks of `chunk_rows`.

    key: whose rows they are (`key_of`)
    """

    n_rows: int
    dim: int
    dtype: np.dtype[Any]
    block_rows: int
    chunk_rows: int
    key: bytes

    @cached_property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    @cached_property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * self.row_bytes

    @cached_property
    def stride(self) -> int:
        """Bytes from chunk to chunk."""
        return -(-(self.chunk_bytes + _CRC) // ALIGN) * ALIGN

    @cached_property
    def index_bytes(self) -> int:
        return 16 * (self.block_rows // self.chunk_rows) + _CRC

    @property
    def n_blocks(self) -> int:
        return -(-self.n_rows // self.block_rows)

    def rows(self, number: int) -> range:
        """The rows of a block."""
        return range(number * self.block_rows, min((number + 1) * self.block_rows, self.n_rows))

    def chunks(self, number: int) -> int:
        """How many chunks of a block hold rows: the last block may have fewer than it has room for."""
        return -(-len(self.rows(number)) // self.chunk_rows)

    def size(self, number: int) -> int:
        """Bytes of a block's file."""
        return self.chunks(number) * self.stride + SEAL_BYTES + self.index_bytes

    def index(self, number: int) -> bytes:
        """The index of a block's chunks, with its checksum."""
        return self._full_index if len(self.rows(number)) == self.block_rows else self._index(self.chunks(number))

    @cached_property
    def _full_index(self) -> bytes:
        return self._index(self.block_rows // self.chunk_rows)

    def _index(self, chunks: int) -> bytes:
        entries = np.full((self.block_rows // self.chunk_rows, 2), _EMPTY, "<u8")
        for chunk in range(chunks):
            entries[chunk] = chunk * self.stride, self.chunk_bytes + _CRC
        content = entries.tobytes()
        return content + crc(content)

    def seal(self, number: int, checksums: bytes) -> bytes:
        """`checksums`: those of the block's chunks, in their order."""
        rows = self.rows(number)
        return hashlib.sha256(self.key + b"%d:%d:" % (rows.start, rows.stop) + checksums).digest()

    def encode(self, number: int, values: NDArray[Any]) -> memoryview:
        """The file of a block, from its values (rows, dim); rows that fill up its last chunk are NaN (pixels: 0)."""
        content = np.zeros(self.size(number), np.uint8)
        checksums = b""
        for chunk in range(self.chunks(number)):
            start = chunk * self.stride
            end = start + self.chunk_bytes
            inside = content[start:end].view(self.dtype).reshape(self.chunk_rows, self.dim)
            part = values[chunk * self.chunk_rows : (chunk + 1) * self.chunk_rows]
            inside[: len(part)] = part
            inside[len(part) :] = np.nan if self.dtype.kind == "f" else 0
            checksum = crc(content[start:end])
            content[end : end + _CRC] = np.frombuffer(checksum, np.uint8)
            checksums += checksum
        tail = self.seal(number, checksums) + self.index(number)
        content[-len(tail) :] = np.frombuffer(tail, np.uint8)
        return content.data

    def check_frame(self, number: int, size: int, tail: bytes, checksums: bytes) -> str:
        """What is wrong with a block apart from its chunks: a few words, "" if nothing.

        tail: the last `SEAL_BYTES + index_bytes` of its `size` bytes;  checksums: as stored behind its chunks
        """
        expected = self.size(number)
        if size != expected:
            return f"{size:,} bytes instead of {expected:,}"
        if tail[SEAL_BYTES:] != self.index(number):
            return "the index of its chunks is damaged"
        if tail[:SEAL_BYTES] != self.seal(number, checksums):
            return "its seal is damaged, or it is another block's"
        return ""

    def check(self, number: int, content: bytes) -> str:
        """What is wrong with a block's file: a few words, "" if nothing. Every byte counts."""
        if len(content) != self.size(number):
            return f"{len(content):,} bytes instead of {self.size(number):,}"
        values = np.frombuffer(content, np.uint8)
        checksums = b""
        wrong = []
        for chunk in range(self.chunks(number)):
            start = chunk * self.stride
            end = start + self.chunk_bytes
            checksums += content[end : end + _CRC]
            gap = content[end + _CRC : start + self.stride]
            if crc(values[start:end]) != content[end : end + _CRC] or gap.strip(b"\0"):
                wrong.append(chunk)
        if wrong:
            return self.words(number, wrong)
        return self.check_frame(number, len(content), content[-SEAL_BYTES - self.index_bytes :], checksums)

    def words(self, number: int, chunks: Sequence[int]) -> str:
        """That chunks of a block have wrong checksums."""
        first = self.rows(number).start + chunks[0] * self.chunk_rows
        n = len(chunks) - 1
        more = f" and {n} chunk{'s' if n > 1 else ''} more" if n else ""
        return f"the checksum of rows {first:,} to {min(first + self.chunk_rows, self.n_rows) - 1:,}{more} is wrong"


def crc(content: bytes | NDArray[np.uint8]) -> bytes:
    """CRC-32C, little-endian."""
    if isinstance(content, np.ndarray):  # google_crc32c takes nothing that can be written to
        content = content.view()
        content.flags.writeable = False
    checksum: int = google_crc32c.value(content)
    return checksum.to_bytes(_CRC, "little")


def key_of(identity: str, fingerprint: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """Whose rows: of which backbone, of which target, in which form."""
    words = json.dumps([identity, fingerprint, *shape, dtype.name])
    return hashlib.sha256(words.encode()).digest()


def layout_of(document: Mapping[str, Any], fingerprint: str) -> Layout | None:
    """The layout that an array's zarr.json tells; None if it is not one that is written here, which zarr may read."""
    try:
        n_rows, dim = document["shape"]
        dtype = np.dtype(_TYPES[document["data_type"]])
        inner = _INNER if dtype.itemsize > 1 else [{"name": "bytes"}, _INNER[1]]
        block_rows, width = document["chunk_grid"]["configuration"]["chunk_shape"]
        (codec,) = document["codecs"]
        chunk_rows = codec["configuration"]["chunk_shape"][0]
        told = (
            sys.byteorder,
            document["chunk_grid"]["name"],
            document["chunk_key_encoding"],
            document["fill_value"],
            codec["name"],
            codec["configuration"],
            width,
            block_rows % chunk_rows,
        )
    except (KeyError, TypeError, ValueError):
        return None
    expected = (
        "little",
        "regular",
        {"name": "default", "configuration": {"separator": "."}},
        FILL[document["data_type"]],
        "sharding_indexed",
        {"chunk_shape": [chunk_rows, dim], "codecs": inner, "index_codecs": _INNER, "index_location": "end"},
        dim,
        0,
    )
    if told != expected:
        return None
    identity = str(document.get("attributes", {}).get("identity"))
    key = key_of(identity, fingerprint, (n_rows, dim), dtype)
    return Layout(n_rows, dim, dtype, block_rows, chunk_rows, key)
