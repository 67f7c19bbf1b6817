"""One contract wherever a store lies: in memory, on a disk, in a bucket. The same content has the same digest everywhere."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from test_embed import make_backbone, make_images, one_thread  # noqa: F401 - a fixture
from test_store import ATTRS, DIM, fill, make_target, values_for

from fastxfer.embed import embed
from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, Writer, files, repair, verify
from fastxfer.store.upkeep import copy, merge
from fastxfer.targets.table import Target

N = 30
PLACES = ("memory", "local", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store can be made: the URL or folder, nothing there yet."""
    if request.param == "s3":
        bucket: str = request.getfixturevalue("bucket")
        return bucket
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}-{time.time_ns()}/store"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)


def make(path: str | Path) -> EmbeddingStore:
    """Two targets and three arrays, among them two of one shape and one that lacks rows."""
    store = EmbeddingStore.open(path, mode="a")
    fill(store, make_target(N))
    fill(store, make_target(N), backbone="other", identity="b" * 64, blocks=3)
    fill(store, make_target(N, name="rays", multi=True), dtype="float16")
    return store


def everything(store: EmbeddingStore) -> list[str]:
    async def collect() -> list[str]:
        assert isinstance(store.backing, files.Sealing | files.DurableStore)
        return sorted([key async for key in store.backing.list()])

    return [key for key in files.run(collect()) if not key.startswith(".locks")]


@everywhere
def test_content_and_digest_are_the_same(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no store at"):
        EmbeddingStore.open(place)
    made, reference = make(place), make(tmp_path / "reference")
    store = EmbeddingStore.open(place)
    assert store.digest() == made.digest() == reference.digest()
    assert everything(store) == everything(reference)
    assert (store.targets(), store.backbones("photos")) == (["photos", "rays"], ["other", "tiny"])
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(N)))
    view, which = store.array("tiny", "photos"), np.array([29, 4, 4, 0, 17])
    np.testing.assert_array_equal(view[which], values_for(range(N))[which])
    np.testing.assert_array_equal(view[5:19], values_for(range(N))[5:19])
    assert view[[]].shape == (0, DIM)
    with pytest.raises(DataError, match="18 of 30 rows are missing"):
        store.embeddings("other", "photos")
    assert store.stored("other", "photos").missing()[0] == range(12, 16)
    entries = {(e.backbone, e.target): (e.n_present, e.complete, e.dtype) for e in store.entries()}
    assert entries == {
        ("other", "photos"): (12, False, "float32"),
        ("tiny", "photos"): (30, True, "float32"),
        ("tiny", "rays"): (30, True, "float16"),
    }
    with pytest.raises(UsageError, match="opened for reading"):
        fill(store, make_target(N))


@everywhere
def test_nothing_is_mixed_or_overwritten(place: str) -> None:
    store = make(place)
    digest = store.digest()
    for target, options, words in (
        (make_target(N), {"identity": "c" * 64}, "already holds another backbone's"),
        (make_target(N), {"dtype": "float16"}, "dtype differs"),
        (make_target(N + 1), {}, "is not the one in store"),
    ):
        with pytest.raises(DataError, match=words):
            fill(store, target, **options)  # type: ignore[arg-type]
    fill(store, make_target(N))
    assert store.digest() == digest


@everywhere
def test_rm(place: str) -> None:
    store = make(place)
    store.remove("tiny", "photos")
    assert store.backbones("photos") == ["other"]
    with pytest.raises(UsageError, match="holds no embeddings"):
        store.embeddings("tiny", "photos")
    fill(store, make_target(N), identity="c" * 64, blocks=1)
    assert len(store.stored("tiny", "photos").missing()) == 7
    store.remove(None, "photos")
    assert EmbeddingStore.open(place).targets() == ["rays"]
    assert not any(key.startswith("targets/photos") for key in everything(store))
    assert verify(place).problems == []


@everywhere
def test_cp_and_merge_from_and_to(place: str, tmp_path: Path) -> None:
    store, disk = make(place), EmbeddingStore.open(tmp_path / "disk", mode="a")
    assert copy(store, "tiny", "photos", disk) == N
    fill(store, make_target(N), backbone="third", identity="d" * 64)
    assert sorted(merge(store, disk)) == [
        ("other", "photos", 12),
        ("third", "photos", N),
        ("tiny", "photos", 0),
        ("tiny", "rays", N),
    ]
    assert disk.digest() == store.digest()
    fill(disk, make_target(N), backbone="other", identity="b" * 64)
    assert [rows for *_, rows in merge(disk, store)] == [18, 0, 0, 0]
    assert disk.digest() == store.digest()
    assert verify(place).problems == verify(tmp_path / "disk").problems == []


@everywhere
def test_flips_are_found_and_put_right(place: str) -> None:
    store, rng = make(place), np.random.default_rng(3)
    digest, keys = store.digest(), everything(store)

    def load(name: str) -> Target:
        return make_target(N, name=name, multi=name == "rays")

    for i in range(5 if place.startswith("s3") else 10):
        key = keys[int(rng.integers(len(keys)))]
        content = bytearray(files.read(store.backing, key) or b"")
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        files.write(store.backing, key, content)
        (problem,) = verify(place).problems
        assert key.startswith(problem.path)
        done = repair(place, load=load)
        assert done.left == []
        lost = [len(rows) for some in done.lost.values() for rows in some]
        assert lost == ([len(problem.rows)] if problem.rows else []), (i, key)
        if done.lost:
            ((backbone, target),) = done.lost
            fill(
                store,
                load(target),
                backbone=backbone,
                dtype=store.stored(backbone, target).dtype.name,
                identity=ATTRS["identity"] if backbone == "tiny" else "b" * 64,
                blocks=1,
            )
        assert store.digest() == digest, (i, key)
    assert verify(place).problems == []


@everywhere
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_exports(place: str, tmp_path: Path, suffix: str) -> None:
    store, out = make(place), tmp_path / f"x{suffix}"
    store.export("tiny", "photos", out)
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        values = np.stack(pq.read_table(out)["embedding"].to_numpy())
    else:
        values = np.load(out) if suffix == ".npy" else np.load(out)["embeddings"]
    np.testing.assert_array_equal(values, values_for(range(N)))


@everywhere
def test_embed_interrupted_and_resumed(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, backbone = make_images(tmp_path / "images", 23), make_backbone(tmp_path)
    options = {"batch_size": 2, "block_rows": 4}
    undisturbed = EmbeddingStore.open(tmp_path / "undisturbed", mode="a")
    embed(backbone, [target], undisturbed, **options)  # type: ignore[arg-type]
    store, true, calls = EmbeddingStore.open(place, mode="a"), Writer.write, 0

    def third_block_fails(self: Writer, *values: object, **more: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # a block is written with the digests of its images
            raise KeyboardInterrupt
        true(self, *values, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "write", third_block_fails)
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, [target], store, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(Writer, "write", true)
    assert [e.n_present for e in store.entries()] == [8]
    (done,) = embed(backbone, [target], store, **options)  # type: ignore[arg-type]
    assert done.embedded == 15
    assert store.digest() == undisturbed.digest()
    assert verify(place).problems == []
