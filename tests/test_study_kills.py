"""Workers of a study that are killed at any instant: what is there at the end is what an undisturbed run makes."""

from __future__ import annotations

import pytest

from benchmarks import Options, study


@pytest.mark.slow
def test_200_cells_under_random_kills_are_those_of_an_undisturbed_run() -> None:
    (told,) = study.run(Options(tiny=True))
    assert told["cells"] == 200
    assert told["rows"] == 200 * 20
    assert told["equal"] == told["trials"] == 1
    assert told["killed_midway"] >= 4  # when some was there and some was missing
    assert told["claims_left"] == 0
    assert told["checked"]
