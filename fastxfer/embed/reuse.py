"""Embeddings are found again by what they were made of: the same backbone, and the same bytes in an image's file.

A digest of every image's bytes is kept beside the embeddings, in a store of its own inside the store. So a backbone under another
name, a target under another name, or a target that has grown costs only what was never computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.embed.checks import path_of
from fastxfer.embed.jobs import CONTENT, DIGEST_BYTES, EmbedJob
from fastxfer.errors import DataError, UsageError
from fastxfer.images import read_content
from fastxfer.progress import progress
from fastxfer.store import EmbeddingStore
from fastxfer.store.arrays import StoredArray
from fastxfer.targets.table import Target

Digests = NDArray[np.uint8]  # (rows, DIGEST_BYTES), zero where a file could not be read


def digest_of(content: bytes | NDArray[Any]) -> Digests:
    """(DIGEST_BYTES,) BLAKE2b of an image's bytes, or of pixels that a container holds."""
    h = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if isinstance(content, np.ndarray):
        h.update(f"{content.dtype} {content.shape}".encode())
        h.update(np.ascontiguousarray(content).data)
    else:
        h.update(content)
    return np.frombuffer(h.digest(), np.uint8)


def read_digests(target: Target, pool: ThreadPoolExecutor) -> Digests:
    """Those of all images of a target, from their files."""

    def one(row: int) -> Digests:
        try:
            return digest_of(read_content(path_of(target, row)))
        except DataError:
            return np.zeros(DIGEST_BYTES, np.uint8)  # named when it is decoded

    out = np.zeros((target.n_images, DIGEST_BYTES), np.uint8)
    with progress(f"looking for images of {target.name} that the store knows", target.n_images, "images") as advance:
        for row, digest in enumerate(pool.map(one, range(target.n_images), chunksize=64)):
            out[row] = digest
            advance(1)
    return out


class Reuse:
    """Rows of a target whose embeddings are in the store already: `donors[i]`'s row `row[r]`, i = `donor[r]` ≥ 0."""

    def __init__(self, n_rows: int) -> None:
        self.donors: list[StoredArray] = []
        self.donor = np.full(n_rows, -1, np.int32)
        self.row = np.zeros(n_rows, np.int64)

    def add(self, donor: StoredArray, mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
        """Rows `mine` are the donor's rows `theirs`; those that are known already stay as they are."""
        new = self.donor[mine] < 0
        self.donor[mine[new]], self.row[mine[new]] = len(self.donors), theirs[new]
        self.donors.append(donor)

    def covers(self, rows: range) -> bool:
        return bool((self.donor[rows.start : rows.stop] >= 0).all())

    def count(self, blocks: Sequence[range]) -> int:
        return sum(int((self.donor[b.start : b.stop] >= 0).sum()) for b in blocks)

    def fill(self, rows: range, values: NDArray[Any]) -> None:
        """Write the rows that are known into `values` (len(rows), dim)."""
        for number, donor in enumerate(self.donors):
            here = np.flatnonzero(self.donor[rows.start : rows.stop] == number)
            if len(here):
                values[here] = donor.take(self.row[rows.start + here])


def find(
    job: EmbedJob,
    target: Target,
    arrays: Sequence[StoredArray],
    contents: EmbeddingStore,
    digests: Callable[[], Digests],
) -> Reuse | None:
    """What the store holds of a job's missing rows; None if there is nothing to look at.

    arrays: those of the job's backbone, of any target and under any name (`EmbeddingStore.made_by`)
    contents: the store of digests;  digests: of all the target's images; called only if another target has embeddings
    """
    found = Reuse(target.n_images)
    for array in arrays:
        if (array.backbone, array.target) == (job.name, target.name) or str(array.dtype) != job.dtype:
            continue
        if job.store.target_attributes(array.target).get("pixels", {}) != target.pixels.as_dict():
            continue  # the same bytes may have become other pixels there
        there = _rows_of(array)
        there[list(job.store.bad_images(array.target))] = False
        if array.target == target.name:  # the same rows
            rows = np.flatnonzero(there)
            found.add(array, rows, rows)
        elif there.any() and (theirs := _known(contents, array.target)) is not None:
            mine, row = _match(digests(), theirs, np.flatnonzero(there & theirs.any(axis=1)))
            found.add(array, mine, row)
    return found if (found.donor >= 0).any() else None


def _rows_of(array: StoredArray) -> NDArray[np.bool_]:
    there = np.ones(array.shape[0], bool)
    for block in array.missing():
        there[block.start : block.stop] = False
    return there


def _known(contents: EmbeddingStore, target: str) -> Digests | None:
    """The digests that are kept of a target's images, zero where there is none."""
    try:
        array = contents.stored(CONTENT, target)
    except UsageError:
        return None
    out = np.zeros(array.shape, np.uint8)
    missing = {block.start for block in array.missing()}
    for block in array.blocks:
        if block.start not in missing:
            out[block.start : block.stop] = array.read(block)
    return out


def _match(mine: Digests, theirs: Digests, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows of mine, rows of theirs among `rows`) with equal digests."""
    kind = np.dtype((np.void, DIGEST_BYTES))
    keys = np.ascontiguousarray(theirs[rows]).view(kind).ravel()
    order = np.argsort(keys)
    wanted = np.ascontiguousarray(mine).view(kind).ravel()
    at = np.minimum(np.searchsorted(keys[order], wanted), max(len(order) - 1, 0))
    hit = np.flatnonzero((keys[order][at] == wanted) & mine.any(axis=1)) if len(order) else np.empty(0, np.int64)
    return hit, rows[order[at[hit]]] if len(order) else hit
