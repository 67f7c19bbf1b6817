"""The draw itself: a target, a spec and a seed become index arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.episodes import draws
from fastxfer.episodes.pools import Pools
from fastxfer.episodes.spec import Episodes, EpisodeSpec, Ints
from fastxfer.errors import UsageError
from fastxfer.targets.table import Target

Labels = NDArray[Any]


def sample_episodes(target: Target, spec: EpisodeSpec, seed: int, episodes: int, first: int = 0) -> Episodes:
    """Draw `episodes` episodes, the first being number `first` of the list that (target, spec, seed) defines.

    Support and query never share a patient: train images of a patient who also appears in the query split are left out
    (with `fewer_queries`, that patient's query images are). `UsageError` for more ways than classes, `DataError` for a
    class with fewer images than the spec asks for.
    """
    if episodes < 1 or first < 0:
        raise UsageError(f"episodes must be at least 1, got {episodes} (from {first})")
    pools = Pools.of(target, spec)
    key = np.uint64(seed)
    n = len(pools.classes)
    if spec.ways == "all":
        drawn = np.broadcast_to(np.arange(n), (episodes, n))
    else:
        one = np.zeros((episodes, 1), np.int64)
        drawn = draws.draw_rows(np.arange(n), np.array([0, n]), one, spec.ways, key, first, draws.CLASSES)
    streams = np.array(drawn)
    if spec.per_label:
        streams = (2 * streams[:, :, None] + np.arange(2)).reshape(episodes, -1)
    classes = pools.classes[drawn]
    support, support_labels = _support(pools, spec, streams, key, first)
    query, query_labels = _query(pools, spec, target, classes, streams, key, first)
    return Episodes(
        target=target.name,
        spec=spec,
        seed=seed,
        first=first,
        classes=classes,
        support=support,
        support_labels=support_labels,
        query=query,
        query_labels=query_labels,
        hash=pools.hash(target, spec, seed),
    )


def _support(pools: Pools, spec: EpisodeSpec, streams: Ints, key: np.uint64, first: int) -> tuple[Ints, Labels]:
    pool, ways = pools.support, streams.shape[1]
    if spec.imbalance is not None:
        room, total = pool.counts[streams], ways * spec.shots
        sizes = draws.draw_sizes(room, total, float(spec.imbalance), key, first, draws.SIZES)
        rows, labels = draws.draw_uneven(pool.rows, pool.start, streams, sizes, key, first, draws.SUPPORT)
        return rows, labels
    rows = draws.draw_rows(pool.rows, pool.start, streams, spec.shots, key, first, draws.SUPPORT)
    return rows, _block_labels(spec, ways, spec.shots)


def _query(
    pools: Pools, spec: EpisodeSpec, target: Target, classes: Ints, streams: Ints, key: np.uint64, first: int
) -> tuple[Ints, Labels]:
    pool, n_queries = pools.query, pools.n_queries
    if spec.queries == "all":
        if not spec.per_label:
            return pool.rows[None, :], np.repeat(np.arange(len(pools.classes)), pool.counts)
        rows = np.unique(pool.rows)
        return rows[None, :], target.labels[rows][:, pools.classes]
    if spec.query_prior == "balanced":
        rows = draws.draw_rows(pool.rows, pool.start, streams, n_queries, key, first, draws.QUERY)
        return rows, _block_labels(spec, streams.shape[1], n_queries)
    if not spec.per_label:
        return draws.draw_together(pool.rows, pool.start, streams, n_queries, key, first, draws.NATURAL_QUERY)
    known = np.unique(pool.rows)
    one = np.zeros((len(streams), 1), np.int64)
    rows = draws.draw_rows(known, np.array([0, len(known)]), one, n_queries, key, first, draws.NATURAL_QUERY)
    return rows, target.labels[rows[:, :, None], classes[:, None, :]]


def _block_labels(spec: EpisodeSpec, n_streams: int, each: int) -> Labels:
    """Labels of `each` rows from every stream of an episode: classes, or per-label (rows, ways) with NaN elsewhere."""
    if not spec.per_label:
        return np.repeat(np.arange(n_streams), each)
    stream = np.repeat(np.arange(n_streams), each)
    labels = np.full((len(stream), n_streams // 2), np.nan, np.float32)
    labels[np.arange(len(stream)), stream // 2] = stream % 2 == 0
    return labels
