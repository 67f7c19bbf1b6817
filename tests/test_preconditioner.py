"""Embeddings whose directions differ in length a thousandfold: the solver goes on with a preconditioner, to the same
optimum. Labels are of the faint directions, so that what the optimum needs is what the long ones hide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastxfer import ops, reference

M, DIM = 110, 150
L2 = (1e-4, 1e-6)
# Iterations of the first penalty; without a preconditioner 600 and more, in float64 900.
FEW = 500
# Later than these the solver asks for one.
WAITED = 140


def steep(ways: int, *, dim: int = DIM, decades: float = 3) -> tuple[np.ndarray, np.ndarray]:
    """(140, dim) embeddings of which the first M serve as support, and all labels; no dimension separates them."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(140, dim))
    faint = base[:, dim // 2 :]
    labels = (faint @ rng.normal(size=(faint.shape[1], ways)) + 8 * rng.normal(size=(140, ways))).argmax(1)
    return 5 * base * 10 ** -np.linspace(0, decades, dim), labels.astype(np.int32)


def solve(solver: Any, x: Any, labels: np.ndarray, ways: int, **options: Any) -> Any:
    return solver(x, np.arange(M)[None], labels[None, :M], np.arange(140)[None], ways, L2, **options)


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_optimum_is_the_references(ways: int, class_weight: str | None) -> None:
    x, labels = steep(ways)
    truth = solve(reference.logistic, x, labels, ways, class_weight=class_weight)
    for dtype, tol in [("float32", 1e-6), ("float64", 1e-9)]:
        ours = solve(ops.logistic, ops.Pool(x, dtype=dtype), labels, ways, class_weight=class_weight)
        assert ours.converged.all()
        np.testing.assert_allclose(ours.objective, truth.objective, rtol=tol)
        assert np.abs(ours.scores - truth.scores).max() < 0.1 * np.sqrt(tol / 1e-6) * np.abs(truth.scores).max()
        assert ours.iterations[0].max() < FEW


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("world", ["more images than dimensions", "duplicates", "a class unseen", "many penalties"])
def test_awkward_supports(world: str, dtype: str) -> None:
    x, labels = steep(3, dim=40 if world == "more images than dimensions" else DIM)
    if world == "duplicates":  # under other labels
        x[1:M:2] = x[:M:2]
    ways = 4 if world == "a class unseen" else 3
    l2 = {"many penalties": tuple(10.0 ** -np.arange(9)), "duplicates": L2[:1]}.get(world, L2)
    call = (np.arange(M)[None], labels[None, :M], np.arange(140)[None], ways, l2)
    truth, ours = reference.logistic(x, *call), ops.logistic(ops.Pool(x, dtype=dtype), *call)
    assert ours.converged.all()
    assert ours.iterations.sum() > WAITED
    np.testing.assert_allclose(ours.objective, truth.objective, rtol=1e-6)


def test_threads_change_no_bit() -> None:
    x, labels = steep(3)
    rng = np.random.default_rng(0)
    support = np.array([rng.permutation(140)[:M] for _ in range(5)])
    one, two = (
        ops.logistic(ops.Pool(x, threads=n), support, labels[support], np.arange(140)[None], 3, L2) for n in (1, 2)
    )
    assert np.array_equal(one.scores, two.scores)
    assert np.array_equal(one.iterations, two.iterations)


@pytest.mark.parametrize("ways", [2, 5])
@pytest.mark.parametrize(("fewest", "most", "count"), [(7, 40, 100), (64, 110, 30)])
def test_duplicates_under_other_labels_at_hardly_any_penalty(ways: int, fewest: int, most: int, count: int) -> None:
    """K sees half of the directions. What is called converged is the optimum, whatever steps did to the other half."""
    rng, converged = np.random.default_rng(ways), []
    for _ in range(count):
        m, dim = int(rng.integers(fewest, most)), int(rng.integers(5, 200))
        x = rng.normal(size=(m, dim)) * 10 ** -np.linspace(0, rng.uniform(0, 4), dim)
        x[1::2] = x[: m - m % 2 : 2]
        x = x.astype(np.float32)
        labels = np.concatenate([np.arange(ways), rng.integers(0, ways, m - ways)]).astype(np.int32)
        size = float(((x - x.mean(axis=0)) ** 2).sum() / m)
        call = (np.arange(m)[None], labels[None], np.arange(m)[None], ways, [size * 1e-6, size * 1e-8])
        ours = ops.logistic(ops.Pool(x), *call)
        exact = ops.logistic(ops.Pool(x, dtype="float64"), *call)
        both = ours.converged & exact.converged
        gap = np.abs(ours.objective / exact.objective - 1)
        assert gap[both].max(initial=0) < 1e-5
        converged.append(both.mean())
    assert np.mean(converged) > 0.5
