"""Wrong clocks, two writers at once, and no network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random

from benchmarks.breaking import faults, line
from benchmarks.breaking.disk import Roads, Row, row

DAY = 86_400


def clocks(roads: Roads, tiny: bool) -> Iterator[Row]:
    """Each line with a clock that is days off; then two writers whose clocks disagree by more than any lock lives."""
    found, cases = [], 0
    for name in ("targets add", "select") if tiny else roads.writes:
        for days in (-3, 3) if tiny else (-400, -3, -1, 1, 3, 400):
            cases += 1
            roads.before(name)
            ended = line.run(roads.road.lines()[name], roads.log, lambda days=days: faults.clock(days * DAY))  # type: ignore[misc]
            fault = ended.fault or ("" if ended.code == 0 else ended.words[-200:]) or roads.again(name)
            if fault:
                found.append(f"{name}, {days:+} days: {fault}")
    yield row("clocks", "a line of the road with its clock 1 to 400 days off, then again with the right one", cases, found,
              "the same digests")  # fmt: skip
    yield from _together(roads, "clocks/two", "two writers whose clocks are six days apart", 2 if tiny else 20, 3 * DAY)


def writers(roads: Roads, tiny: bool) -> Iterator[Row]:
    """Two who do the same at the same time."""
    yield from _together(roads, "two writers", "the same line twice at once", 2 if tiny else 20, 0)


def _together(roads: Roads, name: str, what: str, trials: int, apart: int) -> Iterator[Row]:
    found, waited = [], 0
    for trial in range(trials):
        rng, which = Random(trial), ("embed", "fewshot")[trial % 2]
        roads.before(which)
        logs = [roads.work / f"log {i}" for i in range(2)]
        children = []
        for log, off in zip(logs, (apart, -apart), strict=True):
            children.append(line.start(roads.road.lines()[which], log, lambda off=off: faults.clock(off)))  # type: ignore[misc]
            time.sleep(rng.random() * 0.2)
        ended = [line.wait(child, log) for child, log in zip(children, logs, strict=True)]
        waited += any(e.code for e in ended)
        faults_of = [e.fault for e in ended if e.fault] or ["none went through"] * all(e.code for e in ended)
        fault = faults_of[0] if faults_of else roads.again(which)
        if fault:
            found.append(f"trial {trial}, {which}: {fault}")
    yield row(
        name, what, trials, found, f"in {waited} the second was told who is writing, in the others it waited or shared; the same digests"
    )  # fmt: skip


def offline(roads: Roads, tiny: bool) -> Iterator[Row]:
    """The road without any socket."""
    found, asked = [], 0
    count = roads.work / "refused"
    lines = roads.road.lines()
    for name in ("targets add", "select") if tiny else lines:
        roads.before(name)
        ended = line.run(
            lines[name], roads.log, faults.offline, lambda: [count.write_text(str(faults.refused())), None][1]
        )
        asked += int(count.read_text(encoding="utf-8"))
        fault = ended.fault or ("" if ended.code == 0 else ended.words[-200:])
        fault = fault or ("" if line.in_a_fork(roads.road.state) == roads.states[name] else "other digests")
        if fault:
            found.append(f"{name}: {fault}")
    yield row(
        "no network", "lines of the road with sockets and name look-ups forbidden", 2 if tiny else len(lines), found,
        f"{asked} asked for a socket; the same digests",
    )  # fmt: skip
