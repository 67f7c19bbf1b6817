"""Intervals: equal to SciPy's, and covering what they claim to cover."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from fastxfer.metrics.influence import influence
from fastxfer.results import CELL, NO_EPISODE, complete
from fastxfer.statistics import (
    EPISODES,
    EPISODES_AND_IMAGES,
    TEST_IMAGES,
    ImageVariance,
    interval_over_images,
    measure_classes,
    score_interval,
    split_interval,
    summarise,
    variance_over_images,
)
from fastxfer.statistics.intervals import t_interval
from fastxfer.statistics.sequences import confidence_sequence, half_width


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


def test_t_interval_is_scipys_down_to_one_degree_of_freedom_and_part_of_one():
    df = np.array([0.0, 0.5, 1.0, 2.5, np.inf])
    low, high = t_interval(np.full(5, 3.0), np.full(5, 4.0), df, 0.9)
    np.testing.assert_allclose((low, high), stats.t.interval(0.9, np.where(df > 0, df, np.nan), 3.0, 2.0))
    assert np.isnan(low).tolist() == [True, False, False, False, False]


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


def test_cells_do_not_mix():
    """Many at once, their images in another order than their rows, come out sorted, each as it does alone."""
    rng = np.random.default_rng(2)
    cells, lines = [], []
    for backbone, metric in (("c", "accuracy"), ("a", "log_loss"), ("b", "accuracy"), ("a", "f1"), ("b", "auc")):
        named = {"backbone": backbone, "metric": metric}
        cells.append(rows(rng.normal(0.7, 0.05, 20), **named))
        line = rows(np.zeros(40), **named).drop(columns=["episode", "value"])[list(CELL)]
        half = rng.normal(0, 0.05, 40)
        lines.append(
            line.assign(image=np.arange(40), group=np.arange(40), episodes=20, rarity=0.0, n=10, sum=2 * half, odd=half)
        )
    names = dict.fromkeys(("backbone", "metric"), "category")
    together = summarise(pd.concat(cells).astype(names), images=pd.concat(lines[::-1]).astype(names))
    assert together[["backbone", "metric"]].to_numpy().tolist() == [
        ["a", "f1"], ["a", "log_loss"], ["b", "accuracy"], ["b", "auc"], ["c", "accuracy"]
    ]  # fmt: skip
    alone = [summarise(cell, images=line) for cell, line in zip(cells, lines, strict=True)]
    expected = pd.concat(alone).sort_values(["backbone", "metric"])
    bounds = ["mean", "low", "high", "low_images", "high_images"]
    assert np.isfinite(expected[bounds].to_numpy()).all()
    np.testing.assert_allclose(together[bounds], expected[bounds])


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


def test_a_share_of_images_has_wilsons_interval():
    """statsmodels' Wilson interval, but for (n − 1) / n in the variance and a t quantile of n − 1."""
    for right, n in ((170, 200), (30, 40), (999, 1000)):
        theirs = proportion_confint(right, n, method="wilson")
        p = right / n
        exact = score_interval(np.array(p), np.array(p * (1 - p) / n), np.array(np.inf), n, 0.95)
        assert exact == pytest.approx(theirs)
        scores = np.eye(2)[(np.arange(n) >= right).astype(int)]
        assert split_interval("accuracy", scores, np.zeros(n, int)) == pytest.approx(theirs, abs=0.02 * (1 - theirs[0]))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_all_right_is_not_certainty(metric):
    """No wrong image shows how the share varies; the bound still falls with the number of images, or of patients."""
    labels = np.arange(40) % 2
    scores = np.eye(2)[labels]
    low, high = split_interval(metric, scores, labels)
    assert (low, high) == pytest.approx(proportion_confint(40, 40, method="wilson"), abs=1e-6)
    few, _ = split_interval(metric, scores, labels, groups=np.arange(40) // 4)
    assert few == pytest.approx(proportion_confint(10, 10, method="wilson")[0], abs=1e-6)
    assert few < low


def test_copies_of_a_patients_images_are_worth_one():
    scores, labels = binary(60)
    copies = np.tile(np.arange(60), 10)
    once = split_interval("accuracy", scores, labels, groups=np.arange(60))
    grouped = split_interval("accuracy", scores[copies], labels[copies], groups=np.array([f"p{i}" for i in copies]))
    naive = split_interval("accuracy", scores[copies], labels[copies])
    assert grouped == pytest.approx(once, abs=0.003)
    assert naive[1] - naive[0] < 0.45 * (once[1] - once[0])


def test_where_no_method_holds_there_is_no_interval():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(60, 2))
    labels = np.zeros(60, int)
    assert np.isnan(split_interval("auc", scores, labels)).all()  # undefined
    labels[:2] = 1
    assert np.isnan(split_interval("auc", scores, labels)).all()  # two positives
    labels[2] = 1
    assert np.isfinite(split_interval("auc", scores, labels)).all()
    assert np.isnan(split_interval("balanced_accuracy", scores, labels)).all()  # three images make half of it
    assert np.isnan(split_interval("auc", np.eye(2)[labels], labels)).all()  # nothing is ranked wrong
    assert np.isnan(split_interval("accuracy", scores, labels, groups=np.arange(60) % 9)).all()  # nine patients
    assert np.isnan(split_interval("calibration_error", np.full((60, 2), 0.5), labels)).all()
    assert np.isnan(split_interval("average_precision", scores, np.full((60, 2), np.nan))).all()


