"""Episodes until a mean is known: where a run stops, how it goes on, what its rows are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import blobs_store

from fastxfer.errors import UsageError
from fastxfer.evaluation import run_protocol
from fastxfer.probes import LogisticProbe, make_probe
from fastxfer.protocol import Protocol
from fastxfer.results import CELL, KEY, ResultStore
from fastxfer.statistics.sequences import confidence_sequence
from fastxfer.until import FEWEST, parse_until

PROBES = [LogisticProbe(), make_probe("prototype")]


def plain(results: ResultStore) -> pd.DataFrame:
    text = dict.fromkeys([name for name in KEY if name not in ("seed", "episode")], str)
    return results.read().astype(text).sort_values(list(KEY), ignore_index=True)


@pytest.mark.parametrize("text", ["0.5", "ci", "ci 0", "ci -1", "ci 50", "ci nan", "width 0.5", "ci 0.5 points"])
def test_what_is_no_condition_is_refused(text):
    assert parse_until("ci 0.5") == 0.005
    with pytest.raises(UsageError, match=r'give "ci 0\.5"'):
        parse_until(text)


def test_a_run_stops_where_every_mean_is_known_and_goes_on_from_there(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    protocol, half = Protocol(shots=(1,), episodes=4000), 0.008
    summary = run_protocol(store, results, protocol, PROBES, until=half)
    n = results.read().groupby(list(CELL), observed=True)["value"].agg(["size", list])
    assert (n["size"] % FEWEST == 0).all()
    assert n["size"].max() < 4000
    assert n["size"].nunique() > 1  # each goes on as long as it needs to
    for values in n["list"]:
        low, high = confidence_sequence(np.array(values), half)
        assert high - low <= 2 * half
        low, high = confidence_sequence(np.array(values)[:-FEWEST], half)
        assert high - low > 2 * half  # and no longer
    assert summary.episodes == n["size"].sum()
    assert run_protocol(store, results, protocol, PROBES, until=half).episodes == 0

    again = ResultStore.open(tmp_path / "again")
    run_protocol(store, again, Protocol(shots=(1,), episodes=150), PROBES)  # as if it had been killed on its way
    run_protocol(store, again, protocol, PROBES, until=half)
    for cell, size in n["size"].items():
        here = plain(again)
        here = here[(here[list(CELL)].astype(str) == [str(value) for value in cell]).all(axis=1)]
        assert abs(len(here) - size) < FEWEST

    one = ResultStore.open(tmp_path / "one")
    size = int(n["size"].min())
    run_protocol(store, one, Protocol(shots=(1,), episodes=size), PROBES)
    there = plain(results)
    pd.testing.assert_frame_equal(plain(one), there[there["episode"] < size].reset_index(drop=True))


def test_episodes_are_the_most_there_can_be(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    summary = run_protocol(store, results, Protocol(shots=(1,), episodes=130), PROBES[:1], until=0.001)
    assert summary.episodes == 2 * 130
    assert summary.until is not None
    assert not any(summary.until.is_known(cell) for cell in summary.cells)
    assert results.read_images()["episodes"].eq(130).all()
    with pytest.raises(UsageError, match="log_loss is none: choose among accuracy"):
        run_protocol(store, results, Protocol(metrics=("log_loss",)), PROBES[:1], until=0.01)
