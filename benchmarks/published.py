"""What others have published, written out with NumPy and scikit-learn: protocols, optima and the numbers of official splits.

Tests and `python -m benchmarks truth` hold ours against these. Nothing here imports fastxfer, so that no mistake is shared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# The field's 45 values: C = 10^-6 … 10^5 (SimCLR, appendix B.8; DINOv2, eval/log_regression.py).
FIELD_C = np.logspace(-6, 5, 45)

# target -> images of each split: of NIH ChestX-ray14 by its own lists, of the others by the paper (2.4) or the official table.
OFFICIAL_SPLITS: dict[str, dict[str, int]] = {
    "nih14": {"train": 86_524, "test": 25_596},
    "chexpert": {"train": 191_010},
    "padchest-paper": {"train": 144_638, "test": 16_071},
    "padchest-cl": {"train": 37_387, "test": 4_153},
}


def least_objectives(x: Floats, y: Rows, c_values: Floats) -> Floats:
    """The least objective of logistic regression at each C, by scikit-learn's Newton solver in float64.

    It works on x in coordinates of its own span, which changes no inner product, and on one scale, since its tolerances
    are absolute. x (m, d); y (m,) any integers; returns (len(c_values),) in our convention, mean loss + l2/2 ‖W‖².
    """
    m = len(y)
    r = np.linalg.qr((x - x.mean(axis=0)).T, mode="r")
    scale = np.sqrt((r**2).sum() / m)
    span = r.T / scale
    classes = np.unique(y)
    rank = np.searchsorted(classes, y)
    found = np.full(len(c_values), np.nan)
    for i, c in enumerate(c_values):
        peer = LogisticRegression(C=c * scale**2, solver="newton-cholesky", tol=1e-12, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(span, y)
        z = peer.decision_function(span)
        z = np.stack([-z / 2, z / 2], axis=1) if len(classes) == 2 else z
        others = z - z[np.arange(m), rank][:, None]
        others[np.arange(m), rank] = -np.inf
        top = np.maximum(others.max(axis=1), 0)
        loss = np.mean(top + np.log1p(np.exp(-top) - 1 + np.exp(others - top[:, None]).sum(axis=1)))
        found[i] = loss + 0.5 / (m * c) * (peer.coef_**2).sum() / scale**2
    return found


def gaps(objective: Floats, best: Floats, c_values: Floats, spread: float) -> Floats:
    """Relative gaps of `objective` to `least_objectives`, last axis over c_values.

    Where hardly any penalty is left (C times the features' spread, the sum of their variances, above 1e9), scikit-learn's
    absolute tolerance ends its search early: there ours may be better, and only what is worse is a gap.
    """
    gap = objective / best - 1
    return np.where(c_values * spread <= 1e9, np.abs(gap), gap)


def accuracy_of(c: float, x: Floats, y: Rows, fit: Rows, score: Rows) -> float:
    """Of scikit-learn's logistic regression."""
    model = LogisticRegression(C=c, tol=1e-8, max_iter=20_000).fit(x[fit], y[fit])
    return float((model.predict(x[score]) == y[score]).mean())


def best_of_grid(c_values: Floats, x: Floats, y: Rows, train: Rows, val: Rows) -> tuple[float, float]:
    """(C, accuracy on validation): the first of equals, as a running maximum keeps it (SimCLR B.8, DINOv2)."""
    on_val = [accuracy_of(c, x, y, train, val) for c in c_values]
    return float(c_values[int(np.argmax(on_val))]), max(on_val)


def clip_search(on_val: Callable[[int], float]) -> int:
    """CLIP, appendix A.3: start at lambda = 1e-6, 1e-4, … 1e6; halve the interval around the best until there are eight steps
    a decade. on_val: of lambda = 10^(place / 8); returns the best place."""
    places, step = list(range(-48, 49, 16)), 16
    best = max(places, key=on_val)
    while step > 1:
        step //= 2
        best = max((p for p in (best - step, best, best + step) if -48 <= p <= 48), key=on_val)
    return best


def big_vision(support: Floats, y: Rows, query: Floats, n_classes: int) -> Floats:
    """Scores (q, c): whitened by mean and standard deviation + 1e-5, a constant feature of 100, (XᵀX + 1024)w = XᵀY, Y = ±1."""
    mean, deviation = support.mean(axis=0), support.std(axis=0) + 1e-5
    s, q = (np.hstack([(part - mean) / deviation, np.full((len(part), 1), 100.0)]) for part in (support, query))
    signs = np.where(y[:, None] == np.arange(n_classes), 1.0, -1.0)
    return np.asarray(q @ np.linalg.solve(s.T @ s + 1024 * np.eye(s.shape[1]), s.T @ signs))


def dino_votes(x: Floats, y: Rows, train: Rows, query: Rows, k: int, n_classes: int) -> Floats:
    """Unit features, the k most similar train images, each with exp(similarity / 0.07) for its class: (q, c)."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit[query] @ unit[train].T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(query), n_classes))
    for i, row in enumerate(near):
        for j in row:
            votes[i, y[train[j]]] += np.exp(similarity[i, j] / 0.07)
    return votes


def dino_right(x: Floats, y: Rows, fit: Rows, query: Rows, k: int, n_classes: int, *, balanced: bool = False) -> float:
    """The share of queries for whose class `dino_votes` are most; with `balanced` its mean over classes."""
    hit = dino_votes(x, y, fit, query, k, n_classes).argmax(axis=1) == y[query]
    return float(np.mean([hit[y[query] == c].mean() for c in range(n_classes)]) if balanced else hit.mean())


def meta_baseline(support: Floats, y: Rows, query: Floats, n_classes: int) -> Floats:
    """Cosine similarities (q, c) to the class means of the support."""
    means = np.stack([support[y == c].mean(axis=0) for c in range(n_classes)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(query / np.linalg.norm(query, axis=1, keepdims=True) @ means.T)


def all_way(x: Floats, y: Rows, supports: Sequence[Any], test: Any) -> list[float]:
    """Accuracy on all test images of a logistic regression at C = 1 on each support (BiT's and the paper's episodes)."""
    accuracies = []
    for support in supports:
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(x[support], y[support])
        accuracies.append(float(model.score(x[test], y[test])))
    return accuracies
