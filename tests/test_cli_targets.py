"""`fastxfer targets`: one line adds, shows and checks a data set; errors are one line with an exit code."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fastxfer.cli import main


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["targets", *map(str, words)], prog_name="fastxfer")


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of ten photographs, no split."""
    for seed in range(20):
        write_image(tmp_path / "photos" / ("cat" if seed < 10 else "dog") / f"{seed:02}.png", seed)
    return tmp_path / "photos"


def test_add_ls_show(photos: Path, tmp_path: Path) -> None:
    root = ("--data-root", tmp_path / "data")
    added = run("add", photos, "--name", "photos", *root)
    assert added.exit_code == 0
    assert added.stdout == "photos: 20 images (16 train, 4 test), 2 classes\n"
    assert "photos: no split given: made one, 80% train and 20% test, stratified by label, seed 0" in added.stderr

    listed = run_json("ls", *root)
    kinds = [(t["name"], t["kind"], t["available"], t["n_images"]) for t in listed]
    assert kinds[:2] == [("photos", "folder", True, 20), ("chexpert", "built-in", False, None)]
    assert ("padchest-cl", "built-in", False, None) in kinds
    table = run("ls", *root).stdout
    assert "photos" in table
    assert "chexpert" in table

    shown = run_json("show", "photos", *root)
    assert shown["name"] == "photos"
    assert shown["n_images"] == 20
    assert shown["splits"] == {"train": 16, "test": 4}
    assert shown["classes"] == ["cat", "dog"]
    assert shown["labels"]["test"] == {
        "cat": {"positive": 2, "negative": 2, "unknown": 0},
        "dog": {"positive": 2, "negative": 2, "unknown": 0},
    }
    assert shown["patients"] is None
    assert len(shown["fingerprint"]) == 64
    assert shown["notes"] == ["no split given: made one, 80% train and 20% test, stratified by label, seed 0"]
    assert shown["root"] == str(photos)

    text = run("show", "photos", *root).stdout
    for part in ("photos: 20 images (16 train, 4 test)", "patients: unknown", "note: no split given", "cat"):
        assert part in text


def test_add_takes_a_column_a_label_a_pattern_and_an_npz(tmp_path: Path) -> None:
    root = ("--data-root", tmp_path / "data")
    for i in range(12):
        write_image(tmp_path / "src" / f"{'ab'[i % 2]}{i // 4}_{i:02}.png", i)
    pattern = "{label}{patient}_*.png"
    wrong = run("add", tmp_path / "src", "--name", "byname", "--pattern", "*.png", *root)
    assert (wrong.exit_code, "expected {label} in it" in wrong.stderr) == (2, True)
    # The shortest {label}, "a", leaves the digit to the patient.
    words = ("add", tmp_path / "src", "--name", "byname", "--pattern", pattern, "--val", 0.25, "--test-fraction", 0.34)
    added = run_json(*words, *root)
    assert (added["classes"], added["patients"], sum(added["splits"].values())) == (["a", "b"], 3, 12)
    rows = [f"{'ab'[i % 2]}{i // 4}_{i:02}.png,{i % 2},{'' if i % 3 else 0.75},{i // 4}" for i in range(12)]
    (tmp_path / "src" / "mine.csv").write_text("path,A,B,drawer\n" + "\n".join(rows) + "\n")
    words = ("add", tmp_path / "src/mine.csv", "--name", "table", "--label-column", "A,B", "--group", "drawer")
    table = run_json(*words, "--missing-labels", "unknown", *root)
    assert (table["classes"], table["patients"], table["multi_label"]) == (["A", "B"], 3, True)
    assert sum(labels["B"]["unknown"] for labels in table["labels"].values()) == 8
    arrays = {f"{part}_images": np.zeros((4, 5, 5), np.uint8) for part in ("train", "val", "test")}
    np.savez(
        tmp_path / "x.npz", **arrays, **{f"{p}_labels": np.array([[0], [1]] * 2) for p in ("train", "val", "test")}
    )
    packed = run("add", tmp_path / "x.npz", "--name", "packed", *root)
    assert packed.stdout == "packed: 12 images (4 train, 4 val, 4 test), 2 classes\n"
    assert [t["kind"] for t in run_json("ls", *root)[:3]] == ["folder", "packed", "table"]


def test_add_again_seed_and_replace(photos: Path, tmp_path: Path) -> None:
    root = ("--data-root", tmp_path / "data")
    first = run_json("add", photos, "--name", "photos", *root)
    again = run("add", photos, "--name", "photos", *root)
    assert again.exit_code == 0
    assert "already added, with the same content" in again.stderr
    other = run("add", photos, "--name", "photos", "--split-seed", 1, *root)
    assert other.exit_code == 1
    assert other.stderr.splitlines()[-2].startswith("Error: target 'photos' exists with other content (20 images in")
    replaced = run_json("add", photos, "--name", "photos", "--split-seed", 1, "--replace", *root)
    assert replaced["fingerprint"] != first["fingerprint"]
    assert run_json("show", "photos", *root)["fingerprint"] == replaced["fingerprint"]


