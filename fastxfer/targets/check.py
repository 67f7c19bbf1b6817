"""What is wrong with a target's images: unreadable files, copies, patients on both sides of a split, empty classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.progress import progress
from fastxfer.targets.describe import count_labels
from fastxfer.targets.leaks import in_both, seen_in_training, test_leaks
from fastxfer.targets.likeness import Found, alike, nearest
from fastxfer.targets.looks import Looks, folder_of, look_at
from fastxfer.targets.shortcuts import find_shortcuts
from fastxfer.targets.table import SPLITS, Target

MOST_PAIRS = 100_000
"""Near copies that are listed, the nearest first; more are counted only."""
NEIGHBOUR = 0.95
"""Least cosine of two embeddings that are reported as neighbours."""


def check_target(target: Target, *, workers: int | None = None) -> dict[str, Any]:
    """`check_targets` for one target."""
    return check_targets([target], workers=workers)


def check_targets(
    targets: Sequence[Target], *, source: Target | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Decode every image and report what would spoil an evaluation. Copies are looked for between targets, too.

    source: a data set that a backbone was trained on; its images are looked at, too, and found among the targets'

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
    everything = [*targets, *([source] if source else [])]
    for target in everything:
        folder_of(target)  # before anything is decoded
    n_images = sum(target.n_images for target in everything)
    with progress(f"check {', '.join(target.name for target in everything)}", n_images, "images") as advance:
        seen = [look_at(target, advance, workers) for target in targets]
        contained = _contained(targets, seen, source, look_at(source, advance, workers)) if source else []
    members = [_Member(target, row) for target in targets for row in range(target.n_images)]
    keys = [looks.key(row) for looks, target in zip(seen, targets, strict=True) for row in range(target.n_images)]
    copies: dict[bytes, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if key is not None:
            copies[key].append(number)
    same = [numbers for numbers in copies.values() if len(numbers) > 1]
    files = [file for looks in seen for file in looks.file]
    groups = [_group([members[n] for n in numbers], {files[n] for n in numbers}) for numbers in same]
    codes = np.unique([key or b"" for key in keys], return_inverse=True)[1].astype(np.int64)
    codes[[key is None for key in keys]] = -1
    copied = np.concatenate([seen_in_training(t, codes[s]) for t, s in _parts(targets)])
    n_near, near = nearest(_near(seen, codes, targets, copied), MOST_PAIRS)
    patients, studies = ([in_both(target, what) for target in targets] for what in ("patient", "study"))
    undecodable = [
        {**_image(_Member(target, row)), "error": error}
        for looks, target in zip(seen, targets, strict=True)
        for row, error in enumerate(looks.error)
        if error
    ]
    return {
        "undecodable": undecodable,
        "n_undecodable": len(undecodable),
        "duplicate_images": sum(len(group["images"]) for group in groups),
        "duplicate_groups": groups,
        "n_near_duplicates": n_near,
        "near_duplicates": [
            {"distance": round(max(0.0, 1 - float(product)), 4), **_relation([members[i], members[j]])}
            for i, j, product in zip(*near, strict=True)
        ],
        "patients_in_both": sum(count for count, _ in patients),
        "patients_in_both_images": [entry for _, entries in patients for entry in entries],
        "studies_in_both": sum(count for count, _ in studies),
        "studies_in_both_images": [entry for _, entries in studies for entry in entries],
        "leaks": [test_leaks(target, copied[part]) for target, part in _parts(targets)],
        **({"source": source.name, "n_source_images": len(contained), "source_images": contained} if source else {}),
        "shortcut_auc": [find_shortcuts(target, looks) for target, looks in zip(targets, seen, strict=True)],
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


def _parts(targets: Sequence[Target]) -> Iterator[tuple[Target, slice]]:
    """Each target with its part of a numbering through all of them."""
    start = 0
    for target in targets:
        yield target, slice(start, start + target.n_images)
        start += target.n_images


def _near(
    seen: Sequence[Looks], codes: NDArray[np.int64], targets: Sequence[Target], copied: NDArray[np.bool_]
) -> Iterator[Found]:
    """Pairs of images, numbered through all targets, that look alike and are not equal (have other `codes`).

    On the way, `copied` becomes true for test images that look like one of train or val of the same target.
    """
    owner = np.repeat(np.arange(len(targets)), [target.n_images for target in targets])
    test = np.concatenate([target.split == "test" for target in targets])
    for i, j, product in alike(np.concatenate([looks.likeness for looks in seen])):
        for a, b in ((i, j), (j, i)):
            copied[a[(owner[a] == owner[b]) & test[a] & ~test[b]]] = True
        differ = codes[i] != codes[j]
        yield i[differ], j[differ], product[differ]


def _contained(targets: Sequence[Target], seen: Sequence[Looks], source: Target, looks: Looks) -> list[dict[str, Any]]:
    """The images of the targets that a source contains, each with the nearest one there."""
    row_of = {key: row for row in range(source.n_images) if (key := looks.key(row)) is not None}
    found = []
    for target, own in zip(targets, seen, strict=True):
        near, product = np.full(target.n_images, -1), np.full(target.n_images, -1, np.float32)
        for i, j, products in alike(own.likeness, looks.likeness):
            order = np.argsort(products, kind="stable")  # of several writes to one row the last one stays: the nearest
            order = order[products[order] > product[i[order]]]
            near[i[order]], product[i[order]] = j[order], products[order]
        for row in range(target.n_images):
            equal = row_of.get(own.key(row) or b"", -1)
            if equal >= 0 or near[row] >= 0:
                distance = 0.0 if equal >= 0 else round(max(0.0, 1 - float(product[row])), 4)
                name = str(source.image_id[equal if equal >= 0 else near[row]])
                found.append({**_image(_Member(target, row)), "source_image": name, "distance": distance})
    return found


@dataclass(frozen=True)
class _Member:
    target: Target
    row: int


def _group(members: list[_Member], files: set[bytes | None]) -> dict[str, Any]:
    return {"same": "file" if len(files) == 1 else "pixels", **_relation(members)}


def _relation(members: list[_Member]) -> dict[str, Any]:
    """What images that are the same, or nearly, have to do with each other."""
    return {
        "across_splits": len({(m.target.name, m.target.split[m.row]) for m in members})
        > len({m.target.name for m in members}),
        "across_targets": len({m.target.name for m in members}) > 1,
        "labels_differ": any(
            # Two targets name their labels as they please; only inside one is a difference a contradiction.
            a.target is b.target and _labels(a.target, a.row) != _labels(b.target, b.row)
            for a, b in pairwise(members)
        ),
        "images": [_image(m) for m in members],
    }


def _image(member: _Member) -> dict[str, Any]:
    target, row = member.target, member.row
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


def _empty_classes(target: Target) -> list[dict[str, Any]]:
    entries = []
    for split in SPLITS:
        rows = target.rows(split)
        if len(rows):
            empty = [name for name, counts in count_labels(target, rows).items() if not counts["positive"]]
            if empty:
                entries.append({"target": target.name, "split": split, "labels": empty})
    return entries


def find_neighbours(
    target: Target, image_id: NDArray[np.str_], embeddings: NDArray[Any], threshold: float = NEIGHBOUR
) -> dict[str, Any]:
    """Images of different splits whose embeddings have a cosine of at least `threshold`, ready for JSON.

    image_id: (n,) which images of the target the rows of `embeddings` (n, dim) are

    Returns {"target", "threshold", "n_pairs", "pairs": [{"cosine", …, "images": [one, other]}], "test_images": how many
    test images have such a neighbour in train or val}; nearest first, `MOST_PAIRS` listed at most.
    """
    place = {name: row for row, name in enumerate(target.image_id.tolist())}
    rows = np.array([place.get(name, -1) for name in image_id.tolist()])
    x = embeddings[rows >= 0].astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    rows = rows[rows >= 0]
    test = np.zeros(target.n_images, bool)

    def across() -> Iterator[Found]:
        for one, other in combinations(SPLITS, 2):
            a, b = (np.flatnonzero(target.split[rows] == split) for split in (one, other))
            for i, j, cosine in alike(x[a], x[b], threshold):
                test[rows[b[j]]] |= other == "test"
                yield rows[a[i]], rows[b[j]], cosine

    n_pairs, near = nearest(across(), MOST_PAIRS)
    pairs = [
        {"cosine": round(float(cosine), 4), **_relation([_Member(target, i), _Member(target, j)])}
        for i, j, cosine in zip(*near, strict=True)
    ]
    return {
        "target": target.name,
        "threshold": threshold,
        "n_pairs": n_pairs,
        "pairs": pairs,
        "test_images": int(test.sum()),
    }
