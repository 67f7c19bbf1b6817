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
from fastxfer.until import FEWEST, Until, looks, parse_until

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
    run_protocol(store, again, Protocol(shots=(1,), episodes=150), PROBES)  # not where it would have looked
    run_protocol(store, again, protocol, PROBES, until=half)
    pd.testing.assert_frame_equal(plain(again), plain(results))

    one = ResultStore.open(tmp_path / "one")
    size = int(n["size"].min())
    run_protocol(store, one, Protocol(shots=(1,), episodes=size), PROBES)
    there = plain(results)
    pd.testing.assert_frame_equal(plain(one), there[there["episode"] < size].reset_index(drop=True))


def test_it_needs_the_episodes_up_to_the_first_look_however_many_are_there():
    assert list(looks(1350)) == [*range(100, 1001, 100), 1100, 1210, 1331]
    rng, half = np.random.default_rng(1), 0.03
    cells = {name: (*"sbtws", 0, "p", name, "test", "accuracy") for name in ("steady", "noisy")}
    values = {"steady": rng.uniform(0.8, 0.9, 3000), "noisy": rng.uniform(0, 1, 3000)}

    def rows(name, start, stop):
        key = dict(zip(CELL, cells[name], strict=True))
        return pd.DataFrame({**key, "episode": range(start, stop), "value": values[name][start:stop]})

    knows = {}
    for name in cells:
        widths = {n: np.diff(confidence_sequence(values[name][:n], half))[0] for n in looks(3000)}
        knows[name] = min(n for n, width in widths.items() if width <= 2 * half)
    assert knows["steady"] < knows["noisy"] < 3000

    until = Until(half, ["accuracy"], rows("steady", 0, 3000))
    assert until.needed([cells["steady"]], 3000) == knows["steady"]
    assert until.needed([cells["steady"]], knows["steady"] - 1) is None
    assert until.needed(cells.values(), 3000) is None  # nothing is known of the other one
    until.add(rows("noisy", 0, knows["noisy"] - 1))
    assert until.needed(cells.values(), 3000) is None
    until.add(rows("noisy", 50, 3000))  # some of them once more
    assert until.needed(cells.values(), 3000) == knows["noisy"]


def test_episodes_are_the_most_there_can_be(tmp_path):
    store, results = blobs_store(tmp_path / "store"), ResultStore.open(tmp_path / "results")
    summary = run_protocol(store, results, Protocol(shots=(1,), episodes=130), PROBES[:1], until=0.001)
    assert summary.episodes == 2 * 130
    assert summary.until is not None
    assert summary.until.needed(summary.cells, 130) is None
    assert results.read_images()["episodes"].eq(130).all()
    with pytest.raises(UsageError, match="log_loss is none: choose among accuracy"):
        run_protocol(store, results, Protocol(metrics=("log_loss",)), PROBES[:1], until=0.01)
