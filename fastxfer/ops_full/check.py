"""What both probes ask of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError


def check(x: NDArray[Any], query: NDArray[Any], y: NDArray[Any], n_classes: int) -> None:
    """`UsageError` for shapes that do not fit, labels out of range, NaN and infinity."""
    if x.ndim != 2 or query.ndim != 2 or x.shape[1] != query.shape[1] or not len(x):
        raise UsageError(f"embeddings must be (m, d) and (q, d), got {x.shape} and {query.shape}")
    if y.shape not in ((len(x),), (len(x), n_classes)):
        raise UsageError(f"labels must be ({len(x)},) or ({len(x)}, {n_classes}) for {len(x)} images, got {y.shape}")
    if y.ndim == 1 and not (y.dtype.kind in "iu" and y.min() >= 0 and y.max() < n_classes):
        raise UsageError(f"labels must be integers from 0 to {n_classes - 1}, got {y.dtype} {y.min()} to {y.max()}")
    for name, values in (("train", x), ("query", query)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise UsageError(f"{name} embeddings hold NaN or infinity, first in row {int(bad.argmax())}")
