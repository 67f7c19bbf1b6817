"""A target as a table: which images, which labels, which split, which patient. No pixels here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.images import DEFAULT, Pixels
from fastxfer.targets.leftout import LeftOut

SPLITS = ("train", "val", "test")
ABOUT = ("patient", "study", "view", "source")
"""Columns that say more of an image; a target has those that somebody knows."""


@dataclass(frozen=True, eq=False)
class Target:
    """A data set that backbones are transferred to.

    name:        what people call it
    image_id:    (n_images,) str, path of each image relative to `root`, "/" between folders, unique
    class_names: (n_classes,) label names, in the order of the label values or columns
    labels:      (n_images,) int64 class index, or, for a multi-label target, (n_images, n_classes) float32 with
                 1 = positive, 0 = negative, NaN = unknown
    split:       (n_images,) str, each of "train", "val", "test"
    patient:     (n_images,) str, whom an image shows, or None where nobody knows; images of one patient never
                 serve as support and query of one episode
    study:       (n_images,) str, at which visit an image was taken, or None
    view:        (n_images,) str, how it was taken ("PA", "L" …), or None
    source:      (n_images,) str, which data set it came from, where a target is made of several; or None
    pixels:      what the images' numbers mean, where their files leave a choice
    root:        folder that `image_id` starts from; None once the images are left behind (read from a store)
    notes:       what was decided on the way here, for people ("no split found: made one, seed 0 …")
    left_out:    what readers and filters left out on the way here, all of it
    dropped:     what was taken out of test on wish ("copy:12", twelve images), which results must tell; "" for nothing
    """

    name: str
    image_id: NDArray[np.str_]
    class_names: tuple[str, ...]
    labels: NDArray[np.int64] | NDArray[np.float32]
    split: NDArray[np.str_]
    patient: NDArray[np.str_] | None = None
    root: Path | None = None
    notes: tuple[str, ...] = field(default=())
    study: NDArray[np.str_] | None = None
    view: NDArray[np.str_] | None = None
    source: NDArray[np.str_] | None = None
    left_out: tuple[LeftOut, ...] = ()
    dropped: str = ""
    pixels: Pixels = DEFAULT

    def __post_init__(self) -> None:
        n = self.n_images
        shape = (n, len(self.class_names)) if self.labels.ndim == 2 else (n,)
        if self.labels.shape != shape or any(len(values) != n for values in self._words().values()):
            raise ValueError(f"target '{self.name}': columns of different lengths for {n} images")
        unknown = self.split[~np.isin(self.split, SPLITS)]
        if len(unknown):
            raise DataError(f"target '{self.name}': split '{min(unknown.tolist())}' is not one of {', '.join(SPLITS)}")
        self._check_unique()

    def _check_unique(self) -> None:
        if len(set(self.image_id.tolist())) != self.n_images:  # six times as fast as np.unique on a million paths
            names, counts = np.unique(self.image_id, return_counts=True)
            raise DataError(f"target '{self.name}': image '{names[counts > 1][0]}' is listed more than once")

    @property
    def n_images(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole table (not of the images): the same table, the same fingerprint, wherever it lies."""
        h = hashlib.sha256()

        def column(cells: memoryview | bytes) -> None:
            h.update(cells)
            h.update(b"\1")

        known = self._words()
        column(_utf8(self.class_names))
        column(self.text("image_id"))
        column(self.text("split"))
        column(self.text("patient") if "patient" in known else b"")
        for name in ABOUT:
            if name in known and name != "patient":  # later columns count where they are
                column(_utf8([name]))
                column(self.text(name))
        for choice, value in self.pixels.as_dict().items():
            column(_utf8([choice, value]))
        h.update(str(self.labels.shape).encode())
        h.update(np.ascontiguousarray(self.labels).tobytes())
        return h.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self.split == split)

    def take(self, rows: NDArray[np.int64]) -> Target:
        """The same target with these rows only, in this order."""
        words: dict[str, Any] = {name: values[rows] for name, values in self._words().items()}
        return replace(self, labels=self.labels[rows], **words)

    def text(self, column: str, rows: NDArray[np.int64] | None = None) -> memoryview:
        """UTF-8 of a column's cells, of all rows or of some, a zero byte behind each."""
        cells = getattr(self, column)
        return memoryview(_utf8((cells if rows is None else cells[rows]).tolist()))

    def _words(self) -> dict[str, Any]:
        """The columns of words that are known, as they are kept: n_images each."""
        kept = vars(self)
        return {name: kept[name] for name in ("image_id", "split", *ABOUT) if kept[name] is not None}

    def exactly_one(self) -> NDArray[np.int64]:
        """(n_images,) class index of the images with exactly one positive label, −1 for all others.

        A single-label target has its labels returned. Unknown (NaN) counts as negative, as in Cherti & Jitsev (2021).
        """
        if not self.multi_label:
            return self.labels.astype(np.int64)
        positive = np.asarray(self.labels > 0.5)  # NaN is not
        return np.where(positive.sum(axis=1) == 1, positive.argmax(axis=1), -1).astype(np.int64)


def _utf8(cells: Sequence[str]) -> bytes:
    """The cells, a zero byte behind each."""
    return "\0".join([*cells, ""]).encode()
