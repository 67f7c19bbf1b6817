"""MIMIC-CXR-JPG (Johnson et al., 2019): labels, views and splits are three tables, joined on subject, study, image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import check_ids, locate_images
from fastxfer.targets.filters import choose_rows, keep_exactly_one
from fastxfer.targets.labeltables import find_table
from fastxfer.targets.leftout import some
from fastxfer.targets.policies import COLUMNS, LABELS, Policy, read_entries
from fastxfer.targets.table import Target

LABELERS = ("chexpert", "negbio")
_RELEASES = ("2.0.0", "2.1.0")
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_STUDY = ("subject_id", "study_id")
_IMAGE = (*_STUDY, "dicom_id")


def read(
    folder: Path,
    name: str,
    *,
    labeler: str = "chexpert",
    policy: str = "ignore",
    soft_labels: Path | str | None = None,
    zero_devices: bool = False,
    views: tuple[str, ...] = ("AP", "PA"),
    first_of: str | None = None,
    exactly_one: bool = False,
    labels_only: bool = False,
) -> Target:
    """Read the release below `folder`: ``files/p10/p10000032/s50414267/….jpg`` and its tables, ``.csv`` or ``.csv.gz``.

    The splits are the official ones; "validate" is val. Images without a row in the table of splits or of labels
    are left out and counted.

    labeler:     which program read the reports: "chexpert" or "negbio"
    policy, soft_labels, zero_devices: see `fastxfer.targets.policies.Policy`
    views:       "AP", "PA" (frontal), "LATERAL", "LL", … as the release names them
    first_of:    see `fastxfer.targets.filters.choose_rows`
    exactly_one: images with one positive label only, as a single-label target
    labels_only: the tables only; whether the images are there is not looked at, and `root` is None
    """
    if labeler not in LABELERS:
        raise UsageError(f"target '{name}': labeler '{labeler}' is not one of {', '.join(LABELERS)}")
    rule = Policy(policy, soft_labels, zero_devices)
    rule.check(name)

    def table_of(what: str, columns: tuple[str, ...]) -> Table:
        files = [f"mimic-cxr-{r}-{what}.csv{end}" for r in _RELEASES for end in (".gz", "")]
        return read_csv(find_table(name, folder, files), columns=columns)

    images = table_of("metadata", (*_IMAGE, "ViewPosition"))
    splits = table_of("split", (*_IMAGE, "split"))
    reports = table_of(labeler, (*_STUDY, *COLUMNS))
    split_row, label_row = _index(splits, _IMAGE), _index(reports, _STUDY)
    image_keys = list(_index(images, _IMAGE))
    without = {
        "without a split": [i for i, key in enumerate(image_keys) if key not in split_row],
        "without labels": [i for i, key in enumerate(image_keys) if key in split_row and key[:2] not in label_row],
    }
    rows = [i for i, key in enumerate(image_keys) if key in split_row and key[:2] in label_row]
    counted = (
        f"{len(lack):,} images {what}"
        + (f" ({some([images.column('dicom_id')[i] for i in lack[:6]])})" if lack else "")
        for what, lack in without.items()
    )
    notes = [f"labels by {labeler}; left out {' and '.join(counted)}"]
    left_out = [images.left_out(lack, f"images {what}") for what, lack in without.items() if lack]
    for table, lost in (
        (splits, [split_row[key] for key in split_row.keys() - set(image_keys)]),
        (reports, [label_row[key] for key in label_row.keys() - {key[:2] for key in image_keys}]),
    ):
        if lost:
            left_out.append(table.left_out(sorted(lost), "rows without an image"))
            row = left_out[-1].rows[0]
            notes.append(f"left out {len(lost):,} rows of {table.file.name} without an image, the first in row {row}")
    if not rows:
        raise DataError(f"{images.file}: none of its images is both in {splits.file.name} and in {reports.file.name}")
    keys = [image_keys[i] for i in rows]
    patient, view = np.array([key[0] for key in keys]), np.array(images.column("ViewPosition"))[rows]
    study = np.array([f"{subject}-{study}" for subject, study, _ in keys])
    keep, filtered, gone = choose_rows(
        name, [images.take(rows)], views=views, first_of=first_of, view=view, study=study, patient=patient
    )
    ids = [f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg" for subject, study, dicom in (keys[i] for i in keep)]
    where = [images.where(rows[i]) for i in keep]
    check_ids(ids, where)
    if not labels_only:
        ids = locate_images(folder, ids, where)
    entries = read_entries(reports)[[label_row[keys[i][:2]] for i in keep]]
    labels, done = rule.settle(entries, ids)
    target = Target(
        name,
        np.array(ids),
        LABELS,
        labels,
        _splits(splits, [split_row[keys[i]] for i in keep]),
        patient[keep],
        None if labels_only else folder.absolute(),
        (*notes, *filtered, *done),
        study=study[keep],
        view=view[keep],
        left_out=(*left_out, *gone),
    )
    return keep_exactly_one(target) if exactly_one else target


def _index(table: Table, columns: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """Row number by the values of these columns, in the table's order; they must be there and not repeat."""
    rows: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(zip(*(table.column(c) for c in columns), strict=True)):
        for column, cell in zip(columns, key, strict=True):
            if not (cell.isdecimal() if column in _STUDY else cell):
                what = "no whole number" if column in _STUDY else "nothing"
                raise DataError(f"{table.where(i)}: {what} in column '{column}'; have columns moved?")
        if rows.setdefault(key, i) != i:
            same = table.row_numbers[rows[key]]
            raise DataError(f"{table.where(i)}: the same {', '.join(columns)} as in row {same}; expected one row each")
    return rows


def _splits(table: Table, rows: list[int]) -> np.ndarray:
    words = table.column("split")
    for i in rows:
        if words[i] not in _SPLITS:
            raise DataError(f"{table.where(i)}: split {table.shown(words[i])} is not one of {', '.join(_SPLITS)}")
    return np.array([_SPLITS[words[i]] for i in rows])
