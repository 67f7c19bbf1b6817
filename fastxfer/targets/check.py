"""What is wrong with a target's images: unreadable files, copies, patients on both sides of a split, empty classes."""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastxfer.errors import DataError
from fastxfer.images import decode_image
from fastxfer.progress import progress
from fastxfer.targets.describe import count_labels
from fastxfer.targets.table import SPLITS, Target

_WINDOW = 1024  # images in flight at once


@dataclass(frozen=True)
class _Digest:
    file: bytes | None  # of the content; None: could not be read
    pixels: bytes | None  # of size and RGB values; None: could not be decoded
    error: str


def check_target(target: Target, *, workers: int | None = None) -> dict[str, Any]:
    """`check_targets` for one target."""
    return check_targets([target], workers=workers)


def check_targets(targets: Sequence[Target], *, workers: int | None = None) -> dict[str, Any]:
    """Decode every image and report what would spoil an evaluation. Copies are looked for between targets, too.

    Returns, ready for JSON (an image is {"target", "image", "split", "labels"}; no patient is named):

    undecodable:          images that cannot be decoded, each with its "error"
    duplicate_groups:     [{"same": "file" | "pixels", "across_splits", "across_targets", "labels_differ",
                          "images": […]}], images that are equal as files, or once decoded
    duplicate_images:     number of images in these groups
    patients_in_both:     number of patients with images in more than one split of a target
    patients_in_both_images: those images, per target and pair of splits
    empty_classes:        labels without an image in a split that has images
    targets:              per target: "name", "n_images", "splits", "labels" (counts per split), "notes"
    """
    for target in targets:
        if target.root is None:
            raise DataError(f"target '{target.name}': its images are not at hand (only the table is), nothing to check")
    undecodable: list[dict[str, Any]] = []
    copies: dict[bytes, list[_Member]] = defaultdict(list)
    total = sum(target.n_images for target in targets)
    with progress(f"check {', '.join(t.name for t in targets)}", total, "images") as advance:
        for target in targets:
            for row, digest in enumerate(_digests(target, workers or _cores())):
                if digest.error:
                    undecodable.append({**_image(target, row), "error": digest.error})
                key = digest.pixels or digest.file  # undecodable files can still be copies of each other
                if key is not None:
                    copies[key].append(_Member(target, row, digest.file))
                advance(1)
    groups = [_group(members) for members in copies.values() if len(members) > 1]
    shared = [entry for target in targets for entry in _patients_in_both(target)]
    return {
        "undecodable": undecodable,
        "n_undecodable": len(undecodable),
        "duplicate_images": sum(len(group["images"]) for group in groups),
        "duplicate_groups": groups,
        "patients_in_both": sum(_count_shared_patients(target) for target in targets),
        "patients_in_both_images": shared,
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


@dataclass(frozen=True)
class _Member:
    target: Target
    row: int
    file: bytes | None


def _group(members: list[_Member]) -> dict[str, Any]:
    first = members[0]
    return {
        "same": "file" if all(m.file == first.file for m in members) else "pixels",
        "across_splits": len({(m.target.name, m.target.split[m.row]) for m in members})
        > len({m.target.name for m in members}),
        "across_targets": len({m.target.name for m in members}) > 1,
        "labels_differ": any(
            # Two targets name their labels as they please; only inside one is a difference a contradiction.
            a.target is b.target and _labels(a.target, a.row) != _labels(b.target, b.row)
            for a, b in pairwise(members)
        ),
        "images": [_image(m.target, m.row) for m in members],
    }


def _image(target: Target, row: int) -> dict[str, Any]:
    return {
        "target": target.name,
        "image": str(target.image_id[row]),
        "split": str(target.split[row]),
        "labels": _labels(target, row),
    }


def _labels(target: Target, row: int) -> list[str]:
    if not target.multi_label:
        return [target.class_names[target.labels[row]]]
    return [name for name, value in zip(target.class_names, target.labels[row], strict=True) if value > 0.5]


def _patients_in_both(target: Target) -> list[dict[str, Any]]:
    """Per pair of splits with common patients: how many, and their images on either side."""
    if target.patient is None:
        return []
    entries = []
    for one, other in combinations(SPLITS, 2):
        common = np.intersect1d(target.patient[target.rows(one)], target.patient[target.rows(other)])
        if len(common):
            concerned = np.isin(target.patient, common)
            entries.append(
                {
                    "target": target.name,
                    "splits": [one, other],
                    "patients": len(common),
                    "images": {s: target.image_id[concerned & (target.split == s)].tolist() for s in (one, other)},
                }
            )
    return entries


def _count_shared_patients(target: Target) -> int:
    if target.patient is None:
        return 0
    pairs = np.unique(np.stack([target.patient, target.split]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def _empty_classes(target: Target) -> list[dict[str, Any]]:
    entries = []
    for split in SPLITS:
        rows = target.rows(split)
        if len(rows):
            empty = [name for name, counts in count_labels(target, rows).items() if not counts["positive"]]
            if empty:
                entries.append({"target": target.name, "split": split, "labels": empty})
    return entries


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _digests(target: Target, workers: int) -> Iterator[_Digest]:
    root = target.root
    assert root is not None
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, target.n_images, _WINDOW):
            yield from pool.map(lambda image_id: _digest(root / image_id), target.image_id[start : start + _WINDOW])


def _digest(path: Path) -> _Digest:
    try:
        content = path.read_bytes()
    except OSError as error:
        return _Digest(None, None, f"{path}: cannot be read: {error.strerror or error}")
    file = hashlib.blake2b(content, digest_size=16).digest()
    try:
        image = decode_image(io.BytesIO(content), str(path))
    except DataError as error:
        return _Digest(file, None, str(error))
    pixels = hashlib.blake2b(np.asarray(image).tobytes(), digest_size=16, person=b"%dx%d" % image.size).digest()
    return _Digest(file, pixels, "")
