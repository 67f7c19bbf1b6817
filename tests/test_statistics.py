"""Intervals: equal to SciPy's, and covering what they claim to cover."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastxfer import metrics
from fastxfer.metrics import accuracy
from fastxfer.results import NO_EPISODE, complete
from fastxfer.statistics import EPISODES, TEST_IMAGES, bootstrap_interval, measure_classes, summarise


def rows(values, **changes) -> pd.DataFrame:
    frame = {
        "source": "s",
        "backbone": "b",
        "target": "t",
        "ways": "5",
        "shots": "1",
        "seed": 0,
        "episode": np.arange(len(values)),
        "probe": "logistic",
        "params": "l2=1",
        "split": "test",
        "metric": "accuracy",
        "value": values,
        "n_queries": 75,
        "episodes_hash": "h",
    }
    return complete(pd.DataFrame(frame | changes))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_over_episodes_is_scipys(level):
    rng = np.random.default_rng(0)
    some, others = rng.random(40), rng.random(7)
    both = pd.concat([rows(some), rows(others, shots="5", converged=np.arange(7) % 2 == 0)])
    got = summarise(both, level).set_index("shots")
    for shots, values in (("1", some), ("5", others)):
        low, high = stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))
        line = got.loc[shots]
        assert line["mean"] == pytest.approx(values.mean())
        assert line["sd"] == pytest.approx(values.std(ddof=1))
        assert (line["low"], line["high"]) == pytest.approx((low, high))
        assert (line["n"], line["n_queries"], line["interval"]) == (len(values), 75, EPISODES)
    assert got.loc["1", "converged"] == 1.0
    assert got.loc["5", "converged"] == pytest.approx(4 / 7)


def test_cells_without_episodes_keep_their_interval():
    full = rows([0.5], shots="full", episode=[NO_EPISODE], low=0.4, high=0.55, episodes_hash="")
    got = summarise(pd.concat([full, rows([0.3, 0.4])])).set_index("shots")
    assert tuple(got.loc["full", ["mean", "low", "high", "n", "interval"]]) == (0.5, 0.4, 0.55, 1, TEST_IMAGES)
    assert got.loc["1", "interval"] == EPISODES


def test_undefined_values_are_counted_and_left_out():
    values = np.array([0.2, np.nan, 0.5, 0.9, np.nan])
    line = summarise(rows(values)).iloc[0]
    defined = values[np.isfinite(values)]
    low, high = stats.t.interval(0.95, 2, defined.mean(), stats.sem(defined))
    assert (line["n"], line["undefined"]) == (5, 2)
    assert (line["mean"], line["low"], line["high"]) == pytest.approx((defined.mean(), low, high))


def test_one_episode_has_no_interval():
    line = summarise(rows([0.7])).iloc[0]
    assert line["mean"] == 0.7
    assert np.isnan([line["sd"], line["low"], line["high"]]).all()


def test_categorical_columns_do_not_invent_cells():
    frame = pd.concat([rows([0.1, 0.2]), rows([0.3, 0.4], backbone="c", shots="5")])
    text = frame.select_dtypes(exclude="number").columns.drop("converged")
    assert len(summarise(frame.astype(dict.fromkeys(text, "category")))) == 2


def test_other_episodes_are_another_line():
    assert len(summarise(pd.concat([rows([0.1, 0.2]), rows([0.3, 0.4], episodes_hash="other")]))) == 2


def binary(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    z = rng.normal(size=n) + labels
    return np.stack([-z / 2, z / 2], axis=1), labels


@pytest.mark.parametrize("metric", ["accuracy", "auc"])
def test_bootstrap_is_scipys(metric):
    from fastxfer.metrics import METRICS

    scores, labels = binary(150)
    got = bootstrap_interval(metric, scores, labels, resamples=2000)
    theirs = stats.bootstrap(
        (np.arange(150),),
        lambda i: float(METRICS[metric](scores[i], labels[i])),
        method="percentile",
        n_resamples=2000,
        vectorized=False,
        rng=1,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert got == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)
    assert got[0] < float(METRICS[metric](scores, labels)) < got[1]
    assert got == bootstrap_interval(metric, scores, labels, resamples=2000)
    assert got != bootstrap_interval(metric, scores, labels, resamples=2000, seed=1)


def test_groups_are_resampled_whole():
    """Ten copies of every image of a patient are worth one image, not ten."""
    scores, labels = binary(60)
    patients = np.arange(60)
    once = bootstrap_interval("accuracy", scores, labels, groups=patients, resamples=2000)
    copies = np.tile(np.arange(60), 10)
    grouped = bootstrap_interval(
        "accuracy", scores[copies], labels[copies], groups=np.array([f"p{i}" for i in copies]), resamples=2000
    )
    naive = bootstrap_interval("accuracy", scores[copies], labels[copies], resamples=2000)
    width = once[1] - once[0]
    assert grouped[1] - grouped[0] == pytest.approx(width, rel=0.1)
    assert naive[1] - naive[0] < 0.45 * width


def test_every_group_that_is_drawn_comes_with_all_its_images(monkeypatch):
    labels = np.array([0, 1, 1, 0, 1, 0])
    groups = np.array(["b", "a", "b", "c", "c", "c"])
    seen = []

    def spy(scores, labels):
        seen.append(scores[:, 0].astype(int))
        return np.asarray(0.5)

    monkeypatch.setitem(bootstrap_interval.__globals__["METRICS"], "accuracy", spy)
    bootstrap_interval("accuracy", np.arange(6.0)[:, None].repeat(2, axis=1), labels, groups=groups, resamples=50)
    for rows_drawn in seen:
        count = np.bincount(rows_drawn, minlength=6)
        assert count[0] == count[2]
        assert count[3] == count[4] == count[5]
        assert count[0] + count[1] + count[3] == 3


def test_undefined_metrics_have_no_interval():
    scores = np.random.default_rng(0).normal(size=(30, 2))
    assert np.isnan(bootstrap_interval("auc", scores, np.zeros(30, int))).all()
    labels = np.full((30, 2), np.nan)
    assert np.isnan(bootstrap_interval("average_precision", scores, labels)).all()


def test_rare_positives_leave_some_resamples_out():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(40, 1)), np.zeros((40, 1))
    labels[:2] = 1
    low, high = bootstrap_interval("auc", scores, labels)
    assert 0 <= low < high <= 1


def test_the_t_interval_covers():
    """95 % of the intervals over episodes hold the true mean (2,000 studies: standard error 0.5 points)."""
    rng = np.random.default_rng(1)
    studies, n = 2000, 30
    values = rng.binomial(75, 0.6, (studies, n)) / 75
    frame = rows(values.ravel(), episode=np.tile(np.arange(n), studies), seed=np.repeat(np.arange(studies), n))
    got = summarise(frame)
    covered = ((got["low"] <= 0.6) & (got["high"] >= 0.6)).mean()
    assert 0.93 < covered < 0.97


def test_the_bootstrap_covers():
    rng = np.random.default_rng(2)
    covered = []
    for study in range(150):
        right = rng.random(200) < 0.7
        scores = np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])
        low, high = bootstrap_interval("accuracy", scores, np.zeros(200, int), resamples=200, seed=study)
        covered.append(low <= 0.7 <= high)
        assert accuracy(scores, np.zeros(200, int)) == pytest.approx(right.mean())
    assert 0.88 < np.mean(covered) < 0.99


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_all_right_is_not_certainty(metric):
    """No resample of images that are all right holds a wrong one; the exact bound still falls with their number."""
    labels = np.arange(40) % 2
    scores = np.eye(2)[labels]
    exact = stats.binomtest(40, 40).proportion_ci(method="exact").low
    assert bootstrap_interval(metric, scores, labels) == pytest.approx((exact, 1), abs=1e-12)
    patients = labels + 2 * (np.arange(40) // 10)
    few = stats.binomtest(8, 8).proportion_ci(method="exact").low
    assert bootstrap_interval(metric, scores, labels, groups=patients) == pytest.approx((few, 1), abs=1e-12)
    one_wrong = scores.copy()
    one_wrong[0] = one_wrong[0, ::-1]
    assert bootstrap_interval(metric, one_wrong, labels)[0] < 39 / 40


@pytest.mark.parametrize("metric", ["auc", "average_precision"])
@pytest.mark.parametrize("kind", ["two", "many", "multi", "nan"])
def test_resampled_ranking_is_that_of_the_repeated_queries(metric, kind):
    rng = np.random.default_rng(5)
    n, c = 60, 2 if kind == "two" else 6
    scores = np.round(rng.normal(size=(n, c)), 1).astype(np.float32)  # with ties
    labels = rng.integers(0, c, n)
    if kind in ("multi", "nan"):
        labels = np.where(rng.random((n, c)) < 0.2, np.nan, (rng.random((n, c)) < 0.1).astype(float))
    if kind == "nan":
        scores[7, 1] = np.nan
    counts = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(40)]).astype(np.int32)
    repeated = [np.repeat(np.arange(n), count) for count in counts]
    expected = [float(metrics.METRICS[metric](scores[rows], labels[rows])) for rows in repeated]
    got = metrics.resampled(metric, scores, labels, counts)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert np.isfinite(expected).any()


def test_each_class_alone_is_resampled_as_the_mean_of_all():
    rng = np.random.default_rng(3)
    labels = np.where(rng.random((60, 3)) < 0.2, np.nan, (rng.random((60, 3)) < 0.5).astype(float))
    scores = rng.normal(size=(60, 3)) + np.nan_to_num(labels)
    for i, row in enumerate(measure_classes("auc", ("a", "b", "c"), scores, labels)):
        low, high = bootstrap_interval("auc", scores[:, [i]], labels[:, [i]])
        np.testing.assert_allclose([row["low"], row["high"]], [low, high], atol=1e-12)
