"""The influence of every test image on the values of a cell, added up while its episodes are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.episodes import Episodes
from fastxfer.metrics.influence import INFLUENCES, influence
from fastxfer.metrics.rarity import FEWEST_POSITIVES, rarity
from fastxfer.results import NO_EPISODE, Cell, ImageSums
from fastxfer.targets import Target

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sampling:
    """How images become queries, which decides what an influence is centred on.

    power:  of `fastxfer.metrics.influence`
    strata: (n_queries,) numbers of the groups in which a fixed number of queries is drawn, or None. An image is then
            compared with the other queries of its group alone: that classes differ says nothing of other images
    scale:  √(1 − 1/M) where queries are drawn from M images of each group: influences are compared with a mean over
            images that they are part of
    """

    power: float
    strata: NDArray[np.int64] | None = None
    scale: float = 1.0


WHOLE_SPLIT = Sampling(0.5)

# Of so many episodes of a cell on a whole split, the first ones, the mean rarity is that of all.
RARITY_EPISODES = 32
# Averaged over episodes, placement values are less unequal than the prior of `rarity` has it, and fewer aren't enough.
FEWEST_POSITIVES_OF_EPISODES = 10


def sampling_of(episodes: Episodes, target: Target) -> Sampling:
    """The whole split; so many of each class (per label: of its positives and of its negatives); or as they come.

    A single query of a class has no other to be compared with, so such queries count as images that come as they come.
    """
    if episodes.spec.queries == "all":
        return WHOLE_SPLIT
    if episodes.spec.query_prior == "balanced":
        labels = np.nan_to_num(episodes.query_labels, nan=-1.0).reshape(episodes.n_queries, -1)
        _, strata, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        if counts.min() > 1:
            of_class = np.unique(target.exactly_one()[target.rows(episodes.spec.query_split)], return_counts=True)[1]
            scale = 1.0 if episodes.spec.per_label else float(np.sqrt(1 - 1 / of_class.mean()))
            return Sampling(0.0, strata.reshape(-1).astype(np.int64), scale)
    return Sampling(1.0)


class Influences:
    """Sums of influences, cell by cell: `add` what was scored, then hand `sums()` to `ResultStore.append`.

    starts: of cells that have rows already, the first episode that counts
    """

    def __init__(self, target: Target, starts: Mapping[Cell, int] | None = None) -> None:
        self._starts = starts or {}
        self._images = np.flatnonzero(target.split != "train")
        self._group = groups_of(target)[self._images]
        self._place = np.full(target.n_images, -1, np.int64)
        self._place[self._images] = np.arange(len(self._images))
        self._cells: dict[Cell, _Sums] = {}

    def add(
        self,
        cell: Cell,
        scores: Array,
        labels: Array,
        values: Array,
        rows: Array,
        episodes: Array | None = None,
        sampling: Sampling = WHOLE_SPLIT,
    ) -> None:
        """Count the queries of some episodes of a cell, or, without episodes, of a split. Cells whose metric has no
        influence are passed over.

        scores    (n_episodes, n_queries, n_classes) that the metric was computed from; labels as there
        values    (n_episodes,) of the metric; what is undefined doesn't count
        rows      (n_episodes or 1, n_queries) rows of the target
        episodes  (n_episodes,) their numbers; None: there are none, and n_episodes is 1
        """
        metric = str(cell[-1])
        if metric not in INFLUENCES:
            return
        numbers = np.full(1, NO_EPISODE) if episodes is None else np.asarray(episodes)
        used = np.isfinite(values) & ((numbers >= self._starts.get(cell, 0)) | (numbers == NO_EPISODE))
        sums = self._cells.setdefault(cell, _Sums(len(self._images)))
        sums.episodes += int(used.sum())
        strata = np.zeros(0, np.int64) if sampling.strata is None else sampling.strata
        odd = (numbers % 2 == 1) & (numbers != NO_EPISODE)
        telling = used & (numbers < RARITY_EPISODES)
        if sampling is WHOLE_SPLIT and telling.any():
            fewest = FEWEST_POSITIVES if episodes is None else FEWEST_POSITIVES_OF_EPISODES
            sums.rarity += float(rarity(metric, scores[telling], labels, fewest).sum())
        sums.telling += int(telling.sum())
        slopes = influence(metric, scores, labels, sampling.power) * sampling.scale
        _add_up(slopes, self._place[rows], used, odd, strata, np.bincount(strata), sums.n, sums.sum, sums.odd)

    def sums(self) -> dict[Cell, ImageSums]:
        """What was added, of the images that were asked."""
        found = {}
        for cell, sums in self._cells.items():
            asked = np.flatnonzero(sums.n)
            if len(asked):
                found[cell] = ImageSums(
                    sums.episodes,
                    self._images[asked],
                    self._group[asked],
                    sums.n[asked],
                    sums.sum[asked],
                    sums.odd[asked],
                    sums.rarity / sums.telling if sums.telling else None,
                )
        return found


def groups_of(target: Target) -> NDArray[np.int64]:
    """(n_images,) row of the first image of the same patient, which says nothing of who that is; where nobody knows
    patients, the image itself."""
    rows = np.arange(target.n_images)
    if target.patient is None:
        return rows
    codes, names = pd.factorize(target.patient)
    first = np.empty(len(names), np.int64)
    first[codes[::-1]] = rows[::-1]  # of several, the last one that is written stays
    return first[codes]


class _Sums:
    def __init__(self, n_images: int) -> None:
        self.episodes = 0
        self.rarity, self.telling = 0.0, 0
        self.n, self.sum, self.odd = np.zeros(n_images, np.int64), np.zeros(n_images), np.zeros(n_images)


@numba.njit(cache=True, nogil=True)
def _add_up(
    slopes: Any, rows: Any, used: Any, odd: Any, strata: Any, sizes: Any, n: Any, total: Any, of_odd: Any
) -> None:
    """Add (n_episodes, n_queries) influences to the images in `rows`, those of `odd` episodes to two sums.

    With strata, an influence is centred on the mean of the others of its stratum: (x − mean) k / (k − 1).
    """
    mean = np.zeros(len(sizes))
    for e in range(len(slopes)):
        if not used[e]:
            continue
        line = e if len(rows) > 1 else 0
        for s in range(len(sizes)):
            mean[s] = 0.0
        for i in range(len(strata)):
            mean[strata[i]] += slopes[e, i] / sizes[strata[i]]
        for i in range(slopes.shape[1]):
            x = slopes[e, i]
            if len(strata) > 0:
                s = strata[i]
                x = (x - mean[s]) * sizes[s] / (sizes[s] - 1.0)
            image = rows[line, i]
            n[image] += 1
            total[image] += x
            if odd[e]:
                of_odd[image] += x
