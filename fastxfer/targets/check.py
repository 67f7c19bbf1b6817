"""What is wrong with a target's images: unreadable files, copies, patients on both sides of a split, empty classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.progress import progress
from fastxfer.targets.copies import Member, find_contained, find_copies, image_of
from fastxfer.targets.describe import count_labels
from fastxfer.targets.leaks import in_both, test_leaks
from fastxfer.targets.looks import folder_of, look_at
from fastxfer.targets.shortcuts import find_shortcuts
from fastxfer.targets.table import SPLITS, Target


def check_target(target: Target, *, workers: int | None = None) -> dict[str, Any]:
    """`check_targets` for one target."""
    return check_targets([target], workers=workers)


def check_targets(
    targets: Sequence[Target],
    *,
    source: Target | None = None,
    workers: int | None = None,
    labels_only: bool = False,
) -> dict[str, Any]:
    """Decode every image and report what would spoil an evaluation. Copies are looked for between targets, too.

    source:      a data set that a backbone was trained on; its images are looked at, too, and found among the targets'
    labels_only: look at the tables alone; what only pixels tell is then absent from the report

    Returns, ready for JSON (an image is {"target", "image", "split", "labels"}; no patient is named):

    undecodable:          images that cannot be decoded, each with its "error"
    duplicate_groups:     [{"same": "file" | "pixels", "across_splits", "across_targets", "labels_differ",
                          "images": […]}], images that are equal as files, or once decoded
    duplicate_images:     number of images in these groups
    near_duplicates:      [{"distance", "across_splits", "across_targets", "labels_differ", "images": [one, other]}],
                          pairs that look alike (see `likeness`) without being equal, nearest first, `MOST_PAIRS` at most
    n_near_duplicates:    number of such pairs, listed or not
    patients_in_both:     number of patients with images in more than one split of a target
    patients_in_both_images: those images, per target and pair of splits, and their share of each
    studies_in_both, studies_in_both_images: the same for studies
    leaks:                per target, the test images that training has seen, see `test_leaks`
    source_images:        with `source`: the images of the targets that it contains, equal (distance 0) or nearly, each with
                          its nearest "source_image", and their number, n_source_images
    shortcut_auc:         per target, how well file format, size, aspect, brightness and border alone predict the labels,
                          see `find_shortcuts`
    empty_classes:        labels without an image in a split that has images
    targets:              per target: "name", "n_images", "splits", "labels" (counts per split), "notes"
    """
    pixels: dict[str, Any] = {}
    copied: Sequence[NDArray[np.bool_] | None] = [None] * len(targets)
    if not labels_only:
        pixels, copied = _look(targets, source, workers)
    patients, studies = ([in_both(target, what) for target in targets] for what in ("patient", "study"))
    return {
        **pixels,
        "patients_in_both": sum(count for count, _ in patients),
        "patients_in_both_images": [entry for _, entries in patients for entry in entries],
        "studies_in_both": sum(count for count, _ in studies),
        "studies_in_both_images": [entry for _, entries in studies for entry in entries],
        "leaks": [test_leaks(target, copies) for target, copies in zip(targets, copied, strict=True)],
        "empty_classes": [entry for target in targets for entry in _empty_classes(target)],
        "targets": [
            {
                "name": target.name,
                "n_images": target.n_images,
                "splits": {s: len(target.rows(s)) for s in SPLITS if len(target.rows(s))},
                "labels": {s: count_labels(target, target.rows(s)) for s in SPLITS if len(target.rows(s))},
                "notes": list(target.notes),
            }
            for target in targets
        ],
    }


def _look(
    targets: Sequence[Target], source: Target | None, workers: int | None
) -> tuple[dict[str, Any], list[NDArray[np.bool_]]]:
    """What the images themselves tell: entries of the report, and, per target, which test images are copies."""
    everything = [*targets, *([source] if source else [])]
    for target in everything:
        folder_of(target)  # before anything is decoded
    n_images = sum(target.n_images for target in everything)
    with progress(f"check {', '.join(target.name for target in everything)}", n_images, "images") as advance:
        seen = [look_at(target, advance, workers) for target in targets]
        contained = find_contained(targets, seen, source, look_at(source, advance, workers)) if source else []
    undecodable = [
        {**image_of(Member(target, row)), "error": error}
        for looks, target in zip(seen, targets, strict=True)
        for row, error in enumerate(looks.error)
        if error
    ]
    copies, copied = find_copies(targets, seen)
    report = {
        "undecodable": undecodable,
        "n_undecodable": len(undecodable),
        **copies,
        **({"source": source.name, "n_source_images": len(contained), "source_images": contained} if source else {}),
        "shortcut_auc": [find_shortcuts(target, looks) for target, looks in zip(targets, seen, strict=True)],
    }
    return report, copied


def _empty_classes(target: Target) -> list[dict[str, Any]]:
    entries = []
    for split in SPLITS:
        rows = target.rows(split)
        if len(rows):
            empty = [name for name, counts in count_labels(target, rows).items() if not counts["positive"]]
            if empty:
                entries.append({"target": target.name, "split": split, "labels": empty})
    return entries
