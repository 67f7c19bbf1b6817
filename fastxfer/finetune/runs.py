"""From a plan, or a checkpoint, to runs; and the runs done, best first, within a budget, by one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastxfer.backbones import SUFFIXES, load_backbone
from fastxfer.budgets import Budget, Ledger, Rates, stopped_params
from fastxfer.episodes import sample_episodes
from fastxfer.errors import DataError, FastxferError, UsageError
from fastxfer.finetune.run import Machine, Outcome, Run, stopped_rows, train
from fastxfer.finetune.state import digest
from fastxfer.finetune.task import Task, episode_tasks, full_task
from fastxfer.hyperrule import Settings, settle
from fastxfer.plans import CRITERIA, PlanEntry
from fastxfer.progress import say
from fastxfer.protocol import Protocol
from fastxfer.ranks import team_of_environment
from fastxfer.results import CELL, ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.store.locks import hold
from fastxfer.targets import Target, load_target

LEDGER_SECONDS = 1.0  # between two looks at what others have spent
RUNNING = "running"  # folder of the results: checkpoints, locks and ledgers of what is under way


@dataclass(frozen=True)
class Study:
    """What is fine-tuned of each (backbone, target): the whole train split, or the episodes of a few-shot protocol.

    labels:    of a multi-label target's whole train split, see `full_task`
    overrides: of `settle`
    l2:        (backbone, target) -> the penalty that the full probe's protocol chose, for heads that start there
    """

    seed: int = 0
    protocol: Protocol | None = None
    labels: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    l2: dict[tuple[str, str], float] = field(default_factory=dict)

    def tasks(self, target: Target, shots: str = "full") -> list[Task]:
        """shots: "full" = as the protocol says, or "5" = so many, whatever it says"""
        protocol = self.protocol
        if shots != "full":
            protocol = replace(protocol or Protocol(episodes=5, seed=self.seed), shots=(int(shots),))
        if protocol is None:
            return [full_task(target, self.seed, self.labels)]
        specs = [protocol.spec(target, k) for k in protocol.shots]
        drawn = [(spec, sample_episodes(target, spec, protocol.seed, protocol.episodes)) for spec in specs]
        return [task for spec, episodes in drawn for task in episode_tasks(target, episodes, protocol.metrics_of(spec))]

    def runs(self, entry: PlanEntry, target: Target) -> list[Run]:
        tasks = self.tasks(target, entry.shots)
        # Every episode of a number of shots has the same settings.
        settled: dict[str, Settings] = {}
        for task in tasks:
            if task.shots not in settled:
                n = None if task.shots == "full" else len(task.train.rows)
                settled[task.shots] = self._with_l2(settle(task.target, n_train=n, **self.overrides), entry, task)
        return [Run(entry, task, settled[task.shots]) for task in tasks]

    def _with_l2(self, settings: Settings, entry: PlanEntry, task: Task) -> Settings:
        if settings.head != "probe" or settings.head_l2 is not None or task.shots != "full":
            return settings  # of an episode, l2 = 1/m, as the probes' default has it
        found = self.l2.get((entry.backbone, task.target.name))
        if found is None:
            raise UsageError(
                f"--head probe: the results hold no full logistic probe of {entry.backbone} on {task.target.name} that says "
                "which l2 to take: run `fastxfer probe` first, or give --head-l2"
            )
        return replace(settings, head_l2=float(f"{found:.6g}"))


def prepare(entries: Sequence[PlanEntry], store: EmbeddingStore, data_root: Path, study: Study) -> list[Run]:
    """What a plan asks for, checked before any work is done: targets, checkpoints and settings.

    Targets keep the rows that the store's embeddings have (images skipped there are skipped here), so that probe and
    fine-tuning see the same images (and are without the same leaks); `DataError` if labels or splits have changed since.
    """
    runs = []
    for entry in entries:
        try:
            target = as_embedded(store.target(entry.target), load_target(entry.target, data_root), store)
            if not entry.checkpoint:
                raise DataError("the plan names no checkpoint: run `fastxfer select` again, or use --ckpt")
            if entry.checkpoint.endswith(SUFFIXES) and not Path(entry.checkpoint).exists():
                raise DataError(f"checkpoint '{entry.checkpoint}' is not there any more")
            runs += study.runs(entry, target)
        except FastxferError as error:
            raise type(error)(f"plan entry {entry.number} ({entry.backbone} on {entry.target}): {error}") from error
    return runs


def prepare_checkpoint(
    ckpt: str,
    targets: Sequence[Target],
    study: Study,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    name: str | None = None,
    source: str | None = None,
) -> list[Run]:
    """The runs of one checkpoint on these targets, named as the checkpoint says unless told otherwise."""
    backbone = load_backbone(ckpt, arch=arch, arch_args=arch_args or None)
    runs = []
    for number, target in enumerate(targets, start=1):
        entry = PlanEntry(
            backbone=name or backbone.name,
            target=target.name,
            checkpoint=ckpt,
            source=source or backbone.source,
            architecture=arch or "",
            arch_args=dict(arch_args or {}),
            number=number,
        )
        runs += study.runs(entry, target)
    return runs


def as_embedded(stored: Target, loaded: Target, store: EmbeddingStore) -> Target:
    """The stored table with the loaded target's folder, if both say the same of the stored images."""
    position = {str(name): i for i, name in enumerate(loaded.image_id)}
    try:
        rows = np.array([position[str(name)] for name in stored.image_id], np.int64)
    except KeyError as error:
        raise DataError(f"image {error} of the store '{store.path}' is not in the target any more") from None
    now = replace(loaded.take(rows), dropped=stored.dropped)
    if now.fingerprint != replace(stored, root=None).fingerprint:
        raise DataError(
            f"labels, classes or splits of target '{loaded.name}' have changed since it was embedded into "
            f"'{store.path}': embed it again, or restore them"
        )
    return now


