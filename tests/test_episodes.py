from __future__ import annotations

import numpy as np
import pytest
from helpers import toy_target
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastxfer.episodes import Episodes, EpisodeSpec, philox, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.targets.table import Target


def make_target(n_train=(8, 9, 10, 12, 7), n_test=(5, 6, 4, 4, 5), patients: int | None = None) -> Target:
    n = sum(n_train) + sum(n_test)
    return toy_target(n_train, n_test, None if patients is None else np.array([f"p{i % patients}" for i in range(n)]))


def equal(a: Episodes, b: Episodes) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("classes", "support", "query"))


def test_philox_is_numpys():
    ours = np.empty(4, np.uint64)
    for block, stream, episode, seed, purpose in [
        (0, 0, 0, 0, 0),
        (3, 17, 4711, 42, 2),
        (2**40, 9, 2**63, 2**64 - 1, 1),
    ]:
        philox(block, stream, np.uint64(episode), np.uint64(seed), purpose, ours)
        # NumPy's Philox adds one to its counter before each block.
        counter = block + (stream << 64) + (episode << 128)
        theirs = np.random.Philox(counter=(counter - 1) % 2**256, key=seed + (purpose << 64)).random_raw(4)
        assert ours.tolist() == theirs.tolist()


@given(
    ways=st.integers(2, 5), shots=st.integers(1, 7), queries=st.integers(1, 4), seed=st.integers(0, 2**63 - 1),
    first=st.integers(0, 10_000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_episode_is_what_it_says(ways, shots, queries, seed, first):
    target = make_target()
    got = sample_episodes(target, EpisodeSpec(ways, shots, queries), seed, 6, first)
    assert got.support.shape == (6, ways * shots)
    assert got.query.shape == (6, ways * queries)
    for e in range(6):
        assert len(set(got.classes[e])) == ways
        assert len(set(got.support[e])) == ways * shots
        assert len(set(got.query[e])) == ways * queries
        assert (target.labels[got.support[e]] == got.classes[e][got.support_labels]).all()
        assert (target.labels[got.query[e]] == got.classes[e][got.query_labels]).all()
        assert (target.split[got.support[e]] == "train").all()
        assert (target.split[got.query[e]] == "test").all()


def test_episode_4711_is_the_same_whatever_the_number_of_episodes():
    spec = EpisodeSpec(3, 5, 4)
    many = sample_episodes(make_target(), spec, 1, 5000)
    one = sample_episodes(make_target(), spec, 1, 1, first=4711)
    assert equal(many.window(4711, 4712), one)
    assert many.window(4711, 4712).first == 4711
    assert many.hash == one.hash


def test_shots_are_nested_and_share_classes_and_queries():
    one = sample_episodes(make_target(), EpisodeSpec(4, 1, 3), 0, 50)
    five = sample_episodes(make_target(), EpisodeSpec(4, 5, 3), 0, 50)
    assert np.array_equal(one.classes, five.classes)
    assert np.array_equal(one.query, five.query)
    assert np.array_equal(one.support, five.support[:, ::5])
    assert one.hash != five.hash


def test_seeds_differ():
    assert not equal(
        sample_episodes(make_target(), EpisodeSpec(3, 2, 2), 0, 5),
        sample_episodes(make_target(), EpisodeSpec(3, 2, 2), 1, 5),
    )


def test_all_way_with_the_whole_test_split():
    target = make_target()
    got = sample_episodes(target, EpisodeSpec("all", 3, "all"), 0, 4)
    assert got.ways == 5
    assert sorted(got.query[0]) == target.rows("test").tolist()
    assert got.query.shape == (1, 24)
    assert (target.labels[got.query[0]] == got.query_labels).all()
    assert got.window(2, 4).query.shape == (1, 24)


def test_draws_are_uniform_and_independent():
    target = make_target()
    spec = EpisodeSpec(2, 2, 1)
    got = sample_episodes(target, spec, 7, 40_000)
    pairs = got.classes[:, 0] * 5 + got.classes[:, 1]
    counts = np.bincount(pairs, minlength=25).reshape(5, 5)
    off_diagonal = counts[~np.eye(5, dtype=bool)]
    assert counts.trace() == 0
    assert stats.chisquare(off_diagonal).pvalue > 1e-3
    of_c = got.support[got.classes[:, 0] == 2][:, :2]  # ordered pairs of two of the ten images of class c
    first, second = of_c[:, 0] - of_c.min(), of_c[:, 1] - of_c.min()
    table = np.zeros((10, 10))
    np.add.at(table, (first, second), 1)
    assert stats.chisquare(table[~np.eye(10, dtype=bool)]).pvalue > 1e-3
    # support and query of an episode, and neighbouring episodes, know nothing of each other
    own = got.classes[:, 0] == 0
    joint = np.zeros((8, 5))
    np.add.at(joint, (got.support[own][:, 0], got.query[own][:, 0] - 46), 1)
    assert stats.chi2_contingency(joint).pvalue > 1e-3
    neighbours = np.zeros((5, 5))
    np.add.at(neighbours, (got.classes[:-1, 0], got.classes[1:, 0]), 1)
    assert stats.chi2_contingency(neighbours).pvalue > 1e-3


def test_support_and_query_never_share_a_patient():
    target = make_target(n_train=(40, 40), n_test=(4, 4), patients=30)
    got = sample_episodes(target, EpisodeSpec(2, 5, 4), 0, 200)
    for e in range(got.n_episodes):
        assert not set(target.patient[got.support[e]]) & set(target.patient[got.query[e]])


def test_multi_label_serves_images_with_exactly_one_label():
    base = make_target()
    labels = np.eye(5, dtype=np.float32)[base.labels]
    labels[0] = 0  # no finding
    labels[1, 1:3] = 1  # three findings
    labels[2, 4] = np.nan  # unknown counts as negative
    target = Target("multi", base.image_id, base.class_names, labels, base.split)
    got = sample_episodes(target, EpisodeSpec(5, 6, 4), 0, 300)
    assert not np.isin(got.support, [0, 1]).any()
    assert np.isin(2, got.support)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (lambda: EpisodeSpec(3, 0), UsageError, "shots must be at least 1, got 0"),
        (
            lambda: sample_episodes(make_target(), EpisodeSpec(3, 1, 3), 0, 0),
            UsageError,
            "episodes must be at least 1, got 0",
        ),
        (lambda: sample_episodes(make_target(), EpisodeSpec(3, 1, 3), 0, 5, -1), UsageError, r"got 5 \(from -1\)"),
        (lambda: EpisodeSpec(1, 1), UsageError, "ways must be at least 2"),
        (lambda: EpisodeSpec(0, 1, labels="per-label"), UsageError, "ways must be at least 1"),
        (lambda: EpisodeSpec(3, 1, 0), UsageError, "queries must be at least 1"),
        (lambda: EpisodeSpec(3, 1, "all"), UsageError, "goes with ways 'all'"),
        (lambda: EpisodeSpec(3, 1, 1, "train"), UsageError, "query split must be 'test' or 'val'"),
        (
            lambda: EpisodeSpec(6, 1, 1),
            UsageError,
            "has 5 classes, fewer than the 6 ways asked for: choose between 2 and 5",
        ),
        (lambda: EpisodeSpec(5, 8, 1), DataError, "class 'e' has 7 train and 5 test images to draw from, but 8 shots"),
        (lambda: EpisodeSpec(5, 1, 5), DataError, r"class 'c' has 10 train and 4 test .* \(and 1 more such classes\)"),
        (lambda: EpisodeSpec(2, 1, 1, "val"), DataError, "no image in its 'val' split"),
    ],
)
def test_what_cannot_be_met_is_said(spec, error, message):
    with pytest.raises(error, match=message):
        sample_episodes(make_target(), spec(), 0, 1)


