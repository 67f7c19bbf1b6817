"""Targets: what a folder or a table becomes, what is refused and in which words, and how splits are drawn."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastxfer.errors import DataError, UsageError
from fastxfer.targets import (
    Target,
    add_target,
    check_target,
    check_targets,
    describe_target,
    list_targets,
    load_target,
    make_split,
)
from fastxfer.targets.csvfile import read_csv
from fastxfer.targets.nih14 import LABELS as NIH_LABELS
from fastxfer.targets.policies import LABELS as CHEXPERT_LABELS


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_images(root: Path, names: Sequence[str]) -> None:
    for seed, name in enumerate(names):
        write_image(root / name, seed)


def table_folder(root: Path, text: str | bytes, names: Sequence[str] = ("a.png", "b.png", "c.png", "d.png")) -> Path:
    """A folder with images and the given labels.csv."""
    write_images(root, names)
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


GOOD = "path,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cat,test\nd.png,dog,test\n"


def as_rows(target: Target) -> list[tuple[str, str, str]]:
    return [
        (str(i), target.class_names[k], str(s))
        for i, k, s in zip(target.image_id, target.labels, target.split, strict=True)
    ]


GOOD_ROWS = [("a.png", "cat", "train"), ("b.png", "dog", "train"), ("c.png", "cat", "test"), ("d.png", "dog", "test")]


# ---- tables -------------------------------------------------------------------------------------------------------


def test_table_round_trip_through_the_register(tmp_path: Path) -> None:
    folder = table_folder(tmp_path / "src", GOOD)
    added = add_target(folder, "animals", tmp_path / "data")
    loaded = load_target("animals", tmp_path / "data")
    assert as_rows(added) == as_rows(loaded) == GOOD_ROWS
    assert loaded.fingerprint == added.fingerprint
    assert loaded.root == folder
    assert loaded.patient is None
    assert loaded.notes == ()
    assert list_targets(tmp_path / "data")[0] == {
        "name": "animals",
        "kind": "table",
        "available": True,
        "n_images": 4,
        "n_classes": 2,
        "where": str(folder),
        "source": None,
    }


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace(",", ";").encode(),
        GOOD.replace(",", "\t").encode(),
        GOOD.replace("cat", '"cat"').replace("a.png", ' "a.png"'.strip()).encode(),
        GOOD.replace("cat", " cat ").replace("\n", "\n\n").encode(),
        GOOD.rstrip("\n").encode(),
        GOOD.replace("train", "Training").replace("test", "TEST").encode(),
        GOOD.replace("path,label,split", "path,label,split,,").replace("\n", ",,\n").replace(",,,,", ",,").encode(),
    ],
    ids=["bom", "crlf", "cr", "semicolon", "tab", "quoted", "blanks", "no-last-newline", "words", "empty-columns"],
)
def test_table_spellings(text: bytes, tmp_path: Path) -> None:
    assert as_rows(add_target(table_folder(tmp_path / "src", text), "animals", tmp_path)) == GOOD_ROWS


def test_quoted_cells_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'path,label,split\n"a, 1.png","say ""no""",train\nb.png,"two\nlines",train\n\nc.png,"two\nlines",test\n'
    folder = table_folder(tmp_path / "src", text, ["a, 1.png", "b.png", "c.png"])
    target = add_target(folder, "odd", tmp_path)
    assert target.class_names == ('say "no"', "two\nlines")
    assert load_target("odd", tmp_path).fingerprint == target.fingerprint
    # Rows are counted as a spreadsheet shows them: the quoted line end makes no row, the blank line does.
    assert read_csv(folder / "labels.csv").row_numbers == [2, 3, 5]


