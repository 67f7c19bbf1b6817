"""Which of the aggregated cells the report speaks of first: the metric of a target, the params of a probe, who leads.

Nothing here computes a metric: means and intervals come from `fastxfer.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fastxfer.budgets import FINETUNE, is_stopped
from fastxfer.comparing.cells import (
    PROBE_ORDER,
    SPLIT_ORDER,
    add_choices,
    natural_key,
    of_unknown_metrics,
    ordered,
)
from fastxfer.comparing.pairs import EQUIVALENT
from fastxfer.errors import DataError
from fastxfer.metrics import meaning
from fastxfer.results import CELL, Cell
from fastxfer.statistics import summarise

ReadImages = Callable[[Collection[Cell]], pd.DataFrame]

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


def aggregate(results: pd.DataFrame, read_images: ReadImages | None = None) -> pd.DataFrame:
    """`summarise` with the columns of `fastxfer.comparing.cells.add_choices`, in the order of tables.

    read_images: `ResultStore.read_images`; None: no few-shot cell has an interval over test images
    """
    # Tables and standings go from the largest mean down, and figures from 0 to 1, so other metrics have no place in them.
    # Values of single classes ("auc:NAME") are there for the reader's own tables.
    of_a_class = results["metric"].astype(str).str.contains(":")
    # Fine-tunings that were stopped have no place among those that were not.
    stopped = is_stopped(results)
    means = {name: meaning(str(name)) for name in results["metric"].unique()}
    shares = [name for name, found in means.items() if found and found.share and not found.lower_is_better]
    of_unknown_metrics(results)  # says which have no place because nobody knows
    rows = results[results["metric"].isin(shares) & ~of_a_class & ~stopped]
    if rows.empty:
        raise DataError("report: there are no results to report; `fastxfer fewshot` or `fastxfer probe` makes some")
    images = None
    if read_images is not None:
        images = read_images(set(rows[list(CELL)].drop_duplicates().itertuples(index=False, name=None)))
    cells = summarise(rows, images=images)
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
class Verdict:
    """One backbone against another in a setting: difference and its interval in points, from the first one's side."""

    word: str  # "better", "worse", or as in `fastxfer.comparing`: "equivalent", "undecided"
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """Who leads one target in one setting: `table` holds one cell a backbone, best first."""

    target: str
    ways: str
    shots: str
    probe: str
    table: pd.DataFrame
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # the leader against others, where they were compared

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
        """Backbones that these rows do not tell from the leader: by paired comparison, else by overlapping intervals."""
        others = self.table.iloc[1:]
        if self.verdicts:
            return [str(b) for b in others["label"] if b not in self.verdicts or self.verdicts[b].word != "better"]
        return [str(b) for b in others.loc[others["high"] >= self.best["low"], "label"]]

    @property
    def alike(self) -> list[str]:
        """Backbones that are as good as the leader: no difference that matters is left."""
        return [
            str(b) for b in self.table.iloc[1:]["label"] if b in self.verdicts and self.verdicts[b].word == EQUIVALENT
        ]

    @property
    def is_shared(self) -> bool:
        """Whether all that are not told from the leader are as good as it."""
        return bool(self.tied) and self.tied == self.alike

    @property
    def has_intervals(self) -> bool:
        return bool(np.isfinite(self.table[["low", "high"]].to_numpy()).all())

    @property
    def decided(self) -> bool:
        return len(self.table) > 1 and (bool(self.verdicts) or self.has_intervals) and not self.tied


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


@dataclass(frozen=True)
class Usual:
    """The settings in which a target is discussed; None where it has no such cells.

    ways, probe, shots: of few-shot cells; full: the probe on the whole train split
    """

    ways: str | None
    probe: str | None
    shots: str | None
    full: str | None


def usual(cells: pd.DataFrame) -> dict[str, Usual]:
    """Of each target: the ways that most targets have, 5 shots where there are any, the preferred probes."""
    common, found = main_ways(cells), {}
    for target, here in cells.groupby("target", sort=False):
        few = here[here["shots"] != FULL]
        ways = common if common in set(few["ways"]) else main_ways(here)
        probe = next(iter(probes(few[few["ways"] == ways], full=False)), None)
        shots = main_shots(few[few["probe"] == probe], ways) if ways and probe else None
        found[str(target)] = Usual(ways, probe, shots, next(iter(probes(here, full=True)), None))
    return found


def probes(cells: pd.DataFrame, *, full: bool) -> list[str]:
    """The probes on few-shot or on full rows, in the order in which they are preferred; fine-tunings left out."""
    here = cells[((cells["shots"] == FULL) == full) & (cells["probe"] != FINETUNE)]
    return ordered(here["probe"], PROBE_ORDER)
