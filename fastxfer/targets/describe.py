"""What a target holds, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.targets.table import SPLITS, Target


def count_labels(target: Target, rows: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    """label -> {"positive", "negative", "unknown"}: numbers of images among `rows`."""
    if target.multi_label:
        values = target.labels[rows]
        positive = np.sum(values > 0.5, axis=0)
        unknown = np.sum(np.isnan(values), axis=0)
    else:
        positive = np.bincount(target.labels[rows].astype(np.int64), minlength=len(target.class_names))
        unknown = np.zeros_like(positive)
    return {
        name: {"positive": int(p), "negative": len(rows) - int(p) - int(u), "unknown": int(u)}
        for name, p, u in zip(target.class_names, positive, unknown, strict=True)
    }


def describe_target(target: Target) -> dict[str, Any]:
    """Numbers about a target, ready for JSON. Nobody is named: `patients`, `studies` are how many there are (or None).

    `views` and `sources` are numbers of images (or None). `left_out` lists what was left out: row numbers, or paths.
    """

    def tally(column: NDArray[np.str_] | None) -> dict[str, int] | None:
        if column is None:
            return None
        return {str(value): int(count) for value, count in zip(*np.unique(column, return_counts=True), strict=True)}

    rows = {split: target.rows(split) for split in SPLITS}
    return {
        "name": target.name,
        "root": None if target.root is None else str(target.root),
        "n_images": target.n_images,
        "multi_label": target.multi_label,
        "n_classes": len(target.class_names),
        "classes": list(target.class_names),
        "splits": {split: len(r) for split, r in rows.items() if len(r)},
        "labels": {split: count_labels(target, r) for split, r in rows.items() if len(r)},
        "patients": None if target.patient is None else len(np.unique(target.patient)),
        "studies": None if target.study is None else len(np.unique(target.study)),
        "views": tally(target.view),
        "sources": tally(target.source),
        "fingerprint": target.fingerprint,
        "notes": list(target.notes),
        "n_left_out": sum(map(len, target.left_out)),
        "left_out": [{**gone.as_dict(), "count": len(gone)} for gone in target.left_out],
    }
