"""Proximity of a source to targets, by the embeddings that a store holds of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.progress import progress
from fastxfer.proximity import measures
from fastxfer.proximity.measures import Measured
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target

Array = NDArray[Any]

IMAGES = 2000
LEAST = 40  # images of a sample
COLUMNS = ("source", "target", "reference", "measure", "value", "se", "low", "high", "n_source", "n_target")

MEASURES = {
    "frechet": "squared Fréchet distance, extrapolated to infinitely many images",
    "mmd": "squared maximum mean discrepancy, Gaussian kernel, unbiased",
    "a-distance": "2 (1 - 2 error) of a probe that tells source from target",
    "neighbours": "share of nearest neighbours from the other set, 1 for equal sets",
    "labels": "Jaccard index of the words of the class names",
}
"""What is measured. Of the first three small is near, of the others large."""


def proximity(
    store: EmbeddingStore,
    source: str,
    targets: Sequence[str],
    *,
    references: Sequence[str] | None = None,
    names: Sequence[str] = tuple(MEASURES),
    images: int = IMAGES,
    dims: int | None = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """A line a (target, reference, measure), in COLUMNS: how near a target is to the source.

    source, targets: data sets of the store, embedded by each of `references` (None: by every backbone that has all)
    images:          of each train split (of the whole, where there is none) at most so many, drawn with `seed`, and of
                     every patient one, so that the images of a sample are independent
    dims:            principal axes of the Fréchet distance; None: all

    Only train images are looked at, so what is learnt from it has not seen test. Class names need no reference: there
    `reference` is "". `UsageError` for unknown names, `DataError` for missing embeddings and too few images.
    """
    for name in names:
        if name not in MEASURES:
            raise UsageError(f"unknown measure '{name}': choose among {', '.join(MEASURES)}.{nearest(name, MEASURES)}")
    if source in targets:
        raise UsageError(f"'{source}' is the source and one of the targets: a data set's distance to itself is none")
    tables = {name: store.target(name) for name in (source, *targets)}
    embedded = [name for name in names if name != "labels"]
    chosen = _references(store, tuple(tables), references) if embedded else []
    drawn = {name: sample(table, images, seed) for name, table in tables.items()} if embedded else {}
    of: dict[str, Callable[[Array, Array], Measured]] = {
        "frechet": lambda x, y: measures.frechet(x, y, dims=dims, seed=seed),
        "mmd": measures.mmd,
        "a-distance": lambda x, y: measures.a_distance(x, y, seed=seed),
        "neighbours": lambda x, y: measures.neighbour_overlap(x, y, seed=seed),
    }
    lines = []
    if "labels" in names:
        for target in targets:
            found, count = measures.label_overlap(tables[source].class_names, tables[target].class_names)
            lines.append((source, target, "", "labels", *found, count, count))
    with progress("proximity", len(chosen) * len(targets) * len(embedded), "measures") as advance:
        for reference in chosen:
            x = np.asarray(store.rows(reference, source, drawn[source])[:], np.float32)
            for target in targets:
                y = np.asarray(store.rows(reference, target, drawn[target])[:], np.float32)
                for name in embedded:
                    lines.append((source, target, reference, name, *of[name](x, y), len(x), len(y)))
                    advance(1)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def reference_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How much the order of targets depends on the reference: for every measure and pair of references Spearman's rank
    correlation over targets, in columns measure, reference, other, n_targets, spearman. NaN for fewer than three targets.
    """
    lines = []
    for measure, group in table[table["reference"] != ""].groupby("measure", sort=False):
        wide = group.pivot(index="target", columns="reference", values="value")
        for a, b in combinations(wide.columns, 2):
            rho = stats.spearmanr(wide[a], wide[b]).statistic if len(wide) > 2 else float("nan")
            lines.append((measure, a, b, len(wide), float(rho)))
    return pd.DataFrame(lines, columns=["measure", "reference", "other", "n_targets", "spearman"])


def sample(target: Target, images: int, seed: int) -> NDArray[np.int64]:
    """Rows of at most so many train images (any, where the target has no train), of every patient one, ascending."""
    rows = target.rows("train")
    rows = rows if len(rows) else np.arange(target.n_images)
    rows = np.random.default_rng(seed).permutation(rows)
    if target.patient is not None:
        rows = rows[np.sort(np.unique(target.patient[rows], return_index=True)[1])]
    if len(rows) < LEAST:
        of = "patients" if target.patient is not None else "images"
        raise DataError(f"'{target.name}' has {len(rows)} {of} in train: proximity needs at least {LEAST}")
    return np.sort(rows[:images])


def _references(store: EmbeddingStore, sets: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Backbones with whole embeddings of all sets: those asked for, or all there are."""
    complete: dict[str, set[str]] = {}
    for entry in store.entries():
        if entry.complete and entry.target in sets:
            complete.setdefault(entry.backbone, set()).add(entry.target)
    able = sorted(name for name, has in complete.items() if has == set(sets))
    for name in asked or ():
        if name not in complete:
            raise UsageError(f"the store '{store.path}' holds no reference '{name}'.{nearest(name, complete)}")
        if name not in able:
            lacking = ", ".join(sorted(set(sets) - complete[name]))
            raise DataError(
                f"'{name}' has no whole embeddings of {lacking}: fastxfer embed --ckpt … --name {name} --target {lacking}"
            )
    if not able:
        raise DataError(
            f"no backbone has embedded all of {', '.join(sets)}: proximity compares them by one and the same"
        )
    return list(asked or able)
