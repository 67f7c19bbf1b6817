"""Probes of the full train split against scikit-learn, and against the definition where scikit-learn has none."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from helpers import blobs_embeddings, blobs_target
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from fastxfer import ops, reference
from fastxfer.crew import Crew, blas_threads, crew
from fastxfer.errors import UsageError
from fastxfer.ops_full import INDEXES, check, device, knn_full, logistic, logistic_full, neighbours, rows, solver
from fastxfer.ops_full.history import History
from fastxfer.ops_full.losses import loss_of

L2 = [1e-4, 10.0, 1e-2, 1.0, 1e-6]  # in no order


def embeddings(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    decay = 1.0 / np.sqrt(1.0 + np.arange(d))
    return np.maximum(rng.normal(size=(n, d)) @ (decay[:, None] * rng.normal(size=(d, d))) + 0.3, 0.0)


def data(m: int, d: int, classes: int, q: int = 20, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = embeddings(m + q, d, seed).astype(np.float32)
    y = (x[:m] @ rng.normal(size=(d, classes)) + rng.normal(size=(m, classes))).argmax(axis=1)
    y[:classes] = np.arange(classes)
    return x[:m], y, x[m:]


def softmax_objective(x, y, classifier, l2):
    z = classifier.decision_function(x)
    if z.ndim == 1:
        loss = np.logaddexp(0, np.where(y == 1, -z, z))
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    return loss.mean() + 0.5 * l2 * (classifier.coef_**2).sum()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("m", "d", "classes"), [(400, 20, 5), (60, 200, 3), (300, 40, 2), (40, 40, 2), (2, 5, 2), (500, 1, 4)]
)
def test_logistic_reaches_the_minimum(m, d, classes):
    x, y, query = data(m, d, classes)
    got = logistic_full(x, y, query, classes, L2)
    assert got.scores.shape == (5, 20, classes)
    assert got.converged.all()
    expected = reference.logistic(np.vstack([x, query]), np.arange(m)[None], y, np.arange(m, m + 20)[None], classes, L2)
    gap = got.objective / expected.objective[0] - 1
    assert (gap < 1e-6).all(), gap
    assert (gap > -1e-9).all(), gap
    for i, l2 in enumerate(L2[:4]):
        theirs = LogisticRegression(C=1 / (m * l2), tol=1e-10, max_iter=20_000).fit(x.astype(float), y)
        assert got.objective[i] == pytest.approx(softmax_objective(x.astype(float), y, theirs, l2), rel=1e-6)
        scale = np.abs(expected.scores[0, i]).max()
        np.testing.assert_allclose(got.scores[i], expected.scores[0, i], atol=0.01 * scale)


def test_a_path_is_its_values_one_by_one():
    x, y, query = data(200, 30, 4)
    path = logistic_full(x, y, query, 4, L2)
    for i, l2 in enumerate(L2):
        alone = logistic_full(x, y, query, 4, [l2])
        assert alone.objective[0] == pytest.approx(path.objective[i], rel=1e-6)
    twice = logistic_full(x, y, query, 4, [0.01, 0.01, 0.1])
    np.testing.assert_allclose(twice.scores[0], twice.scores[1], atol=1e-3)


def test_features_too_many_to_decorrelate(monkeypatch):
    x, y, query = data(150, 30, 4)
    wide = data(40, 90, 3)
    turned = logistic_full(x, y, query, 4, L2), logistic_full(*wide, 3, L2)
    monkeypatch.setattr(logistic, "AXES", 10)
    plain = logistic_full(x, y, query, 4, L2), logistic_full(*wide, 3, L2)
    for a, b in zip(turned, plain, strict=True):
        assert b.converged.all()
        np.testing.assert_allclose(a.objective, b.objective, rtol=2e-6)


def test_memory_of_the_solver_is_bounded(monkeypatch):
    x, y, query = data(200, 30, 4)
    monkeypatch.setattr(solver, "HISTORY_BYTES", 1)
    few = logistic_full(x, y, query, 4, L2)
    assert few.converged.all()
    monkeypatch.undo()
    np.testing.assert_allclose(few.objective, logistic_full(x, y, query, 4, L2).objective, rtol=2e-6)


def test_classes_without_images():
    x, y, query = data(80, 10, 3)
    got = logistic_full(x, y * 2, query, 6, [0.1])  # classes 0, 2, 4 of 6
    inner = logistic_full(x, y, query, 3, [0.1])
    np.testing.assert_array_equal(got.scores[..., [0, 2, 4]], inner.scores)
    assert (got.scores[..., [1, 3, 5]] == -np.inf).all()
    one = logistic_full(x, np.full(80, 1), query, 2, [0.1, 1.0])
    assert (one.scores == np.array([-np.inf, 0.0])).all()
    assert (one.objective == 0).all()
    assert one.converged.all()


def test_not_converged_is_said():
    x, y, query = data(300, 40, 5)
    got = logistic_full(x, y, query, 5, [1.0, 1e-6], max_iter=2)
    assert not got.converged[1]
    assert got.iterations[1] <= 2 * 8
    assert np.isfinite(got.scores).all()


def test_multi_label_is_one_binary_problem_a_label_over_its_known_images():
    rng = np.random.default_rng(3)
    x, _, query = data(250, 15, 2)
    y = (x @ rng.normal(size=(15, 6)) + rng.normal(size=(250, 6)) > 1.0).astype(np.float32)
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:, 3] = np.nan  # nobody knows
    y[:, 4] = np.where(np.isnan(y[:, 4]), np.nan, 0.0)  # no positive
    y[:, 5] = np.where(np.isnan(y[:, 5]), np.nan, 1.0)  # no negative
    got = logistic_full(x, y, query, 6, L2)
    assert got.scores.shape == (5, 20, 6)
    assert got.converged.all()
    assert np.isnan(got.scores[..., 3]).all()
    assert (got.scores[..., 4] == -np.inf).all()
    assert (got.scores[..., 5] == np.inf).all()
    for i, l2 in enumerate(L2):
        total = 0.0
        for c in range(3):
            known = ~np.isnan(y[:, c])
            m = int(known.sum())
            rows = np.vstack([x[known], query])
            alone = reference.logistic(
                rows, np.arange(m)[None], y[known, c].astype(int), np.arange(m, m + 20)[None], 2, [l2]
            )
            total += alone.objective[0, 0]
            z = alone.scores[0, 0, :, 1] * 2
            np.testing.assert_allclose(got.scores[i, :, c], z, atol=0.01 * np.abs(z).max())
        assert got.objective[i] == pytest.approx(total, rel=1e-6)


def test_multi_label_objective_written_out():
    x, _, query = data(60, 4, 2)
    y = np.where(np.arange(60) % 7 == 0, np.nan, (x[:, 0] > x[:, 1]).astype(float))[:, None]
    known = ~np.isnan(y[:, 0])

    def objective(v):
        z = x[known].astype(float) @ v[:4] + v[4]
        return np.logaddexp(0, np.where(y[known, 0] == 1, -z, z)).mean() + 0.5 * 0.05 * (v[:4] ** 2).sum()

    best = minimize(objective, np.zeros(5), tol=1e-12)
    assert logistic_full(x, y, query, 1, [0.05]).objective[0] == pytest.approx(best.fun, rel=1e-6)


def test_multi_label_all_unknown():
    x, _, query = data(20, 4, 2)
    got = logistic_full(x, np.full((20, 2), np.nan), query, 2, [0.1])
    assert np.isnan(got.scores).all()
    assert got.converged.all()


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scales(scale):
    x, y, query = data(200, 30, 4)
    got = logistic_full(x * np.float32(scale), y, query * np.float32(scale), 4, [1.0, 1e-2])
    rows = np.vstack([x, query]).astype(np.float32) * np.float32(scale)
    expected = reference.logistic(rows, np.arange(200)[None], y, np.arange(200, 220)[None], 4, [1.0, 1e-2])
    np.testing.assert_allclose(got.objective, expected.objective[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(dtype):
    x, y, query = data(100, 12, 3)
    x, query = x.astype(dtype), query.astype(dtype)
    rows = np.vstack([x, query])
    expected = reference.logistic(rows, np.arange(100)[None], y, np.arange(100, 120)[None], 3, [0.05])
    got = logistic_full(x, y.astype(np.int32), query, 3, [0.05])
    np.testing.assert_allclose(got.objective, expected.objective[0], rtol=1e-6)
    assert got.scores.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.array([0, 1, 2, 3])}, r"labels must be \(5,\) or \(5, 3\) for 5 images, got \(4,\)"),
        ({"y": np.array([0, 1, 2, 3, 0])}, "labels must be integers from 0 to 2, got int64 0 to 3"),
        ({"y": np.zeros(5)}, "labels must be integers"),
        ({"query": np.zeros((2, 3))}, r"embeddings must be \(m, d\) and \(q, d\), got \(5, 2\) and \(2, 3\)"),
        ({"x": np.array([[0, 1], [1, 0], [np.nan, 1], [1, 1], [0, 0]])}, "train embeddings hold NaN .* first in row 2"),
        ({"query": np.array([[np.inf, 0]])}, "query embeddings hold NaN or infinity, first in row 0"),
        ({"l2": [0.1, 0.0]}, "l2 must be a list of positive numbers"),
        ({"l2": []}, "l2 must be a list of positive numbers"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    good = {"x": np.eye(5)[:, :2], "y": np.array([0, 1, 2, 0, 1]), "query": np.eye(2), "n_classes": 3, "l2": [0.1]}
    with pytest.raises(UsageError, match=message):
        logistic_full(**(good | change))


class OnDisk:
    """What a zarr array or a memory map offers: shape, dtype, slices of rows. Counts the largest slice."""

    def __init__(self, x, chunk=None):
        self.x, self.shape, self.dtype, self.largest = x, x.shape, x.dtype, 0
        if chunk:
            self.chunks = (chunk, x.shape[1])

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.largest = max(self.largest, len(self.x[rows]))
        return self.x[rows]

    def __array__(self, *_args, **_options):
        raise AssertionError("read as a whole")


@pytest.mark.parametrize("chunk", [None, 48])
def test_read_from_disk_is_the_same_answer(monkeypatch, chunk):
    x, y, query = data(400, 20, 5)
    in_memory = logistic_full(x, y, query, 5, L2)
    monkeypatch.setattr(rows, "CACHE_BYTES", 4 * 20 * 16)  # blocks of 16 rows
    blocked = logistic_full(x, y, query, 5, L2)
    monkeypatch.setattr(rows, "KEEP_BYTES", 0)
    monkeypatch.setattr(check, "READ_BYTES", 4 * 20 * 64)  # read 64 rows at a time
    on_disk, asked = OnDisk(x, chunk), OnDisk(query)
    from_disk = logistic_full(on_disk, y, asked, 5, L2)
    assert on_disk.largest == (48 if chunk else 64)
    np.testing.assert_array_equal(from_disk.scores, blocked.scores)
    np.testing.assert_array_equal(from_disk.objective, blocked.objective)
    np.testing.assert_allclose(from_disk.objective, in_memory.objective, rtol=1e-6)


def test_a_far_offset_costs_no_digits():
    x, y, query = data(200, 12, 3)
    far = logistic_full(x.astype(float) + 1e6, y, query.astype(float) + 1e6, 3, [0.1, 1e-4])
    np.testing.assert_allclose(far.objective, logistic_full(x, y, query, 3, [0.1, 1e-4]).objective, rtol=1e-6)


@pytest.mark.parametrize(("m", "d"), [(400, 30), (90, 150)])
def test_the_45_values_against_a_certified_solver(m, d):
    x, y, query = data(m, d, 4)
    values = list(1 / (m * np.logspace(-6, 5, 45)))
    got = logistic_full(x, y, query, 4, values)
    pool = ops.Pool(np.vstack([x, query]), dtype="float64", threads=1)
    best = ops.logistic(pool, np.arange(m)[None], y, np.arange(m, m + 20)[None], 4, values, tol=1e-10)
    assert best.converged.all()
    assert got.converged.all()
    gap = got.objective / best.objective[0] - 1
    assert (np.abs(gap) < 1e-6).all(), gap


def test_separable_data_without_much_penalty():
    x, y, query = data(120, 40, 3)
    y = x[:, :3].argmax(axis=1)
    values = [1 / (120 * c) for c in np.logspace(-6, 5, 12)]
    got = logistic_full(x, y, query, 3, values)
    assert got.converged.all()
    for i in (0, 5, 8, 10, 11):
        fit = LogisticRegression(C=1 / (120 * values[i]), tol=1e-12, max_iter=100_000).fit(x.astype(float), y)
        assert got.objective[i] <= softmax_objective(x.astype(float), y, fit, values[i]) * (1 + 1e-6)


@pytest.mark.parametrize(("m", "d", "classes"), [(900, 170, 5), (1100, 130, 45), (150, 333, 3), (700, 37, 2)])
def test_any_number_of_threads_gives_the_same_bits(m, d, classes):
    x, y, query = data(m, d, classes)
    answers = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            answers.append(logistic_full(x, y, query, classes, [1e-2, 1e-5]))
            assert blas_threads() == threads  # as before
    for other in answers[1:]:
        for name in ("scores", "objective", "iterations", "converged"):
            np.testing.assert_array_equal(getattr(other, name), getattr(answers[0], name))


def test_any_number_of_threads_finds_the_same_neighbours():
    rng = np.random.default_rng(0)
    x, y, query = (
        rng.normal(size=(501, 1031)).astype(np.float32),
        rng.integers(0, 7, 501),
        rng.normal(size=(1200, 1031)),
    )
    answers = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            answers.append(knn_full(x, y, query.astype(np.float32), 7, k=[1, 20]).scores)
    for other in answers[1:]:
        np.testing.assert_array_equal(other, answers[0])


@pytest.mark.filterwarnings("error")
def test_biases_that_nothing_determines_stay_where_they_are():
    """As many images of every class, and penalties so large that the weights are nearly 0: what is left is rounding."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(120), 12)
    centres = rng.normal(size=(120, 40))
    x = np.maximum(0.3 * centres[y] + 0.1 * rng.normal(size=(len(y), 40)) + 0.2, 0).astype(np.float32)
    loss = loss_of(y, 120)[2]
    assert loss is not None
    seen = rows.Rows(x, 120)
    path = solver.Path(seen, loss, seen.spread, None, Crew(1, None))
    w, penalty = rng.normal(size=path.w.shape), np.full((len(path.w), 1), 1e-3)
    penalty[-1] = 0.0
    for gradient in (path._evaluate(w, penalty, np.float32)[1], path._hessian(w, penalty)(rng.normal(size=w.shape))):
        assert abs(gradient[-1].sum()) < 1e-15  # a common number: the sums of float32 residuals leave 1e-9
    penalties = list(np.geomspace(1e2, 1e-6, 17))
    got = logistic_full(x, y, x[:10], 120, penalties)
    assert got.converged.all()
    assert got.iterations.max() < 30
    for i in (0, 4, 8):
        fit = LogisticRegression(C=1 / (len(y) * penalties[i]), tol=1e-10, max_iter=5000).fit(x.astype(float), y)
        least = softmax_objective(x.astype(float), y, fit, penalties[i])
        assert got.objective[i] == pytest.approx(least, rel=1e-6)


