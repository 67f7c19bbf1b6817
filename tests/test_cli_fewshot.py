"""`fastxfer fewshot`, `probe`, `knn` and `select` as a person types them: rows once, one JSON document, clear refusals."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from helpers import blobs_embeddings, blobs_store, blobs_target
from sklearn.linear_model import LogisticRegression

from fastxfer import results
from fastxfer.cli import main
from fastxfer.results import KEY, ResultStore
from fastxfer.store import EmbeddingStore

PROBES = ("logistic", "ridge", "prototype", "knn")


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    # Strict: NaN is no JSON, and stdout holds this document alone.
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores: `full` (blobs: 6 classes; pair: 2; tiny: 3 train images a class), `empty`, `newer`."""
    root = tmp_path_factory.mktemp("places")
    small = {"n_train": 20, "n_test": 15}
    blobs_store(
        root / "full",
        blobs_target(**small),
        blobs_target("pair", n_classes=2, **small),
        blobs_target("tiny", n_classes=3, n_train=3, n_test=15),
    )
    EmbeddingStore.open(root / "empty", mode="a")
    zarr.create_group(root / "newer", attributes={"fastxfer_format": 7})
    return root


@pytest.fixture
def world(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder in which the stores of `places` are at hand by their names."""
    for store in places.iterdir():
        (tmp_path / store.name).symlink_to(store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # tables are not folded
    return tmp_path


# -- what it does ------------------------------------------------------------------------------------------------------


def test_five_thousand_episodes_on_all_the_store_holds_and_only_once(world: Path) -> None:
    first = run_json("fewshot", "--episodes", "5000", "--store", "full")
    cells = first["cells"]
    assert {(c["target"], c["ways"]) for c in cells} == {("blobs", "5"), ("pair", "2")}
    assert len(cells) == 2 * 2 * 2 * 4  # targets, backbones, shots, probes
    assert {c["n"] for c in cells} == {5000}
    assert all(c["low"] < c["mean"] < c["high"] and c["high"] - c["low"] < 0.02 for c in cells)
    assert first["rows_added"] == first["episodes_solved"] == len(cells) * 5000
    assert [s["target"] for s in first["skipped"]] == ["tiny"]
    assert "class 'class a' has 3 train and 15 test images to draw from, but 5 shots" in first["skipped"][0]["reason"]
    assert first["results"] == "full-results"

    again = run_json("fewshot", "--episodes", "5000", "--store", "full")
    assert (again["rows_added"], again["episodes_solved"]) == (0, 0)
    assert again["cells"] == cells

    more = run_json("fewshot", "--episodes", "5010", "--store", "full", "--shots", "5", "--probe", "knn", "ridge")
    assert more["rows_added"] == 2 * 2 * 2 * 10
    rows = ResultStore.open("full-results").read()
    assert len(rows) == first["rows_added"] + more["rows_added"]
    assert not rows.duplicated(list(KEY)).any()
    runs = ResultStore.open("full-results").runs()
    assert [r["stage"] for r in runs] == ["fewshot"] * 3
    assert [r["episodes"] for r in runs] == [first["episodes_solved"], 0, 80]


def test_the_cells_shown_are_those_asked_for(world: Path) -> None:
    common = ("fewshot", "--store", "full", "--episodes", "3", "--target", "blobs", "--probe", "logistic")
    run_json(*common, "--ways", "3")
    run_json(*common, "--ways", "4", "--l2", "0.1", "--seed", "1")
    cells = run_json(*common, "--ways", "4", "--l2", "0.1", "0.01", "--backbone", "bad", "--shots", "2", "5")["cells"]
    assert sorted((c["ways"], c["shots"], c["backbone"], c["params"], c["seed"]) for c in cells) == [
        ("4", shots, "bad", params, 0) for shots in "25" for params in ("l2=0.01", "l2=0.1")
    ]
    one = run_json("fewshot", "--store", "full", "--episodes", "1", "--target", "pair", "--shots", "1")["cells"]
    assert {c["low"] for c in one} == {None}  # one episode has no interval
    assert {c["low_images"] for c in one} == {None}
    assert all(c["reason"].startswith("one episode") for c in one)
    table = run(*common, "--ways", "3")
    assert table.exit_code == 0
    for word in ("95 % over episodes", "95 % over episodes and test images", "logistic", "good", "l2=0.333333"):
        assert word in table.stdout
    assert "0 rows added" in table.stderr
    assert "backend: " in table.stderr


def test_until_stops_by_itself_and_both_intervals_have_a_name(world: Path) -> None:
    common = ("fewshot", "--store", "full", "--target", "blobs", "--probe", "prototype", "--shots", "5")
    found = run_json(*common, "--episodes", "3000", "--until", "ci 1.5")
    for cell in found["cells"]:
        assert cell["until"]["known"]
        assert cell["until"]["high"] - cell["until"]["low"] <= 0.03
        assert cell["until"]["low"] < cell["low"] < cell["mean"] < cell["high"] < cell["until"]["high"]
        assert cell["low_images"] < cell["low"] < cell["high"] < cell["high_images"]
        assert (cell["interval"], cell["interval_images"]) == ("episodes", "episodes and test images")
        assert 100 <= cell["n"] < 3000
    assert run_json(*common, "--episodes", "3000", "--until", "ci 1.5")["rows_added"] == 0
    short = run(*common, "--episodes", "3000", "--seed", "5", "--until", "ci 1.5", "--episodes", "100")
    assert "2 of 2 means are not known so well yet: give more --episodes" in short.stderr
    wrong = run(*common, "--until", "width 1")
    assert (wrong.exit_code, "--until 'width 1' is no such condition" in wrong.stderr) == (2, True)


def test_whole_query_split_and_other_metrics(world: Path) -> None:
    cells = run_json("fewshot", "--store", "full", "--target", "blobs", "--ways", "all", "--shots", "2")["cells"]
    assert {c["metric"] for c in cells} == {"accuracy", "balanced_accuracy", "auc"}
    assert {(c["ways"], c["n_queries"]) for c in cells} == {("all", 6 * 15)}
    words = ("--queries", "4", "--metric", "auc", "average_precision", "--split", "test", "--shots", "2")
    cells = run_json("fewshot", "--store", "full", "--target", "blobs", *words)["cells"]
    assert {c["metric"] for c in cells} == {"auc", "average_precision"}
    assert {c["n_queries"] for c in cells} == {5 * 4}


def test_probe_knn_and_select(world: Path) -> None:
    probed = run_json("probe", "--store", "full", "--target", "blobs", "--l2", "0.1", "0.001")
    metrics = ("accuracy", "balanced_accuracy", "auc")
    assert probed["rows_added"] == 2 * 2 * len(metrics)
    assert len(probed["rows"]) == probed["rows_added"]
    assert {(r["split"], r["metric"]) for r in probed["rows"]} == {(s, m) for s in ("val", "test") for m in metrics}
    assert all(r["interval"] == "test images" for r in probed["rows"])
    assert all(r["reason"] if r["low"] is None else r["low"] <= r["value"] <= r["high"] for r in probed["rows"])
    assert run_json("probe", "--store", "full", "--target", "blobs", "--l2", "0.1")["rows_added"] == 0
    near = run_json("knn", "--store", "full", "--backbone", "good", "--target", "blobs", "--k", "1", "3")
    assert near["rows_added"] == 2 * len(metrics)
    assert {r["params"].split(";")[0] for r in near["rows"]} <= {"k=1", "k=3"}
    assert "95 % over test images" in run("knn", "--store", "full", "--backbone", "good", "--target", "blobs").stdout
    rough = run(
        "knn",
        "--store",
        "full",
        "--backbone",
        "good",
        "--target",
        "blobs",
        "--index",
        "hnsw",
        "--k",
        "3",
        "--seed",
        "1",
        "--json",
    )
    assert "knn: hnsw found" in rough.stderr
    assert ";index=hnsw;recall=" in json.loads(rough.stdout)["rows"][0]["params"]

    document = run_json("select", "--store", "full", "--budget", "1", "--out", "plan.json")
    assert json.loads(Path("plan.json").read_text()) == document
    assert [(e["backbone"], e["target"], e["checkpoint"]) for e in document["entries"]] == [
        ("good", "blobs", "good.pt")
    ]
    assert document["store"] == "full"
    shown = run("select", "--store", "full", "--budget", "1", "--out", "plan.json")
    assert "best of 2 backbones on validation" in shown.stdout
    assert "fastxfer finetune --plan plan.json" in shown.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("fewshot", "--episodes", "2", "--shots", "1"),
        ("probe", "--l2", "0.1", "--target", "pair", "--backbone", "good"),
        ("knn", "--target", "pair", "--backbone", "good"),
        ("select", "--out", "plan.json"),
        ("report", "--out", "report"),
        ("store", "ls"),
        ("store", "digest"),
        ("store", "export", "good", "pair", "--out", "pair.npz"),
    ],
    ids=lambda words: " ".join(words[:2]) if words[0] == "store" else words[0],
)
def test_json_is_one_document(words: tuple[str, ...], world: Path) -> None:
    """(embed, targets, finetune, pretrain, demo and the benchmarks have theirs in their own files.)"""
    if words[0] in ("select", "report"):
        run_json("probe", "--l2", "0.1", "--target", "pair", "--backbone", "good", "--store", "full")
    document = run_json(*words, "--store", "full")
    assert document
    if words[0] != "store":  # people are spoken to elsewhere
        assert run(*words, "--store", "full").stdout


# -- the audit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [2, 5])
def test_an_audit_is_redone_by_scikit_learn_from_the_exported_embeddings(ways: int, world: Path) -> None:
    shots, queries, l2 = 3, 4, (0.5, 0.02)
    one = ("--store", "full", "--backbone", "bad", "--target", "blobs", "--seed", "3")
    words = ("--ways", ways, "--shots", shots, "--queries", queries, "--episodes", "50", "--l2", *l2, "--audit", "6")
    document = run_json("fewshot", *one, *words, "--audit-out", "sub/audit.npz")
    assert document["audit"] == {"file": "sub/audit.npz", "entries": 12}
    run_json("store", "export", "bad", "blobs", "--out", "export.npz", "--store", "full")
    with np.load("sub/audit.npz") as audit, np.load("export.npz") as export:
        n, m, q = 12, ways * shots, ways * queries
        shapes = {
            "support": (n, m),
            "query": (n, q),
            "support_labels": (n, m),
            "query_labels": (n, q),
            "l2": (n,),
            "objective": (n,),
            "scores": (n, q, ways),
            "classes": (n, ways),
        }
        assert {name: audit[name].shape for name in shapes} == shapes
        support_labels, query_labels = audit["support_labels"], audit["query_labels"]
        assert (str(audit["backbone"]), str(audit["target"])) == ("bad", "blobs")
        assert audit["episode"].tolist() == np.repeat([0, 10, 20, 29, 39, 49], 2).tolist()  # spread over the run
        assert audit["l2"].tolist() == list(l2) * 6
        assert audit["converged"].all()

        x, labels, split = export["embeddings"].astype(np.float64), export["labels"], export["split"]
        names = [str(name) for name in export["class_names"]]
        assert len(names) == 6
        ties = 0
        for i in range(n):
            support, query = audit["support"][i], audit["query"][i]
            assert set(split[support]) == {"train"}
            assert set(split[query]) == {"test"}
            assert np.array_equal(labels[support], audit["classes"][i][support_labels[i]])
            assert np.array_equal(labels[query], audit["classes"][i][query_labels[i]])
            model = LogisticRegression(C=1 / (m * audit["l2"][i]), tol=1e-12, max_iter=100_000)
            model.fit(x[support], support_labels[i])
            loss = -np.log(model.predict_proba(x[support])[np.arange(m), support_labels[i]]).mean()
            objective = loss + audit["l2"][i] / 2 * (model.coef_**2).sum()
            assert audit["objective"][i] == pytest.approx(objective, rel=1e-6)
            scores = audit["scores"][i]
            margins = np.sort(scores, axis=1)
            tie = margins[:, -1] - margins[:, -2] < 1e-3
            ties += tie.sum()
            assert np.array_equal(scores.argmax(1)[~tie], model.predict(x[query])[~tie])
            if ways == 2:  # both columns, z = their difference
                z = model.decision_function(x[query])
                np.testing.assert_allclose(scores[:, 1] - scores[:, 0], z, rtol=0.01, atol=0.01)
                np.testing.assert_allclose(scores.sum(1), 0, atol=1e-5)
        assert ties < n * q / 20


# -- bad input ---------------------------------------------------------------------------------------------------------

FEW = ("fewshot", "--store", "full", "--episodes", "3")
ONE = ("--backbone", "good", "--target", "blobs", "--shots", "1")
AUDIT = ("--audit", "2", "--audit-out", "audit.npz")
BAD = [
    ((*FEW, "--shots", "0"), 2, "shots must be at least 1, got 0"),
    ((*FEW, "--shots", "1", "-5"), 2, "shots must be at least 1, got -5"),
    ((*FEW, "--shots", "few"), 2, "Invalid value for '--shots': 'few' is not a valid integer"),
    ((*FEW, "--ways", "0"), 2, "ways must be at least 2 or 'all', got 0"),
    ((*FEW, "--ways", "1"), 2, "ways must be at least 2 or 'all', got 1"),
    ((*FEW, "--ways", "some"), 2, "'some' is neither a number nor 'all'"),
    (
        (*FEW, "--ways", "7", "--target", "blobs"),
        2,
        "target 'blobs' has 6 classes, fewer than the 7 ways asked for: choose between 2 and 6 ways, or 'all'",
    ),
    ((*FEW, "--ways", "7"), 2, "none of the store's targets can serve: target 'blobs' has 6 classes, fewer than"),
    ((*FEW, "--queries", "0"), 2, "queries must be at least 1 or 'all', got 0"),
    ((*FEW, "--queries", "all"), 2, "goes with ways 'all'"),
    ((*FEW, "--episodes", "0"), 2, "episodes must be at least 1, got 0"),
    (
        (*FEW, "--target", "tiny"),
        1,
        "target 'tiny': class 'class a' has 3 train and 15 test images to draw from, but 5 shots and 15 queries are "
        "asked for (and 2 more such classes). Lower --shots or --queries, or leave such classes out with --drop-scarce",
    ),
    ((*FEW, "--shots", "50"), 1, "none of the store's targets can serve: target 'blobs': class 'class a' has 20 train"),
    ((*FEW, "--queries", "16", "--target", "blobs"), 1, "has 20 train and 15 test images to draw from, but 1 shots and 16"),
    ((*FEW, "--split", "val", "--target", "blobs"), 1, "target 'blobs' has no image in its 'val' split to serve as query"),
    (
        (*FEW, "--target", "blob", "pair"),
        2,
        "the store 'full' holds no embeddings of target 'blob'. Did you mean: blobs? `fastxfer store ls` lists",
    ),
    ((*FEW, "--backbone", "god"), 2, "holds no embeddings of backbone 'god'. Did you mean: good?"),
    ((*FEW, "--probe", "logistc"), 2, "unknown probe 'logistc': choose among logistic, ridge, prototype, knn, or a preset:"),
    ((*FEW, "--metric", "acuracy"), 2, "unknown metric 'acuracy': choose among"),
    ((*FEW, "--metric", "acuracy"), 2, "Did you mean: accuracy"),
    ((*FEW, "--l2", "0.1", "0"), 2, "l2 must be positive, got 0"),
    ((*FEW, "--k", "0"), 2, "k must be at least 1, got 0"),
    ((*FEW, "--seed", "-1"), 2, "Invalid value for '--seed'"),
    ((*FEW, "--backend", "tpu"), 2, "'tpu' is not one of 'auto', 'cuda', 'cpu', 'reference'"),
    ((*FEW, "--shot", "1"), 2, "No such option '--shot'"),
    ((*FEW, *AUDIT[:2], *ONE), 2, "--audit N and --audit-out FILE.npz go together"),
    ((*FEW, *AUDIT[2:], *ONE), 2, "--audit N and --audit-out FILE.npz go together"),
    ((*FEW, *AUDIT), 2, "this run has 6 (backbone, target) pairs, 2 numbers of shots"),
    ((*FEW, *AUDIT, *ONE, "--probe", "knn"), 2, "with the logistic probe: this run has 1 (backbone, target) pairs"),
    ((*FEW, *AUDIT, *ONE, "--backbone", "god"), 2, "holds no embeddings of backbone 'god'. Did you mean: good?"),
    (("fewshot", "--store", "nowhere"), 1, "no store at 'nowhere': `fastxfer embed --ckpt … --target … --store nowhere` makes"),
    (("fewshot", "--store", "empty"), 1, "the store 'empty' holds no embeddings yet: run `fastxfer embed` first"),
    (("fewshot", "--store", "empty", *AUDIT), 1, "the store 'empty' holds no embeddings yet: run `fastxfer embed` first"),
    (("fewshot", "--store", "newer"), 1, "store 'newer' was made by a newer fastxfer (format 7, this one reads 2): upgrade"),
    (("fewshot", "--store", "."), 1, "'.' is not a fastxfer store (no zarr.json in it)"),
    (("probe", "--store", "full", "--target", "blob"), 2, "holds no embeddings of target 'blob'. Did you mean: blobs?"),
    (("probe", "--store", "full", "--backbone", "god"), 2, "holds no embeddings of backbone 'god'. Did you mean: good?"),
    (("probe", "--store", "full", "--l2", "-1"), 2, "l2 must be positive, got -1"),
    (("probe", "--store", "nowhere"), 1, "no store at 'nowhere'"),
    (("probe", "--store", "empty"), 1, "the store 'empty' holds no embeddings yet: run `fastxfer embed` first"),
    (("probe", "--store", "newer"), 1, "made by a newer fastxfer (format 7, this one reads 2): upgrade"),
    (("knn", "--store", "full", "--target", "blob"), 2, "holds no embeddings of target 'blob'. Did you mean: blobs?"),
    (("knn", "--store", "full", "--k", "0", "5"), 2, "k must be at least 1, got 0"),
    (("knn", "--store", "full", "--temperature", "-1"), 2, "temperature must be positive, got -1"),
    (("knn", "--store", "nowhere"), 1, "no store at 'nowhere'"),
    (("knn", "--store", "empty"), 1, "the store 'empty' holds no embeddings yet: run `fastxfer embed` first"),
    (("select", "--store", "full", "--out", "p.json"), 1, "no validation rows of full probes to choose from: run `fastxfer probe`"),
    (("select", "--store", "full", "--out", "p.json", "--budget", "0"), 2, "--budget '0' is not above 0"),
    (("select", "--store", "full", "--out", "p.json", "--top", "0"), 2, "top must be at least 1, got 0"),
    (("select", "--store", "full"), 2, "Missing option '--out'"),
    (("select", "--store", "nowhere", "--out", "p.json"), 1, "no store at 'nowhere'"),
    (("select", "--store", "newer", "--out", "p.json"), 1, "made by a newer fastxfer (format 7, this one reads 2): upgrade"),
    (("report", "--store", "full"), 1, "no results at 'full-results': `fastxfer fewshot --episodes 5000` makes some"),
    (("finetune", "--plan", "old.json"), 1, "plan 'old.json' has version 0, this fastxfer reads 1: run `fastxfer select` again"),
    (("finetune", "--plan", "gone.json"), 1, "plan 'gone.json' does not exist: `fastxfer select --out gone.json` writes one"),
    (("finetune",), 2, "give either --plan plan.json, or --ckpt with --target"),
    (("store", "ls", "--store", "newer"), 1, "made by a newer fastxfer (format 7, this one reads 2): upgrade"),
    (("store", "digest", "--store", "nowhere"), 1, "no store at 'nowhere'"),
    (("store", "export", "good", "blob", "--out", "x.npz", "--store", "full"), 2, "Did you mean: blobs?"),
    (("store", "rm", "good", "blobs", "--store", "full"), 1, "the question was not answered, so nothing was done; --yes"),
    (("fewshoot",), 2, "No such command 'fewshoot'. Did you mean: fewshot?"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "message"), BAD, ids=[f"{' '.join(w)}: {m[:20]}" for w, _, m in BAD])
def test_bad_input(words: tuple[str, ...], code: int, message: str, world: Path) -> None:
    (world / "old.json").write_text('{"version": 0, "store": "full", "entries": []}')
    before = sorted(p.name for p in world.iterdir())
    for asked in (words, (*words, "--json")):
        if asked[:2] == ("store", "rm") and asked is not words:
            continue  # has no --json
        result = run(*asked)
        assert result.exit_code == code, result.output
        assert message in " ".join(result.stderr.split())
        assert "Traceback" not in result.output
        assert result.stdout == ""
    assert sorted(p.name for p in world.iterdir()) == before  # no empty results, no half a file


@pytest.mark.parametrize(
    "words",
    [
        FEW,
        (*FEW, *AUDIT, *ONE),
        ("knn", "--store", "full", "--target", "pair"),
        ("select", "--store", "full", "--out", "plan.json"),
        ("report", "--store", "full", "--out", "report"),
        ("store", "export", "good", "pair", "--store", "full", "--out", "pair.npz"),
    ],
    ids=["fewshot", "audit", "knn", "select", "report", "export"],
)
def test_a_full_disk_leaves_nothing_half_written(
    words: tuple[str, ...], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words[0] in ("select", "report"):
        run_json("probe", "--l2", "0.1", "--target", "pair", "--backbone", "good", "--store", "full")

    def there() -> list[str]:
        return sorted(str(p) for p in world.rglob("*") if p.is_file() and p.name != ".lock")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = there()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)  # the last step before a file takes its name
        result = run(*words)
    assert result.exit_code == 1
    assert "no space left on the disk" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert there() == before
    assert run(*words).exit_code == 0


def test_results_of_a_newer_format(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = results.FORMAT
    with monkeypatch.context() as later:
        later.setattr(results, "FORMAT", ours + 1)
        assert run(*FEW, *ONE).exit_code == 0
    for words in ((*FEW, *ONE), ("probe", "--store", "full"), ("select", "--store", "full", "--out", "p.json")):
        result = run(*words)
        assert result.exit_code == 1
        assert f"was made by a newer fastxfer (format {ours + 1}, this one reads {ours}): upgrade" in result.stderr


def test_incomplete_embeddings_are_named_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = blobs_target(n_train=20, n_test=15)
    store = EmbeddingStore.open("half", mode="a")
    store.add_target(target)
    values = blobs_embeddings(target)
    with store.writer("b", "blobs", dim=24, dtype="float32", attributes={"identity": "x"}, block_rows=64) as writer:
        writer.write(writer.missing[0], values[:64])
    for words in (("fewshot",), ("probe",), ("knn",)):
        named = run(*words, "--store", "half", "--backbone", "b", "--target", "blobs")
        assert named.exit_code == 1
        assert (
            "embeddings of 'blobs' by 'b' are incomplete (64 of 210 images): run the same `fastxfer embed`"
            in named.stderr
        )
        rest = run(*words, "--store", "half")
        assert rest.exit_code == 1
        assert "the store 'half' holds no complete embeddings of what was asked for" in rest.stderr
