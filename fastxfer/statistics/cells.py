"""One line a cell: its mean and its intervals, each over a population that is named, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastxfer.metrics import Array
from fastxfer.metrics.influence import INFLUENCES
from fastxfer.results import CELL, NO_EPISODE
from fastxfer.statistics.intervals import (
    FEWEST_GROUPS,
    ImageVariance,
    interval_over_images,
    t_interval,
    variance_over_images,
)

EPISODES = "episodes"
TEST_IMAGES = "test images"
EPISODES_AND_IMAGES = "episodes and test images"


def summarise(rows: pd.DataFrame, level: float = 0.95, *, images: pd.DataFrame | None = None) -> pd.DataFrame:
    """One line a cell: mean, sd, n, undefined, n_queries, converged (share), episodes_hash and two intervals:

    low, high, interval                     over the narrowest population there is, which `interval` names
    low_images, high_images, interval_images  over test images, too
    reason                                  in words, why one of them is NaN; "" where both are there

    n counts episodes, undefined those whose value is NaN; mean, sd and intervals are over the others. Cells with episodes
    have the t interval of the mean **over episodes**: what other draws of support and queries from these same images would
    give. It says nothing of new images, since episodes share theirs; the one **over episodes and test images** does, if
    `images` (`ResultStore.read_images`) knows the cell. Cells without episodes (full probes, fine-tunings) have one
    interval, **over test images**, which their row carries. See docs/statistics.md.
    """
    keys = [*CELL, "episodes_hash"]
    groups = rows.groupby(keys, observed=True, sort=True)
    summary = groups.agg(
        mean=("value", "mean"),
        sd=("value", "std"),
        n=("value", "size"),
        defined=("value", "count"),
        n_queries=("n_queries", "first"),
        converged=("converged", "mean"),
        low=("low", "first"),
        high=("high", "first"),
        episode=("episode", "min"),
    ).reset_index()
    of_episodes = (summary.pop("episode") != NO_EPISODE).to_numpy()
    defined = summary.pop("defined").to_numpy()
    low, high = t_interval(summary["mean"], summary["sd"] ** 2 / defined, defined - 1, level)
    summary["low"] = np.where(of_episodes, low, summary["low"])
    summary["high"] = np.where(of_episodes, high, summary["high"])
    summary["interval"] = np.where(of_episodes, EPISODES, TEST_IMAGES)
    summary["undefined"] = summary["n"] - defined
    over_images = _over_images(summary, defined, of_episodes, images, level)
    for name in ("low", "high"):
        summary[f"{name}_images"] = np.where(of_episodes, over_images[name], summary[name])
    summary["interval_images"] = np.where(of_episodes, EPISODES_AND_IMAGES, TEST_IMAGES)
    summary["reason"] = np.where(np.isnan(summary["low_images"]), over_images["reason"], "")
    return summary


def _over_images(
    summary: pd.DataFrame, n: Array, of_episodes: Array, images: pd.DataFrame | None, level: float
) -> dict[str, Array]:
    """low, high and reason (n_cells,) of the interval over test images, also where it has to be without one."""
    metric = summary["metric"].astype(str).to_numpy()
    numbers, found = _by_cell(summary, images)
    known = numbers >= 0
    at = np.where(known, numbers, 0)
    groups, more = found.images.groups[at], found.rarity[at]
    mean = summary["mean"].to_numpy()
    of_a_class = np.array([":" in m for m in metric], bool)
    ranking = ~np.isin(metric, ("accuracy", "balanced_accuracy"))
    reason = np.full(len(summary), "", object)
    for holds, words in (
        (known & ranking & np.isin(mean, (0.0, 1.0)), "nothing is ranked wrong, or right: no telling how that varies"),
        (
            known & np.isnan(more) & (metric == "auc"),
            "a class has too few positives or negatives among the test images",
        ),
        (known & np.isnan(more) & (metric != "auc"), "a class has too few test images"),
        (known & (groups < FEWEST_GROUPS), f"fewer than {FEWEST_GROUPS} patients or test images"),
        (~known, "made before the influences of test images were kept, or read without them"),
        (~known & of_a_class, "influences are kept for means over classes alone"),
        (~of_episodes & of_a_class, "too few test images of the class, or none on the wrong side"),
        (~np.isin(metric, list(INFLUENCES)) & ~of_a_class, "a metric without influences of images"),
        (of_episodes & (n < 2), "one episode: no telling how they vary"),
        (np.isnan(mean), "no value is defined"),
    ):
        reason[np.asarray(holds, bool)] = words
    low, high = np.full(len(summary), np.nan), np.full(len(summary), np.nan)
    variance = np.nan_to_num(summary["sd"].to_numpy() ** 2 / n)
    for name in np.unique(metric[reason == ""]):
        here = (metric == name) & (reason == "")
        low[here], high[here] = interval_over_images(
            name, mean[here], variance[here], n[here], found.images.take(at[here]), more[here], level
        )
    return {"low": low, "high": high, "reason": reason}


@dataclass(frozen=True, eq=False)
class _Cells:
    images: ImageVariance
    rarity: Array


def _by_cell(summary: pd.DataFrame, images: pd.DataFrame | None) -> tuple[Array, _Cells]:
    """(n_cells,) which of the cells of `images` a line of the summary is, −1 for none; and what these are."""
    if images is None or images.empty:
        nothing = np.zeros(1)
        return np.full(len(summary), -1), _Cells(ImageVariance(*[nothing] * 6), nothing)
    key = list(CELL)
    number = images.groupby(key, observed=True, sort=False).ngroup().to_numpy()
    first = np.flatnonzero(np.r_[True, np.diff(number) != 0])
    firsts = images.iloc[first]
    place = {cell: i for i, cell in enumerate(firsts[key].itertuples(index=False, name=None))}
    episodes = firsts["episodes"].to_numpy()
    group, n, total, odd = (images[name].to_numpy() for name in ("group", "n", "sum", "odd"))
    found = _Cells(variance_over_images(number, group, n, total, odd, episodes), firsts["rarity"].to_numpy())
    cells = summary[key].itertuples(index=False, name=None)
    return np.array([place.get(cell, -1) for cell in cells], np.int64), found
