"""Which images of a target may be support and which query, and whether there are enough."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastxfer.episodes.draws import GENERATOR
from fastxfer.episodes.spec import EpisodeSpec, Ints
from fastxfer.errors import DataError, UsageError
from fastxfer.targets.table import Target

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows stream after stream: stream s owns rows[start[s] : start[s + 1]].

    A class is one stream; per-label, label i has the streams 2i (its positives) and 2i + 1 (its negatives).
    """

    rows: Ints
    start: Ints

    @property
    def counts(self) -> Ints:
        return np.diff(self.start)

    def take(self, streams: Flags) -> Pool:
        """The pool of some of the streams."""
        counts = self.counts
        return Pool(self.rows[np.repeat(streams, counts)], _starts(counts[streams]))


@dataclass(frozen=True, eq=False)
class Pools:
    """What episodes of a (target, spec) are drawn from.

    classes    (n,) classes that can be drawn, ascending; the streams of the pools are theirs
    n_queries  queries a stream with the balanced prior, an episode with the natural one, 0 for the whole query split
    """

    classes: Ints
    support: Pool
    query: Pool
    n_queries: int

    @classmethod
    def of(cls, target: Target, spec: EpisodeSpec) -> Pools:
        """`UsageError` for more ways than classes, `DataError` for classes with too few images."""
        if spec.per_label and not target.multi_label:
            raise UsageError(
                f"target '{target.name}' has one label an image; per-label episodes are for multi-label targets"
            )
        is_support, is_query, n_shared = _eligible(target, spec)
        if not is_query.any():
            raise DataError(
                f"target '{target.name}' has no image in its '{spec.query_split}' split to serve as query"
                + _why_none(target, spec, n_shared)
            )
        support, query = _pool(target, spec, is_support), _pool(target, spec, is_query)
        width = 2 if spec.per_label else 1
        n_support, n_query = (pool.counts.reshape(-1, width) for pool in (support, query))
        wanted = 1 if spec.queries == "all" or spec.query_prior == "natural" or spec.fewer_queries else spec.queries
        # A class that no image carries is no class to choose from (PadChest-Cl's Consolidation).
        kept = n_support[:, 0] + n_query[:, 0] > 0
        if spec.at_least:
            kept = (n_support.min(axis=1) >= spec.at_least) & (n_query.min(axis=1) >= wanted)
        classes = np.flatnonzero(kept)
        _check_number(target, spec, len(classes), wanted)
        scarce = kept & ((n_support.min(axis=1) < spec.shots) | (n_query.min(axis=1) < wanted))
        if scarce.any():
            raise DataError(_scarcity(target, spec, np.flatnonzero(scarce), n_support, n_query, wanted, n_shared))
        streams = np.repeat(kept, width)
        support, query = support.take(streams), query.take(streams)
        return cls(classes, support, query, _number_of_queries(target, spec, query, len(classes)))

    def hash(self, target: Target, spec: EpisodeSpec, seed: int) -> str:
        h = hashlib.sha256()
        h.update(json.dumps([GENERATOR, spec.identity(), seed], sort_keys=True).encode())
        for pool in (self.support, self.query):
            h.update(pool.start.tobytes())
            h.update(target.text("image_id", pool.rows)[:-1])  # zero bytes between ids, none behind the last
        return h.hexdigest()[:16]


def _eligible(target: Target, spec: EpisodeSpec) -> tuple[Flags, Flags, int]:
    """(n_images,) who may be support, who may be query; and how many images were left out for their patient's sake."""
    known = (~np.isnan(target.labels)).any(axis=1) if spec.per_label else target.exactly_one() >= 0
    is_support, is_query = (target.split == "train") & known, (target.split == spec.query_split) & known
    if target.patient is None:
        return is_support, is_query, 0
    if spec.fewer_queries:
        shared = is_query & np.isin(target.patient, np.unique(target.patient[is_support]))
        return is_support, is_query & ~shared, int(shared.sum())
    shared = is_support & np.isin(target.patient, np.unique(target.patient[target.split == spec.query_split]))
    return is_support & ~shared, is_query, int(shared.sum())


