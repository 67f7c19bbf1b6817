"""Probes on plain arrays, without a store, against scikit-learn fitted episode by episode."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import blobs_embeddings, blobs_target
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.estimators import episodes_of
from fastxfer.probes import KnnProbe, LogisticProbe, PrototypeProbe, RidgeProbe

TARGET = blobs_target(n_val=12)
X = blobs_embeddings(TARGET, spread=2.5)
NAMES = np.array(["ant", "bee", "cat", "dog", "elk", "fox"])
Y = NAMES[TARGET.labels]


def drawn(episodes=10, **spec):
    got = sample_episodes(TARGET, EpisodeSpec(4, 3, 5, **spec), 0, episodes)
    return got.support, got.query


@pytest.mark.parametrize(
    ("probe", "peer"),
    [
        (LogisticProbe(), LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)),
        (PrototypeProbe(), NearestCentroid()),
        (KnnProbe(k=(3,), temperature=None), KNeighborsClassifier(3, metric="cosine")),
    ],
)
def test_predictions_are_scikit_learns(probe, peer):
    support, query = drawn()
    got = probe.fit_predict_episodes(X, Y, (support, query))
    assert got.shape == query.shape
    assert got.dtype == Y.dtype
    wide = X.astype(float)  # scikit-learn in float32 is a little off
    expected = [peer.fit(wide[s], Y[s]).predict(wide[q]) for s, q in zip(support, query, strict=True)]
    # kNN: of equally many votes ours takes the first class too, so all agree.
    assert (got == np.stack(expected)).all()
    score = probe.fit_score_episodes(X, Y, (support, query))
    assert score.tolist() == pytest.approx((got == Y[query]).mean(axis=1).tolist())


def test_torch_arrays_and_several_settings():
    import torch

    support, query = drawn()
    codes = torch.from_numpy(TARGET.labels.astype(np.int64))
    probe = LogisticProbe(l2=(1.0, 0.01))
    ours = probe.fit_predict_episodes(X, TARGET.labels, (support, query))
    x = torch.from_numpy(X).requires_grad_()
    theirs = probe.fit_predict_episodes(x, codes, (torch.from_numpy(support), torch.from_numpy(query)))
    assert ours.shape == (2, 10, 20)
    assert np.array_equal(ours, theirs)
    half = probe.fit_score_episodes(torch.from_numpy(X).bfloat16(), codes, (support, query))
    assert half.mean() == pytest.approx((ours == TARGET.labels[query]).mean(), abs=0.05)


def test_an_episode_list_of_a_target_and_queries_that_all_share():
    episodes = sample_episodes(TARGET, EpisodeSpec("all", 2, "all"), 0, 4)
    fitted = RidgeProbe().fit_episodes(X, Y, episodes)
    assert fitted.scores.shape == (1, 4, len(episodes.query[0]), 6)
    assert fitted.classes.tolist() == [NAMES.tolist()] * 4
    assert fitted.truth.shape == fitted.predicted.shape[1:]
    assert fitted.l2[0].tolist() == [1 / 12] * 4


def test_transforms_and_choices_work_on_arrays():
    support, query = drawn()
    centred = normalize(X - X[np.unique(support)].mean(axis=0))
    ours = LogisticProbe(transform=("centre", "l2")).fit_episodes(X, Y, (support, query))
    plain = LogisticProbe().fit_episodes(centred, Y, (support, query))
    assert ours.scores == pytest.approx(plain.scores, abs=1e-2)
    grid = (1.0, 0.1, 0.01)
    fitted = LogisticProbe(l2=grid, l2_by="cv").fit_episodes(X, Y, (support, query))
    assert np.isin(fitted.l2, grid).all()
    chosen = LogisticProbe(l2=grid, l2_by="val").fit_episodes(X, Y, drawn(), val=drawn(query_split="val"))
    assert len(np.unique(chosen.l2)) == 1
    with pytest.raises(UsageError, match="some of its queries are queries of the episodes"):
        LogisticProbe(l2=grid, l2_by="val").fit_episodes(X, Y, drawn(), val=drawn())
    with pytest.raises(UsageError, match="needs validation queries"):
        LogisticProbe(l2=grid, l2_by="val").fit_episodes(X, Y, drawn())


def test_groups_of_patients_are_heard():
    """With all images of a class from one patient, nothing can be held out."""
    support, query = drawn()
    with pytest.raises(UsageError, match="some class needs at least 2 images"):
        LogisticProbe(l2_by="cv").fit_episodes(X, Y, (support, query), groups=Y)


def test_episodes_are_drawn_from_labels_alone():
    support, query = episodes_of(Y, ways=3, shots=4, queries=6, episodes=50, seed=1)
    assert support.shape == (50, 12)
    assert query.shape == (50, 18)
    assert not np.isin(support, query).any()
    for s, q in zip(support, query, strict=True):
        classes, counts = np.unique(Y[s], return_counts=True)
        assert counts.tolist() == [4, 4, 4]
        assert np.unique(Y[q], return_counts=True)[1].tolist() == [6, 6, 6]
        assert set(Y[q]) == set(classes)
    again = episodes_of(Y, ways=3, shots=4, queries=6, episodes=20, seed=1)
    assert np.array_equal(again[0], support[:20])
    own = episodes_of(Y, ways=3, shots=4, queries=6, episodes=50, split=TARGET.split)
    assert (TARGET.split[own[0]] == "train").all()
    assert (TARGET.split[own[1]] == "test").all()
    patients = np.arange(len(Y)) // 2
    support, query = episodes_of(Y, ways=3, shots=4, queries=6, episodes=50, groups=patients)
    assert not np.isin(patients[support], patients[query]).any()


@pytest.mark.parametrize(
    ("x", "y", "episodes", "error", "message"),
    [
        (X[:, 0], Y, drawn(), DataError, r"X must be floats \(n, d\) and y \(n,\)"),
        (X, Y[:-1], drawn(), DataError, r"X must be floats \(n, d\) and y \(n,\)"),
        (X.astype(int), Y, drawn(), DataError, "X must be floats"),
        (X, Y, drawn()[0], UsageError, "episodes must be a pair of row numbers"),
        (X, Y, (drawn()[0], drawn()[1] + 10_000), UsageError, "query must be integer rows 0 … 371 of X"),
        (X, Y, (drawn()[0][:, :1], drawn()[1]), UsageError, "equally many classes, at least 2; here they hold 1 to 1"),
        (X, Y, (drawn()[0], drawn()[1][:3]), UsageError, r"query \(E, q\) or \(1, q\)"),
    ],
)
def test_what_does_not_fit_is_named(x, y, episodes, error, message):
    with pytest.raises(error, match=message):
        LogisticProbe().fit_predict_episodes(x, y, episodes)


def test_the_example_in_the_docs_runs():
    text = (Path(__file__).parents[1] / "docs" / "probes.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space: dict = {}
    exec(code, space)
    assert space["predicted"].shape == (1000, 75)
    assert 0.9 < space["accuracy"].mean() < 1.0
    assert space["fitted"].l2.shape == (1, 1000)
