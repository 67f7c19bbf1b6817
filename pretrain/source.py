"""A source: the train split of a target, perhaps of some of its classes only, with a part to validate on.

Test images are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.images import DEFAULT, Pixels, tar_index
from fastxfer.progress import progress
from fastxfer.targets import SPLITS, Target, make_split
from pretrain.recipe import Recipe


@dataclass(frozen=True)
class Paths(Sequence[Path]):
    """Paths of some images of a target, made when they are asked for: 8 bytes an image beside the target's own table.

    Fourteen million `Path`s would take 5 GB, and more in every loader process, which would copy them by counting references.
    """

    root: Path
    image_id: NDArray[np.str_]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Path: ...

    @overload
    def __getitem__(self, i: slice) -> Paths: ...

    def __getitem__(self, i: int | slice) -> Path | Paths:
        if isinstance(i, slice):
            return Paths(self.root, self.image_id, self.rows[i])
        return self.root / str(self.image_id[self.rows[i]])


@dataclass(frozen=True)
class Part:
    """Images and labels: (n,) int64 classes, or (n, n_classes) float32 with NaN = unknown."""

    paths: Paths
    labels: NDArray[Any]
    pixels: Pixels = DEFAULT

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Source:
    """What a backbone is trained on; `held_out`: the validation part was cut from train. It may be empty."""

    name: str
    class_names: tuple[str, ...]
    train: Part
    val: Part
    held_out: bool


def open_source(
    target: Target, classes: tuple[str, ...] = (), *, name: str = "", val_fraction: float = 0.1, seed: int = 0
) -> Source:
    """The target's train and val splits, restricted to `classes` (their order is kept).

    Without a val split, `val_fraction` of train is held out: seeded, stratified, by patients where they are known; 0 = none.
    Images without any known label are left out, too.
    `UsageError` for an unknown class, `DataError` for a source without train images or with one class only.
    """
    if target.root is None:
        raise DataError(f"source '{target.name}': its images are not known, only its table: load it from --data-root")
    names, labels = _restrict(target, classes)
    rows = np.flatnonzero((~np.isnan(labels)).any(axis=1) if labels.ndim == 2 else labels >= 0)
    train = rows[target.split[rows] == "train"]
    val = rows[target.split[rows] == "val"]
    of = f" of the classes {', '.join(names)}" if classes else ""
    if len(train) == 0:
        splits = ", ".join(f"{np.count_nonzero(target.split == s):,} {s}" for s in SPLITS)
        raise DataError(f"source '{target.name}' has no train images{of} with a known label (its images: {splits})")
    _check_labels(target, names, labels, train)
    if labels.ndim == 1 and len(np.unique(labels[train])) < 2:
        raise DataError(f"source '{target.name}': all {len(train)} train images{of} are of one class: nothing to learn")
    held_out = len(val) == 0 and val_fraction > 0
    if held_out:
        taken = _hold_out(target, train, labels[train], val_fraction, seed)
        train, val = train[~taken], train[taken]

    def part(of_rows: NDArray[np.int64]) -> Part:
        assert target.root is not None
        return Part(Paths(target.root, target.image_id, of_rows), labels[of_rows], target.pixels)

    return Source(name or _name(target, names), names, part(train), part(val), held_out)


def head_size(recipe: Recipe, source: Source) -> int:
    """Outputs of the head; `UsageError` where the recipe's number does not suit the source."""
    n, asked = len(source.class_names), recipe.num_classes
    if not asked or asked == n:
        return n
    if source.train.labels.ndim == 2:
        raise UsageError(f"num_classes = {asked}, but source '{source.name}' has {n} labels: leave it out, or give {n}")
    if asked < n:
        raise UsageError(
            f"num_classes = {asked} is too few for the {n} classes of source '{source.name}': leave it out"
        )
    return asked


def _check_labels(target: Target, names: tuple[str, ...], labels: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Labels that are none of the classes would be an error of the device, hours later and without a row."""
    found = labels[rows]
    wrong = (found > 1) | (found < 0) if labels.ndim == 2 else found >= len(names)
    if wrong.any():
        row = int(rows[np.argwhere(wrong)[0][0]])
        expected = "0 … 1 or NaN" if labels.ndim == 2 else f"0 … {len(names) - 1}"
        raise DataError(
            f"source '{target.name}': the label of image '{target.image_id[row]}' is {labels[row]}; expected {expected}"
        )


def read_archives(source: Source) -> None:
    """Read the indices of the tar archives that hold the images: once, so that loader processes share them."""
    archives = sorted({(root, i[: i.index(".tar/") + 4]) for root, i in _ids(source) if ".tar/" in i})
    with progress(f"index {source.name}", len(archives), "archives") as advance:
        for root, archive in archives:
            tar_index(root / archive)
            advance(1)


def _ids(source: Source) -> Iterator[tuple[Path, str]]:
    for part in (source.train, source.val):
        for row in part.paths.rows:
            yield part.paths.root, str(part.paths.image_id[row])


def _restrict(target: Target, classes: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Class names and labels, −1 for the images of other classes."""
    if not classes:
        return target.class_names, target.labels
    known = {n: i for i, n in enumerate(target.class_names)}
    for c in classes:
        if c not in known:
            shown = ", ".join(target.class_names[:20]) + (", …" if len(known) > 20 else "")
            raise UsageError(
                f"--classes: source '{target.name}' has no class '{c}'.{nearest(c, known)} It has: {shown}"
            )
    if len(set(classes)) != len(classes):
        raise UsageError("--classes: the same class twice")
    columns = [known[c] for c in classes]
    if target.multi_label:
        return classes, target.labels[:, columns]
    new = np.full(len(known), -1, np.int64)
    new[columns] = np.arange(len(columns))
    return classes, new[target.labels.astype(np.int64)]


def _name(target: Target, names: tuple[str, ...]) -> str:
    if names == target.class_names:
        return target.name
    return f"{target.name}[{','.join(names)}]" if len(names) <= 8 else f"{target.name}[{len(names)} classes]"


def _hold_out(
    target: Target, rows: NDArray[np.int64], labels: NDArray[Any], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """(n_rows,) bool: about `fraction` of each class, whole patients only."""
    patient = None if target.patient is None else target.patient[rows]
    fractions = {"train": 1 - fraction, "val": fraction}
    taken = make_split(target.image_id[rows], labels, patient, fractions=fractions, seed=seed) == "val"
    if taken.all() or not taken.any():
        raise DataError(
            f"source '{target.name}': {len(rows)} train images cannot be divided into train and validation "
            f"(val_fraction {fraction:g}): add images, or give it a val split"
        )
    return np.asarray(taken)
