"""What stored numbers mean as grey values, where a file leaves that open."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError

CHOICES = {"grey16": ("full", "range"), "dicom": ("window", "range")}


@dataclass(frozen=True)
class Pixels:
    """How stored numbers become the 256 grey values.

    grey16: of 16-bit grey. "full": 0 … 65,535 are black … white; "range": an image's smallest and largest value are
    dicom:  of DICOM. "window": as the file's own window or look-up table shows it ("range" where it has neither);
            "range": an image's smallest and largest value are black and white

    `UsageError` for another word.
    """

    grey16: str = "full"
    dicom: str = "window"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES[field.name]
            if value not in known:
                raise UsageError(f"{field.name} '{value}': expected {' or '.join(known)}")

    def as_dict(self) -> dict[str, str]:
        """What differs from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(DEFAULT, name)}


DEFAULT = Pixels()


def grey8(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """`values` with `low` at 0 and `high` at 255, rounded; what lies beyond is cut off. Black where there is no range."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    return np.rint(np.clip((values - low) * 255 / (high - low), 0, 255)).astype(np.uint8)
