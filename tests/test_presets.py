"""Published protocols against transcriptions of their definitions (`benchmarks.published`), which share no code with ours."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target

from benchmarks import published
from fastxfer import ops
from fastxfer.cli import main
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import UsageError
from fastxfer.evaluation import evaluate
from fastxfer.full_splits import evaluate_full, run_full
from fastxfer.presets import PRESETS, episodes_for, probes_for
from fastxfer.results import ResultStore
from fastxfer.targets import make_split


def probed(tmp_path, name, target, command="probe"):
    store = blobs_store(tmp_path / "store", target, backbones={"one": 4.0}, dim=10)
    (probe,) = probes_for(command, [name])
    rows = evaluate_full(store, "one", store.target("blobs"), probe)[0]
    x, y = store.embeddings("one", "blobs").astype(float), target.labels
    return rows, x, y


@pytest.mark.parametrize("name", ["kornblith", "dinov2"])
def test_field_grid_by_validation_accuracy(tmp_path, name):
    target = blobs_target(n_classes=4, n_train=25, n_val=15 if name == "kornblith" else 0, n_test=15)
    rows, x, y = probed(tmp_path, name, target)
    train, val, test = (target.rows(split) for split in ("train", "val", "test"))
    if name == "dinov2":  # a tenth of train where there is no validation split
        part = make_split(target.image_id[train], y[train], None, fractions={"train": 0.9, "val": 0.1}, seed=0)
        train, val = train[part == "train"], train[part == "val"]
        assert len(val) == 10 or abs(len(val) - 10) <= 2
    # DINOv2: C; SimCLR: the penalty, which the code that follows it hands to scikit-learn as C = 1/wd.
    grid = published.FIELD_C if name == "dinov2" else 1 / published.FIELD_C
    best, on_val = published.best_of_grid(grid, x, y, train, val)
    both = np.concatenate([train, val])
    measured = rows[rows["metric"] == "accuracy"].set_index("split")
    assert measured.loc["val", "value"] == pytest.approx(on_val)
    assert measured.loc["test", "value"] == pytest.approx(published.accuracy_of(best, x, y, both, test))
    # The penalty in the rows is that of the refit on all of train and validation.
    assert 1 / (measured.loc["test", "l2"] * len(both)) == pytest.approx(best)
    assert measured["converged"].all()


def test_clip_sweep_finds_what_the_papers_search_finds(tmp_path):
    target = blobs_target(n_classes=4, n_train=25, n_val=40, n_test=15)
    rows, x, y = probed(tmp_path, "clip", target)
    train, val, test = (target.rows(split) for split in ("train", "val", "test"))
    known: dict[int, float] = {}

    def on_val(place):  # lambda = 10^(place / 8), on the sum of losses
        if place not in known:
            known[place] = published.accuracy_of(10 ** (-place / 8), x, y, train, val)
        return known[place]

    best = published.clip_search(on_val)
    measured = rows[rows["metric"] == "accuracy"].set_index("split")
    # The whole sweep can only find as good or better; here the peak is one, so both find its height.
    assert measured.loc["val", "value"] == pytest.approx(on_val(best))
    whole = [on_val(p) for p in range(-48, 49)]
    chosen = int(np.argmax(whole)) - 48
    both = np.concatenate([train, val])
    assert measured.loc["test", "l2"] * len(both) == pytest.approx(10 ** (chosen / 8))
    assert measured.loc["test", "value"] == pytest.approx(published.accuracy_of(10 ** (-chosen / 8), x, y, both, test))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("dim", [6, 40])
def test_big_vision_scores_to_1e_5(uneven, dim):
    rng = np.random.default_rng(dim)
    labels = np.repeat(np.arange(4), [1, 3, 5, 7] if uneven else [4] * 4)
    centres = rng.normal(size=(4, dim))
    x = np.vstack([centres[labels] + 0.5 * rng.normal(size=(16, dim)), rng.normal(size=(30, dim))])
    x = (3.0 * x + 1.0).astype(np.float32)
    (probe,) = probes_for("fewshot", ["big-vision"])

    expected = published.big_vision(x[:16].astype(float), labels, x[16:].astype(float), 4)
    for backend in ("reference", "cpu"):
        pool = ops.Pool(x, backend=backend)
        (got,) = probe.solve(pool, np.arange(16)[None], labels, np.arange(16, 46)[None], 4)
        assert np.abs(got.scores[0] - expected).max() < 1e-5
        assert np.array_equal(got.scores[0].argmax(axis=1), expected.argmax(axis=1))


def test_big_vision_features_that_are_constant_on_the_support(tmp_path):
    """After a ReLU many features are 0 on the whole support; there the definition divides queries by 1e-5."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(40, 30)), 0).astype(np.float32)
    x[:10, ::3] = 0.0
    labels = np.arange(10) % 5
    (probe,) = probes_for("fewshot", ["big-vision"])
    expected = published.big_vision(x[:10].astype(float), labels, x[10:].astype(float), 5)
    (got,) = probe.solve(ops.Pool(x), np.arange(10)[None], labels, np.arange(10, 40)[None], 5)
    assert np.abs(got.scores[0] - expected).max() < 1e-5


