"""Chest X-ray sets by name, each on a miniature of its layout; policies and filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from layouts import (
    chexpert_folder,
    covidx_folder,
    known,
    label_names,
    mimic_folder,
    nih_folder,
    padchest_folder,
    write,
)

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.targets import (
    describe_target,
    load_target,
    padchest,
)
from fastxfer.targets.policies import DEVICES, LABELS

# ---- PadChest, small ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [padchest.TABLE, f"{padchest.TABLE}.gz"])
def test_padchest_layout(table: str, tmp_path: Path) -> None:
    root = padchest_folder(tmp_path / "padchest", table=table)
    target = load_target("padchest", tmp_path)
    assert target.image_id[:3].tolist() == ["0/f0.png", "1/f1.png", "0/f2.png"]
    assert target.view is not None
    assert target.view[:3].tolist() == ["PA", "L", "AP Supine"]
    assert [label_names(target, i) for i in range(4)] == [
        [],
        ["Hilar Enlargement", "Support Devices"],
        ["Consolidation", "Infiltration"],  # never Consolidation alone: the paper's terms
        ["Air Trapping"],
    ]
    assert target.notes[0].startswith("left out 1 rows of views other")
    assert "(x1.png); 1 rows without labels (x2.png); 1 rows with files known as broken (" in target.notes[0]
    other = load_target("padchest", tmp_path, split_seed=1)
    assert (other.split == "test").sum() == (target.split == "test").sum()
    assert not np.array_equal(other.split, target.split)
    paper = load_target("padchest-paper", tmp_path)
    assert (paper.split == "test").sum() == 2  # int(0.9 · 12) train
    assert "isn't the 160K table in its order" in paper.notes[2]
    assert load_target("padchest-cl", tmp_path).image_id.tolist() == ["1/f3.png", "1/f7.png", "1/f11.png"]
    assert load_target("padchest", tmp_path, ages=(40, 60)).image_id.tolist() == [
        f"{i % 2}/f{i}.png" for i in (3, 4, 5)
    ]
    assert load_target("padchest", tmp_path, first_of="study").n_images == 6
    lateral = load_target("padchest-paper", tmp_path, views=("L", "COSTAL"))
    where = dict(zip(paper.image_id, paper.split, strict=True))  # a filter keeps every image in its split
    assert dict(zip(lateral.image_id, lateral.split, strict=True)) == {i: where[i] for i in lateral.image_id}
    with pytest.raises(UsageError, match="split 'random' is not one of patient, image"):
        load_target("padchest", tmp_path, split="random")
    with pytest.raises(UsageError, match="ages 60 to 40; expected the youngest, then the oldest"):
        load_target("padchest", tmp_path, ages=(60, 40))
    with pytest.raises(UsageError, match="first of each 'week'; expected study or patient"):
        load_target("padchest", tmp_path, first_of="week")
    with pytest.raises(DataError, match=r"no image is left \(ages 0 to 1 \(0 images of unknown age\): left out 12"):
        load_target("padchest", tmp_path, ages=(0, 1))
    (root / "0/f2.png").rename(root / "f1.png")
    with pytest.raises(DataError, match=r"'f1\.png' lies in two folders, "):
        load_target("padchest", tmp_path)
    (root / "f1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 images are not below .*padchest: .*csv.*, row 4: 'f2\.png'"):
        load_target("padchest", tmp_path)
    (root / table).unlink()
    with pytest.raises(DataError, match=r"padchest': no PADCHEST_chest.*\.csv or PADCHEST.*\.csv\.gz in"):
        load_target("padchest", tmp_path)


# ---- NIH, small ---------------------------------------------------------------------------------------------------


def test_nih14_filters(tmp_path: Path) -> None:
    root = nih_folder(tmp_path / "nih14")
    target = load_target("nih14", tmp_path)
    assert target.view is not None
    assert target.study is not None
    assert (target.view.tolist(), target.study.tolist()) == (["PA", "AP", "PA"], ["1-0", "1-1", "3-0"])

    def files(**options: Any) -> list[str]:
        return [str(i)[7:-4] for i in load_target("nih14", tmp_path, **options).image_id]

    assert files(views=("AP",)) == ["00000001_001"]
    assert files(ages=(0, 58)) == ["00000001_000", "00000003_000"]  # 58 years; 11 months
    assert files(first_of="patient") == ["00000001_000", "00000003_000"]
    assert files(first_of="patient", views=("AP",)) == ["00000001_001"]  # the first that passes
    assert files(exactly_one=True) == ["00000001_001"]
    table = root / "Data_Entry_2017.csv"
    text = table.read_text()
    table.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"csv, row 5: 'images/00000001_000\.png' is listed twice, first in .*, row 2"):
        load_target("nih14", tmp_path)
    table.write_text("Image Index,Finding Labels,Patient ID\n00000001_000.png,Mass,1\n")
    assert load_target("nih14", tmp_path).view is None
    with pytest.raises(
        DataError, match=r"Data_Entry_2017\.csv: views were asked for, but this table has no such column"
    ):
        load_target("nih14", tmp_path, views=("PA",))


# ---- policies -----------------------------------------------------------------------------------------------------


def test_what_a_policy_did_is_counted(tmp_path: Path) -> None:
    chexpert_folder(tmp_path / "chexpert")
    target = load_target("chexpert", tmp_path)
    assert target.notes[1:3] == (
        "policy ignore: 3 uncertain entries became unknown, 33 blank ones unknown",
        "'No Finding' in 1 images made 12 entries negative (Support Devices as it was)",
    )
    assert known(target, 0)[DEVICES] == 1
    paper = load_target("chexpert-paper", tmp_path)
    assert known(paper, 0)[DEVICES] == 0
    assert "made 13 entries negative, among them 1 positive Support Devices (as the paper's loader" in paper.notes[2]
    assert "3 uncertain entries became positive" in load_target("chexpert", tmp_path, policy="ones").notes[1]
    zeros = load_target("chexpert", tmp_path, policy="blank-zeros").notes[1]
    assert zeros == "policy blank-zeros: 3 uncertain entries became unknown, 33 blank ones negative"
    shown = CliRunner().invoke(main, ["targets", "show", "chexpert", "--data-root", str(tmp_path)])
    assert "note: policy ignore: 3 uncertain entries became unknown" in shown.stdout
    assert target.study is not None
    assert target.study[:3].tolist() == ["patient00001/study1", "patient00002/study1", "patient00002/study2"]
    assert load_target("chexpert", tmp_path, first_of="patient").n_images == 3
    assert load_target("chexpert", tmp_path, ages=(41, 70)).n_images == 2


def test_soft_labels_for_uncertain_entries(tmp_path: Path) -> None:
    chexpert_folder(tmp_path / "chexpert")
    images = [f"train/patient0000{p}/study{s}/view1_frontal.jpg" for p, s in ((1, 1), (2, 1), (2, 2))]
    soft = write(tmp_path / "soft.csv", f"path,Edema,Effusion\n{images[1]},0.75,0.1\n{images[0]},0.5,0.5\n")
    target = load_target("chexpert", tmp_path, policy="self-trained", soft_labels=soft)
    assert known(target, 1) == {"Edema": 0.75, "Effusion": 1.0}  # what is known stays
    assert known(target, 2) == {"Effusion": 0.0}
    assert "3 uncertain entries became soft labels of soft.csv (2 have none and are unknown)" in target.notes[1]
    with pytest.raises(UsageError, match="self-trained and a table of soft labels go together; the table is missing"):
        load_target("chexpert", tmp_path, policy="self-trained")
    with pytest.raises(UsageError, match="go together; the policy is 'ones'"):
        load_target("chexpert", tmp_path, policy="ones", soft_labels=soft)
    for text, message in (
        (f"path,Edema\n{images[1]},1.5\n", r"soft\.csv, row 2: '1\.5' in column 'Edema'; expected 0 to 1, or nothing"),
        (f"path,Edema\n{images[1]},likely\n", r"row 2: 'likely' in column 'Edema'"),
        ("path,Edema\nother.jpg,0.5\n", r"no path of this table is an image of the target; expected such as train/"),
        (f"path,edema\n{images[1]},0.5\n", r"no column with soft labels; expected path and some of Atelectasis"),
    ):
        write(soft, text)
        with pytest.raises(DataError, match=message):
            load_target("chexpert", tmp_path, policy="self-trained", soft_labels=soft)


# ---- MIMIC-CXR ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mimic_cxr(end: str, tmp_path: Path) -> None:
    root = mimic_folder(tmp_path / "mimic-cxr", end)
    target = load_target("mimic-cxr", tmp_path)
    assert target.image_id[0] == "files/p10/p10000032/s50414267/aaaa-1.jpg"
    assert target.split.tolist() == ["train", "val", "test"]
    assert target.view is not None
    assert target.study is not None
    assert target.view.tolist() == ["AP", "PA", "AP"]
    assert target.study[0] == "10000032-50414267"
    assert [known(target, 0), known(target, 2)] == [{DEVICES: 1.0}, {"Atelectasis": 1.0}]
    assert known(target, 1) == dict.fromkeys(LABELS, 0.0) | {DEVICES: 1.0}
    assert target.notes[0] == (
        "labels by chexpert; left out 1 images without a split (dddd-1) and 1 images without labels (eeee-1)"
    )
    assert known(load_target("mimic-cxr", tmp_path, labeler="negbio"), 0) == {DEVICES: 1.0, "Edema": 1.0}
    assert known(load_target("mimic-cxr", tmp_path, policy="ones"), 0) == {DEVICES: 1.0, "Edema": 1.0}
    assert known(load_target("mimic-cxr-paper", tmp_path), 1)[DEVICES] == 0
    assert load_target("mimic-cxr", tmp_path, views=("AP", "LATERAL")).n_images == 3
    assert load_target("mimic-cxr", tmp_path, views=("AP", "LATERAL"), first_of="study").n_images == 2
    with pytest.raises(UsageError, match="labeler 'bert' is not one of chexpert, negbio"):
        load_target("mimic-cxr", tmp_path, labeler="bert")
    (root / "files/p12/p12000012/s52222222/cccc-1.jpg").unlink()
    with pytest.raises(DataError, match=rf"1 of 3 listed images are not below .*metadata\.csv{end}, row 5: 'files/p12"):
        load_target("mimic-cxr", tmp_path)
    assert load_target("mimic-cxr", tmp_path, labels_only=True).root is None
    (root / f"mimic-cxr-2.0.0-split.csv{end}").unlink()
    with pytest.raises(
        DataError, match=r"no mimic-cxr-2\.0\.0-split\.csv\.gz or mimic-cxr-2\.0\.0-split\.csv or .* in "
    ):
        load_target("mimic-cxr", tmp_path)


def test_mimic_cxr_tables_that_do_not_fit(tmp_path: Path) -> None:
    root = mimic_folder(tmp_path / "mimic-cxr", "")
    labels, split = root / "mimic-cxr-2.0.0-chexpert.csv", root / "mimic-cxr-2.0.0-split.csv"
    text, words = labels.read_text(), split.read_text()
    labels.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(
        DataError, match=r"chexpert\.csv, row 6: the same subject_id, study_id as in row 2; expected one"
    ):
        load_target("mimic-cxr", tmp_path)
    labels.write_text(text)
    split.write_text(words.replace("validate", "dev"))
    with pytest.raises(DataError, match=r"split\.csv, row 4: split 'dev' is not one of train, validate, test"):
        load_target("mimic-cxr", tmp_path)
    split.write_text(words.replace("-", "_"))
    with pytest.raises(
        DataError, match=r"none of its images is both in .*split\.csv and in mimic-cxr-2\.0\.0-chexpert"
    ):
        load_target("mimic-cxr", tmp_path)


# ---- COVIDx -------------------------------------------------------------------------------------------------------


def test_covidx_lines_in_every_form(tmp_path: Path) -> None:
    root = covidx_folder(tmp_path / "covidx-cxr2")
    target = load_target("covidx-cxr2", tmp_path)
    assert target.patient is not None
    assert target.source is not None
    rows = zip(target.image_id, target.patient, target.labels, target.source, strict=True)
    assert [(str(i), str(p), int(k), str(s)) for i, p, k, s in rows] == [
        ("train/COVID(1).png", "COVID 1", 1, "sirm"),
        ("train/COVID (2).png", "COVID 2", 1, "sirm"),
        ("train/ards-1.jpg", "25", 0, "cohen"),
        ("train/two words.png", "26", 0, "unknown"),
        ("train/alone.png", "unknown:train/alone.png", 1, "unknown"),
        ("train/no patient.png", "unknown:train/no patient.png", 0, "rsna"),
        ("test/a.png", "31", 0, "rsna"),
        ("test/b.png", "32", 1, "ricord"),
    ]
    assert describe_target(target)["splits"] == {"train": 6, "test": 2}
    assert describe_target(target)["sources"] == {"cohen": 1, "ricord": 1, "rsna": 2, "sirm": 2, "unknown": 2}
    assert target.notes == ("2 images without a patient: each counts as a patient of its own",)
    assert load_target("covidx-cxr2", tmp_path, labels_only=True).image_id[:2].tolist() == [
        "train/COVID(1).png",
        "train/(2).png",
    ]
    write(root / "test.txt", "a.png negative\nb.png positive\n")
    write(root / "train.txt", "alone.png positive\nards-1.jpg negative\n")
    plain = load_target("covidx-cxr2", tmp_path)
    assert plain.patient is None
    assert plain.source is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("27 c.png maybe rsna", r"train\.txt, row 8: no label; expected '\[patient \]file label\[ source\]'"),
        ("c.png", r"train\.txt, row 8: no label"),
        ("27 ards-1.jpg positive x", r"row 8: 'train/ards-1\.jpg' is listed twice, first in .*train\.txt, row 3"),
        ("27 gone.png negative rsna", r"1 of 9 listed images are not below .*train\.txt, row 8: 'train/gone\.png'"),
        (
            "27 ../test/a.png negative rsna",
            r"train\.txt, row 8: 'train/\.\./test/a\.png' leaves the data root",
        ),
        ("27 ../../a.png negative rsna", r"row 8: 'train/\.\./\.\./a\.png' leaves the data root"),
    ],
)
def test_covidx_bad_lines(line: str, message: str, tmp_path: Path) -> None:
    root = covidx_folder(tmp_path / "covidx-cxr2")
    write(root / "train.txt", (root / "train.txt").read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        load_target("covidx-cxr2", tmp_path)


def test_covidx_missing_list(tmp_path: Path) -> None:
    root = covidx_folder(tmp_path / "covidx-cxr2")
    (root / "test.txt").unlink()
    with pytest.raises(DataError, match=r"no test\.txt in .*covidx-cxr2; expected the lists train\.txt and test\.txt"):
        load_target("covidx-cxr2", tmp_path)
