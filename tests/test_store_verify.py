"""Whatever happens to a store's bytes is found and named, and putting it right costs exactly the rows concerned."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_store import ATTRS, fill, make_target

from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, Problem, Writer, files, repair, verify
from fastxfer.targets.table import Target

N = 30


def make(path: Path) -> EmbeddingStore:
    """Two targets and three arrays, among them two of one shape."""
    store = EmbeddingStore.open(path, mode="a")
    fill(store, make_target(N))
    fill(store, make_target(N), backbone="other", identity="b" * 64)
    fill(store, make_target(N, name="rays", multi=True), dtype="float16")
    return store


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "s"
    make(path)
    return path


@pytest.fixture
def path(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "s"))


def load(name: str) -> Target:
    return make_target(N, name=name, multi=name == "rays")


def embed_again(path: Path) -> int:
    """Write what is missing, as `embed` does; how many rows that were."""
    store, n = EmbeddingStore.open(path, mode="a"), 0
    true = Writer.write

    def count(self: Writer, block: range, *more: object) -> None:
        nonlocal n
        n += len(block)
        true(self, block, *more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", lambda self, block, *more, **_: count(self, block, *more))
        fill(store, make_target(N))
        fill(store, make_target(N), backbone="other", identity="b" * 64)
        fill(store, make_target(N, name="rays", multi=True), dtype="float16")
    return n


def found(path: Path) -> list[Problem]:
    return verify(path).problems


def flip(file: Path, at: int, how: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= how
    file.write_bytes(content)


def test_a_good_store_is_good_and_stays_as_it_is(path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    report = verify(path)
    assert report.problems == []
    assert (report.arrays, report.blocks, report.incomplete) == (3, 24, {})
    assert report.bytes == sum(p.stat().st_size for p in path.rglob("c.*.0"))
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert repair(path).done == []


def test_a_hundred_of_a_hundred_flips_are_found_named_and_put_right(good: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    digest = EmbeddingStore.open(good).digest()
    path = Path(shutil.copytree(good, tmp_path / "s"))
    all_files = sorted(p for p in path.rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in all_files])
    for i in range(100):
        weights = sizes / sizes.sum() if i % 3 else None  # any byte, or any file
        file = all_files[rng.choice(len(all_files), p=weights)]
        content = file.read_bytes()
        flip(file, int(rng.integers(len(content))), int(rng.integers(1, 256)))
        key = file.relative_to(path).as_posix()
        problems = found(path)
        assert len(problems) == 1, key
        assert key.startswith(problems[0].path), key
        block = file.name.startswith("c.")
        if block:
            number = int(file.name.split(".")[1])
            assert problems[0].rows == range(4 * number, min(4 * number + 4, N))
            assert problems[0].backbone == file.parent.name
        if i % 4:
            file.write_bytes(content)
            continue
        repaired = repair(path, load=load)
        assert repaired.left == []
        assert len(repaired.done) == 1
        assert file.exists() != block  # exactly the block is gone
        if block:
            assert embed_again(path) == len(problems[0].rows or [])
        assert found(path) == []
        if file.suffix != ".json":
            assert file.read_bytes() == content
    assert EmbeddingStore.open(path).digest() == digest


def test_the_stores_inside_are_looked_at_and_put_right_too(path: Path) -> None:
    """Digests of images and kept pixels lie in stores of their own."""
    inside = EmbeddingStore.open(path / "contents", mode="a")
    fill(inside, make_target(N), backbone="blake2b", identity="c" * 64)
    assert found(path) == []
    whole = EmbeddingStore.open(path / "contents").digest()
    names = [p for p in (path / "contents").rglob("*") if p.is_file() and ".locks" not in p.parts]
    for file in names:
        content = file.read_bytes()
        flip(file, len(content) // 2, 8)
        (problem,) = found(path)
        assert file.relative_to(path).as_posix().startswith(problem.path)
        assert verify(path, "tiny", "photos").problems == []
        repaired = repair(path, load=load)
        assert repaired.left == []
        assert repaired.done[0].startswith("contents/")
        assert repaired.lost == {}  # no embeddings
        assert found(path) == []
        file.write_bytes(content)
    fill(EmbeddingStore.open(path / "contents", mode="a"), make_target(N), backbone="blake2b", identity="c" * 64)
    assert EmbeddingStore.open(path / "contents").digest() == whole


def test_every_flip_of_a_zarr_json_shows(path: Path) -> None:
    key = "targets/photos/embeddings/tiny/zarr.json"
    content = (path / key).read_bytes()
    assert files.is_sealed(key, content)
    assert not files.is_sealed("targets/photos/embeddings/other/zarr.json", content)
    for at in range(len(content)):
        for how in (1 << (at % 8), 0x20, 0x2A, 0xFF):
            assert not files.is_sealed(key, content[:at] + bytes([content[at] ^ how]) + content[at + 1 :]), at


@pytest.mark.parametrize("name", ["targets/photos/split/c/0", "targets/rays/labels/c/0/0"])
def test_every_flip_of_a_column_shows(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    for at in range(0, len(content), 15):
        flip(path / name, at, 1 << (at % 8))
        assert [p.kind for p in found(path)] == ["table"], at
        (path / name).write_bytes(content)


def test_whitespace_and_spelling_count(path: Path) -> None:
    file = path / "targets/photos/zarr.json"
    content = file.read_text()
    for changed in (content.replace("\n", "\n ", 1), content.rstrip(), content.replace("\\u00f6", "ö")):
        assert changed != content
        file.write_text(changed)
        assert [p.path for p in found(path)] == ["targets/photos/zarr.json"]


def swap(a: Path, b: Path) -> None:
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)


E = "targets/photos/embeddings"
DAMAGE: dict[str, tuple[Callable[[Path], object], list[str], int]] = {
    # what happens -> (how, the files that verify names, rows that are to be made anew)
    "a block is truncated": (lambda p: os.truncate(p / E / "tiny/c.2.0", 100), [f"{E}/tiny/c.2.0"], 4),
    "a block is empty": (lambda p: os.truncate(p / E / "tiny/c.7.0", 0), [f"{E}/tiny/c.7.0"], 2),
    "a block is missing": (lambda p: (p / E / "tiny/c.2.0").unlink(), [f"{E}/tiny/c.2.0"], 4),
    "two blocks of an array are exchanged": (
        lambda p: swap(p / E / "tiny/c.2.0", p / E / "tiny/c.3.0"),
        [f"{E}/tiny/c.2.0", f"{E}/tiny/c.3.0"],
        8,
    ),
    "two arrays' blocks are exchanged": (
        lambda p: swap(p / E / "tiny/c.2.0", p / E / "other/c.2.0"),
        [f"{E}/other/c.2.0", f"{E}/tiny/c.2.0"],
        8,
    ),
    "a block is copied to another place": (
        lambda p: shutil.copy(p / E / "tiny/c.2.0", p / E / "tiny/c.5.0"),
        [f"{E}/tiny/c.5.0"],
        4,
    ),
    "a block lies beyond the rows": (
        lambda p: shutil.copy(p / E / "tiny/c.2.0", p / E / "tiny/c.9.0"),
        [f"{E}/tiny/c.9.0"],
        0,
    ),
    "two arrays' metadata are exchanged": (
        lambda p: swap(p / E / "tiny/zarr.json", p / E / "other/zarr.json"),
        [f"{E}/other/zarr.json", f"{E}/tiny/zarr.json"],
        0,
    ),
    "metadata is missing": (lambda p: (p / E / "tiny/zarr.json").unlink(), [f"{E}/tiny/zarr.json"], 0),
    "the root's metadata is missing": (lambda p: (p / "zarr.json").unlink(), ["zarr.json"], 0),
    "both of the root's are damaged": (
        lambda p: (os.truncate(p / "zarr.json", 5), os.truncate(p / ".copy/zarr.json", 5)),
        [".copy/zarr.json", "zarr.json"],
        0,
    ),
    "a target's metadata is missing": (
        lambda p: (p / "targets/photos/zarr.json").unlink(),
        ["targets/photos/zarr.json"],
        0,
    ),
    "a column is missing": (lambda p: shutil.rmtree(p / "targets/photos/split"), ["targets/photos"], 0),
    "a column's chunk is missing": (lambda p: (p / "targets/photos/labels/c/0").unlink(), ["targets/photos"], 0),
    "two targets' columns are exchanged": (
        lambda p: swap(p / "targets/photos/split/c/0", p / "targets/photos/patient/c/0"),
        ["targets/photos"],
        0,
    ),
    "metadata and a block": (
        lambda p: (flip(p / E / "tiny/zarr.json", 50, 1), flip(p / E / "tiny/c.0.0", 50, 1)),
        [f"{E}/tiny/c.0.0", f"{E}/tiny/zarr.json"],
        4,
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_cut_gone_or_in_another_place(path: Path, good: Path, what: str) -> None:
    how, named, lost = DAMAGE[what]
    how(path)
    assert sorted(p.path for p in found(path)) == named
    out = repair(path, load=load)
    assert out.left == []
    assert sum(len(r) for rows in out.lost.values() for r in rows) == lost
    assert embed_again(path) == lost
    assert found(path) == []
    assert EmbeddingStore.open(path).digest() == EmbeddingStore.open(good).digest()


def test_metadata_that_is_gone_with_its_copy_is_missed(path: Path) -> None:
    for name in ("zarr.json", ".copy/zarr.json"):
        (path / "targets/photos" / name).unlink()
    (problem,) = found(path)
    assert (problem.path, problem.why) == ("targets/photos/zarr.json", "it and its copy are missing")


def test_what_cannot_be_restored_is_left_and_said(path: Path) -> None:
    array = path / E / "tiny"
    flip(array / "zarr.json", 9, 1)
    flip(array / ".copy/zarr.json", 9, 1)
    flip(path / "targets/rays/labels/c/0/0", 9, 1)
    out = repair(path)
    assert out.done == []
    assert sorted(p.path for p in out.left) == [f"{E}/tiny/.copy/zarr.json", f"{E}/tiny/zarr.json", "targets/rays"]
    # A target of that name which is another one is no help, and does no harm.
    other = make_target(N - 1, name="rays", multi=True)
    assert len(repair(path, load=lambda _: other).left) == 3
    assert repair(path, load=load).done == [
        "targets/rays: the table's columns are written anew, from the registered target"
    ]


def test_an_interrupted_run_is_no_damage(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    fill(store, make_target(N), blocks=3)
    report = verify(tmp_path / "s")
    assert report.problems == []
    assert report.incomplete == {("tiny", "photos"): 18}
    fill(store, make_target(N))
    assert verify(tmp_path / "s").incomplete == {}


def test_a_kill_between_two_writes_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every single file that a run writes, in turn, is the last one before it dies; and so for a repair."""

    class Killed(BaseException):
        pass

    true, left = files.write_whole, 0

    def write(file: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_name(f"{file.name}.abc{files.PARTIAL}").write_bytes(bytes(content)[:5])
            raise Killed
        left -= 1
        true(file, content)

    monkeypatch.setattr(files, "write_whole", write)
    path = tmp_path / "s"
    for writes in range(1, 200):
        left = writes
        shutil.rmtree(path, ignore_errors=True)
        try:
            fill(EmbeddingStore.open(path, mode="a"), make_target(9))
        except Killed:
            left = 10**6
            if (path / "zarr.json").exists():
                assert found(path) == [], writes
            fill(EmbeddingStore.open(path, mode="a"), make_target(9))
            assert found(path) == []
            continue
        break
    assert 20 < writes < 60
    left = 10**6
    digest = EmbeddingStore.open(path).digest()
    for writes in range(20):
        flip(path / E / "tiny/c.1.0", 30, 4)
        flip(path / "targets/photos/zarr.json", 30, 4)
        left = writes
        try:
            repair(path)
        except Killed:
            left = 10**6
            repair(path)
            fill(EmbeddingStore.open(path, mode="a"), make_target(9))
            assert found(path) == []
            assert EmbeddingStore.open(path).digest() == digest
            continue
        break
    assert writes > 2


def test_a_read_error_is_no_reason_to_remove(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == "c.1.0":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return true(self)

    whole = verify(path).bytes
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        report = verify(path)
        problems = report.problems
        assert whole - report.bytes == sum((path / p.path).stat().st_size for p in problems), "what is read is counted"
        assert {(p.kind, p.why) for p in problems} == {("unreadable", "Input/output error")}
        assert len(problems) == 3
        assert len(repair(path).left) == 3
    assert found(path) == []


def test_one_array_at_a_time(path: Path) -> None:
    flip(path / E / "tiny/c.1.0", 3, 1)
    assert verify(path, "other", "photos").problems == []
    assert [p.path for p in verify(path, "tiny", "photos").problems] == [f"{E}/tiny/c.1.0"]
    assert repair(path, "other", "photos").done == []
    with pytest.raises(UsageError, match=r"no embeddings of 'photos' by 'tinny'. Did you mean: tiny"):
        verify(path, "tinny", "photos")
    with pytest.raises(UsageError, match="no target 'photo'"):
        verify(path, "tiny", "photo")


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no store at"):
        verify(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a fastxfer store"):
        verify(tmp_path)


def test_who_edits_metadata_by_another_program_is_told(path: Path) -> None:
    zarr.open_group(path / "targets/photos", mode="r+").attrs["note"] = "mine"
    with pytest.raises(DataError, match=r"targets/photos/zarr\.json is damaged .*store repair"):
        EmbeddingStore.open(path).target("photos")
    repair(path)
    assert "note" not in json.loads((path / "targets/photos/zarr.json").read_text())["attributes"]
    assert found(path) == []


def test_a_store_at_a_url_is_verified_alike() -> None:
    place = "memory://verify-test/s"
    store = EmbeddingStore.open(place, mode="a")
    fill(store, make_target(N))
    assert verify(place).problems == []
    backing = files.open_files(place, read_only=False)
    for name in ("targets/photos/zarr.json", f"{E}/tiny/c.1.0"):
        content = bytearray(files.read(backing, name) or b"")
        content[20] ^= 1
        files.write(backing, name, bytes(content))
    assert sorted(p.path for p in verify(place).problems) == [f"{E}/tiny/c.1.0", "targets/photos/zarr.json"]
    assert repair(place).left == []
    fill(store, make_target(N))
    assert verify(place).problems == []
    assert ATTRS["identity"] == store.attributes("tiny", "photos")["identity"]
