"""Write access to one array: whole blocks, in the order they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.store import locks

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore


class Writer:
    """Write access to one array, from `EmbeddingStore.writer`."""

    def __init__(self, store: EmbeddingStore, array: zarr.Array[Any], target: str, lock: Path | None) -> None:
        self._store = store
        self._array = array
        self._target = target
        self._lock = lock
        self.missing: list[range] = store.missing_blocks(array)  # row blocks still to be written, ascending

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's provenance as stored (by the run that began it)."""
        return dict(self._array.attrs)

    @property
    def bad(self) -> dict[int, str]:
        """Rows whose image is known not to decode."""
        return self._store.bad_images(self._target)

    def mark_bad(self, found: dict[int, str]) -> None:
        """Record rows whose image cannot be decoded, before their block is written; for all backbones alike."""
        if found:
            self._store.record_bad(self._target, found)

    def write(self, block: range, values: NDArray[Any], seconds: float = 0.0) -> None:
        """Write one block of `missing`: values (len(block), dim); `seconds` of forward time are added to the record.

        Raises DataError if a value isn't finite in the stored dtype (rows marked bad excepted), OSError if the disk
        is full; then the block is missing as before.
        """
        if block not in self._store.blocks(self._array) or values.shape != (
            len(block),
            self._array.shape[1],
        ):
            raise ValueError(f"rows {block} with values {values.shape} are no whole block of {self._array.shape}")
        with np.errstate(over="ignore"):
            stored = values.astype(self._array.dtype)
        wrong = [i for i in np.flatnonzero(~np.isfinite(stored).all(axis=1)) if block.start + int(i) not in self.bad]
        if wrong:
            row = block.start + int(wrong[0])
            finite = bool(np.isfinite(values[wrong[0]]).all())
            why = (
                f"is too large for {self._array.dtype}: use --dtype float32"
                if finite
                else "is not finite: the network gave NaN or infinity"
            )
            raise DataError(f"embedding of row {row} of '{self._target}' {why}")
        self._array[block.start : block.stop] = stored
        self.missing = [b for b in self.missing if b != block]
        if self._lock is not None:
            locks.touch(self._lock)
        attrs: dict[str, Any] = dict(self._array.attrs)
        total, timed = attrs["seconds"] + seconds, attrs["n_timed"] + len(block)
        self._array.update_attributes(
            {"seconds": total, "n_timed": timed, "images_per_second": timed / total if total > 0 else None}
        )
