"""EmbeddingStore: open, read, write, compare, remove."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.files import write_npz
from fastxfer.images import Pixels
from fastxfer.store import files, locks
from fastxfer.store.layout import (
    BLOCK_FILE,
    BLOCK_ROWS,
    CHUNK_ROWS,
    FORMAT,
    NAME,
    TABLE_CHUNK,
    as_words,
    bad_rows,
    check_backbone,
    check_format,
    check_name,
    check_table,
    now,
)
from fastxfer.store.rows import StoredRows
from fastxfer.store.writing import Writer
from fastxfer.targets.table import ABOUT, Target


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


class EmbeddingStore:
    """Targets and their embeddings. Open one with `EmbeddingStore.open`."""

    def __init__(self, path: str | Path, backing: Store, *, read_only: bool) -> None:
        self.path = str(path)
        self._files = backing
        self.read_only = read_only
        self._left_out: dict[str, tuple[Collection[str], str]] = {}

    def __repr__(self) -> str:
        return f"EmbeddingStore({self.path!r})"

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> EmbeddingStore:
        """Open the store at a folder or fsspec URL; mode "a" makes it if nothing is there.

        Raises DataError if it is missing (mode "r"), something else, or made by a newer fastxfer.
        """
        backing = files.open_files(path, read_only=mode == "r")
        root = files.local_root(backing)
        if root is not None and root.exists() and not root.is_dir():
            raise DataError(f"store '{path}' is a file, not a store's folder")
        there = root.exists() if root is not None else True
        content = files.read(backing, "zarr.json") if there else None
        if content is None:
            filled = there and any(n not in (".locks",) and files.PARTIAL not in n for n in files.names(backing, ""))
            if filled:
                raise DataError(
                    f"'{path}' is not a fastxfer store (no zarr.json in it); name another folder with --store"
                )
            if mode == "r":
                raise DataError(f"no store at '{path}': `fastxfer embed --ckpt … --target … --store {path}` makes one")
            zarr.create_group(backing, attributes={"fastxfer_format": FORMAT}, zarr_format=3)
            return cls(path, backing, read_only=False)
        check_format(path, content)
        return cls(path, backing, read_only=mode == "r")

    # -- reading -------------------------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """Names of the targets whose tables are stored, sorted."""
        return [
            n for n in files.names(self._files, "targets") if NAME.fullmatch(n) and self._target_attrs(n) is not None
        ]

    def backbones(self, target: str) -> list[str]:
        """Names of the backbones with embeddings of a target, sorted."""
        prefix = f"targets/{target}/embeddings"
        return [
            n
            for n in files.names(self._files, prefix)
            if NAME.fullmatch(n) and self._attrs(f"{prefix}/{n}") is not None
        ]

    def entries(self) -> list[Entry]:
        """One Entry an array, by target and backbone."""
        found = []
        for target in self.targets():
            attrs = self._need_target(target)
            bad = bad_rows(attrs)
            for backbone in self.backbones(target):
                array = self._array(backbone, target)
                missing = self.missing_blocks(array)
                absent = (
                    np.concatenate([np.arange(r.start, r.stop) for r in missing]) if missing else np.empty(0, np.int64)
                )
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
                        bytes=files.size(self._files, array.path),
                        attrs=dict(array.attrs),
                    )
                )
        return found

    def target(self, name: str, *, keep_bad: bool = False) -> Target:
        """The target's table as stored, row for row as `embeddings` (so without images that cannot be decoded)."""
        attrs = self._need_target(name)
        prefix = f"targets/{name}"
        known = files.names(self._files, prefix)
        column = {n: self._read_table(f"{prefix}/{n}") for n in ("image_id", "labels", "split", *ABOUT) if n in known}
        about: dict[str, Any] = {name: as_words(column[name]) for name in ABOUT if name in column}
        try:
            whole = Target(
                name=name,
                image_id=as_words(column["image_id"]),
                class_names=tuple(attrs["class_names"]),
                labels=column["labels"],
                split=as_words(column["split"]),
                notes=tuple(attrs.get("notes", ())),
                pixels=Pixels(**attrs.get("pixels", {})),
                **about,
            )
        except (KeyError, ValueError, TypeError, UsageError) as error:
            raise self._damaged(f"table of target '{name}'", error) from None
        if whole.fingerprint != attrs["fingerprint"]:
            raise self._damaged(f"table of target '{name}'", "its fingerprint differs from the recorded one")
        absent = self._absent(name)
        if keep_bad or not len(absent):
            return whole
        gone = len(absent) - len(bad_rows(attrs))
        dropped = f"{self._left_out[name][1]}:{gone}" if gone else ""
        return replace(whole.take(np.delete(np.arange(whole.n_images), absent)), dropped=dropped)

    def fingerprint(self, target: str) -> str:
        """That of the target's full table, as `add_target` was given it."""
        return str(self._need_target(target)["fingerprint"])

    def bad_images(self, target: str) -> dict[int, str]:
        """Row number in the full table -> why that image cannot be decoded."""
        return {int(row): reason for row, reason in self._need_target(target)["bad"].items()}

    def leaving_out(self, images: Mapping[str, Collection[str]], why: str) -> EmbeddingStore:
        """The same store, for reading, in which some images (target -> image ids) are not there, nor their embeddings.

        Targets then say so: their `dropped` is `why` and how many it were.
        """
        store = EmbeddingStore(self.path, self._files, read_only=True)
        store._left_out = {name: (set(some), why) for name, some in images.items()}
        return store

    def _absent(self, name: str) -> NDArray[np.int64]:
        """Rows of the full table that `target` and `embeddings` are without, ascending."""
        bad = bad_rows(self._need_target(name))
        if name not in self._left_out:
            return bad
        ids = as_words(self._read_table(f"targets/{name}/image_id"))
        return np.union1d(bad, np.flatnonzero(np.isin(ids, sorted(self._left_out[name][0]))))

    def embeddings(self, backbone: str, target: str) -> NDArray[Any]:
        """(n_images, dim) float16 or float32, rows as in `target(target)`.

        Raises DataError if rows are missing or damaged (says which).
        """
        array = self._complete(backbone, target)
        values = self._read_rows(array, range(array.shape[0]))
        absent = self._absent(target)
        return np.delete(values, absent, axis=0) if len(absent) else values

    def rows(self, backbone: str, target: str, which: NDArray[Any]) -> StoredRows:
        """Rows `which`, ascending, of `embeddings(backbone, target)`, not read yet. DataError if rows are missing."""
        array = self._complete(backbone, target)
        there = np.delete(np.arange(array.shape[0]), self._absent(target))
        return StoredRows(lambda rows: self._read_rows(array, rows), there[which], array.shape[1], array.dtype)

    def _complete(self, backbone: str, target: str) -> zarr.Array[Any]:
        array = self._array(backbone, target)
        missing = self.missing_blocks(array)
        if missing:
            rows = sum(len(r) for r in missing)
            raise DataError(
                f"embeddings of '{target}' by '{backbone}' are not complete: {rows:,} of {array.shape[0]:,} rows "
                f"are missing; run the same `fastxfer embed` again, it does only the rest"
            )
        return array

    def attributes(self, backbone: str, target: str) -> dict[str, Any]:
        """Provenance of an array: identity, architecture, preprocessing, source, date, seconds, …"""
        return dict(self._array(backbone, target).attrs)

    def digest(self) -> str:
        """SHA-256 over content alone: tables, undecodable rows, identities, embeddings. Not dates, paths or layout.

        Rows that are missing count as missing, so an incomplete store has another digest.
        """
        h = hashlib.sha256(b"fastxfer store 1\0")

        def text(*words: object) -> None:
            h.update(json.dumps([str(w) for w in words]).encode() + b"\0")

        for name in self.targets():
            whole = self.target(name, keep_bad=True)
            text("target", name, whole.fingerprint, sorted(self.bad_images(name)))
            for backbone in self.backbones(name):
                array = self._array(backbone, name)
                text("embeddings", backbone, array.attrs.get("identity"), array.dtype, array.shape)
                absent = {r.start for r in self.missing_blocks(array)}
                for block in self.blocks(array):
                    if block.start in absent:
                        text("missing", *block)
                    else:
                        h.update(np.ascontiguousarray(self._read_rows(array, block)).tobytes())
        return h.hexdigest()

    def export(self, backbone: str, target: str, out: Path) -> None:
        """Write embeddings, labels, class_names, split, image_id (and patient) to one .npz; rows correspond."""
        table = self.target(target)
        columns: dict[str, NDArray[Any]] = {
            "embeddings": self.embeddings(backbone, target),
            "labels": table.labels,
            "class_names": np.array(table.class_names, dtype=np.str_),
            "split": table.split,
            "image_id": table.image_id,
        }
        if table.patient is not None:
            columns["patient"] = table.patient
        write_npz(Path(out), columns)

    # -- writing -------------------------------------------------------------------------------------------------

    def add_target(self, target: Target, *, files: str = "") -> None:
        """Store a target's table; nothing happens if the same one is there. DataError if another one has its name.

        files: a digest of the image files, so that embeddings of others under the same names are refused; "" unknown
        """
        name = check_name(target.name, "target")
        if target.n_images == 0:
            raise DataError(f"target '{name}' has no images")
        with self._lock(f"{name}", f"target '{name}'", wait=60.0):
            attrs = self._target_attrs(name)
            if attrs is not None:
                embedded = any(self._holds_rows(backbone, name) for backbone in self.backbones(name))
                check_table(self.path, attrs, target, files if embedded else "")
                if not embedded and files != attrs.get("files", ""):
                    zarr.open_group(self._files, path=f"targets/{name}", mode="r+").update_attributes({"files": files})
                return
            prefix = f"targets/{name}"
            group = zarr.create_group(self._files, path=prefix, zarr_format=3, overwrite=True)
            columns: dict[str, Any] = {
                "image_id": target.image_id,
                "labels": target.labels,
                "split": target.split,
            }
            columns |= {name: values for name in ABOUT if (values := getattr(target, name)) is not None}
            for column, values in columns.items():
                words = values.dtype.kind in "UTO"
                values = values.astype(np.dtypes.StringDType()) if words else values
                array = zarr.create_array(
                    self._files,
                    name=f"{prefix}/{column}",
                    shape=values.shape,
                    dtype=str if words else values.dtype,
                    chunks=(min(len(values), TABLE_CHUNK), *values.shape[1:]),
                    compressors=Crc32cCodec(),
                    config={"write_empty_chunks": True},
                )
                array[:] = values
            # The fingerprint makes the table count as there, so it comes last.
            group.update_attributes(
                {
                    "name": name,
                    "class_names": list(target.class_names),
                    "multi_label": target.multi_label,
                    "n_images": target.n_images,
                    "notes": list(target.notes),
                    "pixels": target.pixels.as_dict(),
                    "files": files,
                    "date": now(),
                    "bad": {},
                    "fingerprint": target.fingerprint,
                }
            )

    @contextmanager
    def writer(
        self,
        backbone: str,
        target: str,
        *,
        dim: int,
        dtype: str,
        attributes: dict[str, Any],
        block_rows: int = BLOCK_ROWS,
    ) -> Iterator[Writer]:
        """Hold the array of (backbone, target) for writing, making it if it isn't there; the target must be.

        dtype "float16" or "float32"; `attributes` is its provenance and has an "identity".
        Raises DataError if somebody else writes it, or if it holds another backbone's embeddings under this name.
        """
        check_name(backbone, "backbone")
        n_images = int(self._need_target(target)["n_images"])
        path = f"targets/{target}/embeddings/{backbone}"
        with self._lock(f"{target}@{backbone}", f"'{backbone}' on '{target}'") as lock:
            if self._attrs(path) is None:
                chunk = min(CHUNK_ROWS, block_rows)
                shard = -(-min(block_rows, n_images) // chunk) * chunk
                files.sweep(self._files, path)
                zarr.create_array(
                    self._files,
                    name=path,
                    shape=(n_images, dim),
                    dtype=dtype,
                    chunks=(chunk, dim),
                    shards=(shard, dim),
                    compressors=Crc32cCodec(),
                    fill_value=float("nan"),
                    # One flat folder, so that a single listing tells which blocks are there.
                    chunk_key_encoding={"name": "default", "separator": "."},
                    attributes={"date": now(), "seconds": 0.0, "n_timed": 0, **files.as_json(attributes)},
                    config={"write_empty_chunks": True},
                )
            array = self._array(backbone, target)
            there = {**array.attrs, "dim": array.shape[1], "dtype": str(array.dtype)}
            check_backbone(
                self.path, backbone, target, there, {**files.as_json(attributes), "dim": dim, "dtype": dtype}
            )
            files.sweep(self._files, path)
            yield Writer(self, array, target, lock)

    def remove(self, backbone: str | None, target: str) -> None:
        """Remove one array, or with backbone None the target and all its embeddings. DataError if being written."""
        self._need_target(target)
        gone = self.backbones(target) if backbone is None else [backbone]
        if backbone is not None:
            self._array(backbone, target)
        self._writable()
        for name in gone:
            with self._lock(f"{target}@{name}", f"'{name}' on '{target}'"):
                files.delete_tree(self._files, f"targets/{target}/embeddings/{name}")
        if backbone is None:
            with self._lock(target, f"target '{target}'"):
                files.delete_tree(self._files, f"targets/{target}")

    # -- inside --------------------------------------------------------------------------------------------------

    def _writable(self) -> None:
        if self.read_only:
            raise UsageError(f"store '{self.path}' was opened for reading; open it with mode 'a'")

    @contextmanager
    def _lock(self, name: str, what: str, wait: float = 0.0) -> Iterator[Path | None]:
        self._writable()
        root = files.local_root(self._files)
        if root is None:  # no locks on object stores: blocks are written whole and are the same whoever writes them
            yield None
            return
        with locks.hold(root / ".locks" / name, f"store {self.path}: {what}", wait=wait) as lock:
            yield lock

    def _attrs(self, path: str) -> dict[str, Any] | None:
        content = files.read(self._files, f"{path}/zarr.json")
        if content is None:
            return None
        try:
            return dict(json.loads(content)["attributes"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{path}/zarr.json", error) from None

    def _target_attrs(self, name: str) -> dict[str, Any] | None:
        attrs = self._attrs(f"targets/{name}")
        return attrs if attrs is not None and "fingerprint" in attrs else None

    def _need_target(self, name: str) -> dict[str, Any]:
        attrs = self._target_attrs(check_name(name, "target"))
        if attrs is None:
            known = self.targets()
            raise UsageError(
                f"store '{self.path}' holds no target '{name}'.{nearest(name, known)} "
                f"It holds: {', '.join(known) or 'none'}"
            )
        return attrs

    def _array(self, backbone: str, target: str) -> zarr.Array[Any]:
        self._need_target(target)
        path = f"targets/{target}/embeddings/{check_name(backbone, 'backbone')}"
        if self._attrs(path) is None:
            known = self.backbones(target)
            raise UsageError(
                f"store '{self.path}' holds no embeddings of '{target}' by '{backbone}'.{nearest(backbone, known)} "
                f"It holds: {', '.join(known) or 'none'}"
            )
        try:
            array = zarr.open_array(self._files, path=path, mode="r" if self.read_only else "r+")
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, error) from None
        # open_array(config=…) is not honoured by zarr-python 3.1.6; without this an all-NaN block would not be written.
        return array.with_config({"write_empty_chunks": True})

    def blocks(self, array: zarr.Array[Any]) -> list[range]:
        rows = (array.shards or array.chunks)[0]
        return [range(i, min(i + rows, array.shape[0])) for i in range(0, array.shape[0], rows)]

    def _holds_rows(self, backbone: str, target: str) -> bool:
        array = self._array(backbone, target)
        return len(self.missing_blocks(array)) < len(self.blocks(array))

    def missing_blocks(self, array: zarr.Array[Any]) -> list[range]:
        present = {int(m[1]) for n in files.names(self._files, array.path) if (m := BLOCK_FILE.fullmatch(n))}
        return [block for i, block in enumerate(self.blocks(array)) if i not in present]

    def _read_rows(self, array: zarr.Array[Any], rows: range) -> NDArray[Any]:
        try:
            return np.asarray(array[rows.start : rows.stop])
        except ValueError as error:  # a checksum: say which block, if there are several
            blocks = [b for b in self.blocks(array) if b.start < rows.stop and b.stop > rows.start]
            for block in blocks if len(blocks) > 1 else []:
                self._read_rows(array, block)
            where = f"{array.path} rows {blocks[0].start:,} to {blocks[0].stop - 1:,}"
            file = f"{array.path}/c.{blocks[0].start // len(self.blocks(array)[0])}.0"
            raise self._damaged(where, error, f"delete {file} and run the same `fastxfer embed` again") from None

    def _read_table(self, path: str) -> NDArray[Any]:
        try:
            return np.asarray(zarr.open_array(self._files, path=path, mode="r")[:])
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise self._damaged(path, error) from None

    def _damaged(
        self, what: str, error: object, remedy: str = "restore it from a copy, or remove and embed again"
    ) -> DataError:
        return DataError(f"store '{self.path}': {what} is damaged ({str(error).splitlines()[0]}): {remedy}")

    def record_bad(self, target: str, found: dict[int, str]) -> None:
        with self._lock(target, f"target '{target}'", wait=60.0):
            attrs = self._need_target(target)
            bad = {**attrs["bad"], **{str(row): reason for row, reason in found.items()}}
            group = zarr.open_group(self._files, path=f"targets/{target}", mode="r+")
            group.update_attributes({"bad": {k: bad[k] for k in sorted(bad, key=int)}})
