"""Transferability scores of stored embeddings, as rows: probe "leep" …, metric "transferability", split "train"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.estimators import episodes_of
from fastxfer.holdings import backbones_of, source_of
from fastxfer.probes import LogisticProbe
from fastxfer.progress import progress
from fastxfer.results import WHOLE_TRAIN, ResultStore, complete
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target
from fastxfer.transferability import scores
from fastxfer.transferability.ranking import METRIC

Array = NDArray[Any]
Value = tuple[float, float, float]  # with bounds, NaN where a score has none

IMAGES = 10_000
# Of the few-shot probe; classes of fewer images than LEAST take no part in it.
WAYS, SHOTS, QUERIES, EPISODES, LEAST = 5, 5, 15, 200, 10


@dataclass(frozen=True)
class Inputs:
    """What scores are made of: images of train (and of no other split) with exactly one class.

    x (n, dim) embeddings, y (n,) classes, groups (n,) patients or None; `head` gives the source's own classifier, or raises
    """

    x: Array
    y: Array
    groups: Array | None
    seed: int
    head: Callable[[], Any]

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(n, source classes)"""
        return np.asarray(self.head().probabilities(self.x))


@dataclass(frozen=True)
class Score:
    """A score by name: what it is, where it comes from, and how it is computed."""

    name: str
    about: str
    paper: str
    compute: Callable[[Inputs], Value]


def _plain(value: float) -> Value:
    return value, float("nan"), float("nan")


def _knn(given: Inputs) -> Value:
    right = scores.knn(given.x, given.y, groups=given.groups)
    found = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
    return float(right.mean()), float(found.low), float(found.high)