def test_a_crew_keeps_the_order_and_hands_on_what_is_raised():
    begun = []

    def late(i: int) -> int:
        begun.append(i)
        time.sleep(0.02 if i % 3 == 0 else 0.0)
        if i == 50:
            raise ZeroDivisionError
        return i

    with threadpool_limits(3), crew() as threads:
        assert list(threads.each(late, range(20))) == list(range(20))
        begun.clear()
        with pytest.raises(ZeroDivisionError):
            list(threads.each(late, range(1000)))
        assert len(begun) < 60
        a, b = np.random.default_rng(0).normal(size=(2, 300, 300))
        np.testing.assert_allclose(threads.product(a, b), a @ b, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_history_is_the_two_loops_of_nocedal(groups):
    rng = np.random.default_rng(groups)
    d, columns, capacity = 7, 4, 5
    history = History(d, columns, groups, capacity)
    curvature = rng.uniform(0.5, 2.0, (d, 1))
    pairs = []
    l2 = 0.3
    history.move_to(l2)
    penalty = np.full((d, 1), l2)
    penalty[-1] = 0.0
    dot = (lambda a, b: (a * b).sum(axis=0)) if groups > 1 else (lambda a, b: (a * b).sum())
    for i in range(8):
        step = rng.normal(size=(d, columns))
        if groups > 1 and i == 6:
            step[:, 2] = 0.0  # a group that has arrived
        change = (curvature + penalty) * step
        rounding = slice(1, 2) if groups > 1 else slice(None)
        if i == 5:  # a curvature that nothing has
            step[:, rounding] *= 1e-14
            change[:, rounding] *= 1e-8
        history.add(step, change, np.full(groups, 2.0 + l2))
        if i == 5:
            step[:, rounding] = 0.0
        pairs.append((step, curvature * step))
    l2 = 0.01
    history.move_to(l2)
    penalty[:-1] = l2

    def inverse(v):
        return v / np.arange(1, d + 1)[:, None]

    g = rng.normal(size=(d, columns))
    q, alphas = -g, []
    for step, change in reversed([(s, y + penalty * s) for s, y in pairs[-capacity:]]):
        product = dot(step, change)
        alphas.append(np.divide(dot(step, q), product, out=np.zeros_like(product), where=product > 0))
        q = q - alphas[-1] * change
    q = inverse(q)
    for (step, loss_change), alpha in zip(pairs[-capacity:], reversed(alphas), strict=True):
        change = loss_change + penalty * step
        product = dot(step, change)
        beta = np.divide(dot(change, q), product, out=np.zeros_like(product), where=product > 0)
        q = q + (alpha - beta) * step
    np.testing.assert_allclose(history.descent(inverse)(g), q, rtol=1e-10)
    np.testing.assert_allclose(history.last_change(), (curvature + penalty) * pairs[-1][0], rtol=1e-12)


def test_covariance_of_weighted_rows():
    rng = np.random.default_rng(0)
    x = embeddings(5000, 8)
    weights = np.exp(rng.normal(0.0, 2.0, 5000))
    embedded, alone = rows.Rows(x, 3), Crew(1, None)
    seen = embedded.centred(x)
    expected = np.triu(np.einsum("i,ij,ik->jk", weights / weights.sum(), seen, seen))
    np.testing.assert_allclose(np.triu(embedded.covariance(5000, alone, weights)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.triu(embedded.covariance(1500, alone, weights)), expected, atol=0.03 * expected.max())
    taken, factor = rows._sample(weights, 1500)
    assert taken.sum() == pytest.approx(1500, abs=2)
    assert taken[weights > np.quantile(weights, 0.95)].all()
    assert (factor[taken] ** 2).sum() == pytest.approx(1, rel=0.02)
    np.testing.assert_array_equal(np.flatnonzero(rows._sample(np.ones(100), 25)[0]), 1 + 4 * np.arange(25))


@pytest.mark.parametrize("multi", [False, True])
def test_axes_found_anew_change_no_answer(monkeypatch, multi):
    x, y, query = data(400, 30, 5)
    if multi:
        y = np.where(np.arange(400)[:, None] % 9 == 0, np.nan, y[:, None] == np.arange(5))
    best = logistic_full(x, y, query, 5, L2, tol=1e-12).objective
    found = []
    right = solver.principal_axes
    monkeypatch.setattr(solver, "principal_axes", lambda c: found.append(len(c)) or right(c))
    # Without new axes the last word on the gap, a count of gains, is a little less sure of itself; with new ones all the time,
    # where sums have the fewest lanes.
    often = 3e-6 if ops.instruction_set() == "baseline" else 1e-6
    times = []
    for again, gap in ((5, often), (solver.AXES_AGAIN, 1e-6), (np.inf, 3e-6)):
        found.clear()
        monkeypatch.setattr(solver, "AXES_AGAIN", again)
        got = logistic_full(x, y, query, 5, L2)
        assert got.converged.all()
        times.append(len(found))
        np.testing.assert_allclose(got.objective, best, rtol=gap)
    assert times[0] >= max(3, times[1])
    assert times[2] < times[0]


@pytest.mark.parametrize(
    "y",
    [
        np.arange(60) % 3,
        np.arange(60) % 2,
        np.where(np.arange(180).reshape(60, 3) % 7 == 0, np.nan, np.arange(180).reshape(60, 3) % 4 == 0),
    ],
)
@pytest.mark.parametrize("balanced", [False, True])
def test_no_hessian_is_steeper_than_said(y, balanced):
    x = np.random.default_rng(0).normal(size=(60, 4)) * [3, 1, 1, 0.1]
    x = np.column_stack([x, np.ones(60)])
    *_, loss = loss_of(y, 3 if y.ndim == 2 or y.max() == 2 else 2, "balanced" if balanced else None)
    rows, size = slice(0, 60), 5 * loss.columns

    def gradient(w):
        return x.T @ loss.first(rows, (x @ w).T.copy())[1].T / loss.images

    for scale in (0.0, 0.3, 3.0):
        w = scale * np.random.default_rng(1).normal(size=(5, loss.columns))
        moves = np.eye(size).reshape(size, 5, loss.columns) * 1e-6
        hessian = np.array([(gradient(w + move) - gradient(w - move)).ravel() / 2e-6 for move in moves])
        steepest = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
        assert steepest < loss.steepest.max() * (x**2).sum(axis=1).mean()
        assert scale > 0 or steepest > 0.05 * loss.steepest.max() * (x**2).sum(axis=1).mean()


def test_a_loose_tolerance_is_kept_and_cheaper():
    x, y, query = data(400, 40, 5)
    best = logistic_full(x, y, query, 5, [1e-4], tol=1e-9)
    for tol in (1e-3, 1e-5, 1e-7):
        got = logistic_full(x, y, query, 5, [1e-4], tol=tol)
        assert got.converged.all()
        assert got.objective[0] / best.objective[0] - 1 < 5 * tol
    assert logistic_full(x, y, query, 5, [1e-4], tol=1e-3).iterations < best.iterations


# ---- nearest neighbours ----


@pytest.mark.parametrize("temperature", [0.07, None])
@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_knn_is_the_reference_and_scikit_learns(k, temperature):
    x, y, query = data(120, 16, 4, q=30)
    got = knn_full(x, y, query, 4, k=[k], temperature=temperature).scores[0]
    rows, everything = np.vstack([x, query]), np.arange(120)[None]
    expected = reference.knn(rows, everything, y, np.arange(120, 150)[None], 4, k=[k], temperature=temperature)
    np.testing.assert_allclose(got, expected[0, 0], atol=1e-5)
    if temperature is None:
        theirs = KNeighborsClassifier(min(k, 120), metric="cosine", algorithm="brute").fit(x, y)
        np.testing.assert_allclose(got, theirs.predict_proba(query), atol=1e-6)


def test_knn_ties_go_to_the_lower_row():
    x = np.zeros((60, 4), np.float32)
    x[:, 0] = 1 + np.arange(60)  # one direction: all equally similar
    x[50:, 1] = 1e3  # but for the last ten
    y = np.arange(60) % 7
    got = knn_full(x, y, np.array([[3.0, 0, 0, 0], [0, 0, 0, 0]]), 7, k=[9], temperature=None).scores[0]
    expected = np.bincount(np.arange(9) % 7, minlength=7) / 9
    np.testing.assert_allclose(got, [expected, expected], rtol=1e-6)


def test_knn_of_huge_tiny_and_zero_vectors():
    x = np.array([[1e30, 0], [0, 1e-30], [0, 0]], np.float32)
    got = knn_full(x, np.arange(3), np.array([[1e-30, 0], [0, 1e30]], np.float32), 3, k=[1]).scores[0]
    np.testing.assert_array_equal(got, [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("shares", [1, 2, 7])
@pytest.mark.parametrize(("n", "q", "dim", "k"), [(1, 1, 1, 1), (9, 3, 5, 9), (200, 70, 33, 20), (130, 65, 8, 1)])
def test_the_fused_search_is_a_sort_of_all_products(n, q, dim, k, shares):
    """The core that a GPU runs, on this machine's memory: few images a share, tiles that are not full, equal images."""
    rng = np.random.default_rng(0)
    x, query = (rng.normal(size=(rows, dim)).astype(np.float32) for rows in (n, q))
    x[1::3] = x[: len(x[1::3])]
    products = query.astype(np.float64) @ x.T.astype(np.float64)
    rows = np.argsort(-products, axis=1, kind="stable")[:, :k]
    similarity, near = device.nearest(*device.tensors("cpu", x, query), k, min(shares, n))
    np.testing.assert_array_equal(near, rows)
    np.testing.assert_allclose(similarity, np.take_along_axis(products, rows, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_knn_by_the_fused_search_is_that_by_faiss(monkeypatch, place):
    x, y, query = data(2500, 40, 6, q=150)
    x[100:200] = x[:100]
    faiss = knn_full(x, y, query, 6, k=[1, 30]).scores
    if place == "cpu":
        monkeypatch.setattr(neighbours, "_flat", lambda _, x: neighbours._fused(x, "cpu"))
        monkeypatch.setattr(device, "blocks_at_once", lambda place: 7)
    else:
        monkeypatch.setattr(neighbours, "_flat", lambda _, x: neighbours._fused(x, "cuda"))
    np.testing.assert_allclose(knn_full(x, y, query, 6, k=[1, 30]).scores, faiss, atol=1e-5)


def test_knn_multi_label_counts_the_known():
    x = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]], np.float32)
    nan = np.nan
    y = np.array([[1, nan, 0, nan], [0, nan, 0, nan], [1, nan, nan, nan], [1, 1, 1, nan]], np.float32)
    got = knn_full(x, y, np.array([[1.0, 0.0]]), 4, k=[3], temperature=None).scores[0]
    np.testing.assert_allclose(got, [[2 / 3 - 0.5, 0, -0.5, nan]], rtol=1e-6)
    warm = knn_full(x, y, np.array([[1.0, 0.0]]), 4, k=[3], temperature=0.1).scores[0]
    unit = x[:3] / np.linalg.norm(x[:3], axis=1, keepdims=True)
    weight = np.exp(unit[:, 0] / 0.1)
    assert warm[0, 0] == pytest.approx((weight[0] + weight[2]) / weight.sum() - 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"k": [0]}, r"k must be a list of whole numbers from 1, got \[0\]"),
        ({"k": []}, "k must be a list"),
        ({"k": [1], "temperature": 0.0}, "temperature must be positive"),
        ({"k": [1], "index": "tree"}, "index must be one of flat, ivf, hnsw, got 'tree'"),
    ],
)
def test_knn_refuses(option, message):
    with pytest.raises(UsageError, match=message):
        knn_full(np.eye(3), np.arange(3), np.eye(3), 3, **option)


