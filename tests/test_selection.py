"""What is chosen for fine-tuning: from validation alone, best first, within the budget, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import blobs_store, blobs_target
from scipy import stats

from fastxfer.budgets import Budget
from fastxfer.errors import DataError, UsageError
from fastxfer.full_splits import run_full
from fastxfer.plans import PlanEntry, read_plan
from fastxfer.probes import LogisticProbe
from fastxfer.results import NO_EPISODE, SCHEMA, ResultStore, complete
from fastxfer.selection import Plan
from fastxfer.selection import select as choose
from fastxfer.selection.plan import _costs
from fastxfer.selection.rows import probed_rows


def row(backbone: str, value: float, half: float = 0.02, **changes: Any) -> dict[str, Any]:
    """A validation row of a full probe, `value` ± `half`."""
    return {
        "source": f"source of {backbone}",
        "backbone": backbone,
        "target": "pets",
        "ways": "all",
        "shots": "full",
        "seed": 0,
        "episode": NO_EPISODE,
        "probe": "logistic",
        "params": "l2=0.01;chosen=val",
        "split": "val",
        "metric": "balanced_accuracy",
        "value": value,
        "low": value - half,
        "high": value + half,
        **changes,
    }


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return complete(pd.DataFrame(list(rows)))


def select(*rows: dict[str, Any], budget: int = 10, top: int = 1, **options: Any) -> Plan:
    return choose(table(*rows), store="store", budget=budget, top=top, **options)


def named(entries: list[PlanEntry]) -> list[str]:
    return [f"{e.backbone} on {e.target}" for e in entries]


FOUR = (row("a", 0.70), row("b", 0.90), row("c", 0.885), row("d", 0.80))  # c's interval reaches b, d's does not


def test_the_best_and_what_validation_cannot_tell_from_it() -> None:
    plan = select(*FOUR)
    assert named(plan.entries) == ["b on pets", "c on pets"]
    assert [e.reason for e in plan.entries] == [
        "best of 4 backbones on validation",
        "not told apart from the best by validation (1.5 points behind, its interval reaches the best)",
    ]
    assert named(plan.rejected) == ["d on pets", "a on pets"]
    assert [e.reason for e in plan.rejected] == [
        "10.0 points behind the best on validation, beyond its own interval",
        "20.0 points behind the best on validation, beyond its own interval",
    ]
    assert plan.entries[0].expected == {
        "metric": "balanced_accuracy",
        "value": 0.9,
        "low": 0.88,
        "high": 0.92,
        "probe": "logistic",
        "params": "l2=0.01;chosen=val",
    }
    assert plan.entries[0].source == "source of b"


@pytest.mark.parametrize(
    "other",
    [
        row("a", 0.99, split="test"),
        row("a", 0.99, episode=0, shots="5", ways="5"),
        row("a", 0.99, shots="5"),
        row("a", 0.99, metric="average_precision"),
        row("a", 0.99, metric="accuracy"),
        row("a", 123.0, metric="seconds"),
        row("a", float("nan"), probe="knn"),
    ],
    ids=["test", "episode", "few shots", "other metric", "lesser metric", "seconds", "undefined"],
)
def test_rows_that_must_not_change_the_choice(other: dict[str, Any]) -> None:
    alone, beside = select(*FOUR), select(other, *FOUR)
    assert beside.entries == alone.entries
    assert beside.rejected == alone.rejected


def test_a_validation_row_does_change_the_choice() -> None:
    assert named(select(row("a", 0.99, probe="knn"), *FOUR).entries) == ["a on pets"]


def test_a_backbone_counts_once_with_its_best_probe() -> None:
    plan = select(row("a", 0.8, probe="knn", params="k=5"), row("a", 0.9), row("b", 0.95), row("b", 0.5, probe="knn"))
    assert named([*plan.entries, *plan.rejected]) == ["b on pets", "a on pets"]
    assert plan.rejected[0].expected["value"] == 0.9
    assert plan.entries[0].reason == "best of 2 backbones on validation"


def test_top_takes_more_outright_and_says_their_number() -> None:
    plan = select(*FOUR, top=3)
    assert named(plan.entries) == ["b on pets", "c on pets", "d on pets"]
    assert [e.reason for e in plan.entries[1:]] == [
        "number 2 of 4 on validation, 1.5 points behind",
        "number 3 of 4 on validation, 10.0 points behind",
    ]
    assert named(plan.rejected) == ["a on pets"]
    assert plan.policy == "top-3 per target by the full probe on validation, then near-ties"


def test_the_best_of_every_target_comes_before_the_closest_rivals() -> None:
    rows = [
        *(row(b, v, target="cars") for b, v in (("a", 0.60), ("b", 0.599), ("c", 0.59))),
        *(row(b, v, target="birds") for b, v in (("a", 0.30), ("b", 0.50), ("c", 0.495))),
    ]
    expected = ["b on birds", "a on cars", "b on cars", "c on birds", "c on cars"]
    assert named(select(*rows).entries) == expected
    # The order of the rows and their probes' order play no part.
    assert named(select(*reversed(rows)).entries) == expected
    for budget in range(1, 6):
        plan = select(*rows, budget=budget)
        assert named(plan.entries) == expected[:budget]
        assert named(plan.rejected) == [*expected[budget:], "a on birds"]
        for entry in plan.rejected[:-1]:
            assert entry.reason.endswith(f"; left out: the budget of {budget} is spent")
    assert plan.budget.amount == 5


def test_those_chosen_outright_come_before_near_ties_however_far_behind() -> None:
    rows = [
        *(row(b, v, target="cars") for b, v in (("a", 0.9), ("b", 0.5))),
        *(row(b, v, target="birds") for b, v in (("a", 0.9), ("b", 0.89), ("c", 0.889))),
    ]
    expected = ["a on birds", "a on cars", "b on birds", "b on cars", "c on birds"]
    assert named(select(*rows, top=2).entries) == expected


def test_equal_backbones_go_by_name() -> None:
    plan = select(row("z", 0.9), row("y", 0.9), row("x", 0.9))
    assert named(plan.entries) == ["x on pets", "y on pets", "z on pets"]
    assert "(0.0 points behind, its interval reaches the best)" in plan.entries[1].reason


def test_an_interval_that_just_reaches_the_best_is_not_told_apart_from_it() -> None:
    plan = select(row("a", 0.7, high=0.9), row("b", 0.9), row("c", 0.8, high=0.8999))
    assert named(plan.entries) == ["b on pets", "a on pets"]


def test_without_an_interval_nothing_is_told_apart_and_the_file_stays_json(tmp_path: Path) -> None:
    plan = select(row("a", 0.5, half=float("nan")), row("b", 0.9, half=float("nan")))
    assert named(plan.entries) == ["b on pets", "a on pets"]
    assert plan.entries[1].reason.endswith("(40.0 points behind, its interval is unknown)")
    plan.write(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert raw["entries"][0]["expected"]["low"] is None
    assert read_plan(tmp_path / "plan.json")[1][0].expected["high"] is None


def test_the_only_backbone() -> None:
    assert [e.reason for e in select(row("a", 0.1)).entries] == ["the only backbone"]


@pytest.mark.parametrize(
    ("metrics", "decides"),
    [
        (("accuracy", "auc", "balanced_accuracy"), "balanced_accuracy"),
        (("average_precision", "auc"), "auc"),  # multi-label
        (("accuracy",), "accuracy"),
    ],
)
def test_which_metric_decides(metrics: tuple[str, ...], decides: str) -> None:
    rows = []
    for metric in metrics:
        good, bad = (0.9, 0.5) if metric == decides else (0.5, 0.9)
        rows += [row("good", good, metric=metric), row("bad", bad, metric=metric)]
    plan = select(*rows)
    assert named(plan.entries) == ["good on pets"]
    assert plan.entries[0].expected["metric"] == decides


@pytest.mark.parametrize("rows", [(), (row("a", 0.9, split="test"),), (row("a", float("nan")),)])
def test_nothing_to_choose_from(rows: tuple[dict[str, Any], ...]) -> None:
    frame = table(*rows) if rows else SCHEMA.empty_table().to_pandas()
    with pytest.raises(
        DataError, match=r"no validation rows of full probes to choose from: run `fastxfer probe` first"
    ):
        choose(frame, store="store", budget=1)


def test_a_budget_or_top_of_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="the budget must be at least 1 fine-tuning, got 0"):
        select(*FOUR, budget=0)
    with pytest.raises(UsageError, match="top must be at least 1, got 0"):
        select(*FOUR, top=0)


def test_the_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    checkpoints = {
        ("b", "pets"): {"checkpoint": "weights/b.pt", "architecture": "resnet18", "arch_args": {"width": 4}},
        ("c", "pets"): {"checkpoint": "c.safetensors"},
        ("b", "cars"): {"checkpoint": "another.pt"},
    }
    plan = select(*FOUR, checkpoints=checkpoints)
    plan.write(tmp_path / "sub" / "plan.json")
    store, entries = read_plan(tmp_path / "sub" / "plan.json")
    assert store == "store"
    assert [e.number for e in entries] == [1, 2]
    assert [(e.checkpoint, e.architecture, e.arch_args) for e in entries] == [
        ("weights/b.pt", "resnet18", {"width": 4}),
        ("c.safetensors", "", {}),
    ]
    unnumbered = [PlanEntry(**{**vars(e), "number": 0}) for e in entries]
    assert unnumbered == plan.entries
    raw = json.loads((tmp_path / "sub" / "plan.json").read_text())
    assert raw["budget"] == {"runs": 10}
    assert [e["backbone"] for e in raw["rejected"]] == ["d", "a"]


def test_from_a_store_and_its_probes(tmp_path: Path) -> None:
    """Rows as `fastxfer probe` writes them; were test looked at, the other backbone would be chosen."""
    size = {"n_classes": 3, "n_train": 20, "n_test": 10}
    store = blobs_store(tmp_path / "s", blobs_target(**size), blobs_target("labels", **size, multi_label=True))
    results = ResultStore.open(tmp_path / "results")
    run_full(store, results, LogisticProbe(l2=(0.01,)))
    rows = results.read()
    plan = choose(rows, store="store", budget=2)
    assert named(plan.entries) == ["good on blobs", "good on labels"]
    assert [e.expected["metric"] for e in plan.entries] == ["balanced_accuracy", "auc"]
    upside_down = rows.assign(value=np.where(rows["split"] == "test", 2 - rows["value"], rows["value"]))
    assert choose(upside_down, store="store", budget=2).entries == plan.entries


def tuned(backbone: str, value: float, seconds: float = 60.0, **changes: Any) -> list[dict[str, Any]]:
    """What a fine-tuning leaves: its val row, and rows of its cost."""
    common = {"probe": "finetune", "params": "preset=bit;steps=500;size=128", "low": np.nan, "high": np.nan, **changes}
    costs = {"seconds": seconds, "images": 6000.0, "flops": 1e12}
    rows = [{**row(backbone, v), **common, "split": "train", "metric": m} for m, v in costs.items()]
    return [{**row(backbone, value), **common}, *rows]


def test_past_fine_tunings_say_gain_and_cost() -> None:
    new = select(*FOUR).entries
    assert named(select(*FOUR, *tuned("a", 0.99)).entries) == named(new)  # the probes alone decide
    assert new[0].estimated_seconds is None
    assert "gain" not in new[0].expected
    one = select(*FOUR, *tuned("b", 0.95), budget=1)
    assert named(one.entries) == ["b on pets", "c on pets"]  # what is done takes nothing from the budget
    assert one.entries[0].expected["finetuned"] == 0.95
    assert one.entries[0].reason.endswith("; fine-tuned already: 95.0 on validation")
    assert one.entries[0].estimated_seconds == 0
    assert one.entries[1].expected["gain"] == pytest.approx(0.05)
    assert one.entries[1].expected["gain_low"] is None  # one gain has no interval
    assert one.entries[1].estimated_seconds == 60
    three = select(*FOUR, *tuned("b", 0.95), *tuned("a", 0.74, 20.0), *tuned("d", 0.84, 40.0))
    expected = three.entries[1].expected
    assert expected["gain"] == pytest.approx(0.13 / 3)
    half = stats.t.ppf(0.975, 2) * np.std([0.05, 0.04, 0.04], ddof=1) * np.sqrt(1 + 1 / 3)  # of one more gain
    assert expected["gain_high"] - expected["gain"] == pytest.approx(half)
    assert expected["gain"] - expected["gain_low"] == pytest.approx(half)
    assert expected["gain_from"] == 3
    assert three.entries[1].estimated_seconds == 40
    json.dumps(three.as_dict(), allow_nan=False)


def test_a_budget_in_seconds_is_spent_by_what_earlier_runs_took() -> None:
    """b took 60 seconds and a 20; a run takes 40 on average. Where no run tells, there is nothing to divide by."""
    past = (*tuned("b", 0.95), *tuned("a", 0.74, 20.0))
    for amount, runs in ((39.0, 0), (40.0, 1), (79.0, 1), (80.0, 2)):
        plan = choose(table(*FOUR, *past), store="s", budget=Budget(amount, "device-seconds", f"{amount:g} s"), top=4)
        assert sum("finetuned" not in e.expected for e in plan.entries) == runs
        left_out = [e.reason for e in plan.rejected if "finetuned" not in e.expected]
        assert all(f"the budget of {amount:g} s is spent" in reason for reason in left_out)
        assert len(left_out) == 2 - runs
        assert plan.as_dict()["budget"] == {"device-seconds": amount}
        assert plan.stop_gain == 0
    half = choose(table(*FOUR, *past), store="s", budget=Budget(0.5, "device-seconds", "half a second"))
    assert half.as_dict()["budget"] == {"device-seconds": 0.5}
    assert json.dumps(select(*FOUR, budget=2).as_dict()["budget"]) == '{"runs": 2}'
    with pytest.raises(DataError, match="no fine-tuning in the results tells any"):
        choose(table(*FOUR), store="s", budget=Budget(60.0, "device-seconds", "60 s"))


def test_what_no_run_of_its_kind_tells_is_taken_for_as_dear_as_the_dearest() -> None:
    def entry(seconds: float | None) -> PlanEntry:
        return PlanEntry("b", "pets", "s", {}, estimated_seconds=seconds)

    costs = _costs([entry(s) for s in (20.0, None, 0.0, 60.0)], Budget(1.0, "device-seconds", ""))
    assert costs.tolist() == [20.0, 60.0, 0.0, 60.0]
    with pytest.raises(DataError):
        _costs([entry(None), entry(0.0)], Budget(1.0, "device-seconds", ""))
    assert _costs([entry(None), entry(9.0)], Budget(1.0, "runs", "")).tolist() == [1.0, 1.0]


def test_gains_are_expected_by_those_of_the_target_or_where_it_has_none_by_all() -> None:
    elsewhere = (row("a", 0.5, target="cars"), *tuned("a", 0.7, target="cars"))

    def gains(*more: dict[str, Any]) -> dict[str, float]:
        plan = select(*FOUR, *elsewhere, *more)
        return {f"{e.backbone} {e.target}": e.expected["gain"] for e in plan.entries if "gain" in e.expected}

    assert gains() == {"b pets": pytest.approx(0.2), "c pets": pytest.approx(0.2)}
    assert gains(*tuned("b", 0.95)) == {"c pets": pytest.approx(0.05)}


@pytest.mark.parametrize(
    "changes",
    [{"split": "test"}, {"shots": "5"}, {"value": float("nan")}, {"metric": "accuracy"}],
    ids=["test", "few shots", "undefined", "lesser metric"],
)
def test_fine_tunings_that_tell_nothing_of_validation_change_nothing(changes: dict[str, Any]) -> None:
    told = [*FOUR, *tuned("b", 0.95)]
    for backbone in ("b", "c"):
        other = tuned(backbone, 0.99)[0] | changes
        assert select(*told, other).entries == select(*told).entries
        assert select(*told, other).rejected == select(*told).rejected


def test_equal_backbones_are_told_by_their_names() -> None:
    rows = [row(b, v) for b, v in (("b", 0.9), ("a", 0.9), ("c", 0.8))]
    probed = probed_rows(table(*rows))
    assert probed["backbone"].tolist() == ["a", "b", "c"]
    assert probed.index.tolist() == [0, 1, 2]
    assert "index" not in probed.columns


def test_stopped_fine_tunings_are_none() -> None:
    plan = select(*FOUR, *tuned("b", 0.5, params="preset=bit;steps=500;size=128;stopped=125"))
    assert all("finetuned" not in e.expected and "gain" not in e.expected for e in plan.entries)
