"""Lines of the command line in forks of a process that has imported everything: a fraction of a second each."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastxfer.cli import COMMANDS, main

SECONDS = 120.0


@dataclass(frozen=True)
class Ended:
    """How a line ended. code: its exit code, None if it was killed or had to be; words: all that it printed."""

    code: int | None
    words: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with this end, "" if nothing: done, or one sentence and exit code 1 or 2."""
        last = self.words.strip().splitlines()[-1][:200] if self.words.strip() else "no word"
        if self.code is None:
            return f"no end within {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.words or "should not happen" in self.words:
            return last
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}: {last}"
        if self.code and "Error: " not in self.words:
            return f"exit code {self.code} without a sentence: {last}"
        return ""


def import_all() -> None:
    """What lines need, so that forks find it there; Arrow is imported but not used, since a fork would lose its threads."""
    import torch

    torch.set_num_threads(1)
    for module in sorted({module for module, _ in COMMANDS.values()}):
        importlib.import_module(f"fastxfer.cli.{module}")
    for module in (
        "fastxfer.embed",
        "fastxfer.finetune",
        "fastxfer.study",
        "fastxfer.report",
        "pyarrow.parquet",
        "timm",
    ):
        importlib.import_module(module)


def nothing() -> None:
    """Do nothing."""


def start(
    words: Sequence[Any], log: Path, before: Callable[[], None] = nothing, after: Callable[[], None] = nothing
) -> int:
    """The process id of a fork that runs `fastxfer WORDS`, between `before` and `after`; what it prints goes to `log`."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(d, "w", closefd=False) for d in (1, 2))
        before()
        main([str(word) for word in words], prog_name="fastxfer")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        after()
        os._exit(code)


def wait(child: int, log: Path, seconds: float = SECONDS) -> Ended:
    """The end of what `start` began; killed if it takes longer."""
    started, pause = time.monotonic(), 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        spent = time.monotonic() - started
        if done:
            code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return Ended(code, log.read_text(encoding="utf-8", errors="replace"), spent)
        if spent > seconds:
            os.kill(child, signal.SIGKILL)
            seconds = 2 * seconds + 1e9
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)


def run(
    words: Sequence[Any],
    log: Path,
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
    seconds: float = SECONDS,
) -> Ended:
    """`start` and `wait`."""
    return wait(start(words, log, before, after), log, seconds)


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON has it, from a fork; AssertionError with the traceback if it fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told: dict[str, Any] = {"value": work()}
        except BaseException:
            told = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as out:
            json.dump(told, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as back:
        told = json.loads(back.read() or '{"error": "the fork died"}')
    os.waitpid(child, 0)
    assert "error" not in told, told["error"]
    return told["value"]
