"""What all episodes of one (backbone, target) share, and the check of what an op is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.backend import compiled, resolve_backend, spread_rows
from fastxfer.crew import crew
from fastxfer.errors import DataError, UsageError

Array = NDArray[Any]

# A pool's Gram matrix may take this much memory.
GRAM_BYTES = 4 * 2**30
# What is made block by block is made in blocks of about this size.
BLOCK_BYTES = 64 * 2**20
# A BLAS product of the whole pool runs about this much faster, flop by flop, than many small ones.
GRAM_ADVANTAGE = 1.5

# Nothing is to be taken off.
NO_MEAN = np.empty(0, np.float32)

# Rows of a tile of the Gram matrix.
TILE = 1024


def products_of(m: int, q: int, weights: int | None = None) -> float:
    """Inner products that an episode of m + q images needs if it makes them alone: m² (half, by symmetry), and m for each query.

    Or, for a probe of so many `weights` vectors: what it takes to make these of the support, and one for each query.
    """
    direct = m * q
    return 0.5 * m * (m + 1) + (direct if weights is None else min(direct, weights * (m + q)))


def gram_pays(n_support: int, n_images: int, products: float, itemsize: int = 4) -> bool:
    """Whether the Gram matrix of a pool costs less than `products`, the inner products that episodes would make alone."""
    if n_support * n_images * itemsize > GRAM_BYTES:
        return False
    # Between images that serve as support it is symmetric, so half of it.
    return products * GRAM_ADVANTAGE >= n_support * (n_images - 0.5 * n_support)


class Pool:
    """What all episodes of one (backbone, target) share: embeddings about their mean, and their inner products.

    x        (n_images, dim) embeddings, float16, float32 or float64
    support  rows that may serve as support (default: all). Products of two images that only serve as queries are never
             asked for, so the Gram matrix leaves them out.
    dtype    precision of inner products and solver, "float32" or "float64"; episodes that float32's rounding could
             change visibly (images that nearly coincide, more images than dimensions) are solved in float64 all the same
    gram     True: one Gram matrix, n_support · n_images numbers; False: inner products are made episode by episode;
             "auto": every call decides by its own cost (`gram_pays`), whatever was asked before
    centred  the embeddings lie about zero as they are: nothing is to be gained by taking their mean off
    threads  how many (default: OMP_NUM_THREADS, else all cores); changes no bit of an answer

    `DataError` for a wrong shape or type, or a value that is not finite.
    """

    def __init__(
        self,
        x: ArrayLike,
        *,
        support: ArrayLike | None = None,
        backend: str = "auto",
        dtype: str = "float32",
        gram: Literal["auto"] | bool = "auto",
        threads: int | None = None,
        centred: bool = False,
    ) -> None:
        self.backend = resolve_backend(backend)
        if dtype not in ("float32", "float64"):
            raise UsageError(f"dtype must be 'float32' or 'float64', got '{dtype}'")
        if gram not in (True, False, "auto"):
            raise UsageError(f"gram must be True, False or 'auto', got {gram!r}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        values = np.asarray(x)
        if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
            raise DataError(f"embeddings must be a float array (n_images, dim), got {values.dtype} {values.shape}")
        self.x = values
        self.n_images, self.dim = values.shape
        self.dtype = np.dtype(dtype)
        self.threads = threads or _threads()
        self.device: Any = None  # what the cuda backend keeps on the device
        self._gram_rule = gram
        self._gram: Array | None = None
        self._may_support = _mask(support, self.n_images)
        self.n_support = int(self._may_support.sum())
        if self.backend == "reference":
            _require_finite(np.isfinite(values).all(axis=1))
            return
        # What is not contiguous and native is copied.
        self._stored = np.ascontiguousarray(values, {2: np.float16, 4: np.float32}.get(values.itemsize, np.float64))
        total, digest, finite = compiled.examine(self._stored, self.threads)
        _require_finite(finite)
        self._order = np.argsort(~self._may_support, kind="stable")  # place -> row: support first
        self._place = np.empty(self.n_images, np.int64)
        self._place[self._order] = np.arange(self.n_images)
        self._place = _first_alike(self._stored, digest, self._order)[self._place]
        # About the pool's mean, inner products keep more digits; `offset` tells what that took from them:
        # x_i·x_j = x̃_i·x̃_j + offset_i + offset_j.
        self.mean = np.zeros(self.dim) if centred else total / self.n_images
        self._narrow = self._stored.dtype == np.float16 and self.dtype == np.float32 and self.backend == "cpu"
        if self._narrow:  # a float takes float16 about this mean with one rounding, whenever that is done
            self.mean = self.mean.astype(np.float32).astype(np.float64)
        made = None if self._narrow else spread_rows(self.n_images, self.dim, self.dtype)
        self._centred: Array | None = made
        self.square, self.offset, self.inverse_length = compiled.centre(
            self._stored, self._order, self.mean, made, self.threads
        )

    def __len__(self) -> int:
        return self.n_images

    @property
    def centred(self) -> Array:
        """(n_images, dim) embeddings about `mean`, by place; of float16 made on first use."""
        if self._centred is None:
            made = spread_rows(self.n_images, self.dim, self.dtype)
            compiled.centre(self._stored, self._order, self.mean, made, self.threads)
            self._centred = made
        return self._centred

    def lying(self, *places: Array) -> tuple[Array, tuple[Array, ...], Array]:
        """Embeddings as they lie in memory, where in them the images of `places` are, and what is to be taken off still.

        They are the centred ones, by place, or float16 as they were given: half as much to bring from memory.
        """
        if self._narrow:
            return self._stored, tuple(self._order[p] for p in places), self.mean.astype(np.float32)
        return self.centred, places, NO_MEAN

    def gram(self) -> Array:
        """(n_support, n_images) inner products of the centred embeddings by place, made on first use."""
        if self._gram is None:
            self._gram = np.empty((self.n_support, self.n_images), self.dtype)
            fill_gram(self.centred, self._gram, self.threads)
        return self._gram

    def uses_gram(self, count: int, m: int, q: int, weights: int | None = None) -> bool:
        """Whether `count` episodes of m + q images should use the pool's Gram matrix; `weights`: see `products_of`."""
        if self._gram_rule != "auto":
            return bool(self._gram_rule)
        return gram_pays(self.n_support, self.n_images, count * products_of(m, q, weights), self.dtype.itemsize)

    def places(self, rows: Array) -> Array:
        """Where rows of `x` stand in the pool's own arrays: images that may serve as support first.

        Rows that hold the same embedding share a place. BLAS may give equal rows products of different last bits, by
        where they stand; so equal images are made one, and what ought to tie does.
        """
        return rows if self.backend == "reference" else self._place[rows]

    def may_support(self, rows: Array) -> Array:
        """Which rows of `x` may serve as support."""
        return self._may_support[rows]

    def precise(self, support: Array, query: Array) -> tuple[Pool, Array, Array]:
        """A float64 pool of the images that some episodes need, and the places of their images in it."""
        places, where = np.unique(np.concatenate([support.ravel(), query.ravel()]), return_inverse=True)
        pool = Pool(self.x[self._order[places]], backend=self.backend, dtype="float64", threads=self.threads)
        return pool, where[: support.size].reshape(support.shape), where[support.size :].reshape(query.shape)


