"""Blocks as bytes: Zarr reads what is written here, here is read what Zarr reads, and every byte is looked at."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_store import ATTRS, make_target, values_for

from fastxfer.errors import DataError
from fastxfer.store import EmbeddingStore
from fastxfer.store.blocks import Layout, crc, key_of, layout_of

SHAPES = [
    (1, 1, 4),
    (10, 5, 4),
    (64, 3, 64),
    (65, 2, 64),
    (300, 7, 256),
    (512, 8, 256),
    (700, 33, 128),
    (25_700, 1, 25_600),
]


def wide(store: EmbeddingStore, n: int, dim: int, block_rows: int, dtype: str = "float16") -> np.ndarray:
    """A target of n images and its embeddings, random, stored as `tiny`."""
    x = np.random.default_rng(n).normal(size=(n, dim)).astype(dtype)
    store.add_target(make_target(n))
    with store.writer("tiny", "photos", dim=dim, dtype=dtype, attributes=ATTRS, block_rows=block_rows) as w:
        for block in w.missing:
            w.write(block, x[block.start : block.stop])
    return x


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("n", "dim", "block_rows"), SHAPES)
def test_zarr_reads_what_is_written_and_here_it_is_read_alike(
    tmp_path: Path, n: int, dim: int, block_rows: int, dtype: str
) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, n, dim, block_rows, dtype)
    array = zarr.open_array(tmp_path / "s/targets/photos/embeddings/tiny", mode="r")
    np.testing.assert_array_equal(array[:], x)
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), x)
    view = store.array("tiny", "photos")
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(0, n, 30)
        np.testing.assert_array_equal(view[rows], x[rows])
        start, stop = sorted(rng.integers(0, n + 1, 2).tolist())
        np.testing.assert_array_equal(view[start:stop], x[start:stop])
        np.testing.assert_array_equal(view[start:stop], array[start:stop])


def test_many_blocks_are_read_by_several_threads(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 3000, 1024, 256)
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), x)
    rows = np.random.default_rng(1).permutation(3000)
    np.testing.assert_array_equal(store.array("tiny", "photos")[rows], x[rows])


def test_rows_are_taken_as_numpy_takes_them(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 150, 6, 64)
    rows = store.array("tiny", "photos")
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == (x.shape, 2, x.dtype, 150)
    mask = np.arange(150) % 7 == 3
    for some in (
        3,
        -1,
        slice(5),
        slice(None, None, 3),
        slice(100, 20, -1),
        [4, 4, 149],
        np.array([149, 0, 31, 31]),
        np.array([5, -1, -150]),
        mask,
        np.array([], int),
        slice(9, 9),
    ):
        np.testing.assert_array_equal(rows[some], x[some])
    np.testing.assert_array_equal(np.asarray(rows), x)
    assert np.asarray(rows, np.float64).dtype == np.float64
    for beyond in ([150], np.array([3, 150]), np.array([-151])):
        with pytest.raises(IndexError):
            rows[beyond]
    with pytest.raises(ValueError, match="copy"):
        np.array(rows, copy=False)


def test_torch_takes_the_array_that_was_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 20, 6, 64, "float32")
    np.testing.assert_array_equal(torch.from_dlpack(store.array("tiny", "photos")).numpy(), x)
    read = store.embeddings("tiny", "photos")
    assert torch.from_dlpack(read).data_ptr() == read.ctypes.data


@pytest.mark.parametrize("place", ["url", "rows of a url"])
def test_what_isnt_a_folder_is_read_through_zarr(place: str) -> None:
    store = EmbeddingStore.open(f"memory://blocks-{place.replace(' ', '-')}/store", mode="a")
    x = wide(store, 150, 6, 64)
    np.testing.assert_array_equal(store.embeddings("tiny", "photos"), x)
    rows = np.random.default_rng(0).integers(0, 150, 40)
    np.testing.assert_array_equal(store.array("tiny", "photos")[rows], x[rows])


def test_every_byte_of_a_block_is_looked_at() -> None:
    layout = Layout(11, 5, np.dtype("<f2"), 8, 4, key_of("i", "f", (11, 5), np.dtype("<f2")))
    for number in (0, 1):
        content = bytes(layout.encode(number, np.ones((len(layout.rows(number)), 5))))
        assert layout.check(number, content) == ""
        for at in range(len(content)):
            for flip in (1, 0x80, 0xFF):
                wrong = bytearray(content)
                wrong[at] ^= flip
                assert layout.check(number, bytes(wrong)), at
        assert layout.check(1 - number, content)
        for cut in (b"", content[:-1], content + b"\0", content[64:]):
            assert layout.check(number, cut)
    other = Layout(11, 5, np.dtype("<f2"), 8, 4, key_of("j", "f", (11, 5), np.dtype("<f2")))
    assert other.check(0, bytes(layout.encode(0, np.ones((8, 5))))) == "its seal is damaged, or it is another block's"


def test_chunks_that_changed_places_are_found() -> None:
    layout = Layout(8, 5, np.dtype("<f2"), 8, 4, b"k")
    content = bytearray(layout.encode(0, np.arange(40).reshape(8, 5)))
    step = layout.stride
    content[:step], content[step : 2 * step] = content[step : 2 * step], content[:step]
    assert layout.check(0, bytes(content)) == "its seal is damaged, or it is another block's"


def test_checksums_are_those_of_the_standard() -> None:
    assert crc(b"123456789") == (0xE3069283).to_bytes(4, "little")  # the check value of CRC-32C
    values = np.frombuffer(b"123456789", np.uint8).copy()
    assert crc(values) == crc(b"123456789")
    values[0] = 0  # it can be written to as before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("fill_value",), 0.0),
        (("data_type",), "float64"),
        (("chunk_key_encoding", "configuration", "separator"), "/"),
        (("codecs", 0, "configuration", "index_location"), "start"),
        (("codecs", 0, "configuration", "codecs"), [{"name": "bytes", "configuration": {"endian": "big"}}]),
        (("codecs", 0, "name"), "bytes"),
        (("chunk_grid", "configuration", "chunk_shape"), [4, 3]),
        (("shape",), [10]),
    ],
)
def test_another_layout_is_left_to_zarr(tmp_path: Path, place: tuple[str | int, ...], value: object) -> None:
    wide(EmbeddingStore.open(tmp_path / "s", mode="a"), 10, 5, 4)
    document = json.loads((tmp_path / "s/targets/photos/embeddings/tiny/zarr.json").read_text())
    assert layout_of(document, "f") is not None
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    assert layout_of(document, "f") is None


@pytest.mark.parametrize("scattered", [False, True])
def test_damage_is_named_when_it_is_touched(tmp_path: Path, scattered: bool) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 400, 6, 128)
    shard = tmp_path / "s/targets/photos/embeddings/tiny/c.1.0"
    whole = shard.read_bytes()
    content = bytearray(whole)
    content[-60] ^= 4  # its seal
    shard.write_bytes(content)
    view = store.array("tiny", "photos")
    sound = np.array([0, 399]) if scattered else slice(0, 128)
    np.testing.assert_array_equal(view[sound], x[sound])
    touched = np.array([0, 200]) if scattered else slice(100, 201)
    with pytest.raises(DataError, match=r"rows 128 to 255 is damaged \(its seal.*store repair"):
        view[touched]
    content = bytearray(whole)
    content[3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"\(the checksum of rows 128 to 191 is wrong\)"):
        view[touched if scattered else slice(None)] if not scattered else view[np.array([130, 0])]
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    if not scattered:
        with pytest.raises(DataError, match=r"\(the checksum of rows 128 to 191 and 1 chunk more is wrong\)"):
            view[:]
    shard.write_bytes(whole)
    np.testing.assert_array_equal(view[touched], x[touched])


def test_a_swapped_block_is_not_read(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    wide(store, 400, 6, 128)
    folder = tmp_path / "s/targets/photos/embeddings/tiny"
    first, second = (folder / f"c.{i}.0" for i in (0, 1))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    np.testing.assert_equal(len(zarr.open_array(folder, mode="r")[:]), 400)  # its checksums are sound
    with pytest.raises(DataError, match=r"rows 0 to 127 is damaged \(its seal is damaged, or it is another block's"):
        store.embeddings("tiny", "photos")


@pytest.mark.parametrize("scattered", [False, True])
def test_a_read_error_names_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scattered: bool) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 400, 6, 128)
    view = store.array("tiny", "photos")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "preadv", fail)
        with pytest.raises(
            DataError, match=r"rows 3 to 200 of .*tiny cannot be read \(Input/output error\): is the disk"
        ):
            view[np.array([200, 3])] if scattered else view[3:201]
    np.testing.assert_array_equal(view[3:201], x[3:201])


def test_rows_for_a_view_without_some_images(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    x = wide(store, 100, 6, 64)
    store.record_bad("photos", {7: "truncated"})
    kept = np.delete(x, 7, axis=0)
    np.testing.assert_array_equal(store.rows("tiny", "photos", np.array([50, 6, 7]))[:], kept[[50, 6, 7]])
    assert repr(store.rows("tiny", "photos", np.array([50, 6, 7]))).endswith(f", 3 x {kept.shape[1]} {kept.dtype})")
    np.testing.assert_array_equal(store.array("tiny", "photos")[90:], kept[90:])


def test_values_are_finite_or_refused_in_either_dtype(tmp_path: Path) -> None:
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    store.add_target(make_target(4))
    for dtype in ("float16", "float32"):
        with store.writer(dtype, "photos", dim=5, dtype=dtype, attributes=ATTRS) as w:
            for wrong in (np.nan, np.inf, -np.inf):
                values = values_for(range(4))
                values[2, 4] = wrong
                with pytest.raises(DataError, match="row 2 of 'photos' is not finite"):
                    w.write(range(4), values)
            w.write(range(4), np.full((4, 5), np.finfo(dtype).max))


@pytest.mark.parametrize(("dim", "chunk"), [(5, 64), (2048, 64), (8192, 16), (3000, 32), (200_000, 1)])
def test_wide_rows_lie_in_smaller_chunks(dim: int, chunk: int) -> None:
    store = EmbeddingStore.open(f"memory://wide-{dim}/s", mode="a")
    x = wide(store, 70, dim, 64)
    layout = store.stored("tiny", "photos").layout
    assert layout is not None
    assert layout.chunk_rows == chunk
    np.testing.assert_array_equal(store.array("tiny", "photos")[[69, 3]], x[[69, 3]])