def test_show_of_unknown_labels_counts_them(tmp_path: Path) -> None:
    root = tmp_path / "chexpert"
    columns = (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    )
    columns += "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    root.mkdir()
    for file, folder in (("train.csv", "train"), ("valid.csv", "valid")):
        row = f"CheXpert-v1.0/{folder}/patient00001/study1/view1_frontal.jpg,Male,50,Frontal,AP,,,1.0,,,-1.0" + "," * 8
        (root / file).write_text(f"Path,Sex,Age,Frontal/Lateral,AP/PA,{columns}\n{row}\n")
    words = ("show", "chexpert", "--data-root", tmp_path)
    assert run(*words).exit_code == 1  # the images aren't there
    shown = run_json(*words, "--labels-only")
    assert shown["labels"]["test"]["Cardiomegaly"] == {"positive": 1, "negative": 0, "unknown": 0}
    assert shown["labels"]["test"]["Edema"] == {"positive": 0, "negative": 0, "unknown": 1}
    assert "0 / 0 / 1" in run(*words, "--labels-only").stdout
    ones = run_json(*words, "--labels-only", "--policy", "ones")
    assert ones["labels"]["test"]["Edema"] == {"positive": 1, "negative": 0, "unknown": 0}
    both = run_json("show", "chexpert", "--labels-only", "--view", "AP", "PA", "--data-root", tmp_path)
    assert both["n_images"] == 2
    wrong = run(*words, "--labels-only", "--view", "sideways")
    assert wrong.exit_code == 2
    assert "views sideways; expected some of PA, AP, AP Supine, L" in wrong.stderr


def test_check(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    for seed, name in enumerate(["1.png", "2.png", "3.png", "4.png"]):
        write_image(folder / name, seed)
    (folder / "4.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "3.png").write_bytes(b"")
    (folder / "labels.csv").write_text(
        "path,label,split,patient\n1.png,a,train,Miller\n2.png,b,train,Smith\n3.png,a,test,Smith\n4.png,a,test,Jones\n"
    )
    root = ("--data-root", tmp_path / "data")
    assert run("add", folder, "--name", "faulty", *root).exit_code == 0
    report = run_json("check", "faulty", *root)
    assert report["n_undecodable"] == 1
    assert [i["image"] for g in report["duplicate_groups"] for i in g["images"]] == ["1.png", "4.png"]
    text = run("check", "faulty", *root)
    assert text.exit_code == 0
    for line in (
        "undecodable images: 1",
        "3.png: empty file (0 bytes)",
        "duplicates: 2 images in 1 groups of identical images; 1 across splits, 0 across targets",
        "same file, ACROSS SPLITS: faulty:1.png (train) = faulty:4.png (test)",
        "patients in more than one split: 1",
        "faulty: 1 patients, 1 images in train (50.0%; 2.png …) and 1 images in test (50.0%; 3.png …)",
        "studies in more than one split: 0",
        "faulty, of 2: copies 1 (50.0%), the same patient 1 (50.0%)",
        "labels without an image in a split: 1",
        "faulty, test: b",
    ):
        assert line in text.stdout
    shown = run("show", "faulty", *root)
    for name in ("Miller", "Smith", "Jones"):  # nobody is named
        assert name not in text.output + shown.output + json.dumps(report)


def test_errors_are_one_line_with_an_exit_code(photos: Path, tmp_path: Path) -> None:
    root = ("--data-root", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    tables = {}
    for name, text in {
        "no path": "file,label\n00.png,cat\n",
        "no label": "path,label\ncat/00.png,cat\ndog/10.png,\n",
        "leaving": "path,label\ncat/00.png,cat\n../../secret.png,dog\n",
    }.items():
        tables[name] = photos / f"{name}.csv"
        tables[name].write_text(text)
    assert run("add", photos, "--name", "photos", *root).exit_code == 0
    for words, code, message in [
        (("add", tmp_path / "gone", "--name", "x"), 1, "gone: there is no such folder or CSV file"),
        (("add", tmp_path / "empty", "--name", "x"), 1, "empty: no images in this folder; expected class folders"),
        (("add", tables["no path"], "--name", "x"), 1, "no path.csv: no column 'path'; the columns are: file, label"),
        (("add", tables["no label"], "--name", "x"), 1, "no label.csv, row 3: the label in column 'label' is empty"),
        (("add", tables["leaving"], "--name", "x"), 1, "leaving.csv, row 3: '../../secret.png' leaves the data root"),
        (("add", photos, "--name", "a/b"), 2, "'a/b' cannot name a target"),
        (("add", photos), 2, "Missing option '--name'"),
        (("show", "photo"), 2, "unknown target 'photo'"),
        (("show", "photo"), 2, "Did you mean: photos"),
        (("show", "photos", "--policy", "ones"), 2, "takes no option 'policy'"),
        (("show", "nih14"), 1, "expected there: Data_Entry_2017_v2020.csv"),
        (("check",), 2, "Missing argument 'NAME...'"),
        (("check", "photos", "photos"), 2, "a target is named twice"),
        (("check", "photos", "fotos"), 2, "unknown target 'fotos'"),
    ]:
        result = run(*words, *root)
        assert result.exit_code == code, words
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert result.stdout == ""


def test_a_full_disk_is_said_in_one_line(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run("add", photos, "--name", "photos", "--data-root", tmp_path / "data")
    assert result.exit_code == 1
    assert "Error: no space left on the disk" in result.stderr
    assert list((tmp_path / "data" / "targets").iterdir()) == []


@pytest.mark.real
def test_one_line_adds_a_real_folder_and_check_finds_its_copies(real: Path, tmp_path: Path) -> None:
    root = ("--data-root", tmp_path)
    added = run("add", real / "kermany_pneumonia", "--name", "kermany", "--label-column", "subtype", *root)
    assert "kermany: 3,013 images (2,389 train, 624 test), 3 classes" in added.stdout
    result = run("check", "kermany", *root)
    assert "49 images in 24 groups of identical images; 0 across splits" in result.stdout
    assert "and 14 more (--json lists all)" in result.stdout
