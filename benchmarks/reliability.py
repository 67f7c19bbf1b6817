"""Reliability in one table: what is broken on purpose, how often, how often it held, and the worst that came of it.

The ways to break things are those of `benchmarks.breaking` and of the tests (`tests/kills.py`, `tests/study_kills.py`,
`tests/s3.py`). Each runs in a process of its own, with `faults.c` loaded before the C library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import study
from benchmarks.breaking import faults
from benchmarks.embeddings import REAL
from benchmarks.machine import ROOT

# Those that leave threads behind, which forks would lose, come last.
KINDS = (
    *("flips", "checkpoint", "malformed", "disk", "clocks", "writers"),
    *("offline", "fuzz", "dependencies", "soak", "objects", "kills", "study"),
)


def run(options: Any) -> Iterator[dict[str, Any]]:
    """An entry a kind of damage, as they come; `options.minutes` are for hypothesis, of all parsers together."""
    kinds = options.only or (KINDS[:-2] if options.tiny else KINDS)
    yield from _broken([kind for kind in kinds if kind not in ("kills", "study")], options)
    if "kills" in kinds:
        yield from _kills()
    if "study" in kinds:
        yield _study()


def _broken(left: list[str], options: Any) -> Iterator[dict[str, Any]]:
    """What `benchmarks.breaking` tells; and a row that did not hold where it died, with the rest begun anew."""
    environment = {"LD_PRELOAD": str(faults.library()), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    while left:
        command = [sys.executable, "-m", "benchmarks.breaking", *left, str(options.minutes), *["--tiny"] * options.tiny]
        with tempfile.TemporaryFile("w+") as said:
            with subprocess.Popen(
                command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("{"):
                        row = json.loads(line)
                        print(f"{row['name']}: {row['held']} of {row['cases']}", file=sys.stderr, flush=True)
                        yield row | {"tiny": options.tiny}
            said.seek(0)
            words = said.read()
        if process.returncode == 0:
            return
        begun = [word for word in words.splitlines() if word in left]
        died = begun[-1] if begun else left[0]
        yield {"name": f"reliability/{died}", "what": died, "cases": 1, "held": 0, "checked": False,
               "worst": f"the benchmark itself ended: {words.strip().splitlines()[-1][:200]}", "faults": [words[-3000:]]}  # fmt: skip
        left = left[left.index(died) + 1 :]


def _kills() -> Iterator[dict[str, Any]]:
    """A hundred runs of `embed`, killed once or twice each and finished."""
    if not (REAL / "README.md").is_file():
        return
    from tests.kills import N_IMAGES, killed

    with tempfile.TemporaryDirectory() as work:
        undisturbed, trials = killed(Path(work), f"{work}/stores", 100, REAL)
    bad = [
        trial
        for trial in trials
        if trial["problems"]
        or trial["digest"] != undisturbed["digest"]
        or not trial["embedded"] == trial["written"] == trial["missing"]
    ]
    left = [trial["missing"] / N_IMAGES for trial in trials]
    yield {
        "name": "reliability/kills",
        "what": "`embed` killed at any instant, once or twice, then run again",
        "cases": len(trials),
        "held": len(trials) - len(bad),
        "worst": json.dumps(bad[0])
        if bad
        else f"the same digest; {min(left):.0%} to {max(left):.0%} was left, and only that done",
        "checked": not bad,
    }


def _study() -> dict[str, Any]:
    """The study of `benchmarks.study`, with two workers."""
    told = study.entry(2, 12, 10)
    return {
        "name": "reliability/study",
        "what": f"a study of {told['cells']} cells under two workers, {told['killed']} kills in all",
        "cases": told["trials"],
        "held": told["equal"],
        "worst": f"the rows of an undisturbed run; {told['claims_left']} claims left behind",
        "checked": told["checked"],
    }
