"""Result rows on disk: whole or not at all, never twice, small."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fastxfer import results
from fastxfer.errors import DataError
from fastxfer.results import CELL, FORMAT, KEY, NO_EPISODE, SCHEMA, ResultStore, complete, results_path


def rows(episodes=range(10), **changes) -> pd.DataFrame:
    episodes = np.asarray(list(episodes))
    frame = {
        "source": "imagenet1k",
        "backbone": "lite0",
        "target": "digits",
        "ways": "5",
        "shots": "1",
        "seed": 0,
        "episode": episodes,
        "probe": "logistic",
        "params": "l2=0.2",
        "split": "test",
        "metric": "accuracy",
        "value": np.random.default_rng(0).random(len(episodes)),
        "n_queries": 75,
        "converged": True,
        "episodes_hash": "abc",
    }
    return pd.DataFrame(frame | changes)


def cell_of(frame: pd.DataFrame) -> tuple:
    return tuple(frame.iloc[0][name] for name in CELL)


def files(path: Path) -> list[str]:
    """What lies in the folder, but for the lock."""
    return sorted(p.name for p in path.iterdir() if p.name != ".lock")


def test_what_is_written_is_read(tmp_path):
    store = ResultStore.open(tmp_path / "results")
    assert store.read().empty
    assert list(store.read().columns) == SCHEMA.names
    first, second = rows(), rows(shots="5", backbone="größer ×4", value=np.nan)
    store.append(first)
    store.append(second)
    for opened in (store, ResultStore.open(tmp_path / "results")):
        got = opened.read()
        assert list(got.columns) == SCHEMA.names
        got = got.astype({"shots": str}).sort_values(["shots", "episode"])
        expected = pd.concat([complete(first), complete(second)], ignore_index=True)
        for name in SCHEMA.names:
            np.testing.assert_array_equal(got[name].to_numpy(), expected[name].to_numpy(), err_msg=name)
    assert list(store.read(["value", "shots"]).columns) == ["value", "shots"]
    assert cell_of(second) in store
    assert cell_of(rows(seed=1)) not in store


def test_rows_without_episodes(tmp_path):
    store = ResultStore.open(tmp_path)
    full = rows([NO_EPISODE], ways="all", shots="full", low=0.4, high=0.6, episodes_hash="")
    store.append(full)
    got = store.read()
    assert got[["episode", "low", "high"]].to_numpy().tolist() == [[-1, 0.4, 0.6]]
    with pytest.raises(DataError, match=r"already there: .*shots=full"):
        store.append(full)


def test_no_rows_are_no_file(tmp_path):
    ResultStore.open(tmp_path / "results").append(rows([]))
    assert not (tmp_path / "results").exists()


def test_a_key_that_is_there_is_refused(tmp_path):
    store = ResultStore.open(tmp_path)
    store.append(rows(range(10)))
    for again in (rows(range(10)), rows(range(9, 12)), rows([4]), pd.concat([rows(range(3), seed=9), rows([0])])):
        with pytest.raises(DataError, match=r"already there: source=imagenet1k, backbone=lite0.*episode="):
            store.append(again)
        with pytest.raises(DataError, match="already there"):
            ResultStore.open(tmp_path).append(again)
    assert len(store.read()) == 10
    assert len(files(tmp_path)) == 1


def test_a_key_twice_among_new_rows_is_refused(tmp_path):
    store = ResultStore.open(tmp_path)
    with pytest.raises(DataError, match=r"the same row twice: .*episode=1"):
        store.append(pd.concat([rows(range(3)), rows([1])]))
    assert store.read().empty


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows().drop(columns="probe"), r"rows lack \['probe'\]"),
        (rows(colour="red"), r"unknown columns \['colour'\]"),
        (rows(source=None), r"without a value in key column \['source'\]"),
        (rows([0, 2]), "not contiguous"),
        (rows([0, 1], episodes_hash=["a", "b"]), "several lists"),
    ],
)
def test_rows_that_are_none_are_a_programming_error(tmp_path, frame, message):
    store = ResultStore.open(tmp_path)
    with pytest.raises(ValueError, match=message):
        store.append(frame)
    assert store.read().empty


def test_episodes_done_counts_without_gaps(tmp_path):
    store = ResultStore.open(tmp_path)
    cell = cell_of(rows())
    assert store.episodes_done(cell, "abc") == 0
    store.append(rows(range(20, 30)))
    assert store.episodes_done(cell, "abc") == 0
    store.append(rows(range(10)))
    assert store.episodes_done(cell, "abc") == 10
    store.append(rows(range(10, 20)))
    assert store.episodes_done(cell, "abc") == 30
    assert ResultStore.open(tmp_path).episodes_done(cell, "abc") == 30
    with pytest.raises(DataError, match=r"rows of other episodes under the same key .*target=digits"):
        store.episodes_done(cell, "another list")


@pytest.mark.parametrize("where", ["write_table", "fsync", "link"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, where):
    store = ResultStore.open(tmp_path)
    store.append(rows())
    before = files(tmp_path)

    def full(*args, **kwargs):
        if where == "write_table":
            args[1].write(b"PAR1 half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(results.pq if where == "write_table" else results.os, where, full)
        with pytest.raises(OSError, match="No space left"):
            store.append(rows(shots="5"))
    assert files(tmp_path) == before
    assert len(store.read()) == 10
    store.append(rows(shots="5"))  # as if nothing had been
    assert len(ResultStore.open(tmp_path).read()) == 20


def test_parts_without_the_column_undefined_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(results, "FORMAT", 1)
        earlier.setattr(results, "SCHEMA", SCHEMA.remove(SCHEMA.get_field_index("undefined")))
        ResultStore.open(tmp_path).append(rows())
    ResultStore.open(tmp_path).append(rows(shots="5", undefined=3))
    got = ResultStore.open(tmp_path).read()
    assert got.groupby("shots", observed=True)["undefined"].unique().map(list).to_dict() == {"1": [0], "5": [3]}
    assert got["undefined"].dtype == np.int32
    assert len(ResultStore.open(tmp_path).read(["undefined"])) == 20


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(results, "FORMAT", FORMAT + 1)
        ResultStore.open(tmp_path).append(rows())
    with pytest.raises(
        DataError, match=rf"rows-.*newer fastxfer \(format {FORMAT + 1}, this one reads {FORMAT}\): upgrade"
    ):
        ResultStore.open(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "foreign", "no footer"])
def test_a_damaged_part_is_named(tmp_path, damage):
    ResultStore.open(tmp_path).append(rows())
    part = next(tmp_path.glob("rows-*.parquet"))
    whole = part.read_bytes()
    if damage == "truncated":
        part.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "text":
        part.write_text("no parquet at all\n")
    elif damage == "foreign":
        pd.DataFrame({"a": [1]}).to_parquet(part)
    else:
        table = pq.read_table(part)
        pq.write_table(table.replace_schema_metadata({b"fastxfer": json.dumps(["?"]).encode()}), part)
    with pytest.raises(DataError, match=rf"{part.name}' is damaged or no part of fastxfer's .*Move it away"):
        ResultStore.open(tmp_path)


def test_two_open_stores_see_each_other(tmp_path):
    one, two = ResultStore.open(tmp_path), ResultStore.open(tmp_path)
    one.append(rows(range(10)))
    with pytest.raises(DataError, match="already there"):
        two.append(rows(range(5, 15)))
    two.append(rows(range(10, 15)))
    assert len(one.read()) == 15


def _append(path: Path, stop: int, start: multiprocessing.Barrier, outcome: multiprocessing.Queue) -> None:
    store = ResultStore.open(path)
    start.wait()
    try:
        store.append(rows(range(stop)))
        outcome.put("written")
    except DataError as error:
        outcome.put(str(error))


def test_of_several_writers_of_overlapping_rows_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    start, outcome = context.Barrier(4), context.Queue()
    writers = [context.Process(target=_append, args=(tmp_path, 10 + i, start, outcome)) for i in range(4)]
    for writer in writers:
        writer.start()
    said = sorted(outcome.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    assert said.count("written") == 1
    assert sum("already there" in s for s in said) == 3
    assert not ResultStore.open(tmp_path).read().duplicated(list(KEY)).any()


def test_where_locks_do_not_hold_equal_parts_are_still_refused(tmp_path, monkeypatch):
    """A file system without flock: the second writer looked before the first one wrote."""
    one, two = ResultStore.open(tmp_path), ResultStore.open(tmp_path)
    one.append(rows())
    monkeypatch.setattr(two, "refresh", lambda: None)
    with pytest.raises(DataError, match="another process has just written these rows"):
        two.append(rows())
    assert len(files(tmp_path)) == 1


def test_runs_are_logged_in_order(tmp_path):
    store = ResultStore.open(tmp_path / "results")
    assert store.runs() == []
    store.log_run({"command": "fastxfer fewshot --target größe", "seconds": 1.5})
    store.log_run({"command": "fastxfer probe", "seconds": 2.0, "date": "2026-01-01"})
    got = ResultStore.open(tmp_path / "results").runs()
    assert [run["seconds"] for run in got] == [1.5, 2.0]
    assert got[0]["command"].endswith("größe")
    assert got[0]["date"] > "2020"


def test_a_full_disk_leaves_no_half_line_in_the_log(tmp_path):
    store = ResultStore.open(tmp_path)
    store.log_run({"command": "one"})
    log = tmp_path / "runs.jsonl"
    whole, limits = log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits[1]))  # room for half a line
        with pytest.raises(OSError, match="No space left"):
            store.log_run({"command": "two"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_bytes() == whole
    store.log_run({"command": "three"})
    assert [run["command"] for run in store.runs()] == ["one", "three"]
    log.write_bytes(whole + whole[:20] + b"\n" + whole)  # a line cut by other hands
    with pytest.raises(DataError, match=r"runs\.jsonl', line 2 is damaged: delete that line"):
        store.runs()


def test_results_lie_beside_the_store():
    assert results_path("a/store/") == Path("a/store-results")
    assert results_path(Path("store")) == Path("store-results")
    assert results_path("s3://bucket/store") == Path("bucket_store-results")


def test_rows_stay_small(tmp_path):
    """A million rows under 30 MB; measured on a fifth, in the parts that a study of four probes would write."""
    store = ResultStore.open(tmp_path)
    rng = np.random.default_rng(0)
    for probe in ("logistic", "ridge", "prototype", "knn"):
        cells = [
            rows(range(5000), probe=probe, backbone=f"b{b}", value=rng.integers(0, 76, 5000) / 75) for b in range(10)
        ]
        store.append(pd.concat(cells))
    n_rows = len(store.read())
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert n_rows == 200_000
    assert size / n_rows * 1e6 < 30e6
