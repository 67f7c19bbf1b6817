"""What each query does to a metric: the influence of its image, from which intervals over test images come.

The influence of query i is the slope of the metric in the weight of that query (infinitesimal jackknife: Jaeckel 1972;
Efron 1982, chapter 6). For accuracy it is (right_i − accuracy) / n; for the AUC it comes from the placement values of
DeLong, DeLong & Clarke-Pearson (1988). Influences of an episode sum to 0; the sum of their squares estimates the variance
of the metric over other images of the same kind.

`power` is for small samples: an influence among m queries is stretched by (m / (m − 1))^power.
  0.5  the squares sum to the unbiased variance of one set of queries: s² / n for accuracy, DeLong's for the AUC
  1    what leaving the query out would change: products of one image's influences in two independent episodes are unbiased
  0    the slope itself
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fastxfer.metrics import (
    Array,
    _check_probabilities,
    _class_labels,
    _codes,
    _multi_label,
    _second_only,
    _stacked,
    nanmean,
)
from fastxfer.metrics.kernels import FEW_POSITIVES, _below

ACCURACY, BALANCED, F1 = 0, 1, 2


def influence(metric: str, scores: Array, labels: Array, power: float = 0.5) -> Array:
    """(..., n_queries) float64 influence of each query on each value of a metric; shapes as in `fastxfer.metrics`.

    0 for a query whose label is unknown, and wherever the value is undefined. `KeyError` for a metric without: see
    `INFLUENCES`.
    """
    return INFLUENCES[metric](scores, labels, power)


def _accuracy(scores: Array, labels: Array, power: float) -> Array:
    if not _multi_label(scores, labels):
        return _classified(scores, labels, ACCURACY, power)
    known = ~np.isnan(labels) & ~np.isnan(scores)
    right = np.where(known, (scores > 0) == (labels > 0.5), 0.0)
    n = known.sum(axis=(-2, -1), keepdims=True)
    mean = right.sum(axis=(-2, -1), keepdims=True) / np.maximum(n, 1)
    return np.asarray(((right - mean) * known).sum(axis=-1) * (_stretch(n, power) / np.maximum(n, 1))[..., 0])


def _balanced_accuracy(scores: Array, labels: Array, power: float) -> Array:
    if _multi_label(scores, labels):
        raise ValueError("balanced accuracy is for targets with one label an image")
    return _classified(scores, labels, BALANCED, power)


def _f1(scores: Array, labels: Array, power: float) -> Array:
    if not _multi_label(scores, labels):
        return _classified(scores, labels, F1, power)
    known = ~np.isnan(labels)
    positive, predicted = (labels > 0.5).astype(float), ((scores > 0) & known).astype(float)
    size = (positive + predicted).sum(axis=-2, keepdims=True)
    broken = (known & np.isnan(scores)).any(axis=-2, keepdims=True) | (size == 0)
    value = 2 * (positive * predicted).sum(axis=-2, keepdims=True) / np.maximum(size, 1)
    slope = (2 * positive * predicted - value * (positive + predicted)) / np.maximum(size, 1)
    return _mean_of_defined(slope * _stretch(known.sum(axis=-2, keepdims=True), power), broken)


def _brier(scores: Array, labels: Array, power: float) -> Array:
    if _multi_label(scores, labels):
        return _of_losses((_check_probabilities(scores, False).astype(np.float64) - labels) ** 2, power)
    y = _class_labels(labels)
    truth = y[..., None] == np.arange(scores.shape[-1])
    distance = ((_check_probabilities(scores, True).astype(np.float64) - truth) ** 2).sum(axis=-1)
    losses = np.where(y < 0, np.nan, distance / 2 if scores.shape[-1] == 2 else distance)
    return _of_losses(losses[..., None], power)


def _log_loss(scores: Array, labels: Array, power: float) -> Array:
    p = _check_probabilities(scores, not _multi_label(scores, labels))
    eps = float(np.finfo(p.dtype).eps)
    p = np.clip(p.astype(np.float64), eps, 1 - eps)
    if _multi_label(scores, labels):
        return _of_losses(np.where(np.isnan(labels), np.nan, -np.log(np.where(labels > 0.5, p, 1 - p))), power)
    y = np.broadcast_to(_class_labels(labels), p.shape[:-1])
    of_truth = np.take_along_axis(p, np.maximum(y, 0)[..., None], axis=-1)
    return _of_losses(np.where(y[..., None] < 0, np.nan, -np.log(of_truth)), power)


def _auc(scores: Array, labels: Array, power: float) -> Array:
    shape, s, code, first = _ranked("auc", scores, labels)
    return np.asarray(area(s, code, first, power)[0].reshape(*shape, s.shape[1]))


def _average_precision(scores: Array, labels: Array, power: float) -> Array:
    shape, s, code, first = _ranked("average_precision", scores, labels)
    return np.asarray(precision(s, code, first, power).reshape(*shape, s.shape[1]))


# The calibration error has none: it is a sum of absolute values that noise alone makes large, not a mean over queries.
INFLUENCES: dict[str, Callable[[Array, Array, float], Array]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
    "average_precision": _average_precision,
    "f1": _f1,
    "brier": _brier,
    "log_loss": _log_loss,
}


def _stretch(n: Array, power: float) -> Array:
    return np.asarray((np.maximum(n, 2) / (np.maximum(n, 2) - 1.0)) ** power)


def _of_losses(losses: Array, power: float) -> Array:
    """(..., n_queries, n) losses, NaN = unknown, averaged over queries, then over n -> (..., n_queries)."""
    known = ~np.isnan(losses)
    n = known.sum(axis=-2, keepdims=True)
    mean = nanmean(losses, axis=-2)[..., None, :]
    slope = np.where(known, losses - mean, 0.0) / np.maximum(n, 1)
    return _mean_of_defined(slope * _stretch(n, power), n == 0)


def _mean_of_defined(slope: Array, undefined: Array) -> Array:
    """(..., n_queries, n_classes) slopes of each class's value -> (..., n_queries) of the mean of the defined ones."""
    defined = (~undefined).sum(axis=-1)
    return np.asarray(np.where(undefined, 0.0, slope).sum(axis=-1) / np.maximum(defined, 1))


