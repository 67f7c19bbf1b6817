"""What the study's [select] asks of `fastxfer.selection`: the one place that knows its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from fastxfer.budgets import Budget, Rates, finished, parse_budget
from fastxfer.errors import FastxferError, nearest
from fastxfer.selection import FINETUNED, POLICIES, Plan, policy_named, select
from fastxfer.study.keys import SelectKeys


def check_policy(keys: SelectKeys) -> Iterator[str]:
    """What is wrong with the words of [select]."""
    if keys.policy not in POLICIES:
        yield f"policy = {keys.policy!r}: expected one of {', '.join(POLICIES)}.{nearest(keys.policy, POLICIES)}"
    for name, value in (("gpu_hour", keys.gpu_hour), ("stop_gain", keys.stop_gain)):
        if value is not None and not value >= 0:
            yield f"{name} = {value}: expected 0 or more"
    try:
        budget = budget_of(keys)
    except FastxferError as error:
        yield f"budget: {error}"
        return
    if budget.kind == "images" or (budget.kind == "runs" and budget.amount < 1):
        yield f'budget = {keys.budget!r}: expected a fine-tuning or more, such as 2, "2 gpu-hours" or "50 usd"'


def budget_of(keys: SelectKeys) -> Budget:
    """The budget, in fine-tunings or seconds; `UsageError` for words that are none."""
    return parse_budget(str(keys.budget), gpu_hour=keys.gpu_hour or None)


def runs_of(keys: SelectKeys) -> int | None:
    """The budget in fine-tunings; None for one of another kind."""
    budget = budget_of(keys)
    return int(budget.amount) if budget.kind == "runs" else None


def choose(
    keys: SelectKeys, rows: pd.DataFrame, *, store: str, checkpoints: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Plan:
    """The plan for the rows of a study. What an earlier plan has led to counts towards the budget."""
    budget = budget_of(keys)
    if budget.kind == "runs":
        done = finished(rows)
        done = done[(done["shots"] == "full") & (done["split"] == "val")]
        left = budget.amount - len(done[["backbone", "target"]].drop_duplicates())
    else:
        left = budget.amount - float(Rates.of(rows).runs["seconds"].sum())
    is_spent = left < 1
    plan = select(
        rows,
        store=store,
        budget=replace(budget, amount=max(1.0, left)),
        top=keys.top,
        policy=None if keys.policy == "top" else policy_named(keys.policy),
        stop_gain=keys.stop_gain,
        batch=keys.batch,
        checkpoints=checkpoints,
    )
    if not is_spent:
        return plan
    new = [entry for entry in plan.entries if FINETUNED not in entry.expected]
    why = f"left out: the budget of {budget.text} is spent"
    return replace(
        plan,
        entries=[entry for entry in plan.entries if FINETUNED in entry.expected],
        rejected=[*(replace(entry, reason=f"{entry.reason}; {why}") for entry in new), *plan.rejected],
    )
