from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import blobs_embeddings, blobs_store, blobs_target
from sklearn.linear_model import LogisticRegression

from fastxfer import full_splits
from fastxfer.audit import audit
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.evaluation import evaluate, run_protocol
from fastxfer.full_splits import evaluate_full, run_full
from fastxfer.metrics import METRICS
from fastxfer.ops_full import check, rows
from fastxfer.probes import PROBES, KnnProbe, LogisticProbe, make_probe
from fastxfer.protocol import Protocol
from fastxfer.results import KEY, ResultStore
from fastxfer.statistics import summarise
from fastxfer.store import EmbeddingStore

TEXT = [name for name in KEY if name not in ("seed", "episode")]
ALL_PROBES = [make_probe(name) for name in PROBES]


def test_rows_are_what_scikit_learn_finds(tmp_path):
    store = blobs_store(tmp_path / "store")
    target = store.target("blobs")
    episodes = sample_episodes(target, EpisodeSpec(4, 3, 5), 0, 8)
    rows = evaluate(store, episodes, [LogisticProbe()], backbones=["good"])
    assert rows["value"].tolist() == pytest.approx(
        [
            LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
            .fit(store.embeddings("good", "blobs")[s].astype(float), episodes.support_labels)
            .score(store.embeddings("good", "blobs")[q].astype(float), episodes.query_labels)
            for s, q in zip(episodes.support, episodes.query, strict=True)
        ]
    )
    assert set(rows["params"]) == {f"l2={1 / 12:.6g};queries=5"}
    assert set(rows["episodes_hash"]) == {episodes.hash}
    assert set(rows["source"]) == {"source of good"}


def test_every_probe_tells_good_from_bad(tmp_path):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(5, 5), 0, 200)
    rows = evaluate(store, episodes, ALL_PROBES)
    means = rows.groupby(["probe", "backbone"], observed=True)["value"].mean().unstack()
    assert set(means.index) == set(PROBES)
    assert (means["good"] > means["bad"] + 0.1).all()
    assert not rows.duplicated(list(KEY)).any()
    assert rows["converged"].all()


def test_a_run_appends_once_and_extends(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    first = run_protocol(store, results, Protocol(episodes=40, shots=(1, 3)), ALL_PROBES)
    assert (first.episodes, first.rows) == (40 * 2 * 2 * 4, 40 * 2 * 2 * 4)
    assert run_protocol(store, results, Protocol(episodes=40, shots=(1, 3)), ALL_PROBES).rows == 0
    more = run_protocol(store, results, Protocol(episodes=50, shots=(1, 3)), ALL_PROBES)
    assert more.rows == 10 * 2 * 2 * 4
    at_once = ResultStore.open(tmp_path / "at-once")
    run_protocol(store, at_once, Protocol(episodes=50, shots=(1, 3)), ALL_PROBES)
    by_key = [r.read().astype(dict.fromkeys(TEXT, str)).sort_values(list(KEY)) for r in (results, at_once)]
    for column in ("value", "episode", "episodes_hash", "params", "converged"):
        assert by_key[0][column].tolist() == by_key[1][column].tolist()


def test_windows_do_not_change_values(tmp_path, monkeypatch):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec("all", 2, "all"), 0, 30)
    metrics = ["accuracy", "balanced_accuracy", "auc"]
    whole = evaluate(store, episodes, ALL_PROBES, metrics=metrics)
    monkeypatch.setattr("fastxfer.evaluation.WINDOW_SCORES", 7 * 120 * 6)
    parts = evaluate(store, episodes, ALL_PROBES, metrics=metrics)
    keys = [*KEY]
    assert np.array_equal(whole.sort_values(keys)["value"].to_numpy(), parts.sort_values(keys)["value"].to_numpy())


