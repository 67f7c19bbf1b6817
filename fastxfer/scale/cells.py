"""Fine-tunings, or episodes, as cells: what a network of some size and source reached on a target at some shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.paper import headline, paper_results, paper_runs
from fastxfer.paper.facts import MODELS, SOURCES, TARGETS

Floats = NDArray[np.float64]
Where = Mapping[str, Sequence[str]]

FULL = "full"
RUNS = ["target", "source", "model", "shots", "unit", "value"]
PAIR = ["target", "source", "model", "shots", "source_other", "model_other"]
FACTS = ["parameters", "images", "relation"]
"""Columns that say what a run was: of the model, of the source, and of how source and target are related."""


def paper_cells() -> pd.DataFrame:
    """The paper's runs in their headline metrics as `cells_of` gives them, seeds paired."""
    return cells_of(_with_facts(paper_runs().rename(columns={"seed": "unit"})))


def paper_cells_by(metric: str) -> pd.DataFrame:
    """The paper's cells in another metric ("mean_auc"), of which only means and sds over seeds are known: unpaired.

    v is then the mean of a target's and number of shots' variances over seeds, divided by the seeds: too large where seeds
    share their luck, as few shots do.
    """
    cells = paper_results()
    if metric not in set(cells["metric"]):
        known = list(dict.fromkeys(cells["metric"]))
        raise UsageError(f"the paper has no metric '{metric}', but {', '.join(known)}.{nearest(metric, known)}")
    cells = cells[cells["metric"] == metric].rename(columns={"mean": "value", "n_seeds": "n"})
    pooled = (cells["sd"] ** 2).groupby([cells["target"], cells["shots"]]).transform("mean")
    df = (cells["n"] - 1).groupby([cells["target"], cells["shots"]]).transform("sum")
    cells = cells.assign(v=pooled / cells["n"], df=df)
    return _with_facts(cells)[["target", "source", "model", "shots", "value", "v", "df", "n", *FACTS]].reset_index(
        drop=True
    )


def paper_pairs(cells: Where, others: Where, *, on: Sequence[str], metric: str = "headline") -> pd.DataFrame:
    """Differences between cells of the paper and others that agree in `on`, as `differences` gives them.

    cells, others: column -> values, of target, source, model, shots;  metric: "headline", paired by seed, or another,
    of which only means and sds are known: unpaired, by Welch

    v_images: what the choice of test images adds to v at most, where the metric is accuracy, else NaN. Two networks that err
    independently have it; those that err on the same images have less.
    """
    if metric == "headline":
        pairs = differences(paper_runs().rename(columns={"seed": "unit"}), cells, others, on=on)
        accuracy = np.array([headline(target) == "acc" for target in pairs["target"]], bool)
    else:
        pairs = _unpaired(paper_results().query("metric == @metric"), cells, others, on)
        accuracy = np.full(len(pairs), metric == "acc")
    own, other = pairs["value_cell"], pairs["value_other"]
    n_test = pairs["target"].map(lambda t: TARGETS[t].n_test)
    both = (own * (1 - own) + other * (1 - other)) / n_test
    return pairs.assign(v_images=both.where(accuracy))


def differences(runs: pd.DataFrame, cells: Where, others: Where, *, on: Sequence[str]) -> pd.DataFrame:
    """A line a pair of cells that agree in `on`: value (mean of paired differences), v (its variance), df, n (units both
    have), value_cell and value_other.

    Runs of one unit (a seed, an episode) saw the same images, so what the draw brought them cancels. A variance of few units
    is drawn towards what all pairs of configurations at this target and number of shots have in common (`squeeze`).
    """
    a, b = _where(runs, cells), _where(runs, others)
    pairs = a.merge(b, on=list(dict.fromkeys([*on, "target", "shots", "unit"])), suffixes=("", "_other"))
    pairs = pairs.assign(d=pairs["value"] - pairs["value_other"]).rename(columns={"value": "value_cell"})
    named = [c for c in PAIR if c in pairs]
    grouped = pairs.groupby(named, sort=False, observed=True)
    frame = grouped.agg(
        value=("d", "mean"),
        s=("d", "var"),
        n=("d", "size"),
        value_cell=("value_cell", "mean"),
        value_other=("value_other", "mean"),
    ).reset_index()
    frame = frame[frame["n"] > 1].reset_index(drop=True)
    v, df = np.array(frame["s"] / frame["n"]), np.array(frame["n"] - 1, float)
    configured = runs.pivot_table("value", ["target", "shots", "unit"], ["source", "model"], observed=True)
    for (target, shots), rows in frame.groupby(["target", "shots"], sort=False).indices.items():
        wide = configured.loc[(target, shots)].dropna(axis=1, how="all").dropna()
        units, count = wide.shape
        i, j = np.triu_indices(count, 1)
        family = (
            (wide.to_numpy()[:, i] - wide.to_numpy()[:, j]).var(axis=0, ddof=1) / units if units > 1 else np.zeros(0)
        )
        v[rows], df[rows] = squeeze(v[rows], df[rows], family, np.full(len(family), units - 1.0))
        # Pairs share configurations: all of them together know no more than the cells they are made of.
        df[rows] = np.minimum(df[rows], max((units - 1) * (count - 1), 1))
    return frame.assign(v=v, df=df).drop(columns="s")


