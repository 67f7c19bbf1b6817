"""Built-in targets: the counts of the paper, exact to the image, and each reader on a miniature of its layout."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner
from PIL import Image

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.images import EXTENSIONS, load_image
from fastxfer.targets import (
    Target,
    add_target,
    chexpert,
    csvfile,
    describe_target,
    labeltables,
    list_targets,
    load_target,
    padchest,
)
from fastxfer.targets.families import FAMILIES
from fastxfer.targets.policies import DEVICES, LABELS

# A folder without data: labels alone come from the wheel of torchxrayvision.
NOWHERE = Path("/nonexistent/fastxfer-data")


def show(*words: str) -> dict[str, Any]:
    """What `targets show … --labels-only --json` prints, without any data folder."""
    line = ["targets", "show", *words, "--labels-only", "--json", "--data-root", str(NOWHERE)]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module", autouse=True)
def _read_large_tables_once() -> Iterator[None]:
    """The tables of the wheel take seconds each; readers see the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(csvfile.read_csv)
        for module in (chexpert, padchest):
            patch.setattr(module, "read_csv", lambda path, columns: once(path, columns=columns))
        yield


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def label_names(target: Target, row: int) -> list[str]:
    return [name for name, value in zip(target.class_names, target.labels[row], strict=True) if value > 0.5]


# ---- the paper's counts, from the label tables inside torchxrayvision ---------------------------------------------

# train and test images with exactly one label, paper.md 2.4
PADCHEST_CL = {
    "Air Trapping": (2376, 279),
    "Aortic Atheromatosis": (304, 36),
    "Aortic Elongation": (2867, 355),
    "Atelectasis": (2359, 273),
    "Bronchiectasis": (693, 89),
    "Cardiomegaly": (3481, 374),
    "Consolidation": (0, 0),
    "Costophrenic Angle Blunting": (1416, 161),
    "Edema": (156, 19),
    "Effusion": (2028, 231),
    "Emphysema": (495, 63),
    "Fibrosis": (207, 20),
    "Flattened Diaphragm": (130, 17),
    "Fracture": (1557, 180),
    "Granuloma": (1289, 132),
    "Hemidiaphragm Elevation": (796, 98),
    "Hernia": (741, 76),
    "Hilar Enlargement": (1943, 228),
    "Infiltration": (4182, 454),
    "Mass": (457, 51),
    "Nodule": (2329, 253),
    "Pleural_Thickening": (1289, 131),
    "Pneumonia": (1215, 120),
    "Pneumothorax": (240, 18),
    "Scoliosis": (3801, 386),
    "Support Devices": (836, 82),
    "Tuberculosis": (200, 27),
}


def test_padchest_cl_is_the_papers_to_the_image() -> None:
    shown = show("padchest-cl")
    assert shown["splits"] == {"train": 37387, "test": 4153}
    counts = {c: tuple(shown["labels"][s][c]["positive"] for s in ("train", "test")) for c in shown["classes"]}
    assert counts == PADCHEST_CL
    assert shown["labels"]["test"]["Air Trapping"] == {"positive": 279, "negative": 4153 - 279, "unknown": 0}
    assert shown["root"] is None
    assert not any("isn't the 160K table" in note for note in shown["notes"])


def test_padchest_paper_and_who_is_on_both_sides() -> None:
    paper = load_target("padchest-paper", NOWHERE, labels_only=True)
    assert describe_target(paper)["splits"] == {"train": 144638, "test": 16071}
    test = paper.split == "test"
    assert paper.patient is not None
    assert np.isin(paper.patient[test], paper.patient[~test]).mean() == pytest.approx(0.803, abs=5e-4)


def test_padchest_splits_by_patient() -> None:
    target = load_target("padchest", NOWHERE, labels_only=True)
    assert target.n_images == 160_709
    assert target.patient is not None
    test = target.split == "test"
    assert 0.095 < test.mean() < 0.105
    assert not np.isin(target.patient[test], target.patient[~test]).any()