def test_knn_several_k_are_each_alone():
    x, y, query = data(150, 16, 4, q=30)
    ks = [20, 1, 7, 400]
    together = knn_full(x, y, query, 4, k=ks).scores
    for i, k in enumerate(ks):
        np.testing.assert_array_equal(together[i], knn_full(x, y, query, 4, k=[k]).scores[0])


@pytest.mark.parametrize("index", INDEXES)
def test_knn_of_equal_images_takes_the_lower_rows(index):
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(40, 33)).astype(np.float32)  # a width that no register divides
    rows = rng.permutation(np.repeat(np.arange(40), 9))  # nine copies of each, their labels differ
    x, y = originals[rows], np.arange(360) % 5
    got = knn_full(x, y, originals, 5, k=[6], temperature=None, index=index)
    expected = [np.bincount(y[np.flatnonzero(rows == i)[:6]], minlength=5) / 6 for i in range(40)]
    np.testing.assert_allclose(got.scores[0], expected, rtol=1e-6)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_knn_says_what_an_approximate_index_found(index):
    x, y, query = data(3000, 24, 4, q=100)
    got, exact = (knn_full(x, y, query, 4, k=[1, 10], index=i) for i in (index, "flat"))
    assert exact.recall == 1
    assert 0.5 < got.recall <= 1
    same = (np.abs(got.scores - exact.scores).max(axis=2) < 1e-5).mean(axis=1)
    assert (same >= 0.5).all()


