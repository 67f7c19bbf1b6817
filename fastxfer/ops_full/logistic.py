"""`logistic_full`: the full linear probe, at every penalty of a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import UsageError
from fastxfer.ops_full.check import check
from fastxfer.ops_full.losses import problem_of
from fastxfer.ops_full.solver import Path
from fastxfer.reference import LogisticResult

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Up to this many dimensions (or images, if fewer) the features are turned into their principal axes first: n^3 once,
# a third to a tenth of the iterations for each l2. Beyond, each feature is only scaled.
DECORRELATE = 3072


def logistic_full(
    x: ArrayLike,
    y: ArrayLike,
    query: ArrayLike,
    n_classes: int,
    l2: Sequence[float],
    *,
    tol: float = 1e-7,
    max_iter: int = 1000,
) -> LogisticResult:
    """Logistic regression on all of `x`, at every `l2`: (1/m) Σ loss(y_i, W x_i + b) + (l2/2) ‖W‖²_F, bias unpenalised.

    x (m, d), query (q, d), any float dtype; y (m,) class indices 0 … n_classes − 1, or (m, n_classes) floats, 1 for
    positive, 0 for negative, NaN for unknown. l2 (L,) > 0 in any order. Returns scores (L, q, n_classes), objective,
    iterations, converged (L,), in the order of `l2`.

    Single-label: softmax cross-entropy, or for two classes the binary loss with one weight vector; scores and classes
    without images as in `fastxfer.reference.logistic`. Multi-label: one binary problem a label over the images where
    it is known, whose number is the m of that label; scores are the decision values w·x + b, the objective is the sum
    over labels. A label known only as negative scores −inf, only as positive +inf; one that nobody knows scores NaN.

    The penalties are solved from the largest to the smallest, each starting at the solution before, by preconditioned
    L-BFGS: vectors in float64, products with the features in float32 until the last steps. It ends when half the
    squared Newton decrement, found by conjugate gradients on the true Hessian, is below `tol` times the objective; that
    is what was left to gain, and the Newton step that comes with it is taken. `iterations` counts steps, also those at
    larger penalties over which a distant value is approached.

    Memory beyond the arguments, in bytes, with r = min(m, d), or d where r > DECORRELATE: 20·m·r + 8·q·r for the
    features (float64 before and after turning, float32), 8·r² for their axes (not where r > DECORRELATE),
    2·HISTORY_BYTES for the solver's memory (or ten pairs, 320·c·r, if that is more), about 80·c·m for logits.
    """
    x, query, y = np.asarray(x), np.asarray(query), np.asarray(y)
    check(x, query, y, n_classes)
    penalties = np.asarray(l2, np.float64)
    if penalties.ndim != 1 or not len(penalties) or not (np.isfinite(penalties) & (penalties > 0)).all():
        raise UsageError(f"l2 must be a list of positive numbers, got {l2}")
    multi_label = y.ndim == 2
    constant, solved, problem = problem_of(y, n_classes)
    scores = np.broadcast_to(constant, (len(penalties), len(query), n_classes)).copy()
    objective, iterations = np.zeros(len(penalties)), np.zeros(len(penalties), np.int32)
    converged = np.ones(len(penalties), bool)
    if problem is None:
        return LogisticResult(scores.astype(np.float32), objective, iterations, converged)

    features, query_features = _features(x, query)
    path = Path(features, problem)
    for i in np.argsort(-penalties, kind="stable"):
        objective[i], iterations[i], converged[i] = path.solve_to(float(penalties[i]), tol, max_iter)
        z = query_features @ path.w[:-1] + path.w[-1]
        if multi_label:
            scores[i][:, solved] = z
        elif problem.columns == 1:
            scores[i] = np.hstack([-z / 2, z / 2])
        else:
            scores[i][:, solved] = z - z.mean(axis=1, keepdims=True)
    return LogisticResult(scores.astype(np.float32), objective, iterations, converged)


def _features(x: Array, query: Array) -> tuple[Floats, Floats]:
    """Centred features of train images and queries, on principal axes where that is affordable. Same minimum.

    With fewer images than dimensions, the weights lie in the span of the images, so min(m, d) features are enough.
    """
    m, d = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    centred, query = x - mean, query - mean
    if m < d:
        if m > DECORRELATE:
            return centred, query
        gram = centred @ centred.T
        square, axes = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        kept = square > square[-1] * 1e-14
        length = np.sqrt(square[kept])
        return axes[:, kept] * length, (query @ centred.T) @ (axes[:, kept] / length)
    if d > DECORRELATE:
        return centred, query
    _, axes = scipy.linalg.eigh(centred.T @ centred, driver="evd", overwrite_a=True, check_finite=False)
    return centred @ axes, query @ axes
