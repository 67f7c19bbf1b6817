"""PadChest (Bustos et al., Medical Image Analysis 2020) with the 27 labels of Cherti & Jitsev (2021)."""

from __future__ import annotations

import csv
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import check_ids, find_by_name
from fastxfer.targets.filters import choose_rows, keep_exactly_one
from fastxfer.targets.labeltables import find_table
from fastxfer.targets.leftout import SHOWN, LeftOut, some
from fastxfer.targets.table import Target

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
VIEWS = ("PA", "L", "AP Supine", "AP", "COSTAL")
_VIEWS = {"AP_horizontal": "AP Supine"}
_COLUMNS = ("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "Projection", "Labels")
_TEST_SHARE = 0.1
# SHA-256 of the 160,709 image names in the order of the table: the paper's split follows that order.
_PAPER_ORDER = "4ea47d10c272b8595c3adfc8e377aad03348c5cdcd8af966ad555113042c3f47"


def read(
    folder: Path,
    name: str,
    *,
    split: str = "patient",
    split_seed: int = 0,
    views: tuple[str, ...] | None = None,
    ages: tuple[float, float] | None = None,
    first_of: str | None = None,
    exactly_one: bool = False,
    labels_only: bool = False,
) -> Target:
    """Read the 160K table below `folder`, images in whatever folders they were unpacked to.

    split:       "patient": a tenth of the patients is test, drawn by `split_seed`; "image": the split of Cherti &
                 Jitsev (2021), RandomState(42) over images, which tears patients apart
    views, ages, first_of: see `fastxfer.targets.filters.choose_rows`; splits are drawn before
    exactly_one: images with one positive label only, as a single-label target
    labels_only: the table only; taken from torchxrayvision where `folder` has none

    Left out, and counted in the notes: views other than the five, rows without labels, and the 30 files that the
    paper found broken. A label is positive where one of its terms is part of the row's lower-case text `Labels`.
    """
    files = (TABLE, f"{TABLE}.gz")
    table_file = find_table(name, folder, files, packaged=f"{TABLE}.gz" if labels_only else None)
    table = read_csv(table_file, columns=_COLUMNS)
    rows, notes, left_out = _usable(table)
    if not rows:
        raise DataError(f"{table_file}: no usable row ({'; '.join(notes)})")
    column = {c: [cells[i] for i in rows] for c in _COLUMNS for cells in (table.column(c),)}
    names, labels = _labels(column["Labels"])
    files_of = np.array(column["ImageID"])
    patient = np.array(column["PatientID"])
    if split == "patient":
        parts = _patient_split(patient, split_seed)
        notes.append(f"split: 10% of the patients are test, drawn with seed {split_seed}")
    elif split == "image":
        parts = _paper_split(len(rows))
        notes.append("split: the paper's, by image; most test images share a patient with train")
        if hashlib.sha256("\n".join(column["ImageID"]).encode()).hexdigest() != _PAPER_ORDER:
            notes.append(f"{table_file.name} isn't the 160K table in its order: drawn alike, but not the paper's split")
    else:
        raise UsageError(f"target '{name}': split '{split}' is not one of patient, image")
    view = np.array([_VIEWS.get(v, v) for v in column["Projection"]])
    keep, filtered, gone = choose_rows(
        name,
        [table.take(rows)],
        views=views,
        ages=ages,
        first_of=first_of,
        view=view,
        age=[_age(*dates) for dates in zip(column["PatientBirth"], column["StudyDate_DICOM"], strict=True)],
        study=column["StudyID"],
        patient=patient,
    )
    notes += filtered
    ids, where = [f"{column['ImageDir'][i]}/{files_of[i]}" for i in keep], [table.where(rows[i]) for i in keep]
    check_ids(ids, where)
    if not labels_only:
        ids = find_by_name(folder, ids, where)
    target = Target(
        name,
        np.array(ids),
        names,
        labels[keep],
        parts[keep],
        patient[keep],
        None if labels_only else folder.absolute(),
        tuple(notes),
        study=np.array(column["StudyID"])[keep],
        view=view[keep],
        left_out=(*left_out, *gone),
    )
    return keep_exactly_one(target) if exactly_one else target


def _usable(table: Table) -> tuple[list[int], list[str], list[LeftOut]]:
    views, labels, files, patients = (table.column(c) for c in ("Projection", "Labels", "ImageID", "PatientID"))
    broken = set(_data("padchest_dropped_files.csv").split()[1:])
    reasons = (f"of views other than {', '.join(VIEWS)}", "without labels", "with files known as broken")
    unusable: dict[str, list[int]] = {reason: [] for reason in reasons}
    rows = []
    for i, view in enumerate(views):
        if _VIEWS.get(view, view) not in VIEWS:
            unusable[reasons[0]].append(i)
        elif labels[i].lower() in ("", "nan"):
            unusable[reasons[1]].append(i)
        elif files[i] in broken:
            unusable[reasons[2]].append(i)
        else:
            rows.append(i)
    for i in rows:
        for column, cell in (("ImageID", files[i]), ("PatientID", patients[i])):
            if cell.lower() in ("", "nan"):
                raise DataError(f"{table.where(i)}: nothing in column '{column}'; have columns moved?")
    counted = (
        f"{len(gone):,} rows {reason}" + (f" ({some([files[i] for i in gone[: SHOWN + 1]])})" if gone else "")
        for reason, gone in unusable.items()
    )
    left_out = [table.left_out(gone, f"rows {reason}") for reason, gone in unusable.items() if gone]
    return rows, [f"left out {'; '.join(counted)}"], left_out


def _labels(texts: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    terms = {row["label"]: row["terms"].split("|") for row in csv.DictReader(_data("padchest_labels.csv").splitlines())}

    @cache  # many rows say the same
    def present(text: str) -> list[bool]:
        return [any(map(text.__contains__, alternatives)) for alternatives in terms.values()]

    return tuple(terms), np.array([present(text.lower()) for text in texts], dtype=np.float32)


def _patient_split(patient: np.ndarray, seed: int) -> np.ndarray:
    everybody = np.unique(patient)
    drawn = np.random.default_rng(seed).permutation(len(everybody))[: round(len(everybody) * _TEST_SHARE)]
    return np.where(np.isin(patient, everybody[drawn]), "test", "train")


def _paper_split(n: int) -> np.ndarray:
    order = np.arange(n)
    np.random.RandomState(42).shuffle(order)
    parts = np.full(n, "train", dtype="<U5")
    parts[order[int(n * (1 - _TEST_SHARE)) :]] = "test"
    return parts


def _age(birth: str, date: str) -> float:
    """Years between the year of birth ("1930.0") and the day of the study ("20140915"), NaN where one is unknown."""
    try:
        return int(date[:4]) - float(birth)
    except ValueError:
        return np.nan


def _data(file: str) -> str:
    return resources.files("fastxfer.targets").joinpath(file).read_text(encoding="utf-8")
