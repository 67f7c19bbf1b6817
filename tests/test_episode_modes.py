"""Per-label episodes, natural queries, uneven support, scarce queries: what they are, and that chance is fair."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import toy_target
from scipy import stats

from fastxfer.episodes import Episodes, EpisodeSpec, draws, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.protocol import Protocol
from fastxfer.targets.table import Target

P_VALUE = 1e-4  # seeds are fixed: a test that passes once passes always


def single(n_train=(30, 20, 10, 12), n_test=(12, 6, 4, 9), patient=None) -> Target:
    return toy_target(n_train, n_test, patient)


def multi(n_train=80, n_test=60, patients: int | None = None, seed=0) -> Target:
    """Four labels, about a third positive, a tenth unknown; the last row of each split is unknown altogether."""
    rng = np.random.default_rng(seed)
    n = n_train + n_test
    labels = (rng.random((n, 4)) < 0.33).astype(np.float32)
    labels[rng.random((n, 4)) < 0.1] = np.nan
    labels[[n_train - 1, n - 1]] = np.nan
    return Target(
        name="rays",
        image_id=np.array([f"{i:04}.png" for i in range(n)]),
        class_names=("Hernia", "Mass", "Nodule", "Edema"),
        labels=labels,
        split=np.repeat(["train", "test"], [n_train, n_test]),
        patient=None if patients is None else np.array([f"p{i % patients}" for i in range(n)]),
    )


MODES = {
    "plain": (single(), {"ways": 3, "queries": 3}),
    "all-way": (single(), {"ways": "all", "queries": "all"}),
    "natural": (single(), {"ways": 3, "queries": 3, "query_prior": "natural"}),
    "uneven": (single(), {"ways": 3, "queries": 3, "imbalance": 0.7}),
    "uneven natural all-way": (
        single(),
        {"ways": "all", "queries": 3, "imbalance": 2.0, "query_prior": "natural"},
    ),
    "exactly-one": (multi(), {"ways": 3, "queries": 3}),
    "per-label": (multi(), {"ways": 2, "queries": 4, "labels": "per-label"}),
    "per-label, all": (multi(), {"ways": "all", "queries": "all", "labels": "per-label"}),
    "per-label, natural": (multi(), {"ways": 3, "queries": 4, "labels": "per-label", "query_prior": "natural"}),
    "fewer queries": (single(), {"ways": 3, "queries": 30, "fewer_queries": True}),
    "patients": (multi(patients=100), {"ways": 3, "queries": 3, "labels": "per-label"}),
}
ARRAYS = ("classes", "support", "support_labels", "query", "query_labels")


def same(a: Episodes, b: Episodes) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f), equal_nan=f.endswith("labels")) for f in ARRAYS)


@pytest.fixture(params=MODES, ids=str)
def mode(request):
    target, options = MODES[request.param]
    return target, options


# Of the first two episodes of each mode. A change here is another list of episodes: draws.GENERATOR must change with it.
DIGESTS = {
    "plain": "36510d082d99",
    "all-way": "d7957cb5e514",
    "natural": "8682de1d2880",
    "uneven": "745778dd8d13",
    "uneven natural all-way": "53f24d3db5a9",
    "exactly-one": "42cfc6c38907",
    "per-label": "8128fc4a3b47",
    "per-label, all": "a63241e61ffb",
    "per-label, natural": "a6ea7da1d682",
    "fewer queries": "a1cdbe4e8782",
    "patients": "1731fa36e420",
}


@pytest.mark.parametrize("name", MODES)
def test_lists_of_episodes_stay_what_they_are(name):
    target, options = MODES[name]
    episodes = sample_episodes(target, EpisodeSpec(shots=3, **options), 7, 2)
    digest = hashlib.sha256()
    for array in (episodes.classes, episodes.support, episodes.query):
        digest.update(np.ascontiguousarray(array, "<i8").tobytes())
    assert digest.hexdigest()[:12] == DIGESTS[name]


def test_no_draw_reaches_beyond_its_arrays(tmp_path):
    """Compiled without checks it would read, or write, what is another's: the same lists once more, with them."""
    lists = f"-m pytest -n0 -q -p no:cacheprovider -k {test_lists_of_episodes_stay_what_they_are.__name__}"
    checks = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    these = [sys.executable, *lists.split(), __file__]
    done = subprocess.run(these, env=checks, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(MODES)} passed" in done.stdout


