"""Names as people's disks hold them: whatever a folder is called, the register gives back what was added."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastxfer.errors import DataError
from fastxfer.targets import Target, add_target, load_target

# A name that a file system takes: no "/", no NUL, no lone surrogate, not hidden, short enough once it is UTF-8.
NAMES = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0|"), min_size=1, max_size=20
).filter(lambda name: not name.startswith(".") and name != "__MACOSX")


def same(one: Target, other: Target) -> bool:
    return (
        one.fingerprint == other.fingerprint
        and one.class_names == other.class_names
        and one.notes == other.notes
        and one.root == other.root
    )


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=4, unique_by=str.casefold), st.lists(NAMES, min_size=2, max_size=4))
@example([" cats", "dogs "], [" 1", "2 "])  # blanks around a name belong to it
@example(["none", "NaN"], ["a", "b"])  # "none" (no defect, say) is a class when it is a folder's name
@example(["a\rb", "c\nd"], ["x\r", "\n"])
@example(['"', ","], ["\t;", "'"])
@example(["\ufeffa", "é"], ["e\u0301", "ü"])
def test_any_name_comes_back_from_the_register(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], files: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    for label in classes:
        for file in files:
            touch(folder / "images" / label / f"{file}.png")
        touch(folder / "images" / label / "one more.png")
    added = add_target(folder / "images", "names", folder / "data")
    assert added.class_names == tuple(sorted(classes))
    loaded = load_target("names", folder / "data")
    assert same(added, loaded)
    assert loaded.root is not None
    assert all((loaded.root / str(image_id)).is_file() for image_id in loaded.image_id)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not text")
def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    os.close(os.open(os.fsencode(tmp_path / "a") + b"/\xe9.png", os.O_CREAT))
    with pytest.raises(DataError, match=r"a/\\xe9\.png': this name is not UTF-8, so no table can hold it; rename"):
        add_target(tmp_path, "x", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("path", ["q" * 300 + "/1.png", "a/" + "q" * 300 + ".png", "/".join("q" * 3000), "a/1.png/x"])
def test_a_path_that_no_disk_holds_is_a_missing_file(path: str, tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    (tmp_path / "labels.csv").write_text(f"path,label\na/1.png,x\n{path},y\n")
    with pytest.raises(DataError, match=r"1 of 2 listed images are not below .*: .*labels\.csv, row 3: '"):
        add_target(tmp_path, "x", tmp_path / "data")
    assert not (tmp_path / "data").exists()