def test_chexpert_counts() -> None:
    shown = show("chexpert")
    assert shown["splits"] == {"train": 191_010}
    assert shown["views"] == {"AP": 161_590, "PA": 29_420}
    # The five views of the paper's four-set source, where lateral films come in.
    five = load_target("chexpert-paper", NOWHERE, labels_only=True, views=padchest.VIEWS)
    assert describe_target(five)["splits"] == {"train": 223_397}
    assert five.view is not None
    frontal = five.labels[np.isin(five.view, ["AP", "PA"])]
    assert np.isfinite(frontal).mean() == pytest.approx(0.307, abs=5e-4)
    # What "No Finding" costs in the paper's loader: 7,420 of 107,167 films with a device.
    kept = shown["labels"]["train"][DEVICES]["positive"]
    assert (kept, kept - int(np.nansum(frontal[:, LABELS.index(DEVICES)]))) == (107_167, 7_420)


def test_nih14_counts() -> None:
    target = load_target("nih14", NOWHERE, labels_only=True)
    shown = describe_target(target)
    assert shown["splits"] == {"train": 86_524, "test": 25_596}
    assert shown["views"] == {"AP": 44_810, "PA": 67_310}
    assert shown["patients"] == 30_805
    assert (target.exactly_one() >= 0).sum() == 30_963


def test_labels_only_imports_no_torch_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from fastxfer.targets import load_target;"
        f"print(load_target('nih14', {str(NOWHERE)!r}, labels_only=True).n_images,"
        " {'torch', 'torchxrayvision'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "112120 set()\n"
    monkeypatch.setattr(labeltables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"nih14': no label table in its folder, .*pip install 'fastxfer\[xray\]'"):
        load_target("nih14", NOWHERE, labels_only=True)
    with pytest.raises(DataError, match=r"no folder .*/padchest; expected there: PADCHEST_chest.*BIMCV"):
        load_target("padchest-cl", NOWHERE)


# ---- PadChest, small ----------------------------------------------------------------------------------------------


def padchest_folder(root: Path, *, table: str = padchest.TABLE) -> Path:
    """Twelve rows of ten patients in the columns of the 160K table, images in two folders."""
    header = "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,Projection,Labels"
    labels = ["['normal']", "['hilar enlargement', 'Pacemaker']", "['consolidation']", "['air trapping']"]
    views = ["PA", "L", "AP_horizontal", "AP", "COSTAL"]
    rows = [
        f'f{i}.png,{i % 2},2014{1 + i % 9:02}01,s{i // 2},p{min(i, 9)},{1935 + 7 * i}.0,{views[i % 5]},"{labels[i % 4]}"'
        for i in range(12)
    ]
    rows += ["x1.png,0,20140101,s9,p9,,EXCLUDE,['normal']", "x2.png,0,20140101,s9,p9,1950.0,PA,"]
    broken = padchest._data("padchest_dropped_files.csv").split()[1]
    rows += [f"{broken},0,20140101,s9,p9,1950.0,PA,['normal']"]
    write(root / table, "\n".join([header, *rows]) + "\n")
    touch(root, *(f"{i % 2}/f{i}.png" for i in range(12)))
    return root


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
    assert target.notes[0].endswith("1 without labels, 1 with files known as broken")
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


def nih_folder(root: Path) -> Path:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position\n"
    rows = ["00000001_000.png,Effusion|Mass,0,1,58,PA", "00000001_001.png,Mass,1,1,059Y,AP"]
    rows += ["00000003_000.png,No Finding,0,3,011M,PA"]
    write(root / "Data_Entry_2017.csv", header + "\n".join(rows) + "\n")
    touch(root, *(f"images/{row.split(',')[0]}" for row in rows))
    return root


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
    with pytest.raises(DataError, match="'nih14': views were asked for, but its table has no such column"):
        load_target("nih14", tmp_path, views=("PA",))


# ---- policies -----------------------------------------------------------------------------------------------------


