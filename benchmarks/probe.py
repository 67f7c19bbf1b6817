"""Full linear probe, 50,000 x 2,048, 10 classes, C = 1: ours against scikit-learn's LogisticRegression.

Both times count everything from embeddings in memory to the scores of 2,000 queries. scikit-learn runs with a tolerance
that brings it as near to the minimum as it gets in float32; `peer_gap` says how near, relative to ours. Checked: ours says
that it has converged, lies no higher than the peer by more than 1e-6, and gives the queries the same classes.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import many
from benchmarks.machine import side_by_side
from fastxfer import ops

PEER_TOL = 1e-8
QUERIES = 2000


def run(options: Any) -> list[dict[str, Any]]:
    """One entry."""
    m, dim = (1000, 64) if options.tiny else (50_000, 2048)
    x, labels, words = many(m + QUERIES, dim, synthetic=options.tiny)
    x, y, query = x[:m], labels[:m], x[m:]
    ours: list[ops.LogisticResult] = []
    peer: list[tuple[LogisticRegression, NDArray[Any]]] = []
    print("probe: ours and scikit-learn in turn; minutes each", file=sys.stderr)
    with threadpool_limits(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        fields = side_by_side(
            lambda _: ours.append(_ours(x, y, query)), lambda _: peer.append(_peer(x, y, query)), rounds=1
        )
    gap, same = _check(x, y, ours[-1], *peer[-1])
    return [
        {
            "name": "probe/full",
            "ways": 10,
            "shots": None,
            "queries": QUERIES,
            "dim": dim,
            "pool": m,
            "episodes": None,
            "l2": 1 / m,
            "peer": f"scikit-learn LogisticRegression, C = 1, float32, tol = {PEER_TOL:g}",
            **fields,
            "peer_gap": gap,
            "peer_iterations": int(peer[-1][0].n_iter_.max()),
            "same_classes": same,
            "checked": bool(ours[-1].converged.all() and gap >= -1e-6 and same >= 0.999),
            "threads": options.threads,
            "embeddings": words,
            "tiny": options.tiny,
        }
    ]


def _ours(x: NDArray[np.float32], y: NDArray[Any], query: NDArray[np.float32]) -> ops.LogisticResult:
    return ops.logistic_full(x, y, query, 10, [1 / len(x)])


def _peer(
    x: NDArray[np.float32], y: NDArray[Any], query: NDArray[np.float32]
) -> tuple[LogisticRegression, NDArray[Any]]:
    fitted = LogisticRegression(C=1.0, tol=PEER_TOL, max_iter=20_000).fit(x, y)
    return fitted, fitted.decision_function(query)


def _check(
    x: NDArray[np.float32], y: NDArray[Any], got: ops.LogisticResult, peer: LogisticRegression, scores: NDArray[Any]
) -> tuple[float, float]:
    """How much higher the peer's objective is, relative to ours, and the share of queries with the same class."""
    weights = peer.coef_.astype(np.float64)
    loss = 0.0
    for start in range(0, len(x), 5000):
        z = x[start : start + 5000] @ weights.T + peer.intercept_.astype(np.float64)
        loss += float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), y[start : start + 5000]]).sum())
    value = loss / len(x) + 0.5 / len(x) * float((weights**2).sum())
    same = float((got.scores[0].argmax(axis=1) == scores.argmax(axis=1)).mean())
    return value / float(got.objective[0]) - 1, same