def run_all(
    runs: Sequence[Run],
    results: ResultStore,
    *,
    machine: Machine | None = None,
    curves: Path | None = None,
    budget: Budget | None = None,
    halving: bool = False,
) -> list[dict[str, Any]]:
    """Do the runs in their order, append the rows of each as it ends, leave out what the results have already.

    curves:  folder for one CSV a run
    budget:  when it is spent, the run under way is stopped and its checkpoint kept, so that the next call goes on from it
    halving: the runs on one target go on together: at each of several steps the worse half on validation is stopped

    Several processes (torchrun, SLURM) share the runs out as they become free; a lock a run keeps it to one of them.
    One dict a run: backbone, target, source, shots, ways, episode, params, state ("done", "already there", "stopped",
    "elsewhere", "left", "lost"), and the test metrics and costs if done. `UsageError` before any work for a budget that
    does not suffice for a single run, and for halving without validation images.
    """
    conductor = _Conductor(results, machine or Machine(), curves, budget)
    waiting = [run for run in runs if not run.is_done(results)]
    if halving:
        _check_halving(waiting)
    conductor.check_budget(waiting)
    outcomes = [_outcome(run) for run in runs]
    of = {id(run): outcome for run, outcome in zip(runs, outcomes, strict=True)}
    for group in competing(runs, halving):
        conductor.do([(run, of[id(run)]) for run in group], halving)
    return outcomes


def _outcome(run: Run) -> dict[str, Any]:
    task = run.task
    return {
        "backbone": run.entry.backbone,
        "target": task.target.name,
        "source": run.entry.source,
        "ways": task.ways,
        "shots": task.shots,
        "seed": task.seed,
        "episode": task.episode,
        "params": run.params,
        "state": "left",
    }


def competing(runs: Sequence[Run], halving: bool) -> list[list[Run]]:
    """Runs that go on together: each alone, or, halved, those of the same target, shots, seed and episode, in the order of
    their first."""
    if not halving:
        return [[run] for run in runs]
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        task = run.task
        groups.setdefault((task.target.name, task.ways, task.shots, task.seed, task.episode), []).append(run)
    return list(groups.values())


