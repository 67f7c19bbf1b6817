"""Class weights and votes by distance, against scikit-learn in float64, on the supports that they are for: uneven ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from fastxfer import ops, reference
from fastxfer.cli import main
from fastxfer.errors import UsageError
from fastxfer.ops import cpu, cuda
from fastxfer.probes import KnnProbe, LogisticProbe

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

GAP = {"float32": 1e-6, "float64": 1e-9}
WEIGHT = (0.2, 30.0, 1.0, 4.0, 700.0)


def clouds(n: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(8, dim))[rng.integers(0, 8, n)] + rng.normal(size=(n, dim)) + 1.0).astype(np.float32)


def uneven(name: str) -> tuple[np.ndarray, ...]:
    """(x, support, labels, query, ways) of three episodes."""
    rng = np.random.default_rng(len(name))
    x, ways, m = clouds(80, 24), 5, 30
    labels = np.where(rng.random((3, m)) < 0.7, 0, rng.integers(0, ways, (3, m)))
    labels[:, :ways] = np.arange(ways)
    if name == "two ways":
        ways, labels = 2, (labels > 2).astype(int)
    elif name == "classes unseen":
        labels = np.where(np.isin(labels, (1, 3)), 2, labels)
    elif name == "one class seen":
        labels[:] = 4
    elif name == "one image a class":
        m, labels = 5, np.tile(np.arange(5), (3, 1))
    elif name == "more images than dimensions":
        x = clouds(80, 6)
    elif name == "duplicates":
        x[:40] = x[:1]
    support = np.stack([rng.choice(80, m, replace=False) for _ in range(3)])
    return x, support, labels, rng.integers(0, 80, (3, 9)), ways


NAMES = ["plain", "two ways", "classes unseen", "one class seen", "one image a class", "more images than dimensions", "duplicates"]  # fmt: skip


def scikit_learn(x, y, query, ways, l2, class_weight):
    """Scores of the classes seen, zero-sum, and the weighted objective."""
    x, query = x.astype(float), query.astype(float)
    if class_weight is not None and not isinstance(class_weight, str):
        class_weight = {c: class_weight[c] for c in np.unique(y)}
    model = LogisticRegression(
        C=1 / (len(y) * l2), class_weight=class_weight, tol=1e-12, max_iter=100_000, solver="newton-cholesky"
    ).fit(x, y)
    z = model.decision_function(query)
    if ways == 2:
        return np.stack([-z / 2, z / 2], axis=1)
    if z.ndim == 1:  # two of several classes seen: scikit-learn's binary form is another model than softmax of two
        return None
    return z - z.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("class_weight", ["balanced", "given"])
@pytest.mark.parametrize("name", NAMES)
def test_reference_is_scikit_learn_with_the_same_class_weight(name, class_weight):
    x, s, y, q, ways = uneven(name)
    weight = class_weight if class_weight == "balanced" else WEIGHT[:ways]
    got = reference.logistic(x, s, y, q, ways, [0.05, 1e-3], class_weight=weight)
    assert got.converged.all()
    for e in range(3):
        seen = np.unique(y[e])
        if len(seen) == 1:
            assert (got.objective[e] == 0).all()
            assert (got.scores[e].argmax(axis=-1) == seen[0]).all()
            continue
        for i, l2 in enumerate([0.05, 1e-3]):
            want = scikit_learn(x[s[e]], y[e], x[q[e]], ways, l2, weight)
            np.testing.assert_allclose(got.scores[e, i][:, seen], want, atol=2e-5 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("class_weight", ["balanced", "given"])
@pytest.mark.parametrize("name", NAMES)
def test_cpu_is_the_reference(name, class_weight, dtype, gram):
    x, s, y, q, ways = uneven(name)
    weight = class_weight if class_weight == "balanced" else WEIGHT[:ways]
    l2 = [1.0, 0.05, 1e-4]
    want = reference.logistic(x, s, y, q, ways, l2, class_weight=weight)
    got = ops.logistic(ops.Pool(x, dtype=dtype, gram=gram, backend="cpu"), s, y, q, ways, l2, class_weight=weight)
    assert got.converged.all()
    np.testing.assert_array_less(np.abs(got.objective - want.objective), GAP[dtype] * want.objective + 1e-300)
    finite = np.isfinite(want.scores)
    np.testing.assert_array_equal(np.isfinite(got.scores), finite)
    # f is l2-strongly convex in W: a gap g·f leaves ‖ΔW‖² ≤ 2·g·f/l2, and a score moves by that times the embedding.
    moved = 2 * np.linalg.norm(x, axis=1).max() * np.sqrt(2 * GAP[dtype] * want.objective / l2)
    slack = np.broadcast_to(moved[..., None, None] + 1e-5, want.scores.shape)[finite]
    np.testing.assert_array_less(np.abs(got.scores[finite] - want.scores[finite]), slack)


def test_weights_of_one_are_no_weights_and_balance_matters():
    x, s, y, q, ways = uneven("plain")
    pool = ops.Pool(x, backend="cpu")
    plain = ops.logistic(pool, s, y, q, ways, [0.05])
    ones = ops.logistic(pool, s, y, q, ways, [0.05], class_weight=np.ones(ways))
    np.testing.assert_array_equal(ones.scores, plain.scores)
    balanced = ops.logistic(pool, s, y, q, ways, [0.05], class_weight="balanced")
    # Class 0 has most of the support; balanced, it is predicted less often.
    assert (balanced.scores.argmax(axis=-1) == 0).sum() < (plain.scores.argmax(axis=-1) == 0).sum()
    # All classes as large: nothing to balance.
    even = np.tile(np.repeat(np.arange(5), 6), (3, 1))
    a, b = (ops.logistic(pool, s, even, q, ways, [0.05], class_weight=w) for w in (None, "balanced"))
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize("weight", [(np.empty(0), True), (np.array(WEIGHT), False)])
def test_the_cuda_path_hands_the_weights_over(weight):
    x, s, y, q, ways = uneven("plain")
    call = (ops.Pool(x, backend="cpu", threads=1), s, y.astype(np.int32), q, ways)
    settings, weights = (np.array([0.05, 1.0]), 1e-6, 500), dict(zip(("class_weight", "balanced"), weight, strict=True))
    ours, theirs = cuda.logistic(call, *settings, "cpu", **weights), cpu.logistic(call, *settings, **weights)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    k = np.array([1, 5], np.int32)
    near = cuda.knn(call, k, 0.0, "cpu", by_distance=True)
    np.testing.assert_allclose(near, cpu.knn(call, k, 0.0, by_distance=True), atol=1e-4)


@pytest.mark.parametrize("class_weight", ["balanced", "given"])
@pytest.mark.parametrize("classes", [2, 5])
def test_full_probe(classes, class_weight):
    rng = np.random.default_rng(classes)
    x, query = clouds(400, 20), clouds(30, 20, seed=1)
    y = np.where(rng.random(400) < 0.8, 0, rng.integers(0, classes, 400))
    weight = class_weight if class_weight == "balanced" else WEIGHT[:classes]
    got = ops.logistic_full(x, y, query, classes, [0.1, 1e-3], class_weight=weight)
    assert got.converged.all()
    for i, l2 in enumerate([0.1, 1e-3]):
        want = scikit_learn(x, y, query, classes, l2, weight)
        np.testing.assert_allclose(got.scores[i], want, atol=3e-3 * (1 + np.abs(want).max()))
    index = np.arange(400)[None]
    exact = reference.logistic(x, index, y, index[:, :1], classes, [0.1, 1e-3], class_weight=weight).objective[0]
    np.testing.assert_allclose(got.objective, exact, rtol=1e-6)


@pytest.mark.parametrize("class_weight", ["balanced", (1.0, 9.0)])
def test_full_probe_multi_label(class_weight):
    """Every label is a binary problem of its own over the images where it is known."""
    rng = np.random.default_rng(0)
    x, query = clouds(300, 12), clouds(20, 12, seed=1)
    y = (x[:, :4] > [1.0, 2.0, 3.0, 2.5]).astype(np.float32)
    y[rng.random(y.shape) < 0.3] = np.nan
    got = ops.logistic_full(x, y, query, 4, [0.02], class_weight=class_weight)
    for label in range(4):
        known = ~np.isnan(y[:, label])
        weight = class_weight if isinstance(class_weight, str) else dict(enumerate(class_weight))
        model = LogisticRegression(C=1 / (known.sum() * 0.02), class_weight=weight, tol=1e-12, max_iter=10_000)
        model.fit(x[known].astype(float), y[known, label])
        np.testing.assert_allclose(got.scores[0, :, label], model.decision_function(query.astype(float)), atol=5e-3)


def test_weights_that_make_no_sense():
    x, s, y, q, ways = uneven("plain")
    for pool in (ops.Pool(x, backend="cpu"), ops.Pool(x, backend="reference")):
        for bad in ((1.0, 2.0), (1.0, 1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0, np.nan), "uneven"):
            with pytest.raises(UsageError, match="class_weight must be None, 'balanced' or a positive number for each"):
                ops.logistic(pool, s, y, q, ways, [0.1], class_weight=bad)
    with pytest.raises(UsageError, match="each of 5 classes"):
        ops.logistic_full(x, np.arange(80) % 5, x[:3], 5, [0.1], class_weight=(1.0, 1.0))
    with pytest.raises(UsageError, match="class_weight must be"):
        LogisticProbe(class_weight="even")  # type: ignore[arg-type]


@pytest.mark.parametrize("full", [False, True])
def test_votes_by_distance_are_scikit_learns(full):
    x = clouds(90, 16)
    x[40:44] = x[3:4]  # queries 80 … meet four images of their own kind, of several classes
    x[80:83] = x[3] * np.array([[1.0], [2.0], [0.5]])
    rng = np.random.default_rng(0)
    y, query = rng.integers(0, 4, 80), np.arange(80, 90)
    ks = (1, 4, 7, 80)
    if full:
        got = ops.knn_full(x[:80], y, x[80:], 4, k=ks, by_distance=True).scores
    else:
        answers = [
            ops.knn(ops.Pool(x, backend=backend, dtype=dtype), np.arange(80)[None], y, query[None], 4, k=ks, by_distance=True)[0]
            for backend, dtype in (("reference", "float64"), ("cpu", "float64"), ("cpu", "float32"))
        ]  # fmt: skip
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-6)
        np.testing.assert_allclose(answers[2], answers[0], atol=1e-3)
        got = answers[0]
    wide = x.astype(float)
    for i, k in enumerate(ks[1:], 1):  # at k = 1 four equal images tie
        model = KNeighborsClassifier(k, weights="distance", metric="cosine").fit(wide[:80], y)
        np.testing.assert_allclose(got[i, 3:], model.predict_proba(wide[83:]), atol=2e-3 if full else 1e-6)
    same = np.bincount(y[[3, 40, 41, 42, 43]], minlength=4)
    first = np.bincount(y[[3, 40, 41, 42]], minlength=4)
    np.testing.assert_allclose(got[2, :3], np.tile(same / 5, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(got[3, :3], np.tile(same / 5, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(got[1, :3], np.tile(first / 4, (3, 1)), atol=1e-6)  # of equals the first
    np.testing.assert_allclose(got[0, :3], np.tile(np.eye(4)[y[3]], (3, 1)), atol=1e-6)


def test_rows_say_which_weights_and_votes(tmp_path):
    assert LogisticProbe(class_weight="balanced").variant == "class_weight=balanced"
    assert LogisticProbe(class_weight=(1.0, 2.5), tol=1e-9).variant == "class_weight=1,2.5;tol=1e-09"
    assert KnnProbe(k=(3,), by_distance=True).settings(9) == ["k=3;vote=distance"]
    blobs_store(tmp_path / "store", blobs_target(n_train=20, n_val=10), backbones={"one": 4.0})
    store = str(tmp_path / "store")

    def ran(*words):
        done = CliRunner().invoke(main, [*words, "--store", store, "--json"], prog_name="fastxfer")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    few = ["fewshot", "--probe", "logistic", "knn", "--shots", "5", "--imbalance", "0.5", "--episodes", "20"]
    plain = ran(*few, "--k", "5")["cells"]
    cells = ran(*few, "--k", "5", "--class-weight", "balanced", "--vote", "distance")["cells"]
    kinds = {c["params"].split(";imbalance")[0]: c["mean"] for c in plain + cells if c["metric"] == "accuracy"}
    assert set(kinds) == {
        "l2=0.04", "l2=0.04;class_weight=balanced", "k=5;temperature=0.07", "k=5;vote=distance",
    }  # fmt: skip
    assert kinds["l2=0.04"] != kinds["l2=0.04;class_weight=balanced"]
    # A run with other weights or votes is not taken for done.
    for command, options in (
        ("probe", ["--class-weight", "balanced"]),
        ("knn", ["--vote", "distance"]),
        ("knn", ["--vote", "plain"]),
    ):
        ran(command)
        assert ran(command)["rows_added"] == 0
        new = ran(command, *options)
        assert new["rows_added"] == 6
        assert {o in r["params"] for r in new["rows"] for o in ["=".join(options).strip("-").replace("-", "_")]} == {
            True
        }


@pytest.mark.parametrize("class_weight", ["balanced", (1.0, 5.0, 0.5)])
def test_estimators_on_arrays(class_weight):
    rng = np.random.default_rng(0)
    x = clouds(120, 10)
    y = np.array(["a", "b", "c"])[np.minimum(rng.integers(0, 6, 120) // 2 * (x[:, 0] > 0.5), 2)]
    support = np.stack([rng.permutation(100)[:40] for _ in range(3)])
    got = LogisticProbe(class_weight=class_weight).fit_episodes(x, y, (support, np.arange(100, 120)[None]))
    for e in range(3):
        weight = class_weight if isinstance(class_weight, str) else dict(zip("abc", class_weight, strict=True))
        model = LogisticRegression(class_weight=weight, tol=1e-10, max_iter=10_000).fit(x[support[e]], y[support[e]])
        want = model.decision_function(x[100:])
        np.testing.assert_allclose(got.scores[0, e], want - want.mean(axis=1, keepdims=True), atol=0.02)