def _classified(scores: Array, labels: Array, kind: int, power: float) -> Array:
    shape, s, y = _stacked(scores, _class_labels(labels), 1)
    return np.asarray(classified(s, y, kind, power).reshape(*shape, s.shape[1]))


def _ranked(metric: str, scores: Array, labels: Array) -> tuple[tuple[int, ...], Array, Array, int]:
    """Leading shape, scores and codes for the kernels, and the first class that counts."""
    return *_stacked(scores, _codes(scores, labels), 2), 1 if _second_only(metric, scores, labels) else 0


@numba.njit(cache=True, nogil=True)
def _stretched(m: int, power: float) -> float:
    return (m / (m - 1.0)) ** power if m > 1 and power != 0.0 else 1.0


@numba.njit(cache=True, nogil=True)
def classified(scores: Any, labels: Any, kind: int, power: float) -> Any:
    """Scores (n, q, c), labels (n or 1, q) with −1 unknown -> (n, q) influences on accuracy, balanced accuracy or F1."""
    n, q, c = scores.shape
    out = np.zeros((n, q))
    guess = np.empty(q, np.int64)
    hits, truth, predicted = np.empty(c), np.empty(c), np.empty(c)
    for e in range(n):
        stack = e if len(labels) > 1 else 0
        known, right, broken = 0, 0, False
        for j in range(c):
            hits[j] = truth[j] = predicted[j] = 0.0
        for i in range(q):
            y, best = labels[stack, i], 0
            if y < 0:
                continue
            for j in range(c):
                broken |= np.isnan(scores[e, i, j])
                if scores[e, i, j] > scores[e, i, best]:
                    best = j
            guess[i] = best
            known += 1
            right += best == y
            hits[best] += best == y
            truth[y] += 1
            predicted[best] += 1
        if broken or known == 0:
            continue
        classes = 0
        for j in range(c):
            classes += (truth[j] + (predicted[j] if kind == F1 else 0.0)) > 0
        of_all = _stretched(known, power)
        for i in range(q):
            y = labels[stack, i]
            if y < 0:
                continue
            hit = guess[i] == y
            if kind == ACCURACY:
                out[e, i] = (hit - right / known) / known * of_all
            elif kind == BALANCED:
                m = truth[y]
                out[e, i] = (hit - hits[y] / m) / (m * classes) * _stretched(m, power)
            else:  # F_j = 2 hits / (truth + predicted), so dF_j = (2 hit − F_j (is j + said j)) / (truth + predicted)
                g = guess[i]
                size = truth[y] + predicted[y]
                slope = (2 * hit - 2 * hits[y] / size * (1 + hit)) / size
                if not hit:
                    size = truth[g] + predicted[g]
                    slope -= 2 * hits[g] / size / size
                out[e, i] = slope / classes * of_all
    return out


