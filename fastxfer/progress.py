"""Progress for people: a bar with rate and time left on a terminal, a plain line now and then in a log file.

Everything goes to stderr, so that stdout stays free for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from rich.text import Text

LOG_EVERY_SECONDS = 10.0


def console() -> Console:
    """The console for messages: stderr as it is now (so that redirection in tests and notebooks works)."""
    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one message line for people to stderr."""
    console().print(message, markup=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; shows done/total, rate in `unit` a second, and time left while the block runs."""
    target = console()
    if target.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=target) as bars:
            task = bars.add_task(description, total=total)
            yield lambda n: bars.update(task, advance=n)
        return

    started = last = time.monotonic()
    done = 0

    def line(now: float) -> str:
        rate = done / max(now - started, 1e-9)
        left = (total - done) / rate if rate > 0 else float("inf")
        return f"{description}: {done:,}/{total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left"

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= LOG_EVERY_SECONDS:
            last = now
            print(line(now), file=sys.stderr, flush=True)

    yield advance
    if time.monotonic() - started >= 2.0:
        print(line(time.monotonic()), file=sys.stderr, flush=True)
