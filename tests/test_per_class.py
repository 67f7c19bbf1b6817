"""Values of each class alone: rows "auc:NAME" beside the means, against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target
from sklearn.metrics import recall_score, roc_auc_score

from fastxfer import ops
from fastxfer.cli import main
from fastxfer.full_splits import evaluate_full
from fastxfer.probes import LogisticProbe
from fastxfer.results import KEY, ResultStore


def fastxfer(*words, exit_code=0):
    done = CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")
    assert done.exit_code == exit_code, done.stderr
    return json.loads(done.stdout) if exit_code == 0 else done.stderr


def test_full_probe_of_several_labels(tmp_path):
    target = blobs_target(n_classes=5, n_train=30, n_val=20, n_test=20, multi_label=True)
    store = blobs_store(tmp_path / "store", target, backbones={"one": 6.0})
    probe = LogisticProbe(l2=(0.01,))
    rows = evaluate_full(store, "one", store.target("blobs"), probe, per_class=True)[0]
    x, y = store.embeddings("one", "blobs"), target.labels
    fit, test = np.sort(np.concatenate([target.rows("train"), target.rows("val")])), target.rows("test")
    scores = ops.logistic_full(x[fit], y[fit], x[test], 5, [0.01]).scores[0]
    on_test = rows[rows["split"] == "test"].set_index("metric")
    for i, name in enumerate(target.class_names):
        row, known = on_test.loc[f"auc:{name}"], ~np.isnan(y[test, i])
        assert row["value"] == pytest.approx(roc_auc_score(y[test, i][known], scores[known, i]), abs=2e-3)
        assert row["low"] < row["value"] < row["high"]
        assert row["n_queries"] == known.sum()
    each = [m for m in on_test.index if m.startswith("auc:")]
    assert on_test.loc["auc", "value"] == pytest.approx(on_test.loc[each, "value"].mean())
    assert {m.partition(":")[0] for m in on_test.index} == {"auc", "average_precision"}
    plain = evaluate_full(store, "one", store.target("blobs"), probe)[0]
    same = rows[~rows["metric"].astype(str).str.contains(":")].reset_index(drop=True)
    assert same["value"].tolist() == plain["value"].tolist()


def test_commands_add_what_is_not_there_and_reports_stay_plain(tmp_path):
    store = tmp_path / "store"
    target = blobs_target(n_classes=4, n_val=8)
    blobs_store(store, target, backbones={"one": 6.0})
    assert fastxfer("probe", "--store", store, "--l2", 0.1, "--json")["rows_added"] == 6
    added = fastxfer("probe", "--store", store, "--l2", 0.1, "--per-class", "--json")
    assert added["rows_added"] == 2 * 4 * 2  # splits, classes; recall and AUC
    assert fastxfer("probe", "--store", store, "--l2", 0.1, "--per-class", "--json")["rows_added"] == 0
    few = (
        "fewshot",
        "--store",
        store,
        "--ways",
        "all",
        "--shots",
        3,
        "--episodes",
        30,
        "--probe",
        "logistic",
        "--json",
    )
    assert fastxfer(*few)["rows_added"] == 90
    assert fastxfer(*few, "--per-class")["rows_added"] == 30 * 2 * 4
    assert fastxfer(*few, "--per-class", "--metric", "auc", "f1")["rows_added"] == 30 * (1 + 4)
    rows = ResultStore.open(tmp_path / "store-results").read()
    assert not rows.duplicated(list(KEY)).any()
    wide = rows[rows["shots"] == "3"].pivot(index="episode", columns="metric", values="value")
    assert len(wide) == 30
    for mean, each in (("balanced_accuracy", "recall"), ("auc", "auc"), ("f1", "f1")):
        names = [f"{each}:{name}" for name in target.class_names]
        np.testing.assert_allclose(wide[mean], wide[names].mean(axis=1))
    fastxfer("report", "--store", store, "--out", tmp_path / "r", "--json")
    text = "".join(p.read_text() for p in tmp_path.glob("r/**/*.html"))
    assert text
    assert "recall:" not in text


def test_per_label_episodes_and_undefined_values(tmp_path):
    store = tmp_path / "store"
    blobs_store(store, blobs_target(n_classes=4, multi_label=True), backbones={"one": 6.0})
    words = ("fewshot", "--store", store, "--labels", "per-label", "--shots", 3, "--episodes", 10, "--probe", "ridge")
    assert fastxfer(*words, "--queries", 5, "--per-class", "--json")["rows_added"] == 10 * 2 * 5
    rows = ResultStore.open(tmp_path / "store-results").read()
    assert {m for m in rows["metric"].unique() if m.startswith("auc:")} == {f"auc:class {c}" for c in "abcd"}
    assert (rows["undefined"] == rows["value"].isna()).all()
    refused = fastxfer("fewshot", "--store", store, "--ways", 3, "--per-class", exit_code=2)
    assert "--per-class goes with --ways all" in refused


def test_recall_of_a_class_is_scikit_learns():
    from fastxfer.metrics import PER_CLASS, class_metrics

    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    np.testing.assert_allclose(
        PER_CLASS["recall"](scores, labels), recall_score(labels, scores.argmax(1), average=None)
    )
    assert class_metrics(["accuracy", "balanced_accuracy", "auc", "brier"], False) == ("recall", "auc")
    assert class_metrics(["accuracy", "auc"], True) == ("auc",)