def chexpert_folder(root: Path) -> Path:
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    header += "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
    header += "Fracture,Support Devices"
    path = "CheXpert-v1.0/{}/patient0000{}/study{}/view1_frontal.jpg"
    rows = [
        path.format("train", 1, 1) + ",Female,68,Frontal,AP,1.0,,,,,,,,,,,,,1.0",
        path.format("train", 2, 1) + ",Female,40,Frontal,PA,,,,,,-1.0,,,,,1.0,,-1.0,",
        path.format("train", 2, 2) + ",Female,41,Frontal,PA,,,,,,-1.0,,,,,0.0,,,",
    ]
    write(root / "train.csv", "\n".join([header, *rows]) + "\n")
    write(root / "valid.csv", f"{header}\n{path.format('valid', 9, 1)},Male,,Frontal,AP,0.0" + ",0.0" * 13 + "\n")
    touch(
        root,
        *(row.split(",")[0].replace("CheXpert-v1.0/", "") for row in rows),
        "valid/patient00009/study1/view1_frontal.jpg",
    )
    return root


def known(target: Target, row: int) -> dict[str, float]:
    values = zip(target.class_names, target.labels[row].tolist(), strict=True)
    return {name: value for name, value in values if not np.isnan(value)}


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


def mimic_folder(root: Path, end: str = ".gz") -> Path:
    """Six images of three subjects; one has no split, one no labels."""
    images = [("10000032", "50414267", "aaaa-1", "AP"), ("10000032", "50414267", "aaaa-2", "LATERAL")]
    images += [("11000011", "51111111", "bbbb-1", "PA"), ("12000012", "52222222", "cccc-1", "AP")]
    images += [("12000012", "53333333", "dddd-1", "AP")]
    images += [("11000011", "54444444", "eeee-1", "AP")]
    parts = ["train", "train", "validate", "test", "", "train"]
    meta = "".join(f"{d},{p},{s},x,{v}\n" for p, s, d, v in images)
    split = "".join(f"{d},{s},{p},{part}\n" for (p, s, d, _), part in zip(images, parts, strict=True) if part)
    header = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    header += (
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices\n"
    )
    edema = "10000032,50414267,,,,{},,,,,,,,,,1.0\n"
    others = (
        "11000011,51111111,,,,,,,,,1.0,,,,,1.0\n12000012,53333333,,,,,,,,,,,,,,\n12000012,52222222,1.0,,,,,,,,,,,,,\n"
    )
    stem = "mimic-cxr-2.0.0-"
    write(root / f"{stem}metadata.csv{end}", "dicom_id,subject_id,study_id,Rows,ViewPosition\n" + meta)
    write(root / f"{stem}split.csv{end}", "dicom_id,study_id,subject_id,split\n" + split)
    write(root / f"{stem}chexpert.csv{end}", header + edema.format("-1.0") + others)
    write(root / f"{stem}negbio.csv{end}", header + edema.format("1.0") + others)
    touch(root, *(f"files/p{p[:2]}/p{p}/s{s}/{d}.jpg" for p, s, d, _ in images))
    return root


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
    assert target.notes[0] == "labels by chexpert; left out 1 images without a split and 1 without labels"
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


def covidx_folder(root: Path) -> Path:
    """Lines of every form; blanks in the patient (SIRM's), in the file, in both."""
    write(
        root / "train.txt",
        "COVID 1 COVID(1).png positive sirm\n"  # patient "COVID 1"
        "COVID 2 COVID (2).png positive sirm\n"  # patient "COVID 2", file "COVID (2).png"
        "25 ards-1.jpg negative cohen\n"
        "26 two words.png negative\n"
        "\n"
        "alone.png positive\n"
        "no patient.png\tnegative\trsna\n",
    )
    write(root / "test.txt", "\ufeff31 a.png negative rsna\r\n32 b.png positive ricord\r\n")
    files = ("COVID(1).png", "COVID (2).png", "ards-1.jpg", "two words.png", "alone.png", "no patient.png")
    touch(root, *(f"train/{file}" for file in files), "test/a.png", "test/b.png")
    return root


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
            r"test\.txt, row 1: 'test/a\.png' is listed twice, first in .*train\.txt, row 8",
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


# ---- tuberculosis -------------------------------------------------------------------------------------------------

