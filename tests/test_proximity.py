"""Proximity: known distances come out, unbiased, with errors that hold; equal sets are at 0; only train is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import blobs_embeddings, blobs_target
from scipy.linalg import sqrtm

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.proximity import COLUMNS, proximity, reference_agreement
from fastxfer.proximity import measures as m
from fastxfer.proximity.run import sample
from fastxfer.store import EmbeddingStore

SPREAD = np.geomspace(4, 0.1, 12)


def gaussians(rng, n: int, apart: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    x, y = (rng.normal(size=(n, len(SPREAD))) * np.sqrt(SPREAD) for _ in range(2))
    return x, np.sqrt(scale) * y + np.eye(len(SPREAD))[0] * apart


# -- Fréchet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 60])  # fewer images than dimensions, and more
def test_the_plug_in_value_is_the_formula(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 20)), 1 + rng.normal(size=(n + 5, 20)) @ rng.normal(size=(20, 20)) / 3
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert m._frechet(x, y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("apart", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.0, 4.0)])
def test_frechet_distance_of_known_gaussians(apart, scale):
    truth = apart**2 + (np.sqrt(scale) - 1) ** 2 * SPREAD.sum()
    rng = np.random.default_rng(0)
    samples = [gaussians(rng, 200, apart, scale) for _ in range(40)]
    found = [m.frechet(x, y, dims=None) for x, y in samples]
    values, error = np.array([f.value for f in found]), np.mean([f.se for f in found])
    too_large = np.mean([m._frechet(x, y) for x, y in samples]) - truth
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(40) + 0.08 * too_large
    assert too_large > 3 * abs(values.mean() - truth)
    assert 0.75 < error / values.std() < 2.2  # for equal populations it is too large
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.86


def test_axes_hold_what_differs():
    rng = np.random.default_rng(1)
    x, y = gaussians(rng, 400, apart=6.0)
    few, all_axes = m.frechet(x, y, dims=3), m.frechet(x, y, dims=None)
    assert few.value == pytest.approx(all_axes.value, rel=0.05)
    turned = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert m.frechet(x @ turned, y @ turned, dims=3).value == pytest.approx(few.value)


# -- MMD ---------------------------------------------------------------------------------------------------------------


def kernels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.exp(-m._squares(a, b) / 8) for a, b in ((x, x), (y, y), (x, y)))


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(8, 3))
    k = lambda a, b: np.exp(-np.sum((a - b) ** 2) / 8)  # noqa: E731
    expected = np.mean([k(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    expected += np.mean([k(y[i], y[j]) for i in range(8) for j in range(8) if i != j])
    expected -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert m.mmd(x, y, bandwidth=2.0).value == pytest.approx(expected)


@pytest.mark.parametrize(("apart", "n", "other"), [(0.0, 30, 30), (0.0, 20, 45), (0.8, 25, 40)])
def test_mmd_and_its_variance_are_unbiased(apart, n, other):
    rng = np.random.default_rng(0)
    truth = 0.0 if apart == 0 else None
    values, variances = [], []
    for _ in range(1500):
        x, y = rng.normal(size=(n, 2)), rng.normal(size=(other, 2)) + np.array([apart, 0.0])
        kxx, kyy, kxy = kernels(x, y)
        values.append(m.mmd_of(kxx, kyy, kxy)[0])
        zero = [k - np.diag(np.diag(k)) for k in (kxx, kyy)]
        variances.append(m.mmd_variance(*zero, kxy)[0])
    spread = np.var(values)
    if truth is not None:
        assert abs(np.mean(values)) < 3 * np.sqrt(spread / 1500)
    allowed = 4 * np.std(variances) / np.sqrt(1500) + 0.15 * spread  # the latter for the error of `spread` itself
    assert abs(np.mean(variances) - spread) < allowed


def test_for_equal_populations_what_no_mean_explains_is_left():
    rng = np.random.default_rng(1)
    both = []
    for _ in range(1500):
        kxx, kyy, kxy = kernels(rng.normal(size=(30, 2)), rng.normal(size=(30, 2)))
        zero = [k - np.diag(np.diag(k)) for k in (kxx, kyy)]
        both.append(m.mmd_variance(*zero, kxy))
    variance, null = np.mean(both, axis=0)
    assert null == pytest.approx(variance, rel=0.1)


# -- domain classifier -------------------------------------------------------------------------------------------------


def test_a_distance_of_equal_sets_is_0_exactly():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    found = m.a_distance(x, x.copy())
    assert found.value == 0
    assert found.low <= 0 <= found.high


def test_a_distance_of_sets_that_overlap_in_a_known_share():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 2)), rng.normal(size=(300, 2)) + np.array([2.0, 0.0])
    found = m.a_distance(x, y)
    bayes = 2 * (1 - 2 * 0.158655)  # the best error is Φ(−1)
    assert found.low <= bayes <= found.high
    assert found.value == pytest.approx(bayes, abs=0.15)
    assert m.a_distance(x, y + 100).value == 2
    assert m.a_distance(100 * x, 100 * y).value == pytest.approx(found.value, abs=0.02)  # whatever the scale


# -- overlaps ----------------------------------------------------------------------------------------------------------


def test_neighbours_of_equal_populations_come_from_both():
    rng = np.random.default_rng(0)
    found = [m.neighbour_overlap(rng.normal(size=(150, 6)), rng.normal(size=(100, 6))) for _ in range(30)]
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(1, abs=0.02)
    assert np.mean([f.low <= 1 <= f.high for f in found]) >= 0.9
    assert m.neighbour_overlap(rng.normal(size=(50, 3)) + 50, rng.normal(size=(50, 3)) * [1, 1, -1] - 50).value == 0


def test_neighbours_by_hand():
    angle = np.deg2rad([0, 10, 21, 33])  # the nearest of each is the one before or behind it
    z = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = np.argsort(-(z @ z.T), axis=1, kind="stable")
    of = np.array([0, 1, 1, 0])
    # 0 -> 1 across, 1 -> 0 across, 2 -> 1 own, 3 -> 2 across; by chance it would be 2/3
    assert m._overlap(found, of, np.ones(4, bool), 1) == pytest.approx(3 / 4 / (2 / 3))


def test_words_of_class_names():
    assert m.words("AmericanBulldog_2") == m.words("american bulldog 2") == {"american", "bulldog", "2"}
    found, count = m.label_overlap(["tabby cat", "dog"], ["Cat", "horse"])
    assert (found.value, count) == (1 / 4, 4)
    assert found.low < 1 / 4 < found.high
    same, _ = m.label_overlap(["chest of drawers"], ["drawers of chest"])
    assert same.value == 1
    assert np.isnan(m.label_overlap(["a"], ["b"])[0].value)


# -- over a store ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Sets "near" and "far" from "source", and "mid" between, by two references; and one only one has embedded."""
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    for name, apart in (("source", 0.0), ("near", 0.3), ("mid", 1.0), ("far", 4.0), ("half", 0.0)):
        target = blobs_target(name, patients=name == "mid")
        store.add_target(target)
        for seed, reference in enumerate(("r1", "r2")):
            if (name, reference) == ("half", "r2"):
                continue
            values = blobs_embeddings(target, seed=seed) + np.float32(apart)
            attributes = {"identity": f"id-{reference}", "source": "s"}
            with store.writer(reference, name, dim=24, dtype="float32", attributes=attributes) as writer:
                for block in list(writer.missing):
                    writer.write(block, values[block.start : block.stop], seconds=0.5)
    return store


