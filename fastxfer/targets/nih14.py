"""NIH ChestX-ray14 (Wang et al., CVPR 2017), with its official, patient-disjoint test list."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError
from fastxfer.targets.csvfile import Table, read_csv, read_lines
from fastxfer.targets.files import check_ids, find_by_name
from fastxfer.targets.filters import choose_rows, keep_exactly_one, years_of
from fastxfer.targets.labels import NO_FINDING, SEPARATOR
from fastxfer.targets.labeltables import find_table
from fastxfer.targets.leftout import SHOWN, LeftOut, some
from fastxfer.targets.table import Target

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv.gz")
_NAME = re.compile(r"(\d{8})_\d{3}\.png")
_LISTS = (("train_val_list.txt", "train"), ("test_list.txt", "test"))


def read(
    folder: Path,
    name: str,
    *,
    views: tuple[str, ...] | None = None,
    ages: tuple[float, float] | None = None,
    first_of: str | None = None,
    exactly_one: bool = False,
    labels_only: bool = False,
) -> Target:
    """Read the data set below `folder`: the label table, images in whatever folders they were unpacked to.

    The splits are the official lists where both files are there, else drawn from the 2,797 patients of the official
    test list, whose numbers this package carries: the same 86,524 / 25,596 images. Images of the table in neither
    list are left out and counted.

    views ("PA", "AP"), ages, first_of: see `fastxfer.targets.filters.choose_rows`
    exactly_one: images with one finding only, as a single-label target
    labels_only: no look for the images; `root` is None, ids are ``images/NAME``, and where `folder` has no table,
                 torchxrayvision's is taken
    """
    table_file = find_table(name, folder, _TABLES, packaged=_TABLES[-1] if labels_only else None)
    table = read_csv(table_file)
    files, findings, patients = (table.column(c) for c in ("Image Index", "Finding Labels", "Patient ID"))
    check_ids([f"images/{file}" for file in files], [table.where(i) for i in range(len(table))])
    _check_patients(table, files, patients)
    labels = _labels(table, findings)
    split, notes, left_out = _splits(folder, files, patients)
    listed = np.flatnonzero(split != "")
    if not len(listed):
        raise DataError(f"{table_file}: none of its images is in {_LISTS[0][0]} or {_LISTS[1][0]}")
    if len(listed) < len(table):
        unlisted, reason = np.flatnonzero(split == ""), f"images of {table_file.name} that are in neither list"
        notes.append(f"left out {len(unlisted):,} {reason}: {some([files[i] for i in unlisted[: SHOWN + 1]])}")
        left_out.append(table.left_out(unlisted.tolist(), reason))
        table, labels, split = table.take(listed.tolist()), labels[listed], split[listed]
        files, patients = table.column("Image Index"), table.column("Patient ID")
    visits = _optional(table, "Follow-up #")
    study = None if visits is None else np.array([f"{p}-{v}" for p, v in zip(patients, visits, strict=True)])
    view, ages_told = (_optional(table, c) for c in ("View Position", "Patient Age"))
    keep, filtered, gone = choose_rows(
        name,
        [table],
        views=views,
        ages=ages,
        first_of=first_of,
        view=view,
        age=None if ages_told is None else [_years(age) for age in ages_told],
        study=study,
        patient=patients,
    )
    ids = [f"images/{files[i]}" for i in keep]
    if not labels_only:
        ids = find_by_name(folder, ids, [table.where(i) for i in keep])
    target = Target(
        name,
        np.array(ids),
        LABELS,
        labels[keep],
        split[keep],
        np.array(patients)[keep],
        None if labels_only else folder.absolute(),
        (*notes, *filtered),
        study=None if study is None else study[keep],
        view=None if view is None else np.array(view)[keep],
        left_out=(*left_out, *gone),
    )
    return keep_exactly_one(target) if exactly_one else target


def _optional(table: Table, column: str) -> list[str] | None:
    return table.column(column) if column in table.columns else None


def _check_patients(table: Table, files: list[str], patients: list[str]) -> None:
    """Raise `DataError` for the first patient that is no number, or another than the image's name begins with: columns
    that moved, or numbers turned into fractions, would put images of one patient on both sides."""
    for i, (file, patient) in enumerate(zip(files, patients, strict=True)):
        named = _NAME.match(file)
        if not patient.isdecimal() or (named and int(named[1]) != int(patient)):
            what = "isn't the one in the image's name" if patient.isdecimal() else "is no whole number"
            raise DataError(f"{table.where(i)}: the patient in column 'Patient ID' {what}; have columns moved?")


def _years(age: str) -> float:
    """ "58" as the table of 2020 has it, or "058Y" as the older one; months and days count as 0 years."""
    years = years_of(age.rstrip("YMD"))
    return 0.0 * years if age.endswith(("M", "D")) else years


def _labels(table: Table, findings: list[str]) -> np.ndarray:
    column = {label: j for j, label in enumerate(LABELS)}
    labels = np.zeros((len(findings), len(LABELS)), dtype=np.float32)
    for i, cell in enumerate(findings):
        for finding in cell.split(SEPARATOR):
            if finding in column:
                labels[i, column[finding]] = 1
            elif finding != NO_FINDING:
                raise DataError(
                    f"{table.where(i)}: finding {table.shown(finding)} is none of the 14 ({', '.join(LABELS)}) nor '{NO_FINDING}'"
                )
    return labels


def _splits(folder: Path, files: list[str], patients: list[str]) -> tuple[np.ndarray, list[str], list[LeftOut]]:
    lists = [(folder / file, split) for file, split in _LISTS]
    if all(path.is_file() for path, _ in lists):
        of: dict[str, tuple[str, str]] = {}
        for path, listed in lists:
            for line, where in read_lines(path):
                if line in of:
                    raise DataError(f"{where}: {line!r} is listed twice, first in {of[line][1]}")
                of[line] = (listed, where)
        notes = ["splits: train_val_list.txt and test_list.txt"]
        left_out = []
        if unlabelled := sorted(of.keys() - set(files)):
            left_out.append(LeftOut("listed images without a row in the table", str(folder), paths=unlabelled))
            notes.append(left_out[-1].note)
        return np.array([of[file][0] if file in of else "" for file in files]), notes, left_out
    text = resources.files("fastxfer.targets").joinpath("nih14_test_patients.csv").read_text()
    test = set(text.split()[1:])
    split = np.where([patient.lstrip("0") in test for patient in patients], "test", "train")
    missing = " and ".join(path.name for path, _ in lists if not path.is_file())
    return split, [f"splits: no {missing} in the folder, so by the 2,797 patients of the official test list"], []
