"""CheXpert (Irvin et al., AAAI 2019): the release's train.csv as train, its valid.csv as test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import locate_images
from fastxfer.targets.table import Target

# The release's columns; names as torchxrayvision spells them, "No Finding" is no label of its own.
LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices"),
)
_COLUMNS = {"Effusion": "Pleural Effusion"}
VIEWS = ("AP", "PA", "L", "LL", "RL")
POLICIES = ("ignore", "ones", "zeros", "blank-zeros")
_CELLS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": np.nan}
_FOLDERS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0")


def read(
    folder: Path,
    name: str,
    *,
    policy: str = "ignore",
    views: tuple[str, ...] = ("AP", "PA"),
    labels_only: bool = False,
) -> Target:
    """Read the release below `folder`.

    policy:      what uncertain (−1) and blank entries become. "ignore": both unknown (Cherti & Jitsev 2021);
                 "ones" / "zeros": −1 is positive / negative, blank unknown; "blank-zeros": −1 unknown, blank negative.
                 "No Finding" = 1 makes all labels negative but Support Devices, which says nothing about a disease.
    views:       of "AP", "PA" (frontal), "L" (all lateral rows, which is what the release has for them), "LL", "RL"
    labels_only: the tables only; whether the images are there is not looked at, and `root` is None
    """
    if policy not in POLICIES:
        raise UsageError(f"target '{name}': policy '{policy}' is not one of {', '.join(POLICIES)}")
    if not views or set(views) - set(VIEWS):
        raise UsageError(f"target '{name}': views {', '.join(views) or '(none)'}; expected some of {', '.join(VIEWS)}")
    root = next((folder / f for f in _FOLDERS if (folder / f / "train.csv").is_file()), None)
    if root is None:
        raise DataError(
            f"target '{name}': no train.csv in {folder}, nor in {' or '.join(f for f in _FOLDERS if f)} below it; "
            "expected the tables train.csv and valid.csv of the CheXpert release"
        )
    ids: list[str] = []
    where: list[str] = []
    labels: list[np.ndarray] = []
    split: list[str] = []
    dropped = 0
    for file, split_name in (("train.csv", "train"), ("valid.csv", "test")):
        table = read_csv(root / file)
        keep = [i for i, view in enumerate(_views(table)) if view in views]
        dropped += len(table) - len(keep)
        paths = table.column("Path")
        # "CheXpert-v1.0-small/train/patient00001/…" -> "train/patient00001/…": the folder may have been renamed.
        ids += [re.sub(r"^CheXpert-v1\.0[^/]*/", "", paths[i]) for i in keep]
        where += [table.where(i) for i in keep]
        labels.append(_labels(table, policy)[keep])
        split += [split_name] * len(keep)
    if not labels_only:
        ids = locate_images(root, ids, where)
    patient = [_patient(image_id, place) for image_id, place in zip(ids, where, strict=True)]
    notes = [f"CheXpert, views {', '.join(views)} ({dropped:,} rows of other views left out), labels: policy {policy}"]
    notes.append("test is the release's valid.csv, labelled by radiologists; train's labels come from reports")
    return Target(
        name,
        np.array(ids),
        LABELS,
        np.concatenate(labels),
        np.array(split),
        np.array(patient),
        None if labels_only else root.absolute(),
        tuple(notes),
    )


def _views(table: Table) -> list[str]:
    side, view = table.column("Frontal/Lateral"), table.column("AP/PA")
    return [v if v else "L" if s == "Lateral" else "" for s, v in zip(side, view, strict=True)]


def _labels(table: Table, policy: str) -> np.ndarray:
    def column(title: str) -> np.ndarray:
        cells = table.column(title)
        try:
            return np.array([_CELLS[cell] for cell in cells], dtype=np.float32)
        except KeyError:
            i = next(i for i, cell in enumerate(cells) if cell not in _CELLS)
            raise DataError(
                f"{table.where(i)}: '{cells[i]}' in column '{title}'; expected 1, 0, -1 or nothing"
            ) from None

    labels = np.column_stack([column(_COLUMNS.get(label, label)) for label in LABELS])
    uncertain, blank = labels == -1, np.isnan(labels)
    labels[uncertain] = {"ones": 1.0, "zeros": 0.0}.get(policy, np.nan)
    if policy == "blank-zeros":
        labels[blank] = 0
    healthy = column("No Finding") == 1
    diseases = np.array([label != "Support Devices" for label in LABELS])
    labels[np.ix_(healthy, diseases)] = 0
    return labels


def _patient(image_id: str, where: str) -> str:
    match = re.search(r"patient\d+", image_id)
    if match is None:
        raise DataError(
            f"{where}: no patient in the path '{image_id}'; expected …/patient00001/study1/view1_frontal.jpg"
        )
    return match.group()