def test_dino_knn(tmp_path):
    target = blobs_target(n_classes=5, n_train=50, n_val=30, n_test=30)
    rows, x, y = probed(tmp_path, "dino-knn", target, "knn")
    train, val, test = (target.rows(split) for split in ("train", "val", "test"))

    on_val = {k: published.dino_right(x, y, train, val, k, 5, balanced=True) for k in (10, 20, 100, 200)}
    k = max(on_val, key=on_val.get)
    assert rows["params"].unique().tolist() == [f"k={k};temperature=0.07;preset=dino-knn;chosen=val"]
    got = rows[(rows["split"] == "test") & (rows["metric"] == "accuracy")]["value"].item()
    assert got == pytest.approx(published.dino_right(x, y, np.sort(np.concatenate([train, val])), test, k, 5))
    # Few-shot, all four of them.
    store = blobs_store(tmp_path / "few", target, backbones={"one": 4.0}, dim=10)
    episodes = sample_episodes(target, EpisodeSpec(4, 50, 10), 0, 3)
    few = evaluate(store, episodes, probes_for("fewshot", ["dino-knn"]))
    local = episodes.support_labels
    for k in (10, 20, 100, 200):
        expected = []
        for s, q in zip(episodes.support, episodes.query, strict=True):
            rank = np.zeros(len(y), int)
            rank[s] = local
            expected.append((published.dino_votes(x, rank, s, q, k, 4).argmax(axis=1) == episodes.query_labels).mean())
        mine = few[few["params"].str.startswith(f"k={k};")]["value"].tolist()
        assert mine == pytest.approx(expected)


def test_meta_baseline(tmp_path):
    store = blobs_store(tmp_path / "store", backbones={"one": 2.0})
    target = store.target("blobs")
    # 10 epochs of 200 batches of 4 episodes.
    assert episodes_for(["meta-baseline"]) == {"ways": 5, "shots": (1, 5), "queries": 15, "episodes": 8000}
    episodes = sample_episodes(target, EpisodeSpec(5, 5, 15), 0, 20)
    rows = evaluate(store, episodes, probes_for("fewshot", ["meta-baseline"]))
    x = store.embeddings("one", "blobs").astype(float)
    expected = []
    for s, q in zip(episodes.support, episodes.query, strict=True):
        logits = published.meta_baseline(x[s], episodes.support_labels, x[q], 5)
        expected.append((logits.argmax(axis=1) == episodes.query_labels).mean())
    assert rows["value"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "shots"), [("bit", (1, 5, 10)), ("paper", (1, 5, 10, 100))])
def test_all_way_k_shot(tmp_path, name, shots):
    from fastxfer.protocol import Protocol

    store = blobs_store(tmp_path / "store", blobs_target(n_train=100, n_val=5), backbones={"one": 2.0})
    target = store.target("blobs")
    options = episodes_for([name])
    assert options == {"ways": "all", "shots": shots, "queries": None, "episodes": 5}
    protocol = Protocol(**options)
    smaller = [set()] * 5
    x, y = store.embeddings("one", "blobs").astype(float), target.labels
    for shots in options["shots"]:
        episodes = sample_episodes(target, protocol.spec(target, shots), 0, options["episodes"])
        rows = evaluate(store, episodes, probes_for("fewshot", [name]))
        # A seed shuffles each class once and takes its first k: the images of fewer shots are among those of more.
        assert all(fewer < set(support) for fewer, support in zip(smaller, episodes.support, strict=True))
        smaller = [set(support) for support in episodes.support]
        for support in episodes.support:
            # k train images of every class, none twice; all test images are scored.
            assert np.bincount(y[support], minlength=6).tolist() == [shots] * 6
            assert len(np.unique(support)) == len(support)
            assert (target.split[support] == "train").all()
        expected = published.all_way(x, y, episodes.support, target.split == "test")
        # float32: a query whose two best logits are 10^-3 apart may go either way.
        off = np.abs(rows["value"] - expected) * (target.split == "test").sum()
        assert off.max() < 1.01
        assert off.sum() < 2.01


