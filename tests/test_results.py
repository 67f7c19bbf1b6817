"""Result rows on disk: whole or not at all, never twice, small."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fastxfer import results
from fastxfer.errors import DataError
from fastxfer.results import CELL, FORMAT, KEY, NO_EPISODE, SCHEMA, ImageSums, ResultStore, complete, results_path


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
        broken.setattr(pq if where == "write_table" else results.os, where, full)
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


def sums(images=range(4), n=3, seed=0) -> ImageSums:
    images, rng = np.asarray(list(images)), np.random.default_rng(seed)
    halves = rng.normal(size=(2, len(images)))
    return ImageSums(10, images, images // 2 * 2, np.full(len(images), n), halves.sum(axis=0), halves[0])


def test_images_are_read_as_they_were_written_and_parts_add_up(tmp_path):
    store = ResultStore.open(tmp_path)
    assert list(store.read_images().columns) == [*CELL, "image", "group", "episodes", "rarity", "n", "sum", "odd"]
    one, other = cell_of(rows()), cell_of(rows(shots="5", seed=3))
    store.append(pd.concat([rows(), rows(shots="5", seed=3)]), {one: sums(), other: sums([7, 1000])})
    store.append(rows(range(10, 20)), {one: sums([2, 3, 4], seed=1)})
    got = ResultStore.open(tmp_path).read_images()
    of_one = got[got["shots"] == "1"]
    assert tuple(of_one.iloc[0][list(CELL)]) == one
    assert of_one[["image", "group", "episodes", "n"]].to_numpy().tolist() == [
        [0, 0, 20, 3], [1, 0, 20, 3], [2, 2, 20, 6], [3, 2, 20, 6], [4, 4, 20, 3]
    ]  # fmt: skip
    expected = np.zeros((2, 5))
    for part in (sums(), sums([2, 3, 4], seed=1)):
        expected[:, part.image] += part.sum, part.odd
    np.testing.assert_allclose(of_one[["sum", "odd"]].to_numpy().T, expected, rtol=1e-6)
    assert store.read_images([other])["image"].tolist() == [7, 1000]
    assert store.read_images([other])["seed"].tolist() == [3, 3]
    assert store.read_images([cell_of(rows(shots="9"))]).empty


def test_images_without_rows_are_nobodys(tmp_path, monkeypatch):
    """Killed between the two parts: the images aren't read, and the next run puts its own in their place."""
    store, cell = ResultStore.open(tmp_path), cell_of(rows())

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(results.os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            store.append(rows(), {cell: sums(n=99)})
    assert [name[:6] for name in files(tmp_path)] == ["images"]
    assert ResultStore.open(tmp_path).read_images().empty
    store.append(rows(), {cell: sums()})
    assert ResultStore.open(tmp_path).read_images()["n"].tolist() == [3] * 4
    with pytest.raises(ValueError, match="images of cells without rows"):
        store.append(rows(shots="5"), {cell: sums()})


def test_a_changed_byte_in_the_middle_of_a_part_is_noticed(tmp_path):
    """Wherever it lies, reading ends in the sentence or in the very same rows: pages have checksums."""
    ResultStore.open(tmp_path).append(rows())
    part = next(tmp_path.glob("rows-*.parquet"))
    whole, right = part.read_bytes(), ResultStore.open(tmp_path).read()
    noticed = 0
    for at in range(0, len(whole), 7):
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        try:
            pd.testing.assert_frame_equal(ResultStore.open(tmp_path).read(), right)
        except DataError as error:
            assert re.search(rf"{part.name}' is damaged .*Move it away", str(error))  # noqa: PT017
            noticed += 1
    assert noticed > len(whole) / 7 / 2


def test_rows_without_images_stay_and_a_damaged_part_of_images_is_named(tmp_path):
    store = ResultStore.open(tmp_path)
    store.append(rows())
    store.append(rows(shots="5"), {cell_of(rows(shots="5")): sums()})
    assert set(store.read_images()["shots"]) == {"5"}
    (part,) = tmp_path.glob("images-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{part.name}' is damaged .*Delete it"):
        store.read_images()
    assert len(store.read()) == 20


def test_images_stay_small(tmp_path):
    """A million lines under 12 MB: a study's cells on 5,000 test images, each asked a random number of times."""
    store, rng = ResultStore.open(tmp_path), np.random.default_rng(0)
    image = np.sort(rng.choice(20_000, 5000, replace=False))
    frames, images = [], {}
    for b in range(10):
        frame, n = rows(range(2), backbone=f"b{b}"), rng.poisson(70, 5000)
        halves = rng.normal(size=(2, 5000)) * np.sqrt(n) / 75
        frames.append(frame)
        images[cell_of(frame)] = ImageSums(5000, image, image, n, halves.sum(axis=0), halves[0])
    store.append(pd.concat(frames), images)
    (part,) = tmp_path.glob("images-*.parquet")
    assert part.stat().st_size / 50_000 * 1e6 < 12e6
