"""Embeddings as points in a plane: principal components of any number of rows, or UMAP of some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError

METHODS = ("pca", "umap")
_BLOCK_BYTES = 32 << 20
_BLOCK_VECTORS = 32  # iterated together: the more, the fewer passes
_MAX_PASSES = 40
_SETTLED = 1e-7  # one minus the cosine of the angle between two passes' planes
_SAMPLE, _RUN = 4096, 256  # rows that give the start, and how many of them lie side by side


class Rows(Protocol):
    """What embeddings are read from: an array, or `EmbeddingStore.array`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Projection:
    """points: (m, 2) float64; explained: the share of all variance along each axis, None where an axis has no such thing."""

    points: NDArray[np.float64]
    explained: tuple[float, float] | None


def thin(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """Row numbers, ascending: all `n`, or `most` of them drawn at random without replacement, fixed by `seed`."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False)).astype(np.int64)


def project(rows: Rows, shown: NDArray[np.int64], method: str = "pca", seed: int = 0) -> Projection:
    """Rows `shown` (m,) of embeddings (n, dim) as points of a plane; the same input and seed give the same points.

    pca   the first two principal components of all rows, whichever are shown
    umap  UMAP (McInnes, Healy & Melville 2018) of the rows shown, by umap-learn (extra `umap`)

    DataError for fewer than three rows, UsageError for another method or if umap-learn isn't installed.
    """
    if len(shown) < 3:
        raise DataError(f"{len(shown)} images make no picture: expected three or more")
    if method == "pca":
        mean, axes, explained = principal_axes(rows, seed)
        return Projection((rows[shown].astype(np.float64) - mean) @ axes, explained)
    if method == "umap":
        return Projection(_umap(rows[shown].astype(np.float32), seed), None)
    raise UsageError(f"--method {method}: one of {', '.join(METHODS)}")


def principal_axes(rows: Rows, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Mean (dim,), the first two principal axes (dim, 2) and the share of the variance along each.

    Block subspace iteration with Rayleigh-Ritz (Saad, Numerical Methods for Large Eigenvalue Problems, ch. 5), which begins
    with the axes of some random rows: a few passes, some megabytes at a time, no (dim, dim) matrix. An axis points to where
    its largest component is positive.
    """
    n, dim = rows.shape
    mean = sum((block.sum(axis=0, dtype=np.float64) for block in _blocks(rows)), np.zeros(dim)) / n
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, min(_BLOCK_VECTORS, dim))))[0]
    if n > 4 * _SAMPLE:
        runs = thin(n // _RUN, _SAMPLE // _RUN, seed) * _RUN  # rows side by side are read faster than scattered ones
        basis, _ = _leading(np.concatenate([rows[i : i + _RUN] for i in runs.tolist()]), mean, basis)
    basis, share = _leading(rows, mean, basis)
    plane = basis[:, :2]
    axes = np.zeros((dim, 2))
    axes[:, : plane.shape[1]] = plane * np.where(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])] < 0, -1, 1)
    first, second = [*share[:2], 0.0][:2]
    return mean, axes, (first, second)


def _leading(
    rows: Rows, mean: NDArray[np.float64], basis: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[float]]:
    """From a start (dim, k) to the leading axes (dim, k), of which the first two are settled; shares of the variance."""
    shift = mean.astype(np.float32)
    axes = basis
    for _ in range(_MAX_PASSES):
        # One pass: S Q of the scatter matrix S, and its trace.
        image, total = np.zeros(basis.shape), 0.0
        narrow = basis.astype(np.float32)
        for block in _blocks(rows):
            block -= shift
            image += block.T @ (block @ narrow)
            total += float(np.einsum("ij,ij->i", block, block).sum(dtype=np.float64))
        within = basis.T @ image
        along, turn = np.linalg.eigh((within + within.T) / 2)
        before, axes = axes, basis @ turn[:, ::-1]
        if np.linalg.svd(before[:, :2].T @ axes[:, :2], compute_uv=False).min() > 1 - _SETTLED:
            break
        basis = np.linalg.qr(image @ turn[:, ::-1])[0]
    return axes, (np.maximum(along[::-1], 0) / total).tolist() if total > 0 else [0.0] * len(along)


def facing(points: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """`points` (m, 2), each axis turned so that it runs as `other`'s does: an axis' sign means nothing, a mirror image misleads."""
    turned: NDArray[np.float64] = points * np.where((points * (other - other.mean(axis=0))).sum(axis=0) < 0, -1.0, 1.0)
    return turned


def _blocks(rows: Rows) -> Iterator[NDArray[np.float32]]:
    """Some rows at a time, float32, each a copy."""
    n, dim = rows.shape
    step = max(256, _BLOCK_BYTES // (4 * dim) // 256 * 256)
    for start in range(0, n, step):
        yield np.array(rows[start : start + step], np.float32)


def _umap(values: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    try:
        from umap import UMAP
    except ImportError:
        raise UsageError(
            "--method umap: umap-learn is not installed: pip install umap-learn, or fastxfer[umap]; --method pca needs nothing"
        ) from None
    # With a seed it is reproducible and takes one thread; said beforehand, it has nothing to warn of.
    made = UMAP(n_components=2, n_neighbors=min(15, len(values) - 1), random_state=seed, n_jobs=1).fit_transform(values)
    return np.asarray(made, np.float64)
