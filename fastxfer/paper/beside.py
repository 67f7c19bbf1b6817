"""The paper's cells beside ours: the same target, source, size and shots, and which differences are beyond both noises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fastxfer.budgets import FINETUNE, is_stopped
from fastxfer.errors import UsageError, nearest
from fastxfer.paper import headline, paper_results
from fastxfer.paper.facts import METRICS, paper_model, paper_source, paper_target
from fastxfer.paper.notes import notes_on
from fastxfer.results import CELL
from fastxfer.statistics import EPISODES, summarise

KEYS = ["target", "metric", "source", "model", "shots"]
OURS = ["our_target", "backbone", "probe", "preset", "ours", "ours_se", "ours_n", "noise"]
LEVEL = 0.95
_SHOTS = ("1", "5", "10", "100", "500", "full")


def beside(
    rows: pd.DataFrame | None = None,
    *,
    architectures: Mapping[str, str] | None = None,
    **chosen: Sequence[str],
) -> pd.DataFrame:
    """A line a cell of the paper and setting of ours that corresponds (or without one: paper alone), in the paper's order.

    rows:          results; those on test, of all ways, count
    architectures: backbone -> architecture, where its name does not tell which of the paper's models it is
    chosen:        target, source, model, shots, metric: which of the paper's cells (default: each target's headline metric)

    Columns: KEYS; paper, paper_sd, paper_n; our_target, backbone, probe, preset (a fine-tuning's or probe's, "" for none),
    ours, ours_se, ours_n, noise (what ours_se is over: "seeds", "episodes" or "test images"); difference (ours less the
    paper's) with low and high by Welch's t, p, `beyond`: whether the difference is beyond both noises, by Holm over all that
    are shown; notes (keys of `NOTES`). `UsageError` for a value that the paper does not have.
    """
    cells = _paper_cells(chosen)
    ours = (
        _our_cells(rows, architectures or {})
        if rows is not None and len(rows)
        else pd.DataFrame(columns=[*KEYS, *OURS])
    )
    table = cells.merge(ours, on=KEYS, how="left", sort=False)
    v_paper, v_ours = table["paper_sd"] ** 2 / table["paper_n"], table["ours_se"].astype(float) ** 2
    table["difference"] = table["ours"].astype(float) - table["paper"]
    variance = v_paper + v_ours
    # Ours over one run's test images counts as known; over seeds or episodes as so many values.
    df_ours = np.where(table["noise"] == "test images", np.inf, table["ours_n"].astype(float) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / (v_paper**2 / (table["paper_n"] - 1) + v_ours**2 / df_ours)
        half = stats.t.ppf(0.5 + LEVEL / 2, df) * np.sqrt(variance)
        table["p"] = 2 * stats.t.sf(np.abs(table["difference"]) / np.sqrt(variance), df)
    table["low"], table["high"] = table["difference"] - half, table["difference"] + half
    table["beyond"] = False
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "beyond"] = multipletests(table.loc[tested, "p"], 1 - LEVEL, method="holm")[0]
    table["notes"] = notes_on(table)
    return table[[*KEYS, "paper", "paper_sd", "paper_n", *OURS, "difference", "low", "high", "p", "beyond", "notes"]]


def _paper_cells(chosen: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    cells = paper_results()
    for column, values in chosen.items():
        known = list(dict.fromkeys(cells[column]))
        for value in values:
            if value not in known:
                raise UsageError(f"the paper has no {column} '{value}', but {', '.join(known)}.{nearest(value, known)}")
        if values:
            cells = cells[cells[column].isin(values)]
    if not chosen.get("metric"):
        cells = cells[cells["metric"] == cells["target"].map(headline)]
    # Targets, sources and models in the order of the paper's results, shots by their number.
    cells = cells.rename(columns={"mean": "paper", "sd": "paper_sd", "n_seeds": "paper_n"})
    order = cells["shots"].map(_SHOTS.index)
    return (
        cells.assign(_o=order)
        .sort_values(["target", "metric", "source", "model", "_o"])[[*KEYS, "paper", "paper_sd", "paper_n"]]
        .reset_index(drop=True)
    )


def _our_cells(rows: pd.DataFrame, architectures: Mapping[str, str]) -> pd.DataFrame:
    """Ours under the paper's names, in [*KEYS, *OURS]: a line a (target, backbone, probe, params)."""
    ours = rows[(rows["split"] == "test") & (rows["ways"] == "all") & rows["metric"].isin(METRICS.values())]
    ours = ours[~is_stopped(ours)]
    if ours.empty:
        return pd.DataFrame(columns=[*KEYS, *OURS])
    cells = summarise(ours)
    cells = cells.astype({column: str for column in CELL if column != "seed"})
    cells["our_target"] = cells["target"]
    cells["target"] = cells["our_target"].map(paper_target)
    cells["source"] = cells["source"].map(paper_source)
    cells["model"] = [paper_model(b, architectures.get(b, "")) for b in cells["backbone"]]
    theirs = {our: their for their, our in METRICS.items()}
    cells["metric"] = cells["metric"].map(theirs)
    cells = cells.dropna(subset=KEYS)
    setting = [*KEYS, "our_target", "backbone", "probe", "params"]
    lines = []
    for key, group in cells.groupby(setting, sort=True):
        named = dict(zip(setting, key, strict=True))
        lines.append({**named, "preset": _preset(named["params"]), **_mean(group)})
    found = pd.DataFrame(lines, columns=[*setting, *OURS[3:]])
    # Fine-tunings first: they are what the paper's cells are.
    found = found.assign(_o=found["probe"] != FINETUNE).sort_values(
        ["_o", "probe", "backbone", "params"], kind="stable"
    )
    return found[[*KEYS, *OURS]]


def _mean(group: pd.DataFrame) -> dict[str, object]:
    """Of the seeds of a setting: their mean, its standard error and what that is over."""
    values = group["mean"].to_numpy()
    if len(values) > 1:
        return {"ours": values.mean(), "ours_se": stats.sem(values), "ours_n": len(values), "noise": "seeds"}
    only = group.iloc[0]
    if only["interval"] == EPISODES:
        return {
            "ours": only["mean"],
            "ours_se": only["sd"] / np.sqrt(only["n"]),
            "ours_n": only["n"],
            "noise": "episodes",
        }
    se = (only["high"] - only["low"]) / (2 * stats.norm.ppf(0.5 + LEVEL / 2))
    return {"ours": only["mean"], "ours_se": se, "ours_n": 1, "noise": "test images"}


def _preset(params: str) -> str:
    words = dict(word.partition("=")[::2] for word in params.split(";"))
    return words.get("preset", "")
