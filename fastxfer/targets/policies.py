"""Labels that a program read from reports: CheXpert's and MIMIC-CXR's columns, and what becomes of uncertain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.csvfile import Table, read_csv

# Names as torchxrayvision spells them; "No Finding" is no label of its own.
LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices"),
)
POLICIES = ("ignore", "ones", "zeros", "blank-zeros", "self-trained")
NO_FINDING = "No Finding"
DEVICES = "Support Devices"
_COLUMNS = {"Effusion": "Pleural Effusion"}
COLUMNS = (NO_FINDING, *(_COLUMNS.get(label, label) for label in LABELS))
_CELLS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": np.nan}


@dataclass(frozen=True)
class Policy:
    """What uncertain (−1) and blank entries become.

    name: "ignore": both unknown (Cherti & Jitsev 2021); "ones" / "zeros": −1 is positive / negative, blank unknown;
    "blank-zeros": −1 unknown, blank negative; "self-trained": −1 is the image's value in `soft_labels`, blank unknown
    (the policies of Irvin et al., AAAI 2019). Whatever the policy, "No Finding" = 1 makes all labels negative but
    Support Devices, which says nothing about a disease; with `zero_devices` that one too, as in the paper's loader.

    soft_labels: for "self-trained", a table with ``path`` and a column a label, values 0 to 1 (or blank): what a model
    trained with "ignore" gave for each image.
    """

    name: str = "ignore"
    soft_labels: Path | str | None = None
    zero_devices: bool = False

    def check(self, target: str) -> None:
        """Raise `UsageError` for a policy that there isn't, or soft labels without their policy, or it without them."""
        if self.name not in POLICIES:
            raise UsageError(f"target '{target}': policy '{self.name}' is not one of {', '.join(POLICIES)}")
        if (self.name == "self-trained") != (self.soft_labels is not None):
            raise UsageError(
                f"target '{target}': policy self-trained and a table of soft labels go together; "
                + ("the table is missing" if self.soft_labels is None else f"the policy is '{self.name}'")
            )

    def settle(self, entries: NDArray[np.float32], image_id: Sequence[str]) -> tuple[NDArray[np.float32], list[str]]:
        """Labels from entries, and notes that count what was done.

        entries:  (n, 14) as `read_entries` gives them: "No Finding", then `LABELS`; 1, 0, −1 or NaN
        image_id: (n,) for which soft labels are looked up
        Returns (n, 13) float32: 1, 0, NaN, or soft labels between 0 and 1.
        """
        healthy, labels = entries[:, 0] == 1, entries[:, 1:].copy()
        uncertain, blank = labels == -1, np.isnan(labels)
        became = {"ones": "positive", "zeros": "negative"}.get(self.name, "unknown")
        labels[uncertain] = {"ones": 1.0, "zeros": 0.0}.get(self.name, np.nan)
        if self.name == "self-trained":
            soft = _read_soft_labels(Path(str(self.soft_labels)), image_id)
            labels[uncertain] = soft[uncertain]
            missing = int(np.isnan(soft[uncertain]).sum())
            became = f"soft labels of {Path(str(self.soft_labels)).name} ({missing:,} have none and are unknown)"
        if self.name == "blank-zeros":
            labels[blank] = 0
        notes = [
            f"policy {self.name}: {int(uncertain.sum()):,} uncertain entries became {became}, "
            f"{int(blank.sum()):,} blank ones {'negative' if self.name == 'blank-zeros' else 'unknown'}"
        ]
        devices = labels[:, LABELS.index(DEVICES)].copy()
        changed = int((labels[healthy] != 0).sum())
        labels[healthy] = 0
        if not self.zero_devices:
            labels[:, LABELS.index(DEVICES)] = devices
            changed -= int((devices[healthy] != 0).sum())
        notes.append(
            f"'{NO_FINDING}' in {int(healthy.sum()):,} images made {changed:,} entries negative"
            + (
                f", among them {int((devices[healthy] == 1).sum()):,} positive {DEVICES} (as the paper's loader does)"
                if self.zero_devices
                else f" ({DEVICES} as it was)"
            )
        )
        return labels, notes


def read_entries(table: Table) -> NDArray[np.float32]:
    """(rows, 14) float32, "No Finding" and then `LABELS`: 1, 0, −1 (uncertain), NaN (blank)."""
    entries = np.empty((len(table), len(COLUMNS)), dtype=np.float32)
    for j, title in enumerate(COLUMNS):
        cells = table.column(title)
        try:
            entries[:, j] = [_CELLS[cell] for cell in cells]
        except KeyError:
            i = next(i for i, cell in enumerate(cells) if cell not in _CELLS)
            raise DataError(
                f"{table.where(i)}: {cells[i]!r} in column '{title}'; expected 1, 0, -1 or nothing"
            ) from None
    return entries


def _read_soft_labels(file: Path, image_id: Sequence[str]) -> NDArray[np.float32]:
    """(n, 13) float32 with NaN where the table has no value."""
    table = read_csv(file)
    columns = {j: table.column(label) for j, label in enumerate(LABELS) if label in table.columns}
    if not columns:
        raise DataError(f"{file}: no column with soft labels; expected path and some of {', '.join(LABELS)}")
    row_of: dict[str, int] = {}
    for i, path in enumerate(table.column("path")):
        if row_of.setdefault(path, i) != i:
            raise DataError(
                f"{table.where(i)}: {path!r} is listed twice, first in row {table.row_numbers[row_of[path]]}"
            )
    if not row_of.keys() & set(image_id):
        raise DataError(f"{file}: no path of this table is an image of the target; expected such as {image_id[0]}")
    soft = np.full((len(image_id), len(LABELS)), np.nan, dtype=np.float32)
    for k, path in enumerate(image_id):
        if path not in row_of:
            continue
        i = row_of[path]
        for j, cells in columns.items():
            try:
                value = float(cells[i]) if cells[i] else np.nan
            except ValueError:
                value = -1.0
            if not (np.isnan(value) or 0 <= value <= 1):
                raise DataError(f"{table.where(i)}: {cells[i]!r} in column '{LABELS[j]}'; expected 0 to 1, or nothing")
            soft[k, j] = value
    return soft
