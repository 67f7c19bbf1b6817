"""Metrics of scores against labels, vectorised over any leading axes (episodes, l2 values, resamples).

Shapes: `scores` (..., n_queries, n_classes); `labels` (..., n_queries) class indices, or (..., n_queries, n_classes)
with 1 / 0 / NaN for a multi-label target. Whatever is undefined (a class without queries, no negatives, a score that is
NaN) is NaN and left out of means; a mean over nothing is NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[Any]


def nanmean(values: Array, axis: int) -> Array:
    """Mean over the defined entries; NaN, without a warning, where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def softmax(scores: Array) -> Array:
    """(..., n_classes) logits to probabilities."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def accuracy(scores: Array, labels: Array) -> Array:
    """Share of queries whose largest score is at their label; the first of equal scores wins.

    Multi-label: share of known entries on the right side of a score of 0.
    """
    if _multi_label(scores, labels):
        right = np.where(np.isnan(labels) | np.isnan(scores), np.nan, (scores > 0) == (labels > 0.5))
        return nanmean(right.reshape(*right.shape[:-2], -1), axis=-1)
    return np.asarray((scores.argmax(axis=-1) == labels).mean(axis=-1))


def per_class_accuracy(scores: Array, labels: Array) -> Array:
    """(..., n_classes) recall of each class; NaN for a class without queries. `ValueError` for a multi-label target."""
    if _multi_label(scores, labels):
        raise ValueError("recall of each class is for targets with one label an image; use auc or average_precision")
    right = scores.argmax(axis=-1) == labels
    of_class = labels[..., None] == np.arange(scores.shape[-1])
    count = of_class.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((right[..., None] & of_class).sum(axis=-2) / count)


def balanced_accuracy(scores: Array, labels: Array) -> Array:
    """Mean recall over the classes that have queries."""
    return nanmean(per_class_accuracy(scores, labels), axis=-1)


def per_class_auc(scores: Array, labels: Array) -> Array:
    """(..., n_classes) area under the ROC curve, one class against the rest, ties counted half (Mann-Whitney).

    NaN where a class has no positive or no negative among its known queries.
    """
    positive, known = _one_vs_rest(scores, labels)
    # Unknown entries go below everything, also below a score of −inf: the others' ranks only shift by their number.
    lowest = np.finfo(np.float64).min
    ranks = rankdata(np.where(known, np.maximum(scores, lowest), -np.inf), axis=-2)
    ranks = ranks - (~known).sum(axis=-2, keepdims=True)
    n_positive = positive.sum(axis=-2)
    n_negative = known.sum(axis=-2) - n_positive
    wins = np.where(positive, ranks, 0.0).sum(axis=-2) - n_positive * (n_positive + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wins / (n_positive * n_negative))


def auc(scores: Array, labels: Array) -> Array:
    """Macro mean of the one-vs-rest AUCs; with two classes, the AUC of the second (both are the same by symmetry)."""
    values = per_class_auc(scores, labels)
    if values.shape[-1] == 2 and not _multi_label(scores, labels):
        return np.asarray(values[..., 1])
    return nanmean(values, axis=-1)


def per_class_average_precision(scores: Array, labels: Array) -> Array:
    """(..., n_classes) average precision Σ (R_i − R_{i−1}) P_i over distinct thresholds; NaN without a positive."""
    positive, known = _one_vs_rest(scores, labels)
    masked = np.where(known, scores, -np.inf)
    order = np.argsort(-masked, axis=-2, kind="stable")
    s = np.take_along_axis(masked, order, axis=-2)
    hits = np.cumsum(np.take_along_axis(positive, order, axis=-2), axis=-2)
    seen = np.cumsum(np.take_along_axis(known, order, axis=-2), axis=-2)
    # A threshold ends where the score changes; inside a run of ties nothing is counted.
    last = np.concatenate([s[..., 1:, :] != s[..., :-1, :], np.ones_like(s[..., :1, :], bool)], axis=-2)
    # Hits at the previous threshold: running maximum of the hits at the thresholds before.
    at_threshold = np.where(last, hits, 0)
    before = np.maximum.accumulate(at_threshold, axis=-2)
    before = np.concatenate([np.zeros_like(before[..., :1, :]), before[..., :-1, :]], axis=-2)
    total = hits[..., -1, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        gained = np.where(last, (hits - before) * (hits / np.maximum(seen, 1)), 0.0)
        value = gained.sum(axis=-2) / np.where(total > 0, total, np.nan)
    return np.asarray(np.where((known & np.isnan(scores)).any(axis=-2), np.nan, value))


def average_precision(scores: Array, labels: Array) -> Array:
    """Macro mean of the one-vs-rest average precisions; with two classes, that of the second."""
    values = per_class_average_precision(scores, labels)
    if values.shape[-1] == 2 and not _multi_label(scores, labels):
        return np.asarray(values[..., 1])
    return nanmean(values, axis=-1)


def _multi_label(scores: Array, labels: Array) -> bool:
    return labels.dtype.kind == "f" and labels.ndim >= 2 and labels.shape[-2:] == scores.shape[-2:]


def _one_vs_rest(scores: Array, labels: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(positive, known), both of the shape of `scores`."""
    if _multi_label(scores, labels):
        known = np.broadcast_to(~np.isnan(labels), scores.shape)
        return np.broadcast_to(np.nan_to_num(labels) > 0.5, scores.shape), known
    positive = np.broadcast_to(labels[..., None] == np.arange(scores.shape[-1]), scores.shape)
    return positive, np.ones(scores.shape, bool)


METRICS: dict[str, Callable[[Array, Array], Array]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "auc": auc,
    "average_precision": average_precision,
}