def test_large_episodes_are_told_and_written_bit_by_bit(tmp_path, monkeypatch):
    """Of a cell that takes long, what was solved before a crash is there, and the rest alone is done after it."""
    store, protocol = blobs_store(tmp_path / "store"), Protocol(episodes=50, shots=(3,))
    whole = ResultStore.open(tmp_path / "whole")
    run_protocol(store, whole, protocol, [LogisticProbe()])
    m, dim, ways = 15, 24, 5
    monkeypatch.setattr("fastxfer.evaluation.WINDOW_WORK", 3.5 * m * m * (dim + 10 * ways))  # three episodes
    steps: list[int] = []

    def tell(n: int) -> None:
        steps.append(n)
        if len(steps) == 14:
            raise KeyboardInterrupt

    results = ResultStore.open(tmp_path / "results")
    with pytest.raises(KeyboardInterrupt):
        run_protocol(store, results, protocol, [LogisticProbe()], advance=tell)
    assert steps == [3] * 14
    assert len(results.read()) == 24  # eight windows; of the six after them nothing was written yet
    rest = run_protocol(store, results, protocol, [LogisticProbe()])
    assert rest.rows == 100 - 24
    by_key = [r.read().astype(dict.fromkeys(TEXT, str)).sort_values(list(KEY)) for r in (results, whole)]
    assert by_key[0]["value"].tolist() == by_key[1]["value"].tolist()
    intervals = [
        summarise(r.read(), images=r.read_images()).astype({"backbone": str}).sort_values("backbone")
        for r in (results, whole)
    ]
    for column in ("low", "high", "low_images", "high_images"):
        np.testing.assert_allclose(intervals[0][column], intervals[1][column], rtol=1e-6)


def test_fewer_classes_than_five_are_all_taken_and_unusual_queries_have_their_own_rows(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target("three", n_classes=3))
    results = ResultStore.open(tmp_path / "results")
    run_protocol(store, results, Protocol(episodes=5, shots=(1,)), [LogisticProbe()])
    run_protocol(store, results, Protocol(episodes=5, shots=(1,), queries=4), [LogisticProbe()])
    rows = results.read()
    assert set(rows["ways"]) == {"3"}
    assert set(rows["params"]) == {"l2=0.333333", "l2=0.333333;queries=4"}


def test_what_cannot_serve_is_left_out_and_said_unless_named(tmp_path, capsys):
    store = blobs_store(tmp_path / "store", blobs_target(), blobs_target("tiny", n_train=3))
    results = ResultStore.open(tmp_path / "results")
    summary = run_protocol(store, results, Protocol(episodes=5, shots=(5,)), [LogisticProbe()])
    assert [s["target"] for s in summary.skipped] == ["tiny"]
    assert "left out: target 'tiny': class 'class a' has 3 train" in capsys.readouterr().err
    assert set(results.read()["target"]) == {"blobs"}
    with pytest.raises(DataError, match="class 'class a' has 3 train and 20 test images to draw from, but 5 shots"):
        run_protocol(store, results, Protocol(episodes=5, shots=(5,)), [LogisticProbe()], targets=["tiny"])
    with pytest.raises(UsageError, match=r"no embeddings of target 'tinny'\. Did you mean: tiny\?"):
        run_protocol(store, results, Protocol(), [LogisticProbe()], targets=["tinny"])
    with pytest.raises(UsageError, match="no embeddings of backbone 'god'"):
        run_protocol(store, results, Protocol(), [LogisticProbe()], backbones=["god"])