def test_few_positives_are_not_taken_at_their_word():
    """Five placement values next to each other look as if the AUC were known; the interval is wide all the same."""
    labels = np.repeat([1, 0], [5, 200])
    z = np.r_[np.full(5, 1.2), np.random.default_rng(0).normal(size=200)]
    scores = np.stack([-z, z], axis=1)
    low, high = split_interval("auc", scores, labels)
    delong = 1.96 * np.sqrt((influence("auc", scores, labels) ** 2).sum())
    assert high - low > 3 * 2 * delong
    many = np.repeat(np.arange(205), 40)
    low, high = split_interval("auc", scores[many], labels[many])
    delong = 1.96 * np.sqrt((influence("auc", scores[many], labels[many]) ** 2).sum())
    assert high - low < 1.25 * 2 * delong


@pytest.mark.parametrize("episodes", [2, 7])
@pytest.mark.parametrize("of_a_patient", [1, 3, 6])
def test_variance_over_images_is_that_of_pairs_of_episodes(of_a_patient, episodes):
    """Products of an even and an odd episode of one group, averaged over all such pairs."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(episodes, 12)) * (rng.random((episodes, 12)) < 0.6)
    group = np.arange(12) // of_a_patient
    odd, total = slopes[1::2].sum(axis=0), slopes.sum(axis=0)
    got = variance_over_images(np.zeros(12, int), group, np.ones(12, int), total, odd, np.array([episodes]))
    of_group = np.zeros((episodes, group.max() + 1))
    np.add.at(of_group, (slice(None), group), slopes)
    pairs = [(i, j) for i in range(0, episodes, 2) for j in range(1, episodes, 2)]
    n = len(of_group[0])
    few = n / (n - 1) if of_a_patient > 1 else 1
    assert got.variance[0] == pytest.approx(few * np.mean([of_group[i] @ of_group[j] for i, j in pairs]))
    of_each = np.mean([of_group[i] * of_group[j] for i, j in pairs], axis=0)
    assert got.spread[0] == pytest.approx(n * of_each.var(ddof=1) * few**2)
    assert got.groups[0] == got.effective[0] == n
    assert got.df[0] == (max(n - 1, 1) if of_a_patient > 1 else np.inf)
    of_single = np.mean([slopes[i] @ slopes[j] for i, j in pairs])
    assert got.design[0] == pytest.approx(max(got.variance[0] / few / of_single, 1) if of_single > 0 else 1)
    once = variance_over_images(np.zeros(12, int), group, np.ones(12, int), total, odd * 0, np.array([1]))
    assert once.variance[0] == pytest.approx((of_group.sum(axis=0) ** 2).sum() * few)


@pytest.mark.parametrize("episodes", [2, 3, 40])
@pytest.mark.parametrize("metric", ["accuracy", "f1", "log_loss"])
def test_an_interval_over_both_is_the_textbooks(metric, episodes):
    """Variances add; degrees of freedom by Satterthwaite; a share's bounds are those that the estimate is t errors away from."""
    mean, level, of_episodes, more = 0.7, 0.9, 3e-4, 5e-4
    images = ImageVariance(*(np.array([v]) for v in (8e-4, 4e-8, 25.0, 20.0, 1.5, 19.0)))
    of_images = images.variance[0] + more * images.design[0]
    variance = of_episodes + of_images
    about = 2 * of_images**2 / images.df[0] if metric == "accuracy" else images.spread[0]
    df = 2 * variance**2 / (2 * of_episodes**2 / (episodes - 1) + about)
    t = stats.t.ppf(0.5 + level / 2, df)
    bounds = interval_over_images(
        metric, np.array([mean]), np.array([of_episodes]), np.array([episodes]), images, np.array([more]), level
    )
    for bound, side in zip(np.ravel(bounds), (1, -1), strict=True):
        error = variance if metric == "log_loss" else variance / (mean * (1 - mean)) * bound * (1 - bound)
        assert mean - bound == pytest.approx(side * t * np.sqrt(error))


