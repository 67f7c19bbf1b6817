"""The commands of the study, in one folder. Each finds what is done already, so a study that was stopped goes on."""

from __future__ import annotations

import json
import shlex
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

from benchmarks.realstudy import design
from benchmarks.realstudy.design import Extent, backbones
from fastxfer.cli import main as fastxfer
from fastxfer.files import write_whole
from fastxfer.store import EmbeddingStore
from fastxfer.transferability import SCORES

PROXIMITY_OF = "kermany3"
LEAST_UNITS = 40  # patients, or drawers, that proximity wants in train

SCORES_WITHOUT_HEAD = tuple(
    name for name in SCORES if name != "leep"
)  # ours have heads of their source, those of others not all


class Run:
    """The study in a folder. `spent`: stage -> seconds of the clock and of all cores, over all starts."""

    def __init__(self, out: Path, extent: Extent) -> None:
        self.out, self.extent = out, extent
        self.log = out / "spent.json"
        self.spent: dict[str, dict[str, float]] = json.loads(self.log.read_text()) if self.log.exists() else {}
        self.store = ("--store", str(out / "store"))
        self.data = ("--data-root", str(out / "data"))

    def run(self) -> None:
        """Do what is missing, in the order of the page: what is probed is there before anything is fine-tuned."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "weights").mkdir(exist_ok=True)
        design.write_tables(self.out, self.extent)
        if "lite0" in self.extent.foreign:
            design.write_lite0(self.out)
        self._pretrain()
        self._study("study", self.extent.targets, tuned=True)
        self._study("more", self.extent.more_targets, tuned=False)
        for shots, episodes in self.extent.many:
            self._many_shots(shots, episodes)
        self._per_label()
        self._proximity()
        self._transferability()
        self._finetune_all()

    def _pretrain(self) -> None:
        e = self.extent
        for source in ("cifar-seen", "kermany"):
            for amount in e.amounts:
                table = str(self.out / "tables" / f"{source}-{amount}.csv")
                root = str(design.source_root(self.out, source))
                self._do("targets", "targets", "add", table, "--root", root, "--name", f"{source}-{amount}", *self.data)
        for backbone in backbones(e):
            file = self.out / "weights" / f"{backbone.name}.pt"
            if backbone.is_ours and not file.exists():
                source = f"{backbone.source}-{backbone.images}" if backbone.images else f"cifar-seen-{e.amounts[0]}"
                self._do(
                    "pretrain", "pretrain", "--source", source, *backbone.pretrain, "--workers", "0", "--resume",
                    "--out", str(file), *self.data,
                )  # fmt: skip

    def _study(self, name: str, targets: tuple[str, ...], *, tuned: bool) -> None:
        if targets:
            file = self.out / f"{name}.toml"
            write_whole(file, design.study_file(self.extent, targets, tuned=tuned).encode())
            self._do(name, "study", "run", str(file))

    def _many_shots(self, shots: int, episodes: int) -> None:
        """What one [fewshot] for all targets cannot say: more shots where a target has the images."""
        store = EmbeddingStore.open(str(self.out / "store"))
        for targets, results in ((self.extent.targets, "results"), (self.extent.more_targets, "results-more")):
            able = [t for t in targets if _images_a_class(store, t) >= shots]
            if able:
                self._do(
                    "many shots", "fewshot", "--target", *able, "--shots", str(shots), "--episodes", str(episodes),
                    "--probe", "logistic", "--fewer-queries", *self.store, "--results", str(self.out / results),
                )  # fmt: skip

    def _per_label(self) -> None:
        """What one [fewshot] for all targets cannot say either: each label by itself where an image has several."""
        store, e = EmbeddingStore.open(str(self.out / "store")), self.extent
        several = [t for t in e.targets if store.target(t).multi_label]
        if several:
            self._do(
                "per label", "fewshot", "--target", *several, "--labels", "per-label", "--shots", *map(str, e.shots),
                "--episodes", str(e.episodes), "--probe", "logistic", "--metric", "auc", "--drop-scarce", "--fewer-queries",
                *self.store, "--results", str(self.out / "results"),
            )  # fmt: skip

    def _proximity(self) -> None:
        """Of the chest source to every target with enough to draw from, by all networks of others that have seen neither."""
        store = EmbeddingStore.open(str(self.out / "store"))
        references = [b.name for b in backbones(self.extent) if not b.is_ours and not b.has_seen(PROXIMITY_OF)]
        others = [t for t in self.extent.targets if t != PROXIMITY_OF and _units(store, t) >= LEAST_UNITS]
        if self.extent.proximity and not (self.out / "near.csv").exists():
            self._do(
                "proximity", "proximity", PROXIMITY_OF, *others, "--reference", *references, "--measure", "mmd", "neighbours",
                "--out", str(self.out / "near.csv"), *self.store,
            )  # fmt: skip

    def _transferability(self) -> None:
        """After the study's own plan, which is to stand for what `select` does by probes alone."""
        self._do(
            "transferability", "transferability", "--target", *self.extent.targets, "--score", *SCORES_WITHOUT_HEAD,
            *self.store, "--results", str(self.out / "results"),
        )  # fmt: skip

    def _finetune_all(self) -> None:
        """All that was not selected, by a plan that leaves nothing out."""
        results = ("--results", str(self.out / "results"))
        plan, many = self.out / "all.json", "100000"
        if not plan.exists():
            self._do("select", "select", "--budget", many, "--top", many, "--out", str(plan), *self.store, *results)
        words = []
        for key, value in design.finetune_keys(self.extent).items():
            option = f"--{key.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
        self._do("finetune all", "finetune", "--plan", str(plan), *words, *self.store, *results, *self.data)

    def _do(self, stage: str, *words: str) -> None:
        print(f"\n$ {shlex.join(['fastxfer', *words])}", file=sys.stderr, flush=True)
        clock, core = time.perf_counter(), time.process_time()
        try:
            with redirect_stdout(sys.stderr):  # stdout is for what the study says itself
                fastxfer.main(list(words), "fastxfer", standalone_mode=False)
        finally:
            spent = self.spent.setdefault(stage, {"clock": 0.0, "core": 0.0})
            spent["clock"] += time.perf_counter() - clock
            spent["core"] += time.process_time() - core
            write_whole(self.log, (json.dumps(self.spent, indent=1) + "\n").encode())


def _units(store: EmbeddingStore, target: str) -> int:
    """Patients in train, or images where none are known."""
    table = store.target(target)
    rows = table.rows("train")
    return len(rows) if table.patient is None else len(set(table.patient[rows]))


def _images_a_class(store: EmbeddingStore, target: str) -> int:
    """Train images of the scarcest class; 0 where an image has several labels."""
    table = store.target(target)
    if table.multi_label:
        return 0
    return int(pd.Series(table.labels[table.rows("train")]).value_counts().min())