BAD_TABLES = {
    "no path column": ("file,label\na.png,cat\n", "labels.csv: no column 'path'; the columns are: file, label"),
    "no label column": (
        "path,lable\na.png,cat\n",
        r"no column 'label'; the columns are: path, lable\. Did you mean: lable",
    ),
    "empty label": (GOOD.replace("dog,train", ",train"), r"labels\.csv, row 3: the label in column 'label' is empty"),
    "blank label": (GOOD.replace("dog,train", "  ,train"), "row 3: the label in column 'label' is empty"),
    "nan label": (
        GOOD.replace("dog,train", "NaN,train"),
        "row 3: the label in column 'label' is 'NaN', a missing value",
    ),
    "empty path": (GOOD.replace("c.png", ""), "row 4: the path is empty"),
    "duplicate path": (GOOD.replace("c.png", "a.png"), r"row 4: 'a\.png' is listed twice, first in row 2"),
    "duplicate, spelled otherwise": (
        GOOD.replace("c.png", "./x/../a.png"),
        r"row 4: '\./x/\.\./a\.png' is listed twice",
    ),
    "split word": (GOOD.replace("cat,test", "cat,holdout"), "row 4: split 'holdout' is not one of train, val, test"),
    "empty split": (GOOD.replace("cat,test", "cat,"), "row 4: split '' is not one of train, val, test"),
    "missing files": (
        GOOD + "e.png,cat,test\nf.png,dog,test\n",
        r"2 of 6 listed images are not below .*: .*row 6: 'e\.png'; .*row 7: 'f\.png'",
    ),
    "dots": (GOOD.replace("c.png", "../c.png"), r"row 4: '\.\./c\.png' leaves the data root"),
    "hidden dots": (GOOD.replace("c.png", "x/../../c.png"), r"row 4: 'x/\.\./\.\./c\.png' leaves the data root"),
    "absolute": (GOOD.replace("c.png", "/etc/passwd"), "row 4: '/etc/passwd' leaves the data root"),
    "a folder": (GOOD.replace("c.png", "."), r"1 of 4 listed images are not below .*row 4: '\.'"),
    "one class": (GOOD.replace("dog", "cat"), "only one class, 'cat', in .*; expected at least 2"),
    "no train": (GOOD.replace("train", "test"), r"no image in split train \(.*4"),
    "empty file": ("", "the table is empty; expected a header such as path,label"),
    "header only": ("path,label\n", "the table has a header but no rows"),
    "short row": (GOOD + "e.png,cat\n", "row 6: 2 cells where the header has 3"),
    "long row": (GOOD + "e,1.png,cat,test\n", r"row 6: 4 cells where the header has 3 \(a comma inside a cell"),
    "column twice": ("path,label,label\na.png,cat,dog\n", "column 'label' occurs more than once in the header"),
    "quote left open": (GOOD + 'e.png,"cat,test\n', "row 6: broken quoting"),
    "quote inside": (GOOD + 'e.png,"c"at,test\n', "row 6: broken quoting"),
    "latin-1": (
        GOOD.replace("dog,test", "Bär,test").encode("latin-1"),
        "row 5: byte 0xe4 is not UTF-8; save the table",
    ),
    "utf-16": (GOOD.encode("utf-16"), "written as UTF-16, expected UTF-8"),
    "nul": (GOOD.replace("dog,test", "d\0g,test"), "row 5: contains a NUL character"),
    "no finding and finding": (GOOD.replace("dog,test", "No Finding|Mass,test"), "row 5: 'No Finding|Mass' says 'No"),
    "gap in labels": (GOOD.replace("dog,test", "Mass||Edema,test"), "row 5: 'Mass||Edema' has an empty label"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_by_file_and_row(case: str, tmp_path: Path) -> None:
    text, message = BAD_TABLES[case]
    folder = table_folder(tmp_path / "src", text)
    with pytest.raises(DataError, match=message.replace("|", r"\|")) as caught:
        add_target(folder, "bad", tmp_path / "data")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_many_missing_files_are_counted_and_some_named(tmp_path: Path) -> None:
    text = "path,label\na.png,cat\n" + "".join(f"gone{i}.png,dog\n" for i in range(100))
    with pytest.raises(DataError, match=r"100 of 101 listed images .*'gone0\.png'.*'gone4\.png' and 95 more") as caught:
        add_target(table_folder(tmp_path / "src", text), "bad", tmp_path)
    assert "gone5.png" not in str(caught.value)


def test_missing_source_and_missing_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such folder or CSV file"):
        add_target(tmp_path / "nowhere", "x", tmp_path)
    write_images(tmp_path / "src", ["cat/a.png", "dog/b.png"])
    with pytest.raises(DataError, match=r"column 'breed' asked for, but there is no labels\.csv"):
        add_target(tmp_path / "src", "x", tmp_path, label_column="breed")
    with pytest.raises(UsageError, match="a root is given with a CSV only"):
        add_target(tmp_path / "src", "x", tmp_path, root=tmp_path)


def test_other_label_column(tmp_path: Path) -> None:
    text = (
        GOOD.replace("\n", ",tabby\n").replace("split,tabby", "split,breed").replace("dog,test,tabby", "dog,test,rex")
    )
    target = add_target(table_folder(tmp_path / "src", text), "animals", tmp_path, label_column="breed")
    assert target.class_names == ("rex", "tabby")


def test_csv_beside_and_away_from_its_images(tmp_path: Path) -> None:
    images = table_folder(tmp_path / "src", GOOD)
    table = tmp_path / "tables" / "mine.csv"
    table.parent.mkdir()
    table.write_text(GOOD.replace("a.png", str(images / "a.png")))  # absolute, but inside: fine
    with pytest.raises(DataError, match="leaves the data root"):
        add_target(table, "mine", tmp_path)
    assert as_rows(add_target(table, "mine", tmp_path, root=images)) == GOOD_ROWS
    shutil.copy(images / "labels.csv", images / "other.csv")
    assert add_target(images / "other.csv", "other", tmp_path).root == images


def test_multi_label_table(tmp_path: Path) -> None:
    text = "path,label,split,patient\na.png,Mass|Edema,train,1\nb.png,No Finding,train,2\n"
    text += "c.png,Edema,test,3\nd.png,Mass,test,\n"
    target = add_target(table_folder(tmp_path / "src", text), "cxr", tmp_path)
    assert target.class_names == ("Edema", "Mass")
    assert target.labels.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert target.labels.dtype == np.float32
    assert target.notes == ("1 images without a patient: each counts as a patient of its own",)
    assert len(set(target.patient.tolist())) == 4
    again = load_target("cxr", tmp_path)
    assert again.fingerprint == target.fingerprint
    assert again.notes == target.notes
    single = add_target(tmp_path / "src", "single", tmp_path, multi_label=False)
    assert single.class_names == ("Edema", "Mass", "Mass|Edema", "No Finding")
    # A table without any "|" is single-label unless it is said otherwise.
    text = text.replace("Mass|Edema", "Mass")
    plain = add_target(table_folder(tmp_path / "plain", text), "plain", tmp_path)
    assert plain.class_names == ("Edema", "Mass", "No Finding")
    said = add_target(tmp_path / "plain", "said", tmp_path, multi_label=True)
    assert said.class_names == ("Edema", "Mass")
    assert load_target("said", tmp_path).labels.shape == (4, 2)


# ---- folders ------------------------------------------------------------------------------------------------------


def test_class_folders_without_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{label}/{i}.png" for label in ("dog", "cat") for i in range(10)]
    write_images(tmp_path / "src", [*names, "cat/deeper/x.jpg"])
    target = add_target(tmp_path / "src", "animals", tmp_path, split_seed=3)
    assert target.class_names == ("cat", "dog")
    assert target.image_id.tolist() == sorted([*names, "cat/deeper/x.jpg"])
    assert Counter(target.split.tolist()) == {"train": 17, "test": 4}
    note = "no split given: made one, 80% train and 20% test, stratified by label, seed 3"
    assert target.notes == (note,)
    assert f"animals: {note}" in capsys.readouterr().err
    assert load_target("animals", tmp_path).split.tolist() == target.split.tolist()


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), {"train": 4, "test": 2}),
        (("Training", "Testing"), {"train": 4, "test": 2}),
        (("train", "val", "test"), {"train": 4, "val": 2, "test": 2}),
        (("train", "val"), {"train": 4, "test": 2}),
    ],
)
def test_split_folders_are_the_splits(folders: tuple[str, ...], splits: dict[str, int], tmp_path: Path) -> None:
    for folder in folders:
        count = 2 if folder.lower().startswith("train") else 1
        write_images(tmp_path / "src", [f"{folder}/{label}/{i}.png" for label in ("a", "b") for i in range(count)])
    target = add_target(tmp_path / "src", "x", tmp_path)
    assert Counter(target.split.tolist()) == splits
    assert target.class_names == ("a", "b")
    assert target.notes == (("no test split given: val serves as test",) if folders[-1] == "val" else ())


