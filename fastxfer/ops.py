"""The only door to the compiled ops: arguments are checked here once, then go to `cpu` or `reference`.

Plain NumPy in and out. An episode is a row of `support` (m rows of the pool) with `labels` 0 … ways − 1, and a row of
`query` (q rows of the pool); a `query` of one row serves all episodes. Scores are float32 (reference: float64), the
largest names the predicted class. What each op means is written down in `fastxfer.reference`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer import reference
from fastxfer.errors import DataError, UsageError
from fastxfer.ops_full import knn_full, logistic_full
from fastxfer.reference import LogisticResult

try:
    from fastxfer import _C
except ImportError as error:  # said when the backend is asked for
    _C = None
    _WHY_NOT = str(error)

__all__ = [
    "LogisticResult",
    "Pool",
    "instruction_set",
    "knn",
    "knn_full",
    "logistic",
    "logistic_full",
    "prototype",
    "resolve_backend",
    "ridge",
]

Array = NDArray[Any]

BACKENDS = ("cuda", "cpu", "reference")
# A pool's Gram matrix may take this much memory.
GRAM_BYTES = 4 * 2**30
# Inner products of episodes that bring their own are held in blocks of this size.
BLOCK_BYTES = 64 * 2**20
# A BLAS product of the whole pool runs about this much faster, flop by flop, than many small ones.
GRAM_ADVANTAGE = 2.0
# Relative gap of the objective that the logistic solver stops at.
TOLERANCE = {"float32": 1e-6, "float64": 1e-9}


def resolve_backend(backend: str) -> str:
    """The backend that will run: "auto" is the compiled "cpu".

    `UsageError` for an unknown name, and for one that is not built here; nothing falls back in silence.
    """
    if backend == "auto":
        backend = "cpu"
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend '{backend}': choose among auto, {', '.join(BACKENDS)}")
    if backend == "cuda":
        raise UsageError("backend 'cuda' is not built in this version of fastxfer: use --backend cpu")
    if backend == "cpu" and _C is None:
        raise UsageError(
            f"the compiled module fastxfer._C can't be imported ({_WHY_NOT}): install fastxfer again with a C++20 "
            "compiler at hand (`pip install -e .` in a checkout), or use --backend reference"
        )
    return backend


def instruction_set() -> str:
    """Which of the processor's vector instructions the `cpu` backend uses: baseline, avx2 or avx512."""
    resolve_backend("cpu")
    return str(_C.instruction_set())


class Pool:
    """What all episodes of one (backbone, target) share: embeddings about their mean, and their inner products.

    x        (n_images, dim) embeddings, float16, float32 or float64
    dtype    precision of inner products and solver, "float32" or "float64"
    gram     True: one Gram matrix of the whole pool (n_images² numbers); False: inner products are made episode by
             episode; "auto": the Gram matrix once the episodes asked for would cost more without it, if it fits in 4 GiB
    threads  how many (default: OMP_NUM_THREADS, else all cores); changes no bit of an answer

    `DataError` for a wrong shape or type, or a value that is not finite.
    """

    def __init__(
        self,
        x: ArrayLike,
        *,
        backend: str = "auto",
        dtype: str = "float32",
        gram: Literal["auto"] | bool = "auto",
        threads: int | None = None,
    ) -> None:
        self.backend = resolve_backend(backend)
        if dtype not in TOLERANCE:
            raise UsageError(f"dtype must be 'float32' or 'float64', got '{dtype}'")
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        values = np.asarray(x)
        if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
            raise DataError(f"embeddings must be a float array (n_images, dim), got {values.dtype} {values.shape}")
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise DataError(f"embedding of row {int(np.flatnonzero(~finite)[0])} is not finite")
        self.dtype = np.dtype(dtype)
        self.threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0] or 0) or os.cpu_count() or 1
        self.n_images, self.dim = values.shape
        self.x = values
        self._gram_rule = gram
        self._gram: Array | None = None
        self._products = 0.0  # inner products that episodes have paid for themselves
        if self.backend == "reference":
            return

        # About the pool's mean, inner products keep more digits; `offset` tells what that took from them:
        # x_i·x_j = x̃_i·x̃_j + offset_i + offset_j.
        mean = values.mean(axis=0, dtype=np.float64)
        self.centred = np.empty(values.shape, self.dtype)
        square, raw_square, offset = (np.empty(self.n_images) for _ in range(3))
        for rows in _blocks(self.n_images, 8 * self.dim):
            wide = values[rows].astype(np.float64)
            raw_square[rows] = np.einsum("ij,ij->i", wide, wide)
            wide -= mean
            square[rows] = np.einsum("ij,ij->i", wide, wide)
            offset[rows] = wide @ mean + 0.5 * (mean @ mean)
            self.centred[rows] = wide
        self._square, self._offset = square, offset
        # Squares of very small or very large numbers leave float64's range long before float32's do; embeddings do not.
        with np.errstate(divide="ignore"):
            self._inverse_length = np.where(raw_square > 0, 1.0 / np.sqrt(raw_square), 0.0)

    def __len__(self) -> int:
        return self.n_images

    def gram(self) -> Array:
        """The (n_images, n_images) inner products of the centred embeddings, made on first use."""
        if self._gram is None:
            self._gram = self.centred @ self.centred.T
        return self._gram

    def _uses_gram(self, count: int, m: int, q: int) -> bool:
        if self._gram_rule != "auto":
            return bool(self._gram_rule)
        if self._gram is not None:
            return True
        if self.n_images**2 * self.dtype.itemsize > GRAM_BYTES:
            return False
        # Symmetric, so half the products. As long as episodes have paid less for their own, they go on doing so.
        self._products += float(count) * m * (m + q)
        return self._products * GRAM_ADVANTAGE >= 0.5 * self.n_images**2