@numba.njit(cache=True, nogil=True)
def area(scores: Any, code: Any, first: int, power: float) -> Any:
    """Scores (n, q, c), code (n or 1, q, c) as in `kernels.rank` -> (n, q) influences on the mean AUC of classes first … c − 1,
    and (n, c, 3) AUC of each class and DeLong's variance of it, the part of its positives and that of its negatives.

    (V10_i − AUC) / n_pos of a positive, V10 the share of negatives below it, ties half; (V01_j − AUC) / n_neg of a negative,
    V01 the share of positives above it (DeLong, DeLong & Clarke-Pearson 1988, equations 4 to 6).
    """
    n, q, c = scores.shape
    out, parts = np.zeros((n, q)), np.full((n, c, 3), np.nan)
    at_pos, at_neg = np.empty(q, np.int64), np.empty(q, np.int64)
    pos, neg, won_pos, won_neg = np.empty(q), np.empty(q), np.empty(q), np.empty(q)
    sorted_pos, sorted_neg = np.empty(q), np.empty(q)
    for e in range(n):
        stack, classes = e if len(code) > 1 else 0, 0
        for j in range(first, c):
            n_pos, n_neg, broken = 0, 0, False
            for i in range(q):
                if code[stack, i, j] >= 0:
                    broken |= np.isnan(scores[e, i, j])
                    if code[stack, i, j] > 0:
                        pos[n_pos], at_pos[n_pos] = scores[e, i, j], i
                        n_pos += 1
                    else:
                        neg[n_neg], at_neg[n_neg] = scores[e, i, j], i
                        n_neg += 1
            if broken or n_pos == 0 or n_neg == 0:
                continue
            classes += 1
            # A pair that is won counts twice, a tied one once.
            if n_pos <= FEW_POSITIVES:
                for k in range(n_neg):
                    won_neg[k] = 0.0
                for i in range(n_pos):
                    total, x = 0.0, pos[i]
                    for k in range(n_neg):
                        won = 1.0 * (x > neg[k]) + 1.0 * (x >= neg[k])
                        won_neg[k] += won
                        total += won
                    won_pos[i] = total
            else:
                sorted_pos[:n_pos] = pos[:n_pos]
                sorted_neg[:n_neg] = neg[:n_neg]
                sorted_pos[:n_pos].sort()
                sorted_neg[:n_neg].sort()
                for i in range(n_pos):
                    below, upto = _below(sorted_neg, n_neg, pos[i], True)
                    won_pos[i] = below + upto
                for k in range(n_neg):
                    below, upto = _below(sorted_pos, n_pos, neg[k], True)
                    won_neg[k] = 2 * n_pos - below - upto
            mean = 0.0
            for i in range(n_pos):
                mean += won_pos[i]
            mean /= 2.0 * n_pos * n_neg
            of_pos, of_neg = _stretched(n_pos, power) / n_pos, _stretched(n_neg, power) / n_neg
            parts[e, j, 0], squares = mean, 0.0
            for i in range(n_pos):
                gap = won_pos[i] / (2.0 * n_neg) - mean
                out[e, at_pos[i]] += gap * of_pos
                squares += gap * gap
            parts[e, j, 1], squares = squares / n_pos / max(n_pos - 1, 1), 0.0
            for k in range(n_neg):
                gap = won_neg[k] / (2.0 * n_pos) - mean
                out[e, at_neg[k]] += gap * of_neg
                squares += gap * gap
            parts[e, j, 2] = squares / n_neg / max(n_neg - 1, 1)
        for i in range(q):
            out[e, i] /= max(classes, 1)
    return out, parts


@numba.njit(cache=True, nogil=True)
def precision(scores: Any, code: Any, first: int, power: float) -> Any:
    """As `area`, for the average precision Σ_{i positive} P_i / n_pos, P_i = H_i / N_i at the threshold of query i.

    A query j counts as one more positive, and it changes P_i of every positive i that is not above it, by (y_j − P_i) / N_i.
    """
    n, q, c = scores.shape
    out = np.zeros((n, q))
    known, share, upto = np.empty(q, np.int64), np.empty(q), np.empty(q, np.int64)
    for e in range(n):
        stack, classes = e if len(code) > 1 else 0, 0
        for j in range(first, c):
            order = np.argsort(-scores[e, :, j])  # NaN comes last
            k, n_pos, broken = 0, 0, False
            for i in order:
                if code[stack, i, j] >= 0:
                    broken |= np.isnan(scores[e, i, j])
                    n_pos += code[stack, i, j]
                    known[k] = i
                    k += 1
            if broken or n_pos == 0:
                continue
            classes += 1
            # Of each place: the precision down to the last of its equals, and how many come down to there.
            hits, start, mean = 0, 0, 0.0
            while start < k:
                stop, new = start, 0
                while stop < k and scores[e, known[stop], j] == scores[e, known[start], j]:
                    new += code[stack, known[stop], j]
                    stop += 1
                hits += new
                mean += new * (hits / stop)
                for at in range(start, stop):
                    share[at], upto[at] = hits / stop, stop
                start = stop
            mean /= n_pos
            # From below: Σ 1 / N_i and Σ P_i / N_i over the positives that are not above.
            weight, weighted, stop, stretch = 0.0, 0.0, k, _stretched(n_pos, power) / n_pos
            while stop > 0:
                start = stop
                while start > 0 and upto[start - 1] == stop:
                    start -= 1
                    if code[stack, known[start], j] > 0:
                        weight += 1.0 / stop
                        weighted += share[start] / stop
                for at in range(start, stop):
                    is_pos = code[stack, known[at], j] > 0
                    out[e, known[at]] += (is_pos * (share[at] - mean + weight) - weighted) * stretch
                stop = start
        for i in range(q):
            out[e, i] /= max(classes, 1)
    return out
