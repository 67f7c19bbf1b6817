"""What a run tells those who watch it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol


class Log(Protocol):
    """A place where a run's numbers go: a file, TensorBoard, a service. The first process alone calls it.

    A run that goes on from a checkpoint calls `on_begin` with the steps that the checkpoint holds: what a log has of later
    steps will come again.
    """

    def on_begin(self, step: int, steps: int) -> None:
        """Before the first step: so many of so many steps are done."""

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        """After each step: how many are done, the batch's mean loss before the update, images a second since the last call."""

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        """After each validation: the line of the history, with epoch, lr, loss, val_loss, images_per_second, val_…."""

    def on_end(self) -> None:
        """The run is over, or has failed."""


@contextmanager
def telling(logs: Sequence[Log], step: int, steps: int) -> Iterator[Sequence[Log]]:
    """The logs, told that the run begins, and that it is over whatever happens."""
    with ExitStack() as ends:
        for log in logs:
            log.on_begin(step, steps)
            ends.callback(log.on_end)
        yield logs
