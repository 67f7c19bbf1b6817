"""Transferability scores: each equals its paper's formula, written down naively, and known values; rows; agreement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target
from scipy import stats
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.report.cells import aggregate
from fastxfer.results import NO_EPISODE, ResultStore, complete
from fastxfer.transferability import METRIC, SCORES, rank_agreement, run_transferability, scores, transferability


def world(n: int = 120, d: int = 8, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, d)) + 0.8 * rng.normal(size=(classes, d))[y] + 2.0, y


WIDE = {"n": 20, "d": 40}  # fewer images than dimensions


# -- LEEP and NLEEP ----------------------------------------------------------------------------------------------------


def naive_leep(theta: np.ndarray, y: np.ndarray) -> float:
    n, z_classes = theta.shape
    total = 0.0
    for i in range(n):
        inside = 0.0
        for z in range(z_classes):
            joint = sum(theta[j, z] for j in range(n) if y[j] == y[i]) / n
            of_z = sum(theta[j, z] for j in range(n)) / n
            inside += joint / of_z * theta[i, z]
        total += np.log(inside)
    return total / n


def test_leep_is_its_definition():
    rng = np.random.default_rng(0)
    theta, y = rng.dirichlet(np.ones(4), 30), rng.integers(0, 3, 30)
    assert scores.leep(theta, y) == pytest.approx(naive_leep(theta, y))
    assert scores.leep(theta, 7 * y + 2) == pytest.approx(scores.leep(theta, y))  # names of classes don't matter


def test_leep_of_a_source_that_knows_the_classes_is_0_and_of_one_that_knows_nothing_their_entropy():
    y = np.repeat([0, 1, 2], [10, 20, 30])
    assert scores.leep(np.eye(5)[y], y) == pytest.approx(0)
    assert scores.leep(np.full((60, 5), 0.2), y) == pytest.approx(-stats.entropy([1 / 6, 2 / 6, 3 / 6]))


def test_nleep_is_leep_of_a_mixtures_components():
    x, y = world(seed=3)
    axes = PCA(8).fit(x)
    held = int(np.searchsorted(np.cumsum(axes.explained_variance_ratio_), 0.8)) + 1
    turned = axes.transform(x)[:, :held]
    mixture = GaussianMixture(15, random_state=0).fit(turned)
    assert scores.nleep(x, y) == pytest.approx(naive_leep(mixture.predict_proba(turned), y), abs=1e-6)


# -- LogME -------------------------------------------------------------------------------------------------------------


def naive_evidence(log_precisions: np.ndarray, f: np.ndarray, y: np.ndarray) -> float:
    """log p(y | F, α, β) of You et al. 2021, by dense matrices."""
    (n, d), (alpha, beta) = f.shape, np.exp(log_precisions)
    a = alpha * np.eye(d) + beta * f.T @ f
    m = beta * np.linalg.solve(a, f.T @ y)
    fit = -beta / 2 * np.sum((f @ m - y) ** 2) - alpha / 2 * m @ m
    return n / 2 * np.log(beta) + d / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi) + fit - np.linalg.slogdet(a)[1] / 2


@pytest.mark.parametrize("shape", [{}, {"n": 30, "d": 20}])
def test_logme_is_the_largest_evidence(shape):
    x, y = world(**shape)
    best = []
    for c in range(3):
        of = (y == c).astype(float)
        found = minimize(
            lambda p, of=of: -naive_evidence(p, x, of),
            [0.0, 0.0],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-9},
        )
        best.append(-found.fun)
    assert scores.logme(x, y) == pytest.approx(np.mean(best) / len(x), abs=1e-6)


def test_logme_of_embeddings_that_say_nothing_is_that_of_noise():
    y = np.repeat([0, 1], 50)
    x = np.random.default_rng(0).normal(size=(100, 1)) * 1e-9
    assert scores.logme(x, y) == pytest.approx(-0.5 * (np.log(2 * np.pi * 0.5) + 1), abs=0.02)


# -- H-score -----------------------------------------------------------------------------------------------------------


def averaged(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == label].mean(axis=0) for label in y])


@pytest.mark.parametrize("shape", [{}, WIDE])
def test_h_score_is_its_definition(shape):
    x, y = world(**shape)
    expected = np.trace(np.linalg.pinv(np.cov(x.T), rcond=1e-12) @ np.cov(averaged(x, y).T))
    assert scores.h_score(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [{}, WIDE])
def test_the_shrunk_h_score_is_its_definition(shape):
    x, y = world(**shape)
    shrunk = LedoitWolf().fit(x)
    between = np.cov(averaged(x, y).T, bias=True)
    expected = np.trace(np.linalg.inv(shrunk.covariance_) @ ((1 - shrunk.shrinkage_) * between))
    assert scores.h_score(x, y, shrink=True) == pytest.approx(expected)


def test_h_score_says_nothing_where_dimensions_are_many_and_the_shrunk_one_does():
    x, y = world(**WIDE)
    noise = np.random.default_rng(1).normal(size=x.shape)
    assert scores.h_score(x, y) == pytest.approx(2) == scores.h_score(noise, y)  # the number of classes less 1
    assert scores.h_score(x, y, shrink=True) > 2 * scores.h_score(noise, y, shrink=True)


# -- TransRate and GBC -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, WIDE])
def test_transrate_is_its_definition(shape):
    x, y = world(**shape)
    z, eps = x - x.mean(axis=0), 1e-3

    def rate(part):
        return np.linalg.slogdet(np.eye(z.shape[1]) + part.T @ part / (len(part) * eps))[1] / 2

    expected = rate(z) - sum((y == c).mean() * rate(z[y == c]) for c in range(3))
    assert scores.transrate(x, y, eps=eps, unit=False) == pytest.approx(expected)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = rate(unit) - sum((y == c).mean() * rate(unit[y == c]) for c in range(3))
    assert scores.transrate(100 * x, y, eps=eps) == pytest.approx(expected)  # whatever their scale


def test_transrate_of_one_dimension_by_hand():
    x, y = np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 1])
    assert scores.transrate(x, y, eps=1.0) == pytest.approx(0)  # each class codes as badly as all
    x, y = np.array([[3.0], [3.0], [-1.0], [-1.0], [-4.0]]), np.array([0, 0, 1, 1, 2])
    every, each = np.log(1 + 36 / 5) / 2, np.array([np.log(1 + 9), np.log(1 + 1), np.log(1 + 16)]) / 2
    assert scores.transrate(x, y, eps=1.0, unit=False) == pytest.approx(every - each @ [0.4, 0.4, 0.2])


@pytest.mark.parametrize("spherical", [True, False])
def test_gbc_is_its_definition(spherical):
    x, y = world(d=5)
    turned = PCA(3).fit_transform(x)
    total = 0.0
    for a in range(3):
        for b in range(3):
            if a == b:
                continue
            kinds = []
            for c in (a, b):
                variance = turned[y == c].var(axis=0)
                kinds.append(np.diag(np.full(3, variance.mean()) if spherical else variance))
            middle, apart = sum(kinds) / 2, turned[y == a].mean(axis=0) - turned[y == b].mean(axis=0)
            determinants = np.linalg.det(middle) / np.sqrt(np.linalg.det(kinds[0]) * np.linalg.det(kinds[1]))
            total += np.exp(-(apart @ np.linalg.inv(middle) @ apart / 8 + np.log(determinants) / 2))
    assert scores.gbc(x, y, axes=3, spherical=spherical) == pytest.approx(-total)


def test_gbc_of_classes_that_are_one_and_of_classes_far_apart():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 4)), np.repeat([0, 1], 200)
    assert scores.gbc(x, y) == pytest.approx(-2, abs=0.05)
    assert scores.gbc(x + 100 * y[:, None], y) == pytest.approx(0)


# -- kNN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("with_groups", [False, True])
def test_knn_asks_the_nearest_others(k, with_groups):
    x, y = world(n=60)
    groups = np.random.default_rng(0).integers(0, 12, 60) if with_groups else np.arange(60)
    x[7], groups[7] = x[9], groups[9]  # a copy within the group, which must not vote
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = unit @ unit.T
    near[groups[:, None] == groups] = -np.inf
    votes = [np.bincount(y[np.argsort(-row, kind="stable")[:k]], minlength=3).argmax() for row in near]
    assert np.array_equal(scores.knn(x, y, k=k, groups=groups), np.array(votes) == y)


def test_knn_with_one_group_only_has_nobody_to_ask():
    x, y = world(n=10)
    assert not scores.knn(x, y, groups=np.zeros(10)).any()


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path):
    targets = blobs_target("one"), blobs_target("many", multi_label=True, patients=True)
    return blobs_store(tmp_path / "store", *targets, backbones={"good": 0.8, "fair": 1.6, "bad": 4.0})


ALL_BUT_LEEP = tuple(name for name in SCORES if name != "leep")


def test_every_score_ranks_a_good_backbone_above_a_bad_one(store):
    values = {}
    for backbone in ("good", "bad"):
        rows, missing = transferability(store, backbone, store.target("one"), ALL_BUT_LEEP)
        assert missing == {}
        values[backbone] = rows.set_index("probe")["value"]
        assert set(rows["split"]) == {"train"}
        assert set(rows["n_queries"]) == {180}
    assert (values["good"] > values["bad"]).all(), values


def test_only_train_images_are_seen(store):
    target = store.target("one")
    before = transferability(store, "good", target, ALL_BUT_LEEP)[0]
    other = store.leaving_out({"one": target.image_id[target.split != "train"].tolist()}, "test")
    after = transferability(other, "good", other.target("one"), ALL_BUT_LEEP)[0]
    pd.testing.assert_frame_equal(before, after)


def test_rows_are_appended_once(store, tmp_path):
    results = ResultStore.open(tmp_path / "results")
    names = ("logme", "gbc")
    assert run_transferability(store, results, names) == (12, [])
    assert run_transferability(store, results, (*names, "h-score"), images=10_000)[0] == 6
    added, _ = run_transferability(store, results, names, images=100)  # other images are other rows
    assert added == 12
    rows = results.read()
    assert set(rows["params"]) == {"", "labels=exactly-one", "images=100", "labels=exactly-one;images=100"}
    assert set(rows["metric"]) == {METRIC}
    assert set(rows["episode"]) == {NO_EPISODE}


def test_what_cannot_be_had_is_said(store):
    rows, missing = transferability(store, "good", store.target("one"), ("leep", "gbc"))
    assert list(rows["probe"]) == ["gbc"]
    assert "nothing said where it is" in missing["leep"]
    with pytest.raises(UsageError, match=r"unknown score 'logm'.*Did you mean: logme"):
        transferability(store, "good", store.target("one"), ["logm"])
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        scores.logme(np.ones((4, 2)), np.zeros(4, int))


def test_the_report_has_no_place_for_scores(store, tmp_path):
    rows, _ = transferability(store, "good", store.target("one"), ("gbc",))
    with pytest.raises(DataError, match="no results to report"):
        aggregate(rows)


# -- agreement with fine-tuning ----------------------------------------------------------------------------------------


def row(backbone: str, value: float, **changes) -> dict:
    base = {"source": "s", "backbone": backbone, "target": "pets", "ways": "all", "shots": "full", "seed": 0}
    base |= {"episode": NO_EPISODE, "probe": "gbc", "params": "", "split": "train", "metric": METRIC, "value": value}
    return base | changes


def tuned(backbone: str, value: float, **changes) -> dict:
    return row(backbone, value, **({"probe": "finetune", "split": "test", "metric": "accuracy"} | changes))


def test_agreement_is_that_of_ranks():
    score, accuracy = [3.0, 1.0, 2.0, 0.0], [0.9, 0.5, 0.8, 0.6]
    rows = [row(b, v) for b, v in zip("abcd", score, strict=True)]
    rows += [tuned(b, v) for b, v in zip("abcd", accuracy, strict=True)]
    rows += [tuned("a", 0.1, params="preset=bit;stopped=3"), tuned("d", 0.99, shots="5")]  # neither counts
    found = rank_agreement(complete(pd.DataFrame(rows))).set_index("target")
    assert found.loc["pets", "spearman"] == pytest.approx(stats.spearmanr(score, accuracy).statistic)
    assert found.loc["pets", "weighted_tau"] == pytest.approx(stats.weightedtau(score, accuracy).statistic)
    assert found.loc["", "spearman"] == found.loc["pets", "spearman"]  # the mean of one target
    assert found.loc["pets", "n_backbones"] == 4


def test_a_backbone_counts_at_the_settings_that_validation_chose():
    rows = [row(b, v) for b, v in zip("abc", [1.0, 2.0, 3.0], strict=True)]
    rows += [tuned("a", 0.2, params="lr=1"), tuned("b", 0.5, params="lr=1"), tuned("c", 0.1, params="lr=1")]
    rows += [
        tuned("c", 0.9, params="lr=2"),
        *(tuned("c", v, params=p, split="val") for p, v in (("lr=1", 0.3), ("lr=2", 0.7))),
    ]
    assert rank_agreement(complete(pd.DataFrame(rows)))["spearman"].iloc[0] == pytest.approx(1)


def test_without_three_backbones_nothing_is_said():
    rows = [row("a", 1.0), row("b", 2.0), tuned("a", 0.5), tuned("b", 0.6)]
    with pytest.raises(DataError, match="no target has 3 backbones"):
        rank_agreement(complete(pd.DataFrame(rows)))


# -- the command -------------------------------------------------------------------------------------------------------


def run(*words: str):
    return CliRunner().invoke(main, ["transferability", *words])


def test_the_command(store, tmp_path):
    where = ["--store", store.path, "--data-root", str(tmp_path)]
    done = run(*where, "--target", "one", "--score", "gbc", "leep", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["rows_added"] == 3
    assert {r["probe"] for r in told["rows"]} == {"gbc"}
    assert {m["score"] for m in told["missing"]} == {"leep"}
    table = run(*where, "--target", "one", "--score", "gbc")
    assert "good" in table.stdout
    assert "0 rows added" in table.stderr
    assert "Did you mean: gbc" in run(*where, "--score", "gcb").output
    assert run("--agreement", *where).exit_code == 1
