"""Episodes as index arrays: which images are support and which are queries.

Episode `e` of a (target, spec, seed) is the same whoever asks, for how many, on how many threads: every draw is a
counter-based random number (Philox4x64-10; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by
(seed, purpose) and counted by (draw, class, episode). Support of k shots is a prefix of the support of k + 1 shots, so
shots are nested, and every backbone sees the same images, so comparisons are paired.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.targets.table import SPLITS, Target

GENERATOR = "philox4x64-10/1"  # part of the hash: another way to draw would be another list of episodes
_CLASSES, _SUPPORT, _QUERY = 0, 1, 2  # purposes of random numbers

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeSpec:
    """What an episode is.

    ways:        number of classes drawn an episode, or "all" (all-way k-shot: every class, in order)
    shots:       support images a class, from the train split
    queries:     query images a class, or "all": the whole query split (only with ways="all"; Cherti & Jitsev 2021, BiT)
    query_split: where queries come from: "test", or "val" for anything that serves a choice
    at_least:    leave out classes with fewer train images than this (0: a scarce class is an error)
    """

    ways: int | Literal["all"]
    shots: int
    queries: int | Literal["all"] = 15
    query_split: str = "test"
    at_least: int = 0

    def __post_init__(self) -> None:
        if self.ways != "all" and self.ways < 2:
            raise UsageError(f"ways must be at least 2 or 'all', got {self.ways}")
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


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes `first` … `first + n_episodes − 1` of a (target, spec, seed).

    classes        (n_episodes, ways) class of the target behind each episode label
    support        (n_episodes, ways * shots) rows of the target, class after class
    support_labels (ways * shots,) 0 … ways − 1
    query          (n_episodes, n_queries) rows, or (1, n_queries) where all episodes share the query split
    query_labels   (n_queries,) 0 … ways − 1
    hash           names the whole endless list that these are a window of
    """

    target: str
    spec: EpisodeSpec
    seed: int
    first: int
    classes: Ints
    support: Ints
    support_labels: Ints
    query: Ints
    query_labels: Ints
    hash: str

    @property
    def n_episodes(self) -> int:
        return len(self.support)

    @property
    def ways(self) -> int:
        return self.classes.shape[1]

    def window(self, start: int, stop: int) -> Episodes:
        """Episodes `start` … `stop − 1` of these, counted from 0."""
        shared = len(self.query) == 1
        return Episodes(
            target=self.target,
            spec=self.spec,
            seed=self.seed,
            first=self.first + start,
            classes=self.classes[start:stop],
            support=self.support[start:stop],
            support_labels=self.support_labels,
            query=self.query if shared else self.query[start:stop],
            query_labels=self.query_labels,
            hash=self.hash,
        )


def sample_episodes(target: Target, spec: EpisodeSpec, seed: int, episodes: int, first: int = 0) -> Episodes:
    """Draw `episodes` episodes, the first being number `first` of the list that (target, spec, seed) defines.

    A multi-label target serves with its images that have exactly one positive label. Train images of a patient who also
    appears in the query split are left out, so support and query never share a patient. `UsageError` for more ways than
    classes, `DataError` for a class with fewer images than the spec asks for.
    """
    if episodes < 1 or first < 0:
        raise UsageError(f"episodes must be at least 1, got {episodes} (from {first})")
    pools = _Pools.of(target, spec)
    n_classes = len(pools.classes)
    ways = n_classes if spec.ways == "all" else spec.ways
    all_way, shared = spec.ways == "all", spec.queries == "all"
    n_queries = 0 if spec.queries == "all" else spec.queries
    drawn, support, query = _draw(
        pools.support, pools.support_start, pools.query, pools.query_start,
        np.uint64(seed), first, episodes, ways, spec.shots, n_queries, all_way,
    )  # fmt: skip
    if shared:
        query = pools.query[None, :]
        query_labels = np.repeat(np.arange(n_classes), np.diff(pools.query_start))
    else:
        query_labels = np.repeat(np.arange(ways), n_queries)
    return Episodes(
        target=target.name,
        spec=spec,
        seed=seed,
        first=first,
        classes=pools.classes[drawn],
        support=support,
        support_labels=np.repeat(np.arange(ways), spec.shots),
        query=query,
        query_labels=query_labels,
        hash=pools.hash(target, spec, seed),
    )


