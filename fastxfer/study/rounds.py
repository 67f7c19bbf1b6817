"""The plans of a study: one, or, with `select.batch`, one after each batch of fine-tunings until nothing more is worth one.

A plan is written once, whole, when all runs of those before it are over, and never changed: whoever shares the study reads the
same, and a process that dies leaves either the plan or none.
"""

from __future__ import annotations

import json
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from fastxfer.plans import PlanEntry, read_plan
from fastxfer.selection import FINETUNED
from fastxfer.study.world import World


def plan_file(world: World, number: int = 1) -> Path:
    """Where a study's plan lies: its first one, or, of a loop, that of another round."""
    more = "" if number == 1 else f"-{number}"
    return world.results.path / f"plan-{world.study.choice_hash}{more}.json"


def plan_files(world: World) -> list[Path]:
    """The plans that are there, in their order."""
    return list(takewhile(Path.is_file, (plan_file(world, number) for number in count(1))))


def planned(world: World) -> list[PlanEntry]:
    """What all plans so far ask for, in their order, each pair once."""
    found: dict[tuple[str, str], PlanEntry] = {}
    for path in plan_files(world):
        for entry in read_plan(path)[1]:
            found.setdefault((entry.backbone, entry.target), entry)
    return list(found.values())


def is_last(world: World) -> bool:
    """Whether no plan follows those that are there: without a loop, or where the last one asks for nothing new."""
    keys, files = world.study.keys, plan_files(world)
    if not files or keys.select is None or keys.select.batch is None or keys.finetune is None:
        return bool(files)
    *before, last = [read_plan(path)[1] for path in files]
    asked = {(entry.backbone, entry.target) for entries in before for entry in entries}
    return all(FINETUNED in e.expected or (e.backbone, e.target) in asked for e in last)


def told(world: World) -> dict[str, Any] | None:
    """The last plan as its file has it, with what the earlier ones have asked for before its own; None while there is none."""
    plans: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in plan_files(world)]
    if not plans:
        return None
    entries: dict[tuple[str, str], Any] = {}
    for plan in plans:
        for entry in plan["entries"]:
            entries.setdefault((entry["backbone"], entry["target"]), entry)
    left_out = [r for r in plans[-1]["rejected"] if (r["backbone"], r["target"]) not in entries]
    return plans[-1] | {"entries": list(entries.values()), "rejected": left_out}
