"""The report: right words, nothing leaks, nothing runs that shouldn't, and a browser draws it without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.report import write_report
from fastxfer.report.answer import listed
from fastxfer.report.cells import aggregate, natural_key, standing
from fastxfer.report.costs import costs
from fastxfer.report.facts import Facts, without_paths
from fastxfer.report.flags import flags
from fastxfer.report.html import Markup, embed_json, join, tag
from fastxfer.report.sections import shown_command
from fastxfer.report.words import bounds, duration, percent
from fastxfer.results import ResultStore, complete, results_path
from fastxfer.store import EmbeddingStore
from fastxfer.targets.findings import contaminated
from fastxfer.targets.table import Target

BACKBONES = {"effnet-lite0": "ImageNet-1k", "bit-small": "digits 0-4", "bit-untrained": "nothing"}
TARGETS = {"digits-5-9": 5, "textures": 3, "lfw": 2, "dtd10": 10}
# What each backbone reaches with all labels, per target.
CEILING = {
    "digits-5-9": {"effnet-lite0": 0.962, "bit-small": 0.984, "bit-untrained": 0.881},
    "textures": {"effnet-lite0": 0.958, "bit-small": 0.902, "bit-untrained": 0.744},
    "lfw": {"effnet-lite0": 0.935, "bit-small": 0.920, "bit-untrained": 0.781},
    "dtd10": {"effnet-lite0": 0.850, "bit-small": 0.342, "bit-untrained": 0.214},
}
PROBE_BONUS = {"logistic": 0.0, "ridge": -0.004, "prototype": -0.012, "knn": -0.03}


def make_rows(episodes: int = 200, rename: dict[str, str] | None = None) -> pd.DataFrame:
    """Believable rows: few-shot episodes, full probes, fine-tunings. `rename` replaces names by others."""
    rng = np.random.default_rng(7)
    frames = []
    for target, classes in TARGETS.items():
        n_test = {"lfw": 60, "textures": 300}.get(target, 400)
        ways = min(5, classes)
        for backbone, source in BACKBONES.items():
            top, chance = CEILING[target][backbone], 1 / ways
            common = {"source": source, "backbone": backbone, "target": target, "seed": 0}
            near = 0.25 if (backbone, target) == ("bit-small", "digits-5-9") else 0.0
            for shots in (1, 2, 5, 10):
                mean = chance + (min(top + 0.02, 0.99) - chance) * (1 - 0.55 * np.exp(-near) * shots**-0.75)
                if target == "lfw" and backbone != "bit-untrained":
                    mean = 0.90 - 0.32 * shots**-0.8
                draws = mean + 0.06 * shots**-0.3 * rng.standard_normal(episodes)
                for probe, bonus in PROBE_BONUS.items():
                    values = np.clip(draws + bonus + 0.004 * rng.standard_normal(episodes), 0, 1)
                    l2 = 1 / (ways * shots)
                    params = {"knn": "k=20", "prototype": ""}.get(probe, f"l2={l2:g}")
                    fits = (probe, backbone) != ("logistic", "bit-untrained")
                    frames.append(
                        pd.DataFrame(
                            {
                                **common, "ways": str(ways), "shots": str(shots), "episode": np.arange(episodes),
                                "probe": probe, "params": params, "split": "test", "metric": "accuracy",
                                "value": np.round(values * 15 * ways) / (15 * ways), "n_queries": 15 * ways,
                                "converged": (np.arange(episodes) % 199 != 7) | fits,
                                "episodes_hash": f"{target}-{ways}-{shots}-0123456789abcdef",
                            }
                        )
                    )  # fmt: skip
            tuned = (backbone, target) in {("effnet-lite0", "dtd10"), ("bit-small", "digits-5-9")}
            full = [("logistic", "l2=0.001;chosen=val", 0.0), ("knn", "k=10;chosen=val", -0.04)]
            if tuned:
                full.append(
                    (
                        "finetune",
                        "preset=bit;steps=60;batch=64;crop=128",
                        0.021 if target == "dtd10" else -0.006,
                    )
                )
            for probe, params, bonus in full:
                for split, n in (("val", n_test // 2), ("test", n_test)):
                    for metric, lift in (("accuracy", 0.0), ("balanced_accuracy", -0.004), ("auc", 0.01)):
                        value = float(np.clip(top + bonus + lift + rng.normal(0, 0.006), 0, 1))
                        half = 1.96 * np.sqrt(max(value * (1 - value), 1e-4) / n)
                        row = {
                            **common, "ways": "all", "shots": "full", "episode": -1, "probe": probe, "params": params,
                            "split": split, "metric": metric, "value": value, "low": max(value - half, 0),
                            "high": min(value + half, 1), "n_queries": n,
                        }  # fmt: skip
                        frames.append(pd.DataFrame([row]))
            if tuned:
                seconds = {
                    **row,
                    "split": "train",
                    "metric": "seconds",
                    "value": 312.5 if target == "dtd10" else 148.0,
                }
                frames.append(pd.DataFrame([{**seconds, "low": np.nan, "high": np.nan, "n_queries": 0}]))
    rows = complete(pd.concat([complete(f) for f in frames], ignore_index=True))
    for column in ("backbone", "target", "source"):
        rows[column] = rows[column].replace(rename or {})
    return rows


def make_plan(rename: dict[str, str] | None = None) -> dict[str, Any]:
    def entry(backbone: str, target: str, value: float, reason: str) -> dict[str, Any]:
        expected = {"metric": "balanced_accuracy", "value": value, "low": value - 0.03, "high": value + 0.03}
        names = rename or {}
        return {
            "backbone": names.get(backbone, backbone), "target": names.get(target, target), "shots": "full",
            "source": BACKBONES[backbone], "reason": reason, "expected": expected,
            "checkpoint": "/home/jane/secret-folder/weights.pt", "architecture": "resnetv2_50x1_bit", "arch_args": {},
        }  # fmt: skip

    return {
        "version": 1,
        "store": "/home/jane/secret-folder/store",
        "budget": {"runs": 2},
        "policy": "top-1 per target",
        "entries": [
            entry("effnet-lite0", "dtd10", 0.843, "best of 3 backbones on validation"),
            entry("bit-small", "digits-5-9", 0.981, "best of 3 backbones on validation"),
        ],
        "rejected": [
            entry("bit-untrained", "dtd10", 0.21, "63.3 points behind the best, beyond its own interval"),
            entry("effnet-lite0", "digits-5-9", 0.96, "2.1 points behind the best; left out: the budget of 2 is spent"),
        ],
    }  # fmt: skip


RUNS = [
    {
        "date": "2026-01-05T10:00:00+00:00", "stage": "fewshot", "seconds": 41.5, "versions": {"numpy": "2.4"},
        "command": "fastxfer fewshot --episodes 1000 --store /home/jane/secret-folder/store",
    },
]  # fmt: skip


def make_store(path: Path, class_name: str = "class") -> Path:
    """A real store with small embeddings of the same backbones and targets."""
    store = EmbeddingStore.open(path, mode="a")
    rng = np.random.default_rng(0)
    for name, classes in TARGETS.items():
        n = 12 * classes
        labels = np.arange(n) % classes
        target = Target(
            name=name,
            image_id=np.array([f"patient-4711/{i:05d}.png" for i in range(n)]),
            class_names=tuple(f"{class_name} {c}" for c in range(classes)),
            labels=labels.astype(np.int64),
            split=np.array(["train", "val", "test"])[(np.arange(n) // classes) % 3],
            patient=np.array([f"JaneDoe{i // 2}" for i in range(n)]) if name == "lfw" else None,
            notes=(
                "no split found: made one, seed 0, patients apart (JaneDoe3 has 2 images, /home/jane/lfw/labels.csv)",
            )
            if name == "lfw"
            else (),
        )
        store.add_target(target)
        for i, (backbone, source) in enumerate(BACKBONES.items()):
            attributes = {
                "identity": f"{i}dentity{i:056d}", "weights_sha256": f"{i}abc{i:060d}", "source": source,
                "architecture": "tf_efficientnet_lite0" if i == 0 else "resnetv2_50x1_bit", "pooling": "mean",
                "checkpoint": "/home/jane/secret-folder/weights.pt", "code_version": "0.1.0",
            }  # fmt: skip
            with store.writer(backbone, name, dim=4, dtype="float32", attributes=attributes) as writer:
                for block in list(writer.missing):
                    writer.write(block, rng.standard_normal((len(block), 4)).astype(np.float32), seconds=2.5 + i)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("jane-secret") / "my-store")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return make_rows()


@pytest.fixture(scope="module")
def page(store: Path, rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    return write_report(
        store,
        rows,
        out,
        plan=make_plan(),
        runs=RUNS,
        command="fastxfer report --store /home/jane/secret-folder/store",
    )


def results_of(rows: pd.DataFrame, store: Path) -> ResultStore:
    results = ResultStore.open(results_path(store))
    results.append(rows)
    return results


def few_rows(values: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Rows of one 5-shot cell a backbone, from the values of its episodes."""
    frames = [
        pd.DataFrame({"backbone": backbone, "episode": np.arange(len(v)), "value": v}) for backbone, v in values.items()
    ]
    common = {
        "source": "s", "target": "t", "ways": "5", "shots": "5", "seed": 0, "probe": "logistic", "params": "l2=1",
        "split": "test", "metric": "accuracy", "episodes_hash": "h",
    }  # fmt: skip
    return complete(pd.concat(frames).assign(**(common | columns)))