def logistic(
    pool: Pool,
    support: ArrayLike,
    labels: ArrayLike,
    query: ArrayLike,
    ways: int,
    l2: Sequence[float],
    *,
    tol: float | None = None,
    max_iter: int = 2000,
) -> LogisticResult:
    """Logistic regression: the minimum of (1/m) Σ loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F, bias unpenalised.

    support (E, m), labels (m,) or (E, m), query (E, q) or (1, q), l2 (L,). Softmax cross-entropy for more than two
    ways, the binary logistic loss for two, whose scores are (−z/2, z/2); scikit-learn's C is 1/(m·l2). `tol` bounds the
    relative gap of the objective (default 1e-6, float64 1e-9). Returns scores (E, L, q, ways), and objective,
    iterations, converged (E, L).
    """
    s, y, q = _arguments(pool, support, labels, query, ways)
    penalties = _positive("l2", l2)
    tol = TOLERANCE[pool.dtype.name] if tol is None else tol
    if not tol > 0 or max_iter < 1:
        raise UsageError(f"tol must be positive and max_iter at least 1, got {tol} and {max_iter}")
    if pool.backend == "reference":
        return reference.logistic(pool.x, s, y, q, ways, list(penalties))
    parts = list(_run(pool, s, y, q, ways, lambda *e: _C.logistic(*e, penalties, tol, max_iter, pool.threads)))
    return LogisticResult(*(_join([part[i] for part in parts]) for i in range(4)))


def ridge(pool: Pool, support: ArrayLike, labels: ArrayLike, query: ArrayLike, ways: int, l2: Sequence[float]) -> Array:
    """Least squares on ±1 one-hot labels, (1/m) Σ ½‖W x + b − y‖² + (l2/2)‖W‖²_F: scores (E, L, q, ways)."""
    s, y, q = _arguments(pool, support, labels, query, ways)
    penalties = _positive("l2", l2)
    if pool.backend == "reference":
        return reference.ridge(pool.x, s, y, q, ways, list(penalties))
    return _join(list(_run(pool, s, y, q, ways, lambda *e: _C.ridge(*e, penalties, pool.threads))))


