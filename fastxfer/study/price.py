"""What is left of a study, and what it will cost: `fastxfer study run FILE --plan`. Nothing is written."""

from __future__ import annotations

import math
from typing import Any

from fastxfer.budgets import Rates
from fastxfer.hyperrule import settle
from fastxfer.study.choose import runs_of
from fastxfer.study.rounds import is_last
from fastxfer.study.share import Part
from fastxfer.study.stages import load_networks
from fastxfer.study.status import runs_of_plan
from fastxfer.study.units import embed_units, fewshot_units, full_units
from fastxfer.study.world import World


def price(world: World, part: Part | None = None, *, measure: bool = True) -> list[dict[str, Any]]:
    """A dict a stage: `stage`, `unit`, `left` and `asked` in that unit, `seconds` and `bytes` (None where nobody can tell yet).

    Embedding is measured on a few images, as by `embed --plan`, which loads the networks that are still wanted (measure:
    False = it is not); the time of probes is what they have taken in these results so far, that of fine-tunings likewise
    (`Rates`).
    """
    part = part or Part()
    lines = []
    for stage in world.study.stages:
        if stage == "embed":
            lines.append(_embedding(world, part, measure))
        elif stage == "fewshot":
            lines.append(_fewshot(world, part))
        elif stage in ("probe", "knn"):
            units = full_units(world, stage, part.pairs(world.study))
            left = sum(unit.left() for unit in units)
            lines.append(_line(stage, "probes", left, len(units), _times(left, _seconds_each(world, stage, "units"))))
        elif stage == "finetune" and part.is_whole:
            lines.append(_finetuning(world))
    return lines


def _line(stage: str, unit: str, left: int, asked: int, seconds: float | None, size: int | None = 0) -> dict[str, Any]:
    return {"stage": stage, "unit": unit, "left": left, "asked": asked, "seconds": seconds, "bytes": size}


def _times(count: int, each: float | None) -> float | None:
    return 0.0 if not count else None if each is None else count * each


def _seconds_each(world: World, stage: str, unit: str) -> float | None:
    """What a unit of a stage has taken so far, by the log of runs; None where there were none."""
    runs = [run for run in world.results.runs() if run.get("stage") == stage and run.get(unit)]
    count = sum(float(run[unit]) for run in runs)
    return sum(float(run["seconds"]) for run in runs) / count if count else None


def _embedding(world: World, part: Part, measure: bool) -> dict[str, Any]:
    units = embed_units(
        world, part.pairs(world.study), lambda backbones: load_networks(backbones, world.study.data_root)
    )
    missing = [unit for unit in units if unit.left()]
    left = sum(unit.left() for unit in missing)
    asked = sum(len(u.backbones) * (world.loaded[u.target].n_images if u.target in world.loaded else 0) for u in units)
    seconds: float | None = 0.0
    size: int | None = 0
    if missing and not measure:
        seconds = size = None
    elif missing:
        from fastxfer.embed import plan

        k = world.study.keys.embed
        plans = [
            plan(
                unit.load(unit.backbones),
                [world.loaded[unit.target]],
                world.store,
                batch_size=k.batch_size,
                workers=k.workers,
                dtype=k.dtype,
                device=k.device,
            )
            for unit in missing
        ]
        seconds, size = sum(p.seconds for p in plans), sum(p.bytes for p in plans)
    return _line("embed", "embeddings", left, asked, seconds, size)


def _fewshot(world: World, part: Part) -> dict[str, Any]:
    units = fewshot_units(world, part.pairs(world.study))
    done = [not world.left(c) for unit in units for c in unit.cells for _ in c.cells]
    episodes = sum(unit.left() for unit in units)
    seconds = _times(episodes, _seconds_each(world, "fewshot", "episodes"))
    return _line("fewshot", "cells", len(done) - sum(done), len(done), seconds) | {"episodes": episodes}


def _finetuning(world: World) -> dict[str, Any]:
    """Of the plans, or, before the last one, of as many runs as its budget has, at what a run takes on average."""
    study, f, select = world.study, world.study.keys.finetune, world.study.keys.select
    assert f is not None
    assert select is not None
    each = len(set(f.seeds)) * (len(set(f.shots)) * f.episodes if f.shots else 1)
    planned = runs_of_plan(world)
    at_most = len(study.pairs) if (runs := runs_of(select)) is None else min(runs, len(study.pairs))
    asked = sum(of for _, of in planned.values())
    asked = asked if is_last(world) else max(asked, at_most * each)
    left = asked - sum(done for done, _ in planned.values())
    pairs = [pair for pair, (done, of) in planned.items() if done < of] or study.pairs
    rates = Rates.of(world.results.read())
    known = [s for pair in pairs if (s := rates.seconds_of(*pair)) is not None] if not f.shots else []
    images = [settle(t, **study.overrides()).images for t in world.loaded.values() if t.root is not None]
    seconds = _times(left, sum(known) / len(known) if known else None)
    return _line("finetune", "runs", left, asked, seconds) | {
        "images": math.ceil(left * sum(images) / len(images)) if images else None
    }