def test_knn_recall_is_counted(monkeypatch):
    x, y, query = data(300, 8, 3, q=40)
    right = neighbours._approximate

    def misses_half(faiss, x, index):
        made = right(faiss, x, index)

        class Half:
            def search(self, query, k):
                similarity, rows = flat.search(query, k)
                rows[:, ::2] = -1
                return similarity, rows

        flat = faiss.IndexFlatIP(x.shape[1])
        flat.add(x)
        assert made.ntotal == len(x)
        return Half()

    monkeypatch.setattr(neighbours, "_approximate", misses_half)
    got = knn_full(x, y, query, 3, k=[10], index="ivf")
    assert got.recall == 0.5
    np.testing.assert_allclose(got.scores.sum(axis=2), 1, rtol=1e-6)  # those not found have no vote


def test_a_path_that_starts_at_a_huge_penalty():
    """Few images, few features, l2 = 1e4: conjugate gradients are done at once and must not go on with rounding."""
    target = blobs_target(n_classes=4, n_train=25, n_val=40, n_test=15)
    x = blobs_embeddings(target, dim=10, spread=4.0)
    train, test = target.rows("train"), target.rows("test")
    l2 = np.array([10.0 ** (4 - i / 8) for i in range(12)])
    got = ops.logistic_full(x[train], target.labels[train], x[test], 4, l2)
    assert got.converged.all()
    expected = reference.logistic(x, train[None], target.labels[train], test[None], 4, list(l2))
    assert got.objective == pytest.approx(expected.objective[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_knn_is_torchs_brute_force_but_for_ties(dtype):
    x, y, query = data(3000, 64, 7, q=200)
    x, query = x.astype(dtype), query.astype(dtype)
    got = knn_full(x, y, query, 7, k=[15], temperature=None).scores[0]
    unit, asked = (torch.nn.functional.normalize(torch.from_numpy(a).double(), dim=1) for a in (x, query))
    similarity, near = torch.topk(asked @ unit.T, 16, dim=1)
    expected = np.stack([np.bincount(y[r], minlength=7) / 15 for r in near[:, :15].numpy()])
    clear = ((similarity[:, 14] - similarity[:, 15]) > 1e-6).numpy()
    assert clear.mean() > 0.9
    np.testing.assert_allclose(got[clear], expected[clear], rtol=1e-6)
