"""A target's table in the store: a Zarr group with an array a column."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec

from fastxfer.errors import DataError, UsageError
from fastxfer.images import Pixels
from fastxfer.store import files
from fastxfer.store.layout import TABLE_CHUNK, damaged, now
from fastxfer.store.words import Words
from fastxfer.targets.table import ABOUT, Target


class _WhenAsked:
    """A column of words, which becomes NumPy's text when somebody looks at it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, target: Target, value: Words | NDArray[np.str_] | None) -> None:
        vars(target)[self.name] = value

    def __get__(self, target: Target, owner: type) -> Any:
        value = vars(target)[self.name]
        return value.array if isinstance(value, Words) else value


class StoredTarget(Target):
    """A target out of a store, or some rows of one. Its images are not compared again: they were when it was added, and
    the fingerprint tells that it is still the same. With fourteen million this saves seconds and gigabytes, and so does
    leaving ids as the bytes that they are in the file: episodes want no more of them than their hash.
    """

    image_id, split, patient, study, view, source = (_WhenAsked() for _ in range(6))

    def _check_unique(self) -> None:
        pass

    def text(self, column: str, rows: NDArray[np.int64] | None = None) -> memoryview:
        kept = vars(self)[column]
        if not isinstance(kept, Words):
            return super().text(column, rows)
        return (kept if rows is None else kept[rows]).text.data


_OUTSIDE = "table_outside"  # attribute of a target whose table is in the store around this one
_AT_ONCE = 16  # chunks that are read
COLUMNS = ("image_id", "labels", "split", *ABOUT)


def write_table(backing: Store, target: Target, digest_of_files: str, *, columns: bool) -> None:
    """Write a target's table, or without its columns only which one it is; until its last step it counts as absent."""
    prefix = f"targets/{target.name}"
    if files.names(backing, prefix):  # what a killed run left goes at once, not file by file
        files.delete_tree(backing, prefix)
    group = zarr.create_group(backing, path=prefix, zarr_format=3)
    about: dict[str, Any] = {_OUTSIDE: True}
    if columns:
        write_columns(backing, target)
        about = {
            "class_names": list(target.class_names),
            "multi_label": target.multi_label,
            "notes": list(target.notes),
            "pixels": target.pixels.as_dict(),
        }
    # The fingerprint makes the table count as there, so it comes last.
    group.update_attributes(
        {
            "name": target.name,
            **about,
            "n_images": target.n_images,
            "files": digest_of_files,
            "date": now(),
            "bad": {},
            "fingerprint": target.fingerprint,
        }
    )


def has_columns(attributes: Mapping[str, Any]) -> bool:
    """Whether a target's table is here, not in the store around this one."""
    return not attributes.get(_OUTSIDE)


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
    """The whole table of a target, as it was given. DataError if it is damaged, or not here."""
    if not has_columns(attributes):
        raise DataError(f"store '{store}': the table of target '{name}' is in the store that this one lies in")
    prefix = f"targets/{name}"
    known = files.names(backing, prefix)
    words: dict[str, Any] = {
        n: read_words(store, backing, f"{prefix}/{n}") for n in COLUMNS if n in known and n != "labels"
    }
    labels = read_column(store, backing, f"{prefix}/labels")
    try:
        whole = StoredTarget(
            name=name,
            class_names=tuple(attributes["class_names"]),
            labels=labels,
            notes=tuple(attributes.get("notes", ())),
            pixels=Pixels(**attributes.get("pixels", {})),
            **words,
        )
    except (KeyError, ValueError, TypeError, UsageError) as error:
        raise damaged(store, f"table of target '{name}'", error) from None
    if whole.fingerprint != attributes["fingerprint"]:
        raise damaged(store, f"table of target '{name}'", "its fingerprint differs from the recorded one")
    return whole


def read_column(store: str, backing: Store, path: str) -> NDArray[Any]:
    try:
        return np.asarray(zarr.open_array(backing, path=path, mode="r", zarr_format=3)[:])
    except Exception as error:  # zarr raises whatever it trips over in damaged metadata
        raise damaged(store, path, error) from None


def read_words(store: str, backing: Store, path: str) -> Words:
    """A column of words. DataError if it is damaged."""
    key = f"{path}/{files.METADATA}"
    try:
        document = files.read_json(backing, key, sealed=False)
        if document is None:
            raise ValueError("it is missing")
        if [codec["name"] for codec in document["codecs"]] != ["vlen-utf8", "crc32c"]:
            raise ValueError("its codecs are not those of this format")
        (n_rows,), (step,) = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            chunks = list(pool.map(lambda i: files.read(backing, f"{path}/c/{i}"), range(-(-n_rows // step))))
        there = [chunk for chunk in chunks if chunk is not None]
        if len(there) < len(chunks):
            raise ValueError(f"chunk {chunks.index(None)} is missing")
        return Words.of_chunks(there, n_rows)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(store, path, error) from None
