"""Influences of queries: slopes of the metric, DeLong's variance, and their sums over the episodes of a cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import blobs_store, blobs_target
from sklearn import metrics as theirs

from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.evaluation import run_protocol
from fastxfer.full_splits import run_full
from fastxfer.influences import WHOLE_SPLIT, groups_of, sampling_of
from fastxfer.metrics import METRICS, nanmean, softmax
from fastxfer.metrics.influence import INFLUENCES, influence
from fastxfer.probes import LogisticProbe
from fastxfer.protocol import Protocol
from fastxfer.results import CELL, NO_EPISODE, ResultStore


def single(kind: str, n: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + np.eye(classes)[labels]
    return np.round(scores) if kind == "ties" else scores, labels


def several(kind: str, n: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = (rng.random((n, classes)) < 0.3).astype(np.float32)
    scores = rng.normal(size=(n, classes)) + labels
    labels[rng.random(labels.shape) < 0.2] = np.nan
    return np.round(scores) if kind == "ties" else scores, labels


def weighted(metric: str, scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """What scikit-learn says of weighted queries."""
    c = scores.shape[1]
    if labels.ndim == 1:
        guess, truth = scores.argmax(axis=1), np.eye(c)[labels]
        if metric == "accuracy":
            return theirs.accuracy_score(labels, guess, sample_weight=weight)
        if metric == "balanced_accuracy":
            return theirs.balanced_accuracy_score(labels, guess, sample_weight=weight)
        if metric == "f1":
            return theirs.f1_score(labels, guess, average="macro", sample_weight=weight)
        if metric == "brier":
            loss = ((scores - truth) ** 2).sum(axis=1) / (2 if c == 2 else 1)
            return float(np.average(loss, weights=weight))
        if metric == "log_loss":
            return theirs.log_loss(labels, scores, sample_weight=weight)
        columns = [1] if c == 2 else range(c)
    else:
        truth, columns = labels, range(c)
        if metric == "accuracy":
            known = ~np.isnan(labels)
            right = ((scores > 0) == (labels > 0.5))[known]
            return float(np.average(right, weights=np.repeat(weight[:, None], c, axis=1)[known]))
    found = []
    for j in columns:
        known = ~np.isnan(truth[:, j])
        y, s, w = truth[known, j] > 0.5, scores[known, j], weight[known]
        if metric == "auc":
            found.append(theirs.roc_auc_score(y, s, sample_weight=w))
        elif metric == "average_precision":
            found.append(theirs.average_precision_score(y, s, sample_weight=w))
        elif metric == "f1":
            found.append(theirs.f1_score(y, s > 0, sample_weight=w))
        elif metric == "brier":
            found.append(float(np.average((s - y) ** 2, weights=w)))
        else:
            found.append(theirs.log_loss(y, s, sample_weight=w))
    return float(np.mean(found))


@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize(
    ("metric", "labels_of"),
    [(m, k) for m in INFLUENCES for k in ("two", "four", "several") if (m, k) != ("balanced_accuracy", "several")],
)
def test_an_influence_is_the_slope_in_the_weight_of_a_query(metric, labels_of, kind):
    scores, labels = several(kind) if labels_of == "several" else single(kind, classes=2 if labels_of == "two" else 4)
    if METRICS[metric].needs_probabilities:
        scores = 1 / (1 + np.exp(-scores)) if labels_of == "several" else softmax(scores)
    got, h = influence(metric, scores, labels, power=0), 1e-4
    slopes = np.empty(len(scores))
    for i in range(len(scores)):
        up, down = np.ones(len(scores)), np.ones(len(scores))
        up[i], down[i] = 1 + h, 1 - h
        slopes[i] = (weighted(metric, scores, labels, up) - weighted(metric, scores, labels, down)) / (2 * h)
    np.testing.assert_allclose(got, slopes, atol=1e-7)
    assert abs(got.sum()) < 1e-12


def test_many_positives_have_the_influence_of_few(monkeypatch):
    """Sorted and searched, or all pairs looked at: the same placements."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=(300, 2)) + labels[:, None] * [0, 1], 1)
    truth = labels == 1
    s = scores[:, 1]
    pairs = (s[truth][:, None] > s[~truth]) + 0.5 * (s[truth][:, None] == s[~truth])
    expected = np.empty(300)
    expected[truth] = (pairs.mean(axis=1) - pairs.mean()) / truth.sum()
    expected[~truth] = (pairs.mean(axis=0) - pairs.mean()) / (~truth).sum()
    np.testing.assert_allclose(influence("auc", scores, labels, 0), expected, atol=1e-15)


