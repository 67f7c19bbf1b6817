"""The loops behind the metrics, compiled. Scores (n, q, c) float64, labels with n or 1 stacks.

Plain loops over numbers: they compile several times faster than array expressions, and the first call waits for that.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

FEW_POSITIVES = 64  # up to here looking at all pairs is faster than sorting


@numba.njit(cache=True, nogil=True)
def count(scores: Any, labels: Any) -> Any:
    """labels (n or 1, q), −1 unknown -> (n, 3, c): queries that are hit, that there are, that are predicted.

    The largest score predicts, the first of equal ones. NaN where a known query has a score that is NaN.
    """
    n, q, c = scores.shape
    counts = np.zeros((n, 3, c))
    for e in range(n):
        stack = e if len(labels) > 1 else 0
        broken = False
        for i in range(q):
            y = labels[stack, i]
            if y < 0:
                continue
            best = 0
            for j in range(c):
                broken |= np.isnan(scores[e, i, j])
                if scores[e, i, j] > scores[e, i, best]:
                    best = j
            counts[e, 0, best] += best == y
            counts[e, 1, y] += 1
            counts[e, 2, best] += 1
        if broken:
            for j in range(c):
                counts[e, 0, j] = counts[e, 1, j] = counts[e, 2, j] = np.nan
    return counts


@numba.njit(cache=True)
def _below(values: Any, n: int, x: float, ordered: bool) -> Any:
    """How many of the first n values are below x, and how many are not above it."""
    below, upto = 0, 0
    if not ordered:
        for i in range(n):
            below += values[i] < x
            upto += values[i] <= x
        return below, upto
    high = n
    while below < high:
        middle = (below + high) // 2
        if values[middle] < x:
            below = middle + 1
        else:
            high = middle
    upto, high = below, n
    while upto < high:
        middle = (upto + high) // 2
        if values[middle] <= x:
            upto = middle + 1
        else:
            high = middle
    return below, upto


@numba.njit(cache=True, nogil=True)
def rank(scores: Any, code: Any) -> Any:
    """code (n or 1, q, c): 1 positive, 0 negative, −1 unknown -> (2, n, c): area under the curve, average precision."""
    n, q, c = scores.shape
    out = np.full((2, n, c), np.nan)
    pos, neg = np.empty(q), np.empty(q)
    for e in range(n):
        stack = e if len(code) > 1 else 0
        for j in range(c):
            n_pos, n_neg = 0, 0
            broken = False
            for i in range(q):
                if code[stack, i, j] >= 0:
                    broken |= np.isnan(scores[e, i, j])
                    if code[stack, i, j] > 0:
                        pos[n_pos] = scores[e, i, j]
                        n_pos += 1
                    else:
                        neg[n_neg] = scores[e, i, j]
                        n_neg += 1
            if broken or n_pos == 0:
                continue
            many = n_pos > FEW_POSITIVES
            if many:
                pos[:n_pos].sort()
                neg[:n_neg].sort()
            twice_won, precision = 0, 0.0
            for i in range(n_pos):
                pos_below, _ = _below(pos, n_pos, pos[i], many)
                neg_below, neg_upto = _below(neg, n_neg, pos[i], many)
                twice_won += neg_below + neg_upto  # a negative below counts twice, a tied one once
                hits, wrong = n_pos - pos_below, n_neg - neg_below  # above or at the threshold pos[i]
                precision += hits / (hits + wrong)
            out[1, e, j] = precision / n_pos
            if n_neg > 0:
                out[0, e, j] = twice_won / (2.0 * n_pos * n_neg)
    return out


@numba.njit(cache=True, nogil=True)
def calibrate(scores: Any, labels: Any, edges: Any, eps: float) -> Any:
    """Probabilities, labels (n or 1, q) with −1 unknown, edges of the bins -> (3, n): squared distance, log loss, gap.

    The means over the known queries of Σ_c (p_c − y_c)², of −log p_y with p_y held off 0 and 1 by `eps`, and of the
    binned |share right − mean largest probability|.
    """
    n, q, c = scores.shape
    bins = len(edges) - 1
    out, gap = np.full((3, n), np.nan), np.zeros(bins)
    for e in range(n):
        stack = e if len(labels) > 1 else 0
        known, distance, loss, gaps = 0, 0.0, 0.0, 0.0
        for i in range(q):
            y = labels[stack, i]
            if y < 0:
                continue
            known += 1
            best = 0
            for j in range(c):
                distance += (scores[e, i, j] - (j == y)) ** 2
                if scores[e, i, j] > scores[e, i, best]:
                    best = j
            loss -= np.log(min(max(scores[e, i, y], eps), 1.0 - eps))
            confidence = scores[e, i, best]
            if confidence >= 0:  # no NaN
                b = min(int(confidence * bins), bins - 1)
                while b > 0 and confidence <= edges[b]:
                    b -= 1
                while b < bins - 1 and confidence > edges[b + 1]:
                    b += 1
                gap[b] += (best == y) - confidence
        for b in range(bins):
            gaps += abs(gap[b])
            gap[b] = 0.0
        # One NaN among the probabilities makes the distance NaN; the others may have stepped over it.
        if known > 0 and not np.isnan(distance):
            out[0, e], out[1, e], out[2, e] = distance / known, loss / known, gaps / known
    return out
