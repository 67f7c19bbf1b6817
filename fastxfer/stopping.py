"""Signals that ask a run to stop: it finishes its step, writes a checkpoint, and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, a scheduler's request, and what SLURM's --signal sends before it takes the nodes away (submitit: USR2).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """Whether a signal has come, and what then.

    Whoever handled it before the run (submitit, which puts the job back into the queue) handles it once the checkpoint is
    there; if he returns, the run goes on. Where nobody did, it leaves. A second signal of the kind is not held back.
    """

    def __init__(self) -> None:
        self.came: list[signal.Signals] = []
        self.previous = {s: signal.getsignal(s) for s in SIGNALS}

    def hold_back(self) -> None:
        for s in SIGNALS:
            signal.signal(s, self._note)

    def let_through(self) -> None:
        for s, handler in self.previous.items():
            signal.signal(s, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.came.append(signal.Signals(number))
        signal.signal(number, self.previous[self.came[-1]])

    def asked(self) -> bool:
        return bool(self.came)

    @property
    def somebody_listens(self) -> bool:
        return any(callable(handler) for s, handler in self.previous.items() if s != signal.SIGINT)

    def answer(self) -> None:
        """Let those who listen handle what has come here; KeyboardInterrupt where nobody does.

        Also where it came to another process of the group: all of them call it.
        """
        heard = [s for s in self.came if callable(self.previous[s])]
        if len(heard) < len(self.came) or not (heard or self.somebody_listens):
            raise KeyboardInterrupt
        for s in heard:
            signal.raise_signal(s)
        self.came.clear()
        self.hold_back()


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Hold back SIGNALS while the block runs. Only the main thread may handle signals; elsewhere nothing is held back."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop.hold_back()
    try:
        yield stop
    finally:
        stop.let_through()
