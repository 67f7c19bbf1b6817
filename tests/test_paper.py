"""The paper's results as package data: complete, and what its text says."""

from __future__ import annotations

import pytest

from fastxfer.errors import UsageError
from fastxfer.paper import headline, paper_results, paper_runs


def test_every_cell_is_there_once():
    table = paper_results()
    assert len(table) == 1734
    assert not table.duplicated(["target", "metric", "source", "model", "shots"]).any()
    main = table[table["metric"] == table["target"].map(headline)]
    assert len(main) == 289
    assert main["n_seeds"].sum() == 1440
    assert set(table["shots"]) == {"1", "5", "10", "100", "500", "full"}
    assert table["mean"].between(0, 1).all()


def test_a_number_of_the_paper():
    table = paper_results().set_index(["target", "metric", "source", "model", "shots"])
    best = table.loc[("covidx_cxr2", "acc", "chexpert_mimic_nih_padchest", "bit152x4", "full")]
    assert round(100 * best["mean"], 1) == 83.0


def test_a_copy_is_given_away():
    changed = paper_results()
    changed.loc[:, "mean"] = 7
    assert paper_results()["mean"].max() <= 1


def test_an_unknown_target_is_named():
    with pytest.raises(UsageError, match=r"'covidx' is no target of the paper.*Did you mean: covidx_cxr2"):
        headline("covidx")


def test_the_runs_are_those_behind_the_cells():
    runs, cell = paper_runs(), ["target", "source", "model", "shots"]
    assert len(runs) == 1440
    assert not runs.duplicated([*cell, "seed"]).any()
    of_runs = runs.groupby(cell)["value"].agg(["mean", "std", "size"])
    table = paper_results()
    table = table[table["metric"] == table["target"].map(headline)].set_index(cell).loc[of_runs.index]
    assert (of_runs["size"] == table["n_seeds"]).all()
    assert (of_runs["mean"] - table["mean"]).abs().max() < 1e-6
    assert (of_runs["std"] - table["sd"]).abs().max() < 1e-6