def test_train_folder_alone_is_split(tmp_path: Path) -> None:
    write_images(tmp_path / "src", [f"train/{label}/{i}.png" for label in "ab" for i in range(5)])
    target = add_target(tmp_path / "src", "x", tmp_path, test_fraction=0.4)
    assert Counter(target.split.tolist()) == {"train": 6, "test": 4}
    assert target.notes == ("no test split given: made one, 60% train and 40% test, stratified by label, seed 0",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "src", [f"{label}/{i}.png" for label in ("train", "bus") for i in range(5)])
    assert add_target(tmp_path / "src", "vehicles", tmp_path).class_names == ("bus", "train")


def test_what_a_folder_leaves_out_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "src", [f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(2)])
    write_images(
        tmp_path / "src", ["cover.png", "extra/a/9.png", "train/stray.png", ".hidden/a/1.png", "__MACOSX/a/1.png"]
    )
    (tmp_path / "src/train/a/._1.png").write_bytes(b"junk of macOS")
    for name in ("readme.txt", "train/a/1.xml", "train/b/2.xml"):
        (tmp_path / "src" / name).touch()
    (tmp_path / "src/train/c").mkdir()
    target = add_target(tmp_path / "src", "x", tmp_path)
    assert target.n_images == 8
    assert target.notes == (
        "left out 3 images outside of split and class folders: cover.png, extra/a/9.png, train/stray.png",
        "left out files that are no images by their name: 2 .xml, 1 .txt",
        "class folders without an image: train/c",
    )


def test_labels_without_an_image_in_a_split_and_shared_patients_are_noted(tmp_path: Path) -> None:
    text = "path,label,split,patient\na.png,cat,train,1\nb.png,dog,train,2\nc.png,cat,test,1\nd.png,cat,test,4\n"
    assert add_target(table_folder(tmp_path / "src", text), "x", tmp_path).notes == (
        "1 labels without an image in test: dog",
        "1 patients are in train and in test; `fastxfer targets check` lists their images",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "src: no images in this folder; expected class folders with images, train/ and test/"),
        (
            ["a.png", "b.png"],
            r"2 images, but none in a class folder \(a\.png, b\.png, …\); expected one folder a class",
        ),
        (["images/a.png", "images/b.png"], "only one class, 'images'"),
    ],
)
def test_folders_without_classes(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_images(tmp_path / "src", names)
    with pytest.raises(DataError, match=message):
        add_target(tmp_path / "src", "x", tmp_path)


def test_folder_with_other_files_only(tmp_path: Path) -> None:
    (tmp_path / "src/cat").mkdir(parents=True)
    (tmp_path / "src/cat/a.nii").touch()
    with pytest.raises(DataError, match=r"no images in this folder \(only 1 \.nii\)"):
        add_target(tmp_path / "src", "x", tmp_path)


# ---- links --------------------------------------------------------------------------------------------------------


def test_links_are_followed_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "src"
    write_images(root, ["cat/1.png", "cat/2.png", ".pool/9.png"])
    (root / "dog").mkdir()
    (root / "dog/1.png").symlink_to("../.pool/9.png")
    (root / "bird").symlink_to(".pool")
    (root / "cat/round").symlink_to("..")  # a circle
    target = add_target(root, "x", tmp_path)
    assert target.image_id.tolist() == ["bird/9.png", "cat/1.png", "cat/2.png", "dog/1.png"]


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "secret/a.png")
    root = table_folder(tmp_path / "src", GOOD)
    (root / "c.png").unlink()
    (root / "c.png").symlink_to(tmp_path / "secret/a.png")
    with pytest.raises(DataError, match=r"row 4: 'c\.png' leads out of the data root .* through a symbolic link"):
        add_target(root, "x", tmp_path)
    (root / "labels.csv").write_text(GOOD.replace("c.png", "linked/a.png"))
    (root / "linked").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"row 4: 'linked/a\.png' leads out of the data root"):
        add_target(root, "x", tmp_path)
    (root / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"this link leads out of .*/src, to .*/secret"):
        add_target(root, "x", tmp_path)
    (root / "c.png").unlink()
    (root / "linked").unlink()
    (root / "dangling.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"dangling\.png: this link leads to .*nowhere\.png, which isn't there"):
        add_target(root, "x", tmp_path)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    table_folder(tmp_path / "src", GOOD)
    (tmp_path / "link").symlink_to("src")
    assert as_rows(add_target(tmp_path / "link", "x", tmp_path)) == GOOD_ROWS


# ---- register -----------------------------------------------------------------------------------------------------


def test_second_add_same_content_is_fine_other_content_needs_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = table_folder(tmp_path / "src", GOOD)
    add_target(folder, "animals", tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "targets").iterdir()}
    add_target(folder, "animals", tmp_path)
    assert "animals: already added, with the same content" in capsys.readouterr().err
    (folder / "labels.csv").write_text(GOOD.replace("cat", "lynx"))
    with pytest.raises(DataError, match=r"'animals' exists with other content \(4 images in .*src\).*--replace"):
        add_target(folder, "animals", tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "targets").iterdir()} == before
    add_target(folder, "animals", tmp_path, replace=True)
    assert load_target("animals", tmp_path).class_names == ("dog", "lynx")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", ".hidden", "-x", "ä", "a" * 101])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a target; use letters, digits"):
        add_target(table_folder(tmp_path / "src", GOOD), name, tmp_path)


