"""Several multi-label targets as one: labels that all have, or all labels with unknown where a set hasn't got one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.table import Target

LABELS = ("intersection", "union")

# torchxrayvision's spelling of what chest X-ray sets write otherwise; compared in lower case, "_" and "-" as blanks.
_SPELLING = {
    "pleural effusion": "Effusion",
    "pleural thickening": "Pleural_Thickening",
    "airspace opacity": "Lung Opacity",
    "infiltrate": "Infiltration",
    "infiltrates": "Infiltration",
    "oedema": "Edema",
    "pulmonary edema": "Edema",
    "pulmonary fibrosis": "Fibrosis",
    "hiatal hernia": "Hernia",
    "lung nodule": "Nodule",
    "lung mass": "Mass",
    "support device": "Support Devices",
    "enlarged cardiomediastinum": "Enlarged Cardiomediastinum",
    "lung opacity": "Lung Opacity",
    "lung lesion": "Lung Lesion",
    "pleural other": "Pleural Other",
    "support devices": "Support Devices",
}


def spell_label(label: str) -> str:
    """A label's name as torchxrayvision spells it; others stay, with a capital if they are all lower case.

    >>> [spell_label(label) for label in ("Pleural Effusion", "lung_opacity", "edema", "Air Trapping")]
    ['Effusion', 'Lung Opacity', 'Edema', 'Air Trapping']
    """
    plain = label.strip().lower().replace("_", " ").replace("-", " ")
    return _SPELLING.get(plain, label.strip().capitalize() if label.islower() else label.strip())


def merge_targets(targets: Sequence[Target], name: str, *, labels: str = "intersection") -> Target:
    """One multi-label target of all images, its column `source` saying where each came from.

    labels: "intersection": labels that all have (Cherti & Jitsev 2021: 7 of four sets); "union": all labels, unknown
    (NaN) in sets without them (torchxrayvision). Names are compared by `spell_label`, and sorted.

    Splits stay as they are. Patients and studies of different sets are different ones. The root is the folder that
    holds all roots. Raises `UsageError` for single-label targets, labels that nobody shares, fewer than two targets.
    """
    if labels not in LABELS:
        raise UsageError(f"target '{name}': labels '{labels}' is not one of {', '.join(LABELS)}")
    names = [target.name for target in targets]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"target '{name}': expected at least two targets, each once, not {' '.join(names)}")
    columns = [_columns(target) for target in targets]
    sets = [set(column) for column in columns]
    chosen = sorted(set.intersection(*sets) if labels == "intersection" else set.union(*sets))
    if not chosen:
        raise UsageError(f"target '{name}': no label is in all of {', '.join(names)}; labels 'union' keeps them all")
    values = np.full((sum(target.n_images for target in targets), len(chosen)), np.nan, dtype=np.float32)
    start = 0
    for target, column in zip(targets, columns, strict=True):
        for j, label in enumerate(chosen):
            if label in column:
                values[start : start + target.n_images, j] = target.labels[:, column[label]]
        start += target.n_images
    unlabelled = int(np.isnan(values).all(axis=1).sum())
    notes = [f"{labels} of labels: {len(chosen)} of {len(set.union(*sets))}; {unlabelled:,} images have none known"]
    notes += [f"{target.name}: {note}" for target in targets for note in target.notes]
    pixels = targets[0].pixels
    if any(target.pixels != pixels for target in targets):
        raise UsageError(f"target '{name}': its members read their pixels in different ways (--grey16, --dicom)")
    root, image_id = _below_one_root(targets)
    return Target(
        name,
        image_id,
        tuple(chosen),
        values,
        np.concatenate([target.split for target in targets]),
        _of_each(targets, "patient"),
        root,
        tuple(notes),
        study=_of_each(targets, "study"),
        view=_views(targets),
        source=np.concatenate([_sources(target) for target in targets]),
        pixels=pixels,
        left_out=tuple(replace(gone, reason=f"{t.name}: {gone.reason}") for t in targets for gone in t.left_out),
    )


def _columns(target: Target) -> dict[str, int]:
    """Spelled label -> column."""
    if not target.multi_label:
        raise UsageError(f"target '{target.name}' has one label an image; only multi-label targets can be merged")
    columns: dict[str, int] = {}
    for j, label in enumerate(target.class_names):
        if columns.setdefault(spell_label(label), j) != j:
            other = target.class_names[columns[spell_label(label)]]
            raise DataError(f"target '{target.name}': labels '{other}' and '{label}' are both '{spell_label(label)}'")
    return columns


def _below_one_root(targets: Sequence[Target]) -> tuple[Path | None, NDArray[np.str_]]:
    roots = [target.root for target in targets]
    known = [root for root in roots if root is not None]
    if len(known) < len(roots):  # labels only: no image is looked for
        starts = [target.name for target in targets]
        root = None
    else:
        root = Path(os.path.commonpath(known))
        starts = [start.relative_to(root).as_posix() for start in known]
    ids = [i if start == "." else f"{start}/{i}" for t, start in zip(targets, starts, strict=True) for i in t.image_id]
    return root, np.array(ids)


def _of_each(targets: Sequence[Target], column: str) -> NDArray[np.str_] | None:
    """Patients or studies, those of a set without them one an image; None if no set has any."""
    if all(getattr(target, column) is None for target in targets):
        return None
    parts = []
    for target in targets:
        values = getattr(target, column)
        parts += [f"{target.name}:{value}" for value in (target.image_id if values is None else values)]
    return np.array(parts)


def _views(targets: Sequence[Target]) -> NDArray[np.str_] | None:
    if all(target.view is None for target in targets):
        return None
    return np.concatenate([np.full(t.n_images, "") if t.view is None else t.view for t in targets])


def _sources(target: Target) -> NDArray[np.str_]:
    if target.source is None:
        return np.full(target.n_images, target.name)
    return np.array([f"{target.name}:{source}" for source in target.source])
