"""What an episode is, and a window of episodes as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError
from fastxfer.targets.table import SPLITS

Ints = NDArray[np.int64]

LABELS = ("exactly-one", "per-label")
QUERY_PRIORS = ("balanced", "natural")


@dataclass(frozen=True)
class EpisodeSpec:
    """What an episode is.

    ways:          number of classes drawn an episode, or "all" (all-way k-shot: every class, in order)
    shots:         support images a class, from the train split; per-label: positives, and as many negatives, a label
    queries:       query images a class (per-label: positives, and as many negatives, a label), or "all": the whole
                   query split (only with ways="all"; Cherti & Jitsev 2021, BiT)
    query_split:   where queries come from: "test", or "val" for anything that serves a choice
    at_least:      leave out classes with fewer train images than this (0: a scarce class is an error)
    labels:        what a multi-label target serves with. "exactly-one": its images with one positive label, as if
                   single-label (Cherti & Jitsev 2021). "per-label": each label is a yes-or-no question of its own
    query_prior:   "balanced": as many queries from each class. "natural": the same number in all, drawn from the
                   images of the episode's classes as they come, so that frequent classes are frequent queries
    imbalance:     None: as many support images in each class. A number α: one each, and the rest as proportions that
                   are Dirichlet(α, …, α) would have it: the smaller, the more uneven; ways × shots images in all
    fewer_queries: where queries are scarce, take as many as the scarcest class has, the same number for all classes,
                   instead of failing; and images of patients who are in train and in the query split leave the queries,
                   not the support
    """

    ways: int | Literal["all"]
    shots: int
    queries: int | Literal["all"] = 15
    query_split: str = "test"
    at_least: int = 0
    labels: str = "exactly-one"
    query_prior: str = "balanced"
    imbalance: float | None = None
    fewer_queries: bool = False

    def __post_init__(self) -> None:
        if self.ways != "all" and self.ways < (1 if self.per_label else 2):
            raise UsageError(f"ways must be at least {1 if self.per_label else 2} or 'all', got {self.ways}")
        if self.shots < 1:
            raise UsageError(f"shots must be at least 1, got {self.shots}")
        if self.queries != "all" and self.queries < 1:
            raise UsageError(f"queries must be at least 1 or 'all', got {self.queries}")
        if self.queries == "all" and self.ways != "all":
            raise UsageError(
                "queries 'all' (the whole query split) goes with ways 'all'; give a number of queries a class"
            )
        if self.query_split not in SPLITS or self.query_split == "train":
            raise UsageError(f"query split must be 'test' or 'val', got '{self.query_split}'")
        if self.labels not in LABELS:
            raise UsageError(f"labels must be {' or '.join(LABELS)}, got '{self.labels}'")
        if self.query_prior not in QUERY_PRIORS:
            raise UsageError(f"query prior must be {' or '.join(QUERY_PRIORS)}, got '{self.query_prior}'")
        if self.query_prior == "natural" and self.queries == "all":
            raise UsageError(
                "queries 'all' (the whole query split) has the natural prior already: leave the query prior out, or "
                "give a number of queries a class"
            )
        if self.imbalance is not None:
            if not (np.isfinite(self.imbalance) and self.imbalance > 0):
                raise UsageError(f"imbalance must be a number above 0, got {self.imbalance}")
            if self.per_label:
                raise UsageError("imbalance is about classes: per-label episodes have k positives and k negatives")
            object.__setattr__(self, "imbalance", float(self.imbalance))  # 1 and 1.0 are one spec, of one hash

    @property
    def per_label(self) -> bool:
        return self.labels == "per-label"

    def unusual(self) -> dict[str, Any]:
        """Options after `at_least` that are not at their default."""
        return {f.name: getattr(self, f.name) for f in fields(self)[5:] if getattr(self, f.name) != f.default}

    def identity(self) -> dict[str, Any]:
        """What the hash of a list of episodes knows of its spec.

        Options that came after the first lists were drawn count only where they are used, so older hashes stay.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)[:5]} | self.unusual()


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes `first` … `first + n_episodes − 1` of a (target, spec, seed).

    classes        (n_episodes, ways) class of the target behind each episode label
    support        (n_episodes, m) rows of the target, class after class; m = ways * shots
    support_labels (m,) 0 … ways − 1, or (n_episodes, m) with imbalanced support
    query          (n_episodes, n_queries) rows, or (1, n_queries) where all episodes share the query split
    query_labels   (n_queries,) 0 … ways − 1, or (n_episodes, n_queries) with the natural prior
    hash           names the whole endless list that these are a window of

    Per-label episodes: support is label after label, k positives then k negatives, m = 2 * ways * k. An image may be
    there twice, for two labels. Labels are float32 with 1 = positive, 0 = negative, NaN = not to be looked at.

    support_labels (m, ways) the same for all episodes: a support image is known for the one label that it was drawn
                   for, so each label has exactly k positives and k negatives, and its problem is that of its 2k rows
    query_labels   (n_queries, ways): balanced queries are like the support; the whole query split has all that is
                   known. With the natural prior (n_episodes, n_queries, ways), all that is known
    """

    target: str
    spec: EpisodeSpec
    seed: int
    first: int
    classes: Ints
    support: Ints
    support_labels: NDArray[Any]
    query: Ints
    query_labels: NDArray[Any]
    hash: str

    @property
    def n_episodes(self) -> int:
        return len(self.support)

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    @property
    def n_fitted(self) -> int:
        """Support images of one problem: m, or per-label the 2k of a label."""
        return self.support.shape[1] // (self.ways if self.spec.per_label else 1)

    @property
    def n_queries(self) -> int:
        return self.query.shape[1]

    def window(self, start: int, stop: int) -> Episodes:
        """Episodes `start` … `stop − 1` of these, counted from 0."""
        alike = 2 if self.spec.per_label else 1  # axes of labels that all episodes share
        return Episodes(
            target=self.target,
            spec=self.spec,
            seed=self.seed,
            first=self.first + start,
            classes=self.classes[start:stop],
            support=self.support[start:stop],
            support_labels=self.support_labels
            if self.support_labels.ndim == alike
            else self.support_labels[start:stop],
            query=self.query if len(self.query) == 1 else self.query[start:stop],
            query_labels=self.query_labels if self.query_labels.ndim == alike else self.query_labels[start:stop],
            hash=self.hash,
        )