def test_names_of_families_are_taken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nih14' is the name of a built-in target"):
        add_target(table_folder(tmp_path / "src", GOOD), "nih14", tmp_path)


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_full_disk_leaves_nothing_half_written(
    replacing: bool, failing_write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = table_folder(tmp_path / "src", GOOD)
    if replacing:
        add_target(folder, "animals", tmp_path)
        (folder / "labels.csv").write_text(GOOD.replace("cat", "lynx"))
    register = tmp_path / "targets"
    before = {p.name: p.read_bytes() for p in register.iterdir()} if replacing else {}
    calls = 0

    def fsync(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        add_target(folder, "animals", tmp_path, replace=replacing)
    assert {p.name: p.read_bytes() for p in register.iterdir()} == before


def test_unknown_target_offers_the_nearest(tmp_path: Path) -> None:
    add_target(table_folder(tmp_path / "src", GOOD), "animals", tmp_path)
    with pytest.raises(UsageError, match=r"unknown target 'animal' in .*\. Did you mean: animals\?"):
        load_target("animal", tmp_path)
    with pytest.raises(UsageError, match=r"Did you mean: chexpert[,?]"):
        load_target("chexprt", tmp_path)
    with pytest.raises(UsageError, match=r"The folder .*/src is there: fastxfer targets add .*/src --name src"):
        load_target("src", tmp_path)
    with pytest.raises(UsageError, match="was added by hand and takes no option 'policy'"):
        load_target("animals", tmp_path, policy="ones")


def test_damaged_register_entries(tmp_path: Path) -> None:
    folder = table_folder(tmp_path / "src", GOOD)
    add_target(folder, "animals", tmp_path)
    table, meta = tmp_path / "targets/animals.csv", tmp_path / "targets/animals.json"
    table.write_text(table.read_text().replace("dog", "wolf"))
    with pytest.raises(
        DataError, match=r"animals\.csv: changed since it was added; to use it as it is: fastxfer targets add"
    ):
        load_target("animals", tmp_path)
    # … which works, as the message promises.
    add_target(table, "animals", tmp_path, root=folder, replace=True)
    assert load_target("animals", tmp_path).class_names == ("cat", "wolf")

    good = meta.read_text()
    meta.write_text(json.dumps({**json.loads(good), "format": 99}))
    with pytest.raises(DataError, match=r"animals\.json: written by a newer fastxfer \(format 99, this one knows 1\)"):
        load_target("animals", tmp_path)
    for broken in (good[:50], "[]", '{"format": 1}', "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")):
        meta.write_text(broken, encoding="latin-1")
        with pytest.raises(DataError, match=r"animals\.json: not a register entry of fastxfer, or damaged"):
            load_target("animals", tmp_path)
    meta.write_text(good)
    shutil.rmtree(folder)
    assert list_targets(tmp_path)[0]["available"] is False
    with pytest.raises(DataError, match=r"its images were in .*src, which isn't there any more"):
        load_target("animals", tmp_path)


def test_the_registered_table_can_be_added_again(tmp_path: Path) -> None:
    text = "path,label,split,patient\na.png,B|A,train,1\nb.png,No Finding,train,2\nc.png,A,test,3\nd.png,B,val,\n"
    folder = table_folder(tmp_path / "src", text)
    one = add_target(folder, "one", tmp_path)
    two = add_target(tmp_path / "targets/one.csv", "two", tmp_path, root=folder)
    assert two.fingerprint == one.fingerprint


# ---- families -----------------------------------------------------------------------------------------------------


def nih_folder(root: Path, *, lists: bool, layout: str = "images") -> Path:
    names = ["00000001_000.png", "00000003_000.png", "00000003_001.png", "00000013_000.png"]  # 3 and 13: test patients
    folders = [layout, layout, "images_002/images" if layout != "images" else layout, layout]
    write_images(root, [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)])
    (root / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID\n"
        f"{names[0]},Hernia|Mass,0,1\n{names[1]},No Finding,0,3\n{names[2]},Edema,1,3\n{names[3]},Mass,0,13\n"
    )
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(names[:2]))
        (root / "test_list.txt").write_text(names[2] + "\n")
    return root


