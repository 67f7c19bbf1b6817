"""What results say before a choice: full probes on validation, what fine-tunings have given and cost, and the belief made of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fastxfer.budgets import FINETUNE, Rates, finished
from fastxfer.errors import DataError
from fastxfer.plans import CRITERIA, PlanEntry
from fastxfer.results import NO_EPISODE
from fastxfer.selection.belief import Belief, Floats
from fastxfer.selection.model import Effects, believe, learn
from fastxfer.selection.noise import Noise

FINETUNED = "finetuned"  # in what is expected of a choice: what its fine-tuning has given

# A fine-tuning less its probe, in points: a level of the target's own; effects of backbone and source, and of how good the probe
# was and what was said beforehand (`foretellers`), all along straight lines that are the same for all targets.
_GAINS = Effects(
    level=("target",),
    groups=(("backbone",), ("source",)),
    slopes=(("probe", ()),),
    own=("target", "backbone"),
)
_RUNS = Noise(intercept=0.0, slope=0.0)  # a run on a whole train split repeats to about a point


def probed_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The best full probe on validation of each (target, backbone), best first in a target, by the metric that decides there.

    `DataError` where there is none. Test rows are not looked at.
    """
    val = rows[(rows["split"] == "val") & (rows["episode"] == NO_EPISODE) & (rows["shots"] == "full")]
    val = val[(val["probe"] != FINETUNE) & val["metric"].isin(CRITERIA) & val["value"].notna()]
    if val.empty:
        raise DataError("the results hold no validation rows of full probes to choose from: run `fastxfer probe` first")
    found = []
    for _, group in val.groupby("target", observed=True):
        metric = next(m for m in CRITERIA if (group["metric"] == m).any())
        ranked = group[group["metric"] == metric].sort_values(["value", "backbone"], ascending=[False, True])
        found.append(ranked.drop_duplicates("backbone"))
    texts = dict.fromkeys(("source", "backbone", "target", "probe", "params", "metric"), str)
    return pd.concat(found).astype(texts).reset_index(drop=True)


def foretellers(
    rows: pd.DataFrame, probed: pd.DataFrame, near: Mapping[tuple[str, str], float] | None = None
) -> pd.DataFrame:
    """(n, up to 2) what may foretell the gains of probed rows, each with mean 0 and standard deviation 1 within a target.

    transferability: the mean of those scores of `fastxfer transferability` that all pairs of the target have
    proximity:       less the distance of the backbone's source from the target, by (source, target); in the middle where unknown

    A column is left out where nothing is known.
    """
    target = probed["target"]
    pairs = pd.MultiIndex.from_frame(probed[["backbone", "target"]])
    found = pd.DataFrame(index=probed.index)
    scored = rows[(rows["metric"] == "transferability") & rows["value"].notna()]
    scored = scored.astype(dict.fromkeys(("backbone", "target", "probe"), str))
    each = scored.pivot_table(index=["backbone", "target"], columns="probe", values="value")
    each = each.reindex(pairs).set_axis(probed.index)
    each = each.where(each.notna().groupby(target).transform("all"))
    if each.notna().any(axis=None):
        found["transferability"] = _within(each.apply(_within, of=target).mean(axis="columns"), target)
    if near:
        distances = [near.get(pair, math.nan) for pair in zip(probed["source"], target, strict=True)]
        found["proximity"] = -_within(pd.Series(distances, probed.index, float), target)
    return found


def _within(values: pd.Series, of: pd.Series) -> pd.Series:
    """Values with mean 0 and standard deviation 1 in each target; 0 where they don't differ, or are unknown."""
    groups = values.groupby(of)
    spread = groups.transform("std", ddof=0)
    away = values - groups.transform("mean")
    return (away / spread.where(spread > 1e-12)).fillna(0.0)