def _pool(target: Target, spec: EpisodeSpec, eligible: Flags) -> Pool:
    """The eligible rows of all classes, ascending within each stream."""
    if spec.per_label:
        rows = np.flatnonzero(eligible)
        labels = target.labels[rows]
        answers = np.stack([labels > 0.5, labels <= 0.5], axis=2).reshape(len(rows), -1)  # NaN is neither
        stream, at = np.nonzero(answers.T)
        return Pool(rows[at], _starts(np.bincount(stream, minlength=answers.shape[1])))
    rows = np.flatnonzero(eligible)
    label = target.exactly_one()[rows].astype(np.min_scalar_type(len(target.class_names)))
    order = np.argsort(label, kind="stable")  # of small integers by counting, in a tenth of the time
    return Pool(rows[order], _starts(np.bincount(label, minlength=len(target.class_names))))


def _starts(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _check_number(target: Target, spec: EpisodeSpec, n: int, wanted: int) -> None:
    fewest = 1 if spec.per_label else 2
    if spec.ways != "all" and spec.ways > n:
        rest = f" with at least {spec.at_least} train and {wanted} query images" if spec.at_least else ""
        raise UsageError(
            f"target '{target.name}' has {n} classes{rest}, fewer than the {spec.ways} ways asked for: "
            f"choose between {fewest} and {n} ways, or 'all'"
        )
    if n < fewest:
        raise DataError(f"target '{target.name}' has {n} classes to choose from, {fewest} are needed")


def _why_none(target: Target, spec: EpisodeSpec, n_shared: int) -> str:
    if n_shared and spec.fewer_queries:
        return f": {n_shared} are of patients who are in train too"
    if target.multi_label:
        return (
            ": its images have no known label" if spec.per_label else ": its images have no or several positive labels"
        )
    return ""


def _scarcity(
    target: Target, spec: EpisodeSpec, scarce: Ints, n_support: Ints, n_query: Ints, wanted: int, n_shared: int
) -> str:
    worst, others = scarce[0], len(scarce) - 1
    if spec.per_label:
        counts = "{} positive and {} negative".format
        has, each = f"{counts(*n_support[worst])} train and {counts(*n_query[worst])}", " each"
    else:
        has, each = f"{n_support[worst, 0]} train and {n_query[worst, 0]}", ""
    text = (
        f"target '{target.name}': class '{target.class_names[worst]}' has {has} {spec.query_split} images to draw "
        f"from, but {spec.shots} shots and {wanted} queries{each} are asked for"
        + (f" (and {others} more such classes)" if others else "")
    )
    if n_shared and not spec.fewer_queries:
        text += (
            f"; {n_shared} train images were left out because their patients are in {spec.query_split} too"
            " (--fewer-queries leaves out the others instead)"
        )
    elif n_shared:
        text += f"; {n_shared} {spec.query_split} images were left out because their patients are in train too"
    fewer = "" if spec.fewer_queries or (n_query[worst] >= wanted).all() else ", take --fewer-queries"
    return f"{text}. Lower --shots or --queries{fewer}, or leave such classes out with --drop-scarce."


def _number_of_queries(target: Target, spec: EpisodeSpec, query: Pool, n_classes: int) -> int:
    if spec.queries == "all":
        return 0
    if spec.query_prior == "balanced":
        return min(spec.queries, int(query.counts.min())) if spec.fewer_queries else spec.queries
    ways = n_classes if spec.ways == "all" else spec.ways
    if spec.per_label:
        asked, there = 2 * ways * spec.queries, len(np.unique(query.rows))
    else:
        asked, there = ways * spec.queries, int(np.sort(query.counts)[:ways].sum())
    if asked > there and not spec.fewer_queries:
        raise DataError(
            f"target '{target.name}': {ways} classes may have no more than {there} {spec.query_split} images between "
            f"them, but {asked} queries are asked for. Lower --queries, or take --fewer-queries."
        )
    return min(asked, there)
