"""What a fine-tuning is: of what, how, where it is now, and the rows that tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fastxfer.budgets import stopped_params
from fastxfer.finetune.state import State
from fastxfer.finetune.task import Task
from fastxfer.hyperrule import Settings
from fastxfer.influences import Influences
from fastxfer.plans import PlanEntry
from fastxfer.results import CELL, Cell, ResultStore, complete


@dataclass(frozen=True)
class Machine:
    """How a run is done here; none of it is to change what comes out.

    micro_batch:      images a forward pass (None: about a million pixels)
    cache_bytes:      decoded images that are held in memory
    save_seconds:     how often the checkpoint of the running one is written; save_steps: or every so many steps
    """

    micro_batch: int | None = None
    workers: int = 0
    device: str = "auto"
    cache_bytes: int = 1 << 30
    save_seconds: float = 300.0
    save_steps: int = 0


@dataclass(frozen=True, eq=False)
class Run:
    """One fine-tuning to be done: of which checkpoint, under which names, on what, how."""

    entry: PlanEntry
    task: Task
    settings: Settings

    @property
    def params(self) -> str:
        return self.settings.params + self.task.extra

    @property
    def title(self) -> str:
        return f"{self.entry.backbone} on {self.task.name}"

    @property
    def file_name(self) -> str:
        """Of its curve and its checkpoint: tells it from others of a study."""
        task = self.task
        few = "" if task.shots == "full" else f"-{task.ways}way-{task.shots}shot-episode{task.episode}"
        return f"{self.entry.backbone}-{task.target.name}{few}-seed{task.seed}"

    def key(self) -> dict[str, Any]:
        """What all its rows have in common."""
        return {
            "source": self.entry.source,
            "backbone": self.entry.backbone,
            "target": self.task.target.name,
            "ways": self.task.ways,
            "shots": self.task.shots,
            "seed": self.task.seed,
            "episode": self.task.episode,
            "probe": "finetune",
            "params": self.params,
            "episodes_hash": self.task.episodes_hash,
        }

    def cells(self, params: str | None = None) -> list[Cell]:
        """The cells (keys without episode) of its scores, or of its cost alone where it was stopped under `params`."""
        key = self.key() | {"params": params or self.params}
        parts = [(part.split, metric) for part in self.task.scored for metric in self.task.metrics]
        if params:
            parts = [("train", "seconds")]
        return [tuple((key | {"split": split, "metric": metric})[name] for name in CELL) for split, metric in parts]

    def is_done(self, results: ResultStore, params: str | None = None) -> bool:
        """Whether the results have its rows; `DataError` if they are of other episodes under the same key."""
        found = []
        for cell in self.cells(params):
            results.episodes_done(cell, self.task.episodes_hash)
            found.append(results.holds(cell, self.task.episode))
        return all(found)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where a run is now; images: trained on in this call; rows and influences: of the finished run, or None."""

    state: State
    images: int
    rows: pd.DataFrame | None
    influences: Influences | None = None

    def score(self, metric: str, at: int | None = None) -> float:
        """A metric on val as it was at a step, else as it was measured last; NaN if it never was."""
        values = {s["step"]: s[metric] for s in self.state.scores if s["split"] == "val"}
        return float(values.get(at, values[max(values)]) if values else "nan")


def stopped_rows(run: Run, outcome: Outcome) -> pd.DataFrame:
    """What a run that will not be finished has to tell: its last scores on val, and what it cost."""
    key = run.key() | {"params": stopped_params(run.params, outcome.state.step)}
    n = 0 if run.task.val is None else len(run.task.val.rows)
    scores = [
        {"split": "val", "metric": m, "value": value, "n_queries": n}
        for m in run.task.metrics
        if math.isfinite(value := outcome.score(m))
    ]
    return complete(pd.DataFrame([{**key, **row} for row in [*scores, *cost_rows(outcome.state)]]))


def cost_rows(state: State) -> list[dict[str, Any]]:
    return [
        {"split": "train", "metric": name, "value": value, "n_queries": 0} for name, value in state.cost.rows().items()
    ]
