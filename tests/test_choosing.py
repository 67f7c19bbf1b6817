"""How l2 is chosen: what scikit-learn would choose on the same folds, and never by the queries that count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import blobs_embeddings, blobs_store, blobs_target
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from fastxfer import ops
from fastxfer.choosing import assign_folds
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.evaluation import evaluate, run_protocol
from fastxfer.full_splits import evaluate_full
from fastxfer.probes import LogisticProbe, RidgeProbe
from fastxfer.protocol import Protocol
from fastxfer.results import ResultStore

GRID = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)


def log_loss(model, x, y):
    return -np.log(model.predict_proba(x)[np.arange(len(y)), y]).sum()


def by_scikit_learn(probe, x, y, folds, ways):
    """The grid's best by an explicit loop over folds, and the held-out merit of each value."""
    total = np.zeros(len(probe.l2))
    for fold in folds:
        fit = np.setdiff1d(np.arange(len(y)), fold)
        for i, l2 in enumerate(probe.l2):
            if probe.name == "logistic":
                model = LogisticRegression(C=1 / (len(fit) * l2), tol=1e-10, max_iter=20_000).fit(x[fit], y[fit])
                loss, right = log_loss(model, x[fold], y[fold]), (model.predict(x[fold]) == y[fold]).sum()
            else:
                one_hot = 2.0 * (y[:, None] == np.arange(ways)) - 1
                model = Ridge(alpha=len(fit) * l2, solver="cholesky").fit(x[fit], one_hot[fit])
                z = model.predict(x[fold])
                loss, right = ((z - one_hot[fold]) ** 2).sum(), (z.argmax(axis=1) == y[fold]).sum()
            total[i] += right if probe.criterion == "accuracy" else -loss
    return int(total.argmax()), total


@pytest.mark.parametrize("kind", [LogisticProbe, RidgeProbe])
@pytest.mark.parametrize(("by", "criterion"), [("cv", None), ("cv", "accuracy"), ("holdout", None)])
def test_the_choice_is_scikit_learns_on_the_same_folds(tmp_path, kind, by, criterion):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(4, 6, 5), 0, 5)
    grid = GRID if kind is LogisticProbe else (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.1)
    probe = kind(l2=grid, l2_by=by, folds=3, criterion=criterion)
    rows = evaluate(store, episodes, [probe], backbones=["bad"])
    x, y = store.embeddings("bad", "blobs").astype(float), episodes.support_labels
    # Six images a class, three folds: images 0 and 3, 1 and 4, 2 and 5 of each class.
    folds = [np.flatnonzero(np.arange(24) % 6 % 3 == f) for f in range(3 if by == "cv" else 1)]
    for e, (s, q) in enumerate(zip(episodes.support, episodes.query, strict=True)):
        best, _ = by_scikit_learn(probe, x[s], y, folds, 4)
        assert rows["l2"][e] == grid[best]
        assert rows["l2_at_edge"][e] == (best in (0, len(grid) - 1))
        # Refitted on the whole support.
        if kind is LogisticProbe:
            model = LogisticRegression(C=1 / (24 * grid[best]), tol=1e-10, max_iter=20_000).fit(x[s], y)
            assert rows["value"][e] == pytest.approx(model.score(x[q], episodes.query_labels))
    assert rows["converged"].all()
    assert rows["l2"].nunique() > 1
    named = ",".join(f"{value:g}" for value in grid)
    assert rows["params"].unique().tolist() == [
        f"l2_by={by};folds=3;{'criterion=accuracy;' if criterion else ''}l2={named};queries=5"
    ]


