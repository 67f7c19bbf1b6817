"""Probes for people with arrays and no store: `LogisticProbe().fit_predict_episodes(X, y, episodes)`.

Arrays are NumPy's or torch's. Episodes are pairs of row numbers, `(support, query)`, from `episodes_of`, from
`sample_episodes`, or the reader's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer import ops
from fastxfer.episodes import Episodes, EpisodeSpec, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.targets import Target, make_split

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class FittedEpisodes:
    """What a probe said of E episodes at S settings.

    params     (S,) the settings, "l2=0.04"
    classes    (E, ways) the values of y in each episode, ascending: what the last axis of `scores` stands for
    scores     (S, E, q, ways); the largest names the predicted class
    truth      (E, q) y of the queries
    l2         (S, E) penalties, NaN where the probe has none
    at_edge    (S, E) whether a penalty was chosen and is the smallest or largest of its grid
    converged  (S, E)
    """

    params: tuple[str, ...]
    classes: Array
    scores: Array
    truth: Array
    l2: Array
    at_edge: Array
    converged: Array

    @property
    def predicted(self) -> Array:
        """(S, E, q) values of y."""
        found = self.scores.argmax(axis=-1)
        return np.asarray(
            np.take_along_axis(np.broadcast_to(self.classes, (len(found), *self.classes.shape)), found, 2)
        )

    @property
    def accuracy(self) -> Array:
        """(S, E) share of queries that were predicted right."""
        return np.asarray((self.predicted == self.truth).mean(axis=-1))


class EpisodeEstimator:
    """The methods of every probe that take plain arrays."""

    def fit_episodes(
        self, X: Any, y: Any, episodes: Any, *, val: Any = None, train: ArrayLike | None = None, groups: Any = None,
        backend: str = "auto", dtype: str = "float32", threads: int | None = None,
    ) -> FittedEpisodes:  # fmt: skip
        """Fit every episode's support and score its queries, all in a few batched calls.

        X         (n, d) embeddings, a NumPy or torch array of floats
        y         (n,) labels: anything that can be sorted
        episodes  (support, query), rows of X: (E, m) and (E, q), or (1, q) where all share their queries. The classes of
                  an episode are those in its support, as many in every episode. Or what `sample_episodes` gives
        val       the same, for `l2_by="val"`: its queries must be none of those of `episodes`
        train     rows whose mean the transform `centre` subtracts (default: all that serve as support)
        groups    (n,) who an image is of (a patient): their images stay together where part of the support is held out

        `DataError` for arrays of a wrong shape or type, `UsageError` for episodes that do not fit them.
        """
        x, labels = _array(X), _array(y)
        if x.ndim != 2 or x.dtype.kind != "f" or labels.shape != (len(x),):
            raise DataError(f"X must be floats (n, d) and y (n,), got {x.dtype} {x.shape} and {labels.shape}")
        codes: Array | None = None
        if groups is not None:
            codes = np.unique(_array(groups), return_inverse=True)[1]
            if codes.shape != (len(x),):
                raise DataError(f"groups must be ({len(x)},) for {len(x)} embeddings, got {codes.shape}")
        support, query = _pair(episodes, len(x), "episodes")
        named, code = np.unique(labels, return_inverse=True)
        classes, support_labels = _relabelled(code[support])
        probe: Any = self  # a `fastxfer.probes.Probe`, which knows this class and not the other way round
        sets = [support]
        if val is not None:
            val_support, val_query = _pair(val, len(x), "val")
            if np.isin(val_query, query).any():
                raise UsageError("val: some of its queries are queries of the episodes: nothing may be chosen on those")
            sets.append(val_support)
        used = np.unique(np.concatenate([s.ravel() for s in sets]))
        probe.check_spec(support.shape[1] // classes.shape[1], False, "")
        pool = ops.Pool(
            probe.features(x, used if train is None else _array(train)),
            support=used, backend=backend, dtype=dtype, threads=threads,
        )  # fmt: skip
        if val is not None and probe.chooses_on_val:
            val_classes, val_labels = _relabelled(code[val_support])
            truth = _places(np.broadcast_to(code[val_query], (len(val_support), val_query.shape[1])), val_classes)
            probe = probe.choose_on(pool, val_support, val_labels, val_query, truth, val_classes.shape[1])
        solutions = list(probe.solve(pool, support, support_labels, query, classes.shape[1], groups=codes))
        shape = (len(solutions), len(support))
        return FittedEpisodes(
            params=tuple(s.params for s in solutions),
            classes=named[classes],
            scores=np.stack([s.scores for s in solutions]),
            truth=np.broadcast_to(labels[query], (len(support), query.shape[1])),
            l2=np.stack([np.broadcast_to(s.l2, shape[1:]) for s in solutions]),
            at_edge=np.stack([np.broadcast_to(s.at_edge, shape[1:]) for s in solutions]),
            converged=np.stack([s.converged for s in solutions]),
        )

    def fit_predict_episodes(self, X: Any, y: Any, episodes: Any, **options: Any) -> Array:
        """(E, q) predicted values of y, or (S, E, q) for a probe with S > 1 settings; arguments as `fit_episodes`."""
        predicted = self.fit_episodes(X, y, episodes, **options).predicted
        return np.asarray(predicted[0] if len(predicted) == 1 else predicted)

    def fit_score_episodes(self, X: Any, y: Any, episodes: Any, **options: Any) -> Array:
        """(E,) accuracy of each episode, or (S, E); arguments as `fit_episodes`."""
        accuracy = self.fit_episodes(X, y, episodes, **options).accuracy
        return np.asarray(accuracy[0] if len(accuracy) == 1 else accuracy)


def episodes_of(
    y: Any, *, ways: int = 5, shots: int = 5, queries: int = 15, episodes: int = 1000, seed: int = 0,
    split: Sequence[str] | None = None, groups: Any = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Draw N-way k-shot episodes from labels alone: support (E, ways · shots) and query (E, ways · queries) rows.

    split   (n,) "train" (support) or "test" (queries) of each image; default: half of each class, drawn with `seed`
    groups  (n,) who an image is of (a patient), so that nobody is on both sides

    Errors and guarantees are those of `sample_episodes`.
    """
    labels = _array(y)
    if labels.ndim != 1:
        raise DataError(f"y must be (n,), got {labels.shape}")
    named, code = np.unique(labels, return_inverse=True)
    image_id = np.array([f"{i:09}" for i in range(len(labels))])
    patient = None if groups is None else _array(groups).astype(str)
    if split is None:
        sides = make_split(image_id, code, patient, fractions={"train": 0.5, "test": 0.5}, seed=seed)
    else:
        sides = np.asarray(split).astype(str)
    target = Target(
        name="arrays",
        image_id=image_id,
        class_names=tuple(str(name) for name in named),
        labels=code,
        split=sides,
        patient=patient,
    )
    drawn = sample_episodes(target, EpisodeSpec(ways, shots, queries), seed, episodes)
    return drawn.support, drawn.query