def test_scarce_classes_can_be_left_out():
    got = sample_episodes(make_target(), EpisodeSpec("all", 5, 4, at_least=8), 0, 3)
    assert got.classes.tolist() == [[0, 1, 2, 3]] * 3  # class e has 7 train images
    with pytest.raises(UsageError, match="has 2 classes with at least 10 train and 4 query images"):
        sample_episodes(make_target(), EpisodeSpec(3, 5, 4, at_least=10), 0, 1)


def test_a_class_without_images_is_none_and_one_with_a_single_image_is_scarce():
    nobody = make_target(n_train=(8, 0, 10), n_test=(5, 0, 4))
    assert sample_episodes(nobody, EpisodeSpec("all", 2, 2), 0, 3).classes.tolist() == [[0, 2]] * 3
    lonely = make_target(n_train=(8, 1, 10), n_test=(5, 0, 4))
    with pytest.raises(DataError, match="class 'b' has 1 train and 0 test images"):
        sample_episodes(lonely, EpisodeSpec("all", 1, 1), 0, 1)


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        (EpisodeSpec(5, 8, 1), ""),  # queries are enough
        (EpisodeSpec(5, 8, 4), ""),  # just enough
        (EpisodeSpec(5, 8, 6), ", take --fewer-queries"),
        (EpisodeSpec(5, 8, 6, fewer_queries=True), ""),
    ],
)
def test_who_is_scarce_is_told_what_helps(spec, advice):
    """Class e has 7 train and 4 test images; nobody was left out for the sake of a patient, so none is told of."""
    with pytest.raises(DataError) as told:
        sample_episodes(make_target(n_test=(6, 6, 6, 6, 4)), spec, 0, 1)
    assert "patients" not in str(told.value)
    assert f"Lower --shots or --queries{advice}, or leave such classes out with --drop-scarce." in str(told.value)


def test_no_query_image_at_all_is_told_with_its_cause():
    without = make_target(n_test=())
    for spec in (EpisodeSpec(2, 1, 1), EpisodeSpec(2, 1, 1, fewer_queries=True)):
        with pytest.raises(DataError, match=r"to serve as query$"):
            sample_episodes(without, spec, 0, 1)


def test_a_spec_is_the_fields_usual_one_unless_told_otherwise():
    spec = EpisodeSpec(5, 1)
    assert (spec.queries, spec.query_split, spec.query_prior) == (15, "test", "balanced")
    assert EpisodeSpec(1, 1, labels="per-label").ways == 1  # one label, present or not
