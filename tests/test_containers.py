"""Images inside .npz (MedMNIST's layout) and Parquet files, addressed like files in a folder."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastxfer.cli.targets import add, show
from fastxfer.errors import DataError
from fastxfer.images import CHOICES, Pixels, check_header, exists, load_image, member_names, members, tar_index
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, add_target, check_target, check_targets, load_target


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def parquet(path: Path, images: np.ndarray, nested: bool) -> Path:
    content = [encoded(i) for i in images]
    column = pa.array([{"bytes": c, "path": None} for c in content] if nested else content)
    pq.write_table(pa.table({"image": column, "label": list(range(len(images)))}), path, row_group_size=3)
    return path


def archive(path: Path, images: np.ndarray) -> Path:
    """Pictures 0.png … at different depths, a link that leads out, and a folder."""
    with tarfile.open(path, "w") as tar:
        for i, pixels in enumerate(images):
            content = encoded(pixels)
            entry = tarfile.TarInfo(f"deep/{i}.png" if i % 2 else f"{i}.png")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_archives(images, tmp_path):
    file = archive(tmp_path / "n001.tar", images)
    assert sorted(tar_index(file)) == ["0.png", "2.png", "4.png", "6.png", "deep/1.png", "deep/3.png", "deep/5.png"]
    for name, row in (("6.png", 6), ("deep/3.png", 3)):
        np.testing.assert_array_equal(np.asarray(load_image(file / name)), images[row])
    assert check_header(file / "0.png") == (4, 5)
    assert exists(file / "0.png")
    with pytest.raises(DataError, match=r"no file 'link\.png' in this archive"):
        load_image(file / "link.png")


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays(compressed, images, tmp_path):
    grey, deep = images[..., 0], images[..., 0].astype(np.uint16) * 257
    save = np.savez_compressed if compressed else np.savez
    save(
        tmp_path / "a.npz",
        train_images=images,
        test_images=grey,
        deep=deep,
        single=grey[..., None],
        labels=np.arange(7),
    )
    assert members(tmp_path / "a.npz")["train_images"] == (7, 5, 4, 3)
    assert member_names(tmp_path / "a.npz") == ["deep", "labels", "single", "test_images", "train_images"]
    for row in (0, 6):
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / f"a.npz/train_images/{row}")), images[row])
        for name in ("test_images", "single", "deep"):
            shown = np.asarray(load_image(tmp_path / f"a.npz/{name}/{row}"))
            np.testing.assert_array_equal(shown, np.repeat(grey[row][..., None], 3, axis=2))
    ranged = np.asarray(load_image(tmp_path / "a.npz/deep/2", pixels=Pixels(grey16="range")))
    assert (ranged.min(), ranged.max()) == (0, 255)
    assert check_header(tmp_path / "a.npz/train_images/3") == (4, 5)
    with pytest.raises(DataError, match="over the limit of 19 pixels"):
        load_image(tmp_path / "a.npz/train_images/3", max_pixels=19)


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_columns(nested, images, tmp_path):
    file = parquet(tmp_path / "a.parquet", images, nested)
    assert member_names(file) == ["image", "label"]
    with ThreadPoolExecutor(4) as pool:
        for row, image in enumerate(pool.map(lambda i: load_image(file / "image" / str(i)), range(7))):
            np.testing.assert_array_equal(np.asarray(image), images[row])
    assert check_header(file / "image" / "6") == (4, 5)


def test_a_container_that_is_written_anew_is_read_anew(images, tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, x=images)
    load_image(file / "x" / "0")
    np.savez(file, x=255 - images)
    os.utime(file, ns=(1, 1))
    np.testing.assert_array_equal(np.asarray(load_image(file / "x" / "0")), 255 - images[0])


def test_what_is_refused_is_named(images, tmp_path):
    np.savez(tmp_path / "a.npz", x=images, flat=images[..., 0, 0], wide=images.astype(np.int32))
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], dtype=object))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" + b"\0" * 20)
    (tmp_path / "a.png").write_bytes(encoded(images[0]))
    whole = archive(tmp_path / "a.tar", images).read_bytes()
    (tmp_path / "broken.tar").write_bytes(b"no archive at all" * 99)
    (tmp_path / "cut.tar").write_bytes(whole[:1600])
    file = parquet(tmp_path / "a.parquet", images, True)
    pq.write_table(pa.table({"image": [None, b"no image"]}), tmp_path / "odd.parquet")
    for address, message in [
        ("a.npz/y/0", "no array 'y'; there are flat, wide, x"),
        ("a.npz/x/7", "'x' has 7 images, there is no number 7"),
        ("a.npz/flat/0", r"'flat' is \(7, 5\); expected images"),
        ("a.npz/wide/0", "'wide' holds int32; expected 8 or 16 bits"),
        ("pickle.npz/x/0", "Python objects"),
        ("broken.npz/x/0", "not a readable .npz file"),
        ("broken.parquet/x/0", "not a readable Parquet file"),
        ("a.parquet/images/0", "no column 'images'; there are image, label"),
        ("a.parquet/image/9", "has 7 rows, there is no number 9"),
        ("odd.parquet/image/0", "holds no image bytes"),
        ("odd.parquet/image/1", "not an image"),
        ("a.npz/x/-1", "'x/-1' is no address in it; expected MEMBER/ROW"),
        ("a.npz/x", "'x' is no address in it; expected MEMBER/ROW"),
        ("a.png/x/0", "there is no such file"),
        ("a.tar/gone.png", "there is no file 'gone.png' in this archive"),
        ("broken.tar/a.png", "not a readable, uncompressed tar archive"),
        ("cut.tar/deep/1.png", "cut.tar"),
        ("gone.npz/x/0", "there is no such file"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            load_image(tmp_path / address)
        assert str(tmp_path / address.split("/")[0]) in str(error.value)
    assert file.is_file()


def test_what_pixels_mean_belongs_to_the_target(images, tmp_path):
    """From `targets add` through the register, the check and the store: one meaning, part of the fingerprint."""
    for i, label in enumerate("aabb" * 3):
        path = tmp_path / "x" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i % 7, ..., 0].astype(np.uint16) * 4 + i).save(path)
    plain = add_target(tmp_path / "x", "plain", tmp_path)
    ranged = add_target(tmp_path / "x", "ranged", tmp_path, pixels=Pixels(grey16="range"))
    assert plain.fingerprint != ranged.fingerprint
    again = load_target("ranged", tmp_path)
    assert again.pixels == Pixels(grey16="range")
    assert again.fingerprint == ranged.fingerprint
    assert load_target("plain", tmp_path, grey16="range").pixels == Pixels(grey16="range")
    # 12 bits in 16 are nearly black over the full scale, so pixels that differ look the same.
    assert check_target(plain)["duplicate_images"] + len(check_target(plain)["near_duplicates"]) > 0
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    store.add_target(ranged)
    stored = store.target("ranged")
    assert stored.pixels == ranged.pixels
    assert stored.fingerprint == ranged.fingerprint


def test_the_command_line_knows_the_choices():
    for command in (add, show):
        assert {p.name: tuple(p.type.choices) for p in command.params if p.name in CHOICES} == CHOICES


def test_images_in_a_container_are_checked_like_files(images, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.concatenate([images, images[:1]]))
    names = np.array([f"a.npz/x/{i}" for i in range(8)])
    split = np.array(["train", "test"] * 4)
    target = Target("t", names, ("a", "b"), np.arange(8) % 2, split, root=tmp_path)
    found = check_targets([target])
    assert found["undecodable"] == []
    assert [[i["image"] for i in g["images"]] for g in found["duplicate_groups"]] == [["a.npz/x/0", "a.npz/x/7"]]
