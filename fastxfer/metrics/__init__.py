"""Metrics of scores against labels, vectorised over any leading axes (episodes, l2 values).

Shapes: `scores` (..., n_queries, n_classes); `labels` (..., n_queries) class indices, −1 or NaN where unknown, or
(..., n_queries, n_classes) floats with 1 / 0 / NaN for a multi-label target. Leading axes of labels may be absent or 1:
then they serve all scores. The answer has the leading axes; `per_class_…` have n_classes behind them.

What is unknown takes no part. What is undefined (a class without queries, no negatives, a score that is NaN) is NaN and
left out of means over classes; a mean over nothing is NaN. `measure` counts what was left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.metrics import kernels
from fastxfer.plugins import Catalogue

Array = NDArray[Any]

BINS = 15  # of the calibration error: equal widths over [0, 1], a bin holds its upper edge (Guo et al. 2017)


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
    hits, truth, _ = _counts(scores, labels)
    return _ratio(hits.sum(axis=-1), truth.sum(axis=-1))


def per_class_accuracy(scores: Array, labels: Array) -> Array:
    """(..., n_classes) recall of each class; NaN for a class without queries. `ValueError` for a multi-label target."""
    if _multi_label(scores, labels):
        raise ValueError("recall of each class is for targets with one label an image; use auc or average_precision")
    hits, truth, _ = _counts(scores, labels)
    return _ratio(hits, truth)


def balanced_accuracy(scores: Array, labels: Array) -> Array:
    """Mean recall over the classes that have queries."""
    return nanmean(per_class_accuracy(scores, labels), axis=-1)


def per_class_f1(scores: Array, labels: Array) -> Array:
    """(..., n_classes) harmonic mean of precision and recall; NaN for a class that is neither there nor predicted.

    Multi-label: a label is predicted where its score is above 0.
    """
    if _multi_label(scores, labels):
        known = ~np.isnan(labels)
        positive, predicted = labels > 0.5, (scores > 0) & known
        hits, truth = (predicted & positive).sum(axis=-2), positive.sum(axis=-2)
        value = _ratio(2.0 * hits, truth + predicted.sum(axis=-2))
        return np.where((known & np.isnan(scores)).any(axis=-2), np.nan, value)
    hits, truth, predicted = _counts(scores, labels)
    return _ratio(2.0 * hits, truth + predicted)


def f1(scores: Array, labels: Array) -> Array:
    """Macro mean of the F1 of each class."""
    return nanmean(per_class_f1(scores, labels), axis=-1)


def per_class_auc(scores: Array, labels: Array) -> Array:
    """(..., n_classes) area under the ROC curve, one class against the rest, ties counted half (Mann-Whitney).

    NaN where a class has no positive or no negative among its known queries.
    """
    return _ranking(scores, labels)[0]


def auc(scores: Array, labels: Array) -> Array:
    """Macro mean of the one-vs-rest AUCs; with two classes, the AUC of the second (both are the same by symmetry)."""
    return _macro("auc", per_class_auc(scores, labels), scores, labels)


def per_class_average_precision(scores: Array, labels: Array) -> Array:
    """(..., n_classes) average precision Σ (R_i − R_{i−1}) P_i over distinct thresholds; NaN without a positive."""
    return _ranking(scores, labels)[1]


def average_precision(scores: Array, labels: Array) -> Array:
    """Macro mean of the one-vs-rest average precisions; with two classes, that of the second."""
    return _macro("average_precision", per_class_average_precision(scores, labels), scores, labels)


def brier(scores: Array, labels: Array) -> Array:
    """Mean squared distance of the probabilities from the truth, Σ_c (p_c − y_c)² averaged over queries (Brier 1950).

    With two classes half of that, (p_1 − y_1)², as scikit-learn scales it. Multi-label: macro mean of (p − y)². `scores`
    are probabilities; `ValueError` if not.
    """
    if _multi_label(scores, labels):
        return nanmean(per_label_brier(scores, labels), axis=-1)
    distance = _calibration(scores, labels)[0]
    return distance / 2 if scores.shape[-1] == 2 else distance


def per_label_brier(scores: Array, labels: Array) -> Array:
    """(..., n_classes) mean of (p − y)² over the known queries of each label of a multi-label target."""
    return _known_mean((_check_probabilities(scores, False).astype(np.float64) - labels) ** 2, labels)


def log_loss(scores: Array, labels: Array) -> Array:
    """Mean of −log of the probability given to the truth; probabilities are held off 0 and 1 by the rounding unit of
    their dtype, as in scikit-learn. Multi-label: macro mean of the binary log losses. `scores` are probabilities;
    `ValueError` if not.
    """
    if _multi_label(scores, labels):
        return nanmean(per_label_log_loss(scores, labels), axis=-1)
    return _calibration(scores, labels)[1]


def per_label_log_loss(scores: Array, labels: Array) -> Array:
    """(..., n_classes) binary log loss over the known queries of each label of a multi-label target."""
    p = _check_probabilities(scores, False)
    eps = np.finfo(p.dtype).eps
    p = np.clip(p.astype(np.float64), eps, 1 - eps)
    return _known_mean(-np.log(np.where(labels > 0.5, p, 1 - p)), labels)


def calibration_error(scores: Array, labels: Array) -> Array:
    """Expected calibration error: Σ_b (n_b / n) |share right − mean confidence| over `BINS` bins (Guo et al. 2017).

    The confidence of a query is its largest probability. Multi-label: macro mean over labels, of a label's probability
    against its share of positives. `scores` are probabilities; `ValueError` if not.
    """
    if _multi_label(scores, labels):
        return nanmean(per_label_calibration_error(scores, labels), axis=-1)
    return _calibration(scores, labels)[2]


def per_label_calibration_error(scores: Array, labels: Array) -> Array:
    """(..., n_classes) expected calibration error of each label of a multi-label target."""
    p, labels = np.broadcast_arrays(_check_probabilities(scores, False).astype(np.float64), labels)
    p, labels = np.swapaxes(p, -1, -2), np.swapaxes(labels, -1, -2)
    return _binned_gap(p, labels > 0.5, ~np.isnan(labels))


Function = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Metric:
    """A metric: its function, what it asks for, and what its values mean.

    function             (scores, labels) -> values; shapes, and what is unknown and undefined, as said above
    needs_probabilities  `scores` are probabilities, so probes without any cannot be measured by it
    single_label_only    it has no value for a multi-label target
    lower_is_better      of two values the smaller is the better one
    share                values lie between 0 and 1
    per_class            (scores, labels) -> (..., n_classes), if its value is the mean of those that are defined
    per_label            the same, if it is so for multi-label targets alone
    """

    function: Function
    needs_probabilities: bool = False
    single_label_only: bool = False
    lower_is_better: bool = False
    share: bool = True
    per_class: Function | None = None
    per_label: Function | None = None

    def __call__(self, scores: Array, labels: Array) -> Array:
        return self.function(scores, labels)


def _wrong(name: str, thing: object) -> str:
    return "" if isinstance(thing, Metric) else f"it is {thing!r}, expected a fastxfer.metrics.Metric"


METRICS: Catalogue[Metric] = Catalogue(
    "metrics",
    {
        "accuracy": Metric(accuracy),
        "balanced_accuracy": Metric(balanced_accuracy, single_label_only=True, per_class=per_class_accuracy),
        "auc": Metric(auc, per_class=per_class_auc),
        "average_precision": Metric(average_precision, per_class=per_class_average_precision),
        "f1": Metric(f1, per_class=per_class_f1),
        "brier": Metric(brier, needs_probabilities=True, lower_is_better=True, share=False, per_label=per_label_brier),
        "log_loss": Metric(
            log_loss, needs_probabilities=True, lower_is_better=True, share=False, per_label=per_label_log_loss
        ),
        "calibration_error": Metric(
            calibration_error, needs_probabilities=True, lower_is_better=True, per_label=per_label_calibration_error
        ),
    },
    _wrong,
)

# What can be said of each class alone, in rows named "auc:Pneumonia".
PER_CLASS: dict[str, Function] = {
    "recall": per_class_accuracy,
    "auc": per_class_auc,
    "average_precision": per_class_average_precision,
    "f1": per_class_f1,
}


def class_metrics(metrics: Sequence[str], multi_label: bool) -> tuple[str, ...]:
    """Those of PER_CLASS that `metrics` are means of; recall, which accuracy is made of, is for one label an image."""
    asked = ["recall" if m in ("accuracy", "balanced_accuracy") else m for m in metrics]
    return tuple(dict.fromkeys(m for m in asked if m in PER_CLASS and not (multi_label and m == "recall")))


def measure(metric: str, scores: Array, labels: Array) -> tuple[Array, Array]:
    """Values of a metric, and how many classes each of them left out because the metric is undefined for them.

    For what is no mean over classes, the count is 1 where the value is NaN. A value over no class at all is NaN.
    """
    found = METRICS[metric]
    per_class = found.per_class or (found.per_label if _multi_label(scores, labels) else None)
    if per_class is None:
        values = found(scores, labels)
        if metric not in METRICS.own:
            values = _check_values(metric, found, values, scores, labels)
        return values, np.isnan(values).astype(np.int32)
    each = per_class(scores, labels)
    values = _macro(metric, each, scores, labels)
    if _second_only(metric, scores, labels):
        return values, np.isnan(values).astype(np.int32)
    return values, np.isnan(each).sum(axis=-1, dtype=np.int32)


def _check_values(metric: str, found: Metric, values: Array, scores: Array, labels: Array) -> Array:
    """What a package's metric gave, as float64; `DataError` for another shape, or values that it says it cannot have."""
    own = 2 if _multi_label(scores, labels) else 1
    shape = np.broadcast_shapes(scores.shape[:-2], labels.shape[: labels.ndim - own])
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise DataError(f"metric '{metric}' gives values {values.shape} of scores {scores.shape}: expected {shape}")
    if found.share and ((values < 0) | (values > 1)).any():
        raise DataError(
            f"metric '{metric}' gives {np.nanmin(values):g} … {np.nanmax(values):g}, and says that its values lie "
            "between 0 and 1: Metric(…, share=False) is for those that don't"
        )
    return values


