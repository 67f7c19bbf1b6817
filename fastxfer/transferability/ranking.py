"""Do scores rank backbones as fine-tuning does?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from fastxfer.budgets import FINETUNE, finished
from fastxfer.errors import DataError
from fastxfer.plans import CRITERIA
from fastxfer.results import NO_EPISODE

METRIC = "transferability"
LEAST = 3  # backbones, below which a rank correlation says nothing


def rank_agreement(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a (target, score): how its ranking of backbones agrees with that of full fine-tunings on test.

    Columns: target, score, metric (of the fine-tunings), n_backbones, weighted_tau (Vigna 2015: pairs
    at the top count most, as in the scores' papers), spearman, p (of spearman, against no agreement); and per score a line of target "" with means over
    targets. Scores are rows of metric "transferability", and validation rows of full probes, so that they can be
    compared; fine-tunings are those of whole train splits, their mean over seeds, each backbone at its best settings on
    validation where there are several.

    `DataError` where no target has LEAST backbones with both.
    """
    rows = rows[(rows["episode"] == NO_EPISODE) & (rows["shots"] == "full") & rows["value"].notna()]
    rows = rows.astype(dict.fromkeys(("backbone", "target", "probe", "params", "split", "metric"), str))
    tuned = _tuned(rows)
    scored = _scored(rows)
    found = []
    for (target, score), group in scored.groupby(["target", "score"]):
        for metric in CRITERIA:
            both = group.merge(tuned[(tuned["target"] == target) & (tuned["metric"] == metric)], on="backbone")
            if len(both) >= LEAST:
                found.append({"target": target, "score": score, "metric": metric, **_agreement(both)})
                break
    if not found:
        raise DataError(
            f"no target has {LEAST} backbones with both a score and a fine-tuning of the whole train split: "
            "run `fastxfer transferability` and `fastxfer finetune` first"
        )
    each = pd.DataFrame(found)
    means = each.groupby("score", as_index=False).agg(
        n_backbones=("n_backbones", "sum"), weighted_tau=("weighted_tau", "mean"), spearman=("spearman", "mean")
    )
    means = means.assign(target="", metric="", p=np.nan)[list(each.columns)]
    return pd.concat([each, means.sort_values("weighted_tau", ascending=False)], ignore_index=True)


def _agreement(both: pd.DataFrame) -> dict[str, float]:
    """Of columns score_value and tuned, (n_backbones,) each."""
    tau = stats.weightedtau(both["score_value"], both["tuned"]).statistic
    rho = stats.spearmanr(both["score_value"], both["tuned"])
    return {
        "n_backbones": len(both),
        "weighted_tau": float(tau),
        "spearman": float(rho.statistic),
        "p": float(rho.pvalue),
    }


def _tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """(backbone, target, metric, tuned) on test, of the settings that were best on validation, or of all."""
    done = finished(rows)
    key = ["backbone", "target", "metric"]
    val = done[done["split"] == "val"].groupby([*key, "params"], as_index=False)["value"].mean()
    best = (
        val.sort_values("value", ascending=False)
        .drop_duplicates(key)[[*key, "params"]]
        .rename(columns={"params": "best"})
    )
    test = done[done["split"] == "test"].merge(best, on=key, how="left")
    test = test[test["best"].isna() | (test["best"] == test["params"])]
    return test.groupby(key, as_index=False)["value"].mean().rename(columns={"value": "tuned"})


def _scored(rows: pd.DataFrame) -> pd.DataFrame:
    """(backbone, target, score, score_value)."""
    own = rows[rows["metric"] == METRIC].assign(score=lambda f: f["probe"])
    val = rows[(rows["split"] == "val") & (rows["probe"] != FINETUNE)]
    probes = []
    for _, group in val.groupby("target"):
        metric = next((m for m in CRITERIA if (group["metric"] == m).any()), None)
        probes.append(group[group["metric"] == metric].assign(score=lambda f: f["probe"] + " (full, val)"))
    every = pd.concat([own, *probes])
    return (
        every.groupby(["backbone", "target", "score"], as_index=False)["value"]
        .mean()
        .rename(columns={"value": "score_value"})
    )
