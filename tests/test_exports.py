"""Results for other programs: what is written is what was there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.exports import export, kind_of
from fastxfer.results import CELL, KEY, ResultStore, complete
from fastxfer.statistics import summarise


def made() -> pd.DataFrame:
    """Two backbones, two targets, 1 and 5 shots of 4 episodes, and a full probe each."""
    rng, rows = np.random.default_rng(0), []
    for backbone in ("a", "b"):
        for target in ("pets", "größe"):
            key = {"source": f"source of {backbone}", "backbone": backbone, "target": target, "ways": "5", "seed": 0,
                   "probe": "logistic", "split": "test", "metric": "accuracy"}  # fmt: skip
            few = {"episodes_hash": "h", "n_queries": 75}
            for shots, l2 in (("1", "0.2"), ("5", "0.04")):
                rows += [
                    {**key, **few, "shots": shots, "episode": e, "params": f"l2={l2}", "value": rng.random()}
                    for e in range(4)
                ]
            rows.append({**key, "ways": "all", "shots": "full", "episode": -1, "params": "l2=1;chosen=val", "value": 0.5, "episodes_hash": "", "n_queries": 9,
                         "low": 0.4, "high": 0.6})  # fmt: skip
    return complete(pd.DataFrame(rows))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = ResultStore.open(tmp_path / "results")
    store.append(made())
    store.set_study("mine", "0123", {})
    return store.path


def run(*words: Any) -> Any:
    got = CliRunner().invoke(main, ["results", *map(str, words), "--json"])
    assert got.exit_code == 0, got.output
    return json.loads(got.stdout)


def test_what_is_there_is_listed_by_backbone_target_and_probe(results: Path) -> None:
    told = run("ls", "--results", results)
    assert (told["study"], told["hash"]) == ("mine", "0123")
    assert len(told["groups"]) == 4
    assert told["groups"][0] == {
        "target": "größe", "backbone": "a", "probe": "logistic", "shots": ["1", "5", "full"], "seeds": [0], "cells": 3, "rows": 9
    }  # fmt: skip
    assert "mine" in CliRunner().invoke(main, ["results", "ls", "--results", str(results)]).output


def test_parquet_and_csv_hold_cells_or_rows(results: Path, tmp_path: Path) -> None:
    rows = ResultStore.open(results).read()
    cells = summarise(rows)
    assert run("export", "--results", results, "--out", tmp_path / "cells.csv")["count"] == len(cells) == 12
    assert run("export", "--results", results, "--out", tmp_path / "rows.parquet", "--raw")["count"] == len(rows) == 36
    back = pd.read_csv(tmp_path / "cells.csv")
    assert np.allclose(back["mean"], cells["mean"])
    assert list(back["target"]) == list(cells["target"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet").astype(str), rows.astype(str))


@pytest.mark.parametrize("raw", [False, True])
def test_xarray_has_a_dimension_of_rows_with_the_key_as_coordinates(tmp_path: Path, raw: bool) -> None:
    xarray = pytest.importorskip("xarray")
    export(made(), tmp_path / "out.nc", kind="xarray", raw=raw, about={"study": "mine"})
    with xarray.open_dataset(tmp_path / "out.nc") as data:
        assert set(data.coords) == set(KEY if raw else CELL)
        assert data.attrs == {"study": "mine"}
        expected = made()["value"] if raw else summarise(made())["mean"]
        assert np.allclose(data["value" if raw else "mean"], expected)
        assert set(data["target"].values) == {"pets", "größe"}
        one = data.where((data["backbone"] == "b") & (data["shots"] == "5"), drop=True)
        assert one.sizes["row"] == (8 if raw else 2)


def test_tensorboard_gets_a_run_a_backbone_with_scalars_over_shots(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    count = export(made(), tmp_path, kind="tensorboard", raw=True, about={"study": "mine"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    run = EventAccumulator(str(tmp_path / "a"))
    run.Reload()
    tags = run.Tags()
    cells = summarise(made())
    mine = cells[(cells["backbone"] == "a") & (cells["target"] == "pets") & (cells["ways"] == "5")].sort_values("shots")
    got = run.Scalars("pets/5-way/logistic/accuracy")
    assert [e.step for e in got] == [1, 5]
    assert np.allclose([e.value for e in got], mine["mean"])
    assert np.allclose([e.value for e in run.Scalars("pets/5-way/logistic/accuracy/low")], mine["low"])
    assert [e.value for e in run.Scalars("pets/all-way/logistic/accuracy")] == [0.5]
    assert "pets/5-way/logistic/accuracy/values" in tags["histograms"]
    assert "hparam/pets/5-way/logistic/accuracy" in tags["scalars"]
    assert count == 2 * 2 * 3 * 3  # backbones x targets x cells x (mean and bounds)


def test_wandb_gets_a_run_a_backbone_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    rows = made()
    assert export(rows[rows["backbone"] == "a"], None, kind="wandb", raw=True, about={"study": "mine"}) == 18
    wandb.teardown()  # its service writes the rest
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    content = log.read_bytes()
    for word in (b"pets/5-way/logistic/accuracy", b"mine", b"source of a"):
        assert word in content
    (table,) = folder.glob("files/media/table/*.json")
    assert len(json.loads(table.read_text())["data"]) == 18


@pytest.mark.parametrize(
    ("out", "kind", "words"),
    [
        ("rows.xlsx", None, "expected a name ending in .parquet, .csv, .nc, or say --to tensorboard"),
        ("rows.csv", "parquet", "expected a name ending in .parquet"),
        (None, "csv", "--to csv needs --out"),
        ("runs", "wandb", "--to wandb takes no --out"),
    ],
)
def test_where_to_is_said_in_words_that_fit(out: str | None, kind: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind_of(Path(out) if out else None, kind)


def test_no_rows_are_no_export(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows to export"):
        export(ResultStore.open(tmp_path).read(), tmp_path / "x.csv", kind="csv")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(UsageError, match=r"needs the package xarray: pip install 'fastxfer\[xarray\]'"):
        export(made(), tmp_path / "x.nc", kind="xarray")