@pytest.mark.parametrize("by", ["holdout", "cv", "val"])
def test_nothing_of_the_test_split_moves_a_choice(tmp_path, by):
    target = blobs_target(n_val=12, patients=True)
    spec = EpisodeSpec(5, 5, 6)
    probe = LogisticProbe(l2=GRID, l2_by=by, transform=("centre", "l2"))
    before = evaluate(blobs_store(tmp_path / "a", target), sample_episodes(target, spec, 0, 12), [probe])

    # Other labels and other images in the test split.
    test, labels = target.rows("test"), target.labels.copy()
    labels[test] = labels[test][::-1]
    scrambled = replace(target, labels=labels)
    store = blobs_store(tmp_path / "b", scrambled)
    rng = np.random.default_rng(5)
    for seed, (name, spread) in enumerate({"good": 0.8, "bad": 3.0}.items()):
        x = blobs_embeddings(target, spread=spread, seed=seed)
        x[test] = rng.normal(size=x[test].shape)
        store.remove(name, "blobs")
        with store.writer(name, "blobs", dim=24, dtype="float32", attributes={"source": f"source of {name}"}) as writer:
            for block in list(writer.missing):
                writer.write(block, x[block.start : block.stop])
    after = evaluate(store, sample_episodes(scrambled, spec, 0, 12), [probe])
    assert after["l2"].tolist() == before["l2"].tolist()
    assert after["l2_at_edge"].tolist() == before["l2_at_edge"].tolist()
    assert after["value"].tolist() != before["value"].tolist()


def test_val_takes_one_value_a_cell_as_scikit_learn_would(tmp_path, monkeypatch):
    monkeypatch.setattr("fastxfer.evaluation.VAL_EPISODES", 20)
    target = blobs_target(n_classes=4, n_val=10)
    store = blobs_store(tmp_path / "store", target)
    spec = EpisodeSpec(3, 2, 4)
    probe = LogisticProbe(l2=GRID, l2_by="val")
    rows = evaluate(store, sample_episodes(target, spec, 3, 8), [probe], backbones=["bad"])
    val = sample_episodes(target, replace(spec, query_split="val"), 3, 20)
    assert (target.split[val.query] == "val").all()
    x, total = store.embeddings("bad", "blobs").astype(float), np.zeros(len(GRID))
    for s, q in zip(val.support, val.query, strict=True):
        for i, l2 in enumerate(GRID):
            model = LogisticRegression(C=1 / (6 * l2), tol=1e-8, max_iter=20_000).fit(x[s], val.support_labels)
            total[i] += log_loss(model, x[q], val.query_labels)
    assert rows["l2"].unique().tolist() == [GRID[int(total.argmin())]]
    assert rows["params"].unique().tolist() == ["l2_by=val;l2=10,1,0.3,0.1,0.03,0.01,0.001;queries=4"]


def test_a_run_that_is_extended_keeps_its_choices(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target(n_val=20))
    probes = [LogisticProbe(l2=GRID, l2_by=by) for by in ("holdout", "cv", "val")]
    parts, whole = ResultStore.open(tmp_path / "parts"), ResultStore.open(tmp_path / "whole")
    run_protocol(store, parts, Protocol(episodes=7, shots=(3,)), probes)
    assert run_protocol(store, parts, Protocol(episodes=15, shots=(3,)), probes).rows == 8 * 2 * 3
    run_protocol(store, whole, Protocol(episodes=15, shots=(3,)), probes)
    keys = ["backbone", "params", "episode"]
    tables = [r.read().astype({"backbone": str, "params": str}).sort_values(keys) for r in (parts, whole)]
    for column in ("l2", "l2_at_edge", "value", "converged"):
        assert tables[0][column].tolist() == tables[1][column].tolist()


def test_windows_change_no_choice(tmp_path, monkeypatch):
    store = blobs_store(tmp_path / "store", blobs_target(n_val=20))
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec("all", 4, "all"), 0, 9)
    probes = [LogisticProbe(l2=GRID, l2_by=by) for by in ("holdout", "cv", "val")]
    whole = evaluate(store, episodes, probes)
    monkeypatch.setattr("fastxfer.probes.penalised.WINDOW_SCORES", 2 * 7 * 120 * 6)
    parts = evaluate(store, episodes, probes)
    assert whole["l2"].tolist() == parts["l2"].tolist()
    assert whole["value"].tolist() == parts["value"].tolist()


