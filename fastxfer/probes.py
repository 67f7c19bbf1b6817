"""Probes: classifiers on frozen embeddings. A probe is a name, an op, and the hyper-parameters it is run at.

`Probe.solve` answers a window of few-shot episodes in one batched call an op; `Probe.solve_full` answers the full train
split. Both give one `Solution` a hyper-parameter setting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.choosing import CRITERIA, L2_BY, Path, best, choose_by_folds, merit
from fastxfer.episodes import Episodes
from fastxfer.errors import UsageError, nearest
from fastxfer.estimators import EpisodeEstimator
from fastxfer.metrics import NEED_PROBABILITIES, softmax
from fastxfer.progress import say
from fastxfer.transforms import STANDARDISE, check_transforms, per_image, standardise, transform

Array = NDArray[Any]

# Where a penalty is chosen, scores at every value of the grid are held for a window of episodes: 64 MiB of float32.
WINDOW_SCORES = 16 * 2**20


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

    def held_settings(self, n_support: int) -> int:
        """How many sets of scores one solution needs in memory at a time."""
        return len(self.settings(n_support))

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
            x = np.concatenate(standardise(pool.x[support[window]], pool.x[query[window]]), axis=1)
            rows = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2])
            own = ops.Pool(
                x.reshape(-1, pool.dim), backend=pool.backend, dtype=pool.dtype.name, gram=False, threads=pool.threads
            )
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


@dataclass(frozen=True)
class _Penalised(Probe):
    """A probe with an l2 penalty, on the mean of the losses.

    l2         the grid; where it is empty, l2_sum / m
    l2_sum     penalties on the *sum* of the losses, so l2 = l2_sum / m for m images: 1/C in scikit-learn, the ridge
               codes' lambda. The default is scikit-learn's C = 1
    l2_by      how one of the grid is chosen (`fastxfer.choosing`), or "fixed": each is a solution of its own
    folds      of the support, for "cv" and "holdout"; a class with fewer images has as many as it has images
    criterion  what the choice makes best on held-out images: "loss" (log loss; ridge: squared error), "accuracy" or
               "balanced_accuracy"; of equals the first of the grid. None: the loss for episodes, whose few held-out
               images tie all too often; balanced accuracy for a full train split
    chosen     for "val": the place in the grid that `choose_on` has found
    """

    l2: tuple[float, ...] = ()
    l2_sum: tuple[float, ...] = field(default=(1.0,), kw_only=True)
    l2_by: str = field(default="fixed", kw_only=True)
    folds: int = field(default=5, kw_only=True)
    criterion: str | None = field(default=None, kw_only=True)
    chosen: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (*self.l2, *self.l2_sum):
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"l2 must be positive, got {value:g}")
        for what, got, known in (("l2_by", self.l2_by, L2_BY), ("criterion", self._criterion, CRITERIA)):
            if got not in known:
                raise UsageError(f"{what} must be one of {', '.join(known)}, got '{got}'")
        if self.folds < 2:
            raise UsageError(f"folds must be at least 2, got {self.folds}")

    def l2_values(self, m: int) -> tuple[float, ...]:
        """The grid for a fit to m images."""
        return self.l2 or tuple(value / m for value in self.l2_sum)

    def _l2_of_settings(self, m: int) -> Sequence[float]:
        return self.l2_values(m)

    def _settings(self, n_support: int) -> list[str]:
        if self.l2_by == "fixed":
            return [_l2_params(value) for value in self.l2_values(n_support)]
        folds = [f"folds={self.folds}"] if self.l2_by in ("cv", "holdout") else []
        criterion = [f"criterion={self.criterion}"] if self._criterion != "loss" else []
        grid = f"l2={_grid(self.l2)}" if self.l2 else f"l2_sum={_grid(self.l2_sum)}"
        return [";".join([f"l2_by={self.l2_by}", *folds, *criterion, grid])]

    def held_settings(self, n_support: int) -> int:
        return len(self.l2_values(n_support)) if self.l2_by == "fixed" else 1

    def at(self, position: int, n_support: int) -> Probe:
        if self.l2:
            return replace(self, l2=(self.l2[position],))
        return replace(self, l2_sum=(self.l2_sum[position],))

    @property
    def best_by(self) -> str:
        return "log_loss" if self.criterion == "loss" else self.criterion or "balanced_accuracy"

    @property
    def chooses_on_val(self) -> bool:
        return self.l2_by == "val" and self.chosen is None

    def at_edge(self, position: int | Array) -> Array:
        grid = np.asarray(self.l2 or self.l2_sum)
        return np.asarray((len(grid) > 1) & np.isin(grid[position], (grid.min(), grid.max())))

    def check_spec(self, shots: int, per_label: bool, query_split: str) -> None:
        if self.l2_by in ("cv", "holdout") and shots < 2:
            raise UsageError(
                f"l2_by '{self.l2_by}' holds out part of the support, which 1 shot does not leave: ask for --shots 2 or "
                "more, or --l2-by fixed or val"
            )
        if self.l2_by == "val" and query_split == "val":
            raise UsageError("l2_by 'val' chooses on the validation split, so queries can not come from there too")
        if self.l2_by == "val" and per_label:
            raise UsageError("l2_by 'val' is for one label an image: per label choose fixed, holdout or cv")

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
        m = support.shape[1]
        if self.l2_by == "fixed":
            yield from super().solve(pool, support, support_labels, query, ways)
            return
        if self.l2_by == "val":
            if self.chosen is None:
                raise UsageError("l2_by 'val' needs validation queries: see `choose_on`")
            got = self._at_chosen()._solve(pool, support, support_labels, query, ways)
            value, at_edge = self.l2_values(m)[self.chosen], bool(self.at_edge(self.chosen))
            yield Solution(
                self.settings(m)[0], got.scores[:, 0], got.converged[:, 0], value, got.objective[:, 0], at_edge
            )
            return
        labels = np.broadcast_to(support_labels, support.shape)
        own = len(query) > 1
        size = len(self.l2_values(m)) * max(m, query.shape[1]) * ways
        parts = [
            self._choose_and_solve(pool, support[w], labels[w], query[w] if own else query, ways, groups)
            for w in ops.blocks(len(support), 1, max(1, WINDOW_SCORES // size))
        ]
        scores, converged, l2, objective, edge = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        yield Solution(self.settings(m)[0], scores, converged, l2, objective, edge)

    def _choose_and_solve(
        self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int, groups: Array | None
    ) -> tuple[Array, ...]:
        def solve(s: Array, y: Array, q: Array) -> Path:
            return self._solve(pool, s, y, q, ways)

        chosen, sure = choose_by_folds(
            solve, support, labels, (np.arange(len(pool)) if groups is None else groups)[support], ways,
            folds=self.folds, only_first=self.l2_by == "holdout", criterion=self._criterion, logits=self._logits,
        )  # fmt: skip
        got = self._solve(pool, support, labels, query, ways)
        e = np.arange(len(support))
        l2 = np.asarray(self.l2_values(support.shape[1]))[chosen]
        converged = got.converged[e, chosen] & sure
        return got.scores[e, chosen], converged, l2, got.objective[e, chosen], self.at_edge(chosen)

    def _at_chosen(self) -> _Penalised:
        at = self.at(self.chosen or 0, 0)
        assert isinstance(at, _Penalised)
        return replace(at, l2_by="fixed")

    def choose_on(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, query_labels: Array, ways: int
    ) -> _Penalised:
        labels = np.broadcast_to(query_labels, (len(support), query.shape[1]))
        m = support.shape[1]
        sums, counts = np.zeros((1, len(self.l2_values(m)), ways)), np.zeros((1, ways), np.int64)
        for w in ops.blocks(len(support), 1, max(1, WINDOW_SCORES // (sums.size * query.shape[1]))):
            y = support_labels if support_labels.ndim == 1 else support_labels[w]
            got = self._solve(pool, support[w], y, query[w] if len(query) > 1 else query, ways)
            added, n = merit(got.scores, labels[w], self._criterion, self._logits)
            sums, counts = sums + added.sum(axis=0), counts + n.sum(axis=0)
        return replace(self, chosen=int(best(sums, counts, self._criterion)[0]))

    @property
    def _criterion(self) -> str:
        return self.criterion or "loss"

    @property
    def _logits(self) -> bool:
        return self.gives_probabilities


def _l2_params(l2: float) -> str:
    return f"l2={l2:.6g}"


def _grid(values: Sequence[float]) -> str:
    """A grid in a few letters: first, last and number of an evenly spaced one (in the logarithm), else its values."""
    if len(values) > 4:
        steps = np.diff(np.log10(values))
        if np.abs(steps - steps[0]).max() < 1e-9:
            return f"{values[0]:.6g}..{values[-1]:.6g}/{len(values)}"
    return ",".join(f"{value:.6g}" for value in values)


def _closed_form(scores: Array) -> Path:
    shape = scores.shape[:2]
    return Path(scores, np.ones(shape, bool), np.full(shape, np.nan))


@dataclass(frozen=True)
class LogisticProbe(_Penalised):
    """Multinomial logistic regression; binary for two classes, one-vs-rest for several labels."""

    name: ClassVar[str] = "logistic"
    summary: ClassVar[str] = "logistic regression with an l2 penalty, solved to convergence"
    gives_probabilities: ClassVar[bool] = True

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        got = ops.logistic(pool, support, labels, query, ways, self.l2_values(support.shape[1]))
        return Path(got.scores, got.converged, got.objective)

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        l2 = self.l2_values(len(x))
        got = ops.logistic_full(x, y, query, n_classes, l2)
        params = replace(self, l2_by="fixed").settings(len(x))
        for i, value in enumerate(l2):
            yield Solution(params[i], got.scores[i], got.converged[i], value, got.objective[i])

    def probabilities(self, scores: Array, multi_label: bool) -> Array:
        # One-vs-rest logits rank as they are; softmax makes multinomial ones comparable between queries.
        return scores if multi_label else softmax(scores)


@dataclass(frozen=True)
class RidgeProbe(_Penalised):
    """Least squares on ±1 one-hot labels, closed form.

    bias_feature  None: the bias is not penalised. Else it is the weight of a constant feature of this value, penalised
                  like the others, as in big_vision's fewshot_lsr
    """

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = "ridge regression on ±1 labels, closed form"
    bias_feature: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias_feature is not None and self.transform[-1:] != (STANDARDISE,):
            raise UsageError(f"bias_feature goes with the transform '{STANDARDISE}', which centres each support")

    @property
    def variant(self) -> str:
        words = super().variant
        return words if self.bias_feature is None else f"bias_feature={self.bias_feature:g};{words}"

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        l2 = self.l2_values(support.shape[1])
        scores = ops.ridge(pool, support, labels, query, ways, l2)
        if self.bias_feature is not None:
            # Features are centred, so the bias stands alone: the mean of the ±1 labels, drawn towards 0 by its penalty.
            mean = 2.0 * (np.atleast_2d(labels)[..., None] == np.arange(ways)).mean(axis=1) - 1.0  # (E or 1, ways)
            drawn = 1.0 / (1.0 + np.asarray(l2) / self.bias_feature**2)
            scores = scores + (mean[:, None, None] * (drawn - 1.0)[:, None, None]).astype(scores.dtype)
        return _closed_form(scores)

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        raise UsageError("the full train split is probed by 'logistic' (fastxfer probe) or 'knn' (fastxfer knn)")


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
        return _closed_form(ops.prototype(pool, support, labels, query, ways, metric=self.metric)[:, None])

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
        super().__post_init__()
        if self.index not in ops.INDEXES:
            raise UsageError(f"index must be one of {', '.join(ops.INDEXES)}, got '{self.index}'")
        if not self.k or min(self.k) < 1:
            raise UsageError(f"k must be at least 1, got {min(self.k, default='none')}")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"temperature must be positive, got {self.temperature}")

    def k_values(self, m: int) -> list[int]:
        return sorted({min(k, m) for k in self.k})

    def _settings(self, n_support: int) -> list[str]:
        vote = "vote=plain" if self.temperature is None else f"temperature={self.temperature:g}"
        return [f"k={k};{vote}" for k in self.k_values(n_support)]

    def at(self, position: int, n_support: int) -> Probe:
        return replace(self, k=(self.k_values(n_support)[position],))

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        k = self.k_values(support.shape[1])
        return _closed_form(ops.knn(pool, support, labels, query, ways, k=k, temperature=self.temperature))

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


def make_probe(
    name: str, *, l2: Sequence[float] = (), k: Sequence[int] = (), transform: Sequence[str] = (), l2_by: str = "fixed"
) -> Probe:
    """A probe by name; options that it does not have are left aside. `UsageError` for an unknown name."""
    if name not in PROBES:
        raise UsageError(f"unknown probe '{name}': choose among {', '.join(PROBES)}.{nearest(name, PROBES)}")
    kind = PROBES[name]
    if issubclass(kind, _Penalised):
        return kind(l2=tuple(l2), transform=tuple(transform), l2_by=l2_by)
    if issubclass(kind, KnnProbe) and k:
        return kind(k=tuple(k), transform=tuple(transform))
    return kind(transform=tuple(transform))


def variant_of(params: str) -> str:
    """The `variant` of the probe whose rows carry these `params`."""
    words = ("bias_feature", "transform", "preset")
    return ";".join(word for word in params.split(";") if word.partition("=")[0] in words)


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
