"""Signals that ask a run to stop: it finishes its step, writes a checkpoint, and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, a scheduler's request, and what SLURM's --signal=USR1@60 sends before it takes the nodes away.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield ``stopped()``: whether one of SIGNALS has come. A second one of the kind is not held back any more.

    Only the main thread may handle signals; elsewhere nothing is caught.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {s: signal.getsignal(s) for s in SIGNALS}

    def note(number: int, _frame: Any) -> None:
        came.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    for s in previous:
        signal.signal(s, note)
    try:
        yield lambda: bool(came)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
