"""Probes on stored embeddings, as rows: the full train split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.files import available_memory
from fastxfer.holdings import backbones_of, source_of
from fastxfer.influences import Influences
from fastxfer.metrics import METRICS, class_metrics
from fastxfer.probes import Probe, Solution, variant_of
from fastxfer.progress import Advance, progress, say
from fastxfer.protocol import dropped_of
from fastxfer.results import CELL, WHOLE_TRAIN, ResultStore, complete
from fastxfer.statistics import measure_classes, measure_split
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, make_split

Array = NDArray[Any]

# Up to this part of the available memory may be taken by embeddings: as stored, the rows of a split, and the solver's copy.
MEMORY_SHARE = 0.5


def evaluate_full(
    store: EmbeddingStore, backbone: str, target: Target, probe: Probe, *, seed: int = 0, per_class: bool = False
) -> tuple[pd.DataFrame, Influences]:
    """Probe the full train split: settings compete on validation, the best is refitted and scored on test.

    Returns rows, and what every test image did to their values.

    Validation is the target's own `val` split, or a fifth of train, stratified, patients kept whole, drawn with `seed`.
    The best is the setting with the largest balanced accuracy (multi-label: AUC) there; among equals, the first. It is
    refitted on train and validation together. Test takes no part in any choice. Rows carry an interval over
    the split's images (patients whole); `per_class`: of each class alone, too, "auc:NAME". The validation row is the
    best of several, hence somewhat flattering: it serves to choose what to fine-tune, the test row to report.

    Embeddings that would take more than MEMORY_SHARE of the available memory are read block by block, if the probe can:
    the same numbers.
    """
    train, val, test, chosen_on = _full_splits(target, seed, probe.held_out_share)
    rows_at = _reader(store, backbone, target, probe)
    n_classes = len(target.class_names)
    criterion, metrics = (
        ("auc", ("auc", "average_precision"))
        if target.multi_label
        else (probe.best_by, ("accuracy", "balanced_accuracy", "auc"))
    )
    best: tuple[float, int, Solution] | None = None
    for i, solution in enumerate(probe.solve_full(*rows_at(train, val), n_classes)):
        scores = (
            probe.probabilities(solution.scores, target.multi_label) if criterion == "log_loss" else solution.scores
        )
        value = float(METRICS[criterion](scores, target.labels[val])) * (-1 if criterion == "log_loss" else 1)
        if best is None or value > best[0]:
            best = (value, i, solution)
    assert best is not None
    _, position, on_val = best
    both = np.sort(np.concatenate([train, val]))
    refit_probe = probe.at(position, len(train))
    (on_test,) = refit_probe.solve_full(*rows_at(both, test), n_classes)
    common = {
        "source": source_of(store, backbone, target.name),
        "backbone": backbone,
        "target": target.name,
        "seed": seed,
        **WHOLE_TRAIN,
        "probe": probe.name,
        "params": f"{on_val.params};chosen={chosen_on}" + (f";dropped={target.dropped}" if target.dropped else ""),
        "episodes_hash": "",
    }
    rows, influences = [], Influences(target)
    for split, rows_of, solution in (("val", val, on_val), ("test", test, on_test)):
        groups = None if target.patient is None else target.patient[rows_of]
        ranked = probe.probabilities(solution.scores, target.multi_label)
        solved = {
            "split": split,
            "converged": bool(np.all(solution.converged)),
            "l2": float(solution.l2),
            "l2_at_edge": bool(probe.at_edge(position)),
        }
        measured = measure_split(metrics, ranked, target.labels[rows_of], groups=groups)
        for row in measured:
            cell = tuple({**common, **solved, **row}[name] for name in CELL)
            influences.add(cell, ranked[None], target.labels[rows_of], np.array([row["value"]]), rows_of[None])
        for metric in class_metrics(metrics, target.multi_label) if per_class else ():
            measured += measure_classes(metric, target.class_names, ranked, target.labels[rows_of], groups=groups)
        rows += [{**common, **solved, **row} for row in measured]
    return complete(pd.DataFrame(rows)), influences


def run_full(
    store: EmbeddingStore,
    results: ResultStore,
    probe: Probe,
    *,
    backbones: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    per_class: bool = False,
    advance: Advance | None = None,
) -> int:
    """`evaluate_full` on all the store holds (or what is named), appended row set by row set; returns rows added.

    What the results have already is not redone. advance: is told of every probe, in place of a bar of its own.
    """
    plan = backbones_of(store, targets, backbones)
    done = full_done(results, probe, seed, per_class)
    work = []
    for name, some in plan.items():
        target = store.target(name)
        work += [(b, target) for b in some if (b, name, target.dropped) not in done]
    added = 0
    with nullcontext(advance) if advance else progress(f"full {probe.name} probes", len(work), "probes") as told:
        for backbone, target in work:
            rows, influences = evaluate_full(store, backbone, target, probe, seed=seed, per_class=per_class)
            added += results.append_new(rows, influences.sums())
            told(1)
    return added


def full_done(results: ResultStore, probe: Probe, seed: int, per_class: bool = False) -> set[tuple[str, str, str]]:
    """(backbone, target, its `dropped`) of the full probes whose test rows of this seed are there."""
    named = (dict(zip(CELL, map(str, cell), strict=True)) for cell in results.cells())
    wanted = {"shots": "full", "split": "test", "seed": str(seed), "probe": probe.name}
    return {
        (cell["backbone"], cell["target"], dropped_of(cell["params"]))
        for cell in named
        if wanted.items() <= cell.items()
        and variant_of(cell["params"]) == probe.variant
        and (":" in cell["metric"] or not per_class)
    }


def chosen_l2(results: ResultStore) -> dict[tuple[str, str], float]:
    """(backbone, target) -> the penalty that the full logistic probe, the plain one, chose."""
    rows = results.read(["backbone", "target", "probe", "shots", "params", "split", "l2"])
    rows = rows[(rows["probe"] == "logistic") & (rows["shots"] == "full") & (rows["split"] == "test")]
    plain = rows[~rows["params"].astype(str).str.contains("transform=|class_weight=|preset=|dropped=")]
    return {(str(r.backbone), str(r.target)): float(r.l2) for r in plain.itertuples()}


def _reader(
    store: EmbeddingStore, backbone: str, target: Target, probe: Probe
) -> Callable[[Array, Array], tuple[Any, Array, Any]]:
    """(train rows, query rows) -> embeddings and labels of the train rows, embeddings of the query rows."""
    everything = store.rows(backbone, target.name, np.arange(target.n_images))
    n_bytes = everything.shape[0] * everything.shape[1] * (2 * everything.dtype.itemsize + 4)
    if probe.reads_blocks and n_bytes > MEMORY_SHARE * available_memory():
        say(
            f"embeddings of '{target.name}' by '{backbone}' are read block by block: in memory they would take "
            f"{n_bytes / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of what is available"
        )
        return lambda train, query: (
            store.rows(backbone, target.name, train),
            target.labels[train],
            store.rows(backbone, target.name, query),
        )
    stored = store.embeddings(backbone, target.name)

    def in_memory(train: Array, query: Array) -> tuple[Array, Array, Array]:
        x = probe.features(stored, train, full=True)
        return x[train], target.labels[train], x[query]

    return in_memory


def _full_splits(target: Target, seed: int, share: float) -> tuple[Array, Array, Array, str]:
    train, val, test = (target.rows(split) for split in ("train", "val", "test"))
    if not len(train) or not len(test):
        raise DataError(f"target '{target.name}' has {len(train)} train and {len(test)} test images: both are needed")
    if len(val):
        return train, val, test, "val"
    pool = target.take(train)
    fractions = {"train": 1.0 - share, "val": share}
    is_val = make_split(pool.image_id, pool.labels, pool.patient, fractions=fractions, seed=seed) == "val"
    return train[~is_val], train[is_val], test, "holdout"
