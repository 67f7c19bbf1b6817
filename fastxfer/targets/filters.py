"""Which rows of a chest X-ray table are wanted: views, ages, one image a study or patient, one label an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.table import Target

# As torchxrayvision spells them; "L" is CheXpert's and PadChest's lateral, "LATERAL" and "LL" are MIMIC-CXR's.
VIEWS = ("PA", "AP", "AP Supine", "L", "COSTAL", "LL", "RL", "LATERAL")


def choose_rows(
    name: str,
    tables: Sequence[Table],
    *,
    views: Sequence[str] | None = None,
    ages: tuple[float, float] | None = None,
    first_of: str | None = None,
    view: ArrayLike | None = None,
    age: ArrayLike | None = None,
    study: ArrayLike | None = None,
    patient: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], list[str], list[LeftOut]]:
    """Row numbers that pass, ascending, notes that count what did not, and all of it.

    name:     of the target, for messages
    tables:   whose rows they are, one after the other
    views:    of `VIEWS`; None = all
    ages:     youngest and oldest in years, both included; rows of unknown age don't pass. None = all
    first_of: "study" or "patient": the first row of each, among those that pass. None = all
    view, age, study, patient: (n_rows,) columns of the tables, None where they have no such column
    Splits are drawn before: a filter never moves an image from one split to another.
    """
    keep = np.arange(sum(len(table) for table in tables))
    notes: list[str] = []
    gone: list[LeftOut] = []
    file = str(tables[0].file)

    def pass_if(passes: NDArray[np.bool_], what: str) -> None:
        nonlocal keep
        left_out = keep[~passes]
        notes.append(f"{what}: left out {len(left_out):,} images")
        start = 0
        for table in tables:
            of_table = left_out[(left_out >= start) & (left_out < start + len(table))] - start
            if len(of_table):
                gone.append(table.left_out(of_table.tolist(), f"images by the filter {what}"))
            start += len(table)
        keep = keep[passes]

    if views is not None:
        if not views or set(views) - set(VIEWS):
            listed = ", ".join(views) or "(none)"
            raise UsageError(f"target '{name}': views {listed}; expected some of {', '.join(VIEWS)}")
        known = _known(file, "views", view)
        pass_if(np.isin(known[keep], list(views)), f"views {', '.join(views)}")
    if ages is not None:
        low, high = ages
        if not 0 <= low <= high:
            raise UsageError(f"target '{name}': ages {low:g} to {high:g}; expected the youngest, then the oldest")
        years = _known(file, "ages", age)[keep].astype(np.float64)
        pass_if(
            (years >= low) & (years <= high),
            f"ages {low:g} to {high:g} ({int(np.isnan(years).sum()):,} images of unknown age)",
        )
    if first_of is not None:
        columns = {"study": study, "patient": patient}
        if first_of not in columns:
            raise UsageError(f"target '{name}': first of each '{first_of}'; expected study or patient")
        first = np.unique(_known(file, first_of, columns[first_of])[keep], return_index=True)[1]
        pass_if(np.isin(np.arange(len(keep)), first), f"the first image of each {first_of}")
    if not len(keep):
        raise DataError(f"{file}: no image is left ({'; '.join(notes)}) for target '{name}'")
    return keep, notes, gone


def _known(table: str, what: str, column: ArrayLike | None) -> NDArray:
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
    rows, others = np.flatnonzero(label >= 0), np.flatnonzero(label < 0)
    note = f"exactly one positive label: left out {len(others):,} images with none or several"
    kept = target.take(rows)
    empty = [
        c
        for c, count in zip(kept.class_names, np.bincount(label[rows], minlength=len(kept.class_names)), strict=True)
        if not count
    ]
    notes = (*target.notes, note, *([f"classes without an image: {', '.join(empty)}"] if empty else []))
    gone = LeftOut(
        "images without exactly one positive label", str(target.root or ""), paths=target.image_id[others].tolist()
    )
    return replace(kept, labels=label[rows], notes=notes, left_out=(*target.left_out, *([gone] if gone.paths else [])))
