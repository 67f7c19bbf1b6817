"""Write access to one array: whole blocks, several on their way to the disk at once."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.errors import ContainsArrayError

from fastxfer.errors import DataError
from fastxfer.store import files, locks
from fastxfer.store.arrays import StoredArray
from fastxfer.store.layout import CHUNK_BYTES, CHUNK_ROWS, block_file, now
from fastxfer.store.locks import Team

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore

# A disk that is told to keep one block at a time takes ten times as long as one that may order several.
AT_ONCE = 6
_RECORD_EVERY = 5.0  # seconds


class Writer:
    """Write access to one array, from `EmbeddingStore.writer`, at whose end all blocks are on the disk.

    A kill costs the blocks that are on their way, at most `AT_ONCE`; each is there whole or not at all.
    """

    def __init__(self, store: EmbeddingStore, array: StoredArray, lock: Path | None, team: Team | None = None) -> None:
        self._store = store
        self._array = array
        self._lock = lock
        self._left = {
            block.start
            for block in array.missing()
            if team is None or block.start // array.block_rows % team.count == team.rank
        }
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="write")
        self._going: deque[Future[None]] = deque()
        self._seconds, self._timed, self._recorded = 0.0, 0, time.monotonic()

    @property
    def missing(self) -> list[range]:
        """Row blocks still to be written, ascending; of a team's member, its own."""
        return [block for block in self._array.blocks if block.start in self._left]

    @property
    def attributes(self) -> dict[str, Any]:
        """The array's provenance as stored (by the run that began it)."""
        return dict(self._array.attributes)

    @property
    def bad(self) -> dict[int, str]:
        """Rows whose image is known not to decode."""
        return self._store.bad_images(self._array.target)

    def mark_bad(self, found: dict[int, str]) -> None:
        """Record rows whose image cannot be decoded, before their block is written; for all backbones alike."""
        if found:
            self._store.record_bad(self._array.target, found)

    def write(self, block: range, values: NDArray[Any], seconds: float | None = None) -> None:
        """Write one block of `missing`: values (len(block), dim); `seconds` of forward time are added to the record.

        Raises DataError if a value isn't finite in the stored dtype (rows marked bad excepted), and OSError if this or
        an earlier block could not be written (a full disk); that block is missing as before.
        """
        array, layout = self._array, self._array.layout
        number = block.start // array.block_rows
        if layout is None or block != layout.rows(number) or values.shape != (len(block), array.shape[1]):
            raise ValueError(f"rows {block} with values {values.shape} are no whole block of {array.shape}")
        with np.errstate(over="ignore"):
            stored = values.astype(layout.dtype)
        wrong = np.flatnonzero(~_finite(stored)) if stored.dtype.kind == "f" else ()
        bad = self.bad if len(wrong) else {}
        for row in (block.start + int(i) for i in wrong if block.start + int(i) not in bad):
            finite = bool(np.isfinite(values[row - block.start]).all())
            why = (
                f"is too large for {array.dtype}: use --dtype float32"
                if finite
                else "is not finite: the network gave NaN or infinity"
            )
            raise DataError(f"embedding of row {row} of '{array.target}' {why}")
        while len(self._going) >= AT_ONCE or (self._going and self._going[0].done()):
            self._going.popleft().result()
        self._going.append(self._pool.submit(self._put, number, stored))
        self._left.discard(block.start)
        if seconds is not None:
            self._seconds, self._timed = self._seconds + seconds, self._timed + len(block)
        if time.monotonic() - self._recorded > _RECORD_EVERY:
            self._record()

    def _put(self, number: int, stored: NDArray[Any]) -> None:
        array = self._array
        assert array.layout is not None
        root = files.local_root(array.backing)
        if root is not None and not (root / array.path / files.METADATA).exists():
            # Writing on would make the folder anew, on whatever disk lies under the one that went away.
            raise DataError(
                f"store '{array.store}' is gone while being written ({array.path} is not there any more): is its disk "
                "still mounted? What was written before is on it; run the same command again once it is back"
            )
        files.write(array.backing, f"{array.path}/{block_file(number)}", array.layout.encode(number, stored))

    def _record(self, complete: bool = False) -> None:
        """Add to the array's attributes how long its blocks took; and that it is complete, if it is."""

        def add(attributes: dict[str, Any]) -> None:
            attributes["seconds"] += self._seconds
            attributes["n_timed"] += self._timed
            total = attributes["seconds"]
            attributes["images_per_second"] = attributes["n_timed"] / total if total > 0 else None
            if complete:
                attributes["complete"] = True

        self._store.change_attributes(self._array, add)
        self._seconds, self._timed, self._recorded = 0.0, 0, time.monotonic()
        if self._lock is not None:
            locks.touch(self._lock)

    def finish(self) -> None:
        """Wait until all blocks are on the disk; OSError if one could not be written."""
        try:
            while self._going:
                self._going.popleft().result()
        finally:
            self._pool.shutdown(wait=True)
        complete = not self._array.missing()
        if self._timed or (complete and not self._array.attributes.get("complete")):
            self._record(complete=complete)

    def give_up(self) -> None:
        """After an error: let blocks that are on their way arrive, whatever becomes of them."""
        self._pool.shutdown(wait=True)


def create(
    backing: Store, path: str, shape: tuple[int, int], dtype: str, block_rows: int, attributes: dict[str, Any]
) -> None:
    """Make an array without rows."""
    fits = CHUNK_BYTES // (shape[1] * np.dtype(dtype).itemsize)
    chunk = min(CHUNK_ROWS, 1 << max(0, fits.bit_length() - 1), block_rows)
    shard = -(-min(block_rows, shape[0]) // chunk) * chunk
    with suppress(
        ContainsArrayError
    ):  # another writer was first, where there are no locks; whose it is, is checked next
        zarr.create_array(
            backing,
            name=path,
            shape=shape,
            dtype=dtype,
            chunks=(chunk, shape[1]),
            shards=(shard, shape[1]),
            compressors=Crc32cCodec(),
            fill_value=0 if dtype == "uint8" else float("nan"),
            # One flat folder, so that a single listing tells which blocks are there.
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"date": now(), "seconds": 0.0, "n_timed": 0, **attributes},
        )


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) whether all values of a row are finite, float16 or float32: sixteen times as fast as NumPy on float16."""
    bits: NDArray[Any] = values.view(np.uint16 if values.itemsize == 2 else np.uint32)
    exponent: Any = bits.dtype.type(0x7C00 if values.itemsize == 2 else 0x7F800000)
    finite: NDArray[np.bool_] = (bits & exponent).max(axis=1, initial=0) < exponent
    return finite
