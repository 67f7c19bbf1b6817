"""The specification itself, checked against scikit-learn and against what optimality means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from fastxfer import reference


def embeddings(n: int, d: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """ReLU-like: non-negative, correlated, far from centred."""
    rng = np.random.default_rng(seed)
    return scale * np.maximum(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + 0.3, 0.0)


def episodes(n: int, m: int, q: int, ways: int, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(n)[: m + q] for _ in range(count)])
    labels = np.stack([rng.permutation(np.arange(m) % ways) for _ in range(count)])
    return rows[:, :m], labels, rows[:, m:]


def objective(x, y, weights, bias, l2):
    z = x @ weights.T + bias
    if len(weights) == 1:
        loss = np.logaddexp(0.0, np.where(y == 1, -1.0, 1.0) * z[:, 0])
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    return loss.mean() + 0.5 * l2 * (weights**2).sum()


def gap_bound(x, y, weights, bias, l2):
    """The objective is l2-strongly convex in W, so it is at most ‖gradient‖²/(2·l2) above its minimum over W."""
    z = x @ weights.T + bias
    if len(weights) == 1:
        residual = (1 / (1 + np.exp(-z[:, 0])) - (y == 1))[:, None]
    else:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        residual = p / p.sum(axis=1, keepdims=True) - np.eye(len(weights))[y]
    gradient = residual.T @ x / len(x) + l2 * weights
    return (gradient**2).sum() / (2 * l2), np.abs(residual.mean(axis=0)).max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("l2", [10.0, 0.04, 1e-3])
@pytest.mark.parametrize(("ways", "m", "d"), [(2, 2, 8), (2, 30, 5), (3, 40, 3), (5, 5, 64), (5, 25, 64), (20, 60, 32)])
def test_logistic_is_scikit_learns(ways, m, d, l2):
    x = embeddings(150, d)
    support, labels, query = episodes(150, m, 7, ways, count=2)
    got = reference.logistic(x, support, labels, query, ways, [l2])
    assert got.scores.shape == (2, 1, 7, ways)
    assert got.converged.all()
    for e in range(2):
        xs, y = x[support[e]], labels[e]
        theirs = LogisticRegression(C=1 / (m * l2), tol=1e-12, max_iter=50_000).fit(xs, y)
        value = objective(xs, y, theirs.coef_, theirs.intercept_, l2)
        assert got.objective[e, 0] <= value * (1 + 1e-12)
        assert got.objective[e, 0] == pytest.approx(value, rel=1e-8)
        z = theirs.decision_function(x[query[e]])
        expected = np.stack([-z / 2, z / 2], axis=1) if ways == 2 else z - z.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(got.scores[e, 0], expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("l2", [1e3, 1.0, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("fit", "ways"), [(reference._binary, 2), (reference._multinomial, 4)])
def test_logistic_reaches_the_minimum_where_others_give_up(fit, ways, scale, l2):
    x = embeddings(24, 40, scale=scale)
    y = np.arange(24) % ways
    weights, bias, value, _, converged = fit(x, y, l2, 1e-12)
    assert converged
    assert value == pytest.approx(objective(x, y, weights, bias, l2), rel=1e-5, abs=1e-14)
    # The gradient is computed at full scale here, with rounding errors of its own; they bound what can be asked.
    bound, bias_gradient = gap_bound(x - x.mean(axis=0), y, weights, bias + weights @ x.mean(axis=0), l2)
    assert bound <= 1e-6 * value + (1e-16 * scale) ** 2 * 1e4 / l2
    assert bias_gradient < 1e-8


def test_iterative_and_direct_newton_agree(monkeypatch):
    x = embeddings(60, 30)
    support, labels, query = episodes(60, 40, 5, 4, count=1)
    direct = reference.logistic(x, support, labels, query, 4, [0.1, 1e-4])
    monkeypatch.setattr(reference, "DENSE_VARIABLES", 0)
    iterative = reference.logistic(x, support, labels, query, 4, [0.1, 1e-4])
    np.testing.assert_allclose(iterative.objective, direct.objective, rtol=1e-11)
    np.testing.assert_allclose(iterative.scores, direct.scores, rtol=1e-4, atol=1e-5)


def test_duplicates_collinear_and_constant_embeddings():
    y = np.array([0, 1, 2, 0, 1, 2])
    support, query = np.arange(6)[None], np.arange(6)[None]
    same = reference.logistic(np.ones((6, 3)), support, y, query, 3, [0.1])
    np.testing.assert_allclose(same.objective, np.log(3), rtol=1e-14)
    np.testing.assert_allclose(same.scores, 0.0, atol=1e-12)
    line = np.outer(np.arange(6.0), [1.0, -2.0, 0.5])
    got = reference.logistic(line, support, y, query, 3, [0.1])
    theirs = LogisticRegression(C=1 / 0.6, tol=1e-12, max_iter=10_000).fit(line, y)
    assert got.objective[0, 0] == pytest.approx(objective(line, y, theirs.coef_, theirs.intercept_, 0.1), rel=1e-9)


def test_one_class_seen_wins_everywhere():
    x = embeddings(12, 6)
    for ways in (2, 5):
        got = reference.logistic(x, np.arange(4)[None], np.full(4, 1), np.arange(4, 12)[None], ways, [1.0, 1e-3])
        assert (got.scores[..., 1] == 0).all()
        assert (np.delete(got.scores, 1, axis=-1) == -np.inf).all()
        assert (got.objective == 0).all()
        assert (got.iterations == 0).all()
        assert got.converged.all()


def test_an_unseen_class_is_the_limit_of_the_whole_model():
    x, l2 = embeddings(30, 6), 0.02
    y = np.arange(20) % 2 * 3  # classes 0 and 3 of 5
    got = reference.logistic(x, np.arange(20)[None], y, np.arange(20, 30)[None], 5, [l2])
    assert (got.scores[..., [1, 2, 4]] == -np.inf).all()
    np.testing.assert_allclose(got.scores[..., 0] + got.scores[..., 3], 0, atol=1e-12)
    # The five-class model with the unseen biases far down comes as close as one likes, and never lower.
    weights, bias, value, _, _ = reference._multinomial(x[:20], y // 3, l2, 1e-12)
    whole, whole_bias = np.zeros((5, 6)), np.full(5, -40.0)
    whole[[0, 3]], whole_bias[[0, 3]] = weights, bias
    assert got.objective[0, 0] == pytest.approx(objective(x[:20], y, whole, whole_bias, l2), rel=1e-12)
    assert got.objective[0, 0] == value
    rng = np.random.default_rng(1)
    for _ in range(50):
        moved = objective(x[:20], y, whole + 0.1 * rng.normal(size=whole.shape), whole_bias + rng.normal(size=5), l2)
        assert moved > value


@pytest.mark.parametrize(("ways", "m", "d"), [(2, 2, 8), (3, 40, 3), (5, 25, 64)])
def test_ridge_is_scikit_learns(ways, m, d):
    x = embeddings(100, d)
    support, labels, query = episodes(100, m, 9, ways, count=3)
    l2 = [10.0, 0.1, 1e-4]
    got = reference.ridge(x, support, labels, query, ways, l2)
    assert got.shape == (3, 3, 9, ways)
    for e in range(3):
        one_hot = 2.0 * np.eye(ways)[labels[e]] - 1
        for i, value in enumerate(l2):
            theirs = Ridge(alpha=m * value, solver="svd").fit(x[support[e]], one_hot)
            np.testing.assert_allclose(got[e, i], theirs.predict(x[query[e]]), rtol=1e-7, atol=1e-8)


def test_ridge_of_an_unseen_class_is_minus_one():
    x = embeddings(12, 4)
    got = reference.ridge(x, np.arange(6)[None], np.arange(6) % 2, np.arange(6, 12)[None], 3, [0.1])
    np.testing.assert_allclose(got[..., 2], -1.0, atol=1e-12)


def test_prototype_is_nearest_centroid():
    x = embeddings(80, 10)
    support, labels, query = episodes(80, 30, 20, 4, count=3)
    euclidean = reference.prototype(x, support, labels, query, 4)
    cosine = reference.prototype(x, support, labels, query, 4, metric="cosine")
    for e in range(3):
        theirs = NearestCentroid().fit(x[support[e]], labels[e])
        np.testing.assert_array_equal(euclidean[e].argmax(axis=1), theirs.predict(x[query[e]]))
        square = ((x[query[e]][:, None] - theirs.centroids_) ** 2).sum(axis=2)
        np.testing.assert_allclose(euclidean[e], -square, rtol=1e-12)
        np.testing.assert_allclose(cosine[e], cosine_similarity(x[query[e]], theirs.centroids_), rtol=1e-12)


def test_prototype_of_a_zero_vector_and_of_an_unseen_class():
    x = np.array([[1.0, 0], [0, 1], [0, 0], [1, 1]])
    got = reference.prototype(x, np.array([[0, 1]]), np.array([0, 2]), np.array([[2, 3]]), 3, metric="cosine")
    np.testing.assert_allclose(got[0], [[0, -np.inf, 0], [np.sqrt(0.5), -np.inf, np.sqrt(0.5)]])


@pytest.mark.parametrize("temperature", [0.07, None, 1e-4])
@pytest.mark.parametrize("ways", [2, 5])
def test_knn_is_scikit_learns(ways, temperature):
    x = embeddings(100, 12)
    support, labels, query = episodes(100, 40, 25, ways, count=2)
    ks = [20, 1, 7, 100]
    got = reference.knn(x, support, labels, query, ways, k=ks, temperature=temperature)
    np.testing.assert_allclose(got.sum(axis=-1), 1.0)

    def vote(distance):
        if temperature is None:
            return np.ones_like(distance)
        return np.exp((distance.min(axis=1, keepdims=True) - distance) / temperature)

    for e in range(2):
        for i, k in enumerate(ks):
            theirs = KNeighborsClassifier(min(k, 40), weights=vote, metric="cosine", algorithm="brute")
            theirs.fit(x[support[e]], labels[e])
            np.testing.assert_allclose(got[e, i], theirs.predict_proba(x[query[e]]), rtol=1e-6, atol=1e-9)


def test_knn_ties_go_to_the_first_and_zero_vectors_are_far_from_nobody():
    x = np.array([[1.0, 0], [1, 0], [2, 0], [0, 0], [0, 1e-200]])
    got = reference.knn(
        x, np.array([[1, 0, 2]]), np.array([1, 0, 2]), np.array([[2, 3]]), 3, k=[1, 2], temperature=None
    )
    np.testing.assert_array_equal(got[0, 0], [[0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(got[0, 1], [[0.5, 0.5, 0], [0.5, 0.5, 0]])
    tiny = reference.knn(x, np.array([[0, 4]]), np.array([0, 1]), np.array([[4]]), 2, k=[1])
    assert tiny[0, 0, 0].tolist() == [0.0, 1.0]


def test_shared_queries_and_labels_are_repeated_ones():
    x = embeddings(50, 8)
    support, labels, query = episodes(50, 12, 6, 3, count=3)
    one, many = query[:1], np.repeat(query[:1], 3, axis=0)
    same, each = labels[0], np.repeat(labels[:1], 3, axis=0)
    for op, options in (
        (reference.ridge, {"l2": [0.1]}),
        (reference.prototype, {}),
        (reference.knn, {"k": [3]}),
    ):
        np.testing.assert_array_equal(op(x, support, same, one, 3, **options), op(x, support, each, many, 3, **options))
    a = reference.logistic(x, support, same, one, 3, [0.1])
    b = reference.logistic(x, support, each, many, 3, [0.1])
    np.testing.assert_array_equal(a.scores, b.scores)


def test_renaming_the_classes_renames_the_scores():
    x = embeddings(60, 8)
    support, labels, query = episodes(60, 20, 6, 4, count=2)
    order = np.array([2, 0, 3, 1])
    for op, options in (
        (lambda *a, **k: reference.logistic(*a, **k).scores, {"l2": [0.01]}),
        (reference.ridge, {"l2": [0.01]}),
        (reference.prototype, {}),
        (reference.knn, {"k": [5]}),
    ):
        before = op(x, support, labels, query, 4, **options)
        after = op(x, support, order[labels], query, 4, **options)
        np.testing.assert_allclose(after[..., order], before, rtol=1e-6, atol=1e-7)
