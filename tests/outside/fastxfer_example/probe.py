"""A probe: the nearest class median, which one odd support image moves little."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastxfer.probes import ArrayProbe


@dataclass(frozen=True)
class MedianProbe(ArrayProbe):
    name: ClassVar[str] = "median"
    summary: ClassVar[str] = "nearest class median"

    def score(self, x: NDArray[Any], y: NDArray[Any], query: NDArray[Any], ways: int) -> NDArray[Any]:
        medians = np.stack([np.median(x[y == label], axis=0) for label in range(ways)])
        return -np.linalg.norm(query[:, None] - medians, axis=2)
