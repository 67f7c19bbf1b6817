"""Shenzhen and Montgomery chest X-rays (Jaeger et al., Quantitative Imaging in Medicine and Surgery 2014)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.files import walk_images
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.split import make_split
from fastxfer.targets.table import Target

CLASSES = ("normal", "tuberculosis")
# source -> how its files' names start, how many there are
SOURCES = {"shenzhen": ("CHNCXR", 662), "montgomery": ("MCUCXR", 138)}
_NAME = re.compile(r"(?:CHNCXR|MCUCXR)_(\d+)_([01])")
_TRAIN_SHARE = 0.85


def read(folder: Path, name: str, *, split: str = "stratified", split_seed: int = 0) -> Target:
    """Read ``CHNCXR_*.png`` and ``MCUCXR_*.png``, in whatever folders below `folder`; the last digit is the label.

    Masks of the lungs (files or folders with "mask" in their name) are left alone. Every image is of another person.

    split: "stratified": 85 % train, 15 % test of each source and label, by `split_seed`; "paper": of each source,
    sorted by name and shuffled by RandomState(42), the first 85 % (Cherti & Jitsev 2021): 679 / 121
    """
    if split not in ("stratified", "paper"):
        raise UsageError(f"target '{name}': split '{split}' is not one of stratified, paper")
    notes: list[str] = []
    found = [path for path in walk_images(folder).images if "mask" not in path.lower()]
    others = [p for p in found if not p.rsplit("/", 1)[-1].startswith(tuple(start for start, _ in SOURCES.values()))]
    left_out = [LeftOut("images with names of neither source", str(folder), paths=others)] if others else []
    notes += [gone.note for gone in left_out]
    ids: list[str] = []
    labels: list[int] = []
    source: list[str] = []
    for origin, (start, count) in SOURCES.items():
        by_name: dict[str, str] = {}
        for path in found:
            file = path.rsplit("/", 1)[-1]
            if file.startswith(start) and by_name.setdefault(file, path) != path:
                raise DataError(f"{folder}: '{file}' lies in two folders, {by_name[file]} and {path}; keep one")
        if not by_name:
            raise DataError(f"target '{name}': no {start}_*.png below {folder}; expected the {count} of {origin}")
        if len(by_name) != count:
            notes.append(f"{len(by_name):,} images of {origin} where the data set has {count}")
        numbered: dict[str, str] = {}
        for file, path in sorted(by_name.items()):
            match = _NAME.fullmatch(file.rsplit(".", 1)[0])
            if match is None:
                raise DataError(f"{folder / path}: no label; expected a name like {start}_0001_0.png, ending in 0 or 1")
            if numbered.setdefault(match.group(1), path) != path:
                raise DataError(f"{folder / path}: the number of {numbered[match.group(1)]}; expected one image each")
            ids.append(path)
            labels.append(int(match.group(2)))
            source.append(origin)
    image_id, label, origins = np.array(ids), np.array(labels, dtype=np.int64), np.array(source)
    if split == "paper":
        parts = np.full(len(ids), "train", dtype="<U5")
        for origin in SOURCES:
            rows = np.flatnonzero(origins == origin)
            np.random.RandomState(42).shuffle(rows)
            parts[rows[int(len(rows) * _TRAIN_SHARE) :]] = "test"
        notes.append("split: the paper's, 85% of each source, RandomState(42)")
    else:
        shares = {"train": _TRAIN_SHARE, "test": 1 - _TRAIN_SHARE}
        strata = label + len(CLASSES) * (origins == "montgomery")
        parts = make_split(image_id, strata, None, fractions=shares, seed=split_seed)
        notes.append(f"split: 85% train and 15% test of each source and label, seed {split_seed}")
    return Target(
        name,
        image_id,
        CLASSES,
        label,
        parts,
        None,
        folder.absolute(),
        tuple(notes),
        source=origins,
        left_out=tuple(left_out),
    )
