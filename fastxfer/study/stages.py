"""A study from its file to its report: stage by stage, each by the functions of its command, each doing what is missing.

Whatever is finished is kept by store and results, so a run can be killed at any instant and started again; several
processes may run the same study at once (`share`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastxfer.budgets import parse_budget
from fastxfer.full_splits import chosen_l2
from fastxfer.progress import Advance, progress, say
from fastxfer.ranks import team_of_environment
from fastxfer.results import ResultStore
from fastxfer.study.choose import choose
from fastxfer.study.keys import BackboneKeys
from fastxfer.study.page import ReportUnit, curve_folder, rows_of
from fastxfer.study.rounds import is_last, plan_file, plan_files, planned
from fastxfer.study.share import PAUSE_SECONDS, RUNNING, Part, Unit, share
from fastxfer.study.units import EmbedUnit, Tally, embed_units, fewshot_units, full_units
from fastxfer.study.world import World

FINETUNE_PAUSE = 60.0  # seconds, at most, between two looks at fine-tunings of others
# What a part of a study may do; the others look at all of it.
OF_A_PART = ("embed", "fewshot", "probe", "knn")


@dataclass(frozen=True)
class Done:
    """What this process did in a stage; `units` 0: it was done already, or others did it."""

    stage: str
    units: int
    rows: int
    episodes: int
    seconds: float


def run_study(
    world: World, *, part: Part | None = None, command: str = "", told: Mapping[str, Any] | None = None
) -> list[Done]:
    """Do what is missing of a study, or of a part of it, which goes as far as the probes; one `Done` a stage.

    command, told: for the log of runs and the report: the command line, and what else there is to say (versions)
    """
    study, part = world.study, part or Part()
    world.results.set_study(study.name, study.hash, study.content())
    stages = [s for s in study.stages if part.is_whole or s in OF_A_PART]
    runner = _Runner(world, part, command)
    done = []
    for number, stage in enumerate(stages, start=1):
        runner.title = f"stage {number} of {len(stages)}, {stage}"
        runner.tally = tally = Tally()
        try:
            getattr(runner, stage)()
        finally:
            if tally.units:
                log = {"command": command, "stage": stage, "seconds": tally.seconds, "study": study.name}
                log |= {
                    "study_hash": study.hash,
                    **({"episodes": tally.episodes} if tally.episodes else {}),
                    **(told or {}),
                }
                world.results.log_run(log | {"units": tally.units})
        done.append(Done(stage, tally.units, tally.rows, tally.episodes, tally.seconds))
    return done


class _Runner:
    """The stages by name. title, tally: of the one under way."""

    def __init__(self, world: World, part: Part, command: str) -> None:
        self.world, self.study, self.command = world, world.study, command
        self.whole, self.pairs = part.is_whole, part.pairs(world.study)
        self.title, self.tally = "", Tally()
        self._loaded: dict[tuple[str, ...], list[Any]] = {}

    def _share(self, units: Sequence[Unit], unit: str) -> None:
        total = sum(one.left() for one in units)
        if not total:
            say(f"{self.title}: nothing to do")
            return
        with progress(self.title, total, unit) as advance:
            share(units, self.world.results.path / RUNNING, advance)

    # -- embed ---------------------------------------------------------------------------------------------------------

    def embed(self) -> None:
        units = embed_units(self.world, self.pairs, self._load, self.tally)
        missing = [unit for unit in units if unit.left()]
        if not missing:
            say(f"{self.title}: nothing to do")
            return
        say(f"{self.title}: {sum(unit.left() for unit in missing):,} embeddings are missing")
        self._check_backbones(missing)
        team = team_of_environment()
        for unit in missing if team else ():
            unit.do(_unheard, team)
        # Each has a bar of its own. What a team's dead process has left undone is done here, too.
        share(units, self.world.results.path / RUNNING, _unheard)

    def _load(self, backbones: tuple[BackboneKeys, ...]) -> list[Any]:
        """The networks of a group, which are kept until another group is asked for."""
        names = tuple(b.name for b in backbones)
        if names not in self._loaded:
            self._loaded.clear()
            self._loaded[names] = load_networks(backbones, self.study.data_root)
        return self._loaded[names]

    def _check_backbones(self, missing: Sequence[EmbedUnit]) -> None:
        """Load every backbone once, so that one that does not load is known before hours are spent on others."""
        groups = {tuple(b.name for b in unit.backbones): unit.backbones for unit in missing}
        for backbones in reversed(groups.values()):
            self._load(backbones)  # of the first group last: it is needed next, and stays

    # -- probes --------------------------------------------------------------------------------------------------------

    def fewshot(self) -> None:
        units = fewshot_units(self.world, self.pairs, self.tally)
        there = [not self.world.left(c) for unit in units for c in unit.cells for _ in c.cells]
        say(f"{self.title}: {sum(there):,} of {len(there):,} cells are there")
        self._share(units, "episodes")

    def probe(self, stage: str = "probe") -> None:
        self._share(full_units(self.world, stage, self.pairs, self.tally), "probes")

    def knn(self) -> None:
        self.probe("knn")

    # -- what looks at all of it ---------------------------------------------------------------------------------------

    def select(self, number: int = 1) -> None:
        self._share([SelectUnit(self.world, self.tally, number)], "plans")

    def finetune(self) -> None:
        """What was planned; with `select.batch` plan after plan, until one asks for nothing new."""
        while True:
            # Counted first: others may make the next one while this looks at the runs.
            made = len(plan_files(self.world))
            if not self._tuned() or is_last(self.world):
                return
            self.select(made + 1)

    def _tuned(self) -> bool:
        """Do what the plans so far ask for; whether all of it is over, here or elsewhere."""
        tally, f = self.tally, self.study.keys.finetune
        assert f is not None
        entries = planned(self.world)
        if not entries:
            say(f"{self.title}: nothing was selected")
            return True
        from fastxfer.finetune import Machine, prepare, run_all
        from fastxfer.finetune import Study as Tuning
        from fastxfer.finetune.conductor import competing

        results, store = self.world.results, self.world.measuring([entry.target for entry in entries])
        results.refresh()
        l2 = chosen_l2(results) if f.head == "probe" and f.head_l2 is None else {}
        runs = []
        for seed in dict.fromkeys(f.seeds):
            tuning = Tuning(
                seed=seed, protocol=self.study.finetune_protocol(seed), overrides=self.study.overrides(), l2=l2
            )
            runs += prepare(entries, store, self.study.data_root, tuning)

        budget = parse_budget(f.budget) if f.budget else None
        machine = Machine(micro_batch=f.micro_batch, workers=f.workers, device=f.device, save_steps=f.checkpoint_every)
        pause = PAUSE_SECONDS[0]
        while left := _left(runs, results, f.halving):
            say(f"{self.title}: {len(runs) - len(left)} of {len(runs)} runs are there")
            # Whole groups, since what competes is claimed as one.
            some = {id(run) for run in left}
            groups = [group for group in competing(runs, f.halving) if some & {id(run) for run in group}]
            started = time.perf_counter()
            outcomes = run_all(
                [run for group in groups for run in group],
                results,
                machine=machine,
                curves=curve_folder(self.world),
                budget=budget,
                halving=f.halving,
            )
            # A run that has lost here says its score.
            did = sum(o["state"] in ("done", "stopped") or any(word.startswith("val_") for word in o) for o in outcomes)
            if did:
                tally.units, tally.seconds = tally.units + did, tally.seconds + time.perf_counter() - started
            if budget or not any(o["state"] == "elsewhere" for o in outcomes):
                return not _left(runs, results, f.halving)
            time.sleep(pause)  # for those that others are doing
            pause = min(2 * pause, FINETUNE_PAUSE)
        return True

    def report(self) -> None:
        assert self.study.keys.report is not None
        self._share([ReportUnit(self.world, self.command, Path(self.study.keys.report.out), self.tally)], "pages")


@dataclass
class SelectUnit:
    """A plan, the first or that of a later round. It is made once for what it depends on, and kept: runs follow it."""

    world: World
    tally: Tally
    number: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        return ("select", self.world.study.choice_hash, str(self.number))

    @property
    def title(self) -> str:
        return f"the selection of {self.world.study.name}"

    def left(self) -> int:
        return int(not plan_file(self.world, self.number).is_file())

    def do(self, advance: Advance) -> None:
        study, store = self.world.study, self.world.store
        assert study.keys.select is not None
        assert store is not None
        with self.tally.counting():
            rows = rows_of(self.world, self.world.results.read())
            checkpoints = {(e.backbone, e.target): e.attrs for t in study.targets for e in store.entries(t)}
            plan = choose(study.keys.select, rows, store=study.keys.store, checkpoints=checkpoints)
            plan.write(plan_file(self.world, self.number))
        advance(1)


def _left(runs: Sequence[Any], results: ResultStore, halving: bool) -> list[Any]:
    """Fine-tunings that are not over, wherever they are done: neither finished nor, where they compete, lost."""
    from fastxfer.finetune.conductor import has_lost

    results.refresh()
    return [run for run in runs if not (run.is_done(results) or (halving and has_lost(run, results)))]


def load_networks(backbones: Sequence[BackboneKeys], data_root: Path) -> list[Any]:
    """The backbones of a study as `embed` wants them."""
    from fastxfer.registered import load_named

    words = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation", "fast_jpeg")
    return [
        load_named(
            b.checkpoint,
            data_root,
            arch=b.arch,
            arch_args=b.arch_args,
            name=b.name,
            source=b.source,
            pools=[b.pool],
            precision=b.precision,
            preprocessing={word: getattr(b, word) or None for word in words},
        )[0]
        for b in backbones
    ]


def _unheard(n: int, note: str = "") -> None:
    """An `Advance` where the work itself shows how it goes."""