def test_presets_are_named_in_rows_and_do_not_hide_each_other(tmp_path):
    store = blobs_store(tmp_path / "store", backbones={"one": 2.0})
    results = ResultStore.open(tmp_path / "results")
    (plain,), (preset,) = probes_for("knn", ["knn"], k=(1, 5)), probes_for("knn", ["dino-knn"])
    assert run_full(store, results, plain) == 6
    assert run_full(store, results, preset) == 6
    assert run_full(store, results, plain) == run_full(store, results, preset) == 0
    assert results.read()["params"].str.contains("preset=dino-knn").sum() == 6
    approximate = replace(plain, index="hnsw")
    assert run_full(store, results, approximate) == 6
    assert run_full(store, results, approximate) == run_full(store, results, plain) == 0


def test_options_that_a_preset_brings_itself_are_refused():
    with pytest.raises(UsageError, match=r"--l2, --transform: a preset brings its own settings"):
        probes_for("fewshot", ["kornblith"], l2=(0.1,), transform=("l2",), l2_by="fixed", k=())
    assert [p.name for p in probes_for("fewshot", ["kornblith", "ridge"], l2=(0.1,))] == ["logistic", "ridge"]
    with pytest.raises(UsageError, match="preset 'dinov2' is for `fastxfer probe`, not for `fastxfer fewshot`"):
        probes_for("fewshot", ["dinov2"])
    with pytest.raises(UsageError, match=r"unknown probe 'bitt': .*Did you mean: bit\?"):
        probes_for("fewshot", ["bitt"])


def fastxfer(*words):
    return CliRunner().invoke(main, list(words), prog_name="fastxfer")


def test_commands(tmp_path):
    listed = json.loads(fastxfer("probes", "ls", "--json").stdout)
    assert {e["name"] for e in listed} == {"logistic", "ridge", "prototype", "knn", *PRESETS}
    assert all(e["what"] and e["source"] and e["commands"] for e in listed)
    shown = fastxfer("probes", "show", "big-vision").stdout
    assert "least squares to ±1" in shown
    assert "evaluators/fewshot_lsr.py" in shown
    assert "fastxfer fewshot --probe big-vision" in shown
    wrong = fastxfer("probes", "show", "bigvision")
    assert wrong.exit_code == 2
    assert "unknown probe 'bigvision'. Did you mean: big-vision?" in wrong.stderr

    store = str(tmp_path / "store")
    blobs_store(tmp_path / "store", blobs_target(n_val=20), backbones={"one": 2.0})
    done = fastxfer("fewshot", "--store", store, "--probe", "big-vision", "--json")
    assert done.exit_code == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert {(c["ways"], c["shots"], c["n"]) for c in cells} == {("all", str(k), 3) for k in (1, 5, 10, 25)}
    words = [
        "--shots",
        "4",
        "--episodes",
        "6",
        "--probe",
        "ridge",
        "logistic",
        "--l2-by",
        "val",
        "--transform",
        "centre",
        "l2",
    ]
    done = fastxfer("fewshot", "--store", store, *words, "--json")
    assert done.exit_code == 0, done.stderr
    params = {c["params"] for c in json.loads(done.stdout)["cells"]}
    assert params == {"l2_by=val;l2_sum=1e+06..1e-05/45;transform=centre+l2"}
    for words in (["probe", "--probe", "kornblith"], ["knn", "--probe", "dino-knn"], ["probe", "--transform", "l2"]):
        done = fastxfer(*words, "--store", store, "--json")
        assert done.exit_code == 0, done.stderr
        said = {r["params"] for r in json.loads(done.stdout)["rows"]}
        assert len(said) == 1
        assert ("preset=" + words[2] if words[1] == "--probe" else "transform=l2") in said.pop()
    wrong = fastxfer("fewshot", "--store", store, "--l2-by", "cv")
    assert wrong.exit_code == 2
    assert "ask for --shots 2 or more" in wrong.stderr
