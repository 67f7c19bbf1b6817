"""How a penalty is chosen without looking at the queries that a probe is judged by.

    fixed    nothing is chosen: every value of the grid is a solution of its own
    holdout  a fold of the support is held out, the value that does best on it is taken
    cv       every fold is held out in turn
    val      queries from the target's validation split, one value for a whole cell

After the choice the probe is fitted to the whole support. Functions here are given support, or validation queries;
the queries that count are no argument of any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError
from fastxfer.metrics import softmax

Array = NDArray[Any]
Floats = NDArray[np.float64]

L2_BY = ("fixed", "holdout", "cv", "val")
CRITERIA = ("loss", "accuracy", "balanced_accuracy")


class Path(NamedTuple):
    """A batch of E episodes at S settings: scores (E, S, q, ways); converged and objective (E, S), NaN without one."""

    scores: Array
    converged: Array
    objective: Array


# (support (E, m), labels (E, m), query (E, q)) -> the path of E episodes
Solve = Callable[[Array, Array, Array], Path]


@numba.njit(cache=True)
def _assign(labels: Any, groups: Any, ways: int, folds: int, out: Any) -> None:
    n_episodes, m = labels.shape
    first = np.empty(m, np.int64)
    own = np.empty(ways, np.int64)  # groups of each class
    given = np.empty(ways, np.int64)  # groups of each class that have a fold
    for e in range(n_episodes):
        own[:] = 0
        given[:] = 0
        for i in range(m):
            first[i] = i
            fresh = True
            for j in range(i):
                if groups[e, j] == groups[e, i]:
                    first[i] = min(first[i], j)
                    if labels[e, j] == labels[e, i]:
                        fresh = False
            if fresh:
                own[labels[e, i]] += 1
        for i in range(m):
            out[e, i] = 0
        for i in range(m):  # the only group of a class can not be held out
            if own[labels[e, i]] < 2:
                out[e, first[i]] = -1
        for i in range(m):
            if first[i] == i and out[e, i] == 0:
                c = labels[e, i]
                out[e, i] = given[c] % folds
                given[c] += 1
        for i in range(m):
            out[e, i] = out[e, first[i]]


def assign_folds(labels: Array, groups: Array, ways: int, folds: int) -> NDArray[np.int64]:
    """(E, m) fold of each support image, 0 … folds − 1, or −1: never held out.

    labels (E, m) 0 … ways − 1; groups (E, m): images of one group (a patient) share a fold. The groups of a class go to
    the folds in turn, in the order of the support, so classes are spread evenly; the only group of a class is never
    held out, or there would be nothing to learn that class from.
    """
    out = np.empty(labels.shape, np.int64)
    _assign(np.ascontiguousarray(labels, np.int64), np.ascontiguousarray(groups, np.int64), ways, folds, out)
    return out


def merit(scores: Array, labels: Array, criterion: str, logits: bool) -> tuple[Floats, NDArray[np.int64]]:
    """What held-out images say of each setting, to be added up over folds: (E, S, ways) sums and (E, ways) counts.

    scores (E, S, q, ways), labels (E, q). "accuracy" and "balanced_accuracy" count hits, "loss" sums minus the log loss
    (`logits`) or minus the squared error to ±1 labels.
    """
    one_hot = labels[..., None] == np.arange(scores.shape[-1])  # (E, q, ways)
    if criterion != "loss":
        each = (scores.argmax(axis=-1) == labels[:, None]).astype(np.float64)
    elif logits:
        chance = np.where(one_hot[:, None], softmax(scores.astype(np.float64)), 0.0).sum(axis=-1)
        each = np.log(np.maximum(chance, np.finfo(np.float64).tiny))
    else:
        each = -((scores - (2.0 * one_hot - 1.0)[:, None]) ** 2).sum(axis=-1)
    return np.einsum("esq,eqw->esw", each, one_hot.astype(np.float64)), one_hot.sum(axis=1)


def best(sums: Floats, counts: NDArray[np.int64], criterion: str) -> NDArray[np.int64]:
    """(E,) the setting of the largest merit; of equals the first. Means over images, or over classes that have any."""
    if criterion == "balanced_accuracy":
        share = np.divide(sums, counts[:, None], out=np.zeros_like(sums), where=counts[:, None] > 0)
        value = share.sum(axis=-1)
        value = np.round(value, 9)  # sums of fractions: what is equal shall tie
    else:
        value = sums.sum(axis=-1)
    return np.asarray(value.argmax(axis=-1))


def choose_by_folds(
    solve: Solve, support: Array, labels: Array, groups: Array, ways: int,
    *, folds: int, only_first: bool, criterion: str, logits: bool,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # fmt: skip
    """(E,) chosen settings by held-out folds of the support, and whether all solutions that it rests on converged.

    `only_first`: one fold is held out, once (holdout). `UsageError` where no image can be held out.
    """
    fold = assign_folds(labels, groups, ways, folds)
    sums: Floats | None = None
    counts = np.zeros((len(support), ways), np.int64)
    converged = np.ones(len(support), bool)
    for number in range(1 if only_first else folds):
        out = fold == number
        size = out.sum(axis=1)
        for held in np.unique(size[size > 0]):  # episodes of one size are solved together
            which = np.flatnonzero(size == held)
            order = np.argsort(out[which], axis=1, kind="stable")
            s, y = (np.take_along_axis(a[which], order, axis=1) for a in (support, labels))
            got = solve(s[:, :-held], y[:, :-held], s[:, -held:])
            added, n = merit(got.scores, y[:, -held:], criterion, logits)
            sums = np.zeros((len(support), *added.shape[1:])) if sums is None else sums
            sums[which] += added
            counts[which] += n
            converged[which] &= got.converged.all(axis=1)
    if sums is None or not counts.sum(axis=1).all():
        raise UsageError(
            "l2 is to be chosen by holding out part of the support, so some class needs at least 2 images (with known "
            "patients: 2 patients): raise --shots, or choose --l2-by fixed or val"
        )
    return best(sums, counts, criterion), converged
