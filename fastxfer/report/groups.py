"""Which group an image belongs to, for the colours of a plot: its class, its split, a column of its target, one label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError, nearest
from fastxfer.targets.table import SPLITS, Target

BY = ("labels", "split", "view", "source")
"""Columns that say nothing of who is in the picture."""
REST = ("other classes", "several labels", "no label", "unknown", "not known")
"""Groups that are drawn in grey, below all others."""


@dataclass(frozen=True)
class Groups:
    """names: in the order of the legend; of: (n,) index into `names`, an image each; by: what was asked for."""

    by: str
    names: tuple[str, ...]
    of: NDArray[np.int64]


def groups(target: Target, by: str = "labels", label: str | None = None) -> Groups:
    """Groups of all images of a target.

    labels  its class; of a multi-label target, which of its labels if it has exactly one, "several labels" or "no label";
            with `label`, whether it has that one: "NAME", "not NAME", "unknown"
    split, view, source  that column

    UsageError for a column or label that the target hasn't.
    """
    if label is not None:
        if label not in target.class_names:
            hint = nearest(label, target.class_names)
            raise UsageError(f"--label {label}: target '{target.name}' has no such label.{hint}")
        if target.multi_label:
            values = target.labels[:, target.class_names.index(label)]
            which = np.where(np.isnan(values), 2, np.where(values > 0.5, 0, 1))
        else:
            which = np.where(target.labels == target.class_names.index(label), 0, 1)
        return _used(label, (label, f"not {label}", "unknown"), which)
    if by == "labels":
        which = target.exactly_one()
        names = target.class_names
        if target.multi_label:
            several = (target.labels > 0.5).sum(axis=1) > 1
            which = np.where(which >= 0, which, np.where(several, len(names), len(names) + 1))
            names = (*names, "several labels", "no label")
        return _used("class" if not target.multi_label else "labels", names, which)
    if by not in BY:
        raise UsageError(f"--by {by}: one of {', '.join(BY)}")
    column = getattr(target, by)
    if column is None:
        known = [name for name in BY if name == "labels" or getattr(target, name) is not None]
        raise UsageError(f"--by {by}: target '{target.name}' has no such column; it has {', '.join(known)}")
    words = np.where(column == "", "not known", column)
    found = np.unique(words).tolist()
    if by == "split":
        found = [name for name in SPLITS if name in found]
    return _used(by, tuple(found), np.array([found.index(word) for word in words.tolist()], np.int64))


def fewer(some: Groups, most: int) -> Groups:
    """At most `most` groups: the largest, in their order, and "other classes" for the rest."""
    if len(some.names) <= most:
        return some
    sizes = np.bincount(some.of, minlength=len(some.names))
    kept = np.sort(np.argsort(-sizes, kind="stable")[: most - 1])
    to = np.full(len(some.names), len(kept))
    to[kept] = range(len(kept))
    return Groups(some.by, (*(some.names[i] for i in kept), "other classes"), to[some.of])


def _used(by: str, names: tuple[str, ...], which: NDArray[np.int64]) -> Groups:
    """Without the groups that nobody belongs to."""
    there, of = np.unique(which, return_inverse=True)
    return Groups(by, tuple(names[i] for i in there), of.astype(np.int64))
