"""The report: right words, nothing leaks, nothing runs that shouldn't, and a browser draws it without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from reporting import apart, few_rows, make_plan, make_rows, text_of

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.report import write_report
from fastxfer.report.answer import listed
from fastxfer.report.cells import aggregate, natural_key, standing
from fastxfer.report.costs import costs
from fastxfer.report.facts import Facts, without_paths
from fastxfer.report.flags import flags
from fastxfer.report.html import Markup, embed_json, join, tag
from fastxfer.report.sections import outcomes, selection, shown_command
from fastxfer.report.words import bounds, duration, percent
from fastxfer.results import ResultStore, complete, results_path
from fastxfer.targets.findings import contaminated


def results_of(rows: pd.DataFrame, store: Path) -> ResultStore:
    results = ResultStore.open(results_path(store))
    results.append(rows)
    return results


# ---- words -----------------------------------------------------------------------------------------------------------


def test_a_clear_lead_is_stated_with_its_size(tmp_path):
    rows = few_rows({"good": [0.89, 0.90, 0.91], "poor": [0.49, 0.50, 0.51]})
    text = text_of(write_report(tmp_path / "none", apart(rows), tmp_path, plan=None, command="x"))
    # t interval of three values 0.01 apart: ± 4.30265 · 0.01 / √3 = 0.02484
    assert (
        "5-way 5-shot, logisticgood leads at 90.0 % (87.5–92.5), 40.0 points above poor at 50.0 % (47.5–52.5)." in text
    )
    assert "At 5 shots, good leads on t." in text
    assert "not decided" not in text
    assert "Read with care" not in text


def test_overlapping_intervals_name_no_winner(tmp_path):
    rows = few_rows({"one": [0.85, 0.90, 0.95], "two": [0.84, 0.90, 0.93], "far": [0.1, 0.11, 0.12]})
    text = text_of(write_report(tmp_path / "none", apart(rows), tmp_path, plan=None, command="x"))
    assert "one is ahead at 90.0 %" in text
    assert "The intervals overlap: not decided." in text
    assert "leads at" not in text
    assert "leads on" not in text
    assert "At 5 shots, t is not decided." in text


def test_many_rivals_are_named_and_many_targets_counted(tmp_path):
    close = few_rows({"one": [0.85, 0.90, 0.95], "two": [0.84, 0.90, 0.93], "three": [0.83, 0.88, 0.94]})
    clear = [few_rows({"one": [0.89, 0.9, 0.91], "two": [0.5, 0.51, 0.52]}, target=f"c{i}") for i in range(4)]
    text = text_of(write_report(tmp_path / "none", apart(pd.concat([close, *clear])), tmp_path, plan=None, command="x"))
    assert "Its interval overlaps those of two and three: not decided." in text
    assert "At 5 shots, one leads on 4 of 5 targets; t is not decided." in text


def test_one_episode_says_that_certainty_is_unknown(tmp_path):
    text = text_of(
        write_report(tmp_path / "none", few_rows({"a": [0.9], "b": [0.5]}), tmp_path, plan=None, command="x")
    )
    assert "Without intervals for all values, how sure this is remains unknown." in text


def test_another_leader_at_other_shots_is_told(tmp_path):
    five = few_rows({"a": [0.89, 0.90, 0.91], "b": [0.69, 0.70, 0.71]})
    one = few_rows({"a": [0.29, 0.30, 0.31], "b": [0.49, 0.50, 0.51]}, shots="1", episodes_hash="g")
    text = text_of(write_report(tmp_path / "none", apart(pd.concat([five, one])), tmp_path, plan=None, command="x"))
    assert "Elsewhere on the curve another leads: at 1 shot b." in text


def test_an_easy_target_is_called_saturated(tmp_path):
    rows = pd.concat(
        [
            few_rows({"good": [0.97, 0.98, 0.99], "poor": [0.5, 0.51, 0.52]}, shots="1", episodes_hash="g"),
            few_rows({"good": [1.0, 1.0, 1.0], "poor": [0.6, 0.61, 0.62]}),
        ]
    )
    text = text_of(write_report(tmp_path / "none", apart(rows), tmp_path, plan=None, command="x"))
    assert "Read with care: t (saturated)." in text
    assert "An easy target: good 100 % at 5 shots (logistic probe). A still better backbone could not" in text
    assert "good leads at 100 %, 39.0 points above poor" in text  # an interval without width is not shown
    assert not [f for f in flags(aggregate(rows[rows["shots"] == "1"]), Facts("s")) if f.head == "Saturated"]


def test_validation_unlike_test_is_flagged():
    full = few_rows({"a": [0.9]}, ways="all", shots="full", episodes_hash="").assign(episode=-1)
    val, test = full.assign(split="val", low=0.8, high=0.95), full.assign(value=0.7, low=0.6, high=0.79)
    found = [f for f in flags(aggregate(pd.concat([val, test])), Facts("s")) if f.head == "Validation is unlike test"]
    assert len(found) == 1
    assert "a on t reaches 90.0\u00a0% on validation and 70.0\u00a0% on test" in found[0].text
    near = aggregate(pd.concat([val, test.assign(high=0.81)]))
    assert not [f for f in flags(near, Facts("s")) if f.head == "Validation is unlike test"]


def test_params_are_chosen_on_validation_never_on_test():
    cell = {"backbone": "a", "source": "s", "target": "t", "ways": "all", "shots": "full", "seed": 0, "episode": -1,
            "probe": "logistic", "metric": "accuracy"}  # fmt: skip
    values = {"l2=1": (0.7, 0.5), "l2=10": (0.6, 0.9), "l2=100": (0.5, 0.6)}  # (val, test)
    rows = [
        {**cell, "params": p, "split": split, "value": v}
        for p, pair in values.items()
        for split, v in zip(("val", "test"), pair, strict=True)
    ]
    cells = aggregate(complete(pd.DataFrame(rows)))
    assert set(cells.loc[cells["chosen"], "params"]) == {"l2=1"}
    # Without validation rows: the middle of the grid, though l2=100 would be the best here.
    only_test = [{**row, "value": 0.99 if row["params"] == "l2=100" else 0.1} for row in rows if row["split"] == "test"]
    cells = aggregate(complete(pd.DataFrame(only_test)))
    assert set(cells.loc[cells["chosen"], "params"]) == {"l2=10"}


def test_other_kinds_of_episodes_are_no_grid():
    """Three penalties on plain episodes, one on others: the middle of the three is shown."""
    plain = [few_rows({"a": [0.5, 0.6]}, params=f"l2={value}") for value in (1, 2, 3)]
    kinds = ("query_prior=natural", "queries=4;imbalance=1.0", "labels=per-label", "fewer_queries")
    kinds = (*kinds, "transform=centre+l2", "preset=clip", "l2_by=cv;folds=5")
    others = [few_rows({"a": [0.7, 0.8]}, params=f"l2=2;{kind}") for kind in kinds]
    cells = aggregate(pd.concat([*plain, *others]))
    assert set(cells.loc[cells["chosen"], "params"]) == {"l2=2"}
    cells = aggregate(pd.concat(others))
    assert set(cells.loc[cells["chosen"], "params"]) == {"l2=2;fewer_queries"}


def test_backbones_of_one_name_and_two_sources_stay_apart():
    rows = pd.concat([few_rows({"r50": [0.5, 0.6]}), few_rows({"r50": [0.7, 0.8]}, source="other")])
    assert set(aggregate(rows)["label"]) == {"r50 (s)", "r50 (other)"}


def test_an_extended_list_of_episodes_counts_once():
    short, long = few_rows({"a": [0.1, 0.2]}), few_rows({"a": [0.5, 0.6, 0.7]}, episodes_hash="longer")
    cells = aggregate(pd.concat([short, long.assign(episode=[2, 3, 4])]))
    assert list(cells["n"]) == [3]
    found = standing(cells, "t", "5", "5", "logistic")
    assert found is not None
    assert found.best["mean"] == pytest.approx(0.6)


def test_metrics_whose_smallest_value_is_best_lead_no_table(report_rows: pd.DataFrame) -> None:
    losses = [report_rows.assign(metric=metric) for metric in ("brier", "log_loss", "calibration_error")]
    assert set(aggregate(pd.concat([report_rows, *losses]))["metric"]) == set(aggregate(report_rows)["metric"])
    with pytest.raises(DataError, match="there are no results to report"):
        aggregate(losses[0])


@pytest.mark.parametrize("rows", [few_rows({"a": []}), few_rows({"a": [float("nan")]})], ids=["none", "NaN"])
def test_nothing_to_report_is_an_error(rows, tmp_path):
    with pytest.raises(DataError, match="report: "):
        write_report(tmp_path / "none", rows, tmp_path / "out", plan=None, command="x")
    assert not (tmp_path / "out" / "index.html").exists()


def test_small_words():
    assert listed([Markup("a"), Markup("b"), Markup("c")]) == "a, b and c"
    assert sorted(["all", "10", "5"], key=natural_key) == ["5", "10", "all"]
    assert sorted(["l2=0.5", "l2=1e-06", "l2=10"], key=natural_key) == ["l2=1e-06", "l2=0.5", "l2=10"]
    assert [duration(s) for s in (0.42, 45, 104, 200, 825, 4000, 9000, 300_000, float("nan"))] == [
        "0.4 s", "45.0 s", "1 min 44 s", "3 min 20 s", "14 min", "1.1 h", "2.5 h", "3.5 days", "unknown",
    ]  # fmt: skip
    assert [percent(v) for v in (0.8432, 0.9994, 0.9995, 0.99999, 1.0)] == ["84.3", "99.9", "99.95", "99.99", "100"]
    assert bounds(-0.02, 1.03) == "0.0–100"
    assert bounds(float("nan"), float("nan")) == bounds(1.0, 1.0) == ""
    assert contaminated("ImageNet, then Kermany", "kermany")
    assert contaminated("NIH-14", "nih14")
    assert contaminated("digits[0,1,2,3,4]", "digits")
    assert not contaminated("digits[0,1,2,3,4]", "digits-unseen")
    assert not contaminated("digits 0-4", "digits-5-9")
    assert not contaminated("unknown", "nih14")
    assert contaminated("chexpert+padchest", "padchest-cl")
    assert contaminated("PadChest-paper", "padchest")
    assert contaminated("mimic-cxr, nih14", "union=nih14+chexpert")
    assert not contaminated("mimic-cxr", "nih14+chexpert")


# ---- nothing leaks, nothing runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no train/val/test split found: made one", "no train/val/test split found: made one"),
        ("read /home/jane/data/labels.csv", "read …/labels.csv"),
        ("from s3://bucket/jane/x.csv, and C:\\Users\\jane\\y.csv", "from …/x.csv, and …/y.csv"),
        ("data/jane/here/x", "…/x"),
        ("cannot read p/JaneDoe_1.png: truncated", "cannot read [an image]: truncated"),
        ("patient P-0042 in both splits", "patient [a name] in both splits"),
    ],
)
def test_notes_lose_paths_images_and_patients(text, shown):
    assert without_paths(text, {"P-0042"}) == shown


def test_the_command_keeps_its_options_and_loses_its_folders():
    line = "fastxfer report --store '/home/Jane Doe/my store' --out=../a/b --plan plan.json"
    assert shown_command(line) == "fastxfer report --store '…/my store' --out=…/b --plan plan.json"


def test_markup_is_escaped_by_default():
    assert tag("p", "<b>", Markup("<i>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i></p>'
    assert join("a", None, ["<", [Markup("<br>")]]) == "a&lt;<br>"
    nasty = "</script><!--\u2028&"
    embedded = embed_json({"x": nasty})
    assert not set(embedded) & set("<>&\u2028")
    assert json.loads(embedded) == {"x": nasty}


def test_page_is_whole_and_private(report_page):
    html = report_page.read_text(encoding="utf-8")
    assert report_page.name == "index.html"
    assert report_page.stat().st_size < 10e6
    assert not re.search(r'<(?:script|img|iframe|link|source)[^>]+(?:src|href)="(?!data:)', html)
    for secret in ("JaneDoe", "secret", "patient-4711", "/home/", "jane"):
        assert secret not in html
    for said in (
        "my-store",
        "weights.pt",
        "Small test split",
        "Not converged",
        "16 of 3,208 fits of logistic, bit-untrained on digits-5-9, dtd10, lfw and textures.",
        "lfw has 60 test images (1.7 points each)",
    ):
        assert said in html
    for key in ("answer", "curves", "targets", "methods", "selection", "costs", "flags", "table", "provenance"):
        assert f'<section id="{key}"' in html


def test_costs_and_selection_are_told(report_page):
    html = re.sub(r"<[^>]+>", "", report_page.read_text(encoding="utf-8"))
    # embedding 4 × (2.5 + 3.5 + 4.5) s, probes 41.5 s, fine-tunings 312.5 + 148 s
    assert "These results took 9 min 4 s of computing." in html
    for stage in ("42.0 s", "Few-shot probes38,400 fits41.5 s", "Full probes24 fits", "fine-tunings2 runs7 min 40 s"):
        assert stage in html
    # (dtd10 and digits-5-9 known: 3 × 312.5, 3 × 148; the others by their backbone, or the mean of both)
    per_episode = 3 * 312.5 + 3 * 148 + 2 * (312.5 + 148 + 230.25)
    assert f"fine-tune every train split12 runs≈ {per_episode / 60:.0f} min" in html
    # 4 shots × 200 episodes each, however many probes
    assert f"fine-tune every episode9,600 runs≈ {800 * per_episode / 86400:.1f} days" in html
    assert "the plan chose 2 fine-tunings within a budget of 2 runs; all of them have been run." in html
    assert "effnet-lite0 on dtd10: best of 3 backbones on validation" in html
    assert "bit-untrained on dtd10: 63.3 points behind the best" in html


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"runs": 1}, "within a budget of 1 run"),
        ({"seconds": 7200}, "within a budget of 2.0 h"),
        ({}, "2 fine-tunings"),
    ],
)
def test_a_plan_says_how_it_chose_and_what_it_takes_now(budget: dict[str, int], said: str) -> None:
    plan = make_plan() | {
        "budget": budget,
        "policy": "knowledge gradient",
        "stop_gain": 0.25,
        "chosen": {"dtd10": {"backbone": "a", "finetuned": 0.879}, "lfw": {"backbone": "b", "finetuned": None}},
    }
    rows = outcomes(plan, aggregate(few_rows({"a": [0.5, 0.6]})))
    text = re.sub(r"<[^>]+>", "", selection(plan, rows, Markup(""), Markup))
    assert said in text
    assert "By knowledge gradient. What is expected to add less than 0.25 points is not run." in text
    assert "As things stand it takes a on dtd10 (fine-tuned, 87.9 on validation), b on lfw." in text
    assert "0 of them have been run." in text


def test_no_fine_tuning_measured_is_no_estimate():
    rows = few_rows({"a": [0.5, 0.6]})
    spent = costs(rows, aggregate(rows), [], Facts("s"))
    assert (spent.pairs, spent.few_cells, spent.episodes, spent.fits) == (1, 1, 2, 2)
    assert np.isnan(spent.every_pair)
    assert np.isnan(spent.every_episode)


def test_names_from_users_are_text(nasty_page):
    html = nasty_page.read_text(encoding="utf-8")
    assert "<script>window" not in html
    assert "<img src=x" not in html
    assert "<a href='java" not in html
    assert "<style>*{" not in html
    assert html.count("</script>") == 3  # the data, plotly.js, report.js
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in html


def test_a_missing_store_is_flagged(tmp_path):
    page = write_report(tmp_path / "gone", few_rows({"a": [0.5, 0.6]}), tmp_path, plan=None, command="x")
    html = page.read_text(encoding="utf-8")
    assert "The store could not be read" in html
    assert "fastxfer select --out plan.json" in html


def test_a_source_that_is_the_target_is_flagged(tmp_path):
    rows = few_rows({"a": [0.9, 0.8]}, source="ImageNet, then Kermany", target="kermany")
    html = write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x").read_text(encoding="utf-8")
    assert "a was trained on ImageNet, then Kermany. Its values on kermany do not show transfer" in html


# ---- the command -----------------------------------------------------------------------------------------------------


def invoke(*words: str) -> Any:
    return CliRunner().invoke(main, ["report", *words], prog_name="fastxfer")


def test_command_writes_and_says_where(tmp_path):
    rows = make_rows(5)
    results = results_of(rows[rows["target"] == "dtd10"], tmp_path / "store")
    (results.path / "plan.json").write_text(json.dumps(make_plan()))
    run = invoke("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--json")
    assert run.exit_code == 0, run.output
    answer = json.loads(run.stdout)
    assert answer["report"] == str(tmp_path / "out" / "index.html")
    assert answer["plan"] == str(results.path / "plan.json")
    assert "the plan chose 2 fine-tunings" in Path(answer["report"]).read_text(encoding="utf-8")
    run = invoke("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"))
    assert run.stdout.startswith(f"the report lies in {answer['report']} (")


def test_command_without_rows_says_what_makes_some(tmp_path):
    run = invoke("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"))
    assert run.exit_code == 1
    assert "no results at" in run.stderr
    assert "fastxfer fewshot --episodes 5000" in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no plan at"),
        ("{", "is no JSON"),
        ("[]", "has no list of entries"),
        ('{"version": 2, "entries": []}', "version 2"),
    ],
)
def test_bad_plan(tmp_path, content, said):
    results_of(few_rows({"a": [0.5, 0.6]}), tmp_path / "store")
    plan = tmp_path / "plan.json"
    if content is not None:
        plan.write_text(content)
    run = invoke("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--plan", str(plan))
    assert run.exit_code == 1
    assert said in run.stderr
    assert str(plan) in run.stderr
