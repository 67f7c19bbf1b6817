"""COVIDx CXR-2 (Wang, Lin & Wong, Scientific Reports 2020) as its lists say: train.txt and test.txt."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePath

import numpy as np

from fastxfer.errors import DataError
from fastxfer.images import EXTENSIONS
from fastxfer.targets.csvfile import read_lines
from fastxfer.targets.files import check_ids, locate_images
from fastxfer.targets.table import Target

CLASSES = ("negative", "positive")
_SPLITS = ("train", "val", "test")


def read(folder: Path, name: str, *, labels_only: bool = False) -> Target:
    """Read ``train.txt``, ``test.txt`` and, if there, ``val.txt``; the images lie in ``train/``, ``test/``, ``val/``.

    A line is ``[patient ]file label[ source]``, the label "positive" or "negative". Patient and file may hold blanks,
    so lines are read from the right, and among the names that the rest could mean, the longest that lies in the
    folder is the file. Sources become the column `source`.

    labels_only: the lists only; `root` is None, and a file's name is what follows the last blank.
    """
    ids: list[str] = []
    where: list[str] = []
    labels: list[int] = []
    split: list[str] = []
    patient: list[str] = []
    source: list[str] = []
    for part in _SPLITS:
        lines_file = folder / f"{part}.txt"
        if part == "val" and not lines_file.is_file():
            continue
        if not lines_file.is_file():
            raise DataError(
                f"target '{name}': no {lines_file.name} in {folder}; expected the lists train.txt and test.txt"
            )
        lying: Collection[str] = ()
        if not labels_only and (folder / part).is_dir():
            lying = {entry.name for entry in (folder / part).iterdir()}
        for line, place in read_lines(lines_file):
            where.append(place)
            whom, file, label, origin = _parse(line, lying, place)
            ids.append(f"{part}/{file}")
            labels.append(CLASSES.index(label))
            split.append(part)
            patient.append(whom)
            source.append(origin)
    check_ids(ids, where)
    if not labels_only:
        ids = locate_images(folder, ids, where)
    notes = []
    if any(patient) and not all(patient):
        notes.append(f"{patient.count(''):,} images without a patient: each counts as a patient of its own")
        patient = [p or f"unknown:{i}" for p, i in zip(patient, ids, strict=True)]
    return Target(
        name,
        np.array(ids),
        CLASSES,
        np.array(labels, dtype=np.int64),
        np.array(split),
        np.array(patient) if any(patient) else None,
        None if labels_only else folder.absolute(),
        tuple(notes),
        source=np.array([s or "unknown" for s in source]) if any(source) else None,
    )


def _parse(line: str, lying: Collection[str], where: str) -> tuple[str, str, str, str]:
    """Patient, file, label, source; "" for what a line doesn't say. lying: names of the files in the folder."""
    rest, *last = line.rsplit(maxsplit=1)
    if last and last[0] in CLASSES:
        label, source = last[0], ""
    else:
        rest, *said = line.rsplit(maxsplit=2)
        if len(said) < 2 or said[0] not in CLASSES:
            raise DataError(
                f"{where}: no label; expected '[patient ]file label[ source]' with the label {' or '.join(CLASSES)}"
            )
        label, source = said
    starts = [0, *(blank.end() for blank in re.finditer(r"\s+", rest))]
    start = next((s for s in starts if rest[s:] in lying), starts[-1])
    if rest[start:] not in lying and PurePath(rest).suffix.lower() not in EXTENSIONS:
        raise DataError(f"{where}: no image's name before the label; expected '[patient ]file label[ source]'")
    if any(word in CLASSES or PurePath(word).suffix.lower() in EXTENSIONS for word in rest[:start].split()):
        raise DataError(f"{where}: two images; expected one a line, '[patient ]file label[ source]'")
    return rest[:start].strip(), rest[start:], label, source