def test_episode_4711_is_the_same_whatever_the_number_of_episodes_and_threads(mode):
    target, options = mode
    spec = EpisodeSpec(shots=3, **options)
    one = sample_episodes(target, spec, 1, 1, first=4711)
    assert same(sample_episodes(target, spec, 1, 4720).window(4711, 4712), one)
    with ThreadPoolExecutor(4) as threads:
        many = list(threads.map(lambda first: sample_episodes(target, spec, 1, 20, first), range(4700, 4716)))
    assert all(same(e.window(4711 - e.first, 4712 - e.first), one) for e in many if e.first <= 4711)
    assert {e.hash for e in many} == {one.hash}
    assert not same(sample_episodes(target, spec, 2, 1, first=4711), one)


def test_shots_are_nested_and_share_classes_and_queries(mode):
    target, options = mode
    before = None
    for shots in (1, 2, 3, 5):
        now = sample_episodes(target, EpisodeSpec(shots=shots, **options), 0, 40)
        if before is not None:
            assert np.array_equal(now.classes, before.classes)
            assert np.array_equal(now.query, before.query)
            assert np.array_equal(now.query_labels, before.query_labels, equal_nan=True)
            for e in range(40):
                assert pairs(before, e) <= pairs(now, e)
                assert len(pairs(now, e)) == now.support.shape[1]
        before = now


def pairs(got: Episodes, e: int) -> set[tuple[int, bytes]]:
    """Support rows of an episode with their labels; no row twice under the same label."""
    labels = got.window(e, e + 1).support_labels.reshape(got.support.shape[1], -1)
    return {(int(r), y.tobytes()) for r, y in zip(got.support[e], labels, strict=True)}


@pytest.mark.parametrize("name", MODES)
def test_every_option_has_its_own_hash_and_windows_fit(name):
    target, options = MODES[name]
    got = sample_episodes(target, EpisodeSpec(shots=2, **options), 0, 6)
    part = got.window(2, 5)
    assert same(part, sample_episodes(target, part.spec, 0, 3, first=2))
    hashes = {sample_episodes(t, EpisodeSpec(shots=2, **o), 0, 1).hash for t, o in MODES.values()}
    assert len(hashes) == len(MODES)


def shuffled(rows: np.ndarray, k: int, stream: int, episode: int, seed: int, purpose: int) -> list[int]:
    """The first k of a Fisher-Yates shuffle, with NumPy's Philox and Python's integers."""
    deck, chosen = rows.tolist(), []
    for i in range(k):
        counter = i // 4 + (stream << 64) + (episode << 128)
        generator = np.random.Philox(counter=(counter - 1) % 2**256, key=seed + (purpose << 64))
        j = i + (int(generator.random_raw(4)[i % 4]) * (len(deck) - i) >> 64)
        deck[i], deck[j] = deck[j], deck[i]
        chosen.append(deck[i])
    return chosen


