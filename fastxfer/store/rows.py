"""Some rows of stored embeddings, read when they are asked for."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastxfer.store.arrays import StoredArray


class StoredRows:
    """Rows `which` (m,) of a stored array as an array of its own, (m, dim), that reads only what is asked for.

    `rows[a:b]`, `rows[indices]` and `rows[mask]` give NumPy arrays, one copy from the files' pages into memory; so does
    `np.asarray(rows)` for all. `torch.from_dlpack(rows)` takes that array as its own: no copy more. Each chunk of rows
    is checked against its checksum when it is first touched through this object.
    """

    ndim = 2

    def __init__(self, array: StoredArray, which: NDArray[Any]) -> None:
        self.array = array
        self.which = np.asarray(which, np.int64)
        self.shape = (len(self.which), array.shape[1])
        self._all = np.array_equal(self.which, np.arange(array.shape[0]))
        self.dtype = array.dtype

    def __repr__(self) -> str:
        return f"StoredRows({self.array.path}, {self.shape[0]:,} x {self.shape[1]:,} {self.dtype})"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[Any] | list[int]) -> NDArray[Any]:
        # Of all rows, a row's number here is that in the array; looking it up would cost a tenth of an episode's time.
        which = rows if self._all and _within(rows, len(self)) else self.which[rows]
        if which.ndim == 0:
            return self.array.take(which[None])[0]
        if len(which) > 1 and which[-1] - which[0] == len(which) - 1 and bool((np.diff(which) == 1).all()):
            return self.array.read(range(int(which[0]), int(which[-1]) + 1))
        return self.array.take(which)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("stored rows are on the disk: as an array they are a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __dlpack__(self, **options: Any) -> Any:
        return self[:].__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU, as DLPack numbers devices


def _within(rows: Any, n: int) -> TypeGuard[NDArray[np.int64]]:
    """Whether these are numbers of rows, each from 0 to n − 1."""
    plain = isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.ndim == 1
    return plain and bool(rows.view(np.uint64).max(initial=0) < n)  # a negative number is a huge one
