"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): PNG class folders, written once from the release's pickles."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.listing import build_target, read_folder
from fastxfer.targets.table import Target

CLASSES = {"cifar10": 10, "cifar100": 100}
_PICKLES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_COUNTS = {"train": 50_000, "test": 10_000}


def read(folder: Path, name: str) -> Target:
    """Read ``train/CLASS/`` and ``test/CLASS/`` below `folder`, as `export` or anybody else wrote them.

    The pickles of the release hold no image files, and are never opened here.
    """
    missing = [split for split in _COUNTS if not (folder / split).is_dir()]
    if missing:
        hint = f"write it once from {_PICKLES[name]}/: fastxfer targets export {name}"
        raise DataError(f"target '{name}': no folder {folder / missing[0]} with class folders; {hint}")
    target = build_target(read_folder(folder), name)
    notes = list(target.notes)
    if len(target.class_names) != CLASSES[name]:
        notes.append(f"{len(target.class_names)} classes where {name} has {CLASSES[name]}")
    for split, count in _COUNTS.items():
        if len(target.rows(split)) != count:
            notes.append(f"{len(target.rows(split)):,} {split} images where {name} has {count:,}")
    return replace(target, notes=tuple(notes))


def export(folder: Path, name: str) -> int:
    """Write the images of the pickles in `folder` as ``train/CLASS/00000.png`` …; returns how many.

    A pickle can run any code when it is opened. torchvision's reader does it, without downloading, and refuses files
    whose MD5 is not the release's before it opens them. `train/` and `test/` appear when all images are written.
    """
    if name not in CLASSES:
        raise UsageError(f"target '{name}' has nothing to export; only {' and '.join(CLASSES)} have")
    there = [split for split in _COUNTS if (folder / split).exists()]
    if there:
        raise UsageError(f"target '{name}': {folder / there[0]} exists; move it away to export again")
    if not (folder / _PICKLES[name]).is_dir():
        raise DataError(
            f"target '{name}': no folder {folder / _PICKLES[name]}; unpack {_PICKLES[name]}'s archive there "
            f"(https://www.cs.toronto.edu/~kriz/cifar.html), or let torchvision download it to {folder}"
        )
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    temporary = folder / f".export-{os.getpid()}"
    count = 0
    try:
        for split in _COUNTS:
            try:
                data = reader(folder, train=split == "train", download=False)
            except RuntimeError as error:
                raise DataError(
                    f"{folder / _PICKLES[name]}: not the release's files by their MD5, so they are not opened "
                    f"({error}); unpack the archive again"
                ) from None
            for label in data.classes:
                (temporary / split / label).mkdir(parents=True)
            for i, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                Image.fromarray(pixels).save(temporary / split / data.classes[label] / f"{i:05}.png")
                count += 1
        for split in _COUNTS:
            os.replace(temporary / split, folder / split)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return count
