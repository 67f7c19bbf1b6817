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
        n = len(self.image_id)
        shape = (n, len(self.class_names)) if self.labels.ndim == 2 else (n,)
        if self.labels.shape != shape or any(len(values) != n for values in (self.split, *self._about().values())):
            raise ValueError(f"target '{self.name}': columns of different lengths for {n} images")
        unknown = sorted(set(np.unique(self.split)) - set(SPLITS))
        if unknown:
            raise DataError(f"target '{self.name}': split '{unknown[0]}' is not one of {', '.join(SPLITS)}")
        self._check_unique()

    def _check_unique(self) -> None:
        if len(set(self.image_id.tolist())) != self.n_images:  # six times as fast as np.unique on a million paths
            names, counts = np.unique(self.image_id, return_counts=True)
            raise DataError(f"target '{self.name}': image '{names[counts > 1][0]}' is listed more than once")

    @property
    def n_images(self) -> int:
        return len(self.image_id)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole table (not of the images): the same table, the same fingerprint, wherever it lies."""
        h = hashlib.sha256()

        def column(values: Sequence[str] | NDArray[np.str_]) -> None:
            cells = values.tolist() if isinstance(values, np.ndarray) else values
            h.update("\0".join([*cells, "\1"]).encode())

        column(self.class_names)
        column(self.image_id)
        column(self.split)
        column(self.patient if self.patient is not None else ())
        for name, values in self._about().items():
            if name != "patient":  # later columns count where they are
                column([name])
                column(values)
        for choice, value in self.pixels.as_dict().items():
            column([choice, value])
        h.update(str(self.labels.shape).encode())
        h.update(np.ascontiguousarray(self.labels).tobytes())
        return h.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, ascending."""
        return np.flatnonzero(self.split == split)

    def take(self, rows: NDArray[np.int64]) -> Target:
        """The same target with these rows only, in this order."""
        about: dict[str, Any] = {name: values[rows] for name, values in self._about().items()}
        return replace(
            self,
            image_id=self.image_id[rows],
            labels=self.labels[rows],
            split=self.split[rows],
            **about,
        )

    def _about(self) -> dict[str, NDArray[np.str_]]:
        """The columns that say more of the images, those that are known."""
        return {name: values for name in ABOUT if (values := getattr(self, name)) is not None}

    def exactly_one(self) -> NDArray[np.int64]:
        """(n_images,) class index of the images with exactly one positive label, −1 for all others.

        A single-label target has its labels returned. Unknown (NaN) counts as negative, as in Cherti & Jitsev (2021).
        """
        if not self.multi_label:
            return self.labels.astype(np.int64)
        positive = np.asarray(self.labels > 0.5)  # NaN is not
        return np.where(positive.sum(axis=1) == 1, positive.argmax(axis=1), -1).astype(np.int64)
