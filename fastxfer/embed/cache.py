"""The pixel cache: decoded and resized images, kept so that the next backbone of the same geometry decodes none.

On disk it is a store of its own inside the embedding store, with the same guarantees (whole blocks, checksums, one writer),
whose "backbones" are geometries; it may be removed at any time. In memory it lives as long as the process.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastxfer.backbones import Preprocessing
from fastxfer.embed.jobs import pixels_name
from fastxfer.errors import DataError, UsageError
from fastxfer.progress import say
from fastxfer.store import EmbeddingStore
from fastxfer.store.layout import CONTENTS, PIXELS
from fastxfer.targets.table import Target

CACHES = ("off", "ram", "disk")
# The pixels kept in memory, a store a process: fsspec's memory file system holds it.
_IN_MEMORY = "memory://fastxfer-pixels"
_ROOM = 1.05  # of the bytes foretold, which must be free


def pixel_store(store: EmbeddingStore, cache: str) -> EmbeddingStore | None:
    """The store that pixels are kept in; None for "off". UsageError for an unknown word."""
    if cache not in CACHES:
        raise UsageError(f"--cache {cache}: one of {', '.join(CACHES)}")
    if cache == "off":
        return None
    return EmbeddingStore.open(_IN_MEMORY if cache == "ram" else f"{store.path.rstrip('/')}/{PIXELS}", mode="a")


def content_store(store: EmbeddingStore) -> EmbeddingStore:
    """The store of the digests of images, inside the embedding store."""
    return EmbeddingStore.open(f"{store.path.rstrip('/')}/{CONTENTS}", mode="a")


def keep_target(side: EmbeddingStore, target: Target, files: str) -> None:
    """Tell a store inside the store which table a target has; one of another target that had its name goes."""
    if target.name in side.targets():
        other_files = files and side.files_digest(target.name) not in ("", files)
        if other_files or side.fingerprint(target.name) != target.fingerprint:
            side.remove(None, target.name)
    side.add_target(target, files=files, columns=False)


def bytes_needed(targets: Sequence[Target], preprocessings: Sequence[Preprocessing]) -> int:
    """Bytes of the pixels of all images, in every geometry once."""
    each = {p.geometry_key: int(np.prod(p.input_size)) for p in preprocessings}
    return sum(each.values()) * sum(target.n_images for target in targets)


def check_room(store: EmbeddingStore, size: int) -> None:
    """Say how large the cache becomes; UsageError if the disk hasn't room for it."""
    say(f"pixel cache: {size / 1e9:,.1f} GB in all at {store.path} (remove it at any time)")
    if "://" in store.path:
        return
    free = shutil.disk_usage(Path(store.path)).free
    if free < _ROOM * size:
        raise UsageError(
            f"--cache disk: the pixels take {size / 1e9:,.1f} GB, and {store.path} has {free / 1e9:,.1f} GB left; make "
            "room, or use --cache off (images are decoded again for every backbone)"
        )


class CachedPixels:
    """Those pixels of a target in one geometry that are kept already."""

    def __init__(self, store: EmbeddingStore, target: Target, preprocessing: Preprocessing) -> None:
        self._array = store.stored(pixels_name(preprocessing), target.name)
        self._shape = preprocessing.input_size
        missing = {block.start for block in self._array.missing()}
        self._there = [block.start not in missing for block in self._array.blocks]

    def read(self, rows: range) -> NDArray[np.uint8] | None:
        """(len(rows), c, h, w), or None if some are not there, or damaged: then they are decoded again."""
        first, last = rows.start // self._array.block_rows, (rows.stop - 1) // self._array.block_rows
        if not all(self._there[first : last + 1]):
            return None
        try:
            return np.asarray(self._array.read(rows)).reshape(len(rows), *self._shape)
        except DataError as error:
            say(f"pixel cache: {error}")
            self._there[first : last + 1] = [False] * (last + 1 - first)
            return None
