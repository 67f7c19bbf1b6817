"""A few-shot study as data: what is run on which backbones and targets. Validated when made, hashed, easily stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fastxfer.episodes import EpisodeSpec
from fastxfer.errors import UsageError, nearest
from fastxfer.metrics import METRICS
from fastxfer.targets.table import Target

DEFAULT_WAYS = 5
DEFAULT_QUERIES = 15

# What rows say in `params`, behind the probe's own setting, of episodes that are not the usual ones of their ways and shots.
EPISODE_OPTIONS = ("queries", "at_least", "labels", "query_prior", "imbalance", "fewer_queries", "dropped")


def params_of(setting: str, spec: EpisodeSpec, dropped: str = "") -> str:
    """The `params` of a row: a probe's setting, and whatever sets its episodes apart from the usual ones.

    dropped: what was taken out of test, see `Target`
    """
    usual = "all" if spec.ways == "all" else DEFAULT_QUERIES
    options: dict[str, Any] = {"queries": spec.queries} if spec.queries != usual else {}
    options |= ({"at_least": spec.at_least} if spec.at_least else {}) | spec.unusual()
    options |= {"dropped": dropped} if dropped else {}
    return ";".join([setting, *(name if value is True else f"{name}={value}" for name, value in options.items())])


def episode_options(params: str) -> tuple[str, ...]:
    """What `params_of` has added to a probe's setting."""
    return tuple(word for word in params.split(";") if word.partition("=")[0] in EPISODE_OPTIONS)


def dropped_of(params: str) -> str:
    """What the `params` of a row say was taken out of test; "" for nothing."""
    return dict(word.partition("=")[::2] for word in params.split(";")).get("dropped", "")


@dataclass(frozen=True)
class Protocol:
    """Few-shot study.

    ways:        classes an episode, "all", or None: 5, or all of them where a target has fewer; per-label: all labels
    shots:       support images a class; classes, queries and nested support are shared by all of them
    queries:     query images a class; None: 15, or the whole query split for ways "all"
    metrics:     none given: accuracy where each class has as many queries; with the whole query split or the natural
                 prior, whose classes may be of any size, balanced accuracy and AUC too; per-label: AUC and average
                 precision
    query_split: "test", or "val" for anything that serves a choice
    drop_scarce: leave out classes with too few images for the largest of `shots` instead of failing
    labels, query_prior, imbalance, fewer_queries: as in `EpisodeSpec`
    per_class:   also each class alone, in rows "auc:NAME"; every episode must hold every class
    """

    ways: int | Literal["all"] | None = None
    shots: tuple[int, ...] = (1, 5)
    queries: int | Literal["all"] | None = None
    query_split: str = "test"
    episodes: int = 1000
    seed: int = 0
    metrics: tuple[str, ...] = ()
    drop_scarce: bool = False
    labels: str = "exactly-one"
    query_prior: str = "balanced"
    imbalance: float | None = None
    fewer_queries: bool = False
    per_class: bool = False

    def __post_init__(self) -> None:
        if self.imbalance is not None:
            object.__setattr__(self, "imbalance", float(self.imbalance))  # 1 and 1.0 are one study, of one hash
        if not self.shots:
            raise UsageError("no shots given")
        if self.episodes < 1:
            raise UsageError(f"episodes must be at least 1, got {self.episodes}")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UsageError(
                    f"unknown metric '{metric}': choose among {', '.join(METRICS)}.{nearest(metric, METRICS)}"
                )
            if self.labels == "per-label" and METRICS[metric].single_label_only:
                raise UsageError(
                    f"metric '{metric}' is for one label an image: with per-label episodes choose among "
                    f"{', '.join(m for m, own in METRICS.own.items() if not own.single_label_only)}"
                )
        if self.per_class and self.ways != "all" and not (self.labels == "per-label" and self.ways is None):
            raise UsageError(
                "values of each class want every class in every episode: --per-class goes with --ways all, or with --labels "
                "per-label and all labels"
            )
        for shots in self.shots:
            usual: int | Literal["all"] = "all" if self.labels == "per-label" else DEFAULT_WAYS
            self._spec(usual if self.ways is None else self.ways, shots)

    def spec(self, target: Target, shots: int) -> EpisodeSpec:
        """The episodes of one target at one number of shots."""
        ways = self.ways
        if ways is None:
            ways = "all" if self.labels == "per-label" else min(DEFAULT_WAYS, len(target.class_names))
        return self._spec(ways, shots)

    def metrics_of(self, spec: EpisodeSpec) -> tuple[str, ...]:
        """The metrics to compute on the episodes of a spec."""
        if self.metrics:
            return self.metrics
        if spec.per_label:
            return ("auc", "average_precision")
        uneven = spec.queries == "all" or spec.query_prior == "natural"
        return ("accuracy", "balanced_accuracy", "auc") if uneven else ("accuracy",)

    def _spec(self, ways: int | Literal["all"], shots: int) -> EpisodeSpec:
        queries = self.queries
        if queries is None:
            queries = "all" if ways == "all" and self.query_prior == "balanced" else DEFAULT_QUERIES
        at_least = max(self.shots) if self.drop_scarce else 0
        return EpisodeSpec(
            ways, shots, queries, self.query_split, at_least,
            labels=self.labels, query_prior=self.query_prior, imbalance=self.imbalance,
            fewer_queries=self.fewer_queries,
        )  # fmt: skip

    @property
    def hash(self) -> str:
        """Names the protocol: equal studies, equal hashes."""
        # Options that came after the first studies count only where they are used, so older hashes stay.
        later = {f.name: f.default for f in fields(self)[8:]}
        told = {name: value for name, value in asdict(self).items() if later.get(name, ...) != value}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
