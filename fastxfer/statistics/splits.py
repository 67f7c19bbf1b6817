"""What a row says of the scores of a whole split: a value, its interval over test images, and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastxfer.metrics import PER_CLASS, Array, measure
from fastxfer.metrics.influence import INFLUENCES, influence
from fastxfer.metrics.rarity import rarity
from fastxfer.statistics.intervals import FEWEST_GROUPS, interval_over_images, variance_over_images

# Recall is the accuracy on the queries of a class.
_AS_METRIC = {"recall": "accuracy"}


def measure_split(
    metrics: Sequence[str], scores: Array, labels: Array, *, groups: Array | None = None
) -> list[dict[str, Any]]:
    """What a row says of the scores of a whole split, once a metric. Arguments as for `split_interval`."""
    found: list[dict[str, Any]] = []
    for metric in metrics:
        low, high = split_interval(metric, scores, labels, groups=groups)
        value, undefined = measure(metric, scores, labels)
        counts = {"n_queries": len(labels), "undefined": int(undefined)}
        found.append({"metric": metric, "value": float(value), "low": low, "high": high, **counts})
    return found


def measure_classes(
    metric: str, class_names: Sequence[str], scores: Array, labels: Array, *, groups: Array | None = None
) -> list[dict[str, Any]]:
    """As `measure_split`, for each class alone: `metric` is one of `fastxfer.metrics.PER_CLASS`."""
    values = PER_CLASS[metric](scores, labels)
    found: list[dict[str, Any]] = []
    for i, name in enumerate(class_names):
        known = ~np.isnan(labels[:, i]) if labels.ndim == 2 else np.ones(len(labels), bool)
        own = groups if metric != "recall" or groups is None else groups[labels == i]
        low, high = split_interval(_AS_METRIC.get(metric, metric), *_of_class(metric, scores, labels, i), groups=own)
        counts = {"n_queries": int(known.sum()), "undefined": int(np.isnan(values[i]))}
        found.append({"metric": f"{metric}:{name}", "value": float(values[i]), "low": low, "high": high, **counts})
    return found


def split_interval(
    metric: str, scores: Array, labels: Array, *, groups: Array | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a metric over test images: other images of the same kind, groups (patients) whole.

    scores (n_queries, n_classes), labels (n_queries,) or (n_queries, n_classes) with NaN, groups (n_queries,) or None.
    NaN bounds for a metric without influences, and where no method holds: fewer than ten groups, classes too rare for the
    metric (`fastxfer.metrics.rarity`), a ranking without a mistake.
    """
    if metric not in INFLUENCES or not len(labels):
        return float("nan"), float("nan")
    value = measure(metric, scores, labels)[0].reshape(1)
    group = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    nothing, once = np.zeros(len(group)), np.ones(len(group))
    slopes = influence(metric, scores, labels)
    images = variance_over_images(nothing.astype(int), group, once, slopes, nothing, np.ones(1, int))
    if images.groups[0] < FEWEST_GROUPS or not np.isfinite(value[0]):
        return float("nan"), float("nan")
    more = np.asarray(rarity(metric, scores, labels)).reshape(1)
    low, high = interval_over_images(metric, value, np.zeros(1), np.ones(1), images, more, level)
    return float(low[0]), float(high[0])


def _of_class(metric: str, scores: Array, labels: Array, i: int) -> tuple[Array, Array]:
    """Scores and labels of which the metric is that of class i alone."""
    if metric == "recall":
        return scores[labels == i], labels[labels == i]
    if labels.ndim == 2:
        return scores[:, [i]], labels[:, [i]]
    if metric == "f1":  # yes where the class has the largest score
        said = np.where(scores.argmax(axis=1) == i, 1.0, -1.0)[:, None]
        return said, (labels == i).astype(float)[:, None]
    return scores[:, [i]], np.where(labels < 0, np.nan, labels == i)[:, None]
