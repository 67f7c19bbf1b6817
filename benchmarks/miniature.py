"""The paper in miniature: `python -m benchmarks.miniature --out FOLDER`, some twenty minutes on two cores.

Two sources (five classes of CIFAR-10, chest X-rays of children) by two sizes of a small BiT, pre-trained here, and the
smaller one untrained; four targets, near and far. Probes of every pair, then *all* fine-tunings, on the whole train split
and on the probes' own 5-shot episodes, and what `fastxfer select` would have run of the former. All of it is the command
line's; stopped, it goes on. Small means small: 32 pixels, some 2,000 images a source.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.embeddings import REAL
from fastxfer.cli import main as fastxfer
from fastxfer.files import write_whole
from fastxfer.results import NO_EPISODE, ResultStore

SEEN = ("airplane", "automobile", "bird", "cat", "deer")
NEAR = {"cifar-unseen": "natural", "dtd10": "natural", "omniglot": "natural", "nih": "chest"}
SIZES = {"small": "channels=[128,256]", "large": "channels=[256,512]"}
SHOTS, FEWSHOT_RUNS, FEWSHOT_TARGETS = 5, 3, {"cifar-unseen", "dtd10"}
# HyperRule's rates are made for 500 steps of 512 images; these runs are shorter (docs/finetune.md).
STEPS = ("--steps", "60", "--batch-size", "32", "--image-size", "32", "--base-lr", "0.03")
QUICK_STEPS = ("--steps", "3", "--batch-size", "8", "--image-size", "32")
# The metric of a target by preference: the first that its rows have.
METRICS = ("balanced_accuracy", "auc")


def backbones(quick: bool) -> dict[str, tuple[str, ...]]:
    """name -> options of `fastxfer pretrain`"""
    epochs = ("--epochs", "1" if quick else "10")
    natural, chest = ("--source", "cifar", "--classes", *SEEN), ("--source", "kermany")
    made = {}
    for size, channels in SIZES.items():
        made[f"natural-{size}"] = (*natural, "--arch-arg", channels, *epochs)
        made[f"chest-{size}"] = (*chest, "--arch-arg", channels, "--augment", "xray", *epochs)
    made["untrained-small"] = (*natural, "--arch-arg", SIZES["small"], "--untrained")
    return {name: made[name] for name in ("natural-small", "chest-small")} if quick else made


class Study:
    """The commands in one folder, and the time that each stage took."""

    def __init__(self, out: Path, quick: bool) -> None:
        self.out, self.quick = out, quick
        self.places = ("--store", str(out / "store"))
        self.data = ("--data-root", str(out / "data"))
        self.backbones, self.targets = backbones(quick), ("dtd10", "nih") if quick else tuple(NEAR)
        self.steps = QUICK_STEPS if quick else STEPS
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        self._add_data()
        for name, options in self.backbones.items():
            if not (self.out / f"{name}.pt").exists():
                self._do("pretrain", "pretrain", *options, *self.data, "--out", str(self.out / f"{name}.pt"))
        for name in self.backbones:
            checkpoint = str(self.out / f"{name}.pt")
            self._do(
                "embed",
                "embed",
                "--ckpt",
                checkpoint,
                "--name",
                name,
                "--target",
                *self.targets,
                *self.places,
                *self.data,
            )
        few = ("--target", *(t for t in self.targets if t in FEWSHOT_TARGETS))
        self._do(
            "fewshot", "fewshot", *few, "--ways", "all", "--shots", "1", str(SHOTS), "10", "--probe", "logistic",
            "--metric", "balanced_accuracy", "auc", "--episodes", "50" if self.quick else "2000", *self.places,
        )  # fmt: skip
        self._do("probe", "probe", *self.places)
        pairs = len(self.backbones) * len(self.targets)
        for budget, plan in ((len(self.targets), "selected"), (pairs, "all")):
            top = ("--top", "1" if plan == "selected" else str(len(self.backbones)))
            self._do(
                "select", "select", "--budget", str(budget), *top, "--out", str(self.out / f"{plan}.json"), *self.places
            )
        self._do("finetune", "finetune", "--plan", str(self.out / "all.json"), *self.steps, *self.places, *self.data)
        runs = "1" if self.quick else str(FEWSHOT_RUNS)
        for name in self.backbones:
            self._do("finetune, few-shot", "finetune", "--ckpt", str(self.out / f"{name}.pt"), "--name", name, "--target",
                     *(t for t in self.targets if t in FEWSHOT_TARGETS), "--ways", "all", "--shots", str(SHOTS), "--episodes", runs,
                     *self.steps, *self.places, *self.data)  # fmt: skip
        self._do(
            "report",
            "report",
            "--out",
            str(self.out / "report"),
            "--plan",
            str(self.out / "selected.json"),
            *self.places,
        )

    def _add_data(self) -> None:
        tables = self.out / "tables"
        tables.mkdir(parents=True, exist_ok=True)
        cifar = REAL / "cifar10_subset"
        _write_rows(cifar / "labels.csv", tables / "cifar-unseen.csv", lambda row: row["label"] not in SEEN)
        added = {
            "cifar": (str(cifar),),
            "cifar-unseen": (str(tables / "cifar-unseen.csv"), "--root", str(cifar)),
            "kermany": (str(REAL / "kermany_pneumonia"),),
            "nih": (str(REAL / "nih_sample"),),
            "dtd10": (str(REAL / "dtd10"),),
            "omniglot": (str(REAL / "omniglot_small"),),
        }
        for name, words in added.items():
            # dtd10 brings a validation split; the others give a part of train, since `select` sees nothing else.
            val = () if name == "dtd10" else ("--val", "0.2")
            self._do("targets", "targets", "add", *words, "--name", name, *val, *self.data)

    def _do(self, stage: str, *words: str) -> None:
        print(f"\n$ {shlex.join(['fastxfer', *words])}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        with redirect_stdout(sys.stderr):  # stdout is for the study's own tables
            fastxfer.main(list(words), "fastxfer", standalone_mode=False)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def judge(rows: pd.DataFrame, selected: list[dict[str, Any]]) -> dict[str, Any]:
    """Probes and fine-tunings side by side, and what the selected fine-tunings save and lose against all of them.

    `cells`: one a (target, backbone, shots): mean test value of the logistic probe and of fine-tuning, in percent.
    `selection`: one a target: the best fine-tuning of all, the best of those selected, both by their test value.
    """
    test = rows[(rows["split"] == "test") & rows["probe"].isin(["logistic", "finetune"])]
    # By what full fine-tunings report: a multi-label target's few-shot episodes have one label an image.
    metric_of = {
        str(target): next(m for m in METRICS if (group["metric"] == m).any())
        for target, group in test[test["shots"] == "full"].groupby("target", observed=True)
    }
    test = test[test["metric"] == test["target"].astype(str).map(metric_of)]
    # A few-shot fine-tuning stands beside the probe of the same episodes.
    tuned = test[(test["probe"] == "finetune") & (test["episode"] != NO_EPISODE)]
    same = tuned[["target", "backbone", "shots", "episode"]].drop_duplicates().assign(paired=True)
    test = test.merge(same, how="left", on=["target", "backbone", "shots", "episode"])
    test = test[(test["episode"] == NO_EPISODE) | test["paired"].notna()]
    values = (
        test.groupby(["target", "backbone", "shots", "probe"], observed=True)["value"].mean().mul(100).unstack("probe")
    )
    cells = [
        {
            "target": t,
            "backbone": b,
            "shots": s,
            "metric": metric_of[t],
            **{p: round(float(v), 1) for p, v in row.items()},
        }
        for (t, b, s), row in values.iterrows()  # type: ignore[misc]
        if row.notna().all()
    ]
    chosen = {(str(e["backbone"]), str(e["target"])) for e in selected}
    full = values["finetune"].xs("full", level="shots").dropna()
    selection = []
    for target, group in full.groupby("target", observed=True):
        by_backbone = group.droplevel("target")
        ours = by_backbone[[b for b in by_backbone.index if (str(b), str(target)) in chosen]]
        selection.append(
            {
                "target": str(target),
                "best": str(by_backbone.idxmax()),
                "best_value": round(float(by_backbone.max()), 1),
                "selected": str(ours.idxmax()),
                "selected_value": round(float(ours.max()), 1),
                "lost_points": round(float(by_backbone.max() - ours.max()), 1),
            }
        )
    return {"cells": cells, "selection": selection, "saved": 1 - len(chosen) / len(full)}


def markdown(study: dict[str, Any]) -> str:
    """The tables of docs/miniature.md."""
    lines = ["| target | metric | backbone | shots | probe | fine-tuning |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {c['target']} | {c['metric']} | {c['backbone']} | {c['shots']} | {c['logistic']} | {c['finetune']} |"
        for c in study["cells"]
    ]
    lines += ["", "| target | best of all fine-tunings | best of the selected | lost, points |", "|---|---|---|---|"]
    lines += [
        f"| {s['target']} | {s['best']}: {s['best_value']} | {s['selected']}: {s['selected_value']} | {s['lost_points']} |"
        for s in study["selection"]
    ]
    lines += [
        "",
        f"Not run: {100 * study['saved']:.0f} % of the full fine-tunings.",
        "",
        "| stage | seconds |",
        "|---|---|",
    ]
    lines += [f"| {stage} | {seconds:,.0f} |" for stage, seconds in study["seconds"].items()]
    return "\n".join(lines) + "\n"


def _write_rows(table: Path, out: Path, wanted: Any) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        kept, columns = [row for row in rows if wanted(row)], rows.fieldnames
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or [])
        writer.writeheader()
        writer.writerows(kept)


def main(arguments: list[str] | None = None) -> int:
    """Run the study, or what is left of it; print its tables, write them and the figures to the folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.miniature", description="The paper in miniature.")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--quick", action="store_true", help="a size for tests: the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    given = parser.parse_args(arguments)
    study = Study(given.out, given.quick)
    study.run()
    rows = ResultStore.open(given.out / "store-results").read()
    plan = json.loads((given.out / "selected.json").read_text(encoding="utf-8"))
    made = {**judge(rows, plan["entries"]), "seconds": {k: round(v, 1) for k, v in study.seconds.items()}}
    write_whole(given.out / "miniature.json", (json.dumps(made, indent=1) + "\n").encode())
    write_whole(given.out / "miniature.md", markdown(made).encode())
    print(json.dumps(made, indent=1) if given.json else markdown(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
