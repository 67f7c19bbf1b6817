"""The only door to the compiled ops: arguments are checked here once, then go to cuda, cpu or reference.

Plain NumPy in and out. An episode is a row of `support` (m rows of the pool) with `labels` 0 … ways − 1, and a row of
`query` (q rows of the pool); a `query` of one row serves all episodes. Scores are float32 (reference: float64), the
largest names the predicted class. What each op means is written down in `fastxfer.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer import reference
from fastxfer.backend import instruction_set, resolve_backend
from fastxfer.errors import UsageError
from fastxfer.ops import cpu, cuda
from fastxfer.ops.pool import Pool, blocks, check_episodes, check_k, check_l2, gram_pays, products_of
from fastxfer.ops_full import INDEXES, knn_full, logistic_full
from fastxfer.ops_full.check import check_class_weight
from fastxfer.reference import ClassWeight, LogisticResult

__all__ = [
    "INDEXES",
    "ClassWeight",
    "LogisticResult",
    "Pool",
    "blocks",
    "gram_pays",
    "instruction_set",
    "knn",
    "knn_full",
    "logistic",
    "logistic_full",
    "products_of",
    "prototype",
    "resolve_backend",
    "ridge",
]

Array = NDArray[Any]

# Relative gap of the objective that the logistic solver stops at.
TOLERANCE = {"float32": 1e-6, "float64": 1e-9}


def logistic(
    pool: Pool,
    support: ArrayLike,
    labels: ArrayLike,
    query: ArrayLike,
    ways: int,
    l2: Sequence[float],
    *,
    tol: float | None = None,
    max_iter: int = 5000,
    class_weight: ClassWeight = None,
) -> LogisticResult:
    """Logistic regression: the minimum of (1/m) Σ w(y_i) loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F, bias unpenalised.

    support (E, m), labels (m,) or (E, m), query (E, q) or (1, q), l2 (L,). Softmax cross-entropy for more than two
    ways, the binary logistic loss for two, whose scores are (−z/2, z/2); scikit-learn's C is 1/(m·l2). `tol` bounds the
    relative gap of the objective (default 1e-6, float64 1e-9). class_weight: None (w = 1), a positive w for each of the
    ways, or "balanced": m / (classes seen · images of the class); as in scikit-learn at the same C. Returns scores (E, L, q, ways), and objective,
    iterations, converged (E, L).
    """
    s, y, q = check_episodes(pool, support, labels, query, ways)
    penalties = check_l2(l2)
    tol = TOLERANCE[pool.dtype.name] if tol is None else tol
    if not tol > 0 or max_iter < 1:
        raise UsageError(f"tol must be positive and max_iter at least 1, got {tol} and {max_iter}")
    weight = check_class_weight(class_weight, ways)
    if pool.backend == "reference":
        return reference.logistic(pool.x, s, y, q, ways, list(penalties), class_weight=class_weight)
    weights = {"class_weight": weight, "balanced": class_weight is not None and not len(weight)}
    *answer, doubtful = _engine(pool).logistic((pool, s, y, q, ways), penalties, tol, max_iter, **weights)
    which = _to_repeat(pool, doubtful)
    if len(which):
        exact, s, q = pool.precise(s[which], q if len(q) == 1 else q[which])
        y = y if len(y) == 1 else y[which]
        again = _engine(pool).logistic((exact, s, y, q, ways), penalties, tol, max_iter, **weights)
        for array, part in zip(answer, again, strict=False):
            array[which] = part
    return LogisticResult(*answer)


def ridge(pool: Pool, support: ArrayLike, labels: ArrayLike, query: ArrayLike, ways: int, l2: Sequence[float]) -> Array:
    """Least squares on ±1 one-hot labels, (1/m) Σ ½‖W x + b − y‖² + (l2/2)‖W‖²_F: scores (E, L, q, ways)."""
    s, y, q = check_episodes(pool, support, labels, query, ways)
    penalties = check_l2(l2)
    if pool.backend == "reference":
        return reference.ridge(pool.x, s, y, q, ways, list(penalties))
    scores, doubtful = _engine(pool).ridge((pool, s, y, q, ways), penalties)
    which = _to_repeat(pool, doubtful)
    if len(which):
        exact, s, q = pool.precise(s[which], q if len(q) == 1 else q[which])
        y = y if len(y) == 1 else y[which]
        scores[which] = _engine(pool).ridge((exact, s, y, q, ways), penalties)[0]
    return scores


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
    s, y, q = check_episodes(pool, support, labels, query, ways)
    if metric not in ("euclidean", "cosine"):
        raise UsageError(f"metric must be 'euclidean' or 'cosine', got '{metric}'")
    if pool.backend == "reference":
        return reference.prototype(pool.x, s, y, q, ways, metric=metric)
    return _engine(pool).prototype((pool, s, y, q, ways), metric == "cosine")[:, 0]


def knn(
    pool: Pool,
    support: ArrayLike,
    labels: ArrayLike,
    query: ArrayLike,
    ways: int,
    *,
    k: Sequence[int],
    temperature: float | None = 0.07,
    by_distance: bool = False,
) -> Array:
    """Cosine nearest neighbours, shares of the vote with weights exp(similarity / temperature), or 1 with None.

    by_distance: weights 1 / (1 − similarity) instead, as scikit-learn's weights="distance" with metric="cosine".
    Scores (E, len(k), q, ways). A k above m counts as m; of equally similar images the first in `support` is nearer.
    """
    s, y, q = check_episodes(pool, support, labels, query, ways)
    ks = check_k(k)
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature must be positive, or None for a plain vote, got {temperature}")
    if pool.backend == "reference":
        return reference.knn(
            pool.x, s, y, q, ways, k=[int(n) for n in ks], temperature=temperature,
            by_distance=by_distance,
        )  # fmt: skip
    distinct, place = np.unique(np.minimum(ks, s.shape[1]), return_inverse=True)
    scores = _engine(pool).knn((pool, s, y, q, ways), distinct, temperature or 0.0, by_distance=by_distance)
    return scores if np.array_equal(place, np.arange(len(distinct))) else scores[:, place]


def _engine(pool: Pool) -> Any:
    return {"cpu": cpu, "cuda": cuda}[pool.backend]


def _to_repeat(pool: Pool, doubtful: Array) -> Array:
    """Episodes to be solved again with inner products in float64."""
    return np.flatnonzero(doubtful) if pool.dtype == np.float32 else np.empty(0, np.int64)
