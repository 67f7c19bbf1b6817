"""A road that was walked undisturbed, and the same with a full disk at every write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breaking import faults, line
from benchmarks.breaking.road import Road

Row = dict[str, Any]
MOST = 40


def row(name: str, what: str, cases: int, faults_found: list[str], worst: str = "") -> Row:
    """A row of the table: how many cases, and in how many nothing was wrong."""
    return {
        "name": f"reliability/{name}",
        "what": what,
        "cases": cases,
        "held": cases - len(faults_found),
        "worst": faults_found[0] if faults_found else worst,
        "faults": faults_found[:20],
        "checked": not faults_found and cases > 0,
    }


class Roads:
    """A road that was walked undisturbed: what was there before and after each line."""

    def __init__(self, work: Path) -> None:
        line.import_all()
        self.work, self.log, self.road = work, work / "log", Road(work / "world")
        self.road.make()
        self.states: dict[str, Any] = {}
        self.writes: dict[str, int] = {}
        count = work / "count"
        for name, words in self.road.lines().items():
            self.road.put_away(work / f"before {name}")
            ended = line.run(
                words, self.log, lambda: faults.full(self.road.folder), lambda: _keep(count, faults.writes())
            )
            assert ended.code == 0, f"{name}: {ended.words}"
            self.writes[name] = int(count.read_text())
            self.states[name] = line.in_a_fork(self.road.state)

    def before(self, name: str) -> None:
        """The world as it was before a line."""
        self.road.bring_back(self.work / f"before {name}")

    def again(self, name: str) -> str:
        """What is wrong once a line was run again, undisturbed; "" if nothing."""
        problems = line.in_a_fork(self.road.state)["problems"]
        ended = line.run(self.road.lines()[name], self.log)
        if problems:
            return f"{name}: the store is not valid: {problems[0]}"
        if ended.code != 0:
            return f"{name}, run again: {ended.fault or ended.words[-200:]}"
        state = line.in_a_fork(self.road.state)
        return "" if state == self.states[name] else f"{name}, run again: {state} instead of {self.states[name]}"


def _keep(file: Path, number: int) -> None:
    file.write_text(str(number), encoding="utf-8")


def full_disk(roads: Roads, tiny: bool) -> Iterator[Row]:
    """From the k-th write on the disk is full: for every k of a line, or for MOST of them, spread over all."""
    for name, n_writes in roads.writes.items():
        if tiny and name not in ("targets add", "select"):
            continue
        found, told = [], 0
        steps = sorted({int(k) for k in np.linspace(0, n_writes - 1, min(n_writes, 3 if tiny else MOST))})
        for k in steps:
            roads.before(name)
            ended = line.run(
                roads.road.lines()[name],
                roads.log,
                lambda k=k: faults.full(roads.road.folder, k),  # type: ignore[misc]
            )
            told += ended.code == 1
            fault = ended.fault or roads.again(name)
            if fault:
                found.append(f"full at write {k}: {fault}")
        yield row(
            f"full disk/{name}", f"`{name}` with the disk full from its k-th of {n_writes} writes on; then run again", len(steps), found,
            f"{told} ended in a sentence, the others well; valid, and the same digests after the next run",
        )  # fmt: skip
