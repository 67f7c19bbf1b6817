"""`faults.c`, compiled once and loaded before the C library of a process and its forks."""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.embeddings import CACHE

SOURCE = Path(__file__).with_name("faults.c")


def library() -> Path:
    """The compiled faults, made anew when their source has changed."""
    made = CACHE / "faults.so"
    if not made.is_file() or made.stat().st_mtime < SOURCE.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(f".{os.getpid()}.so")
        command = [os.environ.get("CC", "gcc"), "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(partial), "-ldl"]
        subprocess.run(command, check=True)
        partial.replace(made)
    return made


@cache
def _loaded() -> Any:
    assert str(library()) in os.environ.get("LD_PRELOAD", ""), "start this process with LD_PRELOAD=faults.library()"
    return ctypes.CDLL(str(library()))


def full(folder: Path, after: int = -1) -> None:
    """From now on `after` writes below the folder succeed (negative: all), and no later one."""
    _loaded().fx_full(str(folder).encode(), ctypes.c_long(after))


def writes() -> int:
    """How many writes were tried below the folder."""
    return int(_loaded().fx_calls())


def clock(seconds: int) -> None:
    """Move this process's wall clock."""
    _loaded().fx_clock(ctypes.c_longlong(seconds))


def offline() -> None:
    """No socket from now on, save those between processes of this machine."""
    _loaded().fx_offline(1)


def refused() -> int:
    """How often a socket or a name was asked for and refused."""
    return int(_loaded().fx_refused())
