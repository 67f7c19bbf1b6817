"""Probes with an l2 penalty, and how one of a grid is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.choosing import CRITERIA, L2_BY, Path, best, choose_by_folds, merit
from fastxfer.errors import UsageError
from fastxfer.metrics import softmax
from fastxfer.probes.base import Probe, Solution, closed_form
from fastxfer.transforms import STANDARDISE

Array = NDArray[Any]

# Where a penalty is chosen, scores at every value of the grid are held for a window of episodes: 64 MiB of float32.
WINDOW_SCORES = 16 * 2**20


@dataclass(frozen=True)
class Penalised(Probe):
    """A probe with an l2 penalty, on the mean of the losses.

    l2         the grid; where it is empty, l2_sum / m
    l2_sum     penalties on the *sum* of the losses, so l2 = l2_sum / m for m images: 1/C in scikit-learn, the ridge
               codes' lambda. The default is scikit-learn's C = 1
    l2_by      how one of the grid is chosen (`fastxfer.choosing`), or "fixed": each is a solution of its own
    folds      of the support, for "cv" and "holdout"; a class with fewer images has as many as it has images
    criterion  what the choice makes best on held-out images: "loss" (log loss; ridge: squared error), "accuracy" or
               "balanced_accuracy"; of equals the first of the grid. None: the loss for episodes, whose few held-out
               images tie all too often; balanced accuracy for a full train split
    val_share  of the train split that a full probe holds out where the target has no validation split
    chosen     for "val": the place in the grid that `choose_on` has found
    """

    l2: tuple[float, ...] = ()
    l2_sum: tuple[float, ...] = field(default=(1.0,), kw_only=True)
    l2_by: str = field(default="fixed", kw_only=True)
    folds: int = field(default=5, kw_only=True)
    criterion: str | None = field(default=None, kw_only=True)
    val_share: float = field(default=0.2, kw_only=True)
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

    def at(self, position: int, n_support: int) -> Probe:
        if self.l2:
            return replace(self, l2=(self.l2[position],))
        return replace(self, l2_sum=(self.l2_sum[position],))

    @property
    def best_by(self) -> str:
        return "log_loss" if self.criterion == "loss" else self.criterion or "balanced_accuracy"

    @property
    def held_out_share(self) -> float:
        return self.val_share

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

    def _at_chosen(self) -> Penalised:
        at = self.at(self.chosen or 0, 0)
        assert isinstance(at, Penalised)
        return replace(at, l2_by="fixed")

    def choose_on(
        self, pool: ops.Pool, support: Array, support_labels: Array, query: Array, query_labels: Array, ways: int
    ) -> Penalised:
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


@dataclass(frozen=True)
class LogisticProbe(Penalised):
    """Multinomial logistic regression; binary for two classes, one-vs-rest for several labels.

    tol           relative gap of the objective at which a solution counts as converged (None: that of the op)
    class_weight  None: every class counts alike. "balanced": each class seen weighs as much as any other. Or a positive
                  weight a class: of an episode's classes in ascending order, of all classes on the full split, per label
                  of negatives and positives. scikit-learn's `class_weight` at the same C = 1/(m·l2). Where part of a
                  support is held out, "balanced" is of the rest, and held-out images count alike
    """

    name: ClassVar[str] = "logistic"
    summary: ClassVar[str] = "logistic regression with an l2 penalty, solved to convergence"
    gives_probabilities: ClassVar[bool] = True
    tol: float | None = field(default=None, kw_only=True)
    class_weight: Literal["balanced"] | tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.class_weight
        if weight not in (None, "balanced") and (isinstance(weight, str) or not all(w > 0 for w in weight or ())):
            raise UsageError(f"class_weight must be None, 'balanced' or a positive number a class, got {weight!r}")
        if self.tol is not None and not self.tol > 0:
            raise UsageError(f"tol must be positive, got {self.tol}")

    @property
    def variant(self) -> str:
        weight = self.class_weight
        words = [] if weight is None else [weight if isinstance(weight, str) else ",".join(f"{w:g}" for w in weight)]
        words = [f"class_weight={word}" for word in words] + ([] if self.tol is None else [f"tol={self.tol:g}"])
        return ";".join([*words, *([super().variant] if super().variant else [])])

    def n_weights(self, n_support: int, ways: int) -> int | None:
        return len(self.l2_values(n_support)) * ways

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        l2 = self.l2_values(support.shape[1])
        got = ops.logistic(pool, support, labels, query, ways, l2, tol=self.tol, class_weight=self.class_weight)
        return Path(got.scores, got.converged, got.objective)

    @property
    def reads_blocks(self) -> bool:
        return not self.transform

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        l2 = self.l2_values(len(x))
        options: dict[str, Any] = {} if self.tol is None else {"tol": self.tol}
        got = ops.logistic_full(x, y, query, n_classes, l2, class_weight=self.class_weight, **options)
        params = replace(self, l2_by="fixed").settings(len(x))
        for i, value in enumerate(l2):
            yield Solution(params[i], got.scores[i], got.converged[i], value, got.objective[i])

    def probabilities(self, scores: Array, multi_label: bool) -> Array:
        # One-vs-rest logits rank as they are; softmax makes multinomial ones comparable between queries.
        return scores if multi_label else softmax(scores)


@dataclass(frozen=True)
class RidgeProbe(Penalised):
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
        return closed_form(scores)

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        raise UsageError("the full train split is probed by 'logistic' (fastxfer probe) or 'knn' (fastxfer knn)")
