"""Which cells a comparison speaks of: the metric of a target, the params of a probe, the name of a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.budgets import COSTS, FINETUNE, is_stopped
from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.metrics import lower_is_better, meaning
from fastxfer.probes import probe_options
from fastxfer.progress import say
from fastxfer.protocol import episode_options
from fastxfer.results import CELL

METRIC_ORDER = ("accuracy", "auc", "balanced_accuracy", "average_precision", "f1")
PROBE_ORDER = ("logistic", "ridge", "prototype", "knn", FINETUNE)
SPLIT_ORDER = ("test", "val", "train")
SCORES = ("transferability",)  # rows that rank backbones, and are values of no metric

# Options of `only` and of the command line -> columns of the cells.
COLUMNS = {
    "target": "target",
    "backbone": "label",
    "ways": "ways",
    "shots": "shots",
    "probe": "probe",
    "params": "params",
    "split": "split",
    "metric": "metric",
}


def natural_key(text: str) -> list[tuple[int, float, str]]:
    """Sorts "5" before "10" and both before "all"; for shots, ways and params ("l2=0.04")."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(text))
    return [(0, float(p), "") if re.fullmatch(r"\d.*", p) else (1, 0.0, p) for p in parts if p]


def ordered(values: pd.Series, preference: tuple[str, ...]) -> list[str]:
    """Distinct values: the preferred ones first, in that order, then the others naturally sorted."""
    present = {str(v) for v in values.unique()}
    return [p for p in preference if p in present] + sorted(present - set(preference), key=natural_key)


def of_unknown_metrics(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are of a metric that nobody here knows, so that which of two values is the better cannot be told.

    They were made where another package was installed, and it is said which they are.
    """
    names = [str(name) for name in rows["metric"].unique()]
    unknown = [m for m in names if m not in (*COSTS, *SCORES) and meaning(m) is None]
    if unknown:
        say(
            f"left out: values of {', '.join(unknown)}, since no package here says what they mean; `fastxfer doctor` "
            "lists what packages bring"
        )
    return rows["metric"].isin(unknown).to_numpy()


def add_choices(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells (columns `CELL`, mean) with plain text columns and three more:

    label:  (str) the backbone's name, with its source where the name alone is ambiguous
    main:   (bool) whether `metric` is the one its target is discussed in
    chosen: (bool) whether `params` are those shown for this probe unless another choice is asked for
    """
    cells = cells.astype({column: str for column in CELL if column != "seed"})
    sources = cells.groupby("backbone")["source"].nunique()
    ambiguous = cells["backbone"].map(sources) > 1
    cells["label"] = np.where(ambiguous, cells["backbone"] + " (" + cells["source"] + ")", cells["backbone"])
    main = {t: ordered(g["metric"], METRIC_ORDER)[0] for t, g in cells.groupby("target")}
    cells["main"] = cells["metric"] == cells["target"].map(main)
    cells["chosen"] = _chosen(cells)
    return cells


def _chosen(cells: pd.DataFrame) -> NDArray[np.bool_]:
    """Of several params of a probe: the best on validation rows, else (none there) the middle one of the grid.

    Never the best on test rows: that would make every number shown too high. Params that speak of another kind of
    episodes, or of other features or another way to choose, are no grid: the plainest kind is chosen from.
    """
    setting = ["source", "backbone", "target", "ways", "shots", "seed", "probe"]
    chosen = np.ones(len(cells), dtype=bool)
    names, splits = (cells[name].to_numpy(object) for name in ("params", "split"))
    sign = np.where(cells["metric"].map(lower_is_better), -1.0, 1.0)
    means, main = (sign * cells["mean"]).fillna(-np.inf).to_numpy(float), cells["main"].to_numpy(bool)
    for at in cells.groupby(setting, sort=False).indices.values():
        kinds = {p: episode_options(p) + probe_options(p) for p in dict.fromkeys(names[at])}
        if len(kinds) == 1:
            continue
        plainest = min(kinds.values(), key=lambda kind: (len(kind), kind))
        params = sorted((p for p, kind in kinds.items() if kind == plainest), key=natural_key)
        on_val = [i for i in at if splits[i] == "val" and main[i] and names[i] in params]
        best = names[max(on_val, key=lambda i: means[i])] if on_val else params[len(params) // 2]
        chosen[at] = names[at] == best
    return chosen


def comparable_cells(rows: pd.DataFrame, only: Mapping[str, Sequence[str]]) -> tuple[pd.DataFrame, list[Any]]:
    """The cells that `only` leaves, each with the positions of its rows; those of costs and stopped runs are no cells.

    only: of COLUMNS, the values asked for. What is not named is all there is, but: of the splits the first of
          SPLIT_ORDER, of the metrics the one each target is discussed in, of the params the chosen ones.

    `UsageError` for a value that no cell has, nearest offered; `DataError` where there are no rows.
    """
    kept = ~(rows["metric"].isin(COSTS) | is_stopped(rows) | of_unknown_metrics(rows)).to_numpy()
    rows = rows[kept]
    if rows.empty:
        raise DataError("there are no results to compare: `fastxfer fewshot` or `fastxfer probe` makes some")
    groups = rows.groupby([*CELL, "episodes_hash"], observed=True, sort=True)
    cells = groups.agg(mean=("value", "mean"), n=("value", "size")).reset_index()
    order = np.argsort(groups.ngroup().to_numpy(), kind="stable")
    at = np.split(np.flatnonzero(kept)[order], np.cumsum(cells["n"].to_numpy())[:-1])
    # A list of episodes that has since been extended leaves a shorter cell behind: the longest one counts.
    cells = add_choices(cells.sort_values("n", ascending=False, kind="stable").drop_duplicates(list(CELL)))
    keep = np.ones(len(cells), bool)
    for name, column in COLUMNS.items():
        asked = [str(value) for value in only.get(name, ())]
        known = set(cells[column])
        for value in asked:
            if value not in known:
                raise UsageError(
                    f"--{name} {value}: no result has it.{nearest(value, known)} There are: "
                    f"{', '.join(sorted(known, key=natural_key)[:20])}"
                )
        if asked:
            keep &= cells[column].isin(asked).to_numpy()
        elif name == "split":
            keep &= (cells["split"] == ordered(cells["split"], SPLIT_ORDER)[0]).to_numpy()
        elif name == "metric":
            keep &= cells["main"].to_numpy()
        elif name == "params":
            keep &= cells["chosen"].to_numpy()
    cells = cells[keep].sort_index()
    if cells.empty:
        raise UsageError("no result has all of what was asked for: ask for less")
    return cells, [at[i] for i in cells.index]