def _unpaired(table: pd.DataFrame, cells: Where, others: Where, on: Sequence[str]) -> pd.DataFrame:
    v, df = np.array(table["sd"] ** 2 / table["n_seeds"]), np.array(table["n_seeds"] - 1, float)
    for rows in table.groupby(["target", "shots"], sort=False).indices.values():
        v[rows], df[rows] = squeeze(v[rows], df[rows])
    table = table.assign(v=v, df=df, value=table["mean"])
    pairs = _where(table, cells).merge(_where(table, others), on=list(on), suffixes=("", "_other"))
    a, b = pairs["v"], pairs["v_other"]
    frame = pairs[[c for c in PAIR if c in pairs]]
    return frame.assign(
        value=pairs["value"] - pairs["value_other"],
        n=pairs[["n_seeds", "n_seeds_other"]].min(axis=1),
        value_cell=pairs["value"],
        value_other=pairs["value_other"],
        v=a + b,
        df=(a + b) ** 2 / (a**2 / pairs["df"] + b**2 / pairs["df_other"]),
    )


def squeeze(
    variances: Floats, df: Floats, family: Floats | None = None, family_df: Floats | None = None
) -> tuple[Floats, Floats]:
    """Variances drawn towards what a family of them (None: they themselves) has in common, and the degrees of freedom they then
    have (Smyth 2004).

    True variances are taken for draws from a scaled inverse χ² distribution, whose scale s₀² and degrees of freedom d₀ follow
    from mean and variance of the family's logarithms; a variance becomes (d₀ s₀² + d s²) / (d₀ + d). With a family of fewer
    than three that are not 0 they stay as they are.
    """
    family, family_df = (variances, df) if family is None or family_df is None else (family, family_df)
    known = family > 0
    if known.sum() < 3:
        return variances.astype(float), df.astype(float)
    half = family_df[known] / 2
    logs = np.log(family[known]) - special.digamma(half) + np.log(half)
    beyond = logs.var(ddof=1) - special.polygamma(1, half).mean()
    if beyond <= 0:  # no more spread than chance: they are one variance
        return np.full(len(variances), float(np.exp(logs.mean()))), np.full(len(df), float(family_df[known].sum()))
    prior = 2 * float(optimize.brentq(lambda x: special.polygamma(1, x) - beyond, 1e-8, 1e8))
    scale = float(np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2)))
    return (prior * scale + df * variances) / (prior + df), prior + df.astype(float)


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs (RUNS and FACTS, a line a fine-tuning or episode) as cells: target, source, model, shots, value, v, df, n, FACTS.

    Within a target and number of shots, units are what runs have in common (a seed's or episode's draw of images): only
    units that all cells have count, and v, the variance of a cell's mean, is that of what is left when cells' and units'
    means are taken away (two-way analysis of variance), divided by the units. What a unit has done to all cells alike is
    no noise of their differences. A single cell, or a single unit, has v 0 and df 0.
    """
    missing = [c for c in (*RUNS, *FACTS) if c not in runs]
    if missing:
        raise DataError(f"runs lack the columns {', '.join(missing)}")
    found = []
    key = ["source", "model"]
    for (target, shots), group in runs.groupby(["target", "shots"], sort=False, observed=True):
        wide = group.pivot_table("value", "unit", key, observed=True)
        whole = wide.dropna()
        if whole.empty:
            raise DataError(
                f"'{target}' at {shots} shots: no seed or episode was run by all of {wide.shape[1]} configurations, "
                "so nothing can be paired; run what is missing, or leave a configuration out"
            )
        units, count = whole.shape
        left = whole - whole.mean() - whole.mean(axis=1).to_numpy()[:, None] + whole.to_numpy().mean()
        df = (units - 1) * (count - 1)
        v = float((left.to_numpy() ** 2).sum() / df / units) if df else 0.0
        means = whole.mean().rename("value").reset_index()
        found.append(means.assign(target=target, shots=shots, v=v, df=df, n=units))
    cells = pd.concat(found, ignore_index=True)
    facts = runs.drop_duplicates(["target", "source", "model"])[["target", "source", "model", *FACTS]]
    cells = cells.merge(facts, on=["target", "source", "model"], how="left")
    return cells[["target", "source", "model", "shots", "value", "v", "df", "n", *FACTS]]


def _with_facts(cells: pd.DataFrame) -> pd.DataFrame:
    relation = [
        f"{SOURCES[s].domain} to {TARGETS[t].domain}" for s, t in zip(cells["source"], cells["target"], strict=True)
    ]
    return cells.assign(
        parameters=cells["model"].map(lambda m: MODELS[m].parameters),
        images=cells["source"].map(lambda s: SOURCES[s].images),
        relation=relation,
    )


def _where(table: pd.DataFrame, chosen: Where) -> pd.DataFrame:
    for column, values in chosen.items():
        table = table[table[column].isin(values)]
    return table
