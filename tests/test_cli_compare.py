"""`fastxfer compare` from embeddings to verdicts, against what the scores themselves say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from helpers import blobs_store, blobs_target
from scipy import stats

from fastxfer.cli import main
from fastxfer.results import ResultStore, complete


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two targets, one with patients, by three backbones; with episodes and full probes."""
    root = tmp_path_factory.mktemp("compare")
    small = {"n_classes": 4, "n_train": 20, "n_test": 25}
    backbones = {"good": 2.2, "alike": 2.25, "bad": 4.0}
    blobs_store(
        root / "store", blobs_target(**small), blobs_target("sick", **small, patients=True), backbones=backbones
    )
    for words in (
        ("fewshot", "--ways", 4, "--shots", 1, 2, 5, "--queries", 10, "--episodes", 60, "--probe", "prototype"),
        ("probe", "--l2", 0.1),
    ):
        done = run(*words, "--store", root / "store")
        assert done.exit_code == 0, done.output
    return root


def answer(place: Path, *words: object) -> Any:
    done = run("compare", *words, "--store", place / "store", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


def test_pairs_of_episodes(place: Path) -> None:
    found = answer(place, "--shots", 5, "--target", "blobs")
    assert [(line["a"], line["b"]) for line in found["pairs"]] == [("alike", "bad"), ("alike", "good"), ("bad", "good")]
    rows = ResultStore.open(place / "store-results").read()
    rows = rows[(rows["target"] == "blobs") & (rows["shots"] == "5")].sort_values("episode")
    of = {b: rows.loc[rows["backbone"] == b, "value"].to_numpy() for b in ("alike", "bad", "good")}
    for line in found["pairs"]:
        theirs = stats.ttest_rel(of[line["a"]], of[line["b"]])
        assert [line["low"], line["high"]] == pytest.approx([100 * b for b in theirs.confidence_interval()])
        assert line["high_images"] - line["low_images"] > line["high"] - line["low"]
        assert (line["n"], line["n_images"], line["over"]) == (60, 100, "episodes and test images")
        # Four classes of 25 test images, of which an episode asks 10: two of them share 40 %.
        assert line["overlap"] == pytest.approx(0.4, abs=0.01)
    assert found["pairs"][0]["verdict"] == "a better"


def test_pairs_of_whole_splits(place: Path) -> None:
    found = {w: answer(place, "--shots", "full", "--metric", w)["pairs"] for w in ("accuracy", "auc")}
    tests = {(w, line["target"]): line["test"] for w, lines in found.items() for line in lines}
    assert tests == {
        ("accuracy", "blobs"): "McNemar",
        ("auc", "blobs"): "DeLong",
        ("accuracy", "sick"): "t over patients",
        ("auc", "sick"): "t over patients",
    }
    for line in found["accuracy"]:
        assert line["low"] is None
        # Of 100 images: the difference is that of two counts, and the interval is one of images.
        assert round(line["difference"]) == pytest.approx(line["difference"], abs=1e-6)
        assert line["low_images"] < line["difference"] < line["high_images"]


def test_ranks_and_crossings(place: Path, tmp_path: Path) -> None:
    found = answer(place, "--ranks", "--shots", 5)
    last = {line["name"]: line for line in found["ranks"] if line["target"] == "all targets"}
    assert (last["bad"]["rank"], last["bad"]["low"], last["bad"]["high"]) == (3, 3, 3)
    (critical,) = found["critical"]
    assert critical["targets"] == 2
    assert [line["name"] for line in critical["ranks"]][-1] == "bad"
    out = tmp_path / "crossings.parquet"
    lines = answer(place, "--crossings", "--target", "blobs", "--out", out)["crossings"]
    assert {line["verdict"] for line in lines if "bad" in (line["a"], line["b"])} == {"no crossing"}
    assert (lines[0]["from"], lines[0]["to"]) == (1, 5)
    assert len(pd.read_parquet(out)) == len(lines)


@pytest.mark.parametrize("words", [(), ("--ranks",), ("--crossings",), ("--between", "shots")])
def test_tables_for_people(place: Path, words: tuple[str, ...]) -> None:
    done = run("compare", *words, "--store", place / "store")
    assert done.exit_code == 0, done.output
    assert "good" in done.stdout
    assert "nan" not in done.stdout


@pytest.mark.parametrize("name", ["t.csv", "t.md", "t.tex"])
def test_files(place: Path, tmp_path: Path, name: str) -> None:
    done = run("compare", "--shots", 5, "--out", tmp_path / name, "--store", place / "store")
    assert done.exit_code == 0, done.output
    text = (tmp_path / name).read_text()
    assert "blobs" in text
    if name == "t.csv":
        assert len(pd.read_csv(tmp_path / name)) == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--target", "blob"), 2, "--target blob: no result has it. Did you mean: blobs?"),
        (("--ranks", "--crossings"), 2, "ask for one at a time"),
        (("--ranks", "--between", "probe"), 2, "leave --between out"),
        (("--out", "t.xlsx"), 2, "one of .csv, .parquet, .md, .tex is needed"),
        (("--ranks", "--out", "t.md"), 2, "are written as .csv or .parquet"),
        (("--backbone", "good"), 2, "nothing to compare: no two backbones share a setting"),
        (("--crossings", "--shots", 5), 1, "nothing can cross"),
        (("--results", "gone"), 1, "there are no results to compare"),
    ],
)
def test_refusals(place: Path, words: tuple[object, ...], code: int, message: str) -> None:
    done = run("compare", *words, "--store", place / "store")
    assert done.exit_code == code
    assert message in " ".join(done.stderr.split())


def test_rows_without_images_speak_of_episodes_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    key = {"source": "s", "target": "t", "ways": "5", "shots": "1", "seed": 0, "probe": "ridge", "params": "l2=1"}
    key |= {"split": "test", "metric": "accuracy", "n_queries": 75, "episodes_hash": "h", "episode": np.arange(50)}
    frames = [pd.DataFrame(key | {"backbone": b, "value": rng.random(50)}) for b in "ab"]
    ResultStore.open(tmp_path / "store-results").append(complete(pd.concat(frames, ignore_index=True)))
    (line,) = answer(tmp_path)["pairs"]
    assert (line["over"], line["test"], line["low_images"]) == ("episodes", "sign flips", None)
    assert math.isclose(line["p"], line["p_episodes"])
