"""From rows to means with intervals; each interval names the population it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fastxfer.metrics import METRICS, PER_CLASS, Array, measure, resampled
from fastxfer.results import CELL, NO_EPISODE

EPISODES = "episodes"
TEST_IMAGES = "test images"


def summarise(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """One line a cell: mean, sd, low, high, n, undefined, n_queries, converged (share), interval (its population) and
    episodes_hash. n counts episodes, undefined those whose value is NaN; mean, sd and interval are over the others.

    Cells with episodes get the t interval of the mean **over episodes**: what other draws of support and queries from
    these same images would give. It says nothing about new test images, since episodes share theirs. Cells without
    episodes (full probes, fine-tunings) keep the interval **over test images** that their row carries. Cells of one
    episode, and rows without an interval, have NaN bounds.
    """
    keys = [*CELL, "episodes_hash"]
    groups = rows.groupby(keys, observed=True, sort=True)
    summary = groups.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        n=("value", "size"),
        defined=("value", "count"),
        n_queries=("n_queries", "first"),
        converged=("converged", "mean"),
        low=("low", "first"),
        high=("high", "first"),
        episode=("episode", "min"),
    ).reset_index()
    of_episodes = (summary["episode"] != NO_EPISODE).to_numpy()
    n = summary["defined"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.5 + level / 2, np.maximum(n - 1, 1)) * summary["sd"].to_numpy() / np.sqrt(n)
    mean = summary["mean"].to_numpy()
    summary["low"] = np.where(of_episodes, mean - half, summary["low"])
    summary["high"] = np.where(of_episodes, mean + half, summary["high"])
    summary["interval"] = np.where(of_episodes, EPISODES, TEST_IMAGES)
    summary["undefined"] = summary["n"] - summary["defined"]
    return summary.drop(columns=["episode", "defined"])


def measure_split(
    metrics: Sequence[str], scores: Array, labels: Array, *, groups: Array | None = None
) -> list[dict[str, Any]]:
    """What a row says of the scores of a whole split, once a metric: its value, interval over images, and counts.

    Arguments as for `bootstrap_interval`.
    """
    found: list[dict[str, Any]] = []
    for metric in metrics:
        low, high = bootstrap_interval(metric, scores, labels, groups=groups)
        value, undefined = measure(metric, scores, labels)
        counts = {"n_queries": len(labels), "undefined": int(undefined)}
        found.append({"metric": metric, "value": float(value), "low": low, "high": high, **counts})
    return found


def measure_classes(
    metric: str, class_names: Sequence[str], scores: Array, labels: Array, *, groups: Array | None = None
) -> list[dict[str, Any]]:
    """As `measure_split`, for each class alone: `metric` is one of `fastxfer.metrics.PER_CLASS`."""
    values = PER_CLASS[metric](scores, labels)
    drawn = _resampled(metric, scores, labels, groups, 1000, 0, per_class=True)
    found: list[dict[str, Any]] = []
    for i, name in enumerate(class_names):
        low, high = _bounds(drawn[:, i], 0.95)
        known = int((~np.isnan(labels[:, i])).sum()) if labels.ndim == 2 else len(labels)
        counts = {"n_queries": known, "undefined": int(np.isnan(values[i]))}
        found.append({"metric": f"{metric}:{name}", "value": float(values[i]), "low": low, "high": high, **counts})
    return found


def bootstrap_interval(
    metric: str,
    scores: Array,
    labels: Array,
    *,
    groups: Array | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over test images (Efron 1979), groups (patients) resampled whole.

    scores (n_queries, n_classes), labels (n_queries,) or (n_queries, n_classes) with NaN, groups (n_queries,) or None.
    Resamples in which the metric is undefined are left out; NaN bounds where it is undefined in more than half.
    An accuracy of exactly 1 has no wrong image to resample, so its bootstrap has no width: there the lower bound is
    the exact binomial one (Clopper & Pearson 1934), of as many images (patients) as there are.
    """
    values = _resampled(metric, scores, labels, groups, resamples, seed)
    low, high = _bounds(values, level)
    if low == 1 and metric in ("accuracy", "balanced_accuracy"):
        n = len(scores) if groups is None else len(np.unique(groups))
        low = (0.5 - level / 2) ** (1 / n)
    return low, high


def _resampled(
    metric: str,
    scores: Array,
    labels: Array,
    groups: Array | None,
    resamples: int,
    seed: int,
    per_class: bool = False,
) -> Array:
    """(resamples,) or (resamples, n_classes) values of a metric on images drawn with replacement, groups whole."""
    rng = np.random.default_rng(seed)
    n = len(scores)
    group = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(group.max()) + 1
    drawn = [np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups) for _ in range(resamples)]
    counts = np.stack(drawn).astype(np.int32)[:, group]
    if metric in ("auc", "average_precision"):
        return resampled(metric, scores, labels, counts, per_class=per_class)
    function, each = (PER_CLASS if per_class else METRICS)[metric], np.arange(n)
    repeated = (np.repeat(each, count) for count in counts)
    return np.array([function(scores[rows], labels[rows]) for rows in repeated], np.float64)


def _bounds(values: Array, level: float) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
