"""Embeddings as points: principal axes are scikit-learn's, a few rows at a time; UMAP only if somebody installed it."""

from __future__ import annotations

import sys
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

import fastxfer.projection as module
from fastxfer.errors import DataError, UsageError
from fastxfer.projection import facing, principal_axes, project, thin


def clouds(n: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated values far from their origin, a spectrum that falls slowly."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(dim, dim)) * np.arange(1, dim + 1)[:, None] ** -0.8
    return (rng.normal(size=(n, dim)) @ basis + 7).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "dim", "dtype"), [(500, 64, np.float32), (30, 200, np.float16), (20_000, 48, np.float16)]
)
def test_axes_are_those_of_scikit_learn(n: int, dim: int, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 256 * 4 * dim)  # many blocks
    values = clouds(n, dim).astype(dtype)
    made = project(values, np.arange(n))
    truth = PCA(2, svd_solver="full").fit(values.astype(np.float64))
    assert made.explained == pytest.approx(truth.explained_variance_ratio_, rel=1e-4)
    expected = truth.transform(values.astype(np.float64))
    assert np.abs(facing(made.points, expected) - expected).max() < 1e-3 * expected.std()


def test_points_are_the_same_every_time_and_of_any_rows() -> None:
    values = clouds(400, 20)
    some = thin(400, 50, seed=3)
    assert np.array_equal(project(values, some).points, project(values, some).points)
    assert np.allclose(project(values, np.arange(400)).points[some], project(values, some).points)


@pytest.mark.parametrize(
    "values", [np.ones((5, 4), np.float32), np.arange(6, dtype=np.float16)[:, None]], ids=["constant", "one dimension"]
)
def test_what_has_no_two_axes(values: NDArray[Any]) -> None:
    made = project(values, np.arange(len(values)))
    assert made.points.shape == (len(values), 2)
    assert np.isfinite(made.points).all()
    assert made.explained in ((0.0, 0.0), pytest.approx((1.0, 0.0)))
    assert not made.points[:, 1].any()


def test_memory_does_not_grow_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 20)
    some = clouds(1024, 64)

    class Endless:
        """The same rows over and over."""

        def __init__(self, n: int) -> None:
            self.shape = (n, 64)

        def __getitem__(self, rows: slice) -> NDArray[np.float32]:
            return some[np.arange(rows.start, min(rows.stop, self.shape[0])) % 1024]

    peaks = []
    for n in (20_000, 100_000):
        tracemalloc.start()
        principal_axes(Endless(n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8 << 20


def test_thinning_is_seeded_and_ascending() -> None:
    assert thin(10, 10, 0).tolist() == list(range(10))
    some = thin(1000, 100, 1)
    assert len(set(some.tolist())) == 100
    assert np.array_equal(some, np.sort(some))
    assert np.array_equal(some, thin(1000, 100, 1))
    assert not np.array_equal(some, thin(1000, 100, 2))


def test_a_mirror_image_is_turned_back() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    assert np.allclose(facing(points * [-1, 1], points), points)


def test_umap_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r"pip install umap-learn, or fastxfer\[umap\]"):
        project(clouds(10, 4), np.arange(10), "umap")
    with pytest.raises(UsageError, match="--method tsne: one of pca, umap"):
        project(clouds(10, 4), np.arange(10), "tsne")
    with pytest.raises(DataError, match="2 images make no picture"):
        project(clouds(10, 4), np.arange(2))

    class UMAP:
        def __init__(self, **options: Any) -> None:
            assert options == {"n_components": 2, "n_neighbors": 9, "random_state": 5, "n_jobs": 1}

        def fit_transform(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    made = project(clouds(10, 4), np.arange(10), "umap", seed=5)
    assert made.points.shape == (10, 2)
    assert made.explained is None
