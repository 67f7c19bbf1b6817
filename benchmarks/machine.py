"""Where and when a benchmark ran, and how it is timed."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """device, cores, load (of the machine before the run: above 0 others were working too), commit, date, versions."""
    import scipy
    import sklearn

    return {
        "device": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "csrc", "fastxfer", "benchmarks", "setup.py"
        )
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds and core seconds of one call; others at work on the machine show in the first, hardly in the second."""
    start, core_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - core_start


def side_by_side(
    ours: Callable[[int], Any], peer: Callable[[int], Any], *, rounds: int, work: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """Time ours(round) and peer(round) in turn, so that a change of the machine's mood hits both.

    `work` says how many pieces of work one call of each does. Gives `ours_ms`, `peer_ms` a piece (wall), `…_core_ms` (core
    seconds), their ranges, `ratio` and, in core seconds, `ratio_per_core`.
    """
    samples = [(seconds(lambda i=i: ours(i)), seconds(lambda i=i: peer(i))) for i in range(rounds)]  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for who, (name, pieces) in enumerate(zip(("ours", "peer"), work, strict=True)):
        for which, unit in enumerate(("ms", "core_ms")):
            middle, spread = summary([1e3 * pair[who][which] / pieces for pair in samples])
            fields |= {f"{name}_{unit}": middle, f"{name}_{unit}_range": spread}
    return fields | ratios(fields)


def ratios(fields: dict[str, Any]) -> dict[str, float]:
    """How many times longer the peer takes."""
    return {
        "ratio": fields["peer_ms"] / fields["ours_ms"],
        "ratio_per_core": fields["peer_core_ms"] / fields["ours_core_ms"],
    }


def summary(samples: list[float]) -> tuple[float, list[float]]:
    """Median, and [lowest, highest]."""
    return float(np.median(samples)), [min(samples), max(samples)]


def rates(ours: list[float], peer: list[float]) -> dict[str, Any]:
    """Fields of two that were timed in turn, from their seconds an image: images a second, and the ratio."""
    mine, spread = summary([1 / s for s in ours])
    theirs, their_spread = summary([1 / s for s in peer])
    return {
        "unit": "images/s",
        "ours": mine,
        "ours_range": spread,
        "peer": theirs,
        "peer_range": their_spread,
        "ours_ms": 1e3 / mine,
        "peer_ms": 1e3 / theirs,
        "ratio": mine / theirs,
        "ratio_per_core": mine / theirs,
    }
