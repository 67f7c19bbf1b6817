"""CheXpert (Irvin et al., AAAI 2019): the release's train.csv as train, its valid.csv as test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import check_ids, locate_images
from fastxfer.targets.filters import choose_rows, keep_exactly_one, years_of
from fastxfer.targets.labeltables import packaged_table
from fastxfer.targets.policies import COLUMNS, LABELS, Policy, read_entries
from fastxfer.targets.table import Target

_FOLDERS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0")
_TABLES = (("train.csv", "train"), ("valid.csv", "test"))
_PREFIX = re.compile(r"^CheXpert-v1\.0[^/]*/")
_ABOUT = ("Path", "Age", "Frontal/Lateral", "AP/PA")


def read(
    folder: Path,
    name: str,
    *,
    policy: str = "ignore",
    soft_labels: Path | str | None = None,
    zero_devices: bool = False,
    views: tuple[str, ...] = ("AP", "PA"),
    ages: tuple[float, float] | None = None,
    first_of: str | None = None,
    exactly_one: bool = False,
    labels_only: bool = False,
) -> Target:
    """Read the release below `folder`.

    policy, soft_labels, zero_devices: see `fastxfer.targets.policies.Policy`
    views:       "AP", "PA" (frontal), "L" (all lateral rows, which is what the release has for them), "LL", "RL"
    ages, first_of: see `fastxfer.targets.filters.choose_rows`
    exactly_one: images with one positive label only, as a single-label target
    labels_only: the tables only, `root` is None; where there are none, train.csv as torchxrayvision has it
    """
    rule = Policy(policy, soft_labels, zero_devices)
    rule.check(name)
    root = next((folder / f for f in _FOLDERS if (folder / f / "train.csv").is_file()), None)
    notes: list[str] = []
    if root is not None:
        files = [(root / file, split) for file, split in _TABLES]
    elif labels_only:
        files = [(packaged_table(name, "chexpert_train.csv.gz"), "train")]
        notes.append("train.csv from torchxrayvision, which has no valid.csv: no test images")
    else:
        raise DataError(
            f"target '{name}': no train.csv in {folder}, nor in {' or '.join(f for f in _FOLDERS if f)} below it; "
            "expected the tables train.csv and valid.csv of the CheXpert release"
        )
    ids: list[str] = []
    where: list[str] = []
    view: list[str] = []
    age: list[float] = []
    split: list[str] = []
    entries: list[np.ndarray] = []
    tables: list[Table] = []
    for file, part in files:
        table = read_csv(file, columns=(*_ABOUT, *COLUMNS))
        tables.append(table)
        # "CheXpert-v1.0-small/train/patient00001/…" -> "train/patient00001/…": the folder may have been renamed.
        ids += [_PREFIX.sub("", path) for path in table.column("Path")]
        where += [table.where(i) for i in range(len(table))]
        view += _views(table)
        years = table.column("Age") if "Age" in table.columns else [""] * len(table)
        age += [years_of(a) for a in years]
        split += [part] * len(table)
        entries.append(read_entries(table))
    visits = [_visit(image_id, place) for image_id, place in zip(ids, where, strict=True)]
    patient, study = (np.array(column) for column in zip(*visits, strict=True))
    keep, filtered, left_out = choose_rows(
        name,
        tables,
        views=views,
        ages=ages,
        first_of=first_of,
        view=view,
        age=age,
        study=study,
        patient=patient,
    )
    ids, where = [ids[i] for i in keep], [where[i] for i in keep]
    if not labels_only and root is not None:
        ids = locate_images(root, ids, where)
    check_ids(ids, where)
    labels, done = rule.settle(np.concatenate(entries)[keep], ids)
    notes += [*filtered, *done]
    if len(files) > 1:
        notes.append("test is the release's valid.csv, labelled by radiologists; train's labels come from reports")
    target = Target(
        name,
        np.array(ids),
        LABELS,
        labels,
        np.array(split)[keep],
        patient[keep],
        None if labels_only or root is None else root.absolute(),
        tuple(notes),
        study=study[keep],
        view=np.array(view)[keep],
        left_out=tuple(left_out),
    )
    return keep_exactly_one(target) if exactly_one else target


def _views(table: Table) -> list[str]:
    side, view = table.column("Frontal/Lateral"), table.column("AP/PA")
    return [v if v else "L" if s == "Lateral" else "" for s, v in zip(side, view, strict=True)]


def _visit(image_id: str, where: str) -> tuple[str, str]:
    """Patient and study of an image."""
    patient, study = [*image_id.split("/")[-3:-1], "", ""][:2]
    if not (patient.startswith("patient") and study.startswith("study")):
        raise DataError(
            f"{where}: no patient and study in the path {image_id!r}; expected …/patient00001/study1/view1_frontal.jpg"
        )
    return patient, f"{patient}/{study}"
