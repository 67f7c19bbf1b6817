"""Oxford 102 Flowers (Nilsback & Zisserman 2008), with the official split or the one that the paper used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.files import locate_images
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.table import Target

N_CLASSES = 102
# Array of setid.mat -> split. The paper trains on the official test images and tests on the others.
SPLITS = {
    "official": {"trnid": "train", "valid": "val", "tstid": "test"},
    "paper": {"trnid": "test", "valid": "test", "tstid": "train"},
}


def read(folder: Path, name: str, *, split: str = "official", labels_only: bool = False) -> Target:
    """Read ``imagelabels.mat``, ``setid.mat`` and ``jpg/image_00001.jpg`` …, in `folder` or in its ``flowers-102/``.

    split:       "official": 1,020 train, 1,020 val, 6,149 test; "paper" (Cherti & Jitsev 2021): the official test is
                 train, and train and val are test: 6,149 / 2,040
    labels_only: the two tables only; `root` is None
    Classes are called by their numbers, "001" to "102": the release has no names.
    """
    if split not in SPLITS:
        raise UsageError(f"target '{name}': split '{split}' is not one of {', '.join(SPLITS)}")
    root = folder / "flowers-102" if (folder / "flowers-102").is_dir() else folder
    labels_file, sets_file = root / "imagelabels.mat", root / "setid.mat"
    labels = _numbers(labels_file, "labels", N_CLASSES)
    numbers: list[int] = []
    parts: list[str] = []
    where: list[str] = []
    for array, part in SPLITS[split].items():
        of_set = _numbers(sets_file, array, len(labels)).tolist()
        numbers += of_set
        parts += [part] * len(of_set)
        where += [f"{sets_file}, {array}[{i}]" for i in range(len(of_set))]
    first: dict[int, str] = {}
    for number, place in zip(numbers, where, strict=True):
        if first.setdefault(number, place) != place:
            raise DataError(f"{place}: image {number} is listed more than once, first in {first[number]}")
    notes = [] if split == "official" else ["split: the paper's; the official test images are train, all others test"]
    unused = sorted(set(range(1, len(labels) + 1)) - set(numbers))
    what = f"images of {labels_file.name} that are in no set"
    left_out = [LeftOut(what, str(root), paths=_files(unused))] if unused else []
    notes += [gone.note for gone in left_out]
    ids = _files(numbers)
    if not labels_only:
        ids = locate_images(root, ids, where)
    return Target(
        name,
        np.array(ids),
        tuple(f"{label:03}" for label in range(1, N_CLASSES + 1)),
        labels[np.array(numbers) - 1] - 1,
        np.array(parts),
        root=None if labels_only else root.absolute(),
        notes=tuple(notes),
        left_out=tuple(left_out),
    )


def _files(numbers: list[int]) -> list[str]:
    return [f"jpg/image_{number:05}.jpg" for number in numbers]


def _numbers(file: Path, array: str, largest: int) -> NDArray[np.int64]:
    """An array of a MATLAB file, whole numbers from 1 to `largest`."""
    from scipy.io import loadmat

    if not file.is_file():
        raise DataError(f"{file}: there is no such file; it comes with the data set, beside the folder jpg/")
    try:
        values = np.atleast_1d(np.squeeze(loadmat(file, variable_names=[array])[array]))
        with np.errstate(invalid="ignore"):
            numbers = values.astype(np.int64)
    except Exception as error:  # a damaged file ends in errors of many kinds inside SciPy
        raise DataError(f"{file}: no array '{array}' of numbers can be read from it ({error})") from None
    if numbers.ndim != 1 or not len(numbers):
        raise DataError(f"{file}: array '{array}' is no row of numbers but {numbers.shape}")
    wrong = np.flatnonzero((numbers != values) | (numbers < 1) | (numbers > largest))
    if len(wrong):
        at = f"{array}[{wrong[0]}] is {values[wrong[0]]}"
        raise DataError(f"{file}: array '{array}' holds other than whole numbers from 1 to {largest:,}: {at}")
    return numbers
