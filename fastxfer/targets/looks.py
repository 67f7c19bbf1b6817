"""One look at every image of a target: what `targets check` needs of it, so that nothing is decoded twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fastxfer.errors import DataError
from fastxfer.images import Pixels, decode_content, format_of, read_content
from fastxfer.targets.likeness import LENGTH, likeness
from fastxfer.targets.table import Target

_WINDOW = 1024  # images in flight at once

TRAITS = {
    "bytes": ["bytes"],
    "size": ["width", "height"],
    "aspect": ["aspect"],
    "brightness": ["mean", "deviation"],
    "border": [f"{side} {what}" for side in ("top", "bottom", "left", "right") for what in ("mean", "deviation")],
}
"""What an image shows without its content, and the numbers that say so; the file's format comes beside them."""
_N_TRAITS = sum(len(numbers) for numbers in TRAITS.values())
_BORDER = 32  # the border is 1/32 of the picture on each side, at least a pixel


@dataclass(frozen=True)
class Looks:
    """What was seen of a target's images, one entry an image.

    error:    why it could not be decoded; "" where it could
    file:     digest of the content, None where it could not be read
    pixels:   digest of size and RGB values, None where it could not be decoded
    format:   "JPEG", "PNG" …
    traits:   (n_images, …) float32, the numbers of `TRAITS` in that order; NaN where it could not be decoded
    likeness: (n_images, LENGTH) float32, see `likeness`; zeros where it could not be decoded
    """

    error: list[str]
    file: list[bytes | None]
    pixels: list[bytes | None]
    format: list[str]
    traits: NDArray[np.float32]
    likeness: NDArray[np.float32]

    def key(self, row: int) -> bytes | None:
        """What equal images have in common; files that cannot be decoded can still be copies of each other."""
        return self.pixels[row] or self.file[row]


def look_at(target: Target, advance: Callable[[int], None] = lambda n: None, workers: int | None = None) -> Looks:
    """Read and decode every image of a target, once; `DataError` as by `folder_of`."""
    root, n = folder_of(target), target.n_images
    looks = Looks([], [], [], [], np.full((n, _N_TRAITS), np.nan, np.float32), np.zeros((n, LENGTH), np.float32))
    # Every thread multiplies its own small matrices: BLAS must not start threads of its own for each.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers or _cores()) as pool:
        for start in range(0, n, _WINDOW):
            seen = pool.map(
                lambda image_id: _look(root / image_id, target.pixels), target.image_id[start : start + _WINDOW]
            )
            for row, (error, file, pixels, kind, traits, like) in enumerate(seen, start):
                looks.error.append(error)
                looks.file.append(file)
                looks.pixels.append(pixels)
                looks.format.append(kind)
                if traits is not None:
                    looks.traits[row], looks.likeness[row] = traits, like
                advance(1)
    return looks


def folder_of(target: Target) -> Path:
    """Where the images of a target lie; `DataError` where it comes without them."""
    if target.root is None:
        raise DataError(f"target '{target.name}': its images are not at hand (only the table is), nothing to check")
    return target.root


_Look = tuple[str, bytes | None, bytes | None, str, NDArray[np.float32] | None, NDArray[np.float32] | None]


def _look(path: Path, meaning: Pixels) -> _Look:
    try:
        content = read_content(path)
    except DataError as error:
        return str(error), None, None, "", None, None
    raw = content if isinstance(content, bytes) else content.tobytes()
    file, kind = hashlib.blake2b(raw, digest_size=16).digest(), format_of(content)
    try:
        image = decode_content(content, str(path), pixels=meaning)
    except DataError as error:
        return str(error), file, None, kind, None, None
    pixels = hashlib.blake2b(image.tobytes(), digest_size=16, person=b"%dx%d" % image.size).digest()
    grey = image.convert("L")
    return "", file, pixels, kind, _traits(np.asarray(grey), len(raw)), likeness(grey)


def _traits(grey: NDArray[np.uint8], n_bytes: int) -> NDArray[np.float32]:
    height, width = grey.shape
    deep, wide = max(1, height // _BORDER), max(1, width // _BORDER)
    strips = (grey[:deep], grey[-deep:], grey[:, :wide], grey[:, -wide:])
    light = [value for part in (grey, *strips) for value in _mean_and_deviation(part)]
    return np.array([n_bytes, width, height, width / height, *light], np.float32)


def _mean_and_deviation(grey: NDArray[np.uint8]) -> tuple[float, float]:
    mean = float(grey.mean())
    squares = np.square(grey, dtype=np.uint16)  # exact, and a third of the time of `std`
    return mean, float(np.sqrt(max(0.0, float(squares.mean()) - mean**2)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
