"""Which rows of a chest X-ray table are wanted: views, ages, one image a study or patient, one label an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.table import Target

# As torchxrayvision spells them; "L" is CheXpert's and PadChest's lateral, "LATERAL" and "LL" are MIMIC-CXR's.
VIEWS = ("PA", "AP", "AP Supine", "L", "COSTAL", "LL", "RL", "LATERAL")


def choose_rows(
    name: str,
    n_rows: int,
    *,
    table: Path,
    views: Sequence[str] | None = None,
    ages: tuple[float, float] | None = None,
    first_of: str | None = None,
    view: ArrayLike | None = None,
    age: ArrayLike | None = None,
    study: ArrayLike | None = None,
    patient: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Row numbers that pass, ascending, and notes that count what did not.

    name:     of the target, for messages; table: where its rows come from, for messages
    views:    of `VIEWS`; None = all
    ages:     youngest and oldest in years, both included; rows of unknown age don't pass. None = all
    first_of: "study" or "patient": the first row of each, among those that pass. None = all
    view, age, study, patient: (n_rows,) columns of the table, None where it has no such column
    Splits are drawn before: a filter never moves an image from one split to another.
    """
    keep = np.arange(n_rows)
    notes: list[str] = []

    def pass_if(passes: NDArray[np.bool_], what: str) -> None:
        nonlocal keep
        left_out = int((~passes).sum())
        notes.append(f"{what}: left out {left_out:,} images")
        keep = keep[passes]

    if views is not None:
        if not views or set(views) - set(VIEWS):
            listed = ", ".join(views) or "(none)"
            raise UsageError(f"target '{name}': views {listed}; expected some of {', '.join(VIEWS)}")
        known = _known(table, "views", view)
        pass_if(np.isin(known[keep], list(views)), f"views {', '.join(views)}")
    if ages is not None:
        low, high = ages
        if not 0 <= low <= high:
            raise UsageError(f"target '{name}': ages {low:g} to {high:g}; expected the youngest, then the oldest")
        years = _known(table, "ages", age)[keep].astype(np.float64)
        pass_if(
            (years >= low) & (years <= high),
            f"ages {low:g} to {high:g} ({int(np.isnan(years).sum()):,} images of unknown age)",
        )
    if first_of is not None:
        columns = {"study": study, "patient": patient}
        if first_of not in columns:
            raise UsageError(f"target '{name}': first of each '{first_of}'; expected study or patient")
        first = np.unique(_known(table, first_of, columns[first_of])[keep], return_index=True)[1]
        pass_if(np.isin(np.arange(len(keep)), first), f"the first image of each {first_of}")
    if not len(keep):
        raise DataError(f"{table}: no image is left ({'; '.join(notes)}) for target '{name}'")
    return keep, notes


def _known(table: Path, what: str, column: ArrayLike | None) -> NDArray:
    if column is None:
        raise DataError(f"{table}: {what} were asked for, but this table has no such column")
    return np.asarray(column)


def years_of(age: str) -> float:
    """Years from "58", or "58.0" where a program took the column for fractions; NaN where there is no number."""
    try:
        return float(age) if float(age) >= 0 else np.nan
    except ValueError:
        return np.nan


def keep_exactly_one(target: Target) -> Target:
    """The images with exactly one positive label, as a single-label target with the same classes.

    Unknown counts as negative: the -Cl rule of Cherti & Jitsev (2021). A class may be left without images.
    """
    label = target.exactly_one()
    rows = np.flatnonzero(label >= 0)
    note = f"exactly one positive label: left out {target.n_images - len(rows):,} images with none or several"
    kept = target.take(rows)
    empty = [
        c
        for c, count in zip(kept.class_names, np.bincount(label[rows], minlength=len(kept.class_names)), strict=True)
        if not count
    ]
    notes = (*target.notes, note, *([f"classes without an image: {', '.join(empty)}"] if empty else []))
    return replace(kept, labels=label[rows], notes=notes)
