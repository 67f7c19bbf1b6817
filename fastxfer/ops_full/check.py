"""What both probes ask of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError
from fastxfer.reference import ClassWeight

Array = NDArray[Any]

# Embeddings are read in pieces of about this size.
READ_BYTES = 64 * 2**20


def check(x: Any, query: Any, y: Array, n_classes: int) -> None:
    """`UsageError` for shapes that do not fit and labels out of range."""
    if len(x.shape) != 2 or len(query.shape) != 2 or x.shape[1] != query.shape[1] or 0 in x.shape:
        raise UsageError(f"embeddings must be (m, d) and (q, d), got {x.shape} and {query.shape}")
    m = x.shape[0]
    if y.shape not in ((m,), (m, n_classes)):
        raise UsageError(f"labels must be ({m},) or ({m}, {n_classes}) for {m} images, got {y.shape}")
    if y.ndim == 1 and not (y.dtype.kind in "iu" and y.min() >= 0 and y.max() < n_classes):
        raise UsageError(f"labels must be integers from 0 to {n_classes - 1}, got {y.dtype} {y.min()} to {y.max()}")


def check_class_weight(class_weight: ClassWeight, ways: int) -> NDArray[np.float64]:
    """Weights (ways,), empty for None and "balanced"; `UsageError` unless there is a positive one for each class."""
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return np.empty(0)
    made = np.empty(0) if isinstance(class_weight, str) else np.asarray(class_weight, np.float64)
    if made.shape != (ways,) or not (np.isfinite(made).all() and (made > 0).all()):
        raise UsageError(
            f"class_weight must be None, 'balanced' or a positive number for each of {ways} classes, got {class_weight!r}"
        )
    return np.ascontiguousarray(made)


def check_finite(block: Array, what: str, start: int) -> None:
    """`UsageError` naming the first row of `block`, which begins at row `start`, that holds NaN or infinity."""
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise UsageError(f"{what} embeddings hold NaN or infinity, first in row {start + int(finite.argmin())}")


def pieces(shape: tuple[int, ...], multiple: int) -> list[slice]:
    """All rows of a (m, d) array in pieces of about READ_BYTES as float32, each a multiple of so many rows."""
    step = max(1, READ_BYTES // (4 * shape[1] * multiple)) * multiple
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def as_rows(x: Any) -> Any:
    """An array, or what reads like one: `shape`, `dtype` and slices of rows (a zarr array, a memory map)."""
    return x if hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "__getitem__") else np.asarray(x)
