"""Metrics equal scikit-learn's on every awkward case, and a whole stack of episodes equals one after another."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from fastxfer.metrics import (
    BINS,
    METRICS,
    accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    brier,
    calibration_error,
    f1,
    log_loss,
    measure,
    nanmean,
    per_class_accuracy,
    per_class_auc,
    per_class_average_precision,
    per_class_f1,
    per_label_brier,
    per_label_calibration_error,
    per_label_log_loss,
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


def calibration_gap(confidence, right):
    """The expected calibration error by its definition, bin after bin."""
    bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    return sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean()) for b in np.unique(bins)
    )


@st.composite
def single_label_cases(draw):
    """Scores with and without ties, constant, huge; classes absent; one image; more than are looked at in pairs."""
    n, classes = draw(st.sampled_from([1, 2, 7, 30, 300])), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["normal", "ties", "constant", "huge", "half tied"]))
    scores = rng.normal(size=(n, classes))
    if kind in ("ties", "half tied"):
        scores[: n if kind == "ties" else n // 2] = rng.integers(-2, 3, (n if kind == "ties" else n // 2, classes))
    scores *= {"constant": 0.0, "huge": 1e3}.get(kind, 1.0)
    return scores, rng.integers(0, draw(st.integers(1, classes)), n)


@settings(deadline=None, max_examples=120)
@given(single_label_cases(), st.sampled_from([np.float32, np.float64]))
def test_single_label_metrics_are_scikit_learns(case, dtype):
    scores, labels = case
    scores, classes = scores.astype(dtype), scores.shape[1]
    predicted = scores.argmax(axis=1)
    assert accuracy(scores, labels) == pytest.approx(theirs.accuracy_score(labels, predicted))
    recalls = theirs.recall_score(labels, predicted, labels=range(classes), average=None, zero_division=np.nan)
    np.testing.assert_allclose(per_class_accuracy(scores, labels), recalls)
    assert balanced_accuracy(scores, labels) == pytest.approx(np.nanmean(recalls))
    options = {"labels": range(classes), "zero_division": np.nan}
    np.testing.assert_allclose(
        per_class_f1(scores, labels), theirs.f1_score(labels, predicted, average=None, **options)
    )
    assert f1(scores, labels) == pytest.approx(theirs.f1_score(labels, predicted, average="macro"))
    p = softmax(scores)
    binary = classes == 2  # scikit-learn wants the second column alone
    p_of, rel = (p[:, 1] if binary else p), (1e-5 if dtype is np.float32 else 1e-9)
    # what scikit-learn takes for the rows' sum differs in the last places of float32
    expected = theirs.brier_score_loss(labels, p_of, labels=range(classes))
    assert brier(p, labels) == pytest.approx(expected, rel=rel, abs=1e-12)
    expected = theirs.log_loss(labels, p, labels=range(classes))
    assert log_loss(p, labels) == pytest.approx(expected, rel=rel, abs=1e-7 if dtype is np.float32 else 1e-12)
    gap = calibration_gap(p.max(axis=1).astype(float), p.argmax(axis=1) == labels)
    assert calibration_error(p, labels) == pytest.approx(gap, rel=1e-9, abs=1e-12)
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
    p = 1 / (1 + np.exp(-scores))
    for ours, each, values, metric in (
        (f1, per_class_f1, scores, lambda y, s: theirs.f1_score(y, s > 0, zero_division=np.nan)),
        (brier, per_label_brier, p, lambda y, s: theirs.brier_score_loss(y, s, labels=[0, 1])),
        (log_loss, per_label_log_loss, p, lambda y, s: theirs.log_loss(y, s, labels=[0, 1])),
        (calibration_error, per_label_calibration_error, p, lambda y, s: calibration_gap(s, y)),
    ):
        expected = np.full(classes, np.nan)
        for c in range(classes):
            of_c = ~np.isnan(labels[:, c])
            if of_c.any():
                expected[c] = metric(labels[of_c, c] > 0.5, values[of_c, c])
        np.testing.assert_allclose(each(values, labels), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours(values, labels), nanmean(expected, axis=0), rtol=1e-9, atol=1e-12)
    known = ~np.isnan(labels)
    got = accuracy(scores, labels)
    if known.any():
        assert got == pytest.approx(((scores > 0)[known] == (labels[known] > 0.5)).mean())
    else:
        assert np.isnan(got)


def test_a_bin_holds_its_upper_edge():
    edges = np.linspace(0, 1, BINS + 1)
    between = (edges[7:-1] + edges[8:]) / 2  # company in every bin, so that being in a wrong one shows
    for at_edge in (edges[8:], np.nextafter(edges[8:], 0), np.nextafter(edges[8:-1], 1)):
        p = np.concatenate([between[1:], at_edge])
        right = np.random.default_rng(0).random(len(p)) < 0.5
        both = np.stack([p, 1 - p], axis=1)
        gap = calibration_gap(p, right)
        assert calibration_error(both, (~right).astype(int)) == pytest.approx(gap, rel=1e-9)
        for q, y in ((p, right), (1 - p, ~right)):
            gap = calibration_gap(q, y)
            assert calibration_error(q[:, None], y[:, None].astype(float)) == pytest.approx(gap, rel=1e-9)


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


@pytest.mark.parametrize("name", METRICS)
def test_a_query_whose_label_is_unknown_takes_no_part(name):
    scores, labels = draw(8, 40, 3, ties=True)
    p = softmax(scores)
    known = np.arange(40) % 3 > 0
    expected = METRICS[name](p[known], labels[known])
    assert METRICS[name](p, np.where(known, labels, -1)) == pytest.approx(expected, rel=1e-12)
    assert METRICS[name](p, np.where(known, labels, np.nan)) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(METRICS[name](p, np.full(40, -1)))
    assert np.isnan(METRICS[name](p[:0], labels[:0]))


@pytest.mark.parametrize("name", METRICS)
def test_one_nan_among_the_scores_spoils_its_episode_and_no_other(name):
    scores, labels = draw(9, 40, 3, ties=False)
    p = np.stack([softmax(scores)] * 3)
    p[1, 5] = np.nan
    values = METRICS[name](p, labels)
    assert np.isnan(values).tolist() == [False, True, False]
    if METRICS[name].single_label_only or name == "accuracy":
        return
    several = np.eye(3)[labels]
    p[1, 5] = softmax(scores)[5]
    p[1, 5, 2] = np.nan  # of one label: the other two are left
    values, undefined = measure(name, p, several)
    assert undefined.tolist() == [0, 1, 0]
    assert np.isfinite(values).all()


def test_what_was_left_out_is_counted():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(3, 12, 4)))
    labels = np.stack([np.arange(12) % 4, np.arange(12) % 3, np.zeros(12, int)])
    for name, expected in (("balanced_accuracy", [0, 1, 3]), ("auc", [0, 1, 4]), ("average_precision", [0, 1, 3])):
        values, undefined = measure(name, p, labels)
        assert undefined.tolist() == expected
        np.testing.assert_array_equal(values, METRICS[name](p, labels))
    assert np.isnan(measure("auc", p, labels)[0]).tolist() == [False, False, True]
    assert measure("accuracy", p, labels)[1].tolist() == [0, 0, 0]
    assert measure("accuracy", p, np.full((3, 12), -1))[1].tolist() == [1, 1, 1]
    two = softmax(rng.normal(size=(1, 12, 2)))
    assert measure("auc", two, np.zeros((1, 12), int))[1].tolist() == [1]
    unknown = np.where(np.arange(4) == 1, np.nan, np.eye(4)[labels])
    for name in ("brier", "log_loss", "calibration_error", "f1"):
        values, undefined = measure(name, p, unknown)
        np.testing.assert_array_equal(values, METRICS[name](p, unknown))
        assert undefined[0] == 1


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].needs_probabilities])
def test_what_is_no_probability_is_refused(name):
    with pytest.raises(ValueError, match=r"probabilities between 0 and 1 are needed, got -1 … 2"):
        METRICS[name](np.array([[-1.0, 2.0]]), np.array([0]))
    with pytest.raises(ValueError, match="must sum to 1"):
        METRICS[name](np.array([[0.5, 0.1]]), np.array([0]))
    assert np.isfinite(METRICS[name](np.array([[0.5, 0.1]]), np.array([[1.0, 0.0]])))  # labels need not


def test_thousands_of_episodes_take_a_fraction_of_a_second():
    rng = np.random.default_rng(0)
    p, labels = softmax(rng.normal(size=(5000, 75, 5)).astype(np.float32)), np.repeat(np.arange(5), 15)
    for metric in METRICS.values():
        metric(p[:2], labels)  # compiled on first use
    started = time.process_time()
    for metric in METRICS.values():
        assert metric(p, labels).shape == (5000,)
    assert time.process_time() - started < 1.0


def test_recall_of_a_multi_label_target_is_refused():
    with pytest.raises(ValueError, match="one label an image"):
        balanced_accuracy(np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("name", METRICS)
def test_stacked_is_looped(name):
    rng = np.random.default_rng(2)
    scores = softmax(rng.integers(-3, 4, (4, 3, 30, 5)).astype(np.float32))
    each = rng.integers(0, 5, (4, 3, 30))
    shared = each[0, 0]
    metric = METRICS[name]
    looped = [[metric(scores[i, j], each[i, j]) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(metric(scores, each), looped, rtol=1e-12)
    looped = [[metric(scores[i, j], shared) for j in range(3)] for i in range(4)]
    for labels in (shared, shared[None], shared[None, None]):
        np.testing.assert_allclose(metric(scores, labels), looped, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in METRICS if not METRICS[name].single_label_only])
def test_stacked_is_looped_for_many_labels(name):
    rng = np.random.default_rng(3)
    scores = rng.integers(-3, 4, (4, 30, 5)).astype(np.float32)
    scores = 1 / (1 + np.exp(-scores)) if METRICS[name].needs_probabilities else scores
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
