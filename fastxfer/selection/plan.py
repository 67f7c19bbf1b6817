"""A plan: what to fine-tune, in which order, why and what to expect; within a budget, and nothing that is not worth it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.budgets import Budget
from fastxfer.errors import DataError, UsageError
from fastxfer.files import write_whole
from fastxfer.plans import PLAN_VERSION, PlanEntry
from fastxfer.selection.belief import Belief, Floats
from fastxfer.selection.policy import Policy, Situation, duels
from fastxfer.selection.rows import FINETUNED, Past, believe_rows, foretellers, intervals, probed_rows
from fastxfer.selection.top import TopK


@dataclass(frozen=True)
class Plan:
    """What to fine-tune, best first, and what not, with reasons.

    chosen: target -> what would be chosen now: backbone, and its value on validation where it has been fine-tuned
    again:  how to plan again after these runs, for `finetune --follow`: options of `fastxfer select`
    """

    store: str
    policy: str
    budget: Budget
    entries: list[PlanEntry]
    rejected: list[PlanEntry]
    stop_gain: float = 0.0
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    again: dict[str, Any] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether nothing is worth a run any more."""
        return all(FINETUNED in entry.expected for entry in self.entries)

    def as_dict(self) -> dict[str, Any]:
        """The plan as its JSON file holds it."""
        return {
            "version": PLAN_VERSION,
            "store": self.store,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "policy": self.policy,
            "budget": {self.budget.kind: _whole(self.budget.amount)},
            "stop_gain": self.stop_gain,
            "chosen": self.chosen,
            "again": self.again,
            "entries": [_fields(entry) for entry in self.entries],
            "rejected": [_fields(entry) for entry in self.rejected],
        }

    def write(self, path: Path) -> None:
        """Write the plan, whole or not at all."""
        content = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, default=str) + "\n"
        write_whole(path, content.encode())


def _fields(entry: PlanEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name != "number"}


def _whole(amount: float) -> float:
    return int(amount) if amount == int(amount) else amount


def select(
    rows: pd.DataFrame,
    *,
    store: str,
    budget: int | Budget,
    top: int = 1,
    policy: Policy | None = None,
    stop_gain: float = 0.0,
    batch: int | None = None,
    checkpoints: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    near: Mapping[tuple[str, str], float] | None = None,
) -> Plan:
    """What a policy would fine-tune next, from validation rows of full probes, transferability scores and past fine-tunings.

    rows        results; only `split == "val"` rows of full probes, and scores of train images, are looked at, so that test stays
                unseen
    budget      fine-tunings at most, or an amount of seconds of a device
    policy      default: the `top` backbones a target by the probe, and those that its interval cannot tell apart: the best of
                every target first, then the closest rivals
    stop_gain   points: what is expected to add less to its target's choice is left out
    batch       new runs at most in this plan; the rest of the budget is for the next one
    checkpoints (backbone, target) -> attributes of its embeddings, for the plan to say what to load
    near        (source, target) -> their distance, in any unit (`fastxfer.proximity.distances`)

    What earlier fine-tunings have shown is used: a choice that was fine-tuned already takes nothing from the budget; what the others
    may gain over their probe, and what they will cost, is what was seen so far.
    """
    budget = Budget(budget, "runs", str(budget)) if isinstance(budget, int) else budget
    if budget.amount < 1 and budget.kind == "runs":
        raise UsageError(f"the budget must be at least 1 fine-tuning, got {budget.amount:g}")
    if budget.kind == "images":
        raise UsageError(
            "a plan's budget is in runs, gpu-hours or money: how many images a run takes is `finetune`'s choice"
        )
    if top < 1:
        raise UsageError(f"top must be at least 1, got {top}")
    if stop_gain < 0:
        raise UsageError(f"stop_gain must not be negative, got {stop_gain}")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch must have at least 1 fine-tuning, got {batch}")
    policy = policy or TopK(top)
    probed = probed_rows(rows)
    past = Past.of(rows)
    belief = believe_rows(probed, past, foretellers(rows, probed, near))
    entries = [past.told(_entry(row, checkpoints or {})) for _, row in probed.iterrows()]
    cost = _costs(entries, budget)
    gains = _gains(belief)
    situation = Situation(belief, cost, intervals(probed), [entry.backbone for entry in entries])
    wanted: list[PlanEntry] = []
    over: list[PlanEntry] = []
    rejected: list[PlanEntry] = []
    left, room = budget.amount, math.inf if batch is None else batch
    for choice in policy.rank(situation):
        k = choice.configuration
        gain = gains[k] if math.isnan(choice.gain) else choice.gain
        entry = replace(entries[k], reason=choice.reason + entries[k].reason)
        new = FINETUNED not in entry.expected
        if not choice.wanted:
            rejected.append(entry)
        elif new and gain < stop_gain:
            why = f"left out: expected to add {gain:.2f} points, less than {stop_gain:g}"
            rejected.append(replace(entry, reason=f"{entry.reason}; {why}"))
        elif new and cost[k] > left + 1e-9:
            over.append(replace(entry, reason=f"{entry.reason}; left out: the budget of {budget.text} is spent"))
        elif new and not room:
            over.append(replace(entry, reason=f"{entry.reason}; left to a later batch"))
        else:
            wanted.append(entry)
            left, room = left - new * float(cost[k]), room - new
    return Plan(
        store=store,
        policy=policy.words,
        budget=budget,
        entries=wanted,
        rejected=over + rejected,
        stop_gain=stop_gain,
        chosen={entries[k].target: _chosen(entries[k]) for k in policy.choose(belief)},
    )


def _entry(row: pd.Series, checkpoints: Mapping[tuple[str, str], Mapping[str, Any]]) -> PlanEntry:
    attributes = checkpoints.get((row["backbone"], row["target"]), {})
    return PlanEntry(
        backbone=row["backbone"],
        target=row["target"],
        source=row["source"],
        expected={
            "metric": row["metric"],
            "value": float(row["value"]),
            **{side: float(row[side]) if math.isfinite(row[side]) else None for side in ("low", "high")},
            "probe": row["probe"],
            "params": row["params"],
        },
        checkpoint=str(attributes.get("checkpoint", "")),
        architecture=str(attributes.get("architecture", "")),
        arch_args=dict(attributes.get("arch_args", {})),
    )


def _chosen(entry: PlanEntry) -> dict[str, Any]:
    return {"backbone": entry.backbone, FINETUNED: entry.expected.get(FINETUNED)}


def _gains(belief: Belief) -> Floats:
    """(n,) what knowing a configuration's value is expected to add to the choice; of a favourite, by its closest rival."""
    gains = np.zeros(belief.n)
    for duel in duels(belief):
        gains[duel.rival] = duel.gain
        gains[duel.favourite] = max(gains[duel.favourite], duel.gain)
    return gains


def _costs(entries: list[PlanEntry], budget: Budget) -> Floats:
    """(n,) what one run of each takes of the budget; where its seconds are unknown, those of the dearest known."""
    if budget.kind == "runs":
        return np.ones(len(entries))
    seconds = [entry.estimated_seconds for entry in entries]
    known = [s for s in seconds if s]
    if not known:
        raise DataError(
            f"the budget of {budget.text} needs the seconds of a run, and no fine-tuning in the results tells any: "
            "give the budget in runs for the first ones"
        )
    return np.array([max(known) if s is None else s for s in seconds])
