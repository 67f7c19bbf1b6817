"""The paper beside ours: names that correspond, differences beyond both noises, notes on the right cells."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from fastxfer.cli import main
from fastxfer.errors import UsageError
from fastxfer.frames import write_frame
from fastxfer.paper import paper_results
from fastxfer.paper.beside import beside
from fastxfer.paper.facts import MODELS, SOURCES, TARGETS, paper_model, paper_source, paper_target
from fastxfer.paper.notes import NOTES
from fastxfer.results import NO_EPISODE, ResultStore, complete

BIT = "resnetv2_50x1_bit"


def row(value: float, **changes: Any) -> dict[str, Any]:
    base = {"source": "imagenet21k", "backbone": "r50x1", "target": "pets", "ways": "all", "shots": "full", "seed": 0}
    base |= {"episode": NO_EPISODE, "probe": "finetune", "params": "preset=paper;steps=500", "split": "test"}
    return (
        base
        | {"metric": "accuracy", "value": value, "low": value - 0.01, "high": value + 0.01, "n_queries": 3669}
        | changes
    )


def table(*rows: dict[str, Any], **chosen: Any) -> pd.DataFrame:
    return beside(complete(pd.DataFrame(list(rows))), architectures={"mine": BIT}, **chosen)


def test_every_name_of_the_paper_is_explained():
    cells = paper_results()
    assert set(cells["target"]) == set(TARGETS)
    assert set(cells["source"]) == set(SOURCES)
    assert set(cells["model"]) == set(MODELS)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("cifar10", "cifar10"), ("cifar100", "cifar100"), ("pets", "pets"), ("pets-species", None),
        ("flowers102", "flowers_oversampling"), ("flowers102-paper", "flowers_oversampling"), ("covidx-cxr2", "covidx_cxr2"),
        ("tuberculosis-paper", "tuberculosis_full"), ("padchest-cl", "padchest"), ("padchest", None), ("nih14", None),
    ],
)  # fmt: skip
def test_targets_that_correspond(ours, theirs):
    assert paper_target(ours) == theirs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("imagenet1k", "imagenet1k"), ("in21k", "imagenet21k"), ("chexpert-paper", "chexpert"), ("nih14", "nih"),
        ("chexpert-paper+mimic-cxr-paper", "chexpert_mimic"), ("mimic-cxr+chexpert", "chexpert_mimic"),
        ("chexpert-paper+mimic-cxr-paper+nih14+padchest-paper", "chexpert_mimic_nih_padchest"),
        ("chexpert+photos", None), ("nih14+padchest", None), ("unknown", None),
    ],
)  # fmt: skip
def test_sources_that_correspond(ours, theirs):
    assert paper_source(ours) == theirs


@pytest.mark.parametrize(
    ("words", "theirs"),
    [
        (("bit-m-r50x1",), "bit50x1"), (("R152x4",), "bit152x4"), (("mine", BIT), "bit50x1"), (("bit-m-r150x1",), None),
        (("resnet50",), None),
    ],
)  # fmt: skip
def test_models_that_correspond(words, theirs):
    assert paper_model(*words) == theirs


def test_the_paper_stands_alone_without_rows():
    found = beside()
    assert len(found) == 289
    assert found["ours"].isna().all()
    assert not found["beyond"].any()
    assert list(dict.fromkeys(found[found["target"] == "pets"]["shots"])) == ["1", "5", "10", "full"]


def test_ours_beside_the_papers_with_welchs_interval():
    values = [0.90, 0.91, 0.95]
    found = table(
        *(row(v, seed=i) for i, v in enumerate(values)), target=["pets"], shots=["full"], source=["imagenet21k"]
    )
    (line,) = found[found["ours"].notna()].to_dict("records")
    assert (line["model"], line["probe"], line["preset"], line["noise"]) == ("bit50x1", "finetune", "paper", "seeds")
    test = stats.ttest_ind_from_stats(
        np.mean(values), np.std(values, ddof=1), 3, line["paper"], line["paper_sd"], line["paper_n"], equal_var=False
    )
    assert line["p"] == pytest.approx(test.pvalue)
    assert line["difference"] == pytest.approx(np.mean(values) - line["paper"])
    assert line["low"] < line["difference"] < line["high"]


def test_a_difference_is_marked_only_beyond_both_noises():
    paper = beside(target=["pets"], shots=["full"], source=["imagenet21k"], model=["bit50x1"])["paper"].iloc[0]
    for off, wide, beyond in ((0.002, 0.01, False), (0.05, 0.005, True), (0.05, 0.08, False)):
        ours = row(paper + off, low=paper + off - wide, high=paper + off + wide)
        found = table(ours, target=["pets"])
        assert found["beyond"].sum() == beyond, (off, wide)


def test_marks_hold_for_all_cells_together():
    """Forty differences of 2.5 standard errors: each alone would be marked, together they are what chance may bring."""
    cells = paper_results()
    cells = cells[(cells["metric"] == "acc") & (cells["shots"] == "full") & cells["target"].isin(["pets", "cifar10"])]
    name = {theirs: ours for ours, theirs in (("pets", "pets"), ("cifar10", "cifar10"))}
    rows = []
    for i in range(5):
        for c in cells.itertuples():
            value = c.mean + 2.5 * np.hypot(c.sd / np.sqrt(c.n_seeds), 0.01)
            of = {"target": name[c.target], "source": c.source, "backbone": f"{c.model}-{i}", "probe": "logistic"}
            rows.append(row(value, **of, params=f"l2={i}", low=value - 0.0196, high=value + 0.0196))
    found = table(*rows)
    matched = found[found["ours"].notna()]
    assert len(matched) == 40
    assert (matched["p"] < 0.05).all()
    assert not matched["beyond"].any()


def test_only_what_corresponds_counts():
    others = [
        row(0.5, split="val"), row(0.5, ways="5"), row(0.5, target="nih14"), row(0.5, backbone="resnet18"),
        row(0.5, source="photos"), row(0.5, metric="balanced_accuracy"), row(0.5, params="preset=paper;stopped=3"),
    ]  # fmt: skip
    assert table(*others)["ours"].isna().all()
    few = [
        row(v, shots="5", episode=i, low=np.nan, high=np.nan, episodes_hash="h") for i, v in enumerate((0.6, 0.7, 0.8))
    ]
    probe = [r | {"probe": "logistic", "params": "l2=1", "backbone": "mine"} for r in few]
    found = table(*probe, *few)
    matched = found[found["ours"].notna()]
    assert list(matched["probe"]) == ["finetune", "logistic"]  # what the paper did first
    assert set(matched["noise"]) == {"episodes"}
    assert matched["ours_se"].iloc[0] == pytest.approx(0.1 / np.sqrt(3))


def test_unknown_values_are_named():
    with pytest.raises(UsageError, match=r"the paper has no shots '2'"):
        beside(shots=["2"])
    with pytest.raises(UsageError, match="Did you mean: imagenet21k"):
        beside(source=["imagenet-21k"])


# -- notes -------------------------------------------------------------------------------------------------------------


def hanging(key: str) -> pd.DataFrame:
    cells = paper_results()
    (note,) = [n for n in NOTES if n.key == key]
    return cells[note.hangs_on(cells)]


def test_every_note_hangs_somewhere_and_none_everywhere():
    for note in NOTES:
        assert 0 < len(hanging(note.key)) < 600, note.key


def test_notes_on_seeds_and_steps_hang_on_the_cells_that_have_fewer():
    cells = paper_results()
    four = pd.concat([hanging("pets-four-seeds"), hanging("padchest-four-seeds")])
    assert set(four.index) == set(cells.index[cells["n_seeds"] == 4])
    assert set(hanging("stopped").index) == set(cells.index[cells["last_step"] == 400])
    assert len(hanging("stopped-one")) == 6  # a cell, six metrics


def test_notes_on_covidx_are_about_what_a_threshold_decides():
    found = hanging("covidx-threshold")
    assert set(found["target"]) == {"covidx_cxr2"}
    assert "mean_auc" not in set(found["metric"])
    cells = paper_results().set_index(["target", "metric", "source", "model", "shots"])["mean"]
    best = {
        m: [
            100 * cells[("covidx_cxr2", m, s, "bit152x4", "full")]
            for s in ("chexpert_mimic_nih_padchest", "imagenet21k")
        ]
        for m in ("acc", "mean_auc")
    }
    assert [round(v, 1) for v in best["acc"] + best["mean_auc"]] == [83.0, 78.9, 97.6, 98.8]
    (note,) = [n for n in NOTES if n.key == "covidx-threshold"]
    assert all(f"{v:.1f}" in note.text for v in best["acc"] + best["mean_auc"])
    assert set(hanging("covidx-seen")["source"]) == {"nih", "chexpert_mimic_nih", "chexpert_mimic_nih_padchest"} & set(
        paper_results().query("target == 'covidx_cxr2'")["source"]
    )


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("flowers-swapped", "target == 'flowers_oversampling'"),
        ("tuberculosis-121", "target == 'tuberculosis_full'"),
        ("padchest-patients", "target == 'padchest'"),
        ("cifar100-500", "target == 'cifar100' and shots == '500'"),
    ],
)
def test_notes_on_whole_targets(key, where):
    assert set(hanging(key).index) == set(paper_results().query(where).index)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    ResultStore.open(tmp_path / "rows").append(pd.DataFrame([row(0.99)]))
    words = ["paper", "--results", str(tmp_path / "rows"), "--store", str(tmp_path / "none"), "--target", "pets"]
    shown = CliRunner().invoke(main, [*words, "--shots", "full"])
    assert shown.exit_code == 0, shown.output
    assert "r50x1 finetune paper" in shown.stdout
    assert "+11.8*" in shown.stdout
    assert "[1] 4 seeds of 5" in shown.stdout
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert len(told["cells"]) == 16
    assert set(told["notes"]) == {"pets-four-seeds"}
    for kind, start in ((".csv", "target,"), (".md", "| target |"), (".tex", "\\begin{tabular}")):
        out = tmp_path / f"paper{kind}"
        assert CliRunner().invoke(main, [*words, "--out", str(out)]).exit_code == 0
        assert out.read_text().startswith(start)
    with (tmp_path / "paper.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    assert CliRunner().invoke(main, [*words, "--out", str(tmp_path / "paper.doc")]).exit_code == 2


def test_cells_cannot_break_a_table(tmp_path):
    nasty = pd.DataFrame({"a": ["x | y", "50 % & $_{}"], "b": ["two\nlines", "\\end"]})
    write_frame(tmp_path / "t.md", nasty, nasty)
    assert (tmp_path / "t.md").read_text().splitlines()[2] == r"| x \| y | two lines |"
    write_frame(tmp_path / "t.tex", nasty, nasty)
    assert r"50 \% \& \$\_\{\} & \textbackslash{}end \\" in (tmp_path / "t.tex").read_text()
