"""Metrics equal scikit-learn's on every awkward case, and a whole stack of episodes equals one after another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from fastxfer.metrics import (
    METRICS,
    accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    nanmean,
    per_class_accuracy,
    per_class_auc,
    per_class_average_precision,
    softmax,
)


def draw(seed: int, n: int, classes: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (n, classes)).astype(float) if ties else rng.normal(size=(n, classes))
    return scores, rng.integers(0, classes, n)


def one_vs_rest(metric, scores, labels, c):
    """What scikit-learn says of class c, NaN where it is undefined."""
    if labels.ndim == 1:
        truth, s = labels == c, scores[:, c]
    else:
        known = ~np.isnan(labels[:, c])
        truth, s = labels[known, c] > 0.5, scores[known, c]
    needs_negatives = metric is theirs.roc_auc_score
    if not truth.any() or (needs_negatives and truth.all()):
        return np.nan
    return metric(truth, s)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 5), st.booleans())
def test_single_label_metrics_are_scikit_learns(seed, n, classes, ties):
    scores, labels = draw(seed, n, classes, ties)
    predicted = scores.argmax(axis=1)
    assert accuracy(scores, labels) == pytest.approx(theirs.accuracy_score(labels, predicted))
    recalls = theirs.recall_score(labels, predicted, labels=range(classes), average=None, zero_division=np.nan)
    np.testing.assert_allclose(per_class_accuracy(scores, labels), recalls)
    assert balanced_accuracy(scores, labels) == pytest.approx(np.nanmean(recalls))
    for ours, metric in (
        (per_class_auc, theirs.roc_auc_score),
        (per_class_average_precision, theirs.average_precision_score),
    ):
        expected = [one_vs_rest(metric, scores, labels, c) for c in range(classes)]
        np.testing.assert_allclose(ours(scores, labels), expected, rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 0.4, 0.9, 1])
)
def test_multi_label_metrics_are_scikit_learns_on_the_known(seed, n, classes, ties, unknown):
    scores, _ = draw(seed, n, classes, ties)
    rng = np.random.default_rng(seed + 1)
    labels = (rng.random((n, classes)) < 0.3).astype(np.float32)
    labels[rng.random((n, classes)) < unknown] = np.nan
    for ours, macro, metric in (
        (per_class_auc, auc, theirs.roc_auc_score),
        (per_class_average_precision, average_precision, theirs.average_precision_score),
    ):
        expected = [one_vs_rest(metric, scores, labels, c) for c in range(classes)]
        np.testing.assert_allclose(ours(scores, labels), expected, rtol=1e-12)
        np.testing.assert_allclose(macro(scores, labels), nanmean(np.array(expected), axis=0), rtol=1e-12)
    known = ~np.isnan(labels)
    got = accuracy(scores, labels)
    if known.any():
        assert got == pytest.approx(((scores > 0)[known] == (labels[known] > 0.5)).mean())
    else:
        assert np.isnan(got)


def test_macro_auc_is_scikit_learns():
    scores, labels = draw(5, 200, 4, ties=False)
    p = softmax(scores)
    assert auc(p, labels) == pytest.approx(theirs.roc_auc_score(labels, p, multi_class="ovr"))
    binary, truth = draw(6, 100, 2, ties=True)
    assert auc(binary, truth) == pytest.approx(theirs.roc_auc_score(truth, binary[:, 1]))
    assert average_precision(binary, truth) == pytest.approx(theirs.average_precision_score(truth, binary[:, 1]))
    symmetric = np.stack([-binary[:, 1], binary[:, 1]], axis=1)
    np.testing.assert_allclose(*per_class_auc(symmetric, truth))


def test_constant_scores_say_nothing():
    scores, labels = np.zeros((8, 3)), np.array([0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(per_class_auc(scores, labels), 0.5)
    np.testing.assert_allclose(per_class_average_precision(scores, labels), [2 / 8, 3 / 8, 3 / 8])
    assert accuracy(scores, labels) == 2 / 8  # the first of equal scores wins


def test_absent_classes_are_left_out_of_means():
    scores, labels = draw(1, 20, 4, ties=False)
    labels = labels % 3  # nobody is of class 3
    assert np.isnan(per_class_accuracy(scores, labels)[3])
    assert np.isnan(per_class_auc(scores, labels)[3])
    assert np.isnan(per_class_average_precision(scores, labels)[3])
    assert balanced_accuracy(scores, labels) == pytest.approx(per_class_accuracy(scores, labels)[:3].mean())
    assert auc(scores, labels) == pytest.approx(per_class_auc(scores, labels)[:3].mean())
    assert np.isnan(auc(scores[:5], np.zeros(5, int)))


@pytest.mark.parametrize("value", [-np.inf, np.inf])
def test_infinite_scores_rank_and_unknown_labels_stay_out(value):
    """A label never seen positive scores −inf for everyone: that is no information, whoever is unknown."""
    labels = np.array([[1.0], [0], [np.nan], [np.nan], [0], [1]])
    assert auc(np.full((6, 1), value), labels) == 0.5
    some = np.array([[value], [value], [value], [0.0], [1.0], [2.0]])
    finite = np.where(np.isinf(some), np.sign(some) * 9, some)
    assert auc(some, labels) == auc(finite, labels)
    assert average_precision(some, labels) == average_precision(finite, labels)
    classes = np.array([[0.0, -np.inf, 1.0], [1.0, -np.inf, 0.0], [0.5, -np.inf, 0.4]])
    assert accuracy(softmax(classes), np.array([2, 0, 1])) == pytest.approx(2 / 3)


def test_a_score_that_is_nan_is_undefined_and_left_out():
    labels = np.array([[1.0, 0], [0, 1], [1, 1]])
    scores = np.array([[np.nan, 0.1], [np.nan, 0.3], [np.nan, -0.2]])
    assert np.isnan(per_class_auc(scores, labels)[0])
    assert np.isnan(per_class_average_precision(scores, labels)[0])
    assert auc(scores, labels) == per_class_auc(scores, labels)[1]
    assert accuracy(scores, labels) == pytest.approx(1 / 3)


def test_recall_of_a_multi_label_target_is_refused():
    with pytest.raises(ValueError, match="one label an image"):
        balanced_accuracy(np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("name", METRICS)
def test_stacked_is_looped(name):
    rng = np.random.default_rng(2)
    scores = rng.integers(-3, 4, (4, 3, 30, 5)).astype(np.float32)
    each = rng.integers(0, 5, (4, 3, 30))
    shared = each[0, 0]
    metric = METRICS[name]
    looped = [[metric(scores[i, j], each[i, j]) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(metric(scores, each), looped, rtol=1e-12)
    looped = [[metric(scores[i, j], shared) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(metric(scores, shared), looped, rtol=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "auc", "average_precision"])
def test_stacked_is_looped_for_many_labels(name):
    rng = np.random.default_rng(3)
    scores = rng.integers(-3, 4, (4, 30, 5)).astype(np.float32)
    labels = np.where(rng.random((4, 30, 5)) < 0.2, np.nan, rng.integers(0, 2, (4, 30, 5)))
    metric = METRICS[name]
    np.testing.assert_allclose(metric(scores, labels), [metric(s, y) for s, y in zip(scores, labels, strict=True)])
    np.testing.assert_allclose(metric(scores, labels[0]), [metric(s, labels[0]) for s in scores])


def test_softmax():
    scores = np.array([[1e4, 0.0, -1e4], [-np.inf, 3.0, 3.0]])
    np.testing.assert_allclose(softmax(scores), [[1, 0, 0], [0, 0.5, 0.5]])


@pytest.mark.real
def test_published_aucs_of_chexnet(real):
    with np.load(real / "nih_chexnet_preds" / "preds.npz", allow_pickle=False) as data:
        scores, labels, published = data["probs"], data["labels"], data["published_auc"]
    got = per_class_auc(scores, labels.astype(np.float32))
    np.testing.assert_allclose(got, published, rtol=1e-9)
    assert auc(scores, labels.astype(np.float32)) == pytest.approx(published.mean(), rel=1e-9)
    precision = [theirs.average_precision_score(labels[:, c], scores[:, c]) for c in range(14)]
    np.testing.assert_allclose(per_class_average_precision(scores, labels.astype(np.float32)), precision, rtol=1e-9)
