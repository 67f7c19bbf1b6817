"""NIH ChestX-ray14 (Wang et al., CVPR 2017), with its official, patient-disjoint test list."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError
from fastxfer.targets.csvfile import Table, read_bytes, read_csv
from fastxfer.targets.files import walk_images
from fastxfer.targets.listing import NO_FINDING, SEPARATOR
from fastxfer.targets.table import Target

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = (("train_val_list.txt", "train"), ("test_list.txt", "test"))


def read(folder: Path, name: str, *, labels_only: bool = False) -> Target:
    """Read the data set below `folder`: the label table, images in whatever folders they were unpacked to.

    The splits are the official lists where both files are there, else drawn from the 2,797 patients of the official
    test list, whose numbers this package carries: the same 86,524 / 25,596 images. Images of the table in neither
    list are left out and counted. labels_only: no look for the images; `root` is None and ids are ``images/NAME``.
    """
    table_file = next((folder / f for f in _TABLES if (folder / f).is_file()), None)
    if table_file is None:
        raise DataError(f"target '{name}': no {' or '.join(_TABLES)} in {folder}; it comes with the data set")
    table = read_csv(table_file)
    files, findings, patients = (table.column(c) for c in ("Image Index", "Finding Labels", "Patient ID"))
    labels = _labels(table, findings)
    split, notes = _splits(folder, files, patients)
    keep = np.flatnonzero(split != "")
    if len(keep) < len(files):
        notes.append(f"left out {len(files) - len(keep):,} images of {table_file.name} that are in neither list")
    if labels_only:
        ids = [f"images/{file}" for file in files]
    else:
        ids = _locate(folder, table, files, keep)
    return Target(
        name,
        np.array(ids)[keep],
        LABELS,
        labels[keep],
        split[keep],
        np.array(patients)[keep],
        None if labels_only else folder.absolute(),
        tuple(notes),
    )


def _labels(table: Table, findings: list[str]) -> np.ndarray:
    column = {label: j for j, label in enumerate(LABELS)}
    labels = np.zeros((len(findings), len(LABELS)), dtype=np.float32)
    for i, cell in enumerate(findings):
        for finding in cell.split(SEPARATOR):
            if finding in column:
                labels[i, column[finding]] = 1
            elif finding != NO_FINDING:
                raise DataError(
                    f"{table.where(i)}: finding '{finding}' is none of the 14 ({', '.join(LABELS)}) nor '{NO_FINDING}'"
                )
    return labels


def _splits(folder: Path, files: list[str], patients: list[str]) -> tuple[np.ndarray, list[str]]:
    lists = [(folder / file, split) for file, split in _LISTS]
    if all(path.is_file() for path, _ in lists):
        of: dict[str, str] = {}
        for path, listed in lists:
            for line in read_bytes(path).decode("utf-8-sig", "replace").split():
                if of.setdefault(line, listed) != listed:
                    raise DataError(f"{path}: '{line}' is in both lists, {_LISTS[0][0]} and {_LISTS[1][0]}")
        return np.array([of.get(file, "") for file in files]), ["splits: train_val_list.txt and test_list.txt"]
    text = resources.files("fastxfer.targets").joinpath("nih14_test_patients.csv").read_text()
    test = set(text.split()[1:])
    split = np.where([patient.lstrip("0") in test for patient in patients], "test", "train")
    missing = " and ".join(path.name for path, _ in lists if not path.is_file())
    return split, [f"splits: no {missing} in the folder, so by the 2,797 patients of the official test list"]


def _locate(folder: Path, table: Table, files: list[str], keep: np.ndarray) -> list[str]:
    """Paths by file name, wherever below `folder`: one images/ folder, or Kaggle's images_001/images/ … ."""
    lying: dict[str, str] = {}
    for path in walk_images(folder).images:
        file = os.path.basename(path)
        if file in lying:
            raise DataError(f"{folder}: '{file}' lies in two folders, {lying[file]} and {path}; keep one")
        lying[file] = path
    missing = [i for i in keep if files[i] not in lying]
    if missing:
        named = "; ".join(f"{table.where(i)}: '{files[i]}'" for i in missing[:3])
        raise DataError(f"{len(missing):,} of {len(keep):,} images are not below {folder}: {named}, …")
    return [lying.get(file, file) for file in files]