def test_anyone_can_draw_an_episode_with_numpy_alone():
    seed, e = 2**63 + 5, 4711
    target, options = MODES["plain"]
    got = sample_episodes(target, EpisodeSpec(shots=6, **options), seed, 1, first=e)
    classes = shuffled(np.arange(4), 3, 0, e, seed, 0)
    assert got.classes[0].tolist() == classes
    for part, split, k, purpose in ((got.support, "train", 6, 1), (got.query, "test", 3, 2)):
        own = [np.flatnonzero((target.split == split) & (target.labels == c)) for c in classes]
        expected = [shuffled(r, k, c, e, seed, purpose) for r, c in zip(own, classes, strict=True)]
        assert part[0].reshape(3, k).tolist() == expected
    target, options = MODES["per-label"]
    got = sample_episodes(target, EpisodeSpec(shots=5, **options), seed, 1, first=e)
    support = []
    for label in shuffled(np.arange(4), 2, 0, e, seed, 0):
        for negative in (0, 1):
            rows = np.flatnonzero((target.split == "train") & (target.labels[:, label] == 1 - negative))
            support += shuffled(rows, 5, 2 * label + negative, e, seed, 1)
    assert got.support[0].tolist() == support


def test_hashes_and_draws_of_the_first_lists_stay():
    """Numbers of version 0.1's sampler: rows that people have must stay valid."""
    n_train, n_test = (8, 9, 10, 12, 7), (5, 6, 4, 4, 5)
    got = sample_episodes(single(n_train, n_test), EpisodeSpec(3, 2, 2), 1, 1, first=4711)
    assert got.hash == "ec2752801fe7d5f7"
    assert got.classes.tolist() == [[1, 4, 2]]
    assert got.support.tolist() == [[13, 10, 45, 40, 20, 17]]
    assert got.query.tolist() == [[56, 53, 69, 65, 58, 59]]
    assert Protocol().hash == "91da165eb494ade8"
    assert Protocol(imbalance=1.0).hash == Protocol(imbalance=1).hash != Protocol().hash
    assert EpisodeSpec(3, 2, 2, imbalance=1) == EpisodeSpec(3, 2, 2, imbalance=1.0)


def test_per_label_support_has_k_known_positives_and_negatives():
    target, k, q = multi(), 3, 4
    got = sample_episodes(target, EpisodeSpec(3, k, q, labels="per-label"), 0, 200)
    assert got.support.shape == (200, 2 * 3 * k)
    assert got.query.shape == (200, 2 * 3 * q)
    assert got.n_fitted == 2 * k
    for rows, labels, each in ((got.support, got.support_labels, k), (got.query, got.query_labels, q)):
        assert labels.shape == (rows.shape[1], 3)
        assert (np.isnan(labels).sum(axis=1) == 2).all()
        assert (np.nansum(labels, axis=0) == each).all()
        assert ((labels == 0).sum(axis=0) == each).all()
        truth = target.labels[rows[:, :, None], got.classes[:, None, :]]
        known = ~np.isnan(labels)
        assert np.array_equal(truth[:, known], np.broadcast_to(labels[known], truth[:, known].shape))
        for label in range(3):
            own = np.sort(rows[:, known[:, label]], axis=1)
            assert (np.diff(own, axis=1) > 0).all()  # of one label no image twice
    assert (target.split[got.support] == "train").all()
    assert (target.split[got.query] == "test").all()


def test_per_label_queries_of_the_whole_split_and_of_the_natural_prior_have_all_that_is_known():
    target = multi()
    whole = sample_episodes(target, EpisodeSpec("all", 2, "all", labels="per-label"), 0, 5)
    rows = target.rows("test")[:-1]  # the last one is unknown altogether
    assert whole.query.tolist() == [rows.tolist()]
    np.testing.assert_array_equal(whole.query_labels, target.labels[rows])
    natural = sample_episodes(target, EpisodeSpec(2, 2, 5, labels="per-label", query_prior="natural"), 0, 50)
    assert natural.query.shape == (50, 20)
    for e in range(50):
        assert len(set(natural.query[e])) == 20
        np.testing.assert_array_equal(natural.query_labels[e], target.labels[natural.query[e]][:, natural.classes[e]])


