"""Which of the aggregated cells the report speaks of first: the metric of a target, the params of a probe, who leads.

Nothing here computes a metric: means and intervals come from `fastxfer.statistics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastxfer.budgets import COSTS, FINETUNE, is_stopped
from fastxfer.comparing.cells import PROBE_ORDER, SPLIT_ORDER, add_choices, natural_key, ordered
from fastxfer.errors import DataError
from fastxfer.metrics import LOWER_IS_BETTER
from fastxfer.results import CELL
from fastxfer.statistics import summarise

SECONDS = "seconds"
FULL = "full"
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "macro F1",
}


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def aggregate(results: pd.DataFrame) -> pd.DataFrame:
    """`summarise(results)` with the columns of `fastxfer.comparing.cells.add_choices`, in the order of tables."""
    # Tables and standings go from the largest mean down, so metrics whose smallest value is best have no place in them.
    # Values of single classes ("auc:NAME") are there for the reader's own tables.
    of_a_class = results["metric"].astype(str).str.contains(":")
    # Fine-tunings that were stopped have no place among those that were not.
    stopped = is_stopped(results)
    rows = results[~results["metric"].isin([*COSTS, *LOWER_IS_BETTER]) & ~of_a_class & ~stopped]
    if rows.empty:
        raise DataError("report: there are no results to report; `fastxfer fewshot` or `fastxfer probe` makes some")
    cells = summarise(rows)
    # A list of episodes that has since been extended leaves a shorter cell behind: the longest one counts.
    cells = cells.sort_values("n", ascending=False, kind="stable").drop_duplicates(list(CELL))
    cells = cells[np.isfinite(cells["mean"])]
    if cells.empty:
        raise DataError("report: every result is NaN; `fastxfer targets check` shows what is wrong with the labels")
    cells = add_choices(cells)
    order = pd.DataFrame(
        {
            "target": cells["target"],
            "split": cells["split"].map({s: i for i, s in enumerate(SPLIT_ORDER)}).fillna(9),
            "shots": cells["shots"].map(lambda s: math.inf if s == FULL else float(s)),
            "mean": -cells["mean"],
        }
    )
    return cells.loc[order.sort_values(["target", "split", "shots", "mean"]).index].reset_index(drop=True)


@dataclass(frozen=True)
class Standing:
    """Who leads one target in one setting: `table` holds one cell a backbone, best first."""

    target: str
    ways: str
    shots: str
    probe: str
    table: pd.DataFrame

    @property
    def best(self) -> pd.Series:
        return self.table.iloc[0]

    @property
    def metric(self) -> str:
        return str(self.best["metric"])

    @property
    def gap(self) -> float:
        """How far the second lies below the first, in points; NaN where there is no second."""
        return 100 * float(self.best["mean"] - self.table.iloc[1]["mean"]) if len(self.table) > 1 else math.nan

    @property
    def tied(self) -> list[str]:
        """Backbones whose interval overlaps the leader's: not told apart from it by these rows."""
        others = self.table.iloc[1:]
        return [str(b) for b in others.loc[others["high"] >= self.best["low"], "label"]]

    @property
    def has_intervals(self) -> bool:
        return bool(np.isfinite(self.table[["low", "high"]].to_numpy()).all())

    @property
    def decided(self) -> bool:
        return len(self.table) > 1 and self.has_intervals and not self.tied


def main_split(cells: pd.DataFrame) -> str:
    """The split whose numbers are discussed: test where there is any."""
    return ordered(cells["split"], SPLIT_ORDER)[0]


def main_seed(cells: pd.DataFrame) -> int:
    """The seed with the most cells, the smallest of equals."""
    counts = cells["seed"].value_counts()
    return int(min(counts[counts == counts.max()].index))


def standing(cells: pd.DataFrame, target: str, ways: str, shots: str, probe: str) -> Standing | None:
    """The backbones of one setting, best first; None where there is no such cell."""
    here = cells[
        cells["main"]
        & cells["chosen"]
        & (cells["target"] == target)
        & (cells["ways"] == ways)
        & (cells["shots"] == shots)
        & (cells["probe"] == probe)
        & (cells["split"] == main_split(cells[cells["target"] == target]))
    ]
    if here.empty:
        return None
    here = here[here["seed"] == main_seed(here)].drop_duplicates("label")
    return Standing(target, ways, shots, probe, here.sort_values("mean", ascending=False, kind="stable"))


def main_ways(cells: pd.DataFrame) -> str | None:
    """The number of ways with the most few-shot cells, the smallest of equals; None without few-shot cells."""
    few = cells[cells["shots"] != FULL]
    if few.empty:
        return None
    counts = few["ways"].value_counts()
    return str(min((str(w) for w in counts[counts == counts.max()].index), key=natural_key))


def main_shots(cells: pd.DataFrame, ways: str) -> str | None:
    """The number of shots that stands for "few": 5 where there is such a cell, else the middle one."""
    few = cells[(cells["shots"] != FULL) & (cells["ways"] == ways)]
    shots = sorted(few["shots"].unique(), key=natural_key)
    if not shots:
        return None
    return "5" if "5" in shots else str(shots[len(shots) // 2])


def probes(cells: pd.DataFrame, *, full: bool) -> list[str]:
    """The probes on few-shot or on full rows, in the order in which they are preferred; fine-tunings left out."""
    here = cells[((cells["shots"] == FULL) == full) & (cells["probe"] != FINETUNE)]
    return ordered(here["probe"], PROBE_ORDER)
