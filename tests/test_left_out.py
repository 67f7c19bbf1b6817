"""Never a silently dropped row: whatever a reader leaves out is listed in full, by reason, in `targets show --json`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from layouts import mimic_folder, nih_folder, padchest_folder, touch, write

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.targets import add_target, describe_target, load_target
from fastxfer.targets.filters import keep_exactly_one
from fastxfer.targets.merge import merge_targets


def run(data_root: Path, *words: str) -> str:
    result = CliRunner().invoke(main, ["targets", *words, "--data-root", str(data_root)], prog_name="fastxfer")
    assert result.exit_code == 0, result.output
    return result.stdout


def listed(data_root: Path, *words: str) -> dict[str, list[Any]]:
    """Reason -> the rows or paths, of `targets show … --json`."""
    shown = json.loads(run(data_root, "show", *words, "--json"))
    for gone in shown["left_out"]:
        assert gone.keys() == {"reason", "file", "rows", "paths", "count"}
        assert gone["count"] == len(gone["rows"] or gone["paths"]) > 0
    assert shown["n_left_out"] == sum(gone["count"] for gone in shown["left_out"])
    return {gone["reason"]: gone["rows"] or gone["paths"] for gone in shown["left_out"]}


def test_a_folder_lists_all_and_the_human_output_says_where(tmp_path: Path) -> None:
    images = [f"{c}/{i}.png" for c in "ab" for i in range(5)]
    strays = [f"stray{i}.png" for i in range(9)]
    touch(tmp_path / "src", *images, *strays, "a/notes.txt", "README")
    said = run(tmp_path, "add", str(tmp_path / "src"), "--name", "x")
    assert "left out: 11; `fastxfer targets show x --json` lists all of it" in said
    assert listed(tmp_path, "x") == {
        "images outside of class folders": strays,
        "files that are no images by their name": ["README", "a/notes.txt"],
    }
    told = run(tmp_path, "show", "x")
    assert (
        "left out 9 images outside of class folders: stray0.png, stray1.png, stray2.png, stray3.png, stray4.png, …"
        in told
    )
    assert "left out: 11; --json lists all of it" in told
    run(tmp_path, "add", str(tmp_path / "src"), "--name", "p", "--pattern", "{label}/?.png")
    assert listed(tmp_path, "p") == {"images that aren't as the pattern says": strays}
    # Nothing is left out of a table that is whole, and an entry of before says nothing of it.
    entry = tmp_path / "targets" / "x.json"
    entry.write_text(json.dumps({k: v for k, v in json.loads(entry.read_text()).items() if k != "left_out"}))
    assert listed(tmp_path, "x") == {}
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"left_out": [{"why": "x"}]}))
    with pytest.raises(DataError, match=r"x\.json: not a register entry of fastxfer, or damaged"):
        load_target("x", tmp_path)


@pytest.mark.parametrize("column", ["label", "Mass,Edema"])
def test_rows_without_a_label_are_listed_by_number(column: str, tmp_path: Path) -> None:
    touch(tmp_path / "src", *(f"{i}.png" for i in range(20)))
    cells = {"label": ["a", "b", ""], "Mass,Edema": ["1,0", "0,1", ","]}[column]
    rows = [f"{i}.png,{cells[i % 3]},someone{i}" for i in range(20)]
    write(tmp_path / "src/labels.csv", "\n".join([f"path,{column},patient", *rows]) + "\n")
    target = add_target(tmp_path / "src", "x", tmp_path, label_column=column, missing_labels="drop")
    (gone,) = target.left_out
    assert (gone.file, gone.rows) == (str(tmp_path / "src/labels.csv"), [i + 2 for i in range(20) if i % 3 == 2])
    assert gone.note.endswith("labels.csv, row 4, 7, 10, 13, 16, …")
    assert load_target("x", tmp_path).left_out == target.left_out
    assert "someone" not in run(tmp_path, "show", "x", "--json")


def test_archives(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(4)), "x.txt")
    (tmp_path / "src").mkdir()
    for c in "ab":
        with tarfile.open(tmp_path / "src" / f"{c}.tar", "w") as tar:
            for file in tmp_path.glob("*.*"):
                tar.add(file, file.name)
    add_target(tmp_path / "src", "x", tmp_path)
    assert listed(tmp_path, "x") == {
        "files in archives that are no images by their name": ["a.tar/x.txt", "b.tar/x.txt"]
    }


def test_chest_sets_account_for_every_row_of_their_tables(tmp_path: Path) -> None:
    padchest_folder(tmp_path / "padchest")
    broken = "rows with files known as broken"
    views = "rows of views other than PA, L, AP Supine, AP, COSTAL"
    assert listed(tmp_path, "padchest") == {views: [14], "rows without labels": [15], broken: [16]}
    assert listed(tmp_path, "padchest", "--view", "PA", "--ages", "0", "50") == {
        views: [14], "rows without labels": [15], broken: [16],
        "images by the filter views PA": [3, 4, 5, 6, 8, 9, 10, 11, 13],
        "images by the filter ages 0 to 50 (0 images of unknown age)": [2],
    }  # fmt: skip
    single = listed(tmp_path, "padchest-cl")["images without exactly one positive label"]
    assert len(single) == 9
    assert single[0] == "0/f0.png"
    mimic_folder(tmp_path / "mimic-cxr", "")
    assert listed(tmp_path, "mimic-cxr", "--view", "AP") == {
        "images without a split": [6],
        "images without labels": [7],
        "images by the filter views AP": [3, 4],
    }
    nih_folder(tmp_path / "nih14")
    write(tmp_path / "nih14/train_val_list.txt", "00000001_000.png\n")
    write(tmp_path / "nih14/test_list.txt", "00000003_000.png\n00000009_000.png\n")
    assert listed(tmp_path, "nih14", "--view", "PA") == {
        "listed images without a row in the table": ["00000009_000.png"],
        "images of Data_Entry_2017.csv that are in neither list": [3],
    }
    for name in ("padchest", "mimic-cxr", "nih14"):
        words = run(tmp_path, "show", name, "--json").split('"left_out"')[1]
        patients = np.unique(load_target(name, tmp_path).patient).tolist()
        assert not [p for p in patients if f'"{p}"' in words]


def test_merges_say_of_which_member(tmp_path: Path) -> None:
    padchest_folder(tmp_path / "padchest")
    nih_folder(tmp_path / "nih14")
    both = merge_targets([load_target(name, tmp_path) for name in ("padchest", "nih14")], "both")
    assert [gone.reason.split(":")[0] for gone in both.left_out] == ["padchest"] * 3
    assert sum(map(len, keep_exactly_one(both).left_out)) == 18 - keep_exactly_one(both).n_images
    assert describe_target(both)["n_left_out"] == 3
