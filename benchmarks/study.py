"""A study of 200 cells whose workers are killed at random instants, against the same study left alone: all rows, one by one.

Time is told, but not what this is about: the peer is one worker that nobody disturbs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "tests" / "study_kills.py"
# (workers, kills a trial, trials)
SIZES = ((1, 12, 10), (2, 12, 20), (3, 24, 10))
TINY = ((2, 8, 1),)


def run(options: Any) -> list[dict[str, Any]]:
    """An entry a number of workers."""
    return [entry(*size) for size in (TINY if options.tiny else SIZES)]


def entry(workers: int, kills: int, trials: int) -> dict[str, Any]:
    """So many trials of as many kills among so many workers."""
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), work, *map(str, (trials, workers, kills))],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    undisturbed, *told = [json.loads(line) for line in done.stdout.splitlines()]
    ours, peer = 1e3 * sum(t["seconds"] for t in told) / trials, 1e3 * undisturbed["seconds"]
    equal = sum(t["equal"] for t in told)
    return {
        "name": f"study/kills/{workers}-workers",
        "ours_ms": ours,
        "peer": "the same study, one worker, left alone",
        "peer_ms": peer,
        "ratio": peer / ours,
        "ratio_per_core": peer / ours / workers,
        "cells": undisturbed["cells"],
        "rows": undisturbed["rows"],
        "trials": trials,
        "killed": sum(t["killed"] for t in told),
        "killed_midway": sum(t["midway"] for t in told),
        "equal": equal,
        "claims_left": sum(t["claims_left"] for t in told),
        "embeddings": "Gaussian clouds, 8 wide",
        "threads": 1,
        "checked": equal == trials and not any(t["claims_left"] for t in told),
    }