def test_nih14_by_its_lists(tmp_path: Path) -> None:
    nih_folder(tmp_path / "nih14", lists=True)
    target = load_target("nih14", tmp_path)
    assert target.image_id.tolist() == [
        f"images/{n}" for n in ("00000001_000.png", "00000003_000.png", "00000003_001.png")
    ]
    assert target.split.tolist() == ["train", "train", "test"]
    assert target.class_names == NIH_LABELS == tuple(sorted(NIH_LABELS))
    assert [NIH_LABELS[j] for j in np.flatnonzero(target.labels[0])] == ["Hernia", "Mass"]
    assert not target.labels[1].any()
    note = "left out 1 images of Data_Entry_2017_v2020.csv that are in neither list: "
    assert any(said.startswith(note) and said.endswith(".png") for said in target.notes)


def test_nih14_by_the_test_patients_in_kaggles_layout(tmp_path: Path) -> None:
    nih_folder(tmp_path / "nih14", lists=False, layout="images_001/images")
    target = load_target("nih14", tmp_path)
    assert target.split.tolist() == ["train", "test", "test", "test"]
    assert target.image_id[2] == "images_002/images/00000003_001.png"
    assert "2,797 patients of the official test list" in target.notes[0]


def test_nih14_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no folder .*/nih14; expected there: Data_Entry_2017_v2020\.csv .*nihcc\.app\.box"
    ):
        load_target("nih14", tmp_path)
    root = nih_folder(tmp_path / "nih14", lists=False)
    (root / "images/00000013_000.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images are not below .*nih14: .*row 5: '00000013_000\.png'"):
        load_target("nih14", tmp_path)
    assert load_target("nih14", tmp_path, labels_only=True).root is None
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Edema", "Oedema"))
    with pytest.raises(DataError, match="row 4: finding 'Oedema' is none of the 14"):
        load_target("nih14", tmp_path)
    table.unlink()
    with pytest.raises(DataError, match=r"no Data_Entry_2017_v2020\.csv or Data_Entry_2017\.csv or .* in .*nih14"):
        load_target("nih14", tmp_path)
    with pytest.raises(UsageError, match=r"'nih14' has no option 'polcy'; its options: views, ages, first_of"):
        load_target("nih14", tmp_path, polcy="ones")