def test_episodes_that_vary_and_images_that_do_not_leave_the_episodes_degrees_of_freedom():
    images = ImageVariance(*(np.array([v]) for v in (-1e-5, 0.0, 25.0, 20.0, 1.5, np.inf)))
    one = np.ones(1)
    got = interval_over_images("log_loss", one, one * 0.04, one * 2, images, one * 0, 0.95)
    np.testing.assert_allclose(np.ravel(got), stats.t.interval(0.95, 1, 1.0, 0.2))


def test_influences_however_unequal_leave_one_degree_of_freedom():
    images = ImageVariance(*(np.array([v]) for v in (1e-3, 1.0, 25.0, 20.0, 1.5, 19.0)))
    one = np.ones(1)
    got = interval_over_images("f1", one * 0.5, one * 0, one, images, one * 0, 0.5)
    np.testing.assert_allclose(got, score_interval(one * 0.5, one * 1e-3, one, one, 0.5))


def test_images_that_tell_nothing_alone_leave_the_design_as_it_is():
    """Of each patient one image is asked in even episodes only, the other in odd ones: alone they have no products."""
    group, total = np.repeat(np.arange(12), 2), np.full(24, 0.1)
    odd = np.where(np.arange(24) % 2, total, 0.0)
    got = variance_over_images(np.zeros(24, int), group, np.ones(24, int), total, odd, np.array([8]))
    assert got.variance[0] > 0
    assert got.design[0] == 1.0


def test_cells_without_an_interval_say_why():
    def images(**changes):
        lines = rows(np.zeros(40)).drop(columns=["episode", "value"])[list(CELL)]
        return lines.assign(
            **{"image": np.arange(40), "group": np.arange(40), "episodes": 20, "rarity": 0.0, "n": 10}
            | {"sum": np.tile([0.02, -0.02], 20), "odd": np.tile([0.01, -0.01], 20)}
            | changes
        )

    values = np.random.default_rng(0).normal(0.7, 0.05, 20)
    for frame, lines, words in (
        (rows(values), images(), ""),
        (rows(values), None, "made before"),
        (rows(values), images(shots="5"), "made before"),
        (rows(values), images(group=np.arange(40) % 9), "fewer than 10 patients or test images"),
        (rows(values), images(group=np.arange(40) % 10), ""),
        (rows(values, metric="auc"), images(metric="auc", rarity=np.nan), "too few positives or negatives"),
        (rows(values, metric="balanced_accuracy"), images(metric="balanced_accuracy", rarity=np.nan), "too few test"),
        (rows(values, metric="calibration_error"), images(), "a metric without influences"),
        (rows(values, metric="auc:a"), images(), "means over classes alone"),
        (rows(values[:1]), images(), "one episode"),
        (rows(values[:2]), images(episodes=2), ""),
        (rows(values * np.nan), images(), "no value is defined"),
        (rows(np.ones(20), metric="auc"), images(metric="auc"), "nothing is ranked wrong"),
        (rows(np.zeros(20), metric="auc"), images(metric="auc"), "nothing is ranked wrong"),
    ):
        line = summarise(frame, images=lines).iloc[0]
        assert words in line["reason"]
        assert bool(line["reason"]) == bool(words)
        assert np.isnan(line["low_images"]) == np.isnan(line["high_images"]) == bool(words)
        assert line["interval_images"] == EPISODES_AND_IMAGES
        if not words:
            assert line["low_images"] < line["low"] < line["high"] < line["high_images"]
    all_right = summarise(rows(np.ones(20)), images=images()).iloc[0]  # a share has its interval there, too
    assert 0.5 < all_right["low_images"] < 1
    assert all_right["reason"] == ""


def test_the_t_interval_covers():
    """95 % of the intervals over episodes hold the true mean (2,000 studies: standard error 0.5 points)."""
    rng = np.random.default_rng(1)
    studies, n = 2000, 30
    values = rng.binomial(75, 0.6, (studies, n)) / 75
    frame = rows(values.ravel(), episode=np.tile(np.arange(n), studies), seed=np.repeat(np.arange(studies), n))
    got = summarise(frame)
    covered = ((got["low"] <= 0.6) & (got["high"] >= 0.6)).mean()
    assert 0.93 < covered < 0.97


