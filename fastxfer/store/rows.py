"""Some rows of stored embeddings, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StoredRows:
    """Rows `which` (m,), ascending, of a stored array, in slices: what `ops.logistic_full` walks through.

    `read` gives a range of the array's rows. A slice reads from its first row to its last, with what lies between, so a
    split that is a seventh of the target holds seven times the slice in memory for a moment.
    """

    def __init__(self, read: Callable[[range], NDArray[Any]], which: NDArray[Any], dim: int, dtype: Any) -> None:
        self.read, self.which = read, which
        self.shape = (len(which), dim)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        which = self.which[rows]
        if not len(which):
            return np.empty((0, self.shape[1]), self.dtype)
        return self.read(range(int(which[0]), int(which[-1]) + 1))[which - which[0]]