@pytest.mark.parametrize("queries", [4, "all"])
@pytest.mark.parametrize("prior", ["balanced", "natural"])
def test_per_label_rows_are_scikit_learns_label_by_label(tmp_path, queries, prior):
    if queries == "all" and prior == "natural":
        prior = "balanced"
    store = blobs_store(tmp_path / "store", blobs_target(multi_label=True))
    target, x = store.target("blobs"), store.embeddings("good", "blobs").astype(float)
    spec = EpisodeSpec("all", 3, queries, labels="per-label", query_prior=prior)
    episodes = sample_episodes(target, spec, 0, 4)
    metrics = ["auc", "average_precision", "accuracy", "f1", "brier", "log_loss", "calibration_error"]
    # Within the usual 1e-6 of the minimum, queries that nearly tie may change places.
    rows = evaluate(store, episodes, [LogisticProbe(l2=(0.05,), tol=1e-9)], backbones=["good"], metrics=metrics)
    params = "l2=0.05;tol=1e-09" + (";queries=4" if queries == 4 else "") + ";labels=per-label"
    assert set(rows["params"]) == {params + (";query_prior=natural" if prior == "natural" else "")}
    for e in range(4):
        query = episodes.query[e if len(episodes.query) > 1 else 0]
        decisions = np.empty((len(query), 6))
        for label in range(6):
            known = ~np.isnan(episodes.support_labels[:, label])
            support, y = episodes.support[e, known], episodes.support_labels[known, label]
            assert len(y) == 6
            model = LogisticRegression(C=1 / (6 * 0.05), tol=1e-10, max_iter=5000).fit(x[support], y)
            decisions[:, label] = model.decision_function(x[query])
        labels = episodes.query_labels[e] if episodes.query_labels.ndim == 3 else episodes.query_labels
        for metric in metrics:
            scores = 1 / (1 + np.exp(-decisions)) if METRICS[metric].needs_probabilities else decisions
            (got,) = rows[(rows["metric"] == metric) & (rows["episode"] == e)]["value"]
            assert got == pytest.approx(float(METRICS[metric](scores, labels)), rel=1e-3), metric
    assert set(rows["n_queries"]) == {len(query)}


def test_every_probe_answers_per_label_uneven_and_natural_episodes(tmp_path):
    store, results = blobs_store(tmp_path / "store", blobs_target(multi_label=True)), tmp_path / "results"
    asked = {
        "labels=per-label": {"labels": "per-label"},
        "queries=5;labels=per-label": {"labels": "per-label", "queries": 5, "ways": 3},
        "query_prior=natural": {"query_prior": "natural"},
        "imbalance=0.5": {"imbalance": 0.5},
        "queries=90;fewer_queries": {"queries": 90, "fewer_queries": True},
        "": {},
    }
    opened = ResultStore.open(results)
    for options in asked.values():
        run_protocol(store, opened, Protocol(episodes=30, shots=(3,), **options), ALL_PROBES)
    rows = opened.read()
    kind = (
        rows["params"].astype(str).str.split(";").map(lambda p: [w for w in p if not w.startswith(OWN)]).str.join(";")
    )
    assert set(kind) == set(asked)
    means = rows.groupby([kind, "probe", "metric", "backbone"], observed=True)["value"].mean().unstack()
    assert (means["good"] > means["bad"] + 0.1).all()
    assert set(rows[kind == "labels=per-label"]["metric"]) == {"auc", "average_precision"}
    assert set(rows[kind == "query_prior=natural"]["metric"]) == {"accuracy", "balanced_accuracy", "auc"}


OWN = ("l2=", "k=", "metric=", "temperature=")


def test_what_is_undefined_is_a_nan_and_counted(tmp_path, capsys):
    target = blobs_target(n_classes=3, n_train=20, n_test=4)
    store, results = blobs_store(tmp_path / "store", target), ResultStore.open(tmp_path / "results")
    protocol = Protocol(ways=2, shots=(1,), queries=1, query_prior="natural", episodes=200, metrics=("auc", "f1"))
    summary = run_protocol(store, results, protocol, [LogisticProbe()], backbones=["good"])
    rows = results.read()
    auc, f1 = rows[rows["metric"] == "auc"], rows[rows["metric"] == "f1"]
    of_one_class = np.array(
        [len(set(y)) == 1 for y in sample_episodes(target, protocol.spec(target, 1), 0, 200).query_labels]
    )
    assert 0 < of_one_class.sum() < 200
    assert auc.sort_values("episode")["value"].isna().tolist() == of_one_class.tolist()
    assert (auc["undefined"] == auc["value"].isna()).all()
    assert summary.undefined == of_one_class.sum()
    assert f1["value"].notna().all()
    assert set(f1["undefined"]) == {0, 1}  # a class neither there nor predicted