def chexpert_folder(root: Path) -> Path:
    columns = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"]
    columns += ["Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"]
    columns += ["Fracture", "Support Devices"]

    def row(path: str, side: str, view: str, **cells: str) -> str:
        values = [cells.get(c.replace(" ", "_"), "") for c in columns]
        write_image(root / path)
        return ",".join([f"CheXpert-v1.0-small/{path}", "Female", "68", side, view, *values])

    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *columns])
    train = [
        row("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", No_Finding="1.0", Support_Devices="1.0"),
        row("train/patient00002/study1/view1_frontal.jpg", "Frontal", "PA", Edema="-1.0", Pleural_Effusion="1.0"),
        row("train/patient00002/study1/view2_lateral.jpg", "Lateral", "", Edema="0.0"),
        row("train/patient00003/study1/view1_frontal.jpg", "Frontal", "LL", Edema="0.0"),
    ]
    valid = [row("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "AP", Edema="1.0", Pneumonia="0.0")]
    (root / "train.csv").write_text("\n".join([header, *train]) + "\n")
    (root / "valid.csv").write_text("\n".join([header, *valid]) + "\n")
    return root


def test_chexpert(tmp_path: Path) -> None:
    chexpert_folder(tmp_path / "chexpert" / "CheXpert-v1.0-small")
    target = load_target("chexpert", tmp_path)
    assert target.root == tmp_path / "chexpert" / "CheXpert-v1.0-small"
    assert target.split.tolist() == ["train", "train", "test"]
    assert target.patient.tolist() == ["patient00001", "patient00002", "patient64541"]
    assert target.class_names == CHEXPERT_LABELS == tuple(sorted(CHEXPERT_LABELS))
    assert (target.root / str(target.image_id[0])).is_file()

    def labels(t: Target, row: int) -> dict[str, float]:
        return {n: float(v) for n, v in zip(t.class_names, t.labels[row], strict=True) if not np.isnan(v)}

    healthy = dict.fromkeys(CHEXPERT_LABELS, 0.0) | {"Support Devices": 1.0}
    assert labels(target, 0) == healthy
    assert labels(target, 1) == {"Effusion": 1.0}
    assert labels(target, 2) == {"Edema": 1.0, "Pneumonia": 0.0}
    assert labels(load_target("chexpert", tmp_path, policy="ones"), 1) == {"Effusion": 1.0, "Edema": 1.0}
    assert labels(load_target("chexpert", tmp_path, policy="zeros"), 1) == {"Effusion": 1.0, "Edema": 0.0}
    blank = dict.fromkeys(CHEXPERT_LABELS, 0.0) | {"Effusion": 1.0}
    del blank["Edema"]
    assert labels(load_target("chexpert", tmp_path, policy="blank-zeros"), 1) == blank
    assert load_target("chexpert", tmp_path, views=("AP", "PA", "L")).n_images == 4
    with pytest.raises(UsageError, match="policy 'guess' is not one of ignore, ones, zeros, blank-zeros"):
        load_target("chexpert", tmp_path, policy="guess")
    with pytest.raises(UsageError, match="views XX; expected some of PA, AP, AP Supine, L,"):
        load_target("chexpert", tmp_path, views=("XX",))


def test_chexpert_bad_files(tmp_path: Path) -> None:
    (tmp_path / "chexpert").mkdir()
    with pytest.raises(DataError, match=r"no train\.csv in .*chexpert, nor in CheXpert-v1\.0-small or CheXpert-v1\.0"):
        load_target("chexpert", tmp_path)
    root = chexpert_folder(tmp_path / "chexpert")
    table = root / "train.csv"
    table.write_text(table.read_text().replace("-1.0", "maybe"))
    with pytest.raises(DataError, match=r"train\.csv, row 3: 'maybe' in column 'Edema'; expected 1, 0, -1 or nothing"):
        load_target("chexpert", tmp_path)
    chexpert_folder(root)
    (root / "train/patient00001/study1/view1_frontal.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 listed images are not below .*train\.csv, row 2: 'train/patient00001"):
        load_target("chexpert", tmp_path)
    (root / "valid.csv").unlink()
    with pytest.raises(DataError, match=r"valid\.csv: there is no such file"):
        load_target("chexpert", tmp_path)


def test_imagenet1k(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*imagenet1k; expected there: train/ and val/.*image-net\.org"):
        load_target("imagenet1k", tmp_path)
    write_images(
        tmp_path / "imagenet1k", [f"train/{c}/{c}_{i}.JPEG" for c in ("n01440764", "n01443537") for i in (1, 2)]
    )
    with pytest.raises(DataError, match=r"no folder .*imagenet1k/val; expected class folders n01440764"):
        load_target("imagenet1k", tmp_path)
    write_images(tmp_path / "imagenet1k", [f"val/{c}/ILSVRC_{c}.JPEG" for c in ("n01440764", "n01443537")])
    target = load_target("imagenet1k", tmp_path)
    assert Counter(target.split.tolist()) == {"train": 4, "test": 2}
    assert target.notes[0].startswith("2 classes where imagenet1k has 1,000")
    with pytest.raises(UsageError, match="'imagenet1k' has no option 'labels_only'; it has none"):
        load_target("imagenet1k", tmp_path, labels_only=True)


# ---- splits -------------------------------------------------------------------------------------------------------


def image_names(n: int) -> np.ndarray:
    return np.array([f"{i:05}.png" for i in range(n)])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(0, 2**32), st.floats(0.05, 0.6))
def test_split_of_single_images(labels: list[int], seed: int, share: float) -> None:
    y = np.array(labels)
    split = make_split(image_names(len(y)), y, None, fractions={"train": 1 - share, "test": share}, seed=seed)
    assert set(split) <= {"train", "test"}
    for label, n in Counter(labels).items():
        tests = int(((split == "test") & (y == label)).sum())
        assert abs(tests - share * n) < 1 or (tests == 1 and n >= 2)
        if n >= 2:
            assert 1 <= tests < n
    # the same for any order of the rows
    order = np.random.default_rng(seed).permutation(len(y))
    again = make_split(
        image_names(len(y))[order], y[order], None, fractions={"train": 1 - share, "test": share}, seed=seed
    )
    assert np.array_equal(again, split[order])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25)), min_size=2, max_size=150),
    st.booleans(),
    st.integers(0, 1000),
)
def test_split_by_patient(rows: list[tuple[int, int]], multi_label: bool, seed: int) -> None:
    y = np.array([label for label, _ in rows])
    patient = np.array([f"p{p}" for _, p in rows])
    labels: np.ndarray = y
    if multi_label:
        labels = np.zeros((len(y), 4), dtype=np.float32)
        labels[np.arange(len(y)), y] = np.where(y == 3, 0, 1)  # label 3: no finding
        labels[np.arange(len(y)), (y + 1) % 4] = np.nan
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
    split = make_split(image_names(len(y)), labels, patient, fractions=fractions, seed=seed)
    assert len(split) == len(y)
    assert set(split) <= set(fractions)
    for p in set(patient):
        assert len(set(split[patient == p])) == 1
    order = np.random.default_rng(seed).permutation(len(y))
    again = make_split(image_names(len(y))[order], labels[order], patient[order], fractions=fractions, seed=seed)
    assert np.array_equal(again, split[order])


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_patients_with_many_images_and_labels_do_not_bend_the_shares(share: float) -> None:
    """As in PadChest: the more images a patient has, the more labels they carry; a test split of small patients is none."""
    rng = np.random.default_rng(0)
    size = rng.geometric(0.4, 4000)
    patient = np.repeat(np.arange(len(size)), size).astype(str)
    often = 0.5 ** np.arange(1, 11) * (1 + np.repeat(size, size)[:, None] / 4)
    labels = (rng.random((len(patient), 10)) < often).astype(np.float32)
    split = make_split(
        image_names(len(patient)), labels, patient, fractions={"train": 1 - share, "test": share}, seed=0
    )
    test = split == "test"
    assert test.mean() == pytest.approx(share, rel=0.05)
    assert np.allclose(labels[test].sum(axis=0), share * labels.sum(axis=0), atol=2, rtol=0.01)
    assert np.unique(patient[test]).size == pytest.approx(share * len(size), rel=0.1)


