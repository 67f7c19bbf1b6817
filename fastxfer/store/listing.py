"""What a store holds, told from names and zarr.json alone."""

from __future__ import annotations

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastxfer.files import parsed
from fastxfer.store import files
from fastxfer.store.arrays import StoredArray
from fastxfer.store.layout import NAME, array_path, bad_rows

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore

_AT_ONCE = 16  # files that are read


@dataclass(frozen=True)
class Entry:
    """One array of the store. `n_images` and `n_present` count usable images (those that can be decoded)."""

    backbone: str
    target: str
    n_images: int
    dim: int
    dtype: str
    complete: bool
    n_present: int
    bytes: int
    attrs: dict[str, Any] = field(repr=False)


def entries(store: EmbeddingStore, of: str | None) -> list[Entry]:
    """`EmbeddingStore.entries`."""
    found = []
    for target in store.targets() if of is None else [of]:
        attrs = store.target_attributes(target)
        bad = bad_rows(attrs)
        for backbone in store.backbones(target):
            array = store.stored(backbone, target)
            missing = array.missing()
            absent = np.concatenate([np.arange(r.start, r.stop) for r in missing]) if missing else np.empty(0, np.int64)
            usable = array.shape[0] - len(bad)
            found.append(
                Entry(
                    backbone=backbone,
                    target=target,
                    n_images=usable,
                    dim=array.shape[1],
                    dtype=str(array.dtype),
                    complete=not missing,
                    n_present=usable - len(np.setdiff1d(absent, bad)),
                    bytes=store.size(array.path)[1],
                    attrs=dict(array.attributes),
                )
            )
    return found


def made_by(store: EmbeddingStore, identities: Collection[str]) -> dict[str, list[StoredArray]]:
    """`EmbeddingStore.made_by`.

    Each zarr.json is read once and only looked through; those that are wanted are opened, which checks them.
    """
    arrays = [
        (backbone, target)
        for target in files.names(store.backing, "targets")
        for backbone in files.names(store.backing, f"targets/{target}/embeddings")
        if backbone != files.METADATA and NAME.fullmatch(backbone)
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        told = list(pool.map(lambda one: _identity(store, *one), arrays))
    found: dict[str, list[StoredArray]] = {identity: [] for identity in identities}
    for (backbone, target), identity in zip(arrays, told, strict=True):
        if identity in found:
            found[identity].append(store.stored(backbone, target))
    return found


def _identity(store: EmbeddingStore, backbone: str, target: str) -> str:
    """As an array's zarr.json has it, unchecked; "" if that cannot be read, which others tell who need it."""
    try:
        content = files.read(store.backing, f"{array_path(backbone, target)}/{files.METADATA}")
        return "" if content is None else str(parsed(json.loads, content)["attributes"]["identity"])
    except (ValueError, KeyError, TypeError):
        return ""