def test_each_class_alone_has_the_interval_of_its_own_question():
    rng = np.random.default_rng(3)
    labels = np.where(rng.random((60, 3)) < 0.2, np.nan, (rng.random((60, 3)) < 0.5).astype(float))
    scores = rng.normal(size=(60, 3)) + np.nan_to_num(labels)
    for i, row in enumerate(measure_classes("auc", ("a", "b", "c"), scores, labels)):
        expected = split_interval("auc", scores[:, [i]], labels[:, [i]])
        assert (row["low"], row["high"]) == pytest.approx(expected)
        assert row["low"] < row["value"] < row["high"]
        assert row["n_queries"] == (~np.isnan(labels[:, i])).sum()
    one = rng.integers(0, 3, 60)
    for metric in ("recall", "f1", "average_precision"):
        for row in measure_classes(metric, ("a", "b", "c"), scores + np.eye(3)[one], one):
            assert row["low"] < row["value"] < row["high"]


def test_recall_of_a_class_keeps_the_patients_of_its_images_whole():
    rng = np.random.default_rng(5)
    labels, patient = rng.integers(0, 3, 240), np.arange(240) // 4
    scores = rng.normal(size=(240, 3)) + np.eye(3)[labels]
    for i, row in enumerate(measure_classes("recall", ("a", "b", "c"), scores, labels, groups=patient)):
        of_class = labels == i
        expected = split_interval("accuracy", scores[of_class], labels[of_class], groups=patient[of_class])
        assert (row["low"], row["high"]) == expected
        assert 0 < row["low"] < row["value"] < row["high"] < 1


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_confidence_sequence_is_where_neither_bet_has_won(level):
    x = np.random.default_rng(0).beta(7, 3, 300)
    low, high = confidence_sequence(x, 0.02, level)
    assert low < x.mean() < high
    for m, side in ((low, 1), (high, -1)):
        capital, count, total, squares = 1.0, 1, 0.5, 0.25
        for value in x:  # as the paper has it, one bet after another
            capital *= 1 + side * min(0.75, 0.02 / (squares / count)) * (value - m)
            count, total = count + 1, total + value
            squares += (value - total / count) ** 2
        assert capital == pytest.approx(2 / (1 - level), rel=1e-3)
    assert confidence_sequence(np.r_[x, np.nan], 0.02, level) == pytest.approx((low, high))
    assert confidence_sequence(x[:0], 0.02) == (0, 1)
    assert confidence_sequence(np.ones(2000), 0.01)[0] > 0.99


def test_a_confidence_sequence_leaves_0_or_1_when_a_bet_has_won_and_not_before():
    """The bets of ones that the mean is above 0 have won after a few, on the other side of zeros likewise."""
    enough = [n for n in range(60) if 1.75**n > 2 / 0.05]
    for n in range(60):
        low, high = confidence_sequence(np.ones(n), 10.0)
        assert (low > 0, high) == (n in enough, 1)
        assert confidence_sequence(np.zeros(n), 10.0) == pytest.approx((1 - high, 1 - low), abs=1e-5)
    values = np.random.default_rng(1).beta(7, 3, 300)
    low, high = confidence_sequence(values, 0.03)
    assert half_width(values, 0.03) == (high - low) / 2 > 0


def test_looking_after_every_episode_misses_seldom():
    """200 studies that look 15 times each: the t interval is wrong sometime in a fifth of them, the sequence in hardly any."""
    rng = np.random.default_rng(4)
    missed, t_missed = 0, 0
    for _ in range(200):
        x = rng.binomial(75, rng.beta(14, 6, 400)) / 75
        at = np.unique(np.geomspace(10, 400, 15).astype(int))
        bounds = np.array([confidence_sequence(x[:n], 0.01) for n in at])
        missed += bool(((bounds[:, 0] > 0.7) | (bounds[:, 1] < 0.7)).any())
        means = np.cumsum(x)[at - 1] / at
        sds = np.sqrt(np.cumsum(x**2)[at - 1] / at - means**2)
        t_missed += bool((np.abs(means - 0.7) > 1.96 * sds / np.sqrt(at - 1)).any())
    assert missed <= stats.binom.ppf(0.999, 200, 0.05)
    assert t_missed > 0.12 * 200
