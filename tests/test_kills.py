"""`kill -9` at any instant: what was written before is sound, the next run does only the rest, and the bits are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

N_IMAGES = 128
NETWORK = """
import torch
def build():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    net.input_size, net.mean, net.std = (3, 8, 8), 0.5, 0.25
    return net
"""


def killed(work: Path, place: str, trials: int, real: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(undisturbed run, trials), as `kills` tells them."""
    root = real / "cifar10_subset"
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))[:N_IMAGES]
    assert len(names) == N_IMAGES
    (work / "images.json").write_text(json.dumps({"root": str(root), "names": names}))
    (work / "net.py").write_text(NETWORK)
    torch.manual_seed(1)
    shapes = {"1.weight": (32, 192), "1.bias": (32,), "3.weight": (16, 32), "3.bias": (16,)}
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, work / "net.pt")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), str(work), place, str(trials)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *rest = [json.loads(line) for line in done.stdout.splitlines()]
    return first["undisturbed"], rest


def check(undisturbed: dict[str, Any], trials: list[dict[str, Any]], n: int) -> None:
    assert len(trials) == n
    for trial in trials:
        assert trial["kills"] >= 1
        assert trial["problems"] == [], trial
        assert trial["digest"] == undisturbed["digest"], trial
        assert trial["embedded"] == trial["written"] == trial["missing"], trial
    # They were killed all over the run: with nothing, something and nearly everything on the disk.
    left = [trial["missing"] / N_IMAGES for trial in trials]
    assert min(left) < 0.3
    assert any(0.3 < some < 0.7 for some in left)
    assert max(left) == 1


@pytest.mark.real
@pytest.mark.slow
def test_a_hundred_of_a_hundred_kills_on_a_disk(tmp_path: Path, real: Path) -> None:
    check(*killed(tmp_path, str(tmp_path / "stores"), 100, real), 100)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.s3
def test_twenty_of_twenty_kills_on_an_object_store(tmp_path: Path, real: Path, bucket: str) -> None:
    check(*killed(tmp_path, bucket, 20, real), 20)