def _array(values: Any) -> Array:
    """NumPy's view of an array of NumPy or torch, wherever it lies."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # NumPy has no such type
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


def _pair(episodes: Any, n: int, what: str) -> tuple[Array, Array]:
    if isinstance(episodes, Episodes):
        if episodes.spec.per_label:
            raise UsageError("per-label episodes are answered by `Probe.answer`")
        episodes = (episodes.support, episodes.query)
    try:
        support, query = (_array(rows) for rows in episodes)
    except (TypeError, ValueError):
        raise UsageError(f"{what} must be a pair of row numbers (support, query), or made by sample_episodes") from None
    for name, rows in (("support", support), ("query", query)):
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or not rows.size or rows.min() < 0 or rows.max() >= n:
            raise UsageError(f"{what}: {name} must be integer rows 0 … {n - 1} of X, one line an episode")
    return support, query


def _relabelled(codes: Array) -> tuple[Array, Array]:
    """(E, m) class codes -> (E, ways) codes of each episode's classes, ascending, and (E, m) 0 … ways − 1."""
    ordered = np.sort(codes, axis=1)
    fresh = np.concatenate([np.ones((len(codes), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    count = fresh.sum(axis=1)
    if count.min() != count.max() or count.min() < 2:
        raise UsageError(
            f"every episode's support must hold equally many classes, at least 2; here they hold {count.min()} to "
            f"{count.max()}: pass episodes with different numbers of classes in separate calls"
        )
    classes = ordered[fresh].reshape(len(codes), -1)
    return classes, _places(codes, classes)


def _places(codes: Array, classes: Array) -> Array:
    """(E, q) place of each code among its episode's classes; `UsageError` for a code that is not one of them."""
    hit = codes[:, :, None] == classes[:, None, :]
    if not hit.any(axis=2).all():
        raise UsageError("val: a query is of a class that the episode's support does not hold")
    return np.asarray(hit.argmax(axis=2))