def test_squares_of_one_split_sum_to_delongs_variance():
    scores, labels = single("ties", 60, 2)
    truth, s = labels == 1, scores[:, 1]
    psi = (s[truth][:, None] > s[~truth]) + 0.5 * (s[truth][:, None] == s[~truth])
    delong = psi.mean(axis=1).var(ddof=1) / truth.sum() + psi.mean(axis=0).var(ddof=1) / (~truth).sum()
    assert (influence("auc", scores, labels) ** 2).sum() == pytest.approx(delong)
    right = scores.argmax(axis=1) == labels
    assert (influence("accuracy", scores, labels) ** 2).sum() == pytest.approx(right.var(ddof=1) / 60)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "auc", "log_loss"])
def test_power_1_is_what_leaving_the_query_out_changes(metric):
    scores, labels = single("ties", 30, 2 if metric == "auc" else 3)
    scores = softmax(scores) if metric == "log_loss" else scores
    value = METRICS[metric](scores, labels)
    rest = [METRICS[metric](np.delete(scores, i, axis=0), np.delete(labels, i)) for i in range(30)]
    np.testing.assert_allclose(influence(metric, scores, labels, 1), value - rest, atol=1e-12)


@pytest.mark.parametrize("metric", INFLUENCES)
def test_a_stack_is_one_after_another_and_unknown_is_no_influence(metric):
    rng = np.random.default_rng(2)
    scores, labels = softmax(rng.normal(size=(5, 30, 3))), rng.integers(-1, 3, (5, 30))
    got = influence(metric, scores, labels)
    for e in range(5):
        np.testing.assert_allclose(got[e], influence(metric, scores[e], labels[e]), atol=1e-15)
        known = labels[e] >= 0
        assert (got[e, ~known] == 0).all()
        np.testing.assert_allclose(got[e, known], influence(metric, scores[e, known], labels[e, known]), atol=1e-15)
    assert (influence(metric, scores, np.full(30, -1)) == 0).all()


def test_groups_say_who_belongs_together_and_nothing_else():
    target = blobs_target(patients=True)
    group = groups_of(target)
    assert (target.patient[group] == target.patient).all()
    assert (group[group] == group).all()
    assert groups_of(blobs_target()).tolist() == list(range(300))


def protocol_images(store, results, **options) -> pd.DataFrame:
    run_protocol(store, results, Protocol(**options), [LogisticProbe()], backbones=["good"])
    return results.read_images()


def test_sums_over_episodes_are_those_of_each(tmp_path):
    """Accuracy, five queries of each of four classes: an image against the other queries of its class."""
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    got = protocol_images(store, results, ways=4, shots=(3,), queries=5, episodes=31)
    target = store.target("blobs")
    episodes = sample_episodes(target, EpisodeSpec(4, 3, 5), 0, 31)
    probe = LogisticProbe()
    from fastxfer.evaluation import pool_of

    pool = pool_of(store, "good", target, [episodes], "cpu", probe)
    (answer,) = probe.answer(pool, episodes, None)
    right = (answer.scores.argmax(axis=2) == episodes.query_labels).astype(float).reshape(31, 4, 5)
    others = (right.sum(axis=2, keepdims=True) - right) / 4
    slopes = ((right - others) / 20 * np.sqrt(1 - 1 / 20)).reshape(31, 20)
    expected = np.zeros((3, target.n_images))
    for e in range(31):
        np.add.at(expected[0], episodes.query[e], 1)
        np.add.at(expected[1], episodes.query[e], slopes[e])
        np.add.at(expected[2], episodes.query[e], slopes[e] * (e % 2))
    asked = np.flatnonzero(expected[0])
    assert got["image"].tolist() == asked.tolist()
    np.testing.assert_allclose(got[["n", "sum", "odd"]].to_numpy().T, expected[:, asked], atol=1e-7)
    assert (got["group"] == got["image"]).all()
    assert set(got["episodes"]) == {31}
    assert got[list(CELL)].drop_duplicates().shape == (1, len(CELL))


