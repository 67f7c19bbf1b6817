"""EmbeddingStore: open, read, write, compare, remove."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.store import files, locks
from fastxfer.store.arrays import StoredArray, open_array
from fastxfer.store.claims import claim
from fastxfer.store.layout import (
    FORMAT,
    NAME,
    array_path,
    bad_rows,
    block_rows_for,
    check_backbone,
    check_format,
    check_name,
    check_table,
    damaged,
)
from fastxfer.store.listing import Entry, entries, made_by
from fastxfer.store.locks import Team
from fastxfer.store.rows import StoredRows
from fastxfer.store.tables import read_table, read_words, write_table
from fastxfer.store.writing import Writer, create
from fastxfer.targets.table import Target


class EmbeddingStore:
    """Targets and their embeddings. Open one with `EmbeddingStore.open`."""

    def __init__(self, path: str | Path, backing: Store, *, read_only: bool, version: int = FORMAT) -> None:
        self.path = str(path)
        self.read_only = read_only
        self.version = version
        self.backing = backing
        self._left_out: dict[str, tuple[Collection[str], str]] = {}

    def __repr__(self) -> str:
        return f"EmbeddingStore({self.path!r})"

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> EmbeddingStore:
        """Open the store at a folder or fsspec URL; mode "a" makes it if nothing is there.

        Raises DataError if it is missing (mode "r"), something else, damaged, made by a newer fastxfer, or (mode "a") of an
        older format, which can only be read until `migrate` has brought it up to date.
        """
        backing = files.open_files(path, read_only=mode == "r")
        root = files.local_root(backing)
        if root is not None and root.exists() and not root.is_dir():
            raise DataError(f"store '{path}' is a file, not a store's folder")
        there = root.exists() if root is not None else True
        try:
            content = files.read_json(backing, files.METADATA, sealed=False) if there else None
            if content is not None and content["attributes"].get("fastxfer_format") == FORMAT:
                files.read_json(backing, files.METADATA)  # from format 2 on it has a digest
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(str(path), "its zarr.json", error) from None
        if content is None:
            filled = there and any(n not in (".locks",) and files.PARTIAL not in n for n in files.names(backing, ""))
            if filled and files.read(backing, files.METADATA) is not None:
                return cls.open(path, mode)  # somebody else has just made it
            if filled:
                raise DataError(
                    f"'{path}' is not a fastxfer store (no zarr.json in it); name another folder with --store"
                )
            if mode == "r":
                raise DataError(f"no store at '{path}': `fastxfer embed --ckpt … --target … --store {path}` makes one")
            try:
                zarr.create_group(backing, attributes={"fastxfer_format": FORMAT}, zarr_format=3)
            except zarr.errors.ContainsGroupError:  # another process was faster
                return cls.open(path, mode)
            return cls(path, backing, read_only=False)
        version = check_format(path, content["attributes"])
        if mode == "a" and version < FORMAT:
            raise DataError(
                f"store '{path}' has format {version}, which can be read but not added to: "
                f"`fastxfer store migrate --store {path}` brings it to format {FORMAT}; nothing is computed anew"
            )
        return cls(path, backing, read_only=mode == "r", version=version)

    # -- reading -------------------------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """Names of the targets whose tables are stored, sorted."""
        return [
            n for n in files.names(self.backing, "targets") if NAME.fullmatch(n) and self._target_attrs(n) is not None
        ]

    def backbones(self, target: str) -> list[str]:
        """Names of the backbones with embeddings of a target, sorted."""
        prefix = f"targets/{target}/embeddings"
        return [
            n
            for n in files.names(self.backing, prefix)
            if NAME.fullmatch(n) and self._attrs(f"{prefix}/{n}") is not None
        ]

    def entries(self, of: str | None = None) -> list[Entry]:
        """One Entry an array, by target and backbone; of target `of` only, if named."""
        return entries(self, of)

    def made_by(self, identities: Collection[str]) -> dict[str, list[StoredArray]]:
        """Arrays of the backbones of these identities, of any target and under any name, by target and name."""
        return made_by(self, identities)

    def target(self, name: str, *, keep_bad: bool = False) -> Target:
        """The target's table as stored, row for row as `embeddings` (so without images that cannot be decoded)."""
        attrs = self.target_attributes(name)
        whole = read_table(self.path, self.backing, name, attrs)
        absent = self._absent(name)
        if keep_bad or not len(absent):
            return whole
        kept = whole.take(np.delete(np.arange(whole.n_images), absent))
        gone = len(absent) - len(bad_rows(attrs))
        return replace(kept, dropped=f"{self._left_out[name][1]}:{gone}") if gone else kept

    def fingerprint(self, target: str) -> str:
        """That of the target's full table, as `add_target` was given it."""
        return str(self.target_attributes(target)["fingerprint"])

    def files_digest(self, target: str) -> str:
        """What `add_target` was told of the target's image files; "" for nothing."""
        return str(self.target_attributes(target).get("files", ""))

    def size(self, prefix: str) -> tuple[int, int]:
        """Files and bytes under a path of the store."""
        return files.size(self.backing, prefix)

    def bad_images(self, target: str) -> dict[int, str]:
        """Row number in the full table -> why that image cannot be decoded."""
        return {int(row): reason for row, reason in self.target_attributes(target)["bad"].items()}

    def leaving_out(self, images: Mapping[str, Collection[str]], why: str) -> EmbeddingStore:
        """The same store, for reading, in which some images (target -> image ids) are not there, nor their embeddings.

        Targets then say so: their `dropped` is `why` and how many it were.
        """
        store = EmbeddingStore(self.path, self.backing, read_only=True, version=self.version)
        store._left_out = {name: (set(some), why) for name, some in images.items()}
        return store

    def _absent(self, name: str) -> NDArray[np.int64]:
        """Rows of the full table that `target` and `embeddings` are without, ascending."""
        bad = bad_rows(self.target_attributes(name))
        if name not in self._left_out:
            return bad
        ids = read_words(self.path, self.backing, f"targets/{name}/image_id").array
        return np.union1d(bad, np.flatnonzero(np.isin(ids, sorted(self._left_out[name][0]))))

    def embeddings(self, backbone: str, target: str) -> NDArray[Any]:
        """(n_images, dim) float16 or float32, rows as in `target(target)`.

        Raises DataError if rows are missing or damaged (says which).
        """
        array = self._complete(backbone, target)
        absent = self._absent(target)
        values = array.read(range(array.shape[0]))
        return np.delete(values, absent, axis=0) if len(absent) else values

    def rows(self, backbone: str, target: str, which: NDArray[Any]) -> StoredRows:
        """Rows `which` (numbers, in any order) of `embeddings(backbone, target)`, not read yet.

        DataError if rows are missing.
        """
        array = self._complete(backbone, target)
        there = np.delete(np.arange(array.shape[0]), self._absent(target))
        return StoredRows(array, there[which])

    def array(self, backbone: str, target: str) -> StoredRows:
        """All of `embeddings(backbone, target)` as an array that reads what is asked for: `array[rows]`."""
        return self.rows(backbone, target, slice(None))  # type: ignore[arg-type]

    def xarray(self, backbone: str, target: str) -> Any:
        """`embeddings(backbone, target)` as an xarray DataArray (image, dim), labelled by image id, split and label.

        The values are those NumPy has read, not a copy. UsageError if xarray isn't installed.
        """
        from fastxfer.store.exporting import as_xarray

        return as_xarray(self, backbone, target)

    def _complete(self, backbone: str, target: str) -> StoredArray:
        array = self.stored(backbone, target)
        missing = array.missing()
        if missing:
            rows = sum(len(r) for r in missing)
            raise DataError(
                f"embeddings of '{target}' by '{backbone}' are not complete: {rows:,} of {array.shape[0]:,} rows "
                f"are missing; run the same `fastxfer embed` again, it does only the rest"
            )
        return array

    def attributes(self, backbone: str, target: str) -> dict[str, Any]:
        """Provenance of an array: identity, architecture, preprocessing, source, date, seconds, …"""
        return dict(self.stored(backbone, target).attributes)

    def digest(self) -> str:
        """SHA-256 over content alone: tables, undecodable rows, identities, embeddings. Not dates, paths or layout.

        Rows that are missing count as missing, so an incomplete store has another digest.
        """
        from fastxfer.store.digest import digest

        return digest(self)

    def export(self, backbone: str, target: str, out: Path) -> None:
        """Write embeddings and the table's columns to a .npz, .parquet or .npy (`exporting.export`); rows correspond."""
        from fastxfer.store.exporting import export

        export(self, backbone, target, Path(out))

    # -- writing -------------------------------------------------------------------------------------------------

    def add_target(self, target: Target, *, files: str = "", columns: bool = True) -> None:
        """Store a target's table; nothing happens if the same one is there. DataError if another one has its name.

        files:   a digest of the image files, so that embeddings of others under the same names are refused; "" unknown
        columns: False for a store inside the store that has the table: only which one it is, then; `target` cannot be read
        """
        name = check_name(target.name, "target")
        if target.n_images == 0:
            raise DataError(f"target '{name}' has no images")
        with self.locked(f"{name}", f"target '{name}'", wait=60.0):
            attrs = self._target_attrs(name)
            if attrs is not None:
                embedded = any(self._holds_rows(backbone, name) for backbone in self.backbones(name))
                check_table(self.path, attrs, target, files if embedded else "")
                if not embedded and files != attrs.get("files", ""):
                    zarr.open_group(self.backing, path=f"targets/{name}", mode="r+").update_attributes({"files": files})
                return
            write_table(self.backing, target, files, columns=columns)

    @contextmanager
    def writer(
        self,
        backbone: str,
        target: str,
        *,
        dim: int,
        dtype: str,
        attributes: dict[str, Any],
        block_rows: int | None = None,
        team: Team | None = None,
    ) -> Iterator[Writer]:
        """Hold the array of (backbone, target) for writing, making it if it isn't there; the target must be.

        With a `team`, its processes hold the array together, and the writer's `missing` are this one's share of the blocks.

        dtype "float16" or "float32" (pixels: "uint8"); `attributes` is its provenance and has an "identity".
        Raises DataError if somebody else writes it, or if it holds another backbone's embeddings under this name.
        """
        check_name(backbone, "backbone")
        n_images = int(self.target_attributes(target)["n_images"])
        path = array_path(backbone, target)
        with self.locked(f"{target}@{backbone}", f"'{backbone}' on '{target}'", team=team) as lock:
            with self.locked(f"{target}@{backbone}.making", f"'{backbone}' on '{target}'", wait=60.0):
                if self._attrs(path) is None:
                    files.sweep(self.backing, path)
                    rows = block_rows or block_rows_for(n_images, dim * np.dtype(dtype).itemsize)
                    create(self.backing, path, (n_images, dim), dtype, rows, files.as_json(attributes))
                array = self.stored(backbone, target)
                there = {**array.attributes, "dim": array.shape[1], "dtype": str(array.dtype)}
                check_backbone(
                    self.path, backbone, target, there, {**files.as_json(attributes), "dim": dim, "dtype": dtype}
                )
            if team is None:  # what others are writing just now looks like what killed ones left
                files.sweep(self.backing, path)
            out = Writer(self, array, lock, team)
            try:
                yield out
            except BaseException:
                out.give_up()
                raise
            out.finish()

    def change_attributes(self, array: StoredArray, change: Callable[[dict[str, Any]], None]) -> None:
        """Change an array's attributes, here and in the store; its lock must be held, where there are locks."""
        self.check_writable()
        key = f"{array.path}/{files.METADATA}"
        with self.locked(f"{array.target}@{array.backbone}.making", f"{array.path}", wait=60.0):
            document = files.change_json(self.backing, key, change)
        if document is None:
            raise DataError(f"store '{self.path}': {key} is gone while being written; is its disk still mounted?")
        array.attributes = document["attributes"]

    def remove(self, backbone: str | None, target: str) -> None:
        """Remove one array, or with backbone None the target and all its embeddings. DataError if being written."""
        self.target_attributes(target)
        gone = self.backbones(target) if backbone is None else [backbone]
        if backbone is not None:
            self.stored(backbone, target)
        self.check_writable()
        for name in gone:
            with self.locked(f"{target}@{name}", f"'{name}' on '{target}'"):
                files.delete_tree(self.backing, f"targets/{target}/embeddings/{name}")
        if backbone is None:
            with self.locked(target, f"target '{target}'"):
                files.delete_tree(self.backing, f"targets/{target}")

    # -- inside --------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """UsageError if the store was opened for reading."""
        if self.read_only:
            raise UsageError(f"store '{self.path}' was opened for reading; open it with mode 'a'")

    @contextmanager
    def locked(self, name: str, what: str, wait: float = 0.0, team: Team | None = None) -> Iterator[Path | None]:
        """Hold a lock of the store; `what` is said to whoever comes second. DataError if it is held.

        An object store has locks for short work only, which is worth waiting for: blocks are written whole and are the
        same whoever writes them.
        """
        self.check_writable()
        root = files.local_root(self.backing)
        if root is None:
            short = wait > 0 and getattr(self.backing, "has_claims", False)
            with claim(self.backing, f".locks/{name}", f"store {self.path}: {what}", wait) if short else nullcontext():
                yield None
            return
        with locks.hold(root / ".locks" / name, f"store {self.path}: {what}", wait=wait, team=team) as lock:
            yield lock

    def _attrs(self, path: str) -> dict[str, Any] | None:
        key = f"{path}/{files.METADATA}"
        try:
            document = files.read_json(self.backing, key, sealed=self.version > 1)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.path, key, error) from None
        return None if document is None else dict(document["attributes"])

    def _target_attrs(self, name: str) -> dict[str, Any] | None:
        attrs = self._attrs(f"targets/{name}")
        return attrs if attrs is not None and "fingerprint" in attrs else None

    def target_attributes(self, name: str) -> dict[str, Any]:
        """What is recorded of a target beside its columns. UsageError if the store doesn't hold it."""
        attrs = self._target_attrs(check_name(name, "target"))
        if attrs is None:
            known = self.targets()
            raise UsageError(
                f"store '{self.path}' holds no target '{name}'.{nearest(name, known)} "
                f"It holds: {', '.join(known) or 'none'}"
            )
        return attrs

    def stored(self, backbone: str, target: str) -> StoredArray:
        """The array as it is, undecodable images' rows too. UsageError if there is none, DataError if damaged."""
        fingerprint = str(self.target_attributes(target)["fingerprint"])
        check_name(backbone, "backbone")
        array = open_array(self.path, self.backing, backbone, target, fingerprint, sealed=self.version > 1)
        if array is None:
            known = self.backbones(target)
            raise UsageError(
                f"store '{self.path}' holds no embeddings of '{target}' by '{backbone}'.{nearest(backbone, known)} "
                f"It holds: {', '.join(known) or 'none'}"
            )
        return array

    def _holds_rows(self, backbone: str, target: str) -> bool:
        array = self.stored(backbone, target)
        return len(array.missing()) < len(array.blocks)

    def record_bad(self, target: str, found: dict[int, str]) -> None:
        with self.locked(target, f"target '{target}'", wait=60.0):
            self.target_attributes(target)

            def add(attributes: dict[str, Any]) -> None:
                bad = attributes["bad"] | {str(row): reason for row, reason in found.items()}
                attributes["bad"] = {k: bad[k] for k in sorted(bad, key=int)}

            files.change_json(self.backing, f"targets/{target}/{files.METADATA}", add)