def test_metrics_that_cannot_be_computed_are_refused_before_anything_is_solved(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    with pytest.raises(UsageError, match="metric 'brier' needs probabilities, which probe 'ridge' does not give"):
        run_protocol(store, results, Protocol(metrics=("brier",)), ALL_PROBES)
    with pytest.raises(UsageError, match="choose --probe logistic knn, or another metric"):
        evaluate(
            store, sample_episodes(store.target("blobs"), EpisodeSpec(3, 1), 0, 2), ALL_PROBES, metrics=["log_loss"]
        )
    with pytest.raises(UsageError, match="metric 'balanced_accuracy' is for one label an image"):
        Protocol(labels="per-label", metrics=("balanced_accuracy",))
    assert results.read().empty


def test_uneven_and_per_label_episodes_can_be_audited(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target(multi_label=True))
    target = store.target("blobs")
    episodes = sample_episodes(target, EpisodeSpec(3, 4, 5, imbalance=0.5, query_prior="natural"), 0, 9)
    got = audit(store, "good", episodes, LogisticProbe(), [2, 7])
    assert got["support_labels"].tolist() == episodes.support_labels[[2, 7]].tolist()
    assert got["query_labels"].tolist() == episodes.query_labels[[2, 7]].tolist()
    per_label = sample_episodes(target, EpisodeSpec(3, 4, 5, labels="per-label"), 0, 2)
    got = audit(store, "good", per_label, LogisticProbe(), [1])
    assert got["support"].reshape(1, -1).tolist() == per_label.support[[1]].tolist()
    assert got["classes"][:, 0].tolist() == per_label.classes[1].tolist()


def test_a_changed_target_is_not_mixed_with_old_rows(tmp_path):
    results = ResultStore.open(tmp_path / "results")
    run_protocol(blobs_store(tmp_path / "a"), results, Protocol(episodes=5), [LogisticProbe()])
    changed = blobs_store(tmp_path / "b", blobs_target(n_train=31))
    with pytest.raises(DataError, match="rows of other episodes under the same key"):
        run_protocol(changed, results, Protocol(episodes=9), [LogisticProbe()])


def test_audit_holds_all_that_another_program_needs(tmp_path):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(3, 4, 5), 2, 100)
    got = audit(store, "good", episodes, LogisticProbe(l2=(0.1, 0.001)), [0, 50, 99])
    assert got["episode"].tolist() == [0, 0, 50, 50, 99, 99]
    assert got["l2"].tolist() == [0.1, 0.001] * 3
    x = store.embeddings("good", "blobs").astype(float)
    for i in range(6):
        m = len(got["support"][i])
        model = LogisticRegression(C=1 / (m * got["l2"][i]), tol=1e-12, max_iter=100_000)
        model.fit(x[got["support"][i]], got["support_labels"][i])
        log_loss = -np.log(model.predict_proba(x[got["support"][i]])[np.arange(m), got["support_labels"][i]]).mean()
        objective = log_loss + got["l2"][i] / 2 * (model.coef_**2).sum()
        assert got["objective"][i] == pytest.approx(objective, rel=1e-6)
        expected = model.decision_function(x[got["query"][i]])
        assert np.abs(got["scores"][i] - expected).max() < 2e-3 * np.abs(expected).max()
    with pytest.raises(UsageError, match="only the logistic probe has an objective"):
        audit(store, "good", episodes, KnnProbe(), [0])


@pytest.mark.parametrize(("n_val", "chosen"), [(0, "holdout"), (10, "val")])
def test_full_probe_chooses_on_validation_and_never_sees_test(tmp_path, n_val, chosen):
    target = blobs_target(n_val=n_val, patients=True)
    store = blobs_store(tmp_path / "store", target)
    rows = evaluate_full(store, "bad", store.target("blobs"), LogisticProbe(l2=(1.0, 0.01, 1e-4)))[0]
    assert set(rows["split"]) == {"val", "test"}
    assert rows["params"].nunique() == 1
    assert rows["params"].iloc[0].endswith(f"chosen={chosen}")
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()

    # Scramble the test labels: test rows change, choice and validation don't.
    labels = target.labels.copy()
    test = target.rows("test")
    labels[test] = np.roll(labels[test], 17)
    scrambled = replace(target, labels=labels)
    again = evaluate_full(store, "bad", scrambled, LogisticProbe(l2=(1.0, 0.01, 1e-4)))[0]
    assert again["params"].tolist() == rows["params"].tolist()
    val = rows["split"] == "val"
    assert again[val]["value"].tolist() == rows[val]["value"].tolist()
    assert again[~val]["value"].tolist() != rows[~val]["value"].tolist()


