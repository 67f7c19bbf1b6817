"""The store: content in = content out, whole blocks or none, nothing mixed, and clear words when it cannot be."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, files, locks, writing
from fastxfer.targets.table import Target

DIM = 5
ATTRS = {
    "identity": "a" * 64,
    "weights_sha256": "w" * 64,
    "architecture": "tiny",
    "arch_args": {"pad": "same"},
    "preprocessing": {"input_size": (3, 8, 8)},
    "pooling": "post",
    "source": "imagenet",
    "checkpoint": "/somewhere/tiny.pt",
}


def make_target(n: int = 10, *, name: str = "photos", patients: bool = True, multi: bool = False) -> Target:
    labels = np.arange(n) % 2
    return Target(
        name=name,
        image_id=np.array([f"a/ä {i}.png" for i in range(n)]),
        class_names=("cat", "dög"),
        labels=np.stack([labels, np.where(labels == 1, np.nan, 0)], 1).astype(np.float32) if multi else labels,
        split=np.array([("train", "val", "test")[i % 3] for i in range(n)]),
        patient=np.array([f"p{i // 2}" for i in range(n)]) if patients else None,
        root=Path("/nowhere"),
        notes=("made by hand",),
    )


def values_for(rows: range) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(1000, DIM))[rows.start : rows.stop].astype(np.float32)


def fill(
    store: EmbeddingStore,
    target: Target,
    *,
    backbone: str = "tiny",
    blocks: int | None = None,
    block_rows: int = 4,
    dtype: str = "float32",
    **attrs: object,
) -> None:
    store.add_target(target)
    with store.writer(
        backbone, target.name, dim=DIM, dtype=dtype, attributes={**ATTRS, **attrs}, block_rows=block_rows
    ) as w:
        for block in w.missing[:blocks]:
            w.write(block, values_for(block), seconds=0.5)


def make_store(path: Path | str, **options: object) -> EmbeddingStore:
    store = EmbeddingStore.open(path, mode="a")
    fill(store, make_target(), **options)  # type: ignore[arg-type]
    return store


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}-{time.time_ns()}/store"


def test_study_view_and_source_come_back(place: str) -> None:
    words = {name: np.array([f"{name} {i % 3}" for i in range(10)]) for name in ("study", "view", "source")}
    target = replace(make_target(), **words)
    EmbeddingStore.open(place, mode="a").add_target(target)
    back = EmbeddingStore.open(place).target("photos")
    assert back.fingerprint == target.fingerprint != make_target().fingerprint
    for name, values in words.items():
        assert getattr(back, name).tolist() == values.tolist()


@pytest.mark.parametrize("patients", [True, False])
@pytest.mark.parametrize("multi", [True, False])
def test_what_goes_in_comes_out(place: str, patients: bool, multi: bool) -> None:
    target = make_target(patients=patients, multi=multi)
    fill(EmbeddingStore.open(place, mode="a"), target)
    store = EmbeddingStore.open(place)
    back = store.target("photos")
    assert back.fingerprint == target.fingerprint
    assert back.notes == target.notes
    assert back.root is None
    assert (back.patient is None) == (not patients)
    np.testing.assert_array_equal(back.labels, target.labels)
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(10)))
    (entry,) = store.entries()
    assert (entry.backbone, entry.target, entry.n_images, entry.dim, entry.dtype) == (
        "tiny",
        "photos",
        10,
        DIM,
        "float32",
    )
    assert entry.complete
    assert entry.n_present == 10
    assert entry.bytes >= 10 * DIM * 4
    attrs = store.attributes("tiny", "photos")
    assert attrs["preprocessing"] == {"input_size": [3, 8, 8]}
    assert attrs["seconds"] == pytest.approx(1.5)
    assert attrs["images_per_second"] == pytest.approx(10 / 1.5)
    assert attrs["source"] == "imagenet"
    assert attrs["date"]


def test_time_is_recorded_as_it_passes_and_each_image_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_RECORD_EVERY", 0.0)
    recorded = []
    change = EmbeddingStore.change_attributes

    def changed(store: EmbeddingStore, *given: Any) -> Any:
        done = change(store, *given)
        recorded.append(store.attributes("tiny", "photos")["n_timed"])
        return done

    monkeypatch.setattr(EmbeddingStore, "change_attributes", changed)
    attrs = make_store(tmp_path / "s").attributes("tiny", "photos")
    assert recorded == [4, 8, 10, 10]
    assert (attrs["n_timed"], attrs["seconds"], attrs["complete"]) == (10, pytest.approx(1.5), True)


def test_layout_is_plain_sharded_checksummed_zarr(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    root = zarr.open_group(tmp_path / "s", mode="r")
    assert root.attrs["fastxfer_format"] == 2
    array = root["targets/photos/embeddings/tiny"]
    assert array.shards == (4, DIM)
    assert array.metadata.zarr_format == 3
    inner = json.loads((tmp_path / "s/targets/photos/embeddings/tiny/zarr.json").read_text())["codecs"][0]
    assert inner["name"] == "sharding_indexed"
    assert [c["name"] for c in inner["configuration"]["codecs"]] == ["bytes", "crc32c"]
    np.testing.assert_array_equal(array[:], values_for(range(10)))
    np.testing.assert_array_equal(root["targets/photos/image_id"][:].tolist(), make_target().image_id.tolist())


def test_float16_rounds_once_and_refuses_overflow(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", dtype="float16")
    back = store.embeddings("tiny", "photos")
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, values_for(range(10)).astype(np.float16))
    with store.writer("big", "photos", dim=1, dtype="float16", attributes=ATTRS) as w:
        with pytest.raises(DataError, match=r"row 3 of 'photos' is too large for float16: use --dtype float32"):
            w.write(range(10), np.where(np.arange(10) == 3, 1e6, 1.0)[:, None])
        with pytest.raises(DataError, match="row 2 of 'photos' is not finite"):
            w.write(range(10), np.where(np.arange(10) == 2, np.nan, 1.0)[:, None])
        assert w.missing == [range(10)]


def test_missing_blocks_are_known_from_files_never_from_values(place: str) -> None:
    store = EmbeddingStore.open(place, mode="a")
    target = make_target()
    store.add_target(target)
    options = {"dim": DIM, "dtype": "float32", "attributes": ATTRS, "block_rows": 4}
    with store.writer("zero", "photos", **options) as w:
        assert w.missing == [range(4), range(4, 8), range(8, 10)]
        w.write(range(4), np.zeros((4, DIM)))  # zeros are values like others …
        w.mark_bad(dict.fromkeys(range(4, 8), "truncated"))
        w.write(range(4, 8), np.full((4, DIM), np.nan))  # … and so is a block without one good image
    (entry,) = store.entries()
    assert (entry.complete, entry.n_images, entry.n_present) == (False, 6, 4)
    with pytest.raises(DataError, match=r"not complete: 2 of 10 rows are missing; run the same `fastxfer embed` again"):
        store.embeddings("zero", "photos")
    with EmbeddingStore.open(place, mode="a").writer("zero", "photos", **options) as w:
        assert w.missing == [range(8, 10)]
        with pytest.raises(ValueError, match="no whole block"):
            w.write(range(8, 9), np.zeros((1, DIM)))
        w.write(range(8, 10), np.ones((2, DIM)))
    np.testing.assert_array_equal(store.embeddings("zero", "photos").sum(1), [0, 0, 0, 0, DIM, DIM])


def test_bad_images_are_left_out_alike_for_every_backbone(tmp_path: Path) -> None:
    target = make_target()
    store = make_store(tmp_path / "s")
    with store.writer("other", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as w:
        w.mark_bad({5: "truncated", 1: "zero bytes"})
        for block in w.missing:
            w.write(block, np.where(np.isin(block, [1, 5])[:, None], np.nan, values_for(block)))
    good = np.delete(np.arange(10), [1, 5])
    assert store.bad_images("photos") == {1: "zero bytes", 5: "truncated"}
    assert store.target("photos").image_id.tolist() == target.image_id[good].tolist()
    assert store.target("photos", keep_bad=True).n_images == 10
    for backbone in ("tiny", "other"):
        np.testing.assert_array_equal(store.embeddings(backbone, "photos"), values_for(range(10))[good])
    assert {e.n_images for e in store.entries()} == {8}


def test_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a").digest()
    assert first == make_store(tmp_path / "elsewhere", checkpoint="/other/name.pt", source="x", block_rows=8).digest()
    assert first == make_store("memory://digest-test").digest()
    different = [
        make_store(tmp_path / "b", identity="b" * 64),
        make_store(tmp_path / "c", dtype="float16"),
        make_store(tmp_path / "d", blocks=2),
        make_store(tmp_path / "e", backbone="tiny2"),
    ]
    bad = make_store(tmp_path / "f")
    with bad.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS) as w:
        w.mark_bad({0: "gone"})
    assert len({first, *(s.digest() for s in different), bad.digest()}) == 6


def test_export_rows_correspond(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", dtype="float16")
    store.export("tiny", "photos", tmp_path / "out" / "x.npz")
    with np.load(tmp_path / "out" / "x.npz", allow_pickle=False) as npz:
        assert sorted(npz.files) == ["class_names", "embeddings", "image_id", "labels", "patient", "split"]
        target = make_target()
        np.testing.assert_array_equal(npz["embeddings"], values_for(range(10)).astype(np.float16))
        for column in ("image_id", "labels", "split", "patient"):
            np.testing.assert_array_equal(npz[column], getattr(target, column))
        assert npz["class_names"].tolist() == ["cat", "dög"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": "b" * 64}, "identity differs"),
        ({"identity": "b" * 64, "weights_sha256": "x"}, "weights_sha256 differs"),
        ({"identity": "b" * 64, "preprocessing": {"input_size": [3, 9, 9]}}, "preprocessing differs"),
        ({"dtype": "float16"}, r"dtype differs \(there float32, now float16\)"),
    ],
)
def test_another_backbone_under_the_same_name_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    store = make_store(tmp_path / "s")
    before = store.digest()
    with pytest.raises(
        DataError, match=rf"already holds another backbone's embeddings of 'photos' as 'tiny': .*{words}"
    ):
        fill(store, make_target(), **change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"--name, or throw the old ones away: `fastxfer store rm tiny photos --yes`"):
        fill(store, make_target(), **change)  # type: ignore[arg-type]
    assert store.digest() == before


def test_a_changed_target_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    target = make_target()
    store.add_target(target)  # the same one is welcome
    changed = replace(target, labels=1 - target.labels)
    with pytest.raises(DataError, match=r"labels or splits changed.*store rm --target photos --yes"):
        store.add_target(changed)
    assert store.target("photos").fingerprint == target.fingerprint


def test_remove(place: str) -> None:
    store = make_store(place)
    fill(store, make_target(), backbone="second")
    fill(store, make_target(name="other"))
    store.remove("tiny", "photos")
    assert [(e.backbone, e.target) for e in store.entries()] == [("tiny", "other"), ("second", "photos")]
    store.remove(None, "photos")
    assert store.targets() == ["other"]
    with pytest.raises(UsageError, match=r"holds no target 'photos'.*It holds: other"):
        store.remove("tiny", "photos")
    with pytest.raises(UsageError, match=r"no embeddings of 'other' by 'tinny'. Did you mean: tiny\?"):
        store.remove("tinny", "other")
    with pytest.raises(UsageError, match="opened for reading"):
        EmbeddingStore.open(place).remove("tiny", "other")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "zarr.json", "a b", "x" * 121, "ä", "..", "a\n"])
def test_names_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "s")
    with pytest.raises(UsageError, match="target name"):
        store.add_target(make_target(name=name))
    with pytest.raises(UsageError, match="target name"):
        store.target(name)
    with pytest.raises(UsageError, match="backbone name"):
        fill(store, make_target(), backbone=name)
    with pytest.raises(UsageError, match="backbone name"):
        store.embeddings(name, "photos")
    with pytest.raises(UsageError, match="backbone name"):
        store.remove(name, "photos")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no store at .*fastxfer embed"):
        EmbeddingStore.open(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no store at"):
        EmbeddingStore.open(tmp_path / "folder")
    (tmp_path / "folder" / "thesis.tex").write_text("…")
    for mode in ("r", "a"):
        with pytest.raises(DataError, match="is not a fastxfer store"):
            EmbeddingStore.open(tmp_path / "folder", mode=mode)  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is a file"):
        EmbeddingStore.open(tmp_path / "folder" / "thesis.tex")
    zarr.create_group(tmp_path / "zarr")
    with pytest.raises(DataError, match="Zarr folder, but not a fastxfer store"):
        EmbeddingStore.open(tmp_path / "zarr")
    zarr.create_group(tmp_path / "new", attributes={"fastxfer_format": 7})
    with pytest.raises(DataError, match=r"made by a newer fastxfer \(format 7, this one reads 2\): upgrade"):
        EmbeddingStore.open(tmp_path / "new")
    (tmp_path / "new" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"zarr\.json is damaged"):
        EmbeddingStore.open(tmp_path / "new")
    with pytest.raises(DataError, match="cannot open this URL"):
        EmbeddingStore.open("nosuch://bucket/x")


def test_a_flipped_byte_is_found_and_its_rows_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    shard = tmp_path / "s/targets/photos/embeddings/tiny/c.1.0"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=r"rows 4 to 7 is damaged .*delete targets/photos/embeddings/tiny/c\.1\.0 and run"
    ):
        store.embeddings("tiny", "photos")
    shard.unlink()  # the advice works:
    fill(store, make_target())
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(10)))
    table = tmp_path / "s/targets/photos/split/c/0"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(DataError, match="targets/photos/split is damaged"):
        store.target("photos")


class FullDisk:
    """Stands in for a file on a disk that fills up after `room` bytes."""

    def __init__(self, real: object, room: int) -> None:
        self.real, self.room = real, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.real.close()  # type: ignore[attr-defined]

    def write(self, content: bytes) -> None:
        self.real.write(bytes(content)[: self.room])  # type: ignore[attr-defined]
        self.real.flush()  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "s", blocks=1)
    before = store.digest()
    files_before = sorted(p for p in (tmp_path / "s").rglob("*") if p.is_file())
    true_open = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kw: object) -> object:
        real = true_open(self, mode, *args, **kw)  # type: ignore[arg-type]
        return FullDisk(real, 20) if mode == "wb" else real

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        fill(store, make_target())
    with pytest.raises(OSError, match="No space left"):
        store.add_target(make_target(name="second"))
    with pytest.raises(OSError, match="No space left"):
        EmbeddingStore.open(tmp_path / "t", mode="a")
    monkeypatch.undo()
    assert sorted(p for p in (tmp_path / "s").rglob("*") if p.is_file()) == files_before
    assert store.digest() == before
    fill(store, make_target())
    assert store.digest() == make_store(tmp_path / "whole").digest()
    EmbeddingStore.open(tmp_path / "t", mode="a").add_target(make_target())


def test_every_write_of_the_store_goes_through_write_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    true = files.write_whole
    monkeypatch.setattr(files, "write_whole", lambda path, content: (written.append(path.name), true(path, content))[1])
    make_store(tmp_path / "s")
    on_disk = [p.name for p in (tmp_path / "s").rglob("*") if p.is_file()]
    assert set(on_disk) <= set(written)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", blocks=1)
    folder = tmp_path / "s/targets/photos/embeddings/tiny"
    (folder / f"c.1.0.abc{files.PARTIAL}").write_bytes(b"half a block")
    assert [e.n_present for e in store.entries()] == [4]
    fill(store, make_target())
    assert not list(folder.glob(f"*{files.PARTIAL}"))
    assert store.entries()[0].complete


def test_a_half_written_table_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    monkeypatch.setattr(zarr.Group, "update_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.add_target(make_target())
    monkeypatch.undo()
    assert (tmp_path / "s/targets/photos/labels").exists()
    assert store.targets() == []
    store.add_target(make_target(n=6))
    assert store.target("photos").n_images == 6


def test_the_second_writer_says_who_holds_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", blocks=1)
    code = (
        "import sys; from fastxfer.store import EmbeddingStore\n"
        f"s = EmbeddingStore.open({str(tmp_path / 's')!r}, mode='a')\n"
        f"with s.writer('tiny', 'photos', dim={DIM}, dtype='float32', attributes={ATTRS!r}, block_rows=4):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            DataError, match=rf"'tiny' on 'photos' is being written by process {holder.pid} on {os.uname().nodename}"
        ):
            fill(store, make_target())
        with pytest.raises(DataError, match="is being written by"):
            store.remove("tiny", "photos")
        fill(store, make_target(), backbone="other")  # another array is free
        assert EmbeddingStore.open(tmp_path / "s").entries()[0].complete  # and readers aren't held up
    finally:
        holder.kill()  # SIGKILL: no clean-up of its own
        holder.wait()
    fill(store, make_target())  # the dead holder's lock is free at once
    assert all(e.complete for e in store.entries())
    assert not list((tmp_path / "s/.locks").iterdir())


def test_a_lock_of_another_machine_counts_while_it_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026-01-01"}))
    with pytest.raises(DataError, match=r"process 1 on elsewhere since 2026-01-01; .*delete"), locks.hold(path, "x"):
        pass
    assert path.exists()
    old = time.time() - locks.SILENT_SECONDS - 10
    os.utime(path, (old, old))
    with locks.hold(path, "x"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_store_on_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    store = EmbeddingStore.open(tmp_path / "s")
    store.embeddings("tiny", "photos")
    store.digest()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    with pytest.raises(UsageError, match="opened for reading"):
        store.add_target(make_target(name="x"))


def test_two_who_make_a_store_at_once_both_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second looks before the first has made it, and makes it after."""
    create, begun = zarr.create_group, []

    def late(backing, **options):
        if not begun:
            begun.append(True)
            EmbeddingStore.open(tmp_path / "s", mode="a").add_target(make_target())
        return create(backing, **options)

    monkeypatch.setattr(zarr, "create_group", late)
    assert EmbeddingStore.open(tmp_path / "s", mode="a").targets() == ["photos"]
