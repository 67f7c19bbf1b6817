"""Runs done, best first, within a budget, by one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastxfer.budgets import Budget, Ledger, Rates, stopped_params
from fastxfer.errors import DataError, UsageError
from fastxfer.finetune.run import Machine, Outcome, Run, stopped_rows
from fastxfer.finetune.state import digest
from fastxfer.finetune.training import train
from fastxfer.plans import CRITERIA
from fastxfer.progress import say
from fastxfer.ranks import team_of_environment
from fastxfer.results import CELL, ResultStore
from fastxfer.store.locks import hold

LEDGER_SECONDS = 1.0  # between two looks at what others have spent
RUNNING = "running"  # folder of the results: checkpoints, locks and ledgers of what is under way


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
