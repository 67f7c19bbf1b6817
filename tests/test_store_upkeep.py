"""Sizes, what can go, copies, unions, stores of format 1, exports, disks that fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_store import ATTRS, DIM, fill, make_store, make_target, values_for
from zarr.codecs import Crc32cCodec

from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, files, locks, verify
from fastxfer.store.upkeep import copy, leftovers, merge, migrate, remove_leftovers, usage
from fastxfer.targets.table import ABOUT, Target

E = "targets/photos/embeddings"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


# -- format 1 ----------------------------------------------------------------------------------------------------------


def format_1(path: Path, target: Target, blocks: int = 3, dtype: str = "float32") -> None:
    """A store as fastxfer wrote it before seals, by plain zarr-python; `tiny` in blocks of 4 rows."""
    zarr.create_group(path, attributes={"fastxfer_format": 1}, zarr_format=3)
    prefix = f"targets/{target.name}"
    group = zarr.create_group(path, path=prefix, zarr_format=3)
    for column in ("image_id", "labels", "split", *(a for a in ABOUT if getattr(target, a) is not None)):
        values = getattr(target, column)
        words = values.dtype.kind == "U"
        array = zarr.create_array(
            path,
            name=f"{prefix}/{column}",
            shape=values.shape,
            dtype=str if words else values.dtype,
            chunks=values.shape,
            compressors=Crc32cCodec(),
        )
        array[:] = values.astype(np.dtypes.StringDType()) if words else values
    group.update_attributes(
        {
            "name": target.name, "class_names": list(target.class_names), "multi_label": target.multi_label,
            "n_images": target.n_images, "notes": list(target.notes), "pixels": target.pixels.as_dict(), "files": "",
            "date": "2026-01-01T00:00:00+00:00", "bad": {"1": "truncated"}, "fingerprint": target.fingerprint,
        }
    )  # fmt: skip
    array = zarr.create_array(
        path,
        name=f"{prefix}/embeddings/tiny",
        shape=(target.n_images, DIM),
        dtype=dtype,
        chunks=(4, DIM),
        shards=(4, DIM),
        compressors=Crc32cCodec(),
        fill_value=float("nan"),
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={"date": "2026-01-01T00:00:00+00:00", "seconds": 1.5, "n_timed": 10, **files.as_json(ATTRS)},
        config={"write_empty_chunks": True},
    )
    for start in range(0, 4 * blocks, 4):
        rows = range(start, min(start + 4, target.n_images))
        array[rows.start : rows.stop] = values_for(rows)


def test_format_1_is_read_but_not_added_to(tmp_path: Path) -> None:
    target = make_target()
    format_1(tmp_path / "s", target)
    store = EmbeddingStore.open(tmp_path / "s")
    good = np.delete(np.arange(10), 1)
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(10))[good])
    np.testing.assert_array_equal(store.array("tiny", "photos")[[8, 0]], values_for(range(10))[good][[8, 0]])
    assert store.target("photos", keep_bad=True).fingerprint == target.fingerprint
    with pytest.raises(DataError, match=r"has format 1, which can be read but not added to: `fastxfer store migrate"):
        EmbeddingStore.open(tmp_path / "s", mode="a")
    with pytest.raises(DataError, match=r"format 1, whose files don't tell enough.*store migrate"):
        verify(tmp_path / "s")
    shard = tmp_path / "s" / E / "tiny/c.1.0"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"rows 4 to 7 is damaged .*delete targets/photos/embeddings/tiny/c\.1\.0"):
        store.embeddings("tiny", "photos")


@pytest.mark.parametrize(("blocks", "dtype"), [(3, "float32"), (2, "float16")])
def test_migration_keeps_everything_and_is_kill_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, dtype: str
) -> None:
    class Killed(BaseException):
        pass

    format_1(tmp_path / "s", make_target(), blocks, dtype)
    before = EmbeddingStore.open(tmp_path / "s")
    digest, attributes = before.digest(), before.attributes("tiny", "photos")
    true, runs, left = files.write_whole, 0, 0

    def write(file: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        true(file, content)

    monkeypatch.setattr(files, "write_whole", write)
    for writes in range(1, 100):  # each run a little further than the one before, on the same store
        runs, left = runs + 1, writes
        try:
            migrate(tmp_path / "s")
            break
        except Killed:
            left = 10**6
            assert EmbeddingStore.open(tmp_path / "s").digest() == digest
    assert runs > 5
    left = 10**6
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    assert store.version == 2
    assert store.digest() == digest
    assert store.attributes("tiny", "photos") == {**attributes, "complete": blocks == 3}
    assert store.bad_images("photos") == {1: "truncated"}
    report = verify(tmp_path / "s")
    assert (report.problems, report.blocks) == ([], blocks)
    assert migrate(tmp_path / "s") == 0
    fill(store, make_target(), dtype=dtype)
    assert verify(tmp_path / "s").incomplete == {}
    plain = zarr.open_array(tmp_path / "s" / E / "tiny", mode="r")
    np.testing.assert_array_equal(plain[:], values_for(range(10)).astype(dtype))


def test_a_damaged_block_keeps_the_old_format_until_it_is_gone(tmp_path: Path) -> None:
    format_1(tmp_path / "s", make_target())
    shard = tmp_path / "s" / E / "tiny/c.1.0"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"keeps format 1, since blocks of it are damaged; delete them.*rows 4 to 7"):
        migrate(tmp_path / "s")
    shard.unlink()
    migrate(tmp_path / "s")
    assert verify(tmp_path / "s").incomplete == {("tiny", "photos"): 4}


# -- copies and unions -------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same(tmp_path: Path) -> None:
    one = make_store(tmp_path / "one")
    with one.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as w:
        w.mark_bad({3: "truncated"})
    other = EmbeddingStore.open("memory://copy-test/s", mode="a")
    assert copy(one, "tiny", "photos", other) == 10
    assert other.digest() == one.digest()
    assert other.attributes("tiny", "photos") == one.attributes("tiny", "photos")
    assert copy(one, "tiny", "photos", other) == 0
    assert verify("memory://copy-test/s").problems == []


def test_stores_with_different_blocks_become_one(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole")
    ours = make_store(tmp_path / "ours", blocks=1)
    theirs = make_store(tmp_path / "theirs")
    (tmp_path / "theirs" / E / "tiny/c.1.0").unlink()
    fill(theirs, make_target(name="rays"), backbone="second", identity="b" * 64)
    theirs.add_target(make_target(name="bare"))
    theirs.record_bad("bare", {2: "truncated"})  # its embeddings were removed since
    assert merge(theirs, ours) == [("tiny", "photos", 2), ("second", "rays", 10)]
    assert ours.entries("photos")[0].n_present == 6
    assert ours.targets() == ["bare", "photos", "rays"]
    assert ours.fingerprint("bare") == theirs.fingerprint("bare") == make_target(name="bare").fingerprint
    assert merge(whole, ours) == [("tiny", "photos", 4)]
    assert ours.entries("photos")[0].complete
    np.testing.assert_array_equal(ours.embeddings("tiny", "photos"), values_for(range(10)))
    assert verify(tmp_path / "ours").problems == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("identity", "another backbone's embeddings of 'photos' as 'tiny'"),
        ("labels", "labels or splits changed"),
        ("bad", "other images could not be decoded"),
    ],
)
def test_what_doesnt_belong_together_is_named_and_nothing_is_merged(tmp_path: Path, change: str, words: str) -> None:
    ours, theirs = make_store(tmp_path / "ours"), EmbeddingStore.open(tmp_path / "theirs", mode="a")
    target = make_target()
    fill(theirs, make_target(name="fine"))
    fill(
        theirs,
        replace(target, labels=1 - target.labels) if change == "labels" else target,
        identity=("b" if change == "identity" else "a") * 64,
    )
    if change == "bad":
        theirs.record_bad("photos", {2: "truncated"})
    digest = ours.digest()
    with pytest.raises(DataError, match=rf"nothing was merged; 1 of 2 arrays don't fit: .*{words}"):
        merge(theirs, ours)
    with pytest.raises(DataError, match=words):
        copy(theirs, "tiny", "photos", ours)
    assert ours.digest() == digest


# -- what can go -------------------------------------------------------------------------------------------------------


def test_what_nobody_needs_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = make_store(path, blocks=2)
    digest = store.digest()
    assert leftovers(store) == []
    store.add_target(make_target(name="bare"))
    zarr.create_group(store.backing, path="targets/half", zarr_format=3)
    (path / ".locks/old").write_text(json.dumps({"pid": 1, "host": os.uname().nodename}))
    for where in (E + "/tiny", "targets/photos"):
        partial = path / where / f"x.abc{files.PARTIAL}"
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - 9999,) * 2)
    fresh = path / "targets" / f"y.abc{files.PARTIAL}"
    fresh.write_bytes(b"somebody may be writing this")
    trash = path / "targets" / f"{files.TRASH}abc"
    shutil.copytree(path / E / "tiny", trash)
    with store.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4):
        busy = path / E / "tiny" / f"c.2.0.abc{files.PARTIAL}"
        busy.write_bytes(b"being written")
        found = {left.path: left.why for left in leftovers(EmbeddingStore.open(path))}
        busy.unlink()
    assert found == {
        ".locks/old": "a lock that nobody holds",
        f"targets/photos/x.abc{files.PARTIAL}": "a file that was never finished",
        f"targets/{files.TRASH}abc": "a removal that was cut short",
        "targets/bare": "a table without embeddings",
        "targets/half": "a table that was never finished",
    }
    remove_leftovers(store, leftovers(store))
    assert [left.path for left in leftovers(store)] == []
    assert fresh.exists()
    assert store.digest() == digest
    with pytest.raises(UsageError, match="opened for reading"):
        remove_leftovers(EmbeddingStore.open(path), [])


def test_sizes_add_up(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    found = usage(store)
    assert [(u.target, u.backbone) for u in found] == [("photos", ""), ("photos", "tiny")]
    inside = [p for p in (tmp_path / "s/targets/photos").rglob("*") if p.is_file()]
    shared = [p for p in (tmp_path / "s" / E).rglob("zarr.json") if "tiny" not in p.parts]
    assert sum(u.files for u in found) == len(inside) - len(shared)
    assert sum(u.bytes for u in found) == sum(p.stat().st_size for p in inside) - sum(p.stat().st_size for p in shared)


# -- for other programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi", [False, True])
def test_parquet_and_a_mapped_npy(tmp_path: Path, multi: bool) -> None:
    import pyarrow.parquet as pq

    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    target = replace(make_target(multi=multi), view=np.array(["PA"] * 10))
    fill(store, target, dtype="float16")
    x = values_for(range(10)).astype(np.float16)
    store.export("tiny", "photos", tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()).astype(np.float16), x)
    store.export("tiny", "photos", tmp_path / "x.npy")
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, x)
    beside = pq.read_table(tmp_path / "x.rows.parquet")
    assert beside.to_pandas().equals(table.drop_columns("embedding").to_pandas())
    for column in ("image_id", "split", "patient", "view"):
        assert beside[column].to_pylist() == getattr(target, column).tolist()
    if multi:
        np.testing.assert_array_equal(beside["label:dög"].to_numpy(), target.labels[:, 1])
    else:
        assert beside["label"].to_pylist() == ["cat", "dög"] * 5
    with pytest.raises(UsageError, match=r"expected a name ending in \.npz, \.parquet, \.npy"):
        store.export("tiny", "photos", tmp_path / "x.csv")


def test_an_export_of_a_damaged_array_writes_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    os.truncate(tmp_path / "s" / E / "tiny/c.2.0", 9)
    for name in ("x.npz", "x.npy", "x.parquet"):
        with pytest.raises(DataError, match="rows 8 to 9 is damaged"):
            store.export("tiny", "photos", tmp_path / "out" / name)
    assert list((tmp_path / "out").glob("*")) == []


def test_xarray_is_labelled_and_holds_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xarray")
    store = make_store(tmp_path / "s")
    read = store.embeddings("tiny", "photos")
    monkeypatch.setattr(store, "embeddings", lambda *_: read)
    x = store.xarray("tiny", "photos")
    assert x.dims == ("image", "dim")
    assert np.shares_memory(x.values, read)
    np.testing.assert_array_equal(x.sel(image="a/ä 3.png"), read[3])
    assert x.label.values.tolist() == ["cat", "dög"] * 5
    assert x.attrs["identity"] == ATTRS["identity"]


# -- disks that fail ---------------------------------------------------------------------------------------------------


def test_a_vanished_mount_is_not_written_into(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", blocks=1)
    with store.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as w:
        (tmp_path / "s").rename(tmp_path / "away")
        (tmp_path / "s").mkdir()  # the folder that lay under the mount
        w.write(range(4, 8), values_for(range(4, 8)))
        with pytest.raises(
            DataError, match=r"is gone while being written .*mounted\? What was written before is on it"
        ):
            w.finish()
        (tmp_path / "s").rmdir()
        (tmp_path / "away").rename(tmp_path / "s")
    fill(EmbeddingStore.open(tmp_path / "s", mode="a"), make_target())
    assert verify(tmp_path / "s").problems == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_writing_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = make_store(tmp_path / "s", blocks=1)
    digest = store.digest()

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            fill(store, make_target())
        with pytest.raises(OSError, match=os.strerror(number)):
            store.record_bad("photos", {1: "x"})
    assert store.digest() == digest
    assert verify(tmp_path / "s").problems == []
    fill(store, make_target())
    assert store.entries()[0].complete


def test_a_read_only_file_system_is_read_and_says_so_when_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "s")
    true = os.open

    def read_only(path: object, flags: int, *more: int, **kw: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return true(path, flags, *more, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    store = EmbeddingStore.open(tmp_path / "s")
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(10)))
    assert verify(tmp_path / "s").problems == []
    assert leftovers(store) == []
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    with pytest.raises(OSError, match="Read-only file system"):
        store.add_target(make_target(name="new"))


def test_a_lock_is_seen_to_be_held(tmp_path: Path) -> None:
    assert not locks.is_held(tmp_path / "lock")
    with locks.hold(tmp_path / "lock", "x") as path:
        assert locks.is_held(path)
    path.write_text("{}")
    assert not locks.is_held(path)