def test_natural_queries_are_as_frequent_as_they_are():
    target = single()
    got = sample_episodes(target, EpisodeSpec("all", 1, 2, query_prior="natural"), 3, 4000)
    assert got.query.shape == got.query_labels.shape == (4000, 8)
    assert (target.labels[got.query] == got.query_labels).all()  # all-way: episode labels are classes
    assert all(len(set(q)) == 8 for q in got.query)
    counts = np.bincount(got.query[:, 0] - 72, minlength=31)  # the first query: each of the 31 test images alike
    assert stats.chisquare(counts).pvalue > P_VALUE
    # how many of an episode's eight are of class a: hypergeometric, 12 of 31
    of_a = np.bincount((got.query_labels == 0).sum(axis=1), minlength=9)
    expected = 4000 * stats.hypergeom(31, 12, 8).pmf(np.arange(9))
    large = expected > 5
    assert stats.chisquare(of_a[large], expected[large] * of_a[large].sum() / expected[large].sum()).pvalue > P_VALUE


def test_natural_queries_come_from_the_classes_of_the_episode():
    target = single()
    got = sample_episodes(target, EpisodeSpec(2, 1, 4, query_prior="natural"), 0, 300)
    assert (target.labels[got.query] == np.take_along_axis(got.classes, got.query_labels, axis=1)).all()


def dirichlet_multinomial(counts: tuple[int, ...], alpha: float) -> float:
    """Probability that images beyond the first of each class fall so, by its closed form."""
    n, ways = sum(counts), len(counts)
    log = math.lgamma(ways * alpha) - math.lgamma(n + ways * alpha) + math.lgamma(n + 1)
    log += sum(math.lgamma(c + alpha) - math.lgamma(alpha) - math.lgamma(c + 1) for c in counts)
    return math.exp(log)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 8.0])
def test_uneven_support_is_dirichlets(alpha):
    target = single((30, 30, 30), (5, 5, 5))
    got = sample_episodes(target, EpisodeSpec("all", 3, 1, imbalance=alpha), 5, 20_000)
    assert got.support.shape == got.support_labels.shape == (20_000, 9)
    assert (target.labels[got.support] == got.support_labels).all()
    assert (np.diff(np.sort(got.support, axis=1), axis=1) > 0).all()
    sizes = np.stack([(got.support_labels == c).sum(axis=1) for c in range(3)], axis=1) - 1
    assert sizes.min() == 0
    kinds = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    expected = 20_000 * np.array([dirichlet_multinomial(kind, alpha) for kind in kinds])
    assert expected.sum() == pytest.approx(20_000)
    found = np.array([(sizes == kind).all(axis=1).sum() for kind in kinds])
    assert stats.chisquare(found, expected).pvalue > P_VALUE


def test_uneven_support_never_asks_for_more_than_there_is():
    target = single((30, 5, 30), (5, 5, 5))
    got = sample_episodes(target, EpisodeSpec("all", 5, 1, imbalance=0.2), 0, 500)
    sizes = np.stack([(got.support_labels == c).sum(axis=1) for c in range(3)], axis=1)
    assert (sizes.sum(axis=1) == 15).all()
    assert sizes[:, 1].max() == 5
    assert sizes[:, 0].max() > 5
    assert sizes.min() == 1


def test_per_label_draws_are_uniform_and_independent():
    target = multi()
    got = sample_episodes(target, EpisodeSpec("all", 1, 1, labels="per-label"), 11, 20_000)
    columns = {}
    for label in range(4):
        for sign in (0, 1):  # positives, negatives
            rows = got.support[:, 2 * label + sign]
            there, counts = np.unique(rows, return_counts=True)
            known = target.labels[:79, label] == (1 - sign)
            assert there.tolist() == np.flatnonzero(known).tolist()
            assert stats.chisquare(counts).pvalue > P_VALUE
            columns[label, sign] = np.searchsorted(there, rows)
    columns["query"] = np.unique(got.query[:, 0], return_inverse=True)[1]
    names = list(columns)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:  # of positives and negatives, of labels, of support and query
            table = np.zeros((columns[a].max() + 1, columns[b].max() + 1))
            np.add.at(table, (columns[a], columns[b]), 1)
            assert stats.chi2_contingency(table).pvalue > P_VALUE
    table = np.zeros((columns[0, 0].max() + 1,) * 2)
    np.add.at(table, (columns[0, 0][:-1], columns[0, 0][1:]), 1)  # of neighbouring episodes
    assert stats.chi2_contingency(table).pvalue > P_VALUE


