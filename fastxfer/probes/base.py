"""What every probe is: a name, an op, the hyper-parameters it is run at, and what it does to the embeddings first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.choosing import Path
from fastxfer.episodes import Episodes
from fastxfer.estimators import EpisodeEstimator
from fastxfer.transforms import STANDARDISE, check_transforms, per_image, standardise_episodes, transform

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a probe says at one setting.

    params     the setting as it stands in the rows, "l2=0.04"
    scores     (n_episodes, n_queries, ways), or (n_queries, n_classes) on the full split; larger is likelier
    converged  (n_episodes,) or scalar: whether the solver reached its tolerance (closed forms always do)
    l2         the penalty, one for all or (n_episodes,) where each episode has chosen its own; NaN where there is none
    objective  (n_episodes,) or scalar: (1/m) Σ loss + (l2/2)‖W‖² at the solution, NaN for probes without one
    at_edge    whether the penalty was chosen and is the smallest or largest of its grid: a wider one might do better
    """

    params: str
    scores: Array
    converged: Array
    l2: float | Array = float("nan")
    objective: Array | None = None
    at_edge: bool | Array = False


@dataclass(frozen=True, eq=False)
class Answer:
    """What a probe says of a window of episodes at one setting.

    scores         (n_episodes, n_queries, ways) that compare across queries; per-label: above 0 is yes
    probabilities  of the same shape, or None where the probe gives none
    converged      (n_episodes,)
    l2, at_edge    as in `Solution`; per-label the geometric mean over labels, and whether any is at an edge
    """

    params: str
    scores: Array
    probabilities: Array | None
    converged: Array
    l2: float | Array = float("nan")
    at_edge: bool | Array = False


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
class Probe(EpisodeEstimator, ABC):
    """A probe with its settings; subclasses are immutable, so a probe can be shared and hashed.

    transform  what is done to the embeddings first, in this order (`fastxfer.transforms`)
    preset     the published protocol that the settings were taken from ("" for none)
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    gives_probabilities: ClassVar[bool] = False
    transform: tuple[str, ...] = field(default=(), kw_only=True)
    preset: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        check_transforms(self.transform)

    @property
    def variant(self) -> str:
        """What `params` say behind a setting: the transforms and the preset."""
        words = [f"transform={'+'.join(self.transform)}"] if self.transform else []
        return ";".join([*words, *([f"preset={self.preset}"] if self.preset else [])])

    def settings(self, n_support: int) -> list[str]:
        """The `params` of the solutions, in order, before anything is solved."""
        return [";".join([words, *([self.variant] if self.variant else [])]) for words in self._settings(n_support)]

    @abstractmethod
    def _settings(self, n_support: int) -> list[str]:
        """`settings` without the variant."""

    @abstractmethod
    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        """One batched call of the op, at every setting, on the embeddings as they stand in the pool."""

    def n_weights(self, n_support: int, ways: int) -> int | None:
        """How many weight vectors score a query, if that is how the op may score it (`ops.products_of`)."""
        return None

    @property
    def reads_blocks(self) -> bool:
        """Whether `solve_full` takes rows that are read block by block, rather than arrays alone."""
        return False

    def features(self, x: Array, train: Array, *, full: bool = False) -> Array:
        """Embeddings after the transforms, statistics from rows `train`; `standardise` only on a full train split."""
        return transform(x, self.transform if full else per_image(self.transform), train=train)

    def check_spec(self, shots: int, per_label: bool, query_split: str) -> None:
        """`UsageError` for episodes that the probe can not serve, before any is solved."""
        return

    @property
    def best_by(self) -> str:
        """The metric by which the settings of a full probe compete on validation."""
        return "balanced_accuracy"

    @property
    def held_out_share(self) -> float:
        """The part of a full train split that is held out where the target has no validation split."""
        return 0.2

    @property
    def chooses_on_val(self) -> bool:
        """Whether `choose_on` has to be asked before `solve`."""
        return False

    def choose_on(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, query_labels: Array, ways: int
    ) -> Probe:
        """This probe with the setting that does best on validation queries of some episodes, taken together."""
        return self

    def at_edge(self, position: int | Array) -> Array:
        """Whether places in the list of settings are at an end of a grid of penalties."""
        return np.zeros(np.shape(position), bool)

    def solve(
        self,
        pool: ops.Pool,
        support: Array,
        support_labels: Array,
        query: Array,
        ways: int,
        *,
        groups: Array | None = None,
    ) -> Iterator[Solution]:
        """Solve a window of episodes: support (E, m), query (E or 1, q) rows of the pool, labels (m,) or (E, m).

        The pool's embeddings are those of `features`. groups (n_images,): images of one group (a patient) stay
        together where part of the support is held out to choose a penalty.
        """
        got = self._solve(pool, support, support_labels, query, ways)
        for i, (params, l2) in enumerate(
            zip(self.settings(support.shape[1]), self._l2_of_settings(support.shape[1]), strict=True)
        ):
            objective = None if np.isnan(got.objective).all() else got.objective[:, i]
            yield Solution(params, got.scores[:, i], got.converged[:, i], l2, objective)

    def _l2_of_settings(self, m: int) -> Sequence[float]:
        return [float("nan")] * len(self.settings(m))

    def _solve(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        """`_path`, with `standardise` where it is asked for: then each episode has features, and products, of its own."""
        if STANDARDISE not in self.transform:
            return self._path(pool, support, labels, query, ways)
        e, m = support.shape
        query = np.broadcast_to(query, (e, query.shape[1]))
        parts = []
        for window in ops.blocks(e, 8 * pool.dim * (m + query.shape[1])):
            x = standardise_episodes(pool.x, support[window], query[window])
            rows = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])
            own = ops.Pool(
                x.reshape(-1, pool.dim), backend=pool.backend, dtype=pool.dtype.name, gram=False, threads=pool.threads,
                centred=True,
            )  # fmt: skip
            y = labels if labels.ndim == 1 else labels[window]
            parts.append(self._path(own, rows[:, :m], y, rows[:, m:], ways))
        return Path(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

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

    def answer(self, pool: ops.Pool, episodes: Episodes, groups: Array | None = None) -> Iterator[Answer]:
        """Solve a window of episodes, single-label or per-label, at each setting; pool and groups as in `solve`."""
        if episodes.spec.per_label:
            yield from self._answer_per_label(pool, episodes, groups)
            return
        for got in self.solve(
            pool, episodes.support, episodes.support_labels, episodes.query, episodes.ways, groups=groups
        ):
            scores = self.probabilities(got.scores, multi_label=False)
            chance = scores if self.gives_probabilities else None
            yield Answer(got.params, scores, chance, got.converged, got.l2, got.at_edge)

    def _answer_per_label(self, pool: ops.Pool, episodes: Episodes, groups: Array | None) -> Iterator[Answer]:
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
        for got in self.solve(pool, support, np.repeat([1, 0], k), query, 2, groups=groups):
            odds = got.scores[..., 1] - got.scores[..., 0]
            chance = self.probabilities(got.scores, multi_label=False)[..., 1] if self.gives_probabilities else None
            yield Answer(
                got.params,
                _by_query(odds, n, ways, own),
                None if chance is None else _by_query(chance, n, ways, own),
                np.asarray(np.all(got.converged.reshape(n, ways), axis=1)),
                got.l2 if np.ndim(got.l2) == 0 else np.exp(np.log(got.l2).reshape(n, ways).mean(axis=1)),
                got.at_edge
                if np.ndim(got.at_edge) == 0
                else np.asarray(np.reshape(got.at_edge, (n, ways)).any(axis=1)),
            )


def closed_form(scores: Array) -> Path:
    """The path of a probe that has nothing to converge."""
    shape = scores.shape[:2]
    return Path(scores, np.ones(shape, bool), np.full(shape, np.nan))
