"""`fastxfer episodes show` prints what `fewshot` uses, and no patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import blobs_store, blobs_target

from fastxfer.cli import main
from fastxfer.results import ResultStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("episodes") / "store"
    blobs_store(path, blobs_target(patients=True), blobs_target("rays", multi_label=True))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")


def show(store: Path, *words: object) -> Any:
    result = run("episodes", "show", "--store", store, *words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_an_episode_is_printed_as_it_is_used(store: Path, tmp_path: Path) -> None:
    words = ("--target", "blobs", "--ways", 5, "--shots", 5, "--seed", 3)
    audit = tmp_path / "audit.npz"
    done = run(
        "fewshot", "--store", store, *words, "--backbone", "good", "--probe", "logistic", "--episodes", 5,
        "--results", tmp_path / "results", "--audit", 5, "--audit-out", audit,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    shown = show(store, *words, "--episode", 4)
    with np.load(audit) as used:
        assert [image["row"] for image in shown["support"]] == used["support"][4].tolist()
        assert [image["row"] for image in shown["query"]] == used["query"][4].tolist()
        names = [shown["classes"][y] for y in used["support_labels"][4]]
    assert [image["label"] for image in shown["support"]] == names
    assert shown["support"][0]["image"] == f"images/{shown['support'][0]['row']:05}.png"
    assert set(ResultStore.open(tmp_path / "results").read()["episodes_hash"]) == {shown["episodes_hash"]}
    assert show(store, *words, "--episode", 4711) != shown


def test_no_patient_is_printed(store: Path) -> None:
    words = ("episodes", "show", "--store", store, "--target", "blobs", "--shots", 2, "--episode", 0)
    for result in (run(*words), run(*words, "--json")):
        assert result.exit_code == 0
        assert "train-" not in result.stdout  # their names are train-0, test-1 …
        assert "test-" not in result.stdout
        assert "patient" not in result.stdout


def test_per_label_episodes_say_yes_and_no(store: Path) -> None:
    words = ("--target", "rays", "--labels", "per-label", "--ways", 2, "--shots", 1, "--queries", 1, "--episode", 4711)
    shown = show(store, *words)
    assert [list(image["label"].values()) for image in shown["support"]] == [[True], [False], [True], [False]]
    assert [next(iter(image["label"])) for image in shown["query"]] == [c for c in shown["classes"] for _ in range(2)]
    table = run("episodes", "show", "--store", store, *words).stdout
    assert f"{shown['classes'][0]}: yes" in table
    natural = show(store, *words, "--query-prior", "natural")
    assert all(1 <= len(image["label"]) <= 2 for image in natural["query"])
    everything = show(store, "--target", "rays", "--labels", "per-label", "--shots", 1, "--episode", 0)
    assert everything["queries"] == "all"
    assert len(everything["classes"]) == 6


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--query-prior", "natural"), ("query_prior", "natural")),
        (("--imbalance", "0.5"), ("imbalance", 0.5)),
        (("--fewer-queries", "--queries", "100"), ("fewer_queries", True)),
        (("--at-least", "9"), ("at_least", 9)),
    ],
)
def test_the_options_of_fewshot_are_those_of_show(store: Path, tmp_path: Path, words, field) -> None:
    shown = show(store, "--target", "blobs", "--shots", 9, "--episode", 0, *words)
    assert shown[field[0]] == field[1]
    words = ("--drop-scarce",) if words[0] == "--at-least" else words
    done = run(
        "fewshot", "--store", store, "--target", "blobs", "--shots", 9, *words, "--episodes", 3, "--probe", "knn",
        "--results", tmp_path, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    rows = ResultStore.open(tmp_path).read()
    assert set(rows["episodes_hash"]) == {shown["episodes_hash"]}
    name, value = field
    assert rows["params"].str.contains(name if value is True else f"{name}={value}").all()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--target", "blob", "--shots", 1, "--episode", 0), 2, "Did you mean: blobs?"),
        (("--target", "blobs", "--shots", 31, "--episode", 0), 1, "has 30 train and 20 test images"),
        (("--target", "blobs", "--shots", 1, "--episode", -1), 2, "-1"),
        (("--target", "blobs", "--shots", 0, "--episode", 0), 2, "shots must be at least 1, got 0"),
        (("--target", "blobs", "--shots", 1, "--episode", 0, "--labels", "per-label"), 2, "one label an image"),
        (
            ("--target", "rays", "--shots", 1, "--episode", 0, "--imbalance", -1),
            2,
            "imbalance must be a number above 0",
        ),
    ],
)
def test_what_is_wrong_is_said(store: Path, words, code, message) -> None:
    result = run("episodes", "show", "--store", store, *words)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