def prototype(
    pool: Pool,
    support: ArrayLike,
    labels: ArrayLike,
    query: ArrayLike,
    ways: int,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> Array:
    """Nearest class mean, −‖q − μ_c‖² or the cosine of q and μ_c: scores (E, q, ways)."""
    s, y, q = _arguments(pool, support, labels, query, ways)
    if metric not in ("euclidean", "cosine"):
        raise UsageError(f"metric must be 'euclidean' or 'cosine', got '{metric}'")
    if pool.backend == "reference":
        return reference.prototype(pool.x, s, y, q, ways, metric=metric)
    cosine = metric == "cosine"
    return _join(list(_run(pool, s, y, q, ways, lambda *e: _C.prototype(*e, cosine, pool.threads))))[:, 0]


def knn(
    pool: Pool,
    support: ArrayLike,
    labels: ArrayLike,
    query: ArrayLike,
    ways: int,
    *,
    k: Sequence[int],
    temperature: float | None = 0.07,
) -> Array:
    """Cosine nearest neighbours, shares of the vote with weights exp(similarity / temperature), or 1 with None.

    Scores (E, len(k), q, ways). A k above m counts as m; of equally similar images the first in `support` is nearer.
    """
    s, y, q = _arguments(pool, support, labels, query, ways)
    ks = np.asarray(k)
    if ks.ndim != 1 or not ks.size or ks.dtype.kind not in "iu" or ks.min() < 1:
        raise UsageError(f"k must be a list of numbers from 1, got {k}")
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature must be positive, got {temperature}")
    if pool.backend == "reference":
        return reference.knn(pool.x, s, y, q, ways, k=list(ks), temperature=temperature)
    distinct, place = np.unique(np.minimum(ks, s.shape[1]).astype(np.int32), return_inverse=True)
    scores = _join(list(_run(pool, s, y, q, ways, lambda *e: _C.knn(*e, distinct, temperature or 0.0, pool.threads))))
    return scores if len(place) == len(distinct) and (np.diff(place) > 0).all() else scores[:, place]


def _run(pool: Pool, support: Array, labels: Array, query: Array, ways: int, op: Callable[..., Any]) -> Iterator[Any]:
    """Call the compiled op on all episodes, or block by block with inner products of their own."""
    count, m = support.shape
    q = query.shape[1]
    if pool._uses_gram(count, m, q):
        images = (v[None] for v in (pool._offset, pool._inverse_length, pool._square))
        yield op(pool.gram(), support, query, labels, *images, count, ways)
        return
    at_support = np.arange(m)[None]
    at_query = np.arange(m, m + q)[None]
    step = BLOCK_BYTES // (pool.dtype.itemsize * ((m + q) * pool.dim + m * (m + q)))
    for start in range(0, max(count, 1), max(step, 1)):
        window = slice(start, min(start + max(step, 1), count))
        n = window.stop - window.start
        rows = np.concatenate(
            [support[window], np.broadcast_to(query if len(query) == 1 else query[window], (n, q))], 1
        )
        if len(query) == 1 and q > m:  # shared queries are gathered once
            own = pool.centred[support[window]]
            flat = own.reshape(n * m, pool.dim) @ pool.centred[query[0]].T
            block = np.concatenate([own @ own.transpose(0, 2, 1), flat.reshape(n, m, q)], axis=2)
        else:
            both = pool.centred[rows]
            block = both[:, :m] @ both.transpose(0, 2, 1)
        images = (v[rows] for v in (pool._offset, pool._inverse_length, pool._square))
        own_labels = labels if len(labels) == 1 and count != 1 else labels[window]
        yield op(np.ascontiguousarray(block), at_support, at_query, own_labels, *images, n, ways)


def _join(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _blocks(n: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _positive(name: str, values: Sequence[float]) -> NDArray[np.float64]:
    made = np.ascontiguousarray(values, np.float64)
    if made.ndim != 1 or not made.size or not (np.isfinite(made).all() and (made > 0).all()):
        raise UsageError(f"{name} must be a list of positive numbers, got {values}")
    return made


def _arguments(
    pool: Pool, support: ArrayLike, labels: ArrayLike, query: ArrayLike, ways: int
) -> tuple[Array, Array, Array]:
    """support (E, m), query (E or 1, q) as int64; labels (E or 1, m) as int32; everything in range."""
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
    if ways < 1 or y.dtype.kind not in "iu" or (y.size and (y.min() < 0 or y.max() >= ways)):
        raise UsageError(f"labels must be integers 0 … ways − 1 = {ways - 1}")
    return (
        np.ascontiguousarray(s, np.int64),
        np.ascontiguousarray(np.atleast_2d(y), np.int32),
        np.ascontiguousarray(q, np.int64),
    )