def test_full_probe_test_rows_are_scikit_learns(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target(n_val=5))
    target = store.target("blobs")
    rows = evaluate_full(store, "bad", target, LogisticProbe(l2=(0.01,)))[0]
    fit, test = np.flatnonzero(target.split != "test"), target.rows("test")
    x = store.embeddings("bad", "blobs").astype(float)
    model = LogisticRegression(C=1 / (len(fit) * 0.01), tol=1e-12, max_iter=100_000).fit(x[fit], target.labels[fit])
    probabilities = model.predict_proba(x[test])
    got = rows[rows["split"] == "test"].set_index("metric")["value"]
    for metric in ("accuracy", "balanced_accuracy", "auc"):
        # Two solvers within a relative gap of 1e-6 may order a nearly tied pair of queries differently: 1 / 2,000 pairs.
        tolerance = 5e-4 if metric == "auc" else 1e-9
        assert got[metric] == pytest.approx(float(METRICS[metric](probabilities, target.labels[test])), abs=tolerance)


def test_multi_label_full_probes_mask_what_is_unknown(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target(multi_label=True))
    target = store.target("blobs")
    for probe in (LogisticProbe(l2=(0.1, 0.001)), KnnProbe(k=(5, 20))):
        rows = evaluate_full(store, "good", target, probe)[0]
        assert set(rows["metric"]) == {"auc", "average_precision"}
        assert rows["value"].between(0.6, 1.0).all()


def test_full_runs_are_not_redone(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    assert run_full(store, results, KnnProbe(k=(1, 5))) == 2 * 6
    assert run_full(store, results, KnnProbe(k=(1, 5))) == 0
    assert run_full(store, results, LogisticProbe(l2=(0.1,)), backbones=["good"]) == 6


def test_an_incomplete_array_is_left_out_and_said(tmp_path, capsys):
    store = blobs_store(tmp_path / "store")
    target = blobs_target()
    values = blobs_embeddings(target)
    with store.writer("half", "blobs", dim=24, dtype="float32", attributes={"identity": "x"}, block_rows=64) as writer:
        block = writer.missing[0]
        writer.write(block, values[block.start : block.stop])
    results = ResultStore.open(tmp_path / "results")
    run_protocol(store, results, Protocol(episodes=3), [LogisticProbe()])
    assert set(results.read()["backbone"]) == {"good", "bad"}
    assert "'blobs' by 'half' are incomplete (64 of 300 images)" in capsys.readouterr().err
    with pytest.raises(DataError, match="run the same `fastxfer embed` again"):
        run_protocol(store, results, Protocol(), [LogisticProbe()], backbones=["half"], targets=["blobs"])


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"unknown probe 'logistc'.*Did you mean: logistic\?"):
        make_probe("logistc")
    with pytest.raises(UsageError, match="l2 must be positive, got 0"):
        make_probe("ridge", l2=[0.0])
    with pytest.raises(UsageError, match="k must be at least 1"):
        make_probe("knn", k=[0])
    with pytest.raises(UsageError, match=r"unknown metric 'acc'"):
        Protocol(metrics=("acc",))
    with pytest.raises(UsageError, match="shots must be at least 1, got 0"):
        Protocol(shots=(1, 0))
    assert Protocol().hash != Protocol(seed=1).hash


@pytest.mark.parametrize("bad", [{}, {3: "broken", 41: "broken"}])
def test_full_probe_out_of_core_gives_the_same_rows(tmp_path, monkeypatch, bad):
    store = blobs_store(tmp_path / "store", blobs_target(n_val=10, patients=True))
    store.record_bad("blobs", bad)
    target = store.target("blobs")
    probe = LogisticProbe(l2=(1.0, 0.01))
    in_memory = evaluate_full(store, "bad", target, probe)[0]
    monkeypatch.setattr(full_splits, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(EmbeddingStore, "embeddings", None)  # read as a whole: an error
    monkeypatch.setattr(rows, "KEEP_BYTES", 0)
    monkeypatch.setattr(check, "READ_BYTES", 1)
    pd.testing.assert_frame_equal(evaluate_full(store, "bad", target, probe)[0], in_memory)
