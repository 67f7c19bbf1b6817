"""Columns of text, millions of rows long: read as UTF-8 in one piece, made NumPy's text only if somebody asks for it.

NumPy's text takes four bytes a character and the width of the longest; as Python's strings each row is an object. What
most readers need of image ids is their bytes, for fingerprint and hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastxfer.store.blocks import crc

_CRC = 4


@dataclass(frozen=True, eq=False)
class Words:
    """Some rows of a column of text.

    text:  UTF-8 of all cells, a zero byte behind each
    start: (n + 1,) where each cell begins in it
    """

    text: NDArray[np.uint8]
    start: NDArray[np.int64]

    @classmethod
    def of_chunks(cls, chunks: Sequence[bytes], n_rows: int) -> Words:
        """From the chunks of a Zarr v3 array of strings, codecs `vlen-utf8` and `crc32c`. ValueError if they are damaged.

        The last chunk may have more cells than the array has rows, as in Zarr all chunks of an array have one shape.
        """
        from fastxfer.store.unpacking import HEAD, unpack  # numba only where text is read

        parts = [np.frombuffer(chunk, np.uint8) for chunk in chunks]
        for part in parts:
            if len(part) < HEAD + _CRC or crc(part[:-_CRC]) != part[-_CRC:].tobytes():
                raise ValueError("a chunk's checksum is wrong")
        counts = [int(part[:HEAD].view("<u4")[0]) for part in parts]
        # A cell has a zero byte behind it where it had its size before it.
        sizes = [len(part) - HEAD - _CRC - (HEAD - 1) * n for part, n in zip(parts, counts, strict=True)]
        if min(sizes, default=0) < 0:
            raise ValueError("a chunk is too short for its cells")
        text, start = np.empty(sum(sizes), np.uint8), np.zeros(sum(counts) + 1, np.int64)
        row = at = 0
        for part, n, size in zip(parts, counts, sizes, strict=True):
            if not unpack(part[HEAD:-_CRC], text[at : at + size], start[row : row + n + 1]):
                raise ValueError("a chunk's cells do not fill it")
            row, at = row + n, at + size
        if row < n_rows:
            raise ValueError(f"{row:,} cells instead of {n_rows:,}")
        return cls(text[: start[n_rows]], start[: n_rows + 1])

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, rows: NDArray[np.int64]) -> Words:
        from fastxfer.store.unpacking import gather, measure

        rows = np.arange(len(self))[rows]  # none is beyond the end
        start = np.empty(len(rows) + 1, np.int64)
        measure(self.start, rows, start)
        text = np.empty(start[-1], np.uint8)
        gather(self.text, self.start, rows, text, start)
        return Words(text, start)

    @cached_property
    def array(self) -> NDArray[np.str_]:
        """(n,) as NumPy's text."""
        from fastxfer.store.unpacking import longest, widen

        if self.text.max(initial=0) >= 0x80:
            content = self.text.tobytes()
            return np.array([content[i : j - 1].decode() for i, j in pairwise(self.start.tolist())])
        letters = np.zeros((len(self), max(1, longest(self.start) - 1)), np.uint32)
        widen(self.text, self.start, letters)
        cells: NDArray[np.str_] = letters.view(f"U{letters.shape[1]}").reshape(-1)
        return cells
