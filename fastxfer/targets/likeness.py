"""Which pictures look alike: a perceptual hash of real numbers, and the search for pairs of them.

The hash of a picture is its cosine spectrum up to 13 half-waves in either direction, taken from the grey picture itself
at whatever size it has, so that a resized copy has the same one. Coefficients are weighted by frequency to the power
1.25, since what pictures of one kind (chest X-rays) have in common is coarse, and scaled to length 1: brightness and
contrast don't count. Two pictures are near copies where the inner product of their hashes reaches `ALIKE`.

Size, weight and threshold were chosen on ../shared/real by recall and false pairs; `python -m benchmarks neardup`
measures both. Sign bits of the same spectrum, compared by Hamming distance, told flat textures from their copies worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WAVES = 14
LENGTH = WAVES * WAVES - 1  # the mean is no part of it
ALIKE = 0.93
"""Least inner product of two near copies; their `distance` is 1 minus the inner product, so at most 0.07."""

_PLAIN = 0.05  # grey levels: a picture whose coarse structure has a smaller standard deviation has none to compare
_TILE = 2048  # rows compared with rows at once: 16 MiB of float32

Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def likeness(image: Image.Image) -> NDArray[np.float32]:
    """(LENGTH,) float32 of length 1: the perceptual hash; zeros for a picture without structure, which is like none."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    height, width = grey.shape
    # Scaled so that the squares of all coefficients of a picture add up to its variance.
    spectrum = (_cosines(height) @ grey @ _cosines(width).T).ravel()[1:] / np.sqrt(np.float32(height * width))
    if np.linalg.norm(spectrum) < _PLAIN:
        return np.zeros(LENGTH, np.float32)
    weighted = spectrum * _weights()
    return weighted / np.linalg.norm(weighted)


def alike(x: NDArray[Any], y: NDArray[Any] | None = None, threshold: float = ALIKE) -> Iterator[Found]:
    """Pairs of rows with an inner product of at least `threshold`: (i, j, inner product), a tile at a time.

    x: (n, d) and y: (m, d), rows of length 1. Without `y`, pairs i < j of x. Takes n·m·d multiply-adds (half of them
    without `y`) and the memory of one tile.
    """
    other = x if y is None else y
    for top in range(0, len(x), _TILE):
        rows = x[top : top + _TILE].astype(np.float32, copy=False)
        for left in range(top if y is None else 0, len(other), _TILE):
            products = rows @ other[left : left + _TILE].astype(np.float32, copy=False).T
            if y is None and left == top:
                products[np.tril_indices(len(products))] = -1
            found = np.flatnonzero(products >= threshold)
            if len(found):
                i, j = np.divmod(found, products.shape[1])
                yield top + i, left + j, products.ravel()[found]


def nearest(found: Iterator[Found], most: int) -> tuple[int, Found]:
    """How many pairs there are, and the `most` nearest of them, nearest first; memory is bounded by that."""
    count = 0
    i, j, product = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    for some in found:
        count += len(some[0])
        if len(product) == most and some[2].max(initial=-1) <= product[-1]:
            continue
        i, j = np.concatenate([i, some[0]]), np.concatenate([j, some[1]])
        product = np.concatenate([product, some[2]])
        order = np.lexsort((j, i, -product))[:most]
        i, j, product = i[order], j[order], product[order]
    return count, (i, j, product)


@lru_cache(maxsize=512)
def _cosines(n: int) -> NDArray[np.float32]:
    """(WAVES, n) the first waves of the orthonormal cosine transform (DCT-II) over n pixels."""
    scale = np.full(WAVES, np.sqrt(2 / n))
    scale[0] = np.sqrt(1 / n)
    scale[n:] = 0  # n pixels have no more than n waves
    waves = np.cos(np.pi * np.arange(WAVES)[:, None] * (np.arange(n) + 0.5) / n)
    return (scale[:, None] * waves).astype(np.float32)


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.float32]:
    waves = np.arange(WAVES)
    return (np.hypot(waves[:, None], waves).ravel()[1:] ** 1.25).astype(np.float32)
