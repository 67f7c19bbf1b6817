"""Probes: classifiers on frozen embeddings. A probe is a name, an op, and the hyper-parameters it is run at.

`Probe.solve` answers a window of few-shot episodes in one batched call an op; `Probe.solve_full` answers the full train
split. Both give one `Solution` a hyper-parameter setting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.episodes import Episodes
from fastxfer.errors import UsageError, nearest
from fastxfer.metrics import NEED_PROBABILITIES, softmax
from fastxfer.progress import say

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a probe says at one setting.

    params     the setting as it stands in the rows, "l2=0.04"
    scores     (n_episodes, n_queries, ways), or (n_queries, n_classes) on the full split; larger is likelier
    converged  (n_episodes,) or scalar: whether the solver reached its tolerance (closed forms always do)
    l2         the penalty, NaN where there is none
    objective  (n_episodes,) or scalar: (1/m) Σ loss + (l2/2)‖W‖² at the solution, NaN for probes without one
    """

    params: str
    scores: Array
    converged: Array
    l2: float = float("nan")
    objective: Array | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a probe says of a window of episodes at one setting.

    scores         (n_episodes, n_queries, ways) that compare across queries; per-label: above 0 is yes
    probabilities  of the same shape, or None where the probe gives none
    converged      (n_episodes,)
    """

    params: str
    scores: Array
    probabilities: Array | None
    converged: Array


def _by_query(values: Array, n: int, ways: int, own: bool) -> Array:
    """(n * ways, q) values of two-way episodes -> (n, queries, ways); NaN where a query is not one of the label's."""
    values = values.reshape(n, ways, -1)
    if not own:
        return np.moveaxis(values, 1, 2)
    q = values.shape[2]
    placed = np.full((n, ways * q, ways), np.nan, values.dtype)
    for label in range(ways):
        placed[:, label * q : (label + 1) * q, label] = values[:, label]
    return placed


@dataclass(frozen=True)
class Probe(ABC):
    """A probe with its settings; subclasses are immutable, so a probe can be shared and hashed."""

    name: ClassVar[str]
    summary: ClassVar[str]
    gives_probabilities: ClassVar[bool] = False

    @abstractmethod
    def settings(self, n_support: int) -> list[str]:
        """The `params` of the solutions, in order, before anything is solved."""

    @abstractmethod
    def solve(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, ways: int
    ) -> Iterator[Solution]:
        """Solve a window of episodes: support (E, m), query (E or 1, q) rows of the pool, labels (m,) or (E, m)."""

    @abstractmethod
    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        """Fit all of `x` (m, dim), `y` (m,) or (m, n_classes) with NaN; score `query` (q, dim)."""

    @abstractmethod
    def at(self, position: int, n_support: int) -> Probe:
        """This probe at setting number `position` alone."""

    def probabilities(self, scores: Array, multi_label: bool) -> Array:
        """Scores on a scale that compares across queries, as ranking metrics need it; as they are by default.

        Probabilities of the classes, one label an image, if the probe `gives_probabilities`.
        """
        return scores

    def answer(self, pool: ops.Pool, episodes: Episodes) -> Iterator[Answer]:
        """Solve a window of episodes, single-label or per-label, at each setting."""
        if episodes.spec.per_label:
            yield from self._answer_per_label(pool, episodes)
            return
        for got in self.solve(pool, episodes.support, episodes.support_labels, episodes.query, episodes.ways):
            scores = self.probabilities(got.scores, multi_label=False)
            yield Answer(got.params, scores, scores if self.gives_probabilities else None, got.converged)

    def _answer_per_label(self, pool: ops.Pool, episodes: Episodes) -> Iterator[Answer]:
        """Every label of an episode is known for its own 2k support images alone: a two-way episode of its own."""
        n, ways = episodes.n_episodes, episodes.ways
        support = episodes.support.reshape(n * ways, -1)
        k = support.shape[1] // 2
        query = episodes.query
        own = episodes.spec.queries != "all" and episodes.spec.query_prior == "balanced"
        if own:  # queries are known for their own label alone, too
            query = query.reshape(n * ways, -1)
        elif len(query) > 1:
            query = np.repeat(query, ways, axis=0)
        for got in self.solve(pool, support, np.repeat([1, 0], k), query, 2):
            odds = got.scores[..., 1] - got.scores[..., 0]
            chance = self.probabilities(got.scores, multi_label=False)[..., 1] if self.gives_probabilities else None
            yield Answer(
                got.params,
                _by_query(odds, n, ways, own),
                None if chance is None else _by_query(chance, n, ways, own),
                np.asarray(np.all(got.converged.reshape(n, ways), axis=1)),
            )


@dataclass(frozen=True)
class _Penalised(Probe):
    """A probe with an l2 penalty; without values, l2 = 1/m, which is scikit-learn's default C = 1."""

    l2: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for value in self.l2:
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"l2 must be positive, got {value:g}")

    def l2_values(self, m: int) -> tuple[float, ...]:
        return self.l2 or (1.0 / m,)

    def settings(self, n_support: int) -> list[str]:
        return [_l2_params(value) for value in self.l2_values(n_support)]

    def at(self, position: int, n_support: int) -> Probe:
        return replace(self, l2=(self.l2_values(n_support)[position],))


def _l2_params(l2: float) -> str:
    return f"l2={l2:.6g}"