def _mask(rows: ArrayLike | None, n: int) -> Array:
    if rows is None:
        return np.ones(n, bool)
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (chosen.size and not 0 <= chosen.min() <= chosen.max() < n):
        raise UsageError(f"support must be integer rows 0 … {n - 1} of the embeddings")
    mask = np.zeros(n, bool)
    mask[chosen] = True
    return mask


def fill_gram(x: Array, out: Array, threads: int | None = None) -> None:
    """Inner products of the first rows of x (n, dim) with all, into `out` (first rows, n); as many threads as BLAS has.

    By tiles, the same for any number of threads. Of the square, half are made, and mirrored while they are in the cache.
    """
    m, n = out.shape

    def tile(place: tuple[int, int]) -> None:
        rows, columns = (slice(i, min(i + TILE, m if i < m else n)) for i in place)
        made = out[rows, columns]
        np.matmul(x[rows], x[columns].T, out=made)  # NumPy sees where it is symmetric
        if columns.start < rows.start:
            out[columns, rows] = made.T

    places = [(i, j) for i in range(0, m, TILE) for j in range(0, i + 1, TILE)]
    places += [(i, j) for j in range(m, n, TILE) for i in range(0, m, TILE)]
    with crew(threads) as team:
        team.do(tile, places)


def _require_finite(rows: Array) -> None:
    if not rows.all():
        raise DataError(f"embedding of row {int(np.flatnonzero(~rows)[0])} is not finite")


