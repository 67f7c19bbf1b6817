"""The report of a study: of its rows alone, with its hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.budgets import FINETUNE
from fastxfer.errors import DataError
from fastxfer.files import write_whole
from fastxfer.probes import variant_of
from fastxfer.progress import Advance
from fastxfer.report import read_curves, write_report
from fastxfer.results import CELL
from fastxfer.study.rounds import plan_files, told
from fastxfer.study.units import Tally, fewshot_units
from fastxfer.study.world import World


def rows_of(world: World, rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that the study asks for: a folder may hold others, of what was taken out of it since."""
    study = world.study
    few = {cell: world.wanted(c) for unit in fewshot_units(world, study.pairs) for c in unit.cells for cell in c.cells}
    full = {
        (*pair, probe.name, probe.variant, seed)
        for stage in ("probe", "knn")
        for probe, seed in study.full_probes(stage)
        for pair in study.pairs
    }
    tuned = set(study.pairs) if study.keys.finetune else set()
    keep = np.zeros(len(rows), bool)
    episodes = rows["episode"].to_numpy()
    for cell, at in rows.groupby(list(CELL), sort=False, observed=True).indices.items():
        named: dict[str, Any] = dict(zip(CELL, cell, strict=True))
        pair = (named["backbone"], named["target"])
        if named["probe"] == FINETUNE:
            keep[at] = pair in tuned
        elif named["shots"] == "full":
            keep[at] = (*pair, named["probe"], variant_of(named["params"]), int(named["seed"])) in full
        else:
            keep[at] = episodes[at] < few.get(tuple(cell), 0)
    return rows[keep]


def curve_folder(world: World) -> Path | None:
    """Where fine-tunings write their curves, if they do."""
    f = world.study.keys.finetune
    return world.results.path / "curves" if f and f.curves else None


@dataclass
class ReportUnit:
    """The page; it is written again when rows, plan or study have changed."""

    world: World
    command: str
    out: Path
    tally: Tally

    @property
    def key(self) -> tuple[str, ...]:
        return ("report", str(self.out))

    @property
    def title(self) -> str:
        return f"the report of {self.world.study.name}"

    @property
    def stamp(self) -> dict[str, str]:
        """Which study the page is of, and of which rows and plan."""
        study = self.world.study
        self.world.results.refresh()
        plans = "".join(path.read_text(encoding="utf-8") for path in plan_files(self.world))
        made_of = [self.world.results.digest, plans, self.heading]
        stamp = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
        return {"name": study.name, "hash": study.hash, "rows": stamp}

    @property
    def heading(self) -> str:
        keys = self.world.study.keys.report
        return keys.title if keys else "Which backbone transfers best?"

    def left(self) -> int:
        note = self.out / "study.json"
        try:
            return int(json.loads(note.read_text(encoding="utf-8")) != self.stamp)
        except (OSError, ValueError):
            return 1

    def do(self, advance: Advance) -> None:
        study, curves = self.world.study, curve_folder(self.world)
        with self.tally.counting():
            stamp = self.stamp
            rows = rows_of(self.world, self.world.results.read())
            if rows.empty:
                raise DataError(
                    f"the study '{study.name}' has no rows yet: `fastxfer study run {study.file}` makes them"
                )
            write_report(
                study.keys.store,
                rows,
                self.out,
                plan=told(self.world),
                command=self.command,
                title=self.heading,
                runs=[run for run in self.world.results.runs() if run.get("study", study.name) == study.name],
                data_root=study.data_root,
                curves=read_curves(curves) if curves and curves.is_dir() else (),
                read_images=self.world.results.read_images,
                study=f"{study.name}, hash {study.hash}",
            )
            write_whole(self.out / "study.json", (json.dumps(stamp) + "\n").encode())
        advance(1)
