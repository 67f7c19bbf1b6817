"""Workers of a study that are killed at any instant: what is there at the end is what an undisturbed run makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_200_cells_under_random_kills_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("study_kills.py")), str(tmp_path), "1", "2", "8"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    undisturbed, trial = [json.loads(line) for line in done.stdout.splitlines()]
    assert undisturbed["cells"] == 200
    assert trial["equal"]
    assert trial["rows"] == undisturbed["rows"] == 200 * 20
    assert trial["midway"] >= 4  # kills that came when some was there and some was missing
    assert trial["claims_left"] == 0