def test_many_patients_of_many_classes_take_no_table_of_both() -> None:
    n, classes = 20_000, 4_000  # 640 MB, were there a number for every patient and class
    labels = np.arange(n) % classes
    patient = np.array([str(i // 2) for i in range(n)])
    tracemalloc.start()
    split = make_split(image_names(n), labels, patient, fractions={"train": 0.8, "test": 0.2}, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert (split == "test").mean() == pytest.approx(0.2, abs=0.01)


def test_split_by_patient_is_stratified_and_of_the_asked_size() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat([f"p{i}" for i in range(400)], rng.geometric(0.4, size=400))
    y = rng.choice(5, size=len(patient), p=[0.5, 0.3, 0.1, 0.07, 0.03])
    split = make_split(image_names(len(y)), y, patient, fractions={"train": 0.8, "test": 0.2}, seed=1)
    for label in range(5):
        assert np.mean(split[y == label] == "test") == pytest.approx(0.2, abs=0.06)
    assert np.mean(split == "test") == pytest.approx(0.2, abs=0.01)
    other = make_split(image_names(len(y)), y, patient, fractions={"train": 0.8, "test": 0.2}, seed=2)
    assert not np.array_equal(split, other)


def test_split_gives_every_label_to_both_sides_where_patients_allow() -> None:
    # Label 1 is held by two patients only; a share of 20 % of 3 images would leave one side without it.
    patient = np.array([f"p{i}" for i in range(40)] + ["a", "a", "b"])
    y = np.array([0] * 40 + [1, 1, 1])
    for seed in range(20):
        split = make_split(image_names(43), y, patient, fractions={"train": 0.9, "test": 0.1}, seed=seed)
        assert set(split[y == 1]) == {"train", "test"}


def test_split_of_nothing_and_wrong_shares() -> None:
    assert make_split(image_names(0), np.zeros(0, dtype=np.int64), None, fractions={"train": 1.0}, seed=0).shape == (0,)
    with pytest.raises(ValueError, match=r"must sum to 1, not 0\.9"):
        make_split(image_names(2), np.zeros(2, dtype=np.int64), None, fractions={"train": 0.9}, seed=0)


def test_test_fraction_has_bounds(tmp_path: Path) -> None:
    write_images(tmp_path / "src", ["a/1.png", "b/1.png", "a/2.png", "b/2.png"])
    with pytest.raises(UsageError, match=r"share of test images must lie between 0 and 1, not 1\.5"):
        add_target(tmp_path / "src", "x", tmp_path, test_fraction=1.5)


# ---- describe and check -------------------------------------------------------------------------------------------


def test_columns_about_images_follow_their_rows_and_count_in_the_fingerprint() -> None:
    def target(**about: list[str]) -> Target:
        columns = {name: np.array(values) for name, values in about.items()}
        return Target(
            "t", np.array(["a", "b", "c"]), ("x", "y"), np.array([0, 1, 0]), np.array(["train"] * 3), **columns
        )

    full = target(patient=["p", "q", "p"], study=["s1", "s2", "s3"], view=["PA", "L", "AP"], source=["u", "v", "u"])
    some = full.take(np.array([2, 0]))
    assert (some.study.tolist(), some.view.tolist(), some.source.tolist()) == (["s3", "s1"], ["AP", "PA"], ["u", "u"])
    assert target().take(np.array([1])).study is None
    columns = [{}, {"study": ["1", "2", "3"]}, {"view": ["1", "2", "3"]}, {"source": ["1", "2", "3"]}]
    assert len({target(**about).fingerprint for about in columns}) == 4
    with pytest.raises(ValueError, match="different lengths"):
        target(view=["PA"])


def test_describe_counts_positive_negative_unknown() -> None:
    target = Target(
        "cxr",
        image_names(4),
        ("A", "B"),
        np.array([[1, np.nan], [0, 1], [np.nan, np.nan], [1, 0]], dtype=np.float32),
        np.array(["train", "train", "test", "test"]),
        np.array(["x", "x", "y", "z"]),
        notes=("said",),
    )
    text = describe_target(target)
    assert text["labels"] == {
        "train": {
            "A": {"positive": 1, "negative": 1, "unknown": 0},
            "B": {"positive": 1, "negative": 0, "unknown": 1},
        },
        "test": {
            "A": {"positive": 1, "negative": 0, "unknown": 1},
            "B": {"positive": 0, "negative": 1, "unknown": 1},
        },
    }
    assert (text["splits"], text["patients"], text["classes"]) == ({"train": 2, "test": 2}, 3, ["A", "B"])
    assert (text["root"], text["notes"], text["n_images"]) == (None, ["said"], 4)


def faulty_target(root: Path) -> Target:
    names = ["1.png", "2.png", "3.bmp", "4.png", "5.png", "6.png", "7.png", "8.png"]
    write_images(root, names)
    shutil.copy(root / "1.png", root / "2.png")  # the same file, train and test, other label
    Image.open(root / "1.png").save(root / "3.bmp")  # the same pixels
    (root / "4.png").write_bytes((root / "5.png").read_bytes()[:40])  # cut
    (root / "6.png").write_bytes(b"not an image")
    (root / "7.png").write_bytes(b"not an image")  # unreadable, but copies all the same
    text = "path,label,split,patient\n" + "".join(
        f"{name},{label},{split},{patient}\n"
        for name, label, split, patient in zip(
            names,
            ["a", "b", "a", "a", "b", "a", "a", "c"],
            ["train", "test", "train", "train", "train", "test", "test", "test"],
            ["secret1", "secret1", "secret2", "secret3", "secret4", "secret5", "secret4", "secret6"],
            strict=True,
        )
    )
    (root / "labels.csv").write_text(text)
    return add_target(root, "faulty", root.parent / "data")


@pytest.mark.parametrize("workers", [1, 4])
def test_check_finds_what_is_wrong(workers: int, tmp_path: Path) -> None:
    report = check_target(faulty_target(tmp_path / "src"), workers=workers)
    assert report["n_undecodable"] == 3
    assert [(e["image"], e["split"]) for e in report["undecodable"]] == [
        ("4.png", "train"),
        ("6.png", "test"),
        ("7.png", "test"),
    ]
    assert "4.png: truncated or damaged PNG file" in report["undecodable"][0]["error"]
    groups = [
        ([i["image"] for i in g["images"]], g["same"], g["across_splits"], g["labels_differ"])
        for g in report["duplicate_groups"]
    ]
    assert groups == [(["1.png", "2.png", "3.bmp"], "pixels", True, True), (["6.png", "7.png"], "file", False, False)]
    assert report["duplicate_images"] == 5
    assert report["patients_in_both"] == 2
    assert report["patients_in_both_images"] == [
        {
            "target": "faulty",
            "splits": ["train", "test"],
            "patients": 2,
            "images": {"train": ["1.png", "5.png"], "test": ["2.png", "7.png"]},
            "share": {"train": 0.5, "test": 0.5},
        }
    ]
    assert report["empty_classes"] == [{"target": "faulty", "split": "train", "labels": ["c"]}]
    assert report["targets"][0]["labels"]["test"]["c"] == {"positive": 1, "negative": 3, "unknown": 0}
    assert "secret" not in json.dumps(report)


def test_check_finds_copies_between_targets_and_missing_files(tmp_path: Path) -> None:
    one = add_target(table_folder(tmp_path / "one", GOOD), "one", tmp_path)
    two = add_target(table_folder(tmp_path / "two", GOOD.replace("cat", "lynx")), "two", tmp_path)
    (tmp_path / "two/d.png").unlink()
    report = check_targets([one, two])
    assert [[(i["target"], i["image"]) for i in g["images"]] for g in report["duplicate_groups"]] == [
        [("one", f"{x}.png"), ("two", f"{x}.png")] for x in "abc"
    ]
    assert all(g["across_targets"] and not g["labels_differ"] for g in report["duplicate_groups"])
    assert "d.png: there is no such file" in report["undecodable"][0]["error"]
    assert report["n_undecodable"] == 1


def test_check_needs_the_images() -> None:
    target = Target("t", image_names(2), ("a", "b"), np.array([0, 1]), np.array(["train", "test"]))
    with pytest.raises(DataError, match="'t': its images are not at hand"):
        check_target(target)


# ---- the real thing -----------------------------------------------------------------------------------------------

REAL_TARGETS = {
    "kermany_pneumonia": ({"train": 2389, "test": 624}, 2, 2208),
    "nih_sample": ({"train": 435, "test": 186}, 14, 621),
    "dtd10": ({"train": 400, "val": 400, "test": 400}, 10, None),
    "cifar10_subset": ({"train": 4000, "test": 1000}, 10, None),
    "omniglot_small": ({"train": 3630, "test": 1210}, 242, 20),
}


@pytest.mark.real
@pytest.mark.parametrize("name", REAL_TARGETS)
def test_every_real_folder_is_added_by_one_line(name: str, real: Path, tmp_path: Path) -> None:
    splits, classes, patients = REAL_TARGETS[name]
    target = add_target(real / name, name, tmp_path)
    text = describe_target(target)
    assert text["splits"] == splits
    assert text["n_classes"] == classes
    assert text["patients"] == patients
    assert target.multi_label == (name == "nih_sample")
    assert load_target(name, tmp_path).fingerprint == target.fingerprint
    assert target.root is not None
    assert (target.root / str(target.image_id[-1])).is_file()


@pytest.mark.real
def test_real_label_columns_and_official_lists(real: Path, tmp_path: Path) -> None:
    three = add_target(real / "kermany_pneumonia", "k3", tmp_path, label_column="subtype")
    assert three.class_names == ("bacteria", "normal", "virus")
    # The sample lies in the layout of the official release: the built-in reader comes to the same table.
    (tmp_path / "nih14").symlink_to(real / "nih_sample")
    official = load_target("nih14", tmp_path)
    by_table = add_target(real / "nih_sample", "nih", tmp_path)
    assert official.class_names == by_table.class_names
    a, b = np.argsort(official.image_id), np.argsort(by_table.image_id)
    for column in ("image_id", "split", "labels", "patient"):
        assert np.array_equal(getattr(official, column)[a], getattr(by_table, column)[b])


@pytest.mark.real
def test_real_image_folders_are_read_as_their_tables_say(real: Path, tmp_path: Path) -> None:
    """Without its labels.csv, CIFAR-10's folder layout says the same."""
    for split in ("train", "test"):
        shutil.copytree(real / "cifar10_subset" / split, tmp_path / "src" / split)
    by_folder = add_target(tmp_path / "src", "c", tmp_path)
    by_table = add_target(real / "cifar10_subset", "t", tmp_path)
    assert set(as_rows(by_folder)) == set(as_rows(by_table))


@pytest.mark.real
def test_the_24_groups_of_identical_kermany_images_are_found(real: Path, tmp_path: Path) -> None:
    report = check_target(add_target(real / "kermany_pneumonia", "k", tmp_path))
    assert len(report["duplicate_groups"]) == 24
    assert report["duplicate_images"] == 49
    assert report["n_undecodable"] == 0
    assert report["patients_in_both"] == 0
    # Its two classes were saved unlike each other: a file's size and a picture's border tell them.
    flagged = {flag["trait"]: flag["auc"] for flag in report["shortcut_auc"][0]["flagged"]}
    assert min(flagged["bytes"], flagged["border"], flagged["all"]) > 0.85
    assert not {"format", "size", "aspect"} & set(flagged)


def test_targets_need_no_torch() -> None:
    code = (
        "import sys, fastxfer.targets, fastxfer.cli.targets; print('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