@pytest.mark.parametrize("first", [0, 2**40])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_seeds_and_episodes_know_nothing_of_each_other(seed, first):
    target = single()
    own, other = (sample_episodes(target, EpisodeSpec(3, 2, 2), s, 8000, first=first) for s in (seed, seed + 1))
    for a, b in ((own, other), (own.window(0, 7999), own.window(1, 8000))):
        table = np.zeros((4, 4))
        np.add.at(table, (a.classes[:, 0], b.classes[:, 0]), 1)
        assert stats.chi2_contingency(table).pvalue > P_VALUE
        both = (a.classes[:, 0] == 0) & (b.classes[:, 0] == 0)
        table = np.zeros((12, 12))
        np.add.at(table, (a.query[both, 0] - 72, b.query[both, 0] - 72), 1)
        assert stats.chisquare(table.ravel()).pvalue > P_VALUE


@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("labels", ["exactly-one", "per-label"])
@pytest.mark.parametrize("query_prior", ["balanced", "natural"])
def test_support_and_query_never_share_a_patient(fewer, labels, query_prior):
    target = multi(200, 60, patients=230)  # half of the test patients are in train too
    spec = EpisodeSpec(3, 2, 2, labels=labels, query_prior=query_prior, fewer_queries=fewer)
    got = sample_episodes(target, spec, 0, 300)
    for e in range(300):
        assert not set(target.patient[got.support[e]]) & set(target.patient[got.query[e]])


def test_patients_on_both_sides_make_a_class_scarce():
    """Class a: 30 train images of ten patients, all but one of whom have a test image as well."""
    patient = np.array([f"p{i % 10}" for i in range(30)] + [f"q{i}" for i in range(42)] + [f"p{i}" for i in range(9)]
                       + ["new"] + [f"r{i}" for i in range(21)])  # fmt: skip
    target = single(n_train=(30, 20, 10, 12), n_test=(10, 6, 6, 9), patient=patient)
    with pytest.raises(
        DataError,
        match=r"class 'a' has 3 train and 10 test images to draw from, but 5 shots and 4 queries are asked for; 27 train "
        r"images were left out because their patients are in test too \(--fewer-queries leaves out the others instead\)",
    ):
        sample_episodes(target, EpisodeSpec("all", 5, 4), 0, 1)
    got = sample_episodes(target, EpisodeSpec("all", 5, 4, fewer_queries=True), 0, 100)
    assert got.query.shape == (100, 4)  # one image of a new patient in class a: one query a class
    assert set(got.query[:, 0]) == {72 + 9}
    assert len(set(got.support[:, :5].ravel())) == 30
    nobody = np.where(patient == "new", "p9", patient)
    with pytest.raises(DataError, match=r"class 'a' has 30 train and 0 test images .* 10 test images were left out"):
        sample_episodes(
            single(n_test=(10, 6, 6, 9), patient=nobody), EpisodeSpec("all", 5, 4, fewer_queries=True), 0, 1
        )


def test_fewer_queries_are_as_many_as_the_scarcest_class_has():
    target = single()
    got = sample_episodes(target, EpisodeSpec(3, 2, 9, fewer_queries=True), 0, 20)
    assert got.query.shape == (20, 3 * 4)
    assert got.query_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    enough = sample_episodes(target, EpisodeSpec(3, 2, 2, fewer_queries=True), 0, 20)
    assert np.array_equal(enough.query, sample_episodes(target, EpisodeSpec(3, 2, 2), 0, 20).query)
    natural = EpisodeSpec(3, 2, 9, query_prior="natural", fewer_queries=True)
    assert sample_episodes(target, natural, 0, 20).query.shape == (20, 4 + 6 + 9)