def test_uneven_supports_and_per_label_episodes_choose_too(tmp_path):
    store = blobs_store(tmp_path / "store", blobs_target(), blobs_target("several", multi_label=True))
    probe = LogisticProbe(l2=GRID, l2_by="cv")
    uneven = sample_episodes(store.target("blobs"), EpisodeSpec(5, 4, 5, imbalance=0.5), 0, 20)
    rows = evaluate(store, uneven, [probe], backbones=["good"])
    assert rows["l2"].isin(GRID).all()
    assert rows["value"].mean() > 0.7
    several = sample_episodes(store.target("several"), EpisodeSpec("all", 4, 5, labels="per-label"), 0, 6)
    rows = evaluate(store, several, [probe], metrics=["auc"])
    assert rows["l2"].between(min(GRID), max(GRID)).all()
    with pytest.raises(UsageError, match="per label choose fixed, holdout or cv"):
        evaluate(store, several, [LogisticProbe(l2=GRID, l2_by="val")], metrics=["auc"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folds_are_stratified_and_keep_patients_whole(data):
    ways, folds = data.draw(st.integers(2, 5)), data.draw(st.integers(2, 6))
    labels = np.array(data.draw(st.lists(st.integers(0, ways - 1), min_size=4, max_size=40)))
    groups = np.array(data.draw(st.lists(st.integers(0, 12), min_size=len(labels), max_size=len(labels))))
    (own,) = assign_folds(labels[None], np.arange(len(labels))[None], ways, folds)
    for c in range(ways):
        counts = np.bincount(own[labels == c] + 1, minlength=folds + 1)
        n = (labels == c).sum()
        if n < 2:
            assert counts[1:].sum() == 0  # the only image of a class is never held out
        else:
            assert counts[0] == 0
            assert counts[1:].max() - counts[1:].min() <= 1
            assert counts[1:].max() < n
    (whole,) = assign_folds(labels[None], groups[None], ways, folds)
    for g in np.unique(groups):
        assert len(np.unique(whole[groups == g])) == 1
    for c in np.unique(labels):
        if len(np.unique(groups[labels == c])) == 1:
            assert (whole[labels == c] == -1).all()


def test_patients_are_never_on_both_sides_of_a_fold(tmp_path, monkeypatch):
    target = blobs_target(patients=True)  # two images each
    store = blobs_store(tmp_path / "store", target)
    patient = np.unique(target.patient, return_inverse=True)[1]
    seen = []
    true_path = LogisticProbe._path

    def spied(self, pool, support, labels, query, ways):
        seen.append([np.isin(patient[q], patient[s]).any() for s, q in zip(support, query, strict=False)])
        return true_path(self, pool, support, labels, query, ways)

    monkeypatch.setattr(LogisticProbe, "_path", spied)
    episodes = sample_episodes(target, EpisodeSpec(3, 8, 5), 0, 10)
    shared = [len(np.unique(patient[s])) < len(s) for s in episodes.support]
    assert all(shared)  # else nothing would be tested
    evaluate(store, episodes, [LogisticProbe(l2=GRID, l2_by="cv")], backbones=["good"])
    assert len(seen) > 5
    assert not np.concatenate(seen).any()


def test_one_gram_matrix_serves_the_folds_too(tmp_path, monkeypatch):
    made = []
    true_gram = ops.Pool.gram

    def gram(pool):
        made.extend([1] if pool._gram is None else [])
        return true_gram(pool)

    monkeypatch.setattr(ops.Pool, "gram", gram)
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(5, 5, 15), 0, 200)
    evaluate(store, episodes, [LogisticProbe(l2=GRID, l2_by="cv")], backbones=["good"])
    assert made == [1]


def test_what_can_not_be_chosen_is_said(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    cv, val = LogisticProbe(l2=GRID, l2_by="cv"), LogisticProbe(l2=GRID, l2_by="val")
    with pytest.raises(
        UsageError, match="holds out part of the support, which 1 shot does not leave: ask for --shots 2"
    ):
        run_protocol(store, results, Protocol(episodes=5), [cv])
    with pytest.raises(UsageError, match="chooses on the validation split, so queries can not come from there"):
        run_protocol(
            blobs_store(tmp_path / "val", blobs_target(n_val=20)), results,
            Protocol(episodes=5, query_split="val"), [val],
        )  # fmt: skip
    with pytest.raises(DataError, match=r"l2 can not be chosen on validation: .*no image in its 'val' split"):
        run_protocol(store, results, Protocol(episodes=5), [val])
    both = blobs_store(tmp_path / "both", blobs_target(), blobs_target("with-val", n_val=20))
    summary = run_protocol(both, ResultStore.open(tmp_path / "both-results"), Protocol(episodes=5), [val])
    assert [left["target"] for left in summary.skipped] == ["blobs"]
    assert {cell[2] for cell in summary.cells} == {"with-val"}
    assert len(results.read()) == 0
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(UsageError, match="needs validation queries"):
        list(val.solve(ops.Pool(x), np.array([[0, 1]]), np.array([0, 1]), np.array([[2]]), 2))
    one_each = np.array([[0, 1, 2]]), np.array([0, 1, 2])
    with pytest.raises(UsageError, match="some class needs at least 2 images"):
        list(cv.solve(ops.Pool(x), *one_each, np.array([[5]]), 3))
    for options, message in (
        ({"l2_by": "test"}, "l2_by must be one of fixed, holdout, cv, val, got 'test'"),
        ({"criterion": "auc"}, "criterion must be one of loss"),
        ({"folds": 1}, "folds must be at least 2"),
    ):
        with pytest.raises(UsageError, match=message):
            LogisticProbe(**options)


def test_rows_tell_the_penalty_also_where_it_is_given_and_of_full_probes(tmp_path):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(3, 2, 5), 0, 4)
    rows = evaluate(store, episodes, [LogisticProbe(l2=(0.5, 0.25)), RidgeProbe()], backbones=["good"])
    assert rows.groupby("params")["l2"].unique().map(list).to_dict() == {
        "l2=0.5;queries=5": [0.5],
        "l2=0.25;queries=5": [0.25],
        "l2=0.166667;queries=5": [1 / 6],
    }
    assert not rows["l2_at_edge"].any()
    full = evaluate_full(store, "good", store.target("blobs"), LogisticProbe(l2=(1e3, 1e2)))[0]
    assert full["l2"].isin([1e3, 1e2]).all()
    assert full["l2_at_edge"].all()  # a grid of two is all edge


def test_a_choice_by_solutions_that_did_not_converge_is_flagged(tmp_path, monkeypatch):
    true_path = LogisticProbe._path

    def path(self, pool, support, labels, query, ways):
        got = true_path(self, pool, support, labels, query, ways)
        if support.shape[1] < 12:  # a fold; in two episodes one value of the grid
            got.converged[:2, 3] = False
        return got

    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(3, 4, 5), 0, 6)
    probe = LogisticProbe(l2=GRID, l2_by="cv")
    assert evaluate(store, episodes, [probe], backbones=["good"])["converged"].all()
    monkeypatch.setattr(LogisticProbe, "_path", path)
    assert evaluate(store, episodes, [probe], backbones=["good"])["converged"].tolist() == [False] * 2 + [True] * 4


def test_chosen_rows_stay_small(tmp_path):
    """A million rows under 30 MB, also where every episode has a penalty of its own."""
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    n = 5000
    run_protocol(
        store, results, Protocol(episodes=n, shots=(5,)), [LogisticProbe(l2=GRID, l2_by="holdout")], backbones=["bad"]
    )
    rows = results.read()
    assert rows["l2"].nunique() > 3
    size = sum(part.stat().st_size for part in (tmp_path / "results").glob("*.parquet"))
    assert size / n * 1e6 < 30e6