# Numbers of the Montgomery set's images, as published with it.
MONTGOMERY_NORMAL = (
    "1 2 3 4 5 6 8 11 13 15 16 17 19 20 21 22 23 24 26 27 28 29 30 31 35 38 40 41 42 43 44 45 46 47 48 49 51 52 53 54 "
    "55 56 57 58 59 60 61 62 63 64 68 69 70 71 72 74 75 77 79 80 81 82 83 84 85 86 87 89 90 91 92 94 95 96 97 99 100 "
    "101 102 103"
)
MONTGOMERY_TB = (
    "104 108 113 117 126 140 141 142 144 150 162 166 170 173 182 188 194 195 196 203 213 218 223 228 243 251 253 254 "
    "255 258 264 266 275 282 289 294 301 309 311 313 316 331 334 338 348 350 352 354 362 367 369 372 375 383 387 390 "
    "393 399"
)


@pytest.fixture(scope="module")
def tuberculosis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 662 + 138 files by their real names, empty; Montgomery's masks bear the names of its images."""
    root = tmp_path_factory.mktemp("tb")
    china = [f"CHNCXR_{i:04}_{int(i > 326)}.png" for i in range(1, 663)]
    usa = [f"MCUCXR_{int(i):04}_0.png" for i in MONTGOMERY_NORMAL.split()]
    usa += [f"MCUCXR_{int(i):04}_1.png" for i in MONTGOMERY_TB.split()]
    touch(root / "tuberculosis", *(f"ChinaSet_AllFiles/CXR_png/{file}" for file in china))
    touch(
        root / "tuberculosis/MontgomerySet",
        *(f"{f}/{file}" for file in usa for f in ("CXR_png", "ManualMask/leftMask")),
    )
    return root


def test_tuberculosis_paper_is_the_papers_to_the_image(tuberculosis: Path) -> None:
    target = load_target("tuberculosis-paper", tuberculosis)
    shown = describe_target(target)
    assert shown["splits"] == {"train": 679, "test": 121}
    counts = {name: count["positive"] for name, count in shown["labels"]["test"].items()}
    assert counts == {"normal": 58, "tuberculosis": 63}
    assert shown["sources"] == {"montgomery": 138, "shenzhen": 662}
    assert not any("where the data set has" in note for note in target.notes)


def test_tuberculosis_stratified(tuberculosis: Path) -> None:
    target = load_target("tuberculosis", tuberculosis)
    assert target.source is not None
    for source, label, total in (
        ("shenzhen", 0, 326),
        ("shenzhen", 1, 336),
        ("montgomery", 0, 80),
        ("montgomery", 1, 58),
    ):
        rows = (target.source == source) & (target.labels == label)
        assert rows.sum() == total
        assert abs((target.split[rows] == "test").sum() - 0.15 * total) < 1
    again = load_target("tuberculosis", tuberculosis, split_seed=1)
    assert not np.array_equal(again.split, target.split)


def test_tuberculosis_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no folder .*/tuberculosis; expected there: .*MontgomerySet/CXR_png.*nlm\.nih"
    ):
        load_target("tuberculosis-paper", tmp_path)
    touch(tmp_path / "tuberculosis", "a/CHNCXR_0001_0.png")
    with pytest.raises(DataError, match=r"no MCUCXR_\*\.png below .*tuberculosis; expected the 138 of montgomery"):
        load_target("tuberculosis", tmp_path)
    touch(tmp_path / "tuberculosis", "b/MCUCXR_0001_0.png")
    assert load_target("tuberculosis", tmp_path).notes[0] == "1 images of shenzhen where the data set has 662"
    with pytest.raises(UsageError, match="split 'random' is not one of stratified, paper"):
        load_target("tuberculosis", tmp_path, split="random")
    touch(tmp_path / "tuberculosis", "b/CHNCXR_0001_0.png")
    with pytest.raises(DataError, match=r"'CHNCXR_0001_0\.png' lies in two folders, a/CHNCXR_0001_0\.png and b/"):
        load_target("tuberculosis", tmp_path)
    (tmp_path / "tuberculosis/b/CHNCXR_0001_0.png").rename(tmp_path / "tuberculosis/b/CHNCXR_0002_7.png")
    with pytest.raises(DataError, match=r"CHNCXR_0002_7\.png: no label; expected a name like CHNCXR_0001_0\.png"):
        load_target("tuberculosis", tmp_path)