def meaning(metric: str) -> Metric | None:
    """What the values of a metric mean that rows are of, a class's alone too ("auc:NAME"); None where nobody here knows.

    Rows may have been made where another package was installed, or an earlier version of it.
    """
    name = metric.partition(":")[0]
    return METRICS.find(name) or (Metric(PER_CLASS[name]) if name in PER_CLASS else None)


def lower_is_better(metric: str) -> bool:
    """Whether the smaller of two values is the better one; of a metric that nobody here knows, the larger is."""
    found = meaning(metric)
    return found is not None and found.lower_is_better


def _macro(metric: str, each: Array, scores: Array, labels: Array) -> Array:
    return np.asarray(each[..., 1]) if _second_only(metric, scores, labels) else nanmean(each, axis=-1)


def _second_only(metric: str, scores: Array, labels: Array) -> bool:
    return metric in ("auc", "average_precision") and scores.shape[-1] == 2 and not _multi_label(scores, labels)


def _multi_label(scores: Array, labels: Array) -> bool:
    return labels.dtype.kind == "f" and labels.ndim >= 2 and labels.shape[-2:] == scores.shape[-2:]


def _class_labels(labels: Array) -> NDArray[np.int64]:
    """Class indices, −1 where unknown."""
    if labels.dtype.kind == "f":
        labels = np.where(np.isnan(labels), -1, labels)
    return labels.astype(np.int64, copy=False)


