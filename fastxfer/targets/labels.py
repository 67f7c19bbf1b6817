"""Labels as tables write them: a column of names ("cat", "Mass|Edema"), or a column a label with values from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table
from fastxfer.targets.leftout import LeftOut

NO_FINDING = "No Finding"
SEPARATOR = "|"
PREFIX = "label:"
"""Columns called so hold the values of a label; the register writes them, and `targets add` needs no option to know them."""
# What programs write where a value is missing. As a class name it would be a mistake nearly always.
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "#n/a"})
_WORDS = {"true": 1.0, "false": 0.0}


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.lower() in _MISSING


def label_columns(table: Table, wanted: str) -> list[str]:
    """The columns that hold one label each; none where the column `wanted` has the labels' names.

    wanted: a column, or several with commas between; "label" where nobody asked: then the columns with the prefix.
    """
    if wanted in table.columns:
        return []
    if "," in wanted:
        columns = [part.strip() for part in wanted.split(",")]
        twice = next((c for c in columns if columns.count(c) > 1), None)
        if twice is not None:
            raise UsageError(f"--label-column {wanted}: '{twice}' occurs twice")
        return columns
    return [column for column in table.columns if column.startswith(PREFIX)] if wanted == "label" else []


def read_names(table: Table, column: str, missing: str) -> tuple[Table, list[str], list[str], list[LeftOut]]:
    """The table without rows that were left out, the cells of a column of names, notes that count, and those rows.

    missing: what an image without a label is: "error", "drop", or "unknown", and then its cell is "".
    """
    cells = table.column(column)
    gone = [i for i, cell in enumerate(cells) if is_missing(cell)]
    if gone and missing == "error":
        what = f"{cells[gone[0]]!r}, a missing value" if cells[gone[0]] else "empty"
        raise DataError(
            f"{table.where(gone[0])}: the label in column '{column}' is {what}; give it a label "
            f"('{NO_FINDING}' where a multi-label image has none), remove the row, or say what it means with "
            "--missing-labels"
        )
    if gone and missing == "drop":
        kept, left_out = _without(table, gone)
        return kept, kept.column(column), [], [left_out]
    for i in gone:
        cells[i] = ""
    notes = [f"{len(gone):,} images without a label: all their labels are unknown"] if gone else []
    return table, cells, notes, []


def refuse_two_spellings(table: Table, labels: Sequence[str]) -> None:
    """Raise `DataError` where a table has both "1" and "1.0": one class, of which programs would make two."""
    first = {label: i for i, label in reversed(list(enumerate(labels)))}
    for label, i in first.items():
        whole = label.rstrip("0").removesuffix(".")
        if "." in label and whole in first and whole.lstrip("-").isdecimal():
            other = table.where(first[whole])
            raise DataError(f"{table.where(i)}: label {label!r}, but '{whole}' in {other}; write both alike")


def read_values(
    table: Table, columns: Sequence[str], missing: str
) -> tuple[Table, NDArray[np.float32], list[str], list[LeftOut]]:
    """As `read_names`, with (rows, columns) float32 in place of the cells: NaN where a cell is blank.

    missing: "error" for any blank cell; "drop" leaves out images of which no label is known.
    Raises `DataError` for other values than 0 to 1.
    """
    values = np.empty((len(table), len(columns)), np.float32)
    for j, column in enumerate(columns):
        cells = table.column(column)
        known = {cell: _value(cell) for cell in set(cells)}
        for i, cell in enumerate(cells):
            if known[cell] is None:
                raise DataError(
                    f"{table.where(i)}: {table.shown(cell)} in column '{column}'; expected 0 to 1, or nothing"
                )
        values[:, j] = [known[cell] for cell in cells]
    blank = np.isnan(values)
    if missing == "error" and blank.any():
        i, j = np.argwhere(blank)[0]
        raise DataError(f"{table.where(int(i))}: column '{columns[j]}' is empty, and --missing-labels is error")
    notes: list[str] = []
    left_out: list[LeftOut] = []
    nothing = blank.all(axis=1)
    if missing == "drop" and nothing.any():
        table, gone = _without(table, np.flatnonzero(nothing).tolist())
        left_out.append(gone)
        values, blank = values[~nothing], blank[~nothing]
    if blank.any():
        notes.append(f"{int(blank.sum()):,} of {blank.size:,} labels are unknown (blank)")
    soft = int(((values > 0) & (values < 1)).sum())
    if soft:
        notes.append(f"{soft:,} soft labels (between 0 and 1): above 0.5 counts as positive")
    return table, values, notes, left_out


def label_set(cell: str, where: str) -> set[str]:
    """The labels of a cell such as "Mass|Edema"; `DataError` for gaps and contradictions."""
    parts = [part.strip() for part in cell.split(SEPARATOR)]
    if any(is_missing(part) for part in parts):
        raise DataError(f"{where}: {cell!r} has an empty label between the '{SEPARATOR}'")
    present = set(parts)
    if NO_FINDING in present and len(present) > 1:
        raise DataError(f"{where}: {cell!r} says '{NO_FINDING}' and names findings")
    return present - {NO_FINDING}


def write_labels(labels: NDArray[np.int64] | NDArray[np.float32], names: Sequence[str]) -> dict[str, list[str]]:
    """Title -> cells of the columns that hold these labels when they are read again: one of names where that will do."""
    if labels.ndim == 1:
        return {"label": [names[label] for label in labels.tolist()]}
    if _names_suffice(labels, names):
        rows: list[list[str]] = [[] for _ in labels]
        for i, j in np.argwhere(labels).tolist():
            rows[i].append(names[j])
        return {"label": [SEPARATOR.join(present) or NO_FINDING for present in rows]}
    return {PREFIX + name: _write_values(labels[:, j].astype(np.float32)) for j, name in enumerate(names)}


def _names_suffice(labels: NDArray, names: Sequence[str]) -> bool:
    positive = labels == 1
    return bool(
        np.all(positive | (labels == 0))
        and positive.any(axis=0).all()
        and (positive.sum(axis=1) > 1).any()  # else nothing tells that it is multi-label
        and list(names) == sorted(names)
        and not any(SEPARATOR in n or n != n.strip() or n == NO_FINDING or is_missing(n) for n in names)
    )


def _write_values(column: NDArray[np.float32]) -> list[str]:
    values, which = np.unique(column, return_inverse=True)
    cells = ["" if np.isnan(v) else np.format_float_positional(v, trim="-") for v in values]
    return [cells[k] for k in which.tolist()]


def _value(cell: str) -> float | None:
    """The number in a cell, NaN for a missing one, None for what is no label."""
    if is_missing(cell):
        return float("nan")
    word = _WORDS.get(cell.lower())
    if word is not None:
        return word
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _without(table: Table, gone: Sequence[int]) -> tuple[Table, LeftOut]:
    """The table without the rows that have no label, and these."""
    if len(gone) == len(table):
        raise DataError(f"{table.file}: not one of its {len(table):,} images has a label")
    out = set(gone)
    kept = table.take([i for i in range(len(table)) if i not in out])
    return kept, table.left_out(gone, "images without a label")
