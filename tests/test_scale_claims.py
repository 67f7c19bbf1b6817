"""The paper's claims: verdicts follow from intervals, its numbers come out of its runs, and other data give other verdicts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fastxfer.cli import main
from fastxfer.cli.scale import _claims
from fastxfer.paper import paper_runs
from fastxfer.scale import STATEMENTS, above, cells, claims, verdicts
from fastxfer.scale.claims import CONTRADICTED, SUPPORTED, UNDECIDED, Statement, within

DOCS = Path(__file__).parents[1] / "docs" / "scale-model.md"


@pytest.fixture(scope="module")
def found() -> tuple[pd.DataFrame, pd.DataFrame]:
    table, figure = verdicts()
    return table.set_index("key"), figure


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 2, SUPPORTED), (-1, 1, UNDECIDED), (-2, -0.1, CONTRADICTED), (np.nan, np.nan, UNDECIDED)],
)
def test_above(low, high, expected):
    assert above(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.5, 0.9, SUPPORTED),
        (-0.5, 1.5, UNDECIDED),
        (1.1, 3, CONTRADICTED),
        (0.2, 1.5, UNDECIDED),
        (-9, -1.2, CONTRADICTED),
    ],
)
def test_within_a_margin(low, high, expected):
    assert within(low, high, 1.0) == expected


def pairs(*triples: tuple[float, float, float], **columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(triples, columns=["value", "low", "high"])
    given = {"source": [f"s{i}" for i in range(len(triples))], "model": ["m"] * len(triples)} | columns
    return frame.assign(**given, v=1e-4, df=8.0)


@pytest.mark.parametrize(
    ("test", "frame", "expected", "value"),
    [
        ("all above", pairs((2, 1, 3), (1, 0.5, 2)), SUPPORTED, 1),
        ("all above", pairs((2, 1, 3), (1, -0.5, 2)), UNDECIDED, 1),
        ("all above", pairs((2, 1, 3), (-2, -3, -1)), CONTRADICTED, -2),
        ("mixed", pairs((2, 1, 3), (-2, -3, -1)), SUPPORTED, -2),
        ("mixed", pairs((2, 1, 3), (1, 0.5, 2)), CONTRADICTED, 1),
        ("mixed", pairs((2, 1, 3), (-1, -2, 1)), UNDECIDED, -1),
        ("none", pairs((0.1, -9, 9), (-0.1, -9, 9)), UNDECIDED, 0),  # 1 ± 1.6 points each: together ± 1.6
        ("none", pairs(*[(0.1, -9, 9)] * 12), SUPPORTED, 0.1),
        ("none", pairs(*[(4.0, -9, 9)] * 12), CONTRADICTED, 4),
    ],
)
def test_a_verdict_follows_from_intervals(test, frame, expected, value):
    verdict, (at, low, high) = claims._judge(test, frame, 0.95, 1.0)
    assert verdict == expected
    assert at == pytest.approx(value)
    assert low <= at <= high


def test_the_best_must_beat_every_rival():
    rivals = {"source": ["a", "a", "b", "b"], "source_other": ["x", "y", "x", "y"], "model_other": ["m"] * 4}
    wins = pairs((3, 2, 4), (2, 1, 3), (9, 8, 10), (-5, -6, -4), **rivals)
    assert claims._judge("best above", wins, 0.95, 1.0) == (SUPPORTED, (2, 1, 3))
    close = pairs((3, 2, 4), (2, -1, 3), (9, 8, 10), (-5, -6, -4), **rivals)
    assert claims._judge("best above", close, 0.95, 1.0)[0] == UNDECIDED
    lost = pairs((3, 2, 4), (-2, -3, -1), (9, 8, 10), (-5, -6, -4), **rivals)
    assert claims._judge("best above", lost, 0.95, 1.0)[0] == CONTRADICTED


def test_intervals_hold_together():
    frame = pd.DataFrame({"value": [0.01] * 5, "v": [1e-4] * 5, "df": [np.inf] * 5})
    half = claims._together(frame, 0.95)["high"] - 1.0
    assert half.to_numpy() == pytest.approx(2.5758, abs=1e-3)  # 1 % of each instead of 5


# -- the paper ---------------------------------------------------------------------------------------------------------


def test_every_statement_has_a_verdict_and_its_own_key(found):
    table, _ = found
    assert list(table.index) == [s.key for s in STATEMENTS] == sorted({s.key for s in STATEMENTS})
    assert set(table["verdict"]) <= {SUPPORTED, CONTRADICTED, UNDECIDED}
    assert {s.key[0] for s in STATEMENTS} == set("123456")


@pytest.mark.parametrize(
    ("key", "smallest", "largest"),
    [("1a", 1.3, 14.5), ("1b", None, 19.4), ("1d", 2.0, 7.3), ("2a", 5.2, 10.15), ("2c", 5.8, 9.3), ("2e", -0.8, -0.8),
     ("2f", 4.4, 8.8), ("3a", 2.0, 2.4), ("3b", -2.6, 1.8)],
)  # fmt: skip
def test_the_papers_ranges_come_out_of_its_runs(found, key, smallest, largest):
    table, _ = found
    if smallest is not None:
        assert round(table.loc[key, "smallest"], 1) == smallest
    assert round(table.loc[key, "largest"], 1) == pytest.approx(largest, abs=0.051)


@pytest.mark.parametrize(("key", "stated"), [("4a", 0.9), ("4b", 4.2), ("4c", 4.7), ("4d", 3.4)])
def test_the_papers_leads_come_out_of_its_runs(found, key, stated):
    assert round(found[0].loc[key, "value"], 1) == stated


def test_other_runs_have_other_verdicts(monkeypatch):
    one = [s for s in STATEMENTS if s.key == "1a"]
    assert verdicts(one)[0]["verdict"].item() == SUPPORTED
    turned = [replace(one[0], cells=one[0].others, others=one[0].cells)]
    assert verdicts(turned)[0]["verdict"].item() == CONTRADICTED
    runs = paper_runs()
    rng = np.random.default_rng(0)
    noisy = runs.assign(value=(runs["value"] + 0.2 * rng.normal(size=len(runs))).clip(0, 1))
    monkeypatch.setattr(cells, "paper_runs", lambda: noisy)
    assert verdicts(one)[0]["verdict"].item() == UNDECIDED


def test_a_sentence_on_cells_is_held_against_the_data(monkeypatch):
    one = [s for s in STATEMENTS if s.key == "5b"]
    assert verdicts(one)[0]["verdict"].item() == SUPPORTED
    shrunk = claims.paper_results().assign(n_seeds=5)
    monkeypatch.setattr(claims, "paper_results", lambda: shrunk)
    assert verdicts(one)[0]["verdict"].item() == CONTRADICTED


def test_new_images_make_intervals_wider_where_their_noise_is_known(found):
    table, figure = found
    assert (table.loc[["2b", "2f", "3a", "4a"], "verdict_images"] == "").all()  # AUC
    known = figure[figure["low_images"].notna()]
    assert (known["low_images"] < known["low"]).all()
    covidx = known[(known["key"] == "2a") & (known["source"] == "chexpert_mimic")].iloc[0]
    p, q = covidx["value_cell"], covidx["value_other"]
    assert covidx["v_images"] == pytest.approx((p * (1 - p) + q * (1 - q)) / 400)


def test_pairs_are_by_seed():
    frame = cells.paper_pairs({"model": ["bit152x4"]}, {"model": ["bit50x1"]}, on=["source"])
    line = frame[(frame["target"] == "pets") & (frame["source"] == "imagenet1k") & (frame["shots"] == "1")].iloc[0]
    assert line["n"] == 4  # the seeds that both have
    runs = paper_runs().query("target == 'pets' and source == 'imagenet1k' and shots == '1'")
    wide = runs.pivot(index="seed", columns="model", values="value").dropna()
    assert line["value"] == pytest.approx((wide["bit152x4"] - wide["bit50x1"]).mean())


def test_a_metric_without_seeds_is_unpaired():
    frame = cells.paper_pairs(
        {"model": ["bit152x4"]}, {"model": ["bit50x1"]}, on=["target", "source", "shots"], metric="mean_auc"
    )
    assert len(frame) == 131
    few = frame[(frame["target"] == "covidx_cxr2") & (frame["shots"] == "1")]
    paired = cells.paper_pairs({"model": ["bit152x4"]}, {"model": ["bit50x1"]}, on=["target", "source", "shots"])
    same = paired[(paired["target"] == "covidx_cxr2") & (paired["shots"] == "1")]
    assert few["v"].mean() > same["v"].mean()  # seeds share their luck, which only pairs can take out


def test_an_unusual_statement_needs_no_more_than_cells():
    own = Statement("9", "ImageNet-21k is above CheXpert on COVIDx", "all above",
                    cells={"source": ("imagenet21k",), "target": ("covidx_cxr2",), "shots": ("full",)},
                    others={"source": ("chexpert",), "target": ("covidx_cxr2",), "shots": ("full",)}, on=("target", "model", "shots"))  # fmt: skip
    table, figure = verdicts([own])
    assert table["n"].item() == len(figure) == 2


# -- command and page --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    done = CliRunner().invoke(
        main,
        ["scale", "--paper", "--json", "--figure", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "claims.csv")],
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["cells"] == 289
    assert [c["key"] for c in told["claims"]] == [s.key for s in STATEMENTS]
    assert len(pd.read_csv(tmp_path / "pairs.csv")) == len(told["differences"])
    assert list(pd.read_csv(tmp_path / "claims.csv")["verdict"]) == [c["verdict"] for c in told["claims"]]


def test_the_table_of_the_page_is_the_commands(found):
    shown = _claims(found[0].reset_index())
    page = DOCS.read_text(encoding="utf-8")
    for row in shown.itertuples(index=False):
        wanted = [str(cell) for cell in row]
        line = next((line for line in page.splitlines() if line.startswith(f"| {wanted[0]} |")), "")
        assert [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] == wanted, wanted[0]
