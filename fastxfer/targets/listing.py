"""What a folder or a table says about its images, and how that becomes a `Target`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table
from fastxfer.targets.files import Found, locate_images, walk_images
from fastxfer.targets.labels import (
    NO_FINDING,
    PREFIX,
    SEPARATOR,
    is_missing,
    label_columns,
    label_set,
    read_names,
    read_values,
    refuse_two_spellings,
)
from fastxfer.targets.leftout import LeftOut, some
from fastxfer.targets.split import make_split
from fastxfer.targets.table import ABOUT, Target

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass
class Listing:
    """Images as listed, before labels are numbered and a split is drawn; all columns as long as `image_id`.

    labels: one cell an image ("cat", "Mass|Edema", "" where nobody knows), or (n_images, n_labels) float32 values of
    `label_names`. about: the columns of `ABOUT` that there are; "" where nobody knows.
    where: what messages call the i-th image ("labels.csv, row 7").
    """

    root: Path
    image_id: list[str]
    labels: list[str] | NDArray[np.float32]
    split: list[str] | None
    where: Callable[[int], str]
    about: dict[str, list[str]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def read_folder(root: Path, found: Found | None = None) -> Listing:
    """Read an ImageFolder: ``[train|val|test/]class/**/image``.

    Folders called train (training), val (valid, validation, dev) or test (testing) directly below `root` are the
    splits if train is among them and holds class folders. What is left out (images outside of class folders,
    files that are no images) is counted in the notes. found: what a walk over it came upon, if there was one.
    """
    found = found or walk_images(root)
    if not found.images:
        others = _count_others(found)
        raise DataError(
            f"{root}: no images in this folder{f' (only {others})' if others else ''}; expected class folders with "
            "images, train/ and test/ with class folders in them, or a labels.csv with path,label[,split][,patient]"
        )
    top = {path.split("/", 1)[0] for path in found.folders}
    splits = {name: SPLIT_WORDS[name.lower()] for name in sorted(top) if name.lower() in SPLIT_WORDS}
    trains = [name for name, split in splits.items() if split == "train"]
    has_splits = any(path.count("/") > 1 and path.split("/", 1)[0] in trains for path in found.images)
    depth = 1 if has_splits else 0

    image_id: list[str] = []
    labels: list[str] = []
    split: list[str] | None = [] if has_splits else None
    strays: list[str] = []
    for path in found.images:
        parts = path.split("/")
        if len(parts) < depth + 2 or (has_splits and parts[0] not in splits):
            strays.append(path)
            continue
        image_id.append(path)
        labels.append(parts[depth])
        if split is not None:
            split.append(splits[parts[0]])
    listing = Listing(root, image_id, labels, split, lambda i: str(root / image_id[i]))
    if not image_id:
        raise DataError(
            f"{root}: {len(strays):,} images, but none in a class folder ({', '.join(strays[:3])}, …); expected one "
            "folder a class, or a labels.csv with path,label[,split][,patient]"
        )
    if strays:
        outside = f"images outside of {'split and ' if has_splits else ''}class folders"
        listing.left_out.append(LeftOut(outside, str(root), paths=strays))
        listing.notes.append(listing.left_out[-1].note)
    if found.others:
        listing.left_out.append(LeftOut("files that are no images by their name", str(root), paths=found.others))
        listing.notes.append(f"left out files that are no images by their name: {_count_others(found)}")
    folders = {path.rpartition("/")[0] for path in image_id}
    filled = folders | {"/".join(folder.split("/")[: depth + 1]) for folder in folders}
    empty = [
        f for f in found.folders if f.count("/") == depth and f not in filled and f.split("/")[0] in (splits or top)
    ]
    if empty:
        listing.notes.append(f"class folders without an image: {some(empty)}")
    return listing


def _count_others(found: Found) -> str:
    endings = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in found.others)
    return ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(5))


def read_table(
    table: Table,
    root: Path,
    *,
    label_column: str = "label",
    group: str | None = None,
    missing_labels: str | None = None,
    trusted: bool = False,
) -> Listing:
    """Read a table with ``path,label[,split][,patient]``; paths are relative to `root`, or absolute and inside it.

    label_column:   the column with an image's label ("A|B" for two), or several, "A,B,C": a column a label, holding 0 to
                    1 or nothing. Columns called "label:A", "label:B" need not be named.
    group:          the column with what must not be torn apart, in the place of ``patient``
    missing_labels: what a blank label means: "unknown", "drop" the image (with a column a label: where all are blank),
                    or "error"; None = "error" in a column of names, "unknown" in columns of values
    trusted:        the table was written by fastxfer, after these checks: files aren't looked for, and a class folder
                    may well be called "none"

    Columns ``study``, ``view`` and ``source`` are taken over. Raises `DataError` naming file and row: missing columns,
    empty cells, a path listed twice or leaving `root`, missing files, unknown split words.
    """
    for i, path in enumerate(table.column("path")):
        if not path:
            raise DataError(f"{table.where(i)}: the path is empty")
    columns = label_columns(table, label_column)
    labels: list[str] | NDArray[np.float32]
    if columns:
        table, labels, notes, left_out = read_values(table, columns, missing_labels or "unknown")
    elif trusted:
        labels, notes, left_out = table.column(label_column), [], []
    else:
        table, labels, notes, left_out = read_names(table, label_column, missing_labels or "error")
        refuse_two_spellings(table, labels)
    names = tuple(column.removeprefix(PREFIX) for column in columns)
    split = None
    if "split" in table.columns:
        split = []
        for i, word in enumerate(table.column("split")):
            if word.lower() not in SPLIT_WORDS:
                raise DataError(f"{table.where(i)}: split {table.shown(word)} is not one of train, val, test")
            split.append(SPLIT_WORDS[word.lower()])
    paths = table.column("path")
    ids = paths if trusted else locate_images(root, paths, map(table.where, range(len(paths))))
    first: dict[str, int] = {}
    for i, image_id in enumerate(ids):
        if first.setdefault(image_id, i) != i:
            raise DataError(
                f"{table.where(i)}: {paths[i]!r} is listed twice, first in row {table.row_numbers[first[image_id]]}"
            )
    taken = {"patient": group} if group is not None else {}
    taken |= {column: column for column in ABOUT if column in table.columns and column not in taken}
    about = {
        column: ["" if not trusted and is_missing(cell) else cell for cell in table.column(title)]
        for column, title in taken.items()
    }
    notes = [*(gone.note for gone in left_out), *notes]
    if group not in (None, "patient"):
        notes.append(f"patients are what column '{group}' says")
    return Listing(root, ids, labels, split, table.where, about, names, notes, left_out)


def build_target(
    listing: Listing,
    name: str,
    *,
    multi_label: bool | None = None,
    class_names: Sequence[str] | None = None,
    split_seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float | None = None,
) -> Target:
    """Number the labels and complete the splits.

    multi_label: None = yes if any label holds a "|" between names. class_names: in this order; None = all that
    occur, sorted. Without splits, or with nothing but train, `test_fraction` of the images become test: stratified,
    patient-disjoint, by `split_seed`. Without test but with val, val serves as test. Then `val_fraction` of train
    becomes val. All of it is said in the notes.
    """
    notes = list(listing.notes)
    names, labels = _number_labels(listing, name, multi_label, class_names)
    if len(names) < (needed := 3 - labels.ndim):
        found = f"only one class, {names[0]!r}" if names else f"no label but '{NO_FINDING}'"
        raise DataError(f"target '{name}': {found}, in {listing.root}; expected at least {needed}")

    image_id = np.array(listing.image_id, dtype=np.str_)
    about: dict[str, Any] = {}
    for column, cells in listing.about.items():
        # An image whose patient (or study) nobody knows is a patient of its own; the path makes the name unique.
        own = column in ("patient", "study")
        filled = [
            cell or (f"unknown:{i}" if own else "unknown") for cell, i in zip(cells, listing.image_id, strict=True)
        ]
        about[column] = np.array(filled, dtype=np.str_)
        unknown = sum(not cell for cell in cells)
        if unknown:
            counts = f"each counts as a {column} of its own" if own else "'unknown'"
            notes.append(f"{unknown:,} images without a {column}: {counts}")
    patient = about.get("patient")
    split, split_note = _complete_split(listing, image_id, labels, patient, split_seed, test_fraction)
    if split_note:
        notes.append(split_note)
    if val_fraction is not None:
        notes.append(_draw_val(split, image_id, labels, patient, split_seed, val_fraction))
    about |= {"notes": tuple(notes), "left_out": tuple(listing.left_out)}
    return _with_warnings(Target(name, image_id, names, labels, split, root=listing.root.absolute(), **about))


def _number_labels(
    listing: Listing, name: str, multi_label: bool | None, class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray]:
    cells = listing.labels
    if isinstance(cells, np.ndarray):
        if multi_label is False:
            raise UsageError(f"target '{name}': a column a label makes it multi-label, so --single-label cannot be")
        return tuple(class_names or listing.label_names), cells
    if multi_label is None:
        multi_label = any(SEPARATOR in label for label in cells)
    if not multi_label:
        if "" in cells:
            raise UsageError(
                f"target '{name}': unknown labels ({listing.where(cells.index(''))}) can be in a multi-label target "
                "only; leave such images out with --missing-labels drop"
            )
        names = tuple(class_names or sorted(set(cells)))
        column = {label: j for j, label in enumerate(names)}
        return names, np.array([column[label] for label in cells], dtype=np.int64)
    sets = [label_set(label, listing.where(i)) if label else None for i, label in enumerate(cells)]
    names = tuple(class_names or sorted(set().union(*filter(None, sets))))
    column = {label: j for j, label in enumerate(names)}
    labels = np.zeros((len(sets), len(names)), dtype=np.float32)
    for i, present in enumerate(sets):
        if present is None:
            labels[i] = np.nan
        else:
            labels[i, [column[label] for label in present]] = 1
    return names, labels


def _complete_split(
    listing: Listing,
    image_id: np.ndarray,
    labels: np.ndarray,
    patient: np.ndarray | None,
    seed: int,
    test_fraction: float,
) -> tuple[np.ndarray, str | None]:
    words = Counter(listing.split) if listing.split is not None else Counter()
    if words["test"] and words["train"]:
        return np.array(listing.split, dtype=np.str_), None
    if words["val"] and words["train"]:
        split = np.array(listing.split, dtype=np.str_)
        split[split == "val"] = "test"
        return split, "no test split given: val serves as test"
    if words and not words["train"]:
        raise DataError(f"{listing.root}: no image in split train ({dict(words)}); expected train and test")
    if not 0 < test_fraction < 1:
        raise UsageError(f"the share of test images must lie between 0 and 1, not {test_fraction:g}")
    split = make_split(
        image_id, labels, patient, fractions={"train": 1 - test_fraction, "test": test_fraction}, seed=seed
    )
    disjoint = ", no patient in both" if patient is not None else ""
    shares = f"{1 - test_fraction:.0%} train and {test_fraction:.0%} test"
    return split, (
        f"no {'test ' if words else ''}split given: made one, {shares}, stratified by label{disjoint}, seed {seed}"
    )


def _draw_val(
    split: NDArray[np.str_],
    image_id: NDArray[np.str_],
    labels: NDArray,
    patient: NDArray[np.str_] | None,
    seed: int,
    fraction: float,
) -> str:
    """Turn a share of the train images into val, in place; returns the note that says so."""
    if not 0 < fraction < 1:
        raise UsageError(f"the share of val images must lie between 0 and 1, not {fraction:g}")
    if (split == "val").any():
        raise UsageError(f"--val {fraction:g}: there are {int((split == 'val').sum()):,} val images already")
    train = np.flatnonzero(split == "train")
    split[train] = make_split(
        image_id[train],
        labels[train],
        None if patient is None else patient[train],
        fractions={"train": 1 - fraction, "val": fraction},
        seed=seed,
    )
    return (
        f"{int((split == 'val').sum()):,} of {len(train):,} train images became val, stratified by label, seed {seed}"
    )


def _with_warnings(target: Target) -> Target:
    """Add notes on what will hinder an evaluation: labels that a split lacks, patients in both train and test."""
    notes = list(target.notes)
    for split in ("train", "test"):
        rows = target.rows(split)
        if not len(rows):
            raise DataError(f"target '{target.name}': no image in split {split}; expected train and test images")
        if target.multi_label:
            present = set(np.flatnonzero(np.any(target.labels[rows] > 0.5, axis=0)).tolist())
        else:
            present = set(np.unique(target.labels[rows]).tolist())
        absent = [name for j, name in enumerate(target.class_names) if j not in present]
        if absent:
            more = ", …" if len(absent) > 5 else ""
            notes.append(f"{len(absent)} labels without an image in {split}: {', '.join(absent[:5])}{more}")
    if target.patient is not None:
        both = np.intersect1d(target.patient[target.split == "train"], target.patient[target.split == "test"])
        if len(both):
            notes.append(
                f"{len(both):,} patients are in train and in test; `fastxfer targets check` lists their images"
            )
    return replace(target, notes=tuple(notes))
