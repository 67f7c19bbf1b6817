"""Products of many images with few vectors: ours against NumPy in float64, on every awkward width, in any memory layout."""

from __future__ import annotations

import numpy as np
import pytest

from fastxfer.backend import compiled, spread_rows
from fastxfer.ops_full.products import FEW, Sum, gradient_of, logits_of


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "dim", "c"), [(1, 1, 1), (3, 5, 2), (65, 33, 3), (130, 300, 10), (70, 513, 11), (40, 17, FEW + 1)]
)
def test_both_products(n, dim, c, dtype):
    rng = np.random.default_rng(n)
    w, residual = rng.normal(size=(dim + 1, c)), rng.normal(size=(c, n)).astype(dtype)
    x = rng.normal(size=(n, dim)).astype(dtype)
    spread = spread_rows(n, dim, dtype)
    spread[:] = x
    exact = (x.astype(np.float64) @ w[:-1].astype(dtype).astype(np.float64) + w[-1]).T
    close = {"atol": 40 * np.sqrt(n + dim) * np.finfo(dtype).eps}
    answers = []
    for images in (x, np.asfortranarray(x), spread, np.repeat(x, 2, axis=0)[::2]):
        z, twice = logits_of(w, dtype)(images), Sum(w.shape)
        for _ in range(2):
            twice.add(gradient_of(images, residual))
        gradient = twice.total() / 2
        np.testing.assert_allclose(z, exact, **close)
        np.testing.assert_allclose(gradient[:-1], x.T.astype(np.float64) @ residual.T, **close)
        np.testing.assert_allclose(gradient[-1], residual.sum(axis=1, dtype=np.float64), **close)
        answers.append((z, gradient))
    if c <= FEW:
        for z, gradient in answers:
            np.testing.assert_array_equal(z, answers[0][0])
            np.testing.assert_array_equal(gradient, answers[0][1])


def test_what_would_crash_is_refused():
    x, few = np.eye(4, 6), np.ones((2, 6))
    for images, vectors, transposed in (
        (x, few[:, :5].copy(), True),
        (x, few, False),
        (x[0], few, True),
        (x.T, few[:, :4], True),
    ):
        with pytest.raises(ValueError, match="must"):
            compiled.skinny(images, vectors, transposed)