@dataclass(frozen=True)
class Past:
    """What fine-tunings on whole train splits have shown on validation, and cost.

    tuned: (backbone, target, metric) -> the best value on val;  gains: a line each: target, metric, tuned less probed
    """

    tuned: dict[tuple[str, str, str], float]
    gains: pd.DataFrame
    rates: Rates

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Past:
        val = rows[(rows["split"] == "val") & (rows["shots"] == "full") & rows["value"].notna()]
        val = val.astype(dict.fromkeys(("backbone", "target", "metric", "params", "probe"), str))
        key = ["backbone", "target", "metric"]
        done = finished(val).groupby(key)["value"].max()
        probed = val[val["probe"] != FINETUNE].groupby(key)["value"].max()
        both = done.index.intersection(probed.index)
        gains = (done[both] - probed[both]).rename("gain").reset_index()
        return cls({key: float(v) for key, v in done.items()}, gains, Rates.of(rows))

    def only(self, probed: pd.DataFrame) -> Past:
        """What is known once these pairs alone have been fine-tuned: for replays, which do not ask what it cost."""
        some = zip(probed["backbone"], probed["target"], probed["metric"], strict=True)
        return Past({key: self.tuned[key] for key in some}, self.gains[:0], Rates(pd.DataFrame()))

    def value_of(self, row: Mapping[str, Any]) -> float | None:
        """What the fine-tuning of a probed row's backbone on its target has given; None where there was none."""
        return self.tuned.get((row["backbone"], row["target"], row["metric"]))

    def told(self, choice: PlanEntry) -> PlanEntry:
        """The choice with what is known of it: fine-tuned already, gain to be expected with its interval, seconds."""
        expected = dict(choice.expected)
        value = self.value_of({"backbone": choice.backbone, "target": choice.target, "metric": expected["metric"]})
        if value is not None:
            reason = f"{choice.reason}; fine-tuned already: {100 * value:.1f} on validation"
            return replace(choice, reason=reason, expected=expected | {FINETUNED: value}, estimated_seconds=0.0)
        alike = self.gains[self.gains["metric"] == expected["metric"]]
        here = alike[alike["target"] == choice.target]
        seen = (here if len(here) else alike)["gain"].to_numpy()
        if len(seen):
            # The t interval of one more gain; without two to compare there is none.
            half = (
                stats.t.ppf(0.975, len(seen) - 1) * seen.std(ddof=1) * math.sqrt(1 + 1 / len(seen))
                if len(seen) > 1
                else None
            )
            expected["gain"] = float(seen.mean())
            expected["gain_low"], expected["gain_high"] = (
                (None, None) if half is None else (float(seen.mean() - half), float(seen.mean() + half))
            )
            expected["gain_from"] = len(seen)
        seconds = self.rates.seconds_of(choice.backbone, choice.target)
        return replace(choice, expected=expected, estimated_seconds=seconds)


def intervals(probed: pd.DataFrame) -> Floats:
    """(n, 3) value, low and high of probed rows, in points."""
    return 100 * probed[["value", "low", "high"]].to_numpy(float)


def believe_rows(probed: pd.DataFrame, past: Past, foretold: pd.DataFrame | None = None) -> Belief:
    """What is believed of fine-tuning each probed row's backbone on its target, one run each, the past ones observed.

    A value is the probe's, and a gain (`_GAINS`); the probe itself is known to its interval over images. How far gains spread is learnt
    from the past where it has eight of them. So are the slopes along what was foretold (`foretellers`): none is taken for granted.
    """
    points = intervals(probed)
    middle = pd.Series(points[:, 0]).groupby(probed["target"]).transform("mean")
    table = probed.assign(probe=(points[:, 0] - middle) / 10, images=1.0)
    effects = _GAINS
    if foretold is not None:
        table = pd.concat([table, foretold], axis="columns")
        effects = replace(effects, slopes=(*effects.slopes, *((name, ()) for name in foretold)))
    tuned = [past.value_of(row) for row in table.to_dict("records")]
    done = [i for i, value in enumerate(tuned) if value is not None]
    results = np.array([100 * value for value in tuned if value is not None])
    known = table.iloc[done].assign(value=results - points[done, 0], variance=1.0)
    model = learn(effects, known).forgetful()
    belief = believe(model, table, _RUNS, dof=known["target"].nunique())
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num((points[:, 2] - points[:, 1]) / (2 * stats.norm.ppf(0.975)))
    both = np.tile(np.diag(error**2), (2, 2))  # of a value, and of the one run of it
    belief = replace(belief, mean=belief.mean + np.tile(points[:, 0], 2), covariance=belief.covariance + both)
    return belief.observe(done, results)
