"""Progress for people: a bar with rate and time left on a terminal, a plain line now and then in a log file.

Everything goes to stderr, so that stdout stays free for results.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

LOG_EVERY_SECONDS = 10.0
_ROOMY = 120  # columns of a terminal from which on there is room for all of it


class Advance(Protocol):
    """What `progress` hands out: `n` more are done. `note`: a word on how it goes, shown until another one comes."""

    def __call__(self, n: int, note: str = "") -> None: ...


def console() -> Console:
    """The console for messages: stderr as it is now (so that redirection in tests and notebooks works)."""
    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one message line for people to stderr."""
    console().print(message, markup=False, soft_wrap=True)


def shares(seconds: dict[str, float]) -> str:
    """What the time went to, most first: ``{"decode": 3, "forward": 96, "write": 1}`` -> "forward 96 %, decode 3 %, …".

    What rounds to nothing is left out; "" while there is nothing to tell.
    """
    total = sum(seconds.values())
    if total <= 0:
        return ""
    in_order = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in in_order if part / total >= 0.005)


def rate_words(per_second: float | None, unit: str) -> str:
    """ "146 images/s", "0.42 images/s"."""
    if not per_second:
        return f"- {unit}/s"
    return f"{per_second:,.{0 if per_second >= 10 else 1 if per_second >= 1 else 2}f} {unit}/s"


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(rate_words(task.finished_speed or task.speed, self.unit), style="cyan")


class _NoteColumn(ProgressColumn):
    def __init__(self, whole: bool) -> None:
        super().__init__(Column(no_wrap=True))
        self.whole = whole

    def render(self, task: Task) -> Text:
        note: str = task.fields["note"]
        return Text(note if self.whole else note.partition(",")[0], style="dim")


@contextmanager
def progress(description: str, total: int, unit: str, *, before: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Yield ``advance(n, note)``; shows done/total, rate in `unit` a second, time left and the note while the block runs.

    Not on a terminal: a line every ten seconds, and a last one if it took longer than two.
    before: what an earlier run has done, which counts as done but not for the rate. shown: False = say nothing
    """
    if not shown:
        yield lambda n, note="": None
        return
    target = console()
    if target.is_terminal:
        roomy = target.width >= _ROOMY
        title = Text(description)
        title.truncate(max(16, target.width - (100 if roomy else 66)), overflow="ellipsis")  # what the others take
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28 if roomy else 10),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _RateColumn(unit),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            _NoteColumn(whole=roomy),
        )
        with Progress(*columns, console=target) as bars:
            task = bars.add_task(title.plain, total=total, completed=before, note="")

            def advance_bar(n: int, note: str = "") -> None:
                fields: dict[str, Any] = {"note": note} if note else {}
                bars.update(task, advance=n, **fields)

            yield advance_bar
        return

    started = last = time.monotonic()
    done, said = before, ""

    def line(now: float) -> None:
        seconds = now - started
        rate = (done - before) / max(seconds, 1e-9)
        left = "time left unknown" if rate == 0 else f"{_clock((total - done) / rate)} left"
        words = [
            f"{done:,}/{total:,} {unit}",
            rate_words(rate, unit),
            f"took {_clock(seconds)}" if done >= total else left,
        ]
        print(f"{description}: {', '.join(words)}{f'; {said}' if said else ''}", file=sys.stderr, flush=True)

    def advance_line(n: int, note: str = "") -> None:
        nonlocal done, last, said
        done, said = done + n, note or said
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last = now
            line(now)

    yield advance_line
    if time.monotonic() - started >= 2.0:
        line(time.monotonic())


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))
