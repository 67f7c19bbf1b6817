"""Embeddings of a train split as the solver walks through them: in blocks of rows, about their mean, at one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.backend import spread_rows
from fastxfer.crew import PANEL, Crew
from fastxfer.files import available_memory
from fastxfer.ops_full.check import check_finite, pieces
from fastxfer.ops_full.products import FEW

Array = NDArray[Any]
Floats = NDArray[np.float64]
Block = tuple[slice, Callable[[], Array]]  # rows, and the function that makes their (b, d) centred embeddings

# A centred float32 copy of the embeddings is kept if it takes no more than this, nor than half the memory that is
# available; else they are read again in each pass. Answers are the same, to the bit.
KEEP_BYTES = 8 * 2**30
# Rows are multiplied in blocks that stay in the processor's cache while both products are made; with many columns,
# reading costs nothing beside multiplying, and BLAS wants more rows.
CACHE_BYTES = 4 * 2**20
MANY_ROWS = 512


class Rows:
    """Embeddings (m, d) of any float type, in memory or not: what has `shape`, `dtype` and slices of rows will do.

    Blocks are (x − mean) / scale; scale² is the mean squared length of a centred row. `spread` (d,) is the variance of
    each feature of the blocks. `UsageError` names the first row that holds NaN or infinity.
    """

    def __init__(self, x: Any, columns: int) -> None:
        """columns: of the weights with which the rows will be multiplied."""
        self.x = x
        self.shape: tuple[int, int] = (int(x.shape[0]), int(x.shape[1]))
        m, d = self.shape
        # The same blocks, and so the same bits, whether rows are kept or read.
        self.step = int(np.clip(CACHE_BYTES // (4 * d), 16 if columns <= FEW else MANY_ROWS, 4096))
        chunk = getattr(x, "chunks", None)
        self.pieces = pieces(self.shape, int(np.lcm(self.step, chunk[0])) if chunk else self.step)
        total, square = np.zeros(d), np.zeros(d)
        first = np.asarray(x[:1])[0].astype(np.float64)
        for rows, block in self._read():
            check_finite(block, "train", rows.start)
            wide = block - first  # so that a large common offset costs no digits
            total += wide.sum(axis=0)
            square += np.einsum("ij,ij->j", wide, wide)
        self.mean = first + total / m
        variance = np.maximum(square - total**2 / m, 0.0) / m
        self.scale = float(np.sqrt(variance.sum())) or 1.0
        self.spread: Floats = variance / self.scale**2
        self.keeps = 4 * m * d <= min(KEEP_BYTES, available_memory() // 2)
        self.kept: NDArray[np.float32] | None = None

    def centred(self, block: Array) -> Floats:
        """Rows as the solver sees them, float64."""
        return np.asarray((block - self.mean) / self.scale)

    def blocks(self, dtype: type[np.floating[Any]]) -> Iterator[Block]:
        """Centred embeddings of all rows, in float32 or float64."""
        m, d = self.shape
        if dtype is np.float32 and self.keeps:
            if self.kept is None:
                kept = spread_rows(m, d, np.float32)
                for rows, block in self._read():
                    kept[rows] = self.centred(block)
                self.kept = kept
            for start in range(0, m, self.step):
                rows = slice(start, min(start + self.step, m))
                yield rows, partial(self.kept.__getitem__, rows)
            return
        for rows, block in self._read():
            yield rows, partial(self._made, block, dtype)

    def covariance(self, n_rows: int, crew: Crew, weights: Floats | None = None) -> NDArray[np.float32]:
        """(d, d) Σ w x xᵀ / Σ w with weights (m,) ≥ 0, or all alike; only the upper triangle is filled.

        From some `n_rows` of the rows: those of large weight, and of the others as many as their weights ask for.
        """
        m, d = self.shape
        taken_rows, root = _sample(np.ones(m) if weights is None else weights, n_rows)
        total = np.zeros((d, d), np.float32, order="F")
        taken: list[Array] = []
        for rows, make in self.blocks(np.float32):
            chosen = taken_rows[rows]
            taken.append(make()[chosen] * root[rows][chosen, None])
            # Few large products are faster than many small ones.
            if sum(map(len, taken)) >= 2048 or rows.stop == m:
                crew.do(partial(_add_panel, total, np.concatenate(taken)), range(0, d, PANEL))
                taken.clear()
        return total

    def _made(self, block: Array, dtype: type[np.floating[Any]]) -> Array:
        return self.centred(block).astype(dtype, copy=False)

    def _read(self) -> Iterator[tuple[slice, Array]]:
        """Blocks of `step` rows as they are, read in larger pieces."""
        for piece in self.pieces:
            block = np.asarray(self.x[piece])
            for start in range(0, len(block), self.step):
                part = block[start : start + self.step]
                yield slice(piece.start + start, piece.start + start + len(part)), part


def _add_panel(total: Array, x: Array, start: int) -> None:
    """Some columns of xᵀx, as far as they reach down to the diagonal."""
    end = min(start + PANEL, len(total))
    total[:end, start:end] += x[:, :end].T @ x[:, start:end]


def _sample(weights: Floats, n: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which rows are taken (m,), about n of them, and by what each is multiplied (m,), so that squares sum as weights / Σ.

    A row is taken with the chance p = min(1, t·weight), all those chances summing to n, at even steps of their running
    sum: no random numbers, and equal weights take evenly spaced rows.
    """
    p = (weights > 0).astype(np.float64)
    if p.sum() > n:
        low, high = np.log(n / weights.sum()), np.log(1 / weights[weights > 0].min())
        for _ in range(60):
            middle = (low + high) / 2
            few = np.minimum(1.0, np.exp(middle) * weights).sum() < n
            low, high = (middle, high) if few else (low, middle)
        p = np.minimum(1.0, np.exp(high) * weights)
    taken = np.diff(np.floor(np.cumsum(p) + 0.5), prepend=0.0) > 0
    root = np.sqrt(np.divide(weights, p * weights.sum(), out=np.zeros_like(weights), where=p > 0))
    return taken, root.astype(np.float32)