def has_lost(run: Run, results: ResultStore) -> bool:
    """Whether a run was stopped by halving, since others on its target did better."""
    (cell, *_) = run.cells(stopped_params(run.params, 0))
    at = CELL.index("params")
    alike = (c for c in results.cells() if (*c[:at], *c[at + 1 :]) == (*cell[:at], *cell[at + 1 :]))
    words = str(cell[at]).removesuffix("0")
    return any(str(c[at]).startswith(words) and results.holds(c, run.task.episode) for c in alike)


def _check_halving(runs: Iterable[Run]) -> None:
    for run in runs:
        if run.task.val is None:
            raise UsageError(
                f"--halving stops runs by their validation scores, and target '{run.task.target.name}' has no val images: "
                "leave --halving out, or give the target a val split"
            )


class _Conductor:
    """Does runs, and keeps the books."""

    def __init__(self, results: ResultStore, machine: Machine, curves: Path | None, budget: Budget | None) -> None:
        self.results, self.machine, self.curves, self.budget = results, machine, curves, budget
        self.running = results.path / RUNNING
        team = team_of_environment()
        self.ledger = Ledger(self.running / f"ledger-{digest(team.job)}" if team else None)
        self.started = time.monotonic()

    # -- the budget -------------------------------------------------------------------------------------------------

    def check_budget(self, waiting: Sequence[Run]) -> None:
        """`UsageError` if it does not suffice for the least of the runs that are waiting."""
        budget = self.budget
        if budget is None or not waiting:
            return
        if budget.kind == "runs":
            least, what = 1.0, "one run"
        elif budget.kind == "images":
            least = min(run.settings.images - self._images_done(run) for run in waiting)
            what = f"{least:,.0f} images"
        else:
            rates = Rates.of(self.results.read())
            seconds = [
                (run.settings.images - self._images_done(run)) / rate
                for run in waiting
                if (rate := rates.images_per_second(run.entry.backbone, run.settings.crop or "own"))
            ]
            if len(seconds) < len(waiting):
                return  # how long some of them take is not known yet
            least, what = min(seconds), f"about {min(seconds):,.0f} seconds, by what earlier ones took"
        if budget.amount < least:
            raise UsageError(
                f"--budget '{budget.text}' is too small for anything: the smallest of {len(waiting)} runs takes {what}. "
                "Give more, or smaller runs (--steps, --batch-size)"
            )

    def _images_done(self, run: Run) -> int:
        """Images of a run that its checkpoint has behind it already."""
        import torch

        path = self._checkpoint(run)
        if not path.is_file():
            return 0
        try:
            return (
                int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
                * run.settings.batch_size
            )
        except Exception:  # damaged, which is said when it is to be used
            return 0

    def _account(self) -> Callable[[int], bool]:
        """Books what a run takes while it goes on: called with its images so far, it says whether the budget is spent."""
        budget, begun = self.budget, time.monotonic()
        booked = {"images": 0.0, "device-seconds": 0.0}
        asked = -math.inf

        def is_spent(images: int) -> bool:
            nonlocal asked
            if budget is None:
                return False
            now = time.monotonic()
            if self.ledger.path is not None and now - asked < LEDGER_SECONDS:
                return False
            asked = now
            spent = {"images": float(images), "device-seconds": now - begun}
            sums = self.ledger.add(**{kind: amount - booked[kind] for kind, amount in spent.items()})
            booked.update(spent)
            # Runs are counted as they begin.
            left = {**sums, "seconds": now - self.started, "runs": -math.inf}
            return left[budget.kind] >= budget.amount

        return is_spent

    def _may_begin(self) -> bool:
        """Whether the budget has room for one run more, which counts from now on."""
        if self.budget is None:
            return True
        if self.budget.kind != "runs":
            return not self._account()(0)
        if self.ledger.add(runs=1)["runs"] <= self.budget.amount:
            return True
        self.ledger.add(runs=-1)
        return False

    # -- runs -------------------------------------------------------------------------------------------------------

    def _checkpoint(self, run: Run) -> Path:
        return self.running / f"{run.file_name}-{digest(*run.key().values())}.pt"

    def do(self, waiting: list[tuple[Run, dict[str, Any]]], halving: bool) -> None:
        """Do a group of competing runs with their outcomes, unless another process has it, or the budget is spent."""
        key = digest(*(value for run, _ in waiting for value in run.key().values()))
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(self.running / f"{key}.lock", f"the fine-tuning of {waiting[0][0].title}"))
            except DataError as held:
                say(str(held))
                for _, outcome in waiting:
                    outcome["state"] = "elsewhere"
                return
            # Another process may have done some since.
            self.results = ResultStore.open(self.results.path)
            here = [(run, outcome) for run, outcome in waiting if not self._is_over(run, outcome, halving)]
            if not here:
                return
            if self._may_begin():
                self._compete(here)
            elif self.budget is not None:
                say(f"the budget of {self.budget.text} is spent: {here[0][0].title} is left for another time")

    def _is_over(self, run: Run, outcome: dict[str, Any], halving: bool) -> bool:
        if run.is_done(self.results):
            outcome["state"] = "already there"
            say(f"already there: {run.title}, {run.params}, seed {run.task.seed}")
        elif halving and has_lost(run, self.results):
            outcome["state"] = "lost"
        return outcome["state"] != "left"

    def _compete(self, runs: list[tuple[Run, dict[str, Any]]]) -> None:
        """Successive halving (Jamieson & Talwalkar 2016) down to one run, which is finished; of a single run, just that."""
        steps = runs[0][0].settings.schedule.steps
        rounds = math.ceil(math.log2(len(runs)))
        for rung in (max(1, steps >> (rounds - i)) for i in range(rounds)):
            ranked = []
            for run, outcome in runs:
                got = self._train(run, outcome, until=rung)
                if got is None:
                    return
                ranked.append((got.score(_criterion(run), at=rung), run, outcome, got))
            # Of equals, the plan's order; a score that is undefined is the worst.
            ranked.sort(key=lambda item: -item[0] if math.isfinite(item[0]) else math.inf)
            keep = -(-len(ranked) // 2)
            for score, run, outcome, got in ranked[keep:]:
                self._lose(run, outcome, got, score, rung)
            order = {id(run): i for i, (run, _) in enumerate(runs)}
            runs = sorted(((run, outcome) for _, run, outcome, _ in ranked[:keep]), key=lambda item: order[id(item[0])])
            if len(runs) == 1:
                break
        for run, outcome in runs:
            self._train(run, outcome)

    def _lose(self, run: Run, outcome: dict[str, Any], got: Outcome, score: float, rung: int) -> None:
        criterion = _criterion(run)
        say(
            f"{run.title} is stopped at step {rung:,}: its val {criterion.replace('_', ' ')} of {score:.4f} is in the worse half"
        )
        outcome.update(state="lost", **{f"val_{criterion}": score})
        if not run.is_done(self.results, stopped_params(run.params, got.state.step)):
            self.results.append_new(stopped_rows(run, got))

    def _train(self, run: Run, outcome: dict[str, Any], until: int | None = None) -> Outcome | None:
        """Go on with a run; None if the budget ended first."""
        checkpoint, is_spent = self._checkpoint(run), self._account()
        curve = self.curves / f"{run.file_name}.csv" if self.curves else None
        got = train(run, self.machine, checkpoint=checkpoint, curve=curve, until=until, stop=is_spent)
        is_spent(got.images)  # books the rest
        steps = run.settings.schedule.steps
        if got.rows is not None:
            assert got.influences is not None
            self.results.append_new(got.rows, got.influences.sums())
            checkpoint.unlink(missing_ok=True)
            shown = got.rows[got.rows["split"] != "val"] if run.task.scored[-1].split == "test" else got.rows
            outcome.update(state="done", **dict(zip(shown["metric"], shown["value"], strict=True)))
        elif until is None or got.state.step < min(until, steps):
            outcome.update(state="stopped", step=got.state.step)
            assert self.budget is not None
            say(
                f"the budget of {self.budget.text} is spent: {run.title} was stopped at step {got.state.step:,} of "
                f"{steps:,}; its checkpoint is kept, and the same command with another budget goes on from there"
            )
            return None
        return got


def _criterion(run: Run) -> str:
    return next(metric for metric in CRITERIA if metric in run.task.metrics)
