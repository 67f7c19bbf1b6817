"""Loops over millions of cells of text, compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

HEAD = 4  # bytes: number of cells before a chunk's cells, or of bytes before a cell's
# Indices are unsigned throughout: numba would look for negative ones otherwise, and copy byte by byte.
_U = np.uint64


@numba.njit(cache=True)
def unpack(packed: Any, text: Any, start: Any) -> bool:
    """Cells from (size, bytes) to (bytes, 0); start[0] is known. False if they aren't as long as what they are packed in."""
    at, out, begin = _U(0), _U(0), start[_U(0)]
    for i in range(len(start) - 1):
        if at + _U(HEAD) > len(packed):
            return False
        size = _U(0)
        for j in range(HEAD):
            size |= _U(packed[at + _U(j)]) << _U(8 * j)
        at += _U(HEAD)
        if at + size > len(packed) or out + size >= len(text):
            return False
        for j in range(size):
            text[out + _U(j)] = packed[at + _U(j)]
        text[out + size] = 0
        at, out = at + size, out + size + _U(1)
        start[_U(i + 1)] = begin + np.int64(out)
    return at == len(packed)


@numba.njit(cache=True)
def longest(start: Any) -> Any:
    """Bytes of the longest cell, with the zero behind it; 0 if there is none."""
    most = np.int64(0)
    for i in range(len(start) - 1):
        most = max(most, start[_U(i + 1)] - start[_U(i)])
    return most


@numba.njit(cache=True)
def measure(start: Any, rows: Any, out_start: Any) -> None:
    """Where cells `rows` begin if they are put behind each other."""
    at = np.int64(0)
    for i in range(len(rows)):
        row = _U(rows[_U(i)])
        out_start[_U(i)] = at
        at += start[row + _U(1)] - start[row]
    out_start[_U(len(rows))] = at


@numba.njit(cache=True)
def gather(text: Any, start: Any, rows: Any, out: Any, out_start: Any) -> None:
    """Cells `rows` of (text, start), each to its place in `out`."""
    for i in range(len(rows)):
        row, to = _U(rows[i]), _U(out_start[_U(i)])
        begin = _U(start[row])
        for j in range(_U(start[row + _U(1)]) - begin):
            out[to + _U(j)] = text[begin + _U(j)]


@numba.njit(cache=True)
def widen(text: Any, start: Any, letters: Any) -> None:
    """ASCII to UTF-32, a row of `letters` a cell."""
    for i in range(len(letters)):
        begin, end = _U(start[_U(i)]), _U(start[_U(i + 1)]) - _U(1)
        for j in range(end - begin):
            letters[_U(i), _U(j)] = text[begin + _U(j)]