def test_as_many_queries_as_there_are_images_can_be_met() -> None:
    """Of the two rarest classes, 4 and 6 images."""
    episodes = sample_episodes(single(), EpisodeSpec(2, 1, 5, query_prior="natural"), 0, 20)
    assert episodes.n_queries == 10


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (single(), {"labels": "per-label"}, UsageError, "'toy' has one label an image; per-label episodes are for"),
        (single(), {"labels": "both"}, UsageError, "labels must be exactly-one or per-label, got 'both'"),
        (single(), {"query_prior": "even"}, UsageError, "query prior must be balanced or natural"),
        (single(), {"imbalance": 0.0}, UsageError, "imbalance must be a number above 0, got 0"),
        (single(), {"imbalance": math.inf}, UsageError, "imbalance must be a number above 0, got inf"),
        (multi(), {"imbalance": 1.0, "labels": "per-label"}, UsageError, "per-label episodes have k positives and k"),
        (multi(), {"ways": 5, "labels": "per-label"}, UsageError, "choose between 1 and 4 ways"),
        (
            single(),
            {"ways": "all", "queries": "all", "query_prior": "natural"},
            UsageError,
            "has the natural prior already",
        ),
        (
            single(),
            {"queries": 7, "query_prior": "natural"},
            DataError,
            "3 classes may have no more than 19 test images between them, but 21 queries are asked for",
        ),
        (
            multi(),
            {"shots": 40, "labels": "per-label"},
            DataError,
            r"class 'Hernia' has \d+ positive and \d+ negative train and \d+ positive and \d+ negative test images to "
            "draw from, but 40 shots and 2 queries each",
        ),
    ],
)
def test_what_cannot_be_met_is_said(target, options, error, message):
    with pytest.raises(error, match=message):
        sample_episodes(target, EpisodeSpec(**{"ways": 3, "shots": 1, "queries": 2, **options}), 0, 1)


def test_scarce_labels_can_be_left_out():
    target = multi()
    target.labels[:80, 0] = np.where(np.arange(80) < 3, 1, 0)  # three positives in train
    spec = EpisodeSpec("all", 5, 2, at_least=5, labels="per-label")
    assert sample_episodes(target, spec, 0, 1).classes.tolist() == [[1, 2, 3]]


def test_thousands_of_episodes_are_drawn_in_milliseconds():
    n = 2000
    labels, split = np.arange(n) % 20, np.where(np.arange(n) % 40 < 20, "train", "test")
    target = Target("pool", np.array([f"{i}.png" for i in range(n)]), tuple("abcdefghijklmnopqrst"), labels, split)
    spec = EpisodeSpec(5, 5)
    sample_episodes(target, spec, 0, 1)  # compiled on first use
    spent = []
    for _ in range(5):
        started = time.process_time()
        sample_episodes(target, spec, 0, 5000)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.03  # 5 ms on a quiet machine


def test_a_class_that_is_full_leaves_its_images_to_the_others_alike() -> None:
    """Of twelve images the first class has room for one: the other eleven go to two classes that nothing tells apart."""
    episodes = 4000
    sizes = draws.draw_sizes(np.tile([1, 50, 50], (episodes, 1)), 12, 1.0, np.uint64(3), 0, draws.SIZES)
    assert (sizes.sum(axis=1) == 12).all()
    assert (sizes[:, 0] == 1).all()
    second = sizes[:, 1]
    # Proportions are uniform, so that sizes 1 to 10 are as likely as one another (Pólya's urn).
    assert stats.chisquare(np.bincount(second, minlength=11)[1:]).pvalue > 1e-4
