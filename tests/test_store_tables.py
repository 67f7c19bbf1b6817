"""A target's table in the store: text is kept as bytes until it is asked for, whatever it is, and every byte is checked."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import make_target
from zarr.codecs import Crc32cCodec

from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import DataError
from fastxfer.store import EmbeddingStore, tables
from fastxfer.store.blocks import crc
from fastxfer.store.words import Words
from fastxfer.targets.table import Target

CELLS = ["", "a", "ä/ö 1.png", "漢字", "🂡", "x" * 300, "train"]
SPEC = EpisodeSpec(ways=2, shots=2, queries=2)


def written_by_zarr(cells: list[str], step: int) -> list[bytes]:
    """The chunks of a column, as Zarr writes them."""
    memory: dict[str, object] = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(memory),
        shape=(len(cells),),
        dtype=str,
        chunks=(step,),
        compressors=Crc32cCodec(),
        config={"write_empty_chunks": True},
    )
    array[:] = np.array(cells, np.dtypes.StringDType())
    return [memory[f"c/{i}"].to_bytes() for i in range(-(-len(cells) // step))]  # type: ignore[attr-defined]


def sealed(content: bytes) -> bytes:
    """A chunk with the checksum that belongs to it."""
    return content + crc(content)


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(st.one_of(st.sampled_from(CELLS), st.text(alphabet="ab/é€🂡")), min_size=1, max_size=30),
    data=st.data(),
)
def test_text_is_what_zarr_wrote(cells: list[str], data: st.DataObject) -> None:
    words = Words.of_chunks(written_by_zarr(cells, data.draw(st.integers(1, 40))), len(cells))
    assert words.array.tolist() == cells
    assert words.array.dtype == np.array(cells, str).dtype
    assert bytes(words.text) == "".join(f"{cell}\0" for cell in cells).encode()
    rows = np.array(data.draw(st.lists(st.integers(-len(cells), len(cells) - 1), max_size=40)), np.int64)
    assert words[rows].array.tolist() == [cells[i] for i in rows]
    mask = np.arange(len(cells)) % 2 == 0
    assert words[mask].array.tolist() == cells[::2]


def test_chunks_that_are_not_what_they_say_are_refused() -> None:
    one, two = written_by_zarr(["ab", "c", "def", "", "g", "hi"], 3)
    body = one[:-4]
    size_of_first = slice(4, 8)
    for wrong in (
        b"",
        one[:7],
        bytes([one[0] ^ 1]) + one[1:],
        one[:-1],
        sealed(body[:-1]),
        sealed(body + b"x"),
        sealed(bytes(4) + body[4:]),
        sealed(b"\xff\xff\xff\xff" + body[4:]),
        sealed(body[: size_of_first.start] + b"\xff\xff\xff\x7f" + body[size_of_first.stop :]),
        sealed(body[: size_of_first.start] + b"\x03\0\0\0" + body[size_of_first.stop :]),
    ):
        with pytest.raises(ValueError, match="chunk"):
            Words.of_chunks([wrong, two], 6)
    with pytest.raises(ValueError, match="6 cells instead of 7"):
        Words.of_chunks([one, two], 7)
    with pytest.raises(IndexError):
        Words.of_chunks([one, two], 6)[np.array([6])]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    """A table in chunks of seven rows."""
    monkeypatch.setattr(tables, "TABLE_CHUNK", 7)
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    store.add_target(make_target(60, patients=False))
    return store


def is_decoded(target: Target, column: str) -> bool:
    kept = vars(target)[column]
    return not isinstance(kept, Words) or "array" in vars(kept)


def test_episodes_are_drawn_without_making_text_of_ids(store: EmbeddingStore) -> None:
    given = make_target(60, patients=False)
    back = store.target("photos")
    drawn, expected = (sample_episodes(t, SPEC, 3, 50) for t in (back, given))
    assert drawn.hash == expected.hash
    np.testing.assert_array_equal(drawn.support, expected.support)
    store.record_bad("photos", {5: "truncated"})
    fewer = store.target("photos")
    same = given.take(np.delete(np.arange(60), 5))
    assert fewer.fingerprint == same.fingerprint
    assert sample_episodes(fewer, SPEC, 3, 50).hash == sample_episodes(same, SPEC, 3, 50).hash
    assert not any(is_decoded(t, "image_id") for t in (back, fewer))
    assert back.image_id.tolist() == given.image_id.tolist()
    assert back.image_id is back.image_id
    assert back.fingerprint == given.fingerprint
    assert copy.deepcopy(fewer).image_id.tolist() == same.image_id.tolist()


def test_chunks_in_each_others_places_are_found(store: EmbeddingStore, tmp_path: Path) -> None:
    folder = tmp_path / "s/targets/photos/image_id/c"
    shutil.move(folder / "1", folder / "x")
    shutil.move(folder / "2", folder / "1")
    shutil.move(folder / "x", folder / "2")
    with pytest.raises(DataError, match="fingerprint"):
        store.target("photos")


def test_a_chunk_that_is_gone_is_named(store: EmbeddingStore, tmp_path: Path) -> None:
    (tmp_path / "s/targets/photos/split/c/3").unlink()
    with pytest.raises(DataError, match=r"split is damaged.*chunk 3 is missing"):
        store.target("photos")


@pytest.mark.parametrize("content", [b"", b"0", b"null", b"[]", b'"x"', b"{}", b'{"attributes": 3}'])
@pytest.mark.parametrize("column", ["labels", "split"])
def test_metadata_that_is_other_json_is_damage(tmp_path: Path, column: str, content: bytes) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    target = make_target()
    store.add_target(target)
    (tmp_path / "s" / "targets" / target.name / column / "zarr.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"{target.name}/{column}.* is damaged"):
        EmbeddingStore.open(tmp_path / "s").target(target.name)
