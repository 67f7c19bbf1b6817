"""A target's table in the store: a Zarr group with an array a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec

from fastxfer.errors import UsageError
from fastxfer.images import Pixels
from fastxfer.store import files
from fastxfer.store.layout import TABLE_CHUNK, as_words, damaged, now
from fastxfer.targets.table import ABOUT, Target


class StoredTarget(Target):
    """A target out of a store, or some rows of one. Its images are not compared again: they were when it was added, and
    the fingerprint tells that it is still the same. With fourteen million this saves seconds and gigabytes.
    """

    def _check_unique(self) -> None:
        pass


COLUMNS = ("image_id", "labels", "split", *ABOUT)


def write_table(backing: Store, target: Target, digest_of_files: str) -> None:
    """Write a target's table; until its last step it counts as absent."""
    prefix = f"targets/{target.name}"
    if files.names(backing, prefix):  # what a killed run left goes at once, not file by file
        files.delete_tree(backing, prefix)
    group = zarr.create_group(backing, path=prefix, zarr_format=3)
    write_columns(backing, target)
    # The fingerprint makes the table count as there, so it comes last.
    group.update_attributes(
        {
            "name": target.name,
            "class_names": list(target.class_names),
            "multi_label": target.multi_label,
            "n_images": target.n_images,
            "notes": list(target.notes),
            "pixels": target.pixels.as_dict(),
            "files": digest_of_files,
            "date": now(),
            "bad": {},
            "fingerprint": target.fingerprint,
        }
    )


def write_columns(backing: Store, target: Target) -> None:
    """Write the columns that a target has, over those that are there."""
    for column in COLUMNS:
        values = getattr(target, column)
        if values is None:
            continue
        words = values.dtype.kind in "UTO"
        values = values.astype(np.dtypes.StringDType()) if words else values
        array = zarr.create_array(
            backing,
            name=f"targets/{target.name}/{column}",
            shape=values.shape,
            dtype=str if words else values.dtype,
            chunks=(min(len(values), TABLE_CHUNK), *values.shape[1:]),
            compressors=Crc32cCodec(),
            config={"write_empty_chunks": True},
            overwrite=True,
        )
        array[:] = values


def read_table(store: str, backing: Store, name: str, attributes: dict[str, Any]) -> Target:
    """The whole table of a target, as it was given. DataError if it is damaged."""
    prefix = f"targets/{name}"
    known = files.names(backing, prefix)
    column = {n: read_column(store, backing, f"{prefix}/{n}") for n in COLUMNS if n in known}
    try:
        about: dict[str, Any] = {name: as_words(column[name]) for name in ABOUT if name in column}
        whole = StoredTarget(
            name=name,
            image_id=as_words(column["image_id"]),
            class_names=tuple(attributes["class_names"]),
            labels=column["labels"],
            split=as_words(column["split"]),
            notes=tuple(attributes.get("notes", ())),
            pixels=Pixels(**attributes.get("pixels", {})),
            **about,
        )
    except (KeyError, ValueError, TypeError, UsageError) as error:
        raise damaged(store, f"table of target '{name}'", error) from None
    if whole.fingerprint != attributes["fingerprint"]:
        raise damaged(store, f"table of target '{name}'", "its fingerprint differs from the recorded one")
    return whole


def read_column(store: str, backing: Store, path: str) -> NDArray[Any]:
    try:
        return np.asarray(zarr.open_array(backing, path=path, mode="r", zarr_format=3)[:])
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise damaged(store, path, error) from None