@dataclass(frozen=True)
class _Pools:
    """Rows that may be drawn, class after class: class `i` owns support[support_start[i] : support_start[i + 1]]."""

    classes: Ints
    support: Ints
    support_start: Ints
    query: Ints
    query_start: Ints

    @classmethod
    def of(cls, target: Target, spec: EpisodeSpec) -> _Pools:
        label = target.exactly_one()
        is_query = (target.split == spec.query_split) & (label >= 0)
        if not is_query.any():
            raise DataError(
                f"target '{target.name}' has no image in its '{spec.query_split}' split to serve as query"
                + (": its images have no or several positive labels" if target.multi_label else "")
            )
        is_support = (target.split == "train") & (label >= 0)
        if target.patient is not None:
            is_support &= ~np.isin(target.patient, np.unique(target.patient[target.split == spec.query_split]))

        n_classes = len(target.class_names)
        n_support = np.bincount(label[is_support], minlength=n_classes)
        n_query = np.bincount(label[is_query], minlength=n_classes)
        wanted_queries = 1 if spec.queries == "all" else spec.queries
        # A class that no image carries is no class to choose from (PadChest-Cl's Consolidation).
        kept = n_support + n_query > 0
        if spec.at_least:
            kept = (n_support >= spec.at_least) & (n_query >= wanted_queries)
        scarce = kept & ((n_support < spec.shots) | (n_query < wanted_queries))
        classes = np.flatnonzero(kept)
        if spec.ways != "all" and spec.ways > len(classes):
            rest = f" with at least {spec.at_least} train and {wanted_queries} query images" if spec.at_least else ""
            raise UsageError(
                f"target '{target.name}' has {len(classes)} classes{rest}, fewer than the {spec.ways} ways asked for: "
                f"choose between 2 and {len(classes)} ways, or 'all'"
            )
        if len(classes) < 2:
            raise DataError(f"target '{target.name}' has {len(classes)} classes to choose from, two are needed")
        if scarce.any():
            worst = int(np.flatnonzero(scarce)[0])
            others = int(scarce.sum()) - 1
            raise DataError(
                f"target '{target.name}': class '{target.class_names[worst]}' has {n_support[worst]} train and "
                f"{n_query[worst]} {spec.query_split} images to draw from, but {spec.shots} shots and "
                f"{wanted_queries} queries are asked for"
                + (f" (and {others} more such classes)" if others else "")
                + ". Lower --shots or --queries, or leave such classes out with --drop-scarce."
            )
        support, support_start = _by_class(is_support, label, classes)
        query, query_start = _by_class(is_query, label, classes)
        return cls(classes, support, support_start, query, query_start)

    def hash(self, target: Target, spec: EpisodeSpec, seed: int) -> str:
        h = hashlib.sha256()
        h.update(json.dumps([GENERATOR, asdict(spec), seed], sort_keys=True).encode())
        for rows, start in ((self.support, self.support_start), (self.query, self.query_start)):
            h.update(start.tobytes())
            h.update("\0".join(target.image_id[rows].tolist()).encode())
        return h.hexdigest()[:16]


def _by_class(chosen: NDArray[np.bool_], label: Ints, classes: Ints) -> tuple[Ints, Ints]:
    rows = np.flatnonzero(chosen & np.isin(label, classes))
    rows = rows[np.argsort(label[rows], kind="stable")]
    counts = np.bincount(np.searchsorted(classes, label[rows]), minlength=len(classes))
    return rows.astype(np.int64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@numba.njit(cache=True, inline="always")
def _mul_high(a: Any, b: Any) -> Any:
    """Upper 64 bits of the 128-bit product of two unsigned 64-bit integers."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    low = a_low * b_low
    middle = a_high * b_low + (low >> half)
    middle_low = (middle & mask) + a_low * b_high
    return a_high * b_high + (middle >> half) + (middle_low >> half)


@numba.njit(cache=True)
def philox(block: Any, stream: Any, episode: Any, seed: Any, purpose: Any, out: Any) -> None:
    """Four random 64-bit integers of the counter (block, stream, episode, 0) under the key (seed, purpose)."""
    c0, c1, c2, c3 = np.uint64(block), np.uint64(stream), np.uint64(episode), np.uint64(0)
    k0, k1 = np.uint64(seed), np.uint64(purpose)
    m0, m1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
    w0, w1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
    for _ in range(10):
        high0, low0 = _mul_high(m0, c0), m0 * c0
        high1, low1 = _mul_high(m1, c2), m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    out[0], out[1], out[2], out[3] = c0, c1, c2, c3


@numba.njit(cache=True)
def _choose(n: int, k: int, stream: Any, episode: Any, seed: Any, purpose: Any, deck: Any, undo: Any, out: Any) -> None:
    """The first `k` cards of a shuffled deck 0 … n − 1 (Fisher-Yates, cut short and undone, so O(k) whatever n).

    `deck` holds 0, 1, 2, … before and after. Draw i depends on counter i alone, hence prefixes are nested. An integer
    below n is taken as the high half of a 64-bit product; its bias is below n / 2^64.
    """
    random = np.empty(4, np.uint64)
    for i in range(k):
        if i % 4 == 0:
            philox(i // 4, stream, episode, seed, purpose, random)
        j = i + np.int64(_mul_high(random[i % 4], np.uint64(n - i)))
        undo[i] = j
        deck[i], deck[j] = deck[j], deck[i]
        out[i] = deck[i]
    for i in range(k - 1, -1, -1):
        j = undo[i]
        deck[i], deck[j] = deck[j], deck[i]


@numba.njit(cache=True, nogil=True)
def _draw(
    support_pool: Any, support_start: Any, query_pool: Any, query_start: Any,
    seed: Any, first: int, episodes: int, ways: int, shots: int, queries: int, all_way: bool,
) -> Any:  # fmt: skip
    n_classes = len(support_start) - 1
    classes = np.empty((episodes, ways), np.int64)
    support = np.empty((episodes, ways * shots), np.int64)
    query = np.empty((episodes, ways * queries), np.int64)
    longest = max(n_classes, len(support_pool), len(query_pool))
    deck = np.arange(longest)
    undo = np.empty(max(ways, shots, queries), np.int64)
    for e in range(episodes):
        if all_way:
            classes[e] = np.arange(ways)
        else:
            _choose(n_classes, ways, 0, first + e, seed, _CLASSES, deck, undo, classes[e])
        for w in range(ways):
            c = classes[e, w]
            chosen = support[e, w * shots : (w + 1) * shots]
            start = support_start[c]
            _choose(support_start[c + 1] - start, shots, c, first + e, seed, _SUPPORT, deck, undo, chosen)
            for i in range(shots):
                chosen[i] = support_pool[start + chosen[i]]
            chosen = query[e, w * queries : (w + 1) * queries]
            start = query_start[c]
            _choose(query_start[c + 1] - start, queries, c, first + e, seed, _QUERY, deck, undo, chosen)
            for i in range(queries):
                chosen[i] = query_pool[start + chosen[i]]
    return classes, support, query
