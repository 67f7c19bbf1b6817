"""Stores in a bucket: errors that pass are outlasted, those that stay are told, and writers without locks lose nothing."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3 import FAULTS, Fault, Proxy
from test_store import ATTRS, DIM, fill, make_store, make_target, values_for

from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, claims, files, remote, verify

obstore = pytest.importorskip("obstore")
objects = pytest.importorskip("fastxfer.store.objects")
pytestmark = pytest.mark.s3
N = 40


def requests(proxy: Proxy) -> dict[str, int]:
    told = dict(proxy.methods)
    proxy.methods.clear()
    return told


def test_errors_that_pass_are_outlasted(
    bucket: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_fifth(number: int) -> Fault | None:
        return FAULTS[number // 5 % len(FAULTS)] if number % 5 == 4 else None

    with Proxy(s3_server, every_fifth) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = make_store(bucket)
        assert store.digest() == make_store(tmp_path / "s").digest()
        np.testing.assert_array_equal(
            EmbeddingStore.open(bucket).array("tiny", "photos")[[9, 0]], values_for(range(10))[[9, 0]]
        )
        assert verify(bucket).problems == []
        assert set(proxy.faults) == set(FAULTS)


def test_a_conflict_of_conditional_writes_is_tried_again(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What S3 answers to whoever comes second while another conditional write is under way."""
    store = make_store(bucket)
    key = "targets/photos/embeddings/tiny/zarr.json"
    with Proxy(s3_server, lambda _: "409" if proxy.conflicts < 3 else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        backing: Any = EmbeddingStore.open(bucket, mode="a").backing
        content, version = files.run(backing.get_version(key))
        assert files.run(backing.swap(key, content + b" ", version))
        assert proxy.conflicts == 3
        assert not files.run(backing.swap(key, content, version))  # that version has gone
    assert store.targets() == ["photos"]


def test_a_server_that_stays_down_is_told_and_what_was_written_stays(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PATIENCE", timedelta(seconds=0.3))
    down = threading.Event()
    with Proxy(s3_server, lambda _: "503" if down.is_set() else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = EmbeddingStore.open(bucket, mode="a")
        store.add_target(make_target())
        with (  # noqa: PT012
            pytest.raises(OSError, match=r"object store: .*503"),
            store.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as out,
        ):
            out.write(range(4), values_for(range(4)))
            while len(store.stored("tiny", "photos").missing()) == 3:
                time.sleep(0.01)
            down.set()
            out.write(range(4, 8), values_for(range(4, 8)))
        with pytest.raises(OSError, match=r"object store: .*503"):
            store.stored("tiny", "photos")
        down.clear()
        fill(store, make_target())
        assert verify(bucket).problems == []
        np.testing.assert_array_equal(store.embeddings("tiny", "photos"), values_for(range(10)))


def test_what_is_refused_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(bucket)
    with pytest.raises(OSError, match="object store: NoSuchBucket"):
        EmbeddingStore.open("s3://nobodys-bucket/x", mode="a")
    with pytest.raises(DataError, match="expected s3://bucket/prefix"):
        EmbeddingStore.open("s3:///x")
    with pytest.raises(DataError, match="no store at 's3://"):
        EmbeddingStore.open(f"{bucket}/elsewhere")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(PermissionError, match="object store: SignatureDoesNotMatch"):
        EmbeddingStore.open(bucket)
    monkeypatch.setitem(sys.modules, "fastxfer.store.objects", None)
    with pytest.raises(UsageError, match=r"obstore is not installed: pip install obstore, or fastxfer\[s3\]"):
        EmbeddingStore.open(bucket)


def test_requests_are_few(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = EmbeddingStore.open(bucket, mode="a")
        store.add_target(make_target(N))
        with store.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as out:
            requests(proxy)
            for block in out.missing:
                out.write(block, values_for(block))
        # a block each, the array's zarr.json with its copy, and a claim while that is made
        assert requests(proxy)["PUT"] == N // 4 + 3
        array = EmbeddingStore.open(bucket).stored("tiny", "photos")
        requests(proxy)
        array.read(range(N))
        assert requests(proxy) == {"GET": N // 4}
        array.take(np.array([39, 1, 2, 38, 1]))
        assert requests(proxy) == {"GET": 2}
        monkeypatch.setattr(remote, "WHOLE_BYTES", 0)  # as if the blocks were large: a chunk each
        np.testing.assert_array_equal(array.take(np.array([39, 1, 2, 38, 1])), values_for(range(N))[[39, 1, 2, 38, 1]])
        assert requests(proxy) == {"GET": 2}
        assert array.missing() == []
        assert requests(proxy) == {"GET": 1}
        assert store.size("targets")[0] == 30
        assert requests(proxy) == {"GET": 1}
        store.remove("tiny", "photos")
        assert requests(proxy)["POST"] <= 4


def test_a_damaged_chunk_of_a_large_block_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    store = EmbeddingStore.open(bucket, mode="a")
    fill(store, make_target(200), block_rows=128)
    key = "targets/photos/embeddings/tiny/c.1.0"
    content = bytearray(files.read(store.backing, key) or b"")
    content[3] ^= 1
    files.write(store.backing, key, content)
    assert store.array("tiny", "photos")[[5, 100]].shape == (2, DIM)
    with pytest.raises(DataError, match="checksum of rows 128 to 191 is wrong"):
        store.array("tiny", "photos")[[130, 5]]
    files.write(store.backing, key, content[:100])
    with pytest.raises(DataError, match="rows 128 to 199"):
        store.array("tiny", "photos")[[5, 130]]


def test_two_writers_share_an_array_and_lose_nothing(bucket: str, tmp_path: Path) -> None:
    """No locks there: both write the same blocks, each another order, each marks other images and counts its seconds."""
    target, marked = make_target(N), {0: {3: "cut", 17: "cut"}, 1: {8: "not an image", 30: "cut"}}
    values = values_for(range(N))
    values[[3, 8, 17, 30]] = np.nan
    EmbeddingStore.open(bucket, mode="a").add_target(target)
    together, errors = threading.Barrier(2), []

    def write(who: int) -> None:
        try:
            store = EmbeddingStore.open(bucket, mode="a")
            together.wait()
            with store.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as out:
                for row, why in marked[who].items():
                    out.mark_bad({row: why})
                together.wait()
                for block in out.missing[:: 1 - 2 * who]:
                    out.write(block, values[block.start : block.stop], seconds=1.0)
        except BaseException as error:
            together.abort()
            errors.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store, alone = EmbeddingStore.open(bucket), EmbeddingStore.open(tmp_path / "alone", mode="a")
    assert verify(bucket).problems == []
    assert store.bad_images("photos") == marked[0] | marked[1]
    attributes = store.attributes("tiny", "photos")
    assert attributes["complete"] is True
    assert (attributes["n_timed"], attributes["seconds"]) == (2 * N, 20.0)
    alone.add_target(target)
    with alone.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as out:
        out.mark_bad(marked[0] | marked[1])
        for block in out.missing:
            out.write(block, values[block.start : block.stop])
    assert store.digest() == alone.digest()


def test_another_backbone_that_slipped_in_is_found_not_mixed(bucket: str) -> None:
    """Two who begin the same name at once with other weights: the later zarr.json counts, and the other's blocks are no rows."""
    first, second = (EmbeddingStore.open(bucket, mode="a") for _ in range(2))
    first.add_target(make_target())
    with first.writer("tiny", "photos", dim=DIM, dtype="float32", attributes=ATTRS, block_rows=4) as out:
        out.write(range(4), values_for(range(4)))
        document = files.read_json(second.backing, "targets/photos/embeddings/tiny/zarr.json")
        assert document is not None
        document["attributes"]["identity"] = "b" * 64
        files.write_json(second.backing, "targets/photos/embeddings/tiny/zarr.json", document)
    with pytest.raises(DataError, match="its seal is damaged, or it is another block's"):
        second.stored("tiny", "photos").read(range(4))
    assert [p.rows for p in verify(bucket).problems] == [range(4)]


@pytest.mark.parametrize("n_requests", range(7))
def test_a_removal_cut_short_leaves_nothing_that_is_taken_for_rows(
    bucket: str, monkeypatch: pytest.MonkeyPatch, n_requests: int
) -> None:
    store = make_store(bucket)
    true, done = obstore.delete_async, 0

    async def some(*arguments: Any) -> None:
        nonlocal done
        if done == n_requests:
            raise RuntimeError("killed")
        done += 1
        await true(*arguments)

    with monkeypatch.context() as patch, suppress(RuntimeError):
        patch.setattr(obstore, "delete_async", some)
        store.remove(None, "photos")
    other = EmbeddingStore.open(bucket, mode="a")
    if other.targets() and other.backbones("photos"):
        other.remove("tiny", "photos")
    fill(other, make_target(), blocks=1, identity="b" * 64)
    assert len(other.stored("tiny", "photos").missing()) == 2
    assert verify(bucket).problems == []


def test_a_claim_is_one_processs_at_a_time_and_a_dead_ones_is_taken_over(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claims, "SILENT_SECONDS", 0.5)
    backing: Any = EmbeddingStore.open(bucket, mode="a").backing
    inside, seen = 0, []

    def work() -> None:
        nonlocal inside
        with claims.claim(backing, ".locks/x", "it", wait=60.0):
            inside += 1
            seen.append(inside)
            time.sleep(0.1)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 6
    with claims.claim(backing, ".locks/x", "it", wait=1.0):
        time.sleep(0.7)  # longer than silence lasts: the holder beats
        with pytest.raises(DataError, match=r"^it is being written by process \d+ on"):
            claims._take(backing, ".locks/x", {"host": "b", "claim": "b"}, "it", time.monotonic() + 0.7)
    for holder in (b'{"host": "gone", "pid": 1}', b"{"):
        assert files.run(backing.create(".locks/x", holder))
        assert not files.run(backing.create(".locks/x", holder))
        with claims.claim(backing, ".locks/x", "it", wait=60.0):
            pass
    assert files.read(backing, ".locks/x") is None


def test_many_who_add_a_target_at_once_leave_one_whole_table(bucket: str) -> None:
    errors: list[BaseException] = []

    def add() -> None:
        try:
            store = EmbeddingStore.open(bucket, mode="a")
            store.add_target(make_target())
            assert store.target("photos").n_images == 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