def text_of(page: Path) -> str:
    """What a reader sees of the answer and target by target, without tags."""
    html = page.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(?:answer|targets)".*?</section>', html, re.DOTALL)
    assert len(sections) == 2
    return re.sub(r"<[^>]+>", "", "".join(sections)).replace("\u00a0", " ")


# ---- words -----------------------------------------------------------------------------------------------------------


def test_a_clear_lead_is_stated_with_its_size(tmp_path):
    rows = few_rows({"good": [0.89, 0.90, 0.91], "poor": [0.49, 0.50, 0.51]})
    text = text_of(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
    # t interval of three values 0.01 apart: ± 4.30265 · 0.01 / √3 = 0.02484
    assert (
        "5-way 5-shot, logisticgood leads at 90.0 % (87.5–92.5), 40.0 points above poor at 50.0 % (47.5–52.5)." in text
    )
    assert "At 5 shots, good leads on t." in text
    assert "not decided" not in text
    assert "Read with care" not in text


def test_overlapping_intervals_name_no_winner(tmp_path):
    rows = few_rows({"one": [0.85, 0.90, 0.95], "two": [0.84, 0.90, 0.93], "far": [0.1, 0.11, 0.12]})
    text = text_of(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
    assert "one is ahead at 90.0 %" in text
    assert "The intervals overlap: not decided." in text
    assert "leads at" not in text
    assert "leads on" not in text
    assert "At 5 shots, t is not decided." in text


def test_many_rivals_are_named_and_many_targets_counted(tmp_path):
    close = few_rows({"one": [0.85, 0.90, 0.95], "two": [0.84, 0.90, 0.93], "three": [0.83, 0.88, 0.94]})
    clear = [few_rows({"one": [0.89, 0.9, 0.91], "two": [0.5, 0.51, 0.52]}, target=f"c{i}") for i in range(4)]
    text = text_of(write_report(tmp_path / "none", pd.concat([close, *clear]), tmp_path, plan=None, command="x"))
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
    text = text_of(write_report(tmp_path / "none", pd.concat([five, one]), tmp_path, plan=None, command="x"))
    assert "Elsewhere on the curve another leads: at 1 shot b." in text


def test_an_easy_target_is_called_saturated(tmp_path):
    rows = pd.concat(
        [
            few_rows({"good": [0.97, 0.98, 0.99], "poor": [0.5, 0.51, 0.52]}, shots="1", episodes_hash="g"),
            few_rows({"good": [1.0, 1.0, 1.0], "poor": [0.6, 0.61, 0.62]}),
        ]
    )
    text = text_of(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
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


def test_metrics_whose_smallest_value_is_best_lead_no_table(rows: pd.DataFrame) -> None:
    losses = [rows.assign(metric=metric) for metric in ("brier", "log_loss", "calibration_error")]
    assert set(aggregate(pd.concat([rows, *losses]))["metric"]) == set(aggregate(rows)["metric"])
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


def test_page_is_whole_and_private(page):
    html = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    assert page.stat().st_size < 10e6
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


def test_costs_and_selection_are_told(page):
    html = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
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


def test_no_fine_tuning_measured_is_no_estimate():
    rows = few_rows({"a": [0.5, 0.6]})
    spent = costs(rows, aggregate(rows), [], Facts("s"))
    assert (spent.pairs, spent.few_cells, spent.episodes, spent.fits) == (1, 1, 2, 2)
    assert np.isnan(spent.every_pair)
    assert np.isnan(spent.every_episode)


NASTY = "<script>window.pwned=1</script>%{x}&amp;\"'"
RENAME = {
    "effnet-lite0": NASTY,
    "bit-small": "<img src=x onerror=window.pwned=1>",
    "dtd10": "</script><script>window.pwned=1</script>",
    "lfw": "<a href='javascript:window.pwned=1'>lfw</a>",
    "ImageNet-1k": "<style>*{display:none}</style>",
}


@pytest.fixture(scope="module")
def nasty_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nasty")
    store = make_store(folder / "store", class_name=NASTY)
    plan = make_plan(RENAME)
    plan["entries"][0]["reason"] = plan["rejected"][0]["reason"] = NASTY
    return write_report(store, make_rows(20, RENAME), folder, plan=plan, command=f"fastxfer {NASTY}", title=NASTY)


def test_names_from_users_are_text(nasty_page):
    html = nasty_page.read_text(encoding="utf-8")
    assert "<script>window" not in html
    assert "<img src=x" not in html
    assert "<a href='java" not in html
    assert "<style>*{" not in html
    assert html.count("</script>") == 3  # the data, plotly.js, report.js
    assert "&lt;script&gt;window.pwned=1&lt;/script&gt;" in html


def test_a_missing_store_is_flagged(rows, tmp_path):
    html = write_report(tmp_path / "gone", rows, tmp_path, plan=None, command="x").read_text(encoding="utf-8")
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
    results = results_of(make_rows(5), tmp_path / "store")
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


# ---- in a browser, without a network ---------------------------------------------------------------------------------

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Any]:
    """Open a page offline; after the test: no word on the console, no error, no request but the file itself."""
    heard: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        requests[:] = [url for url in requests if url != path.as_uri() and not url.startswith("data:")]
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []
    assert requests == []


@pytest.mark.browser
def test_figures_are_drawn_and_filtered(show, page):
    tab = show(page)
    assert tab.locator("#curves-figure .panel").count() == len(TARGETS)
    assert tab.locator("#methods-figure .panel").count() == len(TARGETS)
    first = tab.locator("#curves-figure .plot").first
    assert first.locator("svg .scatterlayer .trace path.js-line").count() >= len(BACKBONES)
    assert first.get_attribute("aria-label").startswith("accuracy against shots on digits-5-9. ")
    assert tab.locator("#outcomes-figure svg.main-svg").count() > 0

    before = first.get_attribute("aria-label")
    tab.select_option("#f-probe", "knn")
    assert first.get_attribute("aria-label") != before
    tab.select_option("#f-target", "dtd10")
    assert tab.locator("#curves-figure .panel h3").all_inner_texts() == ["dtd10 5-way accuracy, %"]
    tab.select_option("#f-metric", "auc")
    assert "No rows match" in tab.locator("#curves-note").inner_text()
    assert tab.locator("#methods-figure .panel").count() == 1

    # One backbone less in both figures, by keyboard.
    tab.select_option("#f-metric", "accuracy")
    tab.locator("#curves-legend button").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#curves-legend button").first.get_attribute("aria-pressed") == "false"
    assert "effnet-lite0" not in tab.locator("#curves-figure .plot").first.get_attribute("aria-label")
    assert "effnet-lite0" not in tab.locator("#methods-figure .plot").first.get_attribute("aria-label")


@pytest.mark.browser
def test_table_sorts_filters_and_is_downloaded(show, page):
    tab = show(page)
    column = "#cells tbody tr td:nth-child(8)"
    header = tab.locator("#cells th[data-key=mean]")
    unsorted = tab.locator(column).all_inner_texts()
    header.locator("button").click()
    down = [float(v) for v in tab.locator(column).all_inner_texts()]
    assert header.get_attribute("aria-sort") == "descending"
    assert down == sorted(down, reverse=True)
    assert [float(v) for v in unsorted] != down
    header.locator("button").press("Enter")
    up = [float(v) for v in tab.locator(column).all_inner_texts()]
    assert header.get_attribute("aria-sort") == "ascending"
    assert up == sorted(up)
    assert up[0] < down[-1]
    tab.locator("#cells th[data-key=shots] button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert "the first 20 shown" in tab.locator("#table-status").inner_text()
    tab.locator("#more").click()
    shots = tab.locator("#cells tbody tr td:nth-child(4)").all_inner_texts()
    assert [s for i, s in enumerate(shots) if i == 0 or shots[i - 1] != s] == ["1", "2", "5", "10", "full"]

    tab.fill("#table-filter", "finetune dtd10 auc test")
    assert tab.locator("#cells tbody tr").count() == 1
    with tab.expect_download() as download:
        tab.locator("#csv").click()
    table = pd.read_csv(download.value.path())
    assert len(table) == 1
    assert (table.loc[0, ["target", "probe", "metric"]] == ["dtd10", "finetune", "auc"]).all()
    assert table.loc[0, "low"] < table.loc[0, "mean"] < table.loc[0, "high"]
    with tab.expect_download() as download:
        tab.locator("#curves-figure .panel button").first.click()
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.browser
def test_both_colour_schemes_paper_and_phone(show, page):
    tab = show(page, scheme="dark")
    line = "() => [...document.querySelectorAll('#curves-figure .js-line')].at(-1).style.stroke"
    tick = "() => document.querySelector('#curves-figure .xtick text').style.fill"
    dark = (
        tab.evaluate(line),
        tab.evaluate(tick),
        tab.evaluate("getComputedStyle(document.body).backgroundColor"),
    )
    assert dark[2] == "rgb(23, 24, 26)"
    tab.emulate_media(color_scheme="light")
    tab.wait_for_function(f"(before) => ({line})() !== before", arg=dark[0])
    assert tab.evaluate(tick) != dark[1]
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(f"(before) => ({line})() === before", arg=dark[0])
    tab.emulate_media(color_scheme="dark", media="print")
    tab.wait_for_function(f"(before) => ({line})() !== before", arg=dark[0])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

    phone = show(page, width=360)
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert phone.evaluate("Math.max(...[...document.querySelectorAll('.plot svg')].map((s) => s.clientWidth))") <= 360
    # Rows of the long table are cards: backbone on the left, value on the right, all within the screen.
    label, mean = (phone.locator(f"#cells tbody tr td[data-key={k}]").first.bounding_box() for k in ("label", "mean"))
    assert abs(label["y"] - mean["y"]) < 12
    assert 180 < mean["x"] < 360 - mean["width"]


@pytest.mark.browser
def test_nothing_that_users_named_is_run(show, nasty_page):
    tab = show(nasty_page)
    assert tab.evaluate("window.pwned") is None
    assert tab.locator("main img, main a[href^=javascript], body style").count() == 0
    assert tab.title() == NASTY
    assert NASTY in tab.locator("#curves-legend").inner_text()
    assert tab.locator("#methods-figure svg a").count() == 0
    # Figure labels are shortened, but what is shown is the text itself.
    assert "<script>window.pwned=1" in " ".join(tab.locator("#methods-figure svg .ytick").all_text_contents())
    plot = tab.locator("#curves-figure .plot").first
    plot.locator("svg .scatterlayer .trace .point").first.hover(force=True)
    tab.wait_for_selector("#curves-figure .hoverlayer .hovertext")
    assert "onerror" in " ".join(plot.locator(".hoverlayer").all_text_contents()) or NASTY[:20] in " ".join(
        plot.locator(".hoverlayer").all_text_contents()
    )
    tab.fill("#table-filter", "finetune")
    assert tab.evaluate("window.pwned") is None


@pytest.mark.browser
def test_many_backbones_stay_apart_and_a_full_point_joins_its_curve(show, tmp_path):
    names = {f"b{i}": [0.5 + i / 40, 0.52 + i / 40, 0.51 + i / 40] for i in range(9)}
    curve = pd.concat([few_rows(names, ways="all", shots=s, episodes_hash=s) for s in ("1", "5")])
    full = few_rows({b: [v[0] + 0.2] for b, v in names.items()}, ways="all", shots="full", episodes_hash="")
    rows = pd.concat([curve, full.assign(episode=-1, low=full["value"] - 0.05, high=full["value"] + 0.05)])
    tab = show(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
    ticks = tab.locator("#curves-figure .xtick").all_text_contents()
    assert [t for t in ticks if t] == ["1", "5", "full"]
    looks = tab.evaluate(
        "() => document.querySelector('#curves-figure .plot').data.filter((t) => t.mode === 'lines+markers')"
        ".map((t) => t.line.color + t.line.dash + t.marker.symbol)"
    )
    assert len(set(looks)) == len(names)