def _fewshot(given: Inputs) -> Value:
    """Mean accuracy of 5-way 5-shot logistic probes, support and queries from two halves of train; t interval over episodes."""
    names, sizes = np.unique(given.y, return_counts=True)
    rows = np.flatnonzero(np.isin(given.y, names[sizes >= LEAST]))
    known = int((sizes >= LEAST).sum())
    if known < 2:
        raise DataError(f"the few-shot probe needs 2 classes of at least {LEAST} train images, there are {known}")
    x, y = given.x[rows].astype(np.float32), given.y[rows]
    groups = None if given.groups is None else given.groups[rows]
    queries = min(QUERIES, int(sizes[sizes >= LEAST].min()) // 2)
    drawn = episodes_of(
        y, ways=min(WAYS, known), shots=SHOTS, queries=queries, episodes=EPISODES, seed=given.seed, groups=groups
    )
    accuracy = LogisticProbe().fit_score_episodes(x, y, drawn)
    low, high = stats.t.interval(0.95, len(accuracy) - 1, accuracy.mean(), stats.sem(accuracy))
    return float(accuracy.mean()), float(low), float(high)


SCORES = {
    s.name: s
    for s in (
        Score(
            "leep",
            "what the source's own classifier tells of the classes",
            "Nguyen et al. 2020",
            lambda g: _plain(scores.leep(g.probabilities, g.y)),
        ),
        Score(
            "nleep",
            "the same of a Gaussian mixture of the embeddings",
            "Li et al. 2021",
            lambda g: _plain(scores.nleep(g.x, g.y, seed=g.seed)),
        ),
        Score("logme", "evidence of a linear model", "You et al. 2021", lambda g: _plain(scores.logme(g.x, g.y))),
        Score(
            "h-score",
            "variance between classes, in units of all variance",
            "Bao et al. 2019",
            lambda g: _plain(scores.h_score(g.x, g.y)),
        ),
        Score(
            "h-score-shrunk",
            "H-score with a shrunk covariance",
            "Ibrahim et al. 2021",
            lambda g: _plain(scores.h_score(g.x, g.y, shrink=True)),
        ),
        Score(
            "transrate",
            "coding rate that the classes explain",
            "Huang et al. 2022",
            lambda g: _plain(scores.transrate(g.x, g.y)),
        ),
        Score("gbc", "how little the classes overlap", "Pándy et al. 2022", lambda g: _plain(scores.gbc(g.x, g.y))),
        Score("knn-loo", "leave-one-out accuracy of the nearest neighbour", "Puigcerver et al. 2021", _knn),
        Score("fewshot", "accuracy of 5-way 5-shot probes within train", "ours", _fewshot),
    )
}


def transferability(
    store: EmbeddingStore,
    backbone: str,
    target: Target,
    names: Sequence[str] = tuple(SCORES),
    *,
    images: int = IMAGES,
    seed: int = 0,
    head: Callable[[], Any] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows of the named scores for a backbone on a target's train split, and of those that cannot be had, why not.

    images: at most so many, drawn with `seed`, the same for every backbone. Of a multi-label target, those with exactly
    one positive label. head: of the source, for LEEP; raises `DataError` where there is none.
    """
    for name in names:
        if name not in SCORES:
            raise UsageError(f"unknown score '{name}': choose among {', '.join(SCORES)}.{nearest(name, SCORES)}")
    one = target.exactly_one()
    rows = np.flatnonzero((target.split == "train") & (one >= 0))
    if len(rows) < 2:
        raise DataError(f"target '{target.name}' has {len(rows)} train images with exactly one label: too few to score")
    params = ["labels=exactly-one"] if target.multi_label else []
    if len(rows) > images:
        rows = np.sort(np.random.default_rng(seed).choice(rows, images, replace=False))
        params.append(f"images={images}")
    given = Inputs(
        np.asarray(store.rows(backbone, target.name, rows)[:]),
        one[rows],
        None if target.patient is None else target.patient[rows],
        seed,
        head or _no_head,
    )
    common = {
        "source": source_of(store, backbone, target.name),
        "backbone": backbone,
        "target": target.name,
        "seed": seed,
        **WHOLE_TRAIN,
        "params": ";".join(params),
        "split": "train",
        "metric": METRIC,
        "n_queries": len(rows),
    }
    found, missing = [], {}
    for name in names:
        try:
            value, low, high = SCORES[name].compute(given)
        except DataError as error:
            missing[name] = str(error)
            continue
        found.append({**common, "probe": name, "value": value, "low": low, "high": high})
    return (complete(pd.DataFrame(found)) if found else pd.DataFrame()), missing


def run_transferability(
    store: EmbeddingStore,
    results: ResultStore,
    names: Sequence[str] = tuple(SCORES),
    *,
    backbones: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    images: int = IMAGES,
    seed: int = 0,
    head_of: Callable[[str, str], Callable[[], Any]] | None = None,
) -> tuple[int, list[dict[str, str]]]:
    """`transferability` on all the store holds (or what is named), appended; rows added, and what could not be had.

    Scores that the results have already are not redone. head_of: (backbone, target) -> `head`.
    """
    plan = backbones_of(store, targets, backbones)
    have = results.read(["backbone", "target", "probe", "seed", "metric", "params"])
    have = have[(have["metric"] == METRIC) & (have["seed"] == seed)]
    done = set(zip(have["backbone"], have["target"], have["probe"], have["params"].map(_images_of), strict=True))
    added, missing = 0, []
    with progress("transferability", sum(len(some) for some in plan.values()), "backbones") as advance:
        for target_name, some in plan.items():
            target = store.target(target_name)
            n = int(((target.split == "train") & (target.exactly_one() >= 0)).sum())
            for backbone in some:
                rest = [s for s in names if (backbone, target_name, s, min(images, n) if n > images else 0) not in done]
                if rest:
                    head = None if head_of is None else head_of(backbone, target_name)
                    rows, absent = transferability(store, backbone, target, rest, images=images, seed=seed, head=head)
                    results.append(rows)
                    added += len(rows)
                    missing += [
                        {"backbone": backbone, "target": target_name, "score": name, "reason": reason}
                        for name, reason in absent.items()
                    ]
                advance(1)
    return added, missing


def _images_of(params: str) -> int:
    """How many images were drawn, by `params`; 0: all."""
    words = dict(word.partition("=")[::2] for word in params.split(";"))
    return int(words.get("images", 0))


def _no_head() -> Any:
    raise DataError("LEEP needs the classifier that the backbone was trained with, and nothing said where it is")
