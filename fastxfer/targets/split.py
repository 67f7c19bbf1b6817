"""Seeded splits: stratified by label, disjoint in patients, the same whatever the order of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def make_split(
    image_id: NDArray[np.str_],
    labels: NDArray[np.int64] | NDArray[np.float32],
    patient: NDArray[np.str_] | None,
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> NDArray[np.str_]:
    """Assign every image to one split.

    image_id:  (n,) str, unique
    labels:    (n,) int64 class index, or (n, c) float32 with NaN = unknown (counts as not positive here)
    patient:   (n,) str; all images of one patient go to one split. None: every image for itself.
    fractions: split name -> share of the images, summing to 1
    Returns (n,) str. Depends on contents and `seed` only, not on the order of rows.

    Without patients and with one label an image, every class is cut by itself: its counts are the exact shares,
    rounded, and a class of at least as many images as splits is in all of them. Else groups are dealt one by one,
    rarest label first, to the split that has least of this label for its share: iterative stratification (Sechidis,
    Tsoumakas & Vlahavas, ECML 2011), with groups of images in place of images; then classes that one split misses
    altogether are repaired where a group can be spared.
    """
    names = [name for name, share in fractions.items() if share > 0]
    shares = np.array([fractions[name] for name in names])
    if not np.isclose(shares.sum(), 1.0) or (shares > 1).any():
        raise ValueError(f"shares of the splits must sum to 1, not {shares.sum():g}")
    rng = np.random.default_rng(seed)
    n = len(image_id)
    if n == 0:
        return np.empty(0, dtype=np.str_)
    if patient is None:
        # Row numbers in the order of the names, so that shuffled rows give the same split.
        order = np.argsort(image_id, kind="stable")
        if labels.ndim == 1:
            chosen = np.empty(n, dtype=np.int64)
            chosen[order] = _cut_classes(labels[order].astype(np.int64), shares, rng)
            return np.array(names)[chosen]
        group = np.empty(n, dtype=np.int64)
        group[order] = np.arange(n)
    else:
        group = np.unique(patient, return_inverse=True)[1]
    chosen = _deal_groups(_label_counts(labels, group), shares, rng)[group]
    return np.array(names)[chosen]


def _cut_classes(labels: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    chosen = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        counts = _round_shares(len(rows), shares)
        chosen[rows] = np.repeat(np.arange(len(shares)), counts)
    return chosen


def _round_shares(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that sum to `total`, nearest to its shares (largest remainder), none 0 while `total` allows it."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    for i in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[i] += 1
    while total >= len(shares) and (counts == 0).any():
        counts[np.argmax(counts)] -= 1
        counts[np.argmin(counts)] += 1
    return counts


def _label_counts(labels: NDArray[np.int64] | NDArray[np.float32], group: NDArray[np.int64]) -> Any:
    """(groups, strata), sparse: how many images of each group carry each label; images without any are a stratum of theirs."""
    from scipy import sparse

    if labels.ndim == 1:
        images, strata = np.arange(len(labels)), labels.astype(np.int64)
    else:
        positive = labels > 0.5  # NaN is not
        images, strata = np.nonzero(np.column_stack([positive, ~positive.any(axis=1)]))
    return sparse.csr_array((np.ones(len(images), np.int64), (group[images], strata)))  # equal places add up


def _deal_groups(counts: Any, shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    n_groups, n_strata = counts.shape
    by_stratum = counts.tocsc()
    holders = np.diff(by_stratum.indptr)
    # Large groups first: the small ones that follow can still even out what a large one upset.
    order = rng.permutation(n_groups)
    turn = np.empty(n_groups, dtype=np.int64)
    turn[order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]] = np.arange(n_groups)
    chosen = np.full(n_groups, -1, dtype=np.int64)
    given = np.zeros((len(shares), n_strata))
    for stratum in sorted(range(n_strata), key=lambda s: (holders[s], s)):
        column = slice(*by_stratum.indptr[stratum : stratum + 2])
        groups, sizes = by_stratum.indices[column], by_stratum.data[column]
        for k in np.argsort(turn[groups]):
            g = groups[k]
            if chosen[g] < 0:
                row = slice(*counts.indptr[g : g + 2])
                # Seats in a parliament: each goes to the party with the largest share a seat (Sainte-Laguë). The plain
                # rule, to whom lacks most, would deal all large groups to the large split, and small ones to the small.
                split = np.argmax(shares / (given[:, stratum] + sizes[k] / 2))
                chosen[g] = split
                given[split, counts.indices[row]] += counts.data[row]
    _repair(chosen, counts, by_stratum, len(shares), rng)
    return chosen


def _repair(chosen: NDArray[np.int64], counts: Any, by_stratum: Any, n_splits: int, rng: np.random.Generator) -> None:
    """Give a split that misses a label altogether a group with it, where no other split loses a label by that."""
    holders = np.stack([np.diff(counts[chosen == s].tocsc().indptr) for s in range(n_splits)])  # (splits, strata)
    size = counts.sum(axis=1)
    for split, stratum in np.argwhere(holders == 0):
        if holders[split, stratum]:
            continue  # mended on the way, by a group moved for another label
        having = np.sort(by_stratum.indices[slice(*by_stratum.indptr[stratum : stratum + 2])])
        candidates = rng.permutation(having[chosen[having] != split])
        for g in candidates[np.argsort(size[candidates], kind="stable")]:
            carries = counts.indices[slice(*counts.indptr[g : g + 2])]
            if (holders[chosen[g], carries] > 1).all():
                holders[chosen[g], carries] -= 1
                holders[split, carries] += 1
                chosen[g] = split
                break
