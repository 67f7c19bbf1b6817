"""A plan as its file holds it: what `select` wrote, perhaps edited by a person, checked before anything is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError, nearest
from fastxfer.files import parsed

PLAN_VERSION = 1
# The metric that decides, by preference: the first that a target's validation rows have.
CRITERIA = ("balanced_accuracy", "auc", "accuracy")
_PLAN_KEYS = (
    *("version", "store", "created", "policy", "budget", "metric"),
    *("stop_gain", "chosen", "again", "entries", "rejected"),
)


@dataclass(frozen=True)
class PlanEntry:
    """One fine-tuning: `checkpoint` on `target`. `number` counts from 1 in the order of the file."""

    backbone: str
    target: str
    checkpoint: str
    source: str = "unknown"
    architecture: str = ""
    arch_args: dict[str, Any] = field(default_factory=dict)
    shots: str = "full"
    reason: str = ""
    expected: dict[str, Any] = field(default_factory=dict)
    estimated_seconds: float | None = None
    number: int = 0


def read_plan(path: Path, store: str | None = None) -> tuple[str, list[PlanEntry]]:
    """(the plan's store, its entries in order).

    `DataError` for a file that is no plan, another version, an unknown or missing field (nearest named), or, where
    `store` is given, a plan that was made for another one.
    """
    try:
        plan = parsed(json.loads, Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"plan '{path}' does not exist: `fastxfer select --out {path}` writes one") from None
    except ValueError as error:
        raise DataError(f"plan '{path}' is no JSON: {error}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("entries"), list):
        raise DataError(f"plan '{path}' has no list of entries: is it a plan of `fastxfer select`?")
    if plan.get("version") != PLAN_VERSION:
        raise DataError(
            f"plan '{path}' has version {plan.get('version')!r}, this fastxfer reads {PLAN_VERSION}: "
            "run `fastxfer select` again"
        )
    _no_others(plan, _PLAN_KEYS, f"plan '{path}'")
    made_for = str(plan.get("store", ""))
    if store is not None and _place(made_for) != _place(store):
        raise DataError(
            f"plan '{path}' was made for the store '{made_for}', not for '{store}': give --store {made_for}, "
            "or run `fastxfer select` on this one"
        )
    return made_for, [_entry(raw, number, path) for number, raw in enumerate(plan["entries"], start=1)]


def _entry(raw: Any, number: int, path: Path) -> PlanEntry:
    where = f"plan '{path}', entry {number}"
    if not isinstance(raw, dict):
        raise DataError(f"{where} is no object with named fields")
    kinds: dict[str, Any] = {f.name: (dict if f.name in ("arch_args", "expected") else str) for f in fields(PlanEntry)}
    del kinds["number"]
    kinds["estimated_seconds"] = (int, float, type(None))
    _no_others(raw, kinds, where)
    for name in ("backbone", "target", "checkpoint"):
        if name not in raw:
            raise DataError(f"{where} has no '{name}'")
    for name, value in raw.items():
        if not isinstance(value, kinds[name]):
            raise DataError(f"{where}: {name} = {value!r} should be {'a table' if kinds[name] is dict else 'a text'}")
    if not re.fullmatch("full|[1-9][0-9]*", raw.get("shots", "full")):
        raise DataError(f"{where}: shots = {raw['shots']!r} should be 'full' or a number of images a class")
    return PlanEntry(**raw, number=number)


def _no_others(raw: dict[str, Any], known: Iterable[str], where: str) -> None:
    for name in raw:
        if name not in known:
            raise DataError(f"{where}: unknown field '{name}'.{nearest(name, known)}")


def _place(store: str) -> str:
    return store.rstrip("/") if "://" in store else str(Path(store).resolve())
