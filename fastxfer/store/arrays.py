"""One array of the store: how it lies, which of its blocks are there, and its rows, checked, or an error with their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from fastxfer.errors import DataError
from fastxfer.store import files
from fastxfer.store.blocks import Layout, layout_of
from fastxfer.store.layout import BLOCK_FILE, array_path, block_file, damaged
from fastxfer.store.reading import DamagedBlockError, LocalBlocks
from fastxfer.store.remote import RemoteBlocks


class StoredArray:
    """The embeddings (n_rows, dim) of a target by a backbone, all rows of the target's table.

    Blocks of the present format are read directly; those of format 1 through zarr.
    """

    def __init__(
        self, store: str, backing: Store, backbone: str, target: str, document: dict[str, Any], layout: Layout | None
    ) -> None:
        self.store, self.backing = store, backing
        self.backbone, self.target = backbone, target
        self.path = array_path(backbone, target)
        self.attributes: dict[str, Any] = document["attributes"]
        self.shape: tuple[int, int] = tuple(document["shape"])
        self.dtype = np.dtype(document["data_type"])
        self.block_rows = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        self.layout = layout
        root = files.local_root(backing)
        self._direct: LocalBlocks | RemoteBlocks | None = None
        if layout is not None:
            self._direct = (
                RemoteBlocks(backing, self.path, layout) if root is None else LocalBlocks(root / self.path, layout)
            )

    @property
    def blocks(self) -> list[range]:
        n_rows, step = self.shape[0], self.block_rows
        return [range(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]

    def missing(self) -> list[range]:
        """Blocks that are not there, known from the files' names alone."""
        present = {int(m[1]) for n in files.names(self.backing, self.path) if (m := BLOCK_FILE.fullmatch(n))}
        return [block for i, block in enumerate(self.blocks) if i not in present]

    def read(self, rows: range) -> NDArray[Any]:
        """(len(rows), dim): consecutive rows. DataError if they are damaged, missing or unreadable (says which)."""
        if self._direct is None:
            return self._by_zarr(rows, slice(rows.start, rows.stop))
        try:
            return self._direct.read(rows)
        except DamagedBlockError as error:
            raise self._damaged(error.number, error) from None
        except OSError as error:
            raise self._unreadable(rows, error) from error

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(len(rows), dim): any rows, from 0 up, in this order. DataError as for `read`."""
        if self._direct is not None and len(rows):
            try:
                return self._direct.take(rows)
            except DamagedBlockError as error:
                raise self._damaged(error.number, error) from None
            except OSError as error:
                raise self._unreadable(rows, error) from error
        if not len(rows):
            return np.empty((0, self.shape[1]), self.dtype)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._by_zarr(range(int(unique[0]), int(unique[-1]) + 1), unique)[inverse]

    def _by_zarr(self, rows: range, selection: Any) -> NDArray[Any]:
        """Rows that a selection picks, all of which lie in `rows`."""
        try:
            return np.asarray(self._zarr().oindex[selection])
        except OSError as error:
            raise self._unreadable(rows, error) from error
        except ValueError as error:  # a checksum: which block's?
            blocks = [i for i, b in enumerate(self.blocks) if b.start < rows.stop and b.stop > rows.start]
            raise self._damaged(next((i for i in blocks if not self._sound(i)), blocks[0]), error) from None

    def _sound(self, number: int) -> bool:
        block = self.blocks[number]
        try:
            self._zarr()[block.start : block.stop]
        except ValueError:
            return False
        return True

    def _zarr(self) -> zarr.Array[Any]:
        try:
            array = zarr.open_array(self.backing, path=self.path, mode="r", zarr_format=3)
        except Exception as error:  # zarr raises whatever it trips over in damaged metadata
            raise damaged(self.store, f"{self.path}/{files.METADATA}", error) from None
        return array

    def _damaged(self, number: int, why: object) -> DataError:
        block = self.blocks[number]
        remedy = f"`fastxfer store repair`, or delete {self.path}/{block_file(number)} and run the same `fastxfer embed` again"
        return damaged(self.store, f"{self.path} rows {block.start:,} to {block.stop - 1:,}", why, remedy)

    def _unreadable(self, rows: range | NDArray[np.int64], error: OSError) -> DataError:
        return DataError(
            f"store '{self.store}': rows {min(rows):,} to {max(rows):,} of {self.path} cannot be read "
            f"({error.strerror or error}): is the disk in order, and still mounted? Nothing was changed"
        )


def open_array(
    store: str, backing: Store, backbone: str, target: str, fingerprint: str, *, sealed: bool
) -> StoredArray | None:
    """The array, or None if it isn't there. DataError if its zarr.json is damaged."""
    key = f"{array_path(backbone, target)}/{files.METADATA}"
    try:
        document = files.read_json(backing, key, sealed=sealed)
        if document is None:
            return None
        layout = layout_of(document, fingerprint) if sealed else None
        return StoredArray(store, backing, backbone, target, document, layout)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(store, key, error) from None