TARGETS = ("near", "mid", "far")


def test_all_measures_find_the_order(store):
    table = proximity(store, "source", TARGETS)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * (4 * 2 + 1)
    for (measure, _), group in table[table["reference"] != ""].groupby(["measure", "reference"]):
        values = group.set_index("target")["value"][list(TARGETS)]
        steps = np.diff(values if measure != "neighbours" else -values)
        assert (steps >= 0).all(), (measure, values)
    assert (table["low"] <= table["value"]).all()
    assert set(table.loc[table["target"] == "mid", "n_target"]) == {90, 1}  # of two images of a patient one
    assert (table.loc[table["measure"] == "labels", "value"] == 1).all()
    agreement = reference_agreement(table)
    assert set(agreement["n_targets"]) == {3}
    assert (agreement["spearman"].dropna() > 0).all()
    pd.testing.assert_frame_equal(table, proximity(store, "source", TARGETS))  # the same draws


def test_only_train_images_are_drawn(store):
    for name in ("source", "mid"):
        target = store.target(name)
        rows = sample(target, 50, 0)
        assert len(rows) == 50
        assert (target.split[rows] == "train").all()
        if target.patient is not None:
            assert len(set(target.patient[rows])) == 50


def test_what_was_not_embedded_or_is_unknown_is_named(store):
    with pytest.raises(DataError, match="'r2' has no whole embeddings of half"):
        proximity(store, "source", ["half"], references=["r2"])
    assert set(proximity(store, "source", ["half"], names=["mmd"])["reference"]) == {"r1"}
    with pytest.raises(UsageError, match=r"no reference 'r3'.*Did you mean"):
        proximity(store, "source", ["near"], references=["r3"])
    with pytest.raises(UsageError, match=r"unknown measure 'fréchet'.*Did you mean: frechet"):
        proximity(store, "source", ["near"], names=["fréchet"])
    with pytest.raises(UsageError, match="source and one of the targets"):
        proximity(store, "near", ["near"])
    small = blobs_target("small", n_train=2)
    with pytest.raises(DataError, match="'small' has 12 images in train: proximity needs at least 40"):
        sample(small, 2000, 0)


def test_the_command(store, tmp_path):
    words = ["proximity", "source", *TARGETS, "--store", store.path, "--measure", "mmd", "labels", "--images", "60"]
    done = CliRunner().invoke(main, [*words, "--json", "--out", str(tmp_path / "near.csv")])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {r["n_source"] for r in told["rows"] if r["measure"] == "mmd"} == {60}
    assert [r["spearman"] for r in told["references"]] == [1.0]
    assert len(pd.read_csv(tmp_path / "near.csv")) == len(told["rows"]) == 9
    shown = CliRunner().invoke(main, words)
    assert "rank correlation" in shown.stdout
    assert CliRunner().invoke(main, [*words, "--out", "near.txt"]).exit_code == 2
