"""Feature transforms against one line of NumPy or scikit-learn each."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import blobs_store
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler, normalize

from fastxfer import ops, reference
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import UsageError
from fastxfer.evaluation import evaluate
from fastxfer.full_splits import evaluate_full
from fastxfer.probes import KnnProbe, LogisticProbe, PrototypeProbe, RidgeProbe
from fastxfer.transforms import TRANSFORMS, standardise, standardise_episodes, transform

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 12)) + 0.5
TRAIN = np.arange(0, 60, 2)


def test_each_is_what_it_says():
    assert np.allclose(transform(X, ["centre"], train=TRAIN), X - X[TRAIN].mean(axis=0))
    assert np.allclose(transform(X, ["l2"]), normalize(X))
    assert np.allclose(transform(X, ["power"]), np.sign(X) * np.abs(X) ** 0.5)
    scaler = StandardScaler().fit(X[TRAIN])
    scaler.scale_ = scaler.scale_ + 1e-5
    assert np.allclose(transform(X, ["standardise"], train=TRAIN), scaler.transform(X))


def test_they_apply_in_the_order_of_the_list():
    power_first = np.sign(X) * np.abs(X) ** 0.5
    centred = power_first - power_first[TRAIN].mean(axis=0)
    assert np.allclose(transform(X, ["power", "centre", "l2"], train=TRAIN), normalize(centred))
    assert not np.allclose(
        transform(X, ["l2", "power", "centre"], train=TRAIN), transform(X, ["power", "centre", "l2"], train=TRAIN)
    )


def test_types_zeros_and_blocks(monkeypatch):
    half = X.astype(np.float16)
    half[3] = 0
    got = transform(half, ["centre", "l2"], train=[3])
    assert got.dtype == np.float32
    assert np.all(got[3] == 0)
    assert np.allclose(got[4], half[4].astype(float) / np.linalg.norm(half[4].astype(float)), atol=1e-6)
    assert transform(X, []) is X
    huge = transform(X * 1e200, ["l2"])
    assert np.allclose(huge, normalize(X))
    monkeypatch.setattr("fastxfer.transforms.BLOCK_BYTES", 8 * 12 * 7)
    names = ["centre", "power", "l2"]
    assert np.allclose(transform(X, names), normalize(transform(X - X.mean(axis=0), ["power"])))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match=r"unknown transform 'center': .*Did you mean: centre\?"):
        LogisticProbe(transform=("center",))
    with pytest.raises(UsageError, match="must come last"):
        KnnProbe(transform=("standardise", "l2"))
    with pytest.raises(UsageError, match="bias_feature goes with the transform 'standardise'"):
        RidgeProbe(bias_feature=100.0)
    assert set(TRANSFORMS) == {"centre", "l2", "power", "standardise"}


def test_a_feature_that_the_support_shares_is_no_division_by_nothing():
    support, query = X[:5].copy(), X[5:9].copy()
    support[:, 2] = 0.1  # as after a ReLU
    s, q = standardise(support, query)
    assert np.all(s[:, 2] == 0)
    assert np.all(q[:, 2] == 0)
    assert np.abs(q).max() < 20


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("names", [("centre", "l2"), ("power", "standardise"), ("standardise",)])
def test_every_probe_sees_transformed_embeddings(names, backend):
    x = X.astype(np.float32)
    x[:, 4] = np.maximum(x[:, 4], 0)
    support = np.array([TRAIN[[0, 3, 5, 8, 11, 13]], TRAIN[[1, 4, 7, 9, 20, 22]]])
    labels, query = np.array([0, 0, 1, 1, 2, 2]), np.array([[1, 3, 5, 7], [9, 11, 13, 1]])
    shared = transform(x, [n for n in names if n != "standardise"], train=TRAIN).astype(np.float64)
    for e in range(2):
        s, q = shared[support[e]], shared[query[e]]
        if names[-1] == "standardise":
            scaler = StandardScaler().fit(s)
            scaler.scale_ = np.sqrt(scaler.var_) + 1e-5
            s, q = scaler.transform(s), scaler.transform(q)
        both, rows, queries = np.vstack([s, q]), np.arange(6)[None], np.arange(6, 10)[None]
        expected = {
            "logistic": reference.logistic(both, rows, labels, queries, 3, [0.3]).scores[0, 0],
            "ridge": reference.ridge(both, rows, labels, queries, 3, [0.3])[0, 0],
            "prototype": reference.prototype(both, rows, labels, queries, 3)[0],
            "knn": reference.knn(both, rows, labels, queries, 3, k=[4])[0, 0],
        }
        for probe in (
            LogisticProbe(l2=(0.3,), transform=names),
            RidgeProbe(l2=(0.3,), transform=names),
            PrototypeProbe(transform=names),
            KnnProbe(k=(4,), transform=names),
        ):
            pool = ops.Pool(probe.features(x, TRAIN), support=TRAIN, backend=backend)
            (got,) = probe.solve(pool, support, labels, query, 3)
            # The solver stops at a relative gap of 1e-6 of the objective, which is about its root in the scores.
            tolerance = 1e-4 if backend == "reference" else 1e-2
            assert got.scores[e] == pytest.approx(expected[probe.name], abs=tolerance), probe.name
            assert got.params.endswith(f";transform={'+'.join(names)}")


def test_standardised_episodes_are_a_pipeline_of_scikit_learn(tmp_path):
    store = blobs_store(tmp_path / "store")
    episodes = sample_episodes(store.target("blobs"), EpisodeSpec(4, 3, 5), 0, 6)
    rows = evaluate(
        store,
        episodes,
        [LogisticProbe(transform=("standardise",)), RidgeProbe(transform=("standardise",)), LogisticProbe()],
        backbones=["bad"],
    )
    x = store.embeddings("bad", "blobs").astype(float)
    model = {"logistic": LogisticRegression(C=1.0, tol=1e-10, max_iter=5000), "ridge": RidgeClassifier(alpha=1.0)}
    for name, peer in model.items():
        expected = []
        for s, q in zip(episodes.support, episodes.query, strict=True):
            scaler = StandardScaler().fit(x[s])
            fitted = peer.fit(scaler.transform(x[s]), episodes.support_labels)
            expected.append(fitted.score(scaler.transform(x[q]), episodes.query_labels))
        mine = rows[(rows["probe"] == name) & rows["params"].str.contains("transform=standardise")]
        assert mine["value"].tolist() == pytest.approx(expected)
    plain = rows[~rows["params"].str.contains("transform")]
    assert len(plain) == 6


def test_the_mean_is_of_train_images_alone(tmp_path):
    """Test images are moved far away: a mean that saw them would change every answer about validation."""
    store = blobs_store(tmp_path / "store")
    target = store.target("blobs")
    x = store.embeddings("good", "blobs")
    moved = x.copy()
    moved[target.rows("test")] += 1000.0
    probe = LogisticProbe(transform=("centre", "l2"))
    train = target.rows("train")
    assert np.array_equal(probe.features(x, train)[train], probe.features(moved, train)[train])
    rows = evaluate_full(store, "good", target, LogisticProbe(l2=(0.01,), transform=("centre", "l2")))[0]
    assert rows["params"].unique().tolist() == ["l2=0.01;transform=centre+l2;chosen=holdout"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("m", [1, 6])
def test_episodes_are_standardised_as_one_by_one(dtype, m):
    rng = np.random.default_rng(m)
    x = np.maximum(3 * rng.normal(size=(40, 17)) + 1, 0)
    x[:, :5] *= rng.random((40, 5)) > 0.7  # constant on many a support
    x = np.asfortranarray(x.astype(dtype))
    support, query = (np.stack([rng.permutation(40)[:n] for _ in range(4)]) for n in (m, 9))
    together = standardise_episodes(x, support, query)
    assert together.dtype == (np.float64 if dtype == "float64" else np.float32)
    for e in range(4):
        alone = np.concatenate(standardise(x[support[e]], x[query[e]]))
        np.testing.assert_allclose(together[e], alone, rtol=1e-5, atol=1e-6)


def test_a_pool_that_is_centred_already_gives_the_same_answers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20)).astype(np.float32)
    x[7] = 0
    support, query = np.stack([rng.permutation(60)[:12] for _ in range(3)]), np.arange(60)[None]
    pools = [ops.Pool(x, backend="cpu", gram=False, centred=centred) for centred in (True, False)]
    labels = np.arange(12) % 3
    np.testing.assert_allclose(*(ops.ridge(p, support, labels, query, 3, [0.1]) for p in pools), atol=1e-5)
    np.testing.assert_allclose(*(ops.knn(p, support, labels, query, 3, k=[3]) for p in pools), atol=1e-4)
    np.testing.assert_allclose(
        *(ops.prototype(p, support, labels, query, 3, metric="cosine") for p in pools), atol=1e-5
    )
