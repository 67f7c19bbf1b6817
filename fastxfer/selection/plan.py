"""What deserves a fine-tuning: chosen from validation rows only, within a budget, each choice with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from fastxfer.budgets import FINETUNE, Rates, finished
from fastxfer.errors import DataError, UsageError
from fastxfer.files import write_whole
from fastxfer.plans import CRITERIA, PLAN_VERSION, PlanEntry
from fastxfer.results import NO_EPISODE

FINETUNED = "finetuned"  # in what is expected of a choice: what its fine-tuning has given


@dataclass(frozen=True)
class Plan:
    """What to fine-tune, best first, and what not, with reasons."""

    store: str
    policy: str
    budget: int
    entries: list[PlanEntry]
    rejected: list[PlanEntry]

    def as_dict(self) -> dict[str, Any]:
        """The plan as its JSON file holds it."""
        return {
            "version": PLAN_VERSION,
            "store": self.store,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "policy": self.policy,
            "budget": {"runs": self.budget},
            "entries": [_fields(entry) for entry in self.entries],
            "rejected": [_fields(entry) for entry in self.rejected],
        }

    def write(self, path: Path) -> None:
        """Write the plan, whole or not at all."""
        content = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, default=str) + "\n"
        write_whole(path, content.encode())


def _fields(entry: PlanEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name != "number"}


def select(
    rows: pd.DataFrame,
    *,
    store: str,
    budget: int,
    top: int = 1,
    checkpoints: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
) -> Plan:
    """Per target, the `top` backbones by the full probe on validation, and those that its interval cannot tell apart.

    rows         results; only `split == "val"` rows of full probes are looked at, so that test stays unseen
    budget       number of fine-tunings at most. The best of every target comes first, then the closest rivals.
    checkpoints  (backbone, target) -> attributes of its embeddings, for the plan to say what to load

    A rival is worth a run where its interval reaches above the chosen one's value: the probe could not tell them apart.

    What earlier fine-tunings have shown is used: a choice that was fine-tuned already keeps its place, says so, and takes
    nothing from the budget; what the others may gain over their probe, and what they will cost, is what was seen so far.
    """
    if budget < 1:
        raise UsageError(f"the budget must be at least 1 fine-tuning, got {budget}")
    if top < 1:
        raise UsageError(f"top must be at least 1, got {top}")
    val = rows[(rows["split"] == "val") & (rows["episode"] == NO_EPISODE) & (rows["shots"] == "full")]
    val = val[(val["probe"] != "finetune") & val["metric"].isin(CRITERIA) & val["value"].notna()]
    if val.empty:
        raise DataError("the results hold no validation rows of full probes to choose from: run `fastxfer probe` first")

    past = _Past.of(rows)
    wanted: list[tuple[int, float, PlanEntry]] = []
    rejected: list[PlanEntry] = []
    for target, group in val.groupby("target", observed=True):
        metric = next(m for m in CRITERIA if (group["metric"] == m).any())
        ranked = (
            group[group["metric"] == metric]
            .sort_values(["value", "backbone"], ascending=[False, True])
            .drop_duplicates("backbone")
        )
        best = ranked.iloc[0]
        for rank, (_, row) in enumerate(ranked.iterrows()):
            behind = float(best["value"] - row["value"])
            # A rival whose interval nobody knows (too few images to resample) has not been told apart either.
            near = not row["high"] < best["value"]
            if rank == 0:
                reason = f"best of {len(ranked)} backbones on validation" if len(ranked) > 1 else "the only backbone"
            elif rank < top:
                reason = f"number {rank + 1} of {len(ranked)} on validation, {100 * behind:.1f} points behind"
            elif near:
                why = "its interval is unknown" if math.isnan(row["high"]) else "its interval reaches the best"
                reason = f"not told apart from the best by validation ({100 * behind:.1f} points behind, {why})"
            else:
                reason = f"{100 * behind:.1f} points behind the best on validation, beyond its own interval"
            choice = past.told(_choice(row, str(target), metric, reason, checkpoints or {}))
            if rank < top or near:
                wanted.append((rank, behind, choice))
            else:
                rejected.append(choice)
    wanted.sort(key=lambda item: (item[0] >= top, item[1], item[0], item[2].target, item[2].backbone))
    entries, over, left = [], [], budget
    for _, _, choice in wanted:
        new = FINETUNED not in choice.expected
        if left or not new:
            entries.append(choice)
            left -= new
        else:
            over.append(replace(choice, reason=f"{choice.reason}; left out: the budget of {budget} is spent"))
    return Plan(
        store=store,
        policy=f"top-{top} per target by the full probe on validation, then near-ties",
        budget=budget,
        entries=entries,
        rejected=over + rejected,
    )


def _choice(
    row: pd.Series, target: str, metric: str, reason: str, checkpoints: Mapping[tuple[str, str], Mapping[str, Any]]
) -> PlanEntry:
    backbone = str(row["backbone"])
    attributes = checkpoints.get((backbone, target), {})
    return PlanEntry(
        backbone=backbone,
        target=target,
        source=str(row["source"]),
        reason=reason,
        expected={
            "metric": metric,
            "value": float(row["value"]),
            **{side: float(row[side]) if math.isfinite(row[side]) else None for side in ("low", "high")},
            "probe": str(row["probe"]),
            "params": str(row["params"]),
        },
        checkpoint=str(attributes.get("checkpoint", "")),
        architecture=str(attributes.get("architecture", "")),
        arch_args=dict(attributes.get("arch_args", {})),
    )


@dataclass(frozen=True)
class _Past:
    """What fine-tunings on whole train splits have shown on validation, and cost.

    tuned: (backbone, target, metric) -> the best value on val;  gains: a line each: target, metric, tuned less probed
    """

    tuned: dict[tuple[str, str, str], float]
    gains: pd.DataFrame
    rates: Rates

    @classmethod
    def of(cls, rows: pd.DataFrame) -> _Past:
        val = rows[(rows["split"] == "val") & (rows["shots"] == "full") & rows["value"].notna()]
        val = val.astype(dict.fromkeys(("backbone", "target", "metric", "params", "probe"), str))
        key = ["backbone", "target", "metric"]
        done = finished(val).groupby(key)["value"].max()
        probed = val[val["probe"] != FINETUNE].groupby(key)["value"].max()
        both = done.index.intersection(probed.index)
        gains = (done[both] - probed[both]).rename("gain").reset_index()
        return cls({key: float(v) for key, v in done.items()}, gains, Rates.of(rows))

    def told(self, choice: PlanEntry) -> PlanEntry:
        """The choice with what is known of it: fine-tuned already, gain to be expected with its interval, seconds."""
        expected = dict(choice.expected)
        value = self.tuned.get((choice.backbone, choice.target, expected["metric"]))
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
