"""Arrow files with an image column: streams as Hugging Face's `datasets` writes them, and Arrow's file format (Feather)."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pytest
from PIL import Image

from fastxfer.errors import DataError
from fastxfer.images import check_header, count_rows, load_image, member_names
from fastxfer.targets import add_target, check_target, load_target

GREY = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(rows: slice = slice(None), **columns: Any) -> pa.Table:
    content = pa.table({"image": [{"bytes": png(g), "path": None} for g in GREY[rows]], **columns})
    return content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def stream(file: Path, content: pa.Table) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=3)
    return file


def feather(file: Path, content: pa.Table) -> Path:
    pyarrow.feather.write_feather(content, file, chunksize=3)
    return file


@pytest.mark.parametrize("write", [stream, feather])
@pytest.mark.parametrize("ending", ["arrow", "feather"])
def test_images_by_address(write: Any, ending: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"x.{ending}", table(label=[0, 1] * 6))
    assert member_names(file) == ["image", "label"]
    assert count_rows(file) == 12
    for row in (11, 0, 5):
        assert np.array_equal(np.asarray(load_image(file / "image" / str(row)))[..., 0], GREY[row])
    assert check_header(file / "image" / "7") == (5, 6)
    with pytest.raises(DataError, match="has 12 rows, there is no number 12"):
        load_image(file / "image" / "12")
    with pytest.raises(DataError, match="no column 'img'; there are image, label"):
        load_image(file / "img" / "0")
    with pytest.raises(DataError, match="holds no image bytes"):
        load_image(file / "label" / "0")
    (tmp_path / "mine.csv").write_text(f"path,label\nx.{ending}/image/3,a\nx.{ending}/image/12,b\n")
    with pytest.raises(DataError, match=r"1 of 2 listed images .*row 3"):
        add_target(tmp_path / "mine.csv", "mine", tmp_path)


def test_a_saved_dataset_of_hugging_face(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    stream(root / "train/data-00000-of-00002.arrow", table(slice(0, 4), label=[0, 1, 0, 1]))
    stream(root / "train/data-00001-of-00002.arrow", table(slice(4, 8), label=[1, 1, 0, -1]))
    stream(root / "test/data-00000-of-00001.arrow", table(slice(8, 12), label=[1, 0, 1, 1]))
    for name in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        (root / name).write_text("{}")
    target = add_target(root, "mini", tmp_path, missing_labels="drop")
    assert target.class_names == ("cat", "dog")
    assert Counter(target.split.tolist()) == {"train": 7, "test": 4}
    assert target.left_out[0].paths == ["train/data-00001-of-00002.arrow/image/3"]
    again = load_target("mini", tmp_path)
    assert again.fingerprint == target.fingerprint
    row = again.image_id.tolist().index("train/data-00001-of-00002.arrow/image/2")
    assert again.class_names[again.labels[row]] == "dog"
    found = check_target(again)
    assert (found["n_undecodable"], found["duplicate_groups"]) == (0, [])


def test_the_cache_of_hugging_face_says_splits_by_name(tmp_path: Path) -> None:
    root = tmp_path / "beans" / "default" / "0.0.0"
    stream(root / "beans-train-00000-of-00001.arrow", table(slice(0, 8), label=[0, 1] * 4))
    stream(root / "beans-validation.arrow", table(slice(8, 10), label=[0, 1]))
    stream(root / "beans-test.arrow", table(slice(10, 12), label=[0, 1]))
    target = add_target(root, "beans2", tmp_path)
    assert Counter(target.split.tolist()) == {"train": 8, "val": 2, "test": 2}
    stream(root / "cache-0a1b.arrow", table(label=[0, 1] * 6))
    with pytest.raises(DataError, match=r"cache-0a1b\.arrow: other files say their split by their name"):
        add_target(root, "beans3", tmp_path)


def test_labels_of_a_feather_file(tmp_path: Path) -> None:
    breed = pa.array(["cat", "dog", "cat"] * 4).dictionary_encode()
    target = add_target(feather(tmp_path / "x.feather", table(breed=breed)), "x", tmp_path, label_column="breed")
    assert target.class_names == ("cat", "dog")
    assert target.labels.tolist() == [0, 1, 0] * 4


def test_bad_files(tmp_path: Path) -> None:
    whole = stream(tmp_path / "whole.arrow", table(label=[0, 1] * 6)).read_bytes()
    written = feather(tmp_path / "whole.feather", table(label=[0, 1] * 6)).read_bytes()
    ends = [i for i in range(8, len(whole) - 8, 8) if whole[i : i + 4] == b"\xff\xff\xff\xff"]  # between batches
    assert len(ends) >= 4
    cases = [b"", b"no arrow at all", b"ARROW1", b"FEA1" * 9, whole + b"\0" * 8, written[: len(written) // 2]]
    for content in (*cases, *(whole[:end] for end in (*ends, 1, 99, len(whole) - 8))):
        file = tmp_path / "bad.arrow"
        file.write_bytes(content)
        for read in (lambda: add_target(file, "bad", tmp_path), lambda: load_image(file / "image" / "0")):  # noqa: B023
            with pytest.raises(DataError, match=r"bad\.arrow: not a readable Arrow file") as error:
                read()
            assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no image column among label"):
        add_target(stream(tmp_path / "l.arrow", table(label=[0, 1] * 6).select(["label"])), "bad", tmp_path)
