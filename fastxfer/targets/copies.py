"""Images that are the same: as files, as pixels, nearly, in a backbone's source, or as embeddings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.targets.leaks import seen_in_training
from fastxfer.targets.likeness import Found, alike, nearest
from fastxfer.targets.looks import Looks
from fastxfer.targets.table import SPLITS, Target

MOST_PAIRS = 100_000
"""Near copies that are listed, the nearest first; more are counted only."""
NEIGHBOUR = 0.95
"""Least cosine of two embeddings that are reported as neighbours."""


def find_copies(targets: Sequence[Target], seen: Sequence[Looks]) -> tuple[dict[str, Any], list[NDArray[np.bool_]]]:
    """Equal and nearly equal images of some targets: the entries of `check_targets`' report that are about them; and, per
    target, (n_images,) which images of test are copies of one of its train or val."""
    members = [Member(target, row) for target in targets for row in range(target.n_images)]
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
    copied = np.concatenate([seen_in_training(target, codes[part]) for target, part in _parts(targets)])
    n_near, near = nearest(_near(seen, codes, targets, copied), MOST_PAIRS)
    report = {
        "duplicate_images": sum(len(group["images"]) for group in groups),
        "duplicate_groups": groups,
        "n_near_duplicates": n_near,
        "near_duplicates": [
            {"distance": round(max(0.0, 1 - float(product)), 4), **_relation([members[i], members[j]])}
            for i, j, product in zip(*near, strict=True)
        ],
    }
    return report, [copied[part] for _, part in _parts(targets)]


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


def find_contained(
    targets: Sequence[Target], seen: Sequence[Looks], source: Target, looks: Looks
) -> list[dict[str, Any]]:
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
                found.append({**image_of(Member(target, row)), "source_image": name, "distance": distance})
    return found


@dataclass(frozen=True)
class Member:
    """One image of one target."""

    target: Target
    row: int


def _group(members: list[Member], files: set[bytes | None]) -> dict[str, Any]:
    return {"same": "file" if len(files) == 1 else "pixels", **_relation(members)}


def _relation(members: list[Member]) -> dict[str, Any]:
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
        "images": [image_of(m) for m in members],
    }


def image_of(member: Member) -> dict[str, Any]:
    """An image, ready for JSON."""
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
        {"cosine": round(float(cosine), 4), **_relation([Member(target, i), Member(target, j)])}
        for i, j, cosine in zip(*near, strict=True)
    ]
    return {
        "target": target.name,
        "threshold": threshold,
        "n_pairs": n_pairs,
        "pairs": pairs,
        "test_images": int(test.sum()),
    }
