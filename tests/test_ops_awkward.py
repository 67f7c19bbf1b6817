"""Supports on which float32 and BLAS go astray: the compiled ops against the reference, by both ways to products."""

from __future__ import annotations

import numpy as np
import pytest

from fastxfer import ops, reference
from fastxfer.ops.pool import first_places


def positive(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Like features after a ReLU: far from zero on average."""
    return (np.abs(rng.normal(size=(n, dim))) + 1).astype(np.float32)


def make_world(name: str) -> np.ndarray:
    """(40, dim) embeddings; the first 20 serve as support, five of each of four classes."""
    rng = np.random.default_rng(0)
    x = positive(rng, 40, 8 if name == "m > d" else 64)
    if name == "duplicates across classes":
        x[5:10] = x[:5]
    elif name == "collinear":
        x = (x[:1] * np.linspace(0.5, 2, 40)[:, None]).astype(np.float32)
    elif name == "rank 3":
        x = positive(rng, 40, 3) @ positive(rng, 3, 64)
    elif name == "zero vectors":
        x[:10] = 0
    elif name == "all alike":
        x[:20] = x[0]
    return x * {"tiny": np.float32(1e-4), "huge": np.float32(1e4)}.get(name, np.float32(1))


WORLDS = [
    "plain",
    "duplicates across classes",
    "collinear",
    "rank 3",
    "zero vectors",
    "all alike",
    "tiny",
    "huge",
    "m > d",
]


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("world", WORLDS)
def test_a_solution_called_converged_is_one(world: str, l2: float, gram: bool) -> None:
    x, labels = make_world(world), np.tile(np.arange(4), 5)
    support, query = np.arange(20)[None], np.arange(20, 40)[None]
    truth = reference.logistic(x, support, labels, query, 4, (l2,))
    ours = ops.logistic(ops.Pool(x, backend="cpu", gram=gram), support, labels, query, 4, (l2,))
    assert ours.converged.all()
    assert abs(ours.objective[0, 0] / truth.objective[0, 0] - 1) <= 1e-6


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_identical_images_tie_in_the_same_way(gram: bool, shared: bool) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = positive(rng, 60, 48)
        x[20:40] = x[:20]
        x[50:55] = x[:5]  # queries that are support images too
        support = np.stack([rng.permutation(40)[:20] for _ in range(3)])
        labels = rng.permutation(np.tile(np.arange(4), 5))
        query = np.arange(40, 60)[None] if shared else np.stack([rng.permutation(np.arange(40, 60)) for _ in range(3)])
        ours = ops.knn(ops.Pool(x, backend="cpu", gram=gram), support, labels, query, 4, k=[1, 2, 5], temperature=None)
        truth = reference.knn(x, support, labels, query, 4, k=[1, 2, 5], temperature=None)
        assert np.allclose(ours, truth, atol=1e-5)


def test_first_places() -> None:
    rows = np.array([[7, 3, 7, 7, 3], [1, 2, 3, 4, 5], [9, 9, 9, 9, 9]])
    assert first_places(rows).tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