@pytest.mark.parametrize(
    "options",
    [
        {"ways": "all", "queries": "all", "metrics": ("accuracy", "auc")},
        {"ways": 3, "queries": 4, "query_prior": "natural"},
        {"ways": 3, "queries": 1},
    ],
)
def test_an_extended_run_has_the_sums_of_one_at_once(tmp_path, options):
    store = blobs_store(tmp_path / "store", blobs_target(patients=True))
    steps, at_once = ResultStore.open(tmp_path / "steps"), ResultStore.open(tmp_path / "at-once")
    first = dict(options)
    if "metrics" in options:  # one metric more the second time: what is there isn't counted again
        first["metrics"] = ("accuracy",)
    protocol_images(store, steps, shots=(2,), episodes=13, **first)
    got = protocol_images(store, steps, shots=(2,), episodes=40, **options)
    expected = protocol_images(store, at_once, shots=(2,), episodes=40, **options)
    order = ["metric", "image"]
    got, expected = (
        f.astype(dict.fromkeys(set(CELL) - {"seed"}, str)).sort_values(order, ignore_index=True)
        for f in (got, expected)
    )
    pd.testing.assert_frame_equal(got, expected, rtol=1e-5, atol=1e-7)
    assert set(expected["episodes"]) == {40}
    assert expected["group"].nunique() < expected["image"].nunique()


def test_per_label_queries_are_centred_within_their_label_and_answer(tmp_path):
    target = blobs_target(multi_label=True)
    balanced = sampling_of(sample_episodes(target, EpisodeSpec("all", 2, 3, labels="per-label"), 0, 2), target)
    assert balanced.power == 0
    assert np.bincount(balanced.strata).tolist() == [3] * 12
    whole = sample_episodes(target, EpisodeSpec("all", 2, "all", labels="per-label"), 0, 2)
    assert sampling_of(whole, target) is WHOLE_SPLIT
    store, results = blobs_store(tmp_path / "store", target), ResultStore.open(tmp_path / "results")
    got = protocol_images(store, results, labels="per-label", shots=(2,), queries=3, episodes=5)
    assert set(got["metric"]) == {"auc", "average_precision"}
    assert np.isfinite(got["sum"]).all()


def test_full_probes_keep_theirs(tmp_path):
    store, results = blobs_store(tmp_path / "store", blobs_target(n_val=10)), ResultStore.open(tmp_path / "results")
    run_full(store, results, LogisticProbe(l2=(0.1,)), backbones=["good"])
    rows, got = results.read(), results.read_images()
    assert len(got) == 3 * (60 + 120)
    assert (got["episodes"] == 1).all()
    assert (got["n"] == 1).all()
    assert (got["odd"] == 0).all()
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")].iloc[0]
    assert accuracy["episode"] == NO_EPISODE
    of_it = got[(got["metric"] == "accuracy") & (got["split"] == "test")]
    n, p = 120, accuracy["value"]
    assert (of_it["sum"] ** 2).sum() == pytest.approx(p * (1 - p) / (n - 1), rel=1e-5)
    assert nanmean(of_it["sum"].to_numpy(), axis=0) == pytest.approx(0, abs=1e-9)