def _first_alike(values: Array, digest: Array, order: Array) -> Array:
    """(n,) for each place of `order` the first place whose row is equal to it; equal rows have equal digests."""
    first = np.arange(len(values))
    _, which, counts = np.unique(digest[order], return_inverse=True, return_counts=True)
    seen: dict[bytes, int] = {}
    for place in np.flatnonzero(counts[which] > 1):  # unequal rows rarely have equal digests
        row = values[order[place]] + values.dtype.type(0)  # + 0 makes −0 and 0 one
        # 128 bits of a hash stand for the row, so that the rows are not held twice.
        first[place] = seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), int(place))
    return first


def first_places(rows: Array) -> Array:
    """(n, k) rows -> (n, k) for each place the first place of its line that holds the same row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    starts = np.concatenate([np.ones((len(rows), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    leader = np.maximum.accumulate(np.where(starts, np.arange(rows.shape[1]), 0), axis=1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.take_along_axis(order, leader, axis=1), axis=1)
    return places


def blocks(n: int, row_bytes: int, block_bytes: int | None = None) -> Iterator[slice]:
    """Slices of n rows, each of about `block_bytes` (default: BLOCK_BYTES)."""
    step = max(1, (block_bytes or BLOCK_BYTES) // row_bytes)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def windows(pool: Pool, count: int, m: int, q: int, *, gathered: int) -> Iterator[slice]:
    """Episodes whose inner products and `gathered` embeddings fit into one block of memory at a time; at least one window."""
    yield from blocks(count, pool.dtype.itemsize * (gathered * pool.dim + m * (m + q)))
    if count == 0:
        yield slice(0, 0)


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_episodes(
    pool: Pool, support: ArrayLike, labels: ArrayLike, query: ArrayLike, ways: int
) -> tuple[Array, Array, Array]:
    """Places of support (E, m) and query (E or 1, q) as int64; labels (E or 1, m) as int32; everything in range.

    `UsageError` names the argument that is not what it should be.
    """
    s, y, q = np.asarray(support), np.asarray(labels), np.asarray(query)
    if s.ndim != 2 or q.ndim != 2 or s.shape[1] < 1 or len(q) not in (1, len(s)):
        raise UsageError(f"support must be (E, m) with m ≥ 1 and query (E, q) or (1, q), got {s.shape} and {q.shape}")
    if y.shape not in (s.shape, s.shape[1:]):
        raise UsageError(f"labels must be (m,) or (E, m) for a support of {s.shape}, got {y.shape}")
    for name, rows in (("support", s), ("query", q)):
        if rows.dtype.kind not in "iu":
            raise UsageError(f"{name} must be integer rows of the pool, got {rows.dtype}")
        if rows.size and (rows.min() < 0 or rows.max() >= len(pool)):
            raise UsageError(f"{name} must be rows 0 … {len(pool) - 1} of the pool, got {rows.min()} … {rows.max()}")
    if not pool.may_support(s).all():
        raise UsageError("support holds rows that the pool was told not to expect there: see its `support`")
    if ways < 1 or y.dtype.kind not in "iu" or (y.size and (y.min() < 0 or y.max() >= ways)):
        raise UsageError(f"labels must be integers 0 … ways − 1 = {ways - 1}")
    return (
        np.ascontiguousarray(pool.places(s), np.int64),
        np.ascontiguousarray(np.atleast_2d(y), np.int32),
        np.ascontiguousarray(pool.places(q), np.int64),
    )


def check_l2(values: Sequence[float]) -> NDArray[np.float64]:
    """Penalties as an array (L,); `UsageError` unless all are positive numbers."""
    made = np.asarray(values, np.float64)
    if made.ndim != 1 or not made.size or not (np.isfinite(made).all() and (made > 0).all()):
        raise UsageError(f"l2 must be a list of positive numbers, got {values}")
    return np.ascontiguousarray(made)


def check_k(values: Sequence[int]) -> NDArray[np.int32]:
    """Numbers of neighbours as an array; `UsageError` unless all are whole and at least 1."""
    made = np.asarray(values)
    if made.ndim != 1 or not made.size or made.dtype.kind not in "iu" or made.min() < 1:
        raise UsageError(f"k must be a list of whole numbers from 1, got {values}")
    return made.astype(np.int32)
