"""What transferability scores and proximity may foretell of fine-tunings: only as far as past ones bear them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import blobs_store
from test_selection import FOUR, named, row, select, table, tuned

from fastxfer.cli import main
from fastxfer.proximity import distances
from fastxfer.results import ResultStore
from fastxfer.selection.improvement import ExpectedImprovement
from fastxfer.selection.replay import of_rows, play
from fastxfer.selection.rows import Past, believe_rows, foretellers, probed_rows

NOTHING = Past.of(table(*FOUR))  # probes alone


def score(backbone: str, name: str, value: float, **changes: Any) -> dict[str, Any]:
    """A row of `fastxfer transferability`."""
    return row(backbone, value, probe=name, params="images=all", split="train", metric="transferability", **changes)


def measured(*lines: tuple[str, str, str, float]) -> pd.DataFrame:
    """A table of `fastxfer proximity`: source, reference, measure, value, all of pets."""
    return pd.DataFrame(
        [{"source": s, "target": "pets", "reference": r, "measure": m, "value": v} for s, r, m, v in lines]
    )


def test_only_scores_that_all_pairs_have() -> None:
    logme = [score(name, "logme", value) for name, value in zip("abcd", (-2.0, 1.0, 0.0, 1.0), strict=True)]
    rows = table(*FOUR, *logme, *(score(name, "leep", 1.0) for name in "abc"))
    found = foretellers(rows, probed := probed_rows(rows))
    assert list(found) == ["transferability"]
    by_name = found["transferability"].set_axis(probed["backbone"])
    assert by_name[list("abcd")].tolist() == pytest.approx(np.array([-2, 1, 0, 1]) / np.sqrt(1.5))
    assert foretellers(table(*FOUR), probed).empty
    # What another target lacks matters there alone.
    dogs = [row(name, 0.5, target="dogs") for name in "ab"]
    assert (
        foretellers(table(*FOUR, *logme, *dogs), probed)["transferability"].tolist()
        == found["transferability"].tolist()
    )
    two = table(*FOUR, *logme, *dogs)
    there = foretellers(two, probed_rows(two))["transferability"]
    assert there[(probed_rows(two)["target"] == "dogs")].tolist() == [0, 0]
    # Of several scores, each counts alike whatever its unit; one that tells nobody apart counts nothing.
    more = table(*FOUR, *logme, *(score(name, "gbc", 1e6 * i) for i, name in enumerate("abcd")))
    even = foretellers(table(*FOUR, *logme, *(score(name, "gbc", 7.0) for name in "abcd")), probed)
    assert even["transferability"].to_numpy() == pytest.approx(found["transferability"].to_numpy())
    both = foretellers(more, probed)["transferability"].set_axis(probed["backbone"])
    z = np.array([-2, 1, 0, 1]) / np.sqrt(1.5) + (np.arange(4) - 1.5) / np.sqrt(1.25)
    assert both[list("abcd")].tolist() == pytest.approx(z / z.std())


def test_near_sources_stand_high_and_unknown_ones_in_the_middle() -> None:
    probed = probed_rows(table(*FOUR))
    near = {("source of a", "pets"): 1.0, ("source of b", "pets"): 3.0, ("source of c", "dogs"): 9.0}
    found = foretellers(table(*FOUR), probed, near)["proximity"].set_axis(probed["backbone"])
    assert found[list("abcd")].tolist() == pytest.approx([1, -1, 0, 0])


def test_distances_are_mean_ranks_over_references() -> None:
    lines = measured(
        ("in", "r1", "mmd", 0.1), ("xray", "r1", "mmd", 0.9), ("in", "r2", "mmd", 80.0), ("xray", "r2", "mmd", 7.0),
        ("in", "r1", "neighbours", 0.4), ("xray", "r1", "neighbours", 0.1),
    )  # fmt: skip
    assert distances(lines, "mmd").to_dict() == {("in", "pets"): 1.5, ("xray", "pets"): 1.5}
    assert distances(lines, "neighbours").to_dict() == {("in", "pets"): 1, ("xray", "pets"): 2}


def world(seed: int, n: int = 8) -> list[dict[str, Any]]:
    """Six targets, on which a score tells all of what fine-tuning gives beyond a probe that hardly differs."""
    rng = np.random.default_rng(seed)
    rows = []
    for target in "uvwxyz":
        for k, better in enumerate(rng.normal(0, 0.03, n)):
            probe = 0.6 + rng.normal(0, 0.005)
            rows += [row(f"b{k}", probe, half=0.01, target=target), score(f"b{k}", "logme", better, target=target)]
            rows += tuned(f"b{k}", float(probe + 0.1 + better), target=target)
    return rows


def test_a_score_counts_once_fine_tunings_bear_it_out() -> None:
    lost: dict[str, list[float]] = {"with": [], "without": [], "shuffled": []}
    for seed in range(3):
        rows = table(*world(seed))
        scores = (rows["metric"] == "transferability").to_numpy()
        shuffled = rows.copy()
        shuffled.loc[scores, "value"] = np.random.default_rng(seed).permutation(rows.loc[scores, "value"])
        for name, these in (("with", rows), ("without", rows[~scores]), ("shuffled", shuffled)):
            lost[name].append(play(of_rows(these), ExpectedImprovement(), 2 * 6).regret.mean())
    assert np.mean(lost["with"]) < 0.5
    assert np.mean(lost["without"]) > 1.5
    assert np.mean(lost["shuffled"]) < np.mean(lost["without"]) + 1  # what foretells nothing does little harm


def test_nothing_is_taken_for_granted_and_both_directions_are_learnt() -> None:
    rows = table(*world(0))
    probed = probed_rows(rows)
    foretold = foretellers(rows, probed)
    before = believe_rows(probed, NOTHING, foretold)
    assert before.mean == pytest.approx(believe_rows(probed, NOTHING).mean)  # before any fine-tuning: the probe
    done = rows[(rows["target"] != "z") | (rows["probe"] != "finetune")]
    at_z = (probed["target"] == "z").to_numpy()
    for sign in (1, -1):
        learnt = believe_rows(probed, Past.of(done), sign * foretold)
        gain = (learnt.values - 100 * probed["value"].to_numpy())[at_z]
        assert np.corrcoef(gain, foretold["transferability"][at_z])[0, 1] > 0.95


def test_plans_by_top_are_of_the_probe_alone() -> None:
    scored = [score(name, "logme", value) for name, value in zip("abcd", (9, 1, 0, 1), strict=True)]
    assert named(select(*FOUR, *scored).entries) == named(select(*FOUR).entries)


def test_proximity_by_the_command_line(tmp_path: Path) -> None:
    rows = table(*world(1))
    rows = rows[(rows["target"] != "z") | (rows["probe"] != "finetune")]
    rows = rows[rows["metric"] != "transferability"]
    store = tmp_path / "store"
    blobs_store(store)
    ResultStore.open(tmp_path / "results").append(rows)
    near = tmp_path / "near.csv"
    lines = [
        {"source": f"source of b{k}", "target": t, "reference": "r", "measure": "mmd", "value": float(k)}
        for k in range(8)
        for t in "uvwxyz"
    ]
    pd.DataFrame(lines).to_csv(near, index=False)
    words = ["select", "--policy", "ei", "--store", str(store), "--results", str(tmp_path / "results"), "--out"]
    plan = tmp_path / "plan.json"
    result = CliRunner().invoke(main, [*words, str(plan), "--proximity", str(near)], prog_name="fastxfer")
    assert result.exit_code == 0, result.output
    again = json.loads(plan.read_text())["again"]
    assert (again["proximity"], again["measure"]) == (str(near), "mmd")
    near.write_text("a,b\n1,2\n")
    result = CliRunner().invoke(main, [*words, str(plan), "--proximity", str(near)], prog_name="fastxfer")
    assert result.exit_code == 1
    assert "is no table of `fastxfer proximity --out`" in result.stderr
    pd.DataFrame(lines).to_csv(near, index=False)
    given = [*words, str(plan), "--proximity", str(near), "--measure", "mmmd"]
    result = CliRunner().invoke(main, given, prog_name="fastxfer")
    assert result.exit_code == 2
    assert "Did you mean: mmd" in result.stderr


def test_a_fine_tuning_is_believed_to_be_its_probe_and_a_gain() -> None:
    """Gains: a level of the target, effects of backbone, source and probe, their own; the probe's error is its interval's."""
    probed = probed_rows(table(*FOUR, row("a", 0.5, 0.01, target="dogs"), row("d", 0.6, float("nan"), target="dogs")))
    points = 100 * probed["value"].to_numpy()
    better = (points - np.where(probed["target"] == "pets", 82.125, 55.0)) / 10
    error = np.where(probed["target"] == "pets", 2.0, np.where(probed["backbone"] == "a", 1.0, 0.0)) / 1.959964
    same_target, same_backbone = ((c := probed[name].to_numpy())[:, None] == c for name in ("target", "backbone"))
    gains = 50.0**2 * same_target + 2 * same_backbone + np.outer(better, better) + np.eye(6)  # backbones have sources
    before = believe_rows(probed, NOTHING)
    np.testing.assert_allclose(before.mean, [*points, *points])
    values = gains + np.diag(error**2)
    np.testing.assert_allclose(before.covariance[:6, :6], values, rtol=1e-5)
    np.testing.assert_allclose(before.covariance[:6, 6:], values, rtol=1e-5)
    np.testing.assert_allclose(before.covariance[6:, 6:], values + np.eye(6), rtol=1e-5)  # a run repeats to a point
    done = probed.index[(probed["backbone"] == "b") & (probed["target"] == "pets")]
    after = believe_rows(probed, Past.of(table(*FOUR, *tuned("b", 0.95))))
    expected = before.observe(done, [95.0])
    np.testing.assert_allclose(after.mean, expected.mean)
    np.testing.assert_allclose(after.covariance, expected.covariance)


def test_gains_that_hardly_differ_are_expected_of_the_others_too() -> None:
    rng = np.random.default_rng(0)
    probes = {f"b{k}": 0.5 + 0.03 * k for k in range(10)}
    rows = [row(name, value, 0.001) for name, value in probes.items()]
    rows += [r for name in list(probes)[:9] for r in tuned(name, probes[name] + 0.05 + rng.normal(0, 0.002))]
    probed = probed_rows(table(*rows))
    belief = believe_rows(probed, Past.of(table(*rows)))
    last = probed.index[probed["backbone"] == "b9"][0]
    assert belief.values[last] == pytest.approx(77 + 5, abs=1.0)
    assert 0 < np.sqrt(belief.covariance[last, last]) < 2.0
