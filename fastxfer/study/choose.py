"""What the study's [select] asks of `fastxfer.selection`: the one place that knows its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from fastxfer.budgets import finished, parse_budget
from fastxfer.errors import FastxferError
from fastxfer.selection import FINETUNED, Plan, select
from fastxfer.study.keys import SelectKeys


def check_policy(keys: SelectKeys) -> Iterator[str]:
    """What is wrong with the words of [select]."""
    if keys.policy:
        yield f"policy = {keys.policy!r}: this fastxfer knows the policy of `fastxfer select` alone: leave it out"
    try:
        if runs_of(keys) < 1:
            yield f'budget = {keys.budget!r}: expected at least one fine-tuning, such as 2 or "20 runs"'
    except FastxferError as error:
        yield f"budget: {error}"


def runs_of(keys: SelectKeys) -> int:
    """The budget in fine-tunings; 0 for one of another kind, which the present policy cannot keep to."""
    if isinstance(keys.budget, int):
        return keys.budget
    budget = parse_budget(keys.budget)
    return int(budget.amount) if budget.kind == "runs" else 0


def choose(
    keys: SelectKeys, rows: pd.DataFrame, *, store: str, checkpoints: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Plan:
    """The plan for the rows of a study. What an earlier plan has led to counts towards the budget."""
    done = finished(rows)
    done = done[(done["shots"] == "full") & (done["split"] == "val")]
    left = runs_of(keys) - len(done[["backbone", "target"]].drop_duplicates())
    plan = select(rows, store=store, budget=max(1, left), top=keys.top, checkpoints=checkpoints)
    if left > 0:
        return plan
    new = [entry for entry in plan.entries if FINETUNED not in entry.expected]
    why = f"left out: the budget of {runs_of(keys)} is spent"
    return replace(
        plan,
        entries=[entry for entry in plan.entries if FINETUNED in entry.expected],
        rejected=[*(replace(entry, reason=f"{entry.reason}; {why}") for entry in new), *plan.rejected],
    )
