"""What is on both sides of a split: patients, studies, and test images that training has seen."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.targets.table import SPLITS, Target


def whose(target: Target, what: str) -> NDArray[np.int64] | None:
    """(n_images,) number of the "patient" or "study" an image is of, −1 where it is not said; None without that column.

    A study is one patient's: equal study names of two patients ("study1") are two studies.
    """
    columns = [target.patient] if what == "patient" else [target.study, target.patient]
    if columns[0] is None:
        return None
    known = [column for column in columns if column is not None]
    numbers = np.unique(
        np.stack([np.unique(column, return_inverse=True)[1] for column in known]), axis=1, return_inverse=True
    )[1].reshape(-1)
    said = np.logical_and.reduce([column != "" for column in known])
    return np.where(said, numbers, -1).astype(np.int64)


def in_both(target: Target, what: str) -> tuple[int, list[dict[str, Any]]]:
    """How many patients or studies have images in more than one split; and, per pair of splits with common ones, their
    number ("patients" or "studies"), images, and share of each split's images ("share")."""
    numbers = whose(target, what)
    if numbers is None:
        return 0, []
    word = {"patient": "patients", "study": "studies"}[what]
    entries, everybody = [], np.empty(0, np.int64)
    for one, other in combinations(SPLITS, 2):
        rows = {split: target.rows(split) for split in (one, other)}
        common = np.intersect1d(numbers[rows[one]], numbers[rows[other]])
        common = common[common >= 0]
        if len(common):
            everybody = np.union1d(everybody, common)
            concerned = {split: r[np.isin(numbers[r], common)] for split, r in rows.items()}
            entries.append(
                {
                    "target": target.name,
                    "splits": [one, other],
                    word: len(common),
                    "images": {split: target.image_id[r].tolist() for split, r in concerned.items()},
                    "share": {split: len(r) / len(rows[split]) for split, r in concerned.items()},
                }
            )
    return len(everybody), entries


def seen_in_training(target: Target, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n_images,) whether an image is of test, and one of train or val has the same number; −1 is nobody's."""
    test = target.split == "test"
    return test & (numbers >= 0) & np.isin(numbers, numbers[~test])


def test_leaks(target: Target, copies: NDArray[np.bool_] | None) -> dict[str, Any]:
    """Test images that training has seen, ready for JSON: each with "images" and "share" of the test split.

    copy:           equal to, or a near duplicate of, an image of train or val (`copies`, (n_images,), says which); None where
                    nobody looked
    patient, study: of a patient (study) with images in train or val; None where nobody knows
    """
    n_test = len(target.rows("test"))
    found = {} if copies is None else {"copy": copies}
    for what in ("patient", "study"):
        numbers = whose(target, what)
        if numbers is not None:
            found[what] = seen_in_training(target, numbers)
    listed = {
        what: {"images": target.image_id[mask].tolist(), "share": float(mask.sum() / n_test) if n_test else 0.0}
        for what, mask in found.items()
    }
    return {"target": target.name, "test_images": n_test, "copy": None, "patient": None, "study": None, **listed}
