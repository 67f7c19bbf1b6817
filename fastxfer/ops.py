"""The door to the ops: checks arguments once, then runs the backend that was asked for.

So far every op runs on the `reference` backend (float64 NumPy). `cpu` and `cuda` are named here and refused with a
message until the compiled module exists; nothing falls back in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer import reference
from fastxfer.errors import DataError, UsageError
from fastxfer.ops_full import knn_full, logistic_full
from fastxfer.reference import LogisticResult

__all__ = ["Pool", "knn", "knn_full", "logistic", "logistic_full", "prototype", "resolve_backend", "ridge"]

Array = NDArray[Any]
BACKENDS = ("reference", "cpu", "cuda")


def resolve_backend(backend: str) -> str:
    """The backend that will run; "auto" is the best there is. `UsageError` for one that is not built."""
    if backend in ("auto", "reference"):
        return "reference"
    if backend in BACKENDS:
        raise UsageError(f"backend '{backend}' is not built in this version of fastxfer: use --backend reference")
    raise UsageError(f"unknown backend '{backend}': choose among auto, {', '.join(BACKENDS)}")


class Pool:
    """What all episodes of one (backbone, target) share: the embeddings, checked.

    x (n, dim) of any float type. `DataError` for a wrong shape or a value that is not finite.
    """

    def __init__(self, x: ArrayLike, *, backend: str = "auto") -> None:
        self.backend = resolve_backend(backend)
        values = np.asarray(x)
        if values.ndim != 2 or values.dtype.kind != "f":
            raise DataError(f"embeddings must be a float array (n_images, dim), got {values.dtype} {values.shape}")
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise DataError(f"embedding of row {int(np.flatnonzero(~finite)[0])} is not finite")
        self.x = values.astype(np.float64)

    def __len__(self) -> int:
        return len(self.x)


def logistic(pool: Pool, support: Array, labels: Array, query: Array, ways: int, l2: Sequence[float]) -> LogisticResult:
    """L2-penalised logistic regression an episode and l2: support (E, m), labels (m,) or (E, m), query (E or 1, q).

    Minimises (1/m) Σ loss + (l2/2)‖W‖², bias unpenalised. Scores (E, L, q, ways).
    """
    _check(pool, support, labels, query, ways, l2)
    return reference.logistic(pool.x, support, labels, query, ways, l2)


def ridge(pool: Pool, support: Array, labels: Array, query: Array, ways: int, l2: Sequence[float]) -> Array:
    """Ridge regression on ±1 one-hot labels: scores (E, L, q, ways)."""
    _check(pool, support, labels, query, ways, l2)
    return reference.ridge(pool.x, support, labels, query, ways, l2)


def prototype(
    pool: Pool,
    support: Array,
    labels: Array,
    query: Array,
    ways: int,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> Array:
    """Nearest class mean: scores (E, q, ways)."""
    _check(pool, support, labels, query, ways, ())
    return reference.prototype(pool.x, support, labels, query, ways, metric=metric)


def knn(
    pool: Pool, support: Array, labels: Array, query: Array, ways: int, *, k: Sequence[int], temperature: float | None
) -> Array:
    """Cosine nearest neighbours: scores (E, len(k), q, ways)."""
    _check(pool, support, labels, query, ways, ())
    return reference.knn(pool.x, support, labels, query, ways, k=k, temperature=temperature)


def _check(pool: Pool, support: Array, labels: Array, query: Array, ways: int, l2: Sequence[float]) -> None:
    if support.ndim != 2 or query.ndim != 2 or support.shape[1] < 1 or len(query) not in (1, len(support)):
        raise UsageError(f"support must be (E, m ≥ 1) and query (E or 1, q), got {support.shape} and {query.shape}")
    if labels.shape not in (support.shape, support.shape[1:]):
        raise UsageError(f"labels must be (m,) or (E, m) = {support.shape}, got {labels.shape}")
    for name, rows in (("support", support), ("query", query)):
        if rows.dtype.kind not in "iu" or (rows.size and (rows.min() < 0 or rows.max() >= len(pool))):
            raise UsageError(f"{name} must be row numbers 0 … {len(pool) - 1} of the pool")
    if labels.size and (labels.min() < 0 or labels.max() >= ways):
        raise UsageError(f"labels must be in 0 … {ways - 1}")
    if any(not (np.isfinite(value) and value > 0) for value in l2):
        raise UsageError(f"l2 must be positive, got {list(l2)}")
