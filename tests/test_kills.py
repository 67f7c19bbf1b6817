"""`kill -9` at any instant: what was written before is sound, the next run does only the rest, and the bits are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kills import N_IMAGES, killed


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
def test_all_of_forty_kills_on_a_disk(tmp_path: Path, real: Path) -> None:
    """A hundred are among what `python -m benchmarks reliability` does."""
    check(*killed(tmp_path, str(tmp_path / "stores"), 40, real), 40)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.s3
def test_all_of_ten_kills_on_an_object_store(tmp_path: Path, real: Path, bucket: str) -> None:
    check(*killed(tmp_path, bucket, 10, real), 10)
