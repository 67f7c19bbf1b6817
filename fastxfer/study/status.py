"""What of a study is there and what is missing, from store and results alone; live, while others work on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastxfer.budgets import FINETUNE, is_stopped
from fastxfer.results import CELL
from fastxfer.store.locks import holder_of
from fastxfer.study.page import ReportUnit
from fastxfer.study.rounds import is_last, plan_files, planned
from fastxfer.study.share import RUNNING, SILENT_SECONDS
from fastxfer.study.units import Tally, fewshot_units, full_units
from fastxfer.study.world import World

Count = list[int]  # [done, asked]


def status(world: World) -> dict[str, Any]:
    """Of the study: name, hash, `stages` (stage -> [done, asked]), `pairs` (a dict a pair, with the counts of each stage),
    `cells` (a dict a few-shot cell: episodes done and asked) and `running` (what is being done, by whom, since when).

    Counts are of images, cells, probes, runs and pages.
    """
    study, pairs, cells = world.study, _pairs(world), _cells(world)
    for pair, counts in pairs.items():
        mine = [c for c in cells if (c["backbone"], c["target"]) == pair]
        counts["fewshot"] = [sum(c["episodes_done"] >= c["episodes"] for c in mine), len(mine)]
        for stage in ("probe", "knn"):
            units = full_units(world, stage, [pair])
            counts[stage] = [sum(not unit.left() for unit in units), len(units)]
    runs = runs_of_plan(world)
    for pair, counts in pairs.items():
        counts["finetune"] = runs.get(pair, [0, 0])
    found: dict[str, Count] = {}
    for stage in study.stages:
        if stage == "select":
            plans = len(plan_files(world))
            found[stage] = [plans, plans + (not is_last(world))]
        elif study.keys.report and stage == "report":
            found[stage] = [1 - ReportUnit(world, "", Path(study.keys.report.out), Tally()).left(), 1]
        else:
            found[stage] = [sum(counts[stage][i] for counts in pairs.values()) for i in (0, 1)]
    return {
        "study": study.name,
        "hash": study.hash,
        "results": str(world.results.path),
        "store": study.keys.store,
        "stages": found,
        "pairs": [{"backbone": b, "target": t, **{s: c[s] for s in found if s in c}} for (b, t), c in pairs.items()],
        "cells": cells,
        "running": running(world),
    }


def is_complete(told: dict[str, Any]) -> bool:
    """Whether a status leaves nothing to be done."""
    return all(done >= asked for done, asked in told["stages"].values())


def running(world: World) -> list[dict[str, Any]]:
    """What is being done just now: `what`, `host`, `pid`, `since`."""
    found = []
    for lock in sorted((world.results.path / RUNNING).glob("*.lock")):
        holder = holder_of(lock, SILENT_SECONDS)
        if holder:
            found.append({word: holder.get(word, "") for word in ("what", "host", "pid", "since")})
    return found


def _pairs(world: World) -> dict[tuple[str, str], dict[str, Count]]:
    """The pairs, and how many images of each are embedded."""
    found: dict[tuple[str, str], dict[str, Count]] = {}
    for target in world.study.targets:
        entries, loaded = world.entries(target), world.loaded.get(target)
        images = loaded.n_images if loaded else next((e.n_images for e in entries.values()), 0)
        for backbone in world.study.backbones:
            entry = entries.get(backbone)
            found[backbone, target] = {"embed": [entry.n_present, entry.n_images] if entry else [0, images]}
    return found


def _cells(world: World) -> list[dict[str, Any]]:
    """Every few-shot cell that is asked for, and how far it is."""
    world.results.refresh()
    return [
        {
            **dict(zip(CELL, cell, strict=True)),
            "episodes_done": min(wanted, world.results.episodes_done(cell, asked.episodes_hash)),
            "episodes": wanted,
        }
        for unit in fewshot_units(world, world.study.pairs)
        for asked in unit.cells
        for wanted in [world.wanted(asked)]
        for cell in asked.cells
    ]


def runs_of_plan(world: World) -> dict[tuple[str, str], Count]:
    """(backbone, target) -> fine-tunings that are over, and asked for by the plans so far; {} while there are none."""
    f, entries = world.study.keys.finetune, planned(world)
    if f is None or not entries:
        return {}
    words = {"preset": f.preset, "steps": f.steps, "batch": f.batch_size, "size": f.image_size}
    said = {f"{name}={value}" for name, value in words.items() if value is not None}
    rows = world.results.read(["backbone", "target", "probe", "shots", "seed", "episode", "params"])
    rows = rows[rows["probe"] == FINETUNE]
    # Who has lost by halving is over, too.
    rows = rows if f.halving else rows[~is_stopped(rows)]
    rows = rows[rows["seed"].isin(f.seeds) & rows["shots"].astype(str).isin([str(k) for k in f.shots] or ["full"])]
    rows = rows[[said <= set(params.split(";")) for params in rows["params"].astype(str)]]
    over = rows.drop_duplicates(["backbone", "target", "seed", "shots", "episode"]).astype(
        {"backbone": str, "target": str}
    )
    counts = over.groupby(["backbone", "target"]).size()
    each = len(set(f.seeds)) * (len(set(f.shots)) * f.episodes if f.shots else 1)
    pairs = [(entry.backbone, entry.target) for entry in entries]
    return {pair: [min(each, int(counts.get(pair, 0))), each] for pair in pairs}


def as_line(told: dict[str, Any]) -> str:
    """ "embed 8/8, fewshot 120/200 …"."""
    return ", ".join(f"{stage} {done:,}/{asked:,}" for stage, (done, asked) in told["stages"].items())
