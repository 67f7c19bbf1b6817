"""What a folder or a table says about its images, and how that becomes a `Target`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table
from fastxfer.targets.files import Found, locate_images, walk_images
from fastxfer.targets.split import make_split
from fastxfer.targets.table import Target

NO_FINDING = "No Finding"
SEPARATOR = "|"
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
# What programs write where a value is missing. As a class name it would be a mistake nearly always.
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a"})


@dataclass
class Listing:
    """Images as listed, before labels are numbered and a split is drawn; all columns as long as `image_id`.

    where: what messages call each image ("labels.csv, row 7"). patient: "" where an image's patient is unknown.
    """

    root: Path
    image_id: list[str]
    labels: list[str]
    split: list[str] | None
    patient: list[str] | None
    where: list[str]
    notes: list[str] = field(default_factory=list)


def read_folder(root: Path) -> Listing:
    """Read an ImageFolder: ``[train|val|test/]class/**/image``.

    Folders called train (training), val (valid, validation, dev) or test (testing) directly below `root` are the
    splits if train is among them and holds class folders. What is left out (images outside of class folders,
    files that are no images) is counted in the notes.
    """
    found = walk_images(root)
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

    listing = Listing(root, [], [], [] if has_splits else None, None, [])
    strays: list[str] = []
    for path in found.images:
        parts = path.split("/")
        if len(parts) < depth + 2 or (has_splits and parts[0] not in splits):
            strays.append(path)
            continue
        listing.image_id.append(path)
        listing.labels.append(parts[depth])
        listing.where.append(str(root / path))
        if listing.split is not None:
            listing.split.append(splits[parts[0]])
    if not listing.image_id:
        raise DataError(
            f"{root}: {len(strays):,} images, but none in a class folder ({', '.join(strays[:3])}, …); expected one "
            "folder a class, or a labels.csv with path,label[,split][,patient]"
        )
    if strays:
        listing.notes.append(
            f"left out {len(strays):,} images outside of {'split and ' if has_splits else ''}class folders: "
            f"{', '.join(strays[:3])}{', …' if len(strays) > 3 else ''}"
        )
    if found.others:
        listing.notes.append(f"left out files that are no images by their name: {_count_others(found)}")
    filled = {os.path.dirname(path) for path in listing.image_id}
    filled |= {"/".join(path.split("/")[: depth + 1]) for path in listing.image_id}
    empty = [
        f for f in found.folders if f.count("/") == depth and f not in filled and f.split("/")[0] in (splits or top)
    ]
    if empty:
        listing.notes.append(f"class folders without an image: {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}")
    return listing


def _count_others(found: Found) -> str:
    return ", ".join(f"{count:,} {ending}" for ending, count in found.others.most_common(5))


def read_table(table: Table, root: Path, *, label_column: str = "label", trusted: bool = False) -> Listing:
    """Read a table with ``path,label[,split][,patient]``; paths are relative to `root`, or absolute and inside it.

    trusted: the table was written by fastxfer, after these checks: files aren't looked for, and a class folder may
    well be called "none".

    Raises `DataError` naming file and row: missing columns, empty cells, a path listed twice or leaving `root`,
    missing files, unknown split words.
    """
    where = [table.where(i) for i in range(len(table))]
    paths, labels = table.column("path"), table.column(label_column)
    for i, path in enumerate(paths):
        if not path:
            raise DataError(f"{where[i]}: the path is empty")
    for i, label in enumerate(labels):
        if label.lower() in _MISSING and not trusted:
            what = f"{label!r}, a missing value" if label else "empty"
            raise DataError(
                f"{where[i]}: the label in column '{label_column}' is {what}; give it a label "
                f"('{NO_FINDING}' where a multi-label image has none) or remove the row"
            )
    if not trusted:
        _refuse_two_spellings(labels, where)
    split = None
    if "split" in table.columns:
        split = []
        for i, word in enumerate(table.column("split")):
            if word.lower() not in SPLIT_WORDS:
                raise DataError(f"{where[i]}: split {table.shown(word)} is not one of train, val, test")
            split.append(SPLIT_WORDS[word.lower()])
    ids = paths if trusted else locate_images(root, paths, where)
    first: dict[str, int] = {}
    for i, image_id in enumerate(ids):
        if image_id in first:
            raise DataError(
                f"{where[i]}: {paths[i]!r} is listed twice, first in row {table.row_numbers[first[image_id]]}"
            )
        first[image_id] = i
    patient = table.column("patient") if "patient" in table.columns else None
    if patient is not None and not trusted:
        patient = ["" if whom.lower() in _MISSING else whom for whom in patient]
    return Listing(root, ids, labels, split, patient, where)


def _refuse_two_spellings(labels: Sequence[str], where: Sequence[str]) -> None:
    """Raise `DataError` where a table has both "1" and "1.0": one class, of which programs would make two."""
    first = {label: i for i, label in reversed(list(enumerate(labels)))}
    for label, i in first.items():
        whole = label.rstrip("0").removesuffix(".")
        if "." in label and whole in first and whole.lstrip("-").isdecimal():
            raise DataError(f"{where[i]}: label {label!r}, but '{whole}' in {where[first[whole]]}; write both alike")


def build_target(
    listing: Listing,
    name: str,
    *,
    multi_label: bool | None = None,
    class_names: Sequence[str] | None = None,
    split_seed: int = 0,
    test_fraction: float = 0.2,
) -> Target:
    """Number the labels and complete the splits.

    multi_label: None = yes if any label holds a "|" between names. class_names: in this order; None = all that
    occur, sorted. Without splits, or with nothing but train, `test_fraction` of the images become test: stratified,
    patient-disjoint, by `split_seed`. Without test but with val, val serves as test. Both are said in the notes.
    """
    notes = list(listing.notes)
    if multi_label is None:
        multi_label = any(SEPARATOR in label for label in listing.labels)
    labels: np.ndarray
    if multi_label:
        sets = [_label_set(label, listing.where[i]) for i, label in enumerate(listing.labels)]
        names = tuple(class_names or sorted(set().union(*sets)))
        column = {label: j for j, label in enumerate(names)}
        labels = np.zeros((len(sets), len(names)), dtype=np.float32)
        for i, present in enumerate(sets):
            labels[i, [column[label] for label in present]] = 1
        needed = 1
    else:
        names = tuple(class_names or sorted(set(listing.labels)))
        column = {label: j for j, label in enumerate(names)}
        labels = np.array([column[label] for label in listing.labels], dtype=np.int64)
        needed = 2
    if len(names) < needed:
        found = f"only one class, {names[0]!r}" if names else f"no label but '{NO_FINDING}'"
        raise DataError(f"target '{name}': {found}, in {listing.root}; expected at least {needed}")

    image_id = np.array(listing.image_id, dtype=np.str_)
    patient = None
    if listing.patient is not None:
        unknown = sum(not p for p in listing.patient)
        # An image whose patient nobody knows is a patient of its own; the path makes the name unique.
        patient = np.array(
            [p or f"unknown:{i}" for p, i in zip(listing.patient, listing.image_id, strict=True)],
            dtype=np.str_,
        )
        if unknown:
            notes.append(f"{unknown:,} images without a patient: each counts as a patient of its own")
    split, split_note = _complete_split(listing, image_id, labels, patient, split_seed, test_fraction)
    if split_note:
        notes.append(split_note)
    target = Target(name, image_id, names, labels, split, patient, listing.root.absolute(), tuple(notes))
    return _with_warnings(target)


def _label_set(cell: str, where: str) -> set[str]:
    parts = [part.strip() for part in cell.split(SEPARATOR)]
    if any(part.lower() in _MISSING for part in parts):
        raise DataError(f"{where}: {cell!r} has an empty label between the '{SEPARATOR}'")
    present = set(parts)
    if NO_FINDING in present and len(present) > 1:
        raise DataError(f"{where}: {cell!r} says '{NO_FINDING}' and names findings")
    return present - {NO_FINDING}


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
