"""Ridge at many penalties from one decomposition: the same answers as one at a time, and as the reference, on awkward supports."""

from __future__ import annotations

import numpy as np
import pytest

from fastxfer import ops, reference

WAYS = 4
GRID = tuple(10.0 ** (-6 + i / 4) for i in range(45))


def world(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """x (70, d), support (2, m), labels (2, m) and the size of an embedding."""
    rng = np.random.default_rng(sum(map(ord, name)))
    dim = {"m > d": 5, "one dimension": 1}.get(name, 60)
    x = np.abs(rng.normal(size=(70, dim))) + 1
    if name == "rank 3":
        x = np.abs(rng.normal(size=(70, 3))) @ np.abs(rng.normal(size=(3, 60)))
    elif name == "duplicates":
        x[10:20] = x[:10]
    elif name == "collinear":
        x = x[:1] * np.linspace(0.5, 2, 70)[:, None]
    elif name == "all alike":
        x[:] = x[0]
    size = {"tiny": 1e-4, "huge": 1e4}.get(name, 1.0)
    m = {"one image": 1, "two images": 2, "three images": 3}.get(name, 29)
    support = np.stack([rng.permutation(70)[:m] for _ in range(2)])
    if name == "duplicates":
        support[:, :20] = np.arange(20)
    return (size * x).astype(np.float32), support, rng.integers(0, WAYS, support.shape), size


NAMES = ["plain", "m > d", "one dimension", "rank 3", "duplicates", "collinear", "all alike", "tiny", "huge", "one image", "two images", "three images"]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_the_reference_at_each_of_45_values(name, gram, dtype):
    x, support, labels, size = world(name)
    l2 = [value * size**2 for value in GRID]
    query = np.arange(30, 70)[None]
    pool = ops.Pool(x, dtype=dtype, gram=gram, backend="cpu", threads=1)
    got, want = ops.ridge(pool, support, labels, query, WAYS, l2), reference.ridge(x, support, labels, query, WAYS, l2)
    np.testing.assert_allclose(got, want, atol=5e-4)
    # Two of them have a factor each.
    for pair in ([0, 44], [20, 22]):
        alone = ops.ridge(pool, support, labels, query, WAYS, [l2[i] for i in pair])
        np.testing.assert_allclose(got[:, pair], alone, atol=5e-4)


def test_many_images_and_any_order_of_penalties():
    """More images than dimensions, hundreds of them, next to no penalty: float32 products alone would leave nothing but NaN."""
    rng = np.random.default_rng(0)
    labels = np.arange(260) % WAYS
    x = (np.abs(rng.normal(size=(WAYS, 96))[labels] + rng.normal(size=(260, 96)))).astype(np.float32)
    support, query = rng.permutation(260)[None, :220], np.arange(260)[None]
    l2 = [1e-2, 1e-7, 10.0, 1e-4, 1e-2, 1e-5, 1e-3, 1.0]
    pool = ops.Pool(x, backend="cpu", threads=1)
    want = reference.ridge(x, support, labels[support], query, WAYS, l2)
    got = ops.ridge(pool, support, labels[support], query, WAYS, l2)
    np.testing.assert_allclose(got, want, atol=3e-4)
    np.testing.assert_array_equal(got[:, 0], got[:, 4])
    for value in (1, 5):
        alone = ops.ridge(pool, support, labels[support], query, WAYS, [l2[value]])
        np.testing.assert_allclose(alone[:, 0], want[:, value], atol=3e-4)
