"""Probes that compare with the support: nearest class mean, nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.choosing import Path
from fastxfer.errors import UsageError
from fastxfer.probes.base import Probe, Solution, closed_form
from fastxfer.progress import say

Array = NDArray[Any]


@dataclass(frozen=True)
class PrototypeProbe(Probe):
    """Nearest class mean (Snell et al. 2017)."""

    name: ClassVar[str] = "prototype"
    summary: ClassVar[str] = "nearest class mean"
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("euclidean", "cosine"):
            raise UsageError(f"prototype metric must be 'euclidean' or 'cosine', got '{self.metric}'")

    def _settings(self, n_support: int) -> list[str]:
        return [f"metric={self.metric}"]

    def at(self, position: int, n_support: int) -> Probe:
        return self

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        return closed_form(ops.prototype(pool, support, labels, query, ways, metric=self.metric)[:, None])

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        raise UsageError("the full train split is probed by 'logistic' (fastxfer probe) or 'knn' (fastxfer knn)")


@dataclass(frozen=True)
class KnnProbe(Probe):
    """Cosine nearest neighbours, votes weighted by exp(similarity / temperature) (Wu et al. 2018; DINO's k = 20, 0.07).

    k is cut to the number of support images. `temperature=None` is the plain vote; with `by_distance` votes weigh one over
    the cosine distance, 1 / (1 − similarity), whatever the temperature, and images at no distance share them all, as with
    scikit-learn's weights="distance" and metric="cosine". `index` is how a full train split is
    searched: "flat" exactly, "ivf" or "hnsw" approximately; the share of exact neighbours found is said, and in `params`.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "cosine nearest neighbours, temperature-weighted vote"
    gives_probabilities: ClassVar[bool] = True
    k: tuple[int, ...] = (20,)
    temperature: float | None = 0.07
    index: str = "flat"
    by_distance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index not in ops.INDEXES:
            raise UsageError(f"index must be one of {', '.join(ops.INDEXES)}, got '{self.index}'")
        if not self.k or min(self.k) < 1:
            raise UsageError(f"k must be at least 1, got {min(self.k, default='none')}")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"temperature must be positive, got {self.temperature}")

    @property
    def variant(self) -> str:
        vote = "vote=plain" if self.temperature is None else f"temperature={self.temperature:g}"
        words = ["vote=distance" if self.by_distance else vote]
        words += [f"index={self.index}"] if self.index != "flat" else []
        return ";".join([*words, *([super().variant] if super().variant else [])])

    def k_values(self, m: int) -> list[int]:
        return sorted({min(k, m) for k in self.k})

    def _settings(self, n_support: int) -> list[str]:
        return [f"k={k}" for k in self.k_values(n_support)]

    def at(self, position: int, n_support: int) -> Probe:
        return replace(self, k=(self.k_values(n_support)[position],))

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        k = self.k_values(support.shape[1])
        vote: dict[str, Any] = {"temperature": self.temperature, "by_distance": self.by_distance}
        return closed_form(ops.knn(pool, support, labels, query, ways, k=k, **vote))

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        got = ops.knn_full(
            x, y, query, n_classes, k=self.k_values(len(x)), temperature=self.temperature, index=self.index,
            by_distance=self.by_distance,
        )  # fmt: skip
        how = ""
        if self.index != "flat":
            say(f"knn: {self.index} found {got.recall:.2%} of the exact nearest neighbours")
            how = f";recall={got.recall:.4f}"
        for scores, params in zip(got.scores, self.settings(len(x)), strict=True):
            yield Solution(params + how, scores, np.asarray(True))
