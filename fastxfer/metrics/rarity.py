"""What few positives, or few images of a class, keep from being seen in the variance of a whole split's value."""

from __future__ import annotations

import numpy as np

from fastxfer.metrics import Array, _counts, _multi_label, nanmean
from fastxfer.metrics.influence import _ranked, area

PRIOR_IMAGES = 10
FEWEST_POSITIVES = 3
FEWEST_EFFECTIVE = 30


def rarity(metric: str, scores: Array, labels: Array, fewest: int = FEWEST_POSITIVES) -> Array:
    """(...,) what belongs to the variance of each value beside the squares of influences; NaN: no variance can be trusted.

    auc: the placement values of five positives hardly ever hold the low one that would show how much they vary. So each of
    the two variances of a class is averaged with that between exponential scores of the same AUC (Hanley & McNeil 1982,
    both directions alike as in Newcombe 2006, method 5), which counts for `PRIOR_IMAGES` images: a moderated variance
    (Smyth 2004). NaN with a class of fewer than `fewest` positives or negatives.

    balanced_accuracy: NaN where few images of a rare class carry so much that all together are worth fewer than
    `FEWEST_EFFECTIVE`: (Σ 1/n_c)² / Σ 1/n_c³ with n_c images of class c (Satterthwaite's degrees of freedom).

    Other metrics: 0.
    """
    if metric == "auc":
        return _auc(scores, labels, fewest)
    if metric == "balanced_accuracy":
        truth = _counts(scores, labels)[1]
        share = np.where(truth > 0, 1.0 / np.maximum(truth, 1), 0.0)
        effective = share.sum(axis=-1) ** 2 / (share**3).sum(axis=-1)
        return np.where(effective >= FEWEST_EFFECTIVE, 0.0, np.nan)
    own = 2 if _multi_label(scores, labels) else 1
    return np.zeros(np.broadcast_shapes(scores.shape[:-2], labels.shape[: labels.ndim - own]))


def _auc(scores: Array, labels: Array, fewest: int) -> Array:
    shape, s, code, first = _ranked("auc", scores, labels)
    value, *variances = np.moveaxis(area(s, code, first, 0.5)[1][:, first:], 2, 0)
    counts = [(code[:, :, first:] == answer).sum(axis=1) for answer in (1, 0)]
    defined = np.isfinite(value)
    few = (defined & (np.minimum(*counts) < FEWEST_POSITIVES)).any(axis=1)
    edge = 0.5 / np.maximum(counts[0] * counts[1], 1)  # an AUC of 1 isn't taken at its word
    a = np.clip(np.maximum(value, 1 - value), 0.5, 1 - edge)
    prior = (a / (2 - a) + 2 * a**2 / (1 + a)) / 2 - a**2
    more = np.zeros_like(a)
    for variance, n in zip(variances, counts, strict=True):
        more += PRIOR_IMAGES * (prior / np.maximum(n, 1) - variance) / (np.maximum(n, 1) - 1 + PRIOR_IMAGES)
    n_defined = np.maximum(defined.sum(axis=1), 1)
    total = nanmean(np.where(defined, more, np.nan), axis=1) / n_defined
    return np.where(few, np.nan, total).reshape(shape)
