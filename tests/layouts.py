"""Miniatures of official layouts: their tables, with rows of every kind, and empty files as images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import scipy.io

from fastxfer.targets import (
    Target,
    padchest,
)


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


def known(target: Target, row: int) -> dict[str, float]:
    values = zip(target.class_names, target.labels[row].tolist(), strict=True)
    return {name: value for name, value in values if not np.isnan(value)}


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


def nih_folder(root: Path) -> Path:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position\n"
    rows = ["00000001_000.png,Effusion|Mass,0,1,58,PA", "00000001_001.png,Mass,1,1,059Y,AP"]
    rows += ["00000003_000.png,No Finding,0,3,011M,PA"]
    write(root / "Data_Entry_2017.csv", header + "\n".join(rows) + "\n")
    touch(root, *(f"images/{row.split(',')[0]}" for row in rows))
    return root


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


def flowers_tables(root: Path, train: int, val: int, test: int) -> Path:
    """Tables of so many images, the numbers dealt out as the release does: in no order."""
    root.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(train + val + test) + 1
    labels = 1 + np.arange(len(order)) % 102
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels.astype(np.uint8)})
    ids = {"trnid": order[:train], "valid": order[train : train + val], "tstid": order[train + val :]}
    scipy.io.savemat(root / "setid.mat", {name: numbers.astype(np.uint16) for name, numbers in ids.items()})
    return root


def pets_folder(root: Path) -> Path:
    train = ["Abyssinian_1 1 1 1", "american_bulldog_10 2 2 1", "Bengal_7 6 1 2"]
    test = ["american_bulldog_11 2 2 1", "Abyssinian_2 1 1 1", "Bengal_8 6 1 2"]
    write(root / "annotations/trainval.txt", "\n".join(train) + "\n")
    write(root / "annotations/test.txt", "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(test) + "\n")
    touch(root, *(f"images/{line.split()[0]}.jpg" for line in train + test))
    return root


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
