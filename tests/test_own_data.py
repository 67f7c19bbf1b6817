"""Users' own data beyond folders and plain tables: containers, several label columns, soft and missing labels, groups."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastxfer.errors import DataError, UsageError
from fastxfer.images import load_image
from fastxfer.targets import Target, add_target, load_target
from fastxfer.targets.labels import write_labels
from fastxfer.targets.pattern import read_pattern

GREY = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_images(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(GREY[0]))
    return root


def table(root: Path, text: str) -> Path:
    names = [line.split(",")[0] for line in text.splitlines()[1:]]
    write_images(root, names)
    (root / "labels.csv").write_text(text)
    return root


def round_trip(target: Target, data: Path) -> None:
    """What the register holds is the target, and adding its table by hand gives it once more."""
    loaded = load_target(target.name, data)
    assert loaded.fingerprint == target.fingerprint
    assert loaded.notes == target.notes
    again = add_target(data / "targets" / f"{target.name}.csv", f"{target.name}-again", data, root=target.root)
    assert again.fingerprint == target.fingerprint


# ---- .npz in MedMNIST's layout ------------------------------------------------------------------------------------


def npz(file: Path, labels: np.ndarray, **other: Any) -> Path:
    arrays = {}
    for part, rows in (("train", slice(0, 6)), ("val", slice(6, 8)), ("test", slice(8, 12))):
        arrays |= {f"{part}_images": GREY[rows], f"{part}_labels": labels[rows]}
    np.savez_compressed(file, **(arrays | other))
    return file


def test_npz_of_classes(tmp_path: Path) -> None:
    labels = np.array([[0], [1], [10], [0], [1], [10], [0], [1], [0], [1], [10], [1]], np.uint8)
    target = add_target(npz(tmp_path / "x.npz", labels), "medal", tmp_path)
    assert target.class_names == ("00", "01", "10")
    assert target.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 2, 1]
    assert Counter(target.split.tolist()) == {"train": 6, "val": 2, "test": 4}
    assert target.image_id[[0, 6, 11]].tolist() == [
        f"x.npz/{part}" for part in ("train_images/0", "val_images/0", "test_images/3")
    ]
    assert target.root is not None
    assert np.array_equal(np.asarray(load_image(target.root / target.image_id[9]))[..., 0], GREY[9])
    round_trip(target, tmp_path)


def test_npz_of_many_labels(tmp_path: Path) -> None:
    labels = np.zeros((12, 3), np.uint8)
    labels[::2, 0] = labels[::3, 2] = 1  # and none of the second
    target = add_target(npz(tmp_path / "x.npz", labels), "chest", tmp_path)
    assert target.class_names == ("0", "1", "2")
    assert np.array_equal(target.labels, labels.astype(np.float32))
    assert target.notes == ("1 labels without an image in train: 1", "1 labels without an image in test: 1")
    round_trip(target, tmp_path)


CLASSES = np.array([[0], [1]] * 6)
BAD_NPZ = {
    "pickles": ({"train_labels": np.array([["a"]] * 6, object)}, "holds Python objects"),
    "volumes": (
        {"train_images": np.zeros((6, 4, 4, 4), np.uint8)},
        r"'train_images' is \(6, 4, 4, 4\); expected images",
    ),
    "lengths": ({"test_labels": CLASSES[:3]}, r"'test_labels' is \(3, 1\); expected \(4, 1\)"),
    "numbers": ({"val_labels": CLASSES[:2] + 0.5}, "labels are float64"),
    "negative": ({"val_labels": CLASSES[:2] - 1}, "labels are int64, from -1"),
    "columns": ({"val_labels": np.zeros((2, 3), int)}, "different numbers of columns"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(case: str, tmp_path: Path) -> None:
    arrays, message = BAD_NPZ[case]
    file = npz(tmp_path / "x.npz", CLASSES, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        add_target(file, "bad", tmp_path)
    assert str(file) in str(caught.value)


def test_other_npz_and_damaged_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=GREY)
    with pytest.raises(DataError, match=r"x\.npz: holds images; expected train_images and train_labels"):
        add_target(tmp_path / "x.npz", "bad", tmp_path)
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:60])
    with pytest.raises(DataError, match=r"y\.npz: not a readable \.npz file"):
        add_target(tmp_path / "y.npz", "bad", tmp_path)
    with pytest.raises(UsageError, match="a root is given with a CSV only"):
        add_target(tmp_path / "x.npz", "bad", tmp_path, root=tmp_path)


# ---- Parquet ------------------------------------------------------------------------------------------------------


def parquet(
    file: Path, features: dict[str, Any] | None = None, rows: slice = slice(None), **columns: list[Any]
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array([{"bytes": png(g), "path": None} for g in GREY[rows]])
    content = pa.table({"image": image, **columns})
    if features:
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, file, row_group_size=4)
    return file


PETS = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}


def test_parquet_shards_as_hugging_face_writes_them(tmp_path: Path) -> None:
    data = tmp_path / "src" / "data"
    parquet(data / "train-00000-of-00002.parquet", PETS, slice(0, 4), label=[0, 1, 0, 1])
    parquet(data / "train-00001-of-00002.parquet", PETS, slice(4, 8), label=[1, 1, 0, 1])
    parquet(data / "validation-00000-of-00001.parquet", PETS, slice(8, 10), label=[0, 1])
    parquet(data / "test-00000-of-00001.parquet", PETS, slice(10, 12), label=[1, 0])
    (tmp_path / "src" / "README.md").touch()
    target = add_target(tmp_path / "src", "pets2", tmp_path)
    assert target.class_names == ("cat", "dog")
    assert Counter(target.split.tolist()) == {"train": 8, "val": 2, "test": 2}
    row = target.image_id.tolist().index("data/train-00001-of-00002.parquet/image/2")
    assert (target.class_names[target.labels[row]], target.root) == ("dog", tmp_path / "src")
    assert np.array_equal(np.asarray(load_image(tmp_path / "src" / target.image_id[row]))[..., 0], GREY[6])
    round_trip(target, tmp_path)


def test_one_parquet_with_columns(tmp_path: Path) -> None:
    split = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    file = parquet(tmp_path / "x.parquet", fine=["a", "b"] * 6, split=split, drawer=[i // 2 for i in range(12)])
    with pytest.raises(
        DataError, match="no column 'label'; say which with --label-column; the columns are: image, fine"
    ):
        add_target(file, "x", tmp_path)
    target = add_target(file, "x", tmp_path, label_column="fine", group="drawer")
    assert target.class_names == ("a", "b")
    assert Counter(target.split.tolist()) == {"train": 8, "val": 2, "test": 2}
    assert target.patient is not None
    assert target.patient.tolist() == [str(i // 2) for i in range(12)]
    round_trip(target, tmp_path)


def test_parquet_of_many_labels(tmp_path: Path) -> None:
    several = {"label": {"feature": {"names": ["Mass", "Edema"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    lists = add_target(parquet(tmp_path / "l.parquet", several, label=[[0, 1], [], [1]] * 4), "lists", tmp_path)
    assert lists.class_names == ("Edema", "Mass")
    assert lists.labels[:3].tolist() == [[1, 1], [0, 0], [1, 0]]
    round_trip(lists, tmp_path)
    file = parquet(tmp_path / "c.parquet", Mass=[1.0, 0.0, None, 0.25] * 3, Edema=[True, False, True] * 4)
    soft = add_target(file, "soft", tmp_path, label_column="Mass,Edema")
    assert np.array_equal(soft.labels[:4], [[1, 1], [0, 0], [np.nan, 1], [0.25, 1]], equal_nan=True)
    round_trip(soft, tmp_path)


def test_parquet_rows_without_a_label(tmp_path: Path) -> None:
    target = add_target(
        parquet(tmp_path / "x.parquet", PETS, label=[0, 1, -1] * 4), "x", tmp_path, missing_labels="drop"
    )
    assert target.n_images == 8
    assert "x.parquet/image/1" in target.image_id
    assert "x.parquet/image/2" not in target.image_id
    assert target.notes[0].startswith("left out 4 images without a label: x.parquet/image/2, ")


def test_hugging_faces_cache_is_added_by_the_folder_that_holds_the_blobs(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--pets"
    for part, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        blob = parquet(cache / "blobs" / f"0a1b2c-{part}", PETS, rows, label=[0, 1] * ((rows.stop - rows.start) // 2))
        link = cache / "snapshots" / "abc" / "data" / f"{part}-00000-of-00001.parquet"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    target = add_target(cache, "pets2", tmp_path)
    assert Counter(target.split.tolist()) == {"train": 8, "test": 4}
    with pytest.raises(DataError, match="this link leads out of"):
        add_target(cache / "snapshots" / "abc", "pets3", tmp_path)


def test_bad_parquet(tmp_path: Path) -> None:
    def refused(message: str, source: Path, **options: Any) -> None:
        with pytest.raises(DataError, match=message):
            add_target(source, "bad", tmp_path, **options)

    refused(
        r"x\.parquet/image/2: the label in column 'label' is empty",
        parquet(tmp_path / "x.parquet", PETS, label=[0, 1, -1] * 4),
    )
    refused(
        "column 'label' holds other values than its type says", parquet(tmp_path / "x.parquet", PETS, label=[0, 2] * 6)
    )
    pq.write_table(pa.table({"label": ["a", "b"]}), tmp_path / "x.parquet")
    refused("no image column among label", tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "label": ["a"]}), tmp_path / "x.parquet")
    refused("several image columns: a, b", tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    refused("not a readable Parquet file", tmp_path / "x.parquet")
    parquet(tmp_path / "s" / "train-0.parquet", label=["a"] * 12)
    parquet(tmp_path / "s" / "more.parquet", label=["a"] * 12)
    refused(r"more\.parquet: other files say their split by their name", tmp_path / "s")
    parquet(tmp_path / "s" / "more.parquet").rename(tmp_path / "s" / "test-0.parquet")
    refused("no column 'label'", tmp_path / "s")


def test_addresses_in_hand_written_tables_must_exist(tmp_path: Path) -> None:
    npz(tmp_path / "x.npz", CLASSES)
    rows = ["train_images/0,a", "train_images/5,b", "train_images/6,a", "gone_images/0,a"]
    (tmp_path / "mine.csv").write_text("path,label\n" + "".join(f"x.npz/{row}\n" for row in rows))
    with pytest.raises(DataError, match=r"2 of 4 listed images .*row 4: 'x\.npz/train_images/6'; .*row 5"):
        add_target(tmp_path / "mine.csv", "mine", tmp_path)


# ---- tar ----------------------------------------------------------------------------------------------------------


def test_archives_and_shards(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write_images(tmp_path / "loose", [f"{label}/deep/{i}.png" for i in range(5)])
        (tmp_path / "src").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "src" / f"{label}.tar", "w") as archive:
            archive.add(tmp_path / "loose" / label, arcname="in")
    target = add_target(tmp_path / "src", "classes", tmp_path)
    assert (target.class_names, target.n_images) == (("cat", "dog"), 10)
    assert "cat.tar/in/deep/3.png" in target.image_id
    assert target.root is not None
    assert load_image(target.root / str(target.image_id[0])).size == (5, 6)
    round_trip(target, tmp_path)
    os.utime(tmp_path / "src" / "cat.tar", (time.time() + 1,) * 2)
    assert "1 written later (cat.tar)" in load_target("classes", tmp_path).notes[-1]
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for i in range(8):
            for ending, content in (("png", png(GREY[i])), ("cls", str(i % 2).encode())):
                about = tarfile.TarInfo(f"{i}.{ending}")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
    shard = add_target(tmp_path / "shard.tar", "shard", tmp_path)
    assert (shard.class_names, shard.n_images) == (("00000", "00001"), 8)
    with pytest.raises(DataError, match="group 'a' asked for"):
        add_target(tmp_path / "shard.tar", "x", tmp_path, group="a")


# ---- label columns, soft and missing labels -----------------------------------------------------------------------

COLUMNS = """path,Mass,Edema,split,drawer,view,study
a.png,1,0,train,1,PA,s1
b.png,0.25,,train,1,,s1
c.png,nan,TRUE,train,2,L,
d.png,,,test,NaN,PA,
e.png,0,1.0,test,3,PA,s2
"""


def test_columns_of_labels(tmp_path: Path) -> None:
    folder = table(tmp_path / "src", COLUMNS)
    target = add_target(folder, "cxr", tmp_path, label_column="Mass, Edema", group="drawer")
    nan = np.nan
    assert np.array_equal(target.labels, [[1, 0], [0.25, nan], [nan, 1], [nan, nan], [0, 1]], equal_nan=True)
    assert (target.class_names, target.labels.dtype) == (("Mass", "Edema"), np.float32)
    assert (target.patient is not None, target.view is not None, target.study is not None) == (True, True, True)
    assert target.patient.tolist() == ["1", "1", "2", "unknown:d.png", "3"]
    assert target.view.tolist() == ["PA", "unknown", "L", "PA", "PA"]
    assert target.study.tolist() == ["s1", "s1", "unknown:c.png", "unknown:d.png", "s2"]
    assert target.notes == (
        "4 of 10 labels are unknown (blank)",
        "1 soft labels (between 0 and 1): above 0.5 counts as positive",
        "patients are what column 'drawer' says",
        "1 images without a patient: each counts as a patient of its own",
        "2 images without a study: each counts as a study of its own",
        "1 images without a view: 'unknown'",
        "1 labels without an image in test: Mass",
    )
    round_trip(target, tmp_path)
    dropped = add_target(folder, "known", tmp_path, label_column="Mass,Edema", missing_labels="drop")
    assert dropped.image_id.tolist() == ["a.png", "b.png", "c.png", "e.png"]
    assert dropped.notes[0] == f"left out 1 images without a label: {folder / 'labels.csv'}, row 5"


def test_bad_columns_of_labels(tmp_path: Path) -> None:
    folder = table(tmp_path / "src", COLUMNS)

    def refused(kind: type[Exception], message: str, columns: str = "Mass,Edema", **options: Any) -> None:
        with pytest.raises(kind, match=message):
            add_target(folder, "bad", tmp_path / "data", label_column=columns, **options)

    refused(DataError, "row 3: column 'Edema' is empty, and --missing-labels is error", missing_labels="error")
    refused(DataError, "no column 'Oedema'", "Mass,Oedema")
    refused(UsageError, "'Mass' occurs twice", "Mass,Mass")
    refused(UsageError, "a column a label makes it multi-label", multi_label=False)
    refused(DataError, "no column 'box'", group="box")
    for wrong in ("-1", "1.5", "yes", "1,0"):
        (folder / "labels.csv").write_text(COLUMNS.replace("0.25,", f'"{wrong}",'))
        refused(DataError, f"labels.csv, row 3: '{wrong}' in column 'Mass'; expected 0 to 1, or nothing")
    assert not (tmp_path / "data").exists()


def test_columns_with_a_prefix_need_no_option(tmp_path: Path) -> None:
    folder = table(
        tmp_path / "src",
        'path,label:Pleural Effusion,"label:a|b\tc;d;e;f;g"\na.png,1,0\nb.png,0,1\nc.png,1,\nd.png,0,1\n',
    )
    target = add_target(folder, "odd", tmp_path)
    assert target.class_names == ("Pleural Effusion", "a|b\tc;d;e;f;g")
    round_trip(target, tmp_path)


NAMES = (
    "path,label,split\na.png,cat,train\nb.png,,train\nc.png,dog,train\nd.png,cat,test\ne.png,N/A,test\nf.png,dog,test\n"
)


def test_missing_names(tmp_path: Path) -> None:
    folder = table(tmp_path / "src", NAMES)
    with pytest.raises(DataError, match=r"row 3: the label in column 'label' is empty; .* --missing-labels"):
        add_target(folder, "x", tmp_path)
    dropped = add_target(folder, "dropped", tmp_path, missing_labels="drop")
    assert dropped.image_id.tolist() == ["a.png", "c.png", "d.png", "f.png"]
    file = folder / "labels.csv"
    assert dropped.notes == (f"left out 2 images without a label: {file}, row 3, 6",)
    round_trip(dropped, tmp_path)
    with pytest.raises(UsageError, match=r"unknown labels \(.*row 3\) can be in a multi-label target only"):
        add_target(folder, "x", tmp_path, missing_labels="unknown")
    file.write_text(NAMES.replace("a.png,cat", "a.png,cat|dog"))
    several = add_target(folder, "several", tmp_path, missing_labels="unknown")
    assert np.isnan(several.labels[[1, 4]]).all()
    assert several.labels[[0, 2]].tolist() == [[1, 1], [0, 1]]
    assert several.notes == ("2 images without a label: all their labels are unknown",)
    round_trip(several, tmp_path)
    for name in "abcdef":
        file.write_text(
            file.read_text().replace(f"{name}.png,cat,", f"{name}.png,,").replace("cat|dog", "").replace("dog", "")
        )
    with pytest.raises(DataError, match="not one of its 6 images has a label"):
        add_target(folder, "x", tmp_path, missing_labels="drop")


def test_folders_take_no_options_of_tables(tmp_path: Path) -> None:
    write_images(tmp_path / "src", ["cat/a.png", "dog/b.png"])
    for option in ({"group": "drawer"}, {"missing_labels": "drop"}):
        with pytest.raises(DataError, match=r"asked for, but there is no labels\.csv"):
            add_target(tmp_path / "src", "x", tmp_path, **option)


# ---- val ----------------------------------------------------------------------------------------------------------


def test_val_is_drawn_from_train(tmp_path: Path) -> None:
    rows = [f"{i:02}.png,{'ab'[i % 2]},p{i // 4}" for i in range(80)]
    folder = table(tmp_path / "src", "path,label,patient\n" + "\n".join(rows) + "\n")
    plain = add_target(folder, "plain", tmp_path)
    target = add_target(folder, "val", tmp_path, val_fraction=0.25)
    assert Counter(target.split.tolist()) == {"train": 48, "val": 16, "test": 16}
    assert np.array_equal(target.split == "test", plain.split == "test")
    assert target.patient is not None
    parts = [set(target.patient[target.split == split].tolist()) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20
    assert target.notes[-1] == "16 of 64 train images became val, stratified by label, seed 0"
    round_trip(target, tmp_path)
    with pytest.raises(UsageError, match=r"--val 0.5: there are 16 val images already"):
        add_target(tmp_path / "targets" / "val.csv", "again", tmp_path, root=folder, val_fraction=0.5)
    with pytest.raises(UsageError, match="the share of val images must lie between 0 and 1, not 1"):
        add_target(folder, "x", tmp_path, val_fraction=1.0)


# ---- patterns -----------------------------------------------------------------------------------------------------


def test_a_pattern_says_what_paths_mean(tmp_path: Path) -> None:
    names = [f"{s}/{c}/p{i}_{c}_0.png" for s in ("Train", "Testing") for c in ("cat", "dog") for i in range(2)]
    root = write_images(tmp_path / "src", [*names, "Train/cat/odd.png", "extra/cat/p1_x.png", "Train/p1_x.png"])
    (root / "labels.csv").write_text("of something else")
    target = add_target(root, "x", tmp_path, pattern="{split}/{label}/{patient}_*.png")
    assert target.image_id.tolist() == sorted(names)
    assert target.class_names == ("cat", "dog")
    assert Counter(target.split.tolist()) == {"train": 4, "test": 4}
    assert target.patient is not None
    assert set(target.patient.tolist()) == {"p0", "p1"}
    some = "Train/cat/odd.png, Train/p1_x.png, extra/cat/p1_x.png"
    assert target.notes[0] == f"left out 3 images that aren't as the pattern says: {some}"
    round_trip(target, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("{label}/*.png", ["a/1.png", "b/1.png"]),
        ("**/{label}/?.png", ["a/1.png", "b/1.png", "b/deep/2.png", "b/deep/d/3.png"]),
        ("{label}/**/?.png", ["a/1.png", "b/1.png", "b/deep/2.png", "b/deep/d/3.png"]),
        ("{label}/**", ["a/1.png", "a/x.10.jpg", "b/1.png", "b/deep/2.png", "b/deep/d/3.png"]),
        ("*/{label}.*", ["a/1.png", "a/x.10.jpg", "b/1.png"]),
    ],
)
def test_globs(pattern: str, matched: list[str], tmp_path: Path) -> None:
    root = write_images(tmp_path, ["a/1.png", "a/x.10.jpg", "b/1.png", "b/deep/2.png", "b/deep/d/3.png"])
    assert read_pattern(root, pattern).image_id == matched


def test_bad_patterns(tmp_path: Path) -> None:
    root = write_images(tmp_path / "src", ["a/1.png"])
    for pattern, message in {
        "**/*.png": r"expected \{label\} in it",
        "{label}/{lable}.png": r"'\{lable\}' is none of \{label\}, \{split\}, \{patient\}.*Did you mean: label",
        "{label}/{label}.png": r"'\{label\}' occurs twice",
    }.items():
        with pytest.raises(UsageError, match=message):
            add_target(root, "x", tmp_path, pattern=pattern)
    with pytest.raises(DataError, match=r"of 1 images none is as --pattern '\{label\}\.png' says: a/1\.png"):
        add_target(root, "x", tmp_path, pattern="{label}.png")
    with pytest.raises(DataError, match="no such folder or CSV file; a glob goes into --pattern"):
        add_target(tmp_path / "src/**/*.jpg", "x", tmp_path)
    with pytest.raises(UsageError, match="--pattern goes with a folder of images"):
        add_target(table(tmp_path / "t", NAMES) / "labels.csv", "x", tmp_path, pattern="{label}/*")
    with pytest.raises(DataError, match="group 'a' asked for, but --pattern reads no table"):
        add_target(root, "x", tmp_path, pattern="{label}/*", group="a")


# ---- files that change --------------------------------------------------------------------------------------------


def test_changed_files_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_images(tmp_path / "src", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    added = add_target(root, "pets2", tmp_path)
    assert load_target("pets2", tmp_path).notes == added.notes
    (root / "cat/1.png").write_bytes(png(GREY[1]))
    os.utime(root / "cat/1.png", (time.time() + 1,) * 2)  # clocks of file systems tick coarsely
    (root / "dog/2.png").unlink()
    loaded = load_target("pets2", tmp_path)
    what = (
        "its files have changed since they were added: 1 missing (dog/2.png), 1 written later (cat/1.png); "
        "what was embedded before is of the old ones"
    )
    assert loaded.notes == (*added.notes, what)
    assert loaded.fingerprint == added.fingerprint
    assert f"pets2: {what}" in capsys.readouterr().err
    (root / "dog/2.png").write_bytes(png(GREY[0]))
    with pytest.raises(DataError, match=r"the same table, but its files have changed .*store rm --target pets2"):
        add_target(root, "pets2", tmp_path)
    assert add_target(root, "pets2", tmp_path, replace=True).fingerprint == added.fingerprint
    assert load_target("pets2", tmp_path).notes == added.notes
    then = (root / "cat/0.png").stat().st_mtime
    (root / "cat/0.png").write_bytes(png(GREY[0]) + b" ")
    os.utime(root / "cat/0.png", (then, then))
    assert "since they were added: other sizes or times;" in load_target("pets2", tmp_path).notes[-1]


def test_a_copy_is_told_from_a_change(tmp_path: Path) -> None:
    root = write_images(tmp_path / "src", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    added = add_target(root, "pets2", tmp_path)
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        os.utime(file, (time.time() + i,) * 2)
    loaded = load_target("pets2", tmp_path)
    assert loaded.notes == (
        *added.notes,
        "all its files have later times than when they were added, and the same sizes, as copies have",
    )
    with pytest.raises(DataError, match=r"copied or checked out anew, take them over with --replace: .* stays good"):
        add_target(root, "pets2", tmp_path)
    add_target(root, "pets2", tmp_path, replace=True)
    assert load_target("pets2", tmp_path).notes == added.notes


def test_changed_containers_are_noticed(tmp_path: Path) -> None:
    file = npz(tmp_path / "x.npz", CLASSES)
    added = add_target(file, "packed", tmp_path)
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, (time.time() + 1,) * 2)
    assert load_target("packed", tmp_path).notes == (
        *added.notes,
        "its files have changed since they were added: 1 written later (x.npz); what was embedded before is of the old ones",
    )


def test_entries_of_before_are_read(tmp_path: Path) -> None:
    root = write_images(tmp_path / "src", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    added = add_target(root, "pets2", tmp_path)
    entry = tmp_path / "targets" / "pets2.json"
    meta = json.loads(entry.read_text())
    del meta["files"]
    entry.write_text(json.dumps(meta))
    os.utime(root / "cat/0.png", (0, 0))
    assert load_target("pets2", tmp_path).notes == added.notes
    assert add_target(root, "pets2", tmp_path).fingerprint == added.fingerprint


def test_entries_without_sizes_are_those_of_before(tmp_path: Path) -> None:
    root = write_images(tmp_path / "src", [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    added = add_target(root, "pets2", tmp_path)
    entry = tmp_path / "targets" / "pets2.json"
    meta = json.loads(entry.read_text())
    del meta["files"]["sizes"]
    entry.write_text(json.dumps(meta))
    assert load_target("pets2", tmp_path).notes == added.notes
    assert add_target(root, "pets2", tmp_path).fingerprint == added.fingerprint
    for file in root.rglob("*.png"):
        os.utime(file, (time.time() + 1,) * 2)
    with pytest.raises(DataError, match=r"its files have changed since; .*store rm --target pets2"):
        add_target(root, "pets2", tmp_path)


def test_ten_thousand_files_in_a_second(tmp_path: Path) -> None:
    for c in range(100):
        (tmp_path / "src" / f"class{c:02}").mkdir(parents=True)
        for i in range(100):
            (tmp_path / "src" / f"class{c:02}" / f"{i}.jpg").touch()
    start = time.process_time()
    target = add_target(tmp_path / "src", "many", tmp_path)
    assert load_target("many", tmp_path).fingerprint == target.fingerprint
    assert time.process_time() - start < 1  # measured: 0.13 s
    assert target.n_images == 10_000


# ---- the register holds all of it ---------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(lambda w: w == w.strip())
entries = st.sampled_from([0.0, 1.0, float("nan"), 0.25, 1e-7, 0.1])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(words, min_size=1, max_size=4, unique=True), st.booleans())
def test_whatever_the_labels_the_written_table_gives_them_back(
    data: st.DataObject, names: list[str], plain: bool
) -> None:
    shape = (6, len(names))
    cells = st.sampled_from([0.0, 1.0]) if plain else entries
    labels = np.array(data.draw(st.lists(cells, min_size=6 * len(names), max_size=6 * len(names))), np.float32)
    columns = write_labels(labels.reshape(shape), names)
    split = np.array(["train", "test"] * 3)
    with TemporaryDirectory() as folder:
        root = write_images(Path(folder), [f"{i}.png" for i in range(6)])
        with open(root / "mine.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
            writer.writerow(["path", *columns, "split"])
            writer.writerows(zip([f"{i}.png" for i in range(6)], *columns.values(), split, strict=True))
        target = add_target(root / "mine.csv", "mine", root)
        assert target.class_names == tuple(names)
        assert np.array_equal(target.labels, labels.reshape(shape), equal_nan=True)
        round_trip(target, root)