@dataclass(frozen=True)
class LogisticProbe(_Penalised):
    """Multinomial logistic regression; binary for two classes, one-vs-rest for several labels."""

    name: ClassVar[str] = "logistic"
    summary: ClassVar[str] = "logistic regression with an l2 penalty, solved to convergence"
    gives_probabilities: ClassVar[bool] = True

    def solve(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, ways: int
    ) -> Iterator[Solution]:
        l2 = self.l2_values(support.shape[1])
        got = ops.logistic(pool, support, support_labels, query, ways, l2)
        for i, value in enumerate(l2):
            yield Solution(_l2_params(value), got.scores[:, i], got.converged[:, i], value, got.objective[:, i])

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        l2 = self.l2_values(len(x))
        got = ops.logistic_full(x, y, query, n_classes, l2)
        for i, value in enumerate(l2):
            yield Solution(_l2_params(value), got.scores[i], got.converged[i], value, got.objective[i])

    def probabilities(self, scores: Array, multi_label: bool) -> Array:
        # One-vs-rest logits rank as they are; softmax makes multinomial ones comparable between queries.
        return scores if multi_label else softmax(scores)


@dataclass(frozen=True)
class RidgeProbe(_Penalised):
    """Least squares on ±1 one-hot labels, closed form."""

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = "ridge regression on ±1 labels, closed form"

    def solve(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, ways: int
    ) -> Iterator[Solution]:
        l2 = self.l2_values(support.shape[1])
        scores = ops.ridge(pool, support, support_labels, query, ways, l2)
        for i, value in enumerate(l2):
            yield Solution(_l2_params(value), scores[:, i], np.ones(len(support), bool), value)

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        raise UsageError("the full train split is probed by 'logistic' (fastxfer probe) or 'knn' (fastxfer knn)")


@dataclass(frozen=True)
class PrototypeProbe(Probe):
    """Nearest class mean (Snell et al. 2017)."""

    name: ClassVar[str] = "prototype"
    summary: ClassVar[str] = "nearest class mean"
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        if self.metric not in ("euclidean", "cosine"):
            raise UsageError(f"prototype metric must be 'euclidean' or 'cosine', got '{self.metric}'")

    def settings(self, n_support: int) -> list[str]:
        return [f"metric={self.metric}"]

    def at(self, position: int, n_support: int) -> Probe:
        return self

    def solve(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, ways: int
    ) -> Iterator[Solution]:
        scores = ops.prototype(pool, support, support_labels, query, ways, metric=self.metric)
        yield Solution(self.settings(0)[0], scores, np.ones(len(support), bool))

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        raise UsageError("the full train split is probed by 'logistic' (fastxfer probe) or 'knn' (fastxfer knn)")


@dataclass(frozen=True)
class KnnProbe(Probe):
    """Cosine nearest neighbours, votes weighted by exp(similarity / temperature) (Wu et al. 2018; DINO's k = 20, 0.07).

    k is cut to the number of support images. `temperature=None` is the plain vote. `index` is how a full train split is
    searched: "flat" exactly, "ivf" or "hnsw" approximately; the share of exact neighbours found is said, and in `params`.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "cosine nearest neighbours, temperature-weighted vote"
    gives_probabilities: ClassVar[bool] = True
    k: tuple[int, ...] = (20,)
    temperature: float | None = 0.07
    index: str = "flat"

    def __post_init__(self) -> None:
        if self.index not in ops.INDEXES:
            raise UsageError(f"index must be one of {', '.join(ops.INDEXES)}, got '{self.index}'")
        if not self.k or min(self.k) < 1:
            raise UsageError(f"k must be at least 1, got {min(self.k, default='none')}")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"temperature must be positive, got {self.temperature}")

    def k_values(self, m: int) -> list[int]:
        return sorted({min(k, m) for k in self.k})

    def settings(self, n_support: int) -> list[str]:
        vote = "vote=plain" if self.temperature is None else f"temperature={self.temperature:g}"
        return [f"k={k};{vote}" for k in self.k_values(n_support)]

    def at(self, position: int, n_support: int) -> Probe:
        return replace(self, k=(self.k_values(n_support)[position],))

    def solve(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, ways: int
    ) -> Iterator[Solution]:
        m = support.shape[1]
        scores = ops.knn(pool, support, support_labels, query, ways, k=self.k_values(m), temperature=self.temperature)
        for i, params in enumerate(self.settings(m)):
            yield Solution(params, scores[:, i], np.ones(len(support), bool))

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        got = ops.knn_full(
            x, y, query, n_classes, k=self.k_values(len(x)), temperature=self.temperature, index=self.index
        )
        how = ""
        if self.index != "flat":
            say(f"knn: {self.index} found {got.recall:.2%} of the exact nearest neighbours")
            how = f";index={self.index};recall={got.recall:.4f}"
        for scores, params in zip(got.scores, self.settings(len(x)), strict=True):
            yield Solution(params + how, scores, np.asarray(True))


PROBES: dict[str, type[Probe]] = {p.name: p for p in (LogisticProbe, RidgeProbe, PrototypeProbe, KnnProbe)}


def make_probe(name: str, *, l2: Sequence[float] = (), k: Sequence[int] = ()) -> Probe:
    """A probe by name; options that it does not have are left aside. `UsageError` for an unknown name."""
    if name not in PROBES:
        raise UsageError(f"unknown probe '{name}': choose among {', '.join(PROBES)}.{nearest(name, PROBES)}")
    kind = PROBES[name]
    if issubclass(kind, _Penalised):
        return kind(l2=tuple(l2))
    if issubclass(kind, KnnProbe) and k:
        return kind(k=tuple(k))
    return kind()


def check_metrics(probes: Sequence[Probe], metrics: Sequence[str]) -> None:
    """`UsageError` for a metric of probabilities and a probe that gives none."""
    for metric in NEED_PROBABILITIES.intersection(metrics):
        for probe in probes:
            if not probe.gives_probabilities:
                able = [p.name for p in PROBES.values() if p.gives_probabilities]
                raise UsageError(
                    f"metric '{metric}' needs probabilities, which probe '{probe.name}' does not give: "
                    f"choose --probe {' '.join(able)}, or another metric"
                )
