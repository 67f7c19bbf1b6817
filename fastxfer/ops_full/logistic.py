"""`logistic_full`: the full linear probe, at every penalty of a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from fastxfer.crew import Crew, crew
from fastxfer.errors import UsageError
from fastxfer.ops_full.check import as_rows, check, check_class_weight, check_finite, pieces
from fastxfer.ops_full.losses import loss_of
from fastxfer.ops_full.rows import Rows
from fastxfer.ops_full.solver import Path, principal_axes
from fastxfer.reference import ClassWeight, LogisticResult

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Up to this many dimensions (or images, if fewer) the principal axes of the embeddings are found first: n³ once, a third
# to a tenth of the iterations for each l2. Beyond, each feature is only scaled.
AXES = 8192
# They are found from this many rows a dimension.
ROWS_PER_AXIS = 4


def logistic_full(
    x: Any,
    y: ArrayLike,
    query: Any,
    n_classes: int,
    l2: Sequence[float],
    *,
    tol: float = 1e-7,
    max_iter: int = 1000,
    class_weight: ClassWeight = None,
) -> LogisticResult:
    """Logistic regression on all of `x`, at every `l2`: the minimum of (1/m) Σ w(y_i) loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F.

    x (m, d), query (q, d), any float dtype: arrays, or what has `shape`, `dtype` and slices of rows, like a zarr array or
    a memory map, and is then read block by block. y (m,) class indices 0 … n_classes − 1, or (m, n_classes) floats, 1
    for positive, 0 for negative, NaN for unknown. l2 (L,) > 0 in any order. Returns scores (L, q, n_classes),
    objective, iterations, converged (L,), in the order of `l2`. `UsageError` for what does not fit, NaN and infinity.

    The bias is not penalised. class_weight: None, w = 1; a positive w a class (multi-label: of negatives and of positives,
    for every label); or "balanced", m / (classes seen · images of the class): scikit-learn's at the same C = 1/(m·l2).

    Single-label: softmax cross-entropy, or for two classes the binary loss with one weight vector; scores and classes
    without images as in `fastxfer.reference.logistic`. Multi-label: one binary problem a label over the images where
    it is known, whose number is the m of that label; scores are the decision values w·x + b, the objective is the sum
    over labels. A label known only as negative scores −inf, only as positive +inf; one that nobody knows scores NaN.

    The penalties are solved from the largest to the smallest, each starting from the solution before, by L-BFGS
    preconditioned by the embeddings' covariance, in float32 with float64 sums. It ends in float64, when half the squared
    Newton decrement, found by conjugate gradients on the true Hessian, is below 5·`tol` times the objective: that is
    what was left to gain, and the Newton step that comes with it gains most of it. `iterations` counts steps, also those
    at larger penalties over which a distant value is approached.

    As many threads work as BLAS has; any number of them gives the same bits.

    Memory beyond the arguments, in bytes: 4·m·d for a centred copy if that is at most KEEP_BYTES of `ops_full.rows` and
    half of what is available (else x is read again in each of some hundred passes an l2), 0.3 GiB for blocks and 8·c·d a
    thread, 16·d² for the covariance's axes where d ≤ AXES (where m < d: 16·m·d + 24·m² instead), 80·c·d and HISTORY_BYTES
    for the solver (or ten pairs, 160·c·d, if that is more), 4·m·c for the losses' curvature where that is at most
    KEEP_BYTES of `ops_full.solver`, 3·m·c for the labels if they are many, and the scores, 4·L·q·c.
    """
    x, query, y = as_rows(x), as_rows(query), np.asarray(y)
    check(x, query, y, n_classes)
    for rows in pieces(query.shape, 1):
        check_finite(np.asarray(query[rows]), "query", rows.start)
    penalties = np.asarray(l2, np.float64)
    if penalties.ndim != 1 or not len(penalties) or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise UsageError(f"l2 must be a list of positive numbers, got {l2}")
    multi_label = y.ndim == 2
    check_class_weight(class_weight, 2 if multi_label else n_classes)
    constant, solved, loss = loss_of(y, n_classes, class_weight)
    scores = np.empty((len(penalties), query.shape[0], n_classes), np.float32)
    scores[:] = constant
    objective, iterations = np.zeros(len(penalties)), np.zeros(len(penalties), np.int32)
    converged = np.ones(len(penalties), bool)
    with crew() as threads:
        features = _features(x, loss.columns if loss else 1, threads)
        if loss is None:
            return LogisticResult(scores, objective, iterations, converged)
        n_axes = features.rows.shape[1]
        sample = ROWS_PER_AXIS * n_axes if n_axes <= AXES else 0
        path = Path(features.rows, loss, features.spread, features.axes, threads, sample)
        for i in np.argsort(-penalties, kind="stable"):
            objective[i], iterations[i], converged[i] = path.solve_to(
                float(penalties[i]) / features.scale**2, tol, max_iter
            )
            w = path.w

            def score(rows: slice, w: Floats = w) -> tuple[slice, Floats]:
                return rows, features.of(np.asarray(query[rows])) @ w[:-1] + w[-1]

            for rows, z in threads.each(score, pieces(query.shape, 1)):
                if multi_label:
                    scores[i, rows][:, solved] = z
                elif loss.columns == 1:
                    scores[i, rows] = np.hstack([-z / 2, z / 2])
                else:
                    scores[i, rows][:, solved] = z - z.mean(axis=1, keepdims=True)
    return LogisticResult(scores, objective, iterations, converged)


@dataclass(frozen=True)
class _Features:
    """What the solver walks through: `rows`, whose variances are `spread` (r,) along `axes` (r, r), or along themselves.

    `of` makes the same r features of other embeddings; weights for them are `scale` times those of the embeddings.
    """

    rows: Rows
    scale: float
    spread: Floats
    axes: Array | None
    of: Callable[[Array], Floats]


def _features(x: Any, columns: int, crew: Crew) -> _Features:
    m, d = x.shape
    rows = Rows(x, columns)
    if m < d and m <= AXES:
        # The weights lie in the span of the images, so m features or fewer are enough; these are on their axes already.
        centred = rows.centred(np.asarray(x[:]))
        square, axes = scipy.linalg.eigh(
            crew.product(centred, centred.T), driver="evd", overwrite_a=True, check_finite=False
        )
        there = square > square[-1] * 1e-14
        if there.any():
            length = np.sqrt(square[there])
            back = crew.product(centred.T, axes[:, there] / length)
            turned = Rows(axes[:, there] * length, columns)
            scale = rows.scale * turned.scale
            return _Features(turned, scale, turned.spread, None, lambda q: turned.centred(rows.centred(q) @ back))
    if d > AXES:
        return _Features(rows, rows.scale, rows.spread, None, rows.centred)
    spread, axes = principal_axes(rows.covariance(ROWS_PER_AXIS * d, crew))
    return _Features(rows, rows.scale, spread, axes, rows.centred)