# ---- natural images -----------------------------------------------------------------------------------------------


def cifar_pickles(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's layout with twelve images, known to torchvision as the release."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird"]

    def pickled(file: str, content: dict[str, Any]) -> list[str]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(pickle.dumps(content))
        return [Path(file).name, hashlib.md5((root / file).read_bytes()).hexdigest()]

    def batch(file: str, labels: list[int]) -> list[str]:
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        return pickled(f"cifar-10-batches-py/{file}", {"data": data, "labels": labels})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", [0, 1, 2]), batch("data_batch_2", [2, 1, 0])])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", [0, 0, 1, 1, 2, 2])])
    meta = pickled("cifar-10-batches-py/batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "md5": meta[1], "key": "label_names"})
    return root


def test_cifar_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["targets", "export", "cifar10", "--data-root", str(tmp_path)]
    assert "no folder" in CliRunner().invoke(main, words).output
    root = cifar_pickles(tmp_path / "cifar10", monkeypatch)
    with pytest.raises(
        DataError, match=r"no folder .*cifar10/train with class folders; write it once from cifar-10-bat"
    ):
        load_target("cifar10", tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.output == f"cifar10: 12 images written to {root}\n"
    target = load_target("cifar10", tmp_path)
    assert target.class_names == ("airplane", "automobile", "bird")
    assert describe_target(target)["splits"] == {"train": 6, "test": 6}
    assert target.notes[1:] == (
        "3 classes where cifar10 has 10",
        "6 train images where cifar10 has 50,000",
        "6 test images where cifar10 has 10,000",
    )
    data = pickle.loads((root / "cifar-10-batches-py/data_batch_2").read_bytes())["data"]  # noqa: S301 (written above)
    with Image.open(root / "train/bird/00003.png") as image:
        assert np.array_equal(np.asarray(image), data[0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert sorted(p.name for p in root.iterdir()) == ["cifar-10-batches-py", "test", "train"]
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2
    assert "train exists; move it away to export again" in again.output


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_foreign_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cifar_pickles(tmp_path / "cifar10", monkeypatch)
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    result = CliRunner().invoke(main, ["targets", "export", "cifar10", "--data-root", str(tmp_path)])
    assert result.exit_code == 1
    assert "not the release's files by their MD5, so they are not opened" in result.output
    assert [p.name for p in root.iterdir()] == ["cifar-10-batches-py"]
    assert not (tmp_path / "went off").exists()


def flowers_tables(root: Path, train: int, val: int, test: int) -> Path:
    """Tables of so many images, the numbers dealt out as the release does: in no order."""
    root.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(train + val + test) + 1
    labels = 1 + np.arange(len(order)) % 102
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels.astype(np.uint8)})
    ids = {"trnid": order[:train], "valid": order[train : train + val], "tstid": order[train + val :]}
    scipy.io.savemat(root / "setid.mat", {name: numbers.astype(np.uint16) for name, numbers in ids.items()})
    return root


def test_flowers_and_the_papers_swapped_split(tmp_path: Path) -> None:
    flowers_tables(tmp_path / "flowers102", 1020, 1020, 6149)
    official = load_target("flowers102", tmp_path, labels_only=True)
    assert describe_target(official)["splits"] == {"train": 1020, "val": 1020, "test": 6149}
    paper = load_target("flowers102-paper", tmp_path, labels_only=True)
    assert describe_target(paper)["splits"] == {"train": 6149, "test": 2040}
    assert len(paper.class_names) == 102
    number = int(str(official.image_id[7])[-9:-4])
    assert official.labels[7] == (number - 1) % 102
    where = dict(zip(official.image_id, official.split, strict=True))
    assert {(where[i], s) for i, s in zip(paper.image_id, paper.split, strict=True)} == {
        ("train", "test"),
        ("val", "test"),
        ("test", "train"),
    }


def test_flowers_layout_and_bad_files(tmp_path: Path) -> None:
    root = flowers_tables(tmp_path / "flowers102/flowers-102", 102, 102, 204)
    touch(root, *(f"jpg/image_{i:05}.jpg" for i in range(1, 409)))
    assert load_target("flowers102", tmp_path).root == root
    with pytest.raises(UsageError, match="split 'swapped' is not one of official, paper"):
        load_target("flowers102", tmp_path, split="swapped")
    (root / "jpg/image_00009.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 408 listed images .*setid\.mat, \w+\[\d+\]: 'jpg/image_00009\.jpg'"):
        load_target("flowers102", tmp_path)
    for content, message in (
        ({"labels": [1, 103]}, "array 'labels' holds other than whole numbers from 1 to 102"),
        ({"labels": [1, 1.5]}, "array 'labels' holds other than whole numbers"),
        ({"names": [1]}, "no array 'labels' of numbers can be read from it"),
        ({"labels": np.array(["rose", "lily"], dtype=object)}, "no array 'labels' of numbers can be read from it"),
    ):
        scipy.io.savemat(root / "imagelabels.mat", content)
        with pytest.raises(DataError, match=rf"imagelabels\.mat: {message}"):
            load_target("flowers102", tmp_path)
    (root / "imagelabels.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(60))
    with pytest.raises(DataError, match=r"imagelabels\.mat: no array 'labels' of numbers can be read"):
        load_target("flowers102", tmp_path)
    (root / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"imagelabels\.mat: there is no such file; it comes with the data set, beside"):
        load_target("flowers102", tmp_path)


def pets_folder(root: Path) -> Path:
    train = ["Abyssinian_1 1 1 1", "american_bulldog_10 2 2 1", "Bengal_7 6 1 2"]
    test = ["american_bulldog_11 2 2 1", "Abyssinian_2 1 1 1", "Bengal_8 6 1 2"]
    write(root / "annotations/trainval.txt", "\n".join(train) + "\n")
    write(root / "annotations/test.txt", "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(test) + "\n")
    touch(root, *(f"images/{line.split()[0]}.jpg" for line in train + test))
    return root


def test_pets(tmp_path: Path) -> None:
    root = pets_folder(tmp_path / "pets/oxford-iiit-pet")
    target = load_target("pets", tmp_path)
    assert target.root == root
    assert target.class_names == ("Abyssinian", "american_bulldog", "Bengal")
    assert target.labels.tolist() == [0, 1, 2, 1, 0, 2]
    assert target.split.tolist() == ["train"] * 3 + ["test"] * 3
    assert target.notes == ("3 breeds where the data set has 37",)
    species = load_target("pets", tmp_path, species=True)
    assert species.class_names == ("cat", "dog")
    assert species.labels.tolist() == [0, 1, 0, 1, 0, 0]
    shown = CliRunner().invoke(main, ["targets", "show", "pets", "--species", "--data-root", str(tmp_path)])
    assert "pets: 6 images (3 train, 3 test)" in shown.stdout
    lines = root / "annotations/test.txt"
    text = lines.read_text()
    for old, new, message in (
        ("2 2 1", "2 3 1", r"test\.txt, row 2: 'american_bulldog_11 2 3 1'; expected such as 'Abyssinian_100 1 1 1'"),
        ("Bengal_8 6", "Birman_8 6", r"test\.txt, row 4: breed 6 is 'Birman' here, 'Bengal' before"),
        ("Bengal_8 6", "Bengal_9 6", r"1 of 6 listed images are not below .*test\.txt, row 4: 'images/Bengal_9\.jpg'"),
    ):
        lines.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=message):
            load_target("pets", tmp_path)
    lines.unlink()
    with pytest.raises(DataError, match=r"no .*annotations/test\.txt; expected the lists trainval\.txt and test\.txt"):
        load_target("pets", tmp_path)


def test_a_name_that_was_added_before_it_was_built_in_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "mine", *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    with monkeypatch.context() as before:
        before.delitem(FAMILIES, "pets")
        added = add_target(tmp_path / "mine", "pets", tmp_path / "data")
    assert load_target("pets", tmp_path / "data").fingerprint == added.fingerprint
    assert [t["kind"] for t in list_targets(tmp_path / "data") if t["name"] == "pets"] == ["folder"]


def test_imagenet21k(tmp_path: Path) -> None:
    root = tmp_path / "imagenet21k"
    touch(root, *(f"{c}/{c}_{i}.JPEG" for c in ("n00004475", "n00005787") for i in range(10)))
    target = load_target("imagenet21k", tmp_path)
    assert describe_target(target)["splits"] == {"train": 18, "test": 2}  # at least one of each class
    assert target.notes[0] == "2 classes where imagenet21k has 21,841: a part of it, or another release"
    (root / "n00004475").rename(root / "n1")
    touch(root, "train/n00004475/a.JPEG", "train/n00005787/b.JPEG")
    with pytest.raises(DataError, match=r"no folder .*imagenet21k/val; expected class folders n01440764"):
        load_target("imagenet21k", tmp_path)


# ---- merges -------------------------------------------------------------------------------------------------------


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    chexpert_folder(tmp_path / "chexpert")
    mimic_folder(tmp_path / "mimic-cxr")
    padchest_folder(tmp_path / "padchest")
    nih_folder(tmp_path / "nih14")
    return tmp_path


def test_the_papers_merges_have_13_7_and_7_labels(chest: Path) -> None:
    two = load_target("chexpert+mimic-cxr", chest)
    assert two.class_names == LABELS
    three = load_target("chexpert+mimic-cxr+nih14", chest)
    four = load_target("chexpert+mimic-cxr+nih14+padchest", chest)
    seven = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Pneumonia", "Pneumothorax")
    assert three.class_names == four.class_names == seven
    assert four.root == chest
    assert all((chest / str(i)).is_file() for i in four.image_id)
    assert describe_target(four)["sources"] == {"chexpert": 4, "mimic-cxr": 3, "nih14": 3, "padchest": 12}
    assert describe_target(four)["splits"]["val"] == 1  # MIMIC's
    assert four.notes[0] == "intersection of labels: 7 of 31; 1 images have none known"
    assert label_names(four, 7) == ["Effusion"]  # NIH's Mass is no label of all
    assert four.patient is not None
    assert four.patient[7] == "nih14:1"
    laterals = load_target("chexpert+padchest", chest, views=("PA", "L", "COSTAL"))  # for all members
    assert laterals.view is not None
    assert set(laterals.view) == {"PA", "L", "COSTAL"}


def test_union_of_labels_leaves_the_others_unknown(chest: Path) -> None:
    union = load_target("chexpert+nih14", chest, labels="union", policy="blank-zeros")
    assert union.name == "union=chexpert+nih14"
    assert load_target("union=chexpert+nih14", chest, policy="blank-zeros").fingerprint == union.fingerprint
    assert len(union.class_names) == 13 + 14 - 7
    nih = {n: v for n, v in zip(union.class_names, union.labels[4], strict=True) if not np.isnan(v)}
    assert len(nih) == 14
    assert (nih["Mass"], nih["Effusion"], nih["Hernia"]) == (1, 1, 0)
    assert load_target("chexpert+nih14", chest, exactly_one=True).labels.tolist() == [4, 4]  # Effusion, twice
    words = ["targets", "show", "chexpert+nih14", "--labels", "union", "--json", "--data-root", str(chest)]
    assert json.loads(CliRunner().invoke(main, words).stdout)["n_classes"] == 20
    only = load_target("chexpert+nih14", chest, labels_only=True)
    assert only.root is None
    assert only.image_id[4] == "nih14/images/00000001_000.png"


def test_own_tables_are_merged_by_synonyms(chest: Path) -> None:
    rows = "path,label,split\na.png,pleural effusion|Dust,train\nb.png,edema,test\n"
    write(chest / "own/labels.csv", rows)
    touch(chest / "own", "a.png", "b.png")
    add_target(chest / "own", "own", chest)
    merged = load_target("own+nih14", chest)
    assert merged.class_names == ("Edema", "Effusion")
    assert merged.labels[:2].tolist() == [[0, 1], [1, 0]]
    assert merged.image_id[0] == "own/a.png"
    write(chest / "own/labels.csv", rows.replace("Dust", "Effusion"))
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(DataError, match="labels 'Effusion' and 'pleural effusion' are both 'Effusion'"):
        load_target("own+nih14", chest)
    write(chest / "own/labels.csv", rows.replace("pleural effusion", "Rust").replace("edema", "Rust"))
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(UsageError, match="no label is in all of own, nih14; labels 'union' keeps them all"):
        load_target("own+nih14", chest)
    write(chest / "own/labels.csv", "path,label,split\na.png,x,train\nb.png,y,test\n")
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(UsageError, match="'own' has one label an image; only multi-label targets can be merged"):
        load_target("own+nih14", chest)
    for name, options, message in (
        ("nih14+nih14", {}, "expected at least two targets, each once, not nih14 nih14"),
        ("nih14+chexpert", {"labels": "both"}, "labels 'both' is not one of intersection, union"),
        ("nih14+chexpert", {"labeler": "negbio"}, "none of its members has an option 'labeler'"),
        ("nih14+chexprt", {}, "unknown target 'chexprt'"),
        ("nih14+", {}, "'' cannot name a target"),
    ):
        with pytest.raises(UsageError, match=message):
            load_target(name, chest, **options)


# ---- every reader, on its layout made of real images --------------------------------------------------------------


def imagenet_folder(root: Path) -> Path:
    touch(root, *(f"{split}/{c}/{c}_1.JPEG" for split in ("train", "val") for c in ("n01440764", "n01443537")))
    return root


def cifar_folder(root: Path) -> Path:
    touch(root, *(f"{split}/{c}/00000.png" for split in ("train", "test") for c in ("airplane", "bird")))
    return root


def flowers_folder(root: Path) -> Path:
    flowers_tables(root, 102, 102, 102)
    touch(root, *(f"jpg/image_{i:05}.jpg" for i in range(1, 307)))
    return root


def tuberculosis_folder(root: Path) -> Path:
    touch(root / "ChinaSet_AllFiles/CXR_png", "CHNCXR_0001_0.png", "CHNCXR_0327_1.png")
    touch(root / "MontgomerySet/CXR_png", "MCUCXR_0001_0.png", "MCUCXR_0104_1.png")
    return root


XRAYS = "kermany_pneumonia/train/NORMAL"
PHOTOS = "cifar10_subset/train/cat"
LAYOUTS = {
    "chexpert": (chexpert_folder, XRAYS),
    "mimic-cxr": (mimic_folder, XRAYS),
    "nih14": (nih_folder, XRAYS),
    "padchest": (padchest_folder, XRAYS),
    "covidx-cxr2": (covidx_folder, XRAYS),
    "tuberculosis": (tuberculosis_folder, XRAYS),
    "cifar10": (cifar_folder, PHOTOS),
    "flowers102": (flowers_folder, PHOTOS),
    "pets": (pets_folder, PHOTOS),
    "imagenet1k": (imagenet_folder, PHOTOS),
    "imagenet21k": (imagenet_folder, PHOTOS),
}


@pytest.mark.real
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_reader_on_real_images(name: str, real: Path, tmp_path: Path) -> None:
    build, folder = LAYOUTS[name]
    build(tmp_path / name)
    images = itertools.cycle(path.read_bytes() for path in sorted((real / folder).iterdir())[:40])
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.suffix in EXTENSIONS | {".JPEG"}:
            path.write_bytes(next(images))
    variants = [n for n, family in FAMILIES.items() if name in (n, family.shares)]
    for variant in variants:
        target = load_target(variant, tmp_path)
        assert target.root is not None
        sizes = {load_image(target.root / str(image_id)).size for image_id in target.image_id[:50]}
        assert sizes == {(224, 224) if folder == XRAYS else (32, 32)}


def test_every_built_in_target_has_a_row_in_the_docs_and_says_what_it_expects(tmp_path: Path) -> None:
    table = (Path(__file__).parents[1] / "docs/targets.md").read_text(encoding="utf-8")
    for name, family in FAMILIES.items():
        assert f"`{name}`" in table
        with pytest.raises(DataError) as error:
            load_target(name, tmp_path)
        assert f"'{name}': there is no folder {family.folder(tmp_path)}; expected there: " in str(error.value)
        assert family.source in str(error.value)