def _floats(scores: Array) -> Array:
    return scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)


def _check_probabilities(scores: Array, single_label: bool) -> Array:
    """Scores as floats once it is sure that they are probabilities; NaN is let through."""
    p, slack = _floats(scores), 1e-3
    if p.size and (p.min() < -slack or p.max() > 1 + slack):  # false for NaN
        raise ValueError(f"probabilities between 0 and 1 are needed, got {np.nanmin(p):g} … {np.nanmax(p):g}")
    if single_label and (np.abs(p @ np.ones(p.shape[-1], p.dtype) - 1) > slack).any():
        raise ValueError("the probabilities of a query's classes must sum to 1")
    return p


def _ratio(a: Array, b: Array) -> Array:
    """a / b, NaN where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(b == 0, np.nan, a / b))


def _known_mean(values: Array, labels: Array) -> Array:
    """(..., n_queries, n_classes) -> (..., n_classes), mean over the queries whose label is known."""
    known = np.broadcast_to(~np.isnan(labels), values.shape)
    return _ratio(np.where(known, values, 0.0).sum(axis=-2), known.sum(axis=-2))


def _binned_gap(confidence: Array, right: Array, known: Array) -> Array:
    """Σ_b |Σ_{i in b} (right_i − confidence_i)| / n over the last axis, whose entries may be unknown."""
    lead, n = confidence.shape[:-1], confidence.shape[-1]
    confidence, right, known = (a.reshape(-1, n) for a in (confidence, right, known))
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    line = np.broadcast_to(np.arange(len(confidence))[:, None], confidence.shape)
    cell = line * BINS + np.searchsorted(edges, confidence)
    gap = np.where(known, right - confidence, 0.0)
    gaps = np.bincount(cell.ravel(), gap.ravel(), minlength=len(confidence) * BINS).reshape(-1, BINS)
    return _ratio(np.abs(gaps).sum(axis=-1), known.sum(axis=-1)).reshape(lead)


def _stacked(scores: Array, labels: Array, axes: int) -> tuple[tuple[int, ...], Array, Array]:
    """Leading shape, scores (n, q, c) and labels (n or 1, …) with `axes` axes of their own, contiguous."""
    shape = np.broadcast_shapes(scores.shape[:-2], labels.shape[: labels.ndim - axes])
    n = int(np.prod(shape))
    scores = np.broadcast_to(_floats(scores), (*shape, *scores.shape[-2:])).reshape(n, *scores.shape[-2:])
    own = labels.shape[labels.ndim - axes :]
    alike = all(axis == 1 for axis in labels.shape[:-axes])
    labels = labels.reshape(1, *own) if alike else np.broadcast_to(labels, (*shape, *own)).reshape(n, *own)
    # One dtype, and never read-only: each other kind would be compiled anew.
    scores = np.require(scores, np.float64, ["C", "W"])
    return shape, scores, np.require(labels, requirements=["C", "W"])


def _counts(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """(..., n_classes) each: queries that are hit, that there are, that are predicted; NaN with a score that is NaN."""
    shape, s, y = _stacked(scores, _class_labels(labels), 1)
    counts = kernels.count(s, y)
    hits, truth, predicted = (counts[:, i].reshape(*shape, s.shape[-1]) for i in range(3))
    return hits, truth, predicted


def _calibration(scores: Array, labels: Array) -> Array:
    """(3, ...) squared distance, log loss and calibration gap of single-label probabilities."""
    shape, p, y = _stacked(_check_probabilities(scores, True), _class_labels(labels), 1)
    eps = float(np.finfo(_floats(scores).dtype).eps)
    return np.asarray(kernels.calibrate(p, y, np.linspace(0, 1, BINS + 1), eps).reshape(3, *shape))


def _ranking(scores: Array, labels: Array) -> tuple[Array, Array]:
    """(..., n_classes) AUC and average precision of each class against the rest."""
    shape, s, code = _stacked(scores, _codes(scores, labels), 2)
    area, precision = kernels.rank(s, code).reshape(2, *shape, s.shape[-1])
    return area, precision


def _codes(scores: Array, labels: Array) -> NDArray[np.int8]:
    """(..., n_queries, n_classes) 1 for a positive of the class, 0 for a negative, −1 for unknown."""
    if _multi_label(scores, labels):
        return np.where(np.isnan(labels), -1, labels > 0.5).astype(np.int8)
    y = _class_labels(labels)[..., None]
    return np.where(y < 0, -1, y == np.arange(scores.shape[-1])).astype(np.int8)
