"""Comparisons: equal to SciPy's, statsmodels' and published ones, and as often right as they promise."""

from __future__ import annotations

import math
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from fastxfer.comparing import (
    Contest,
    cell_table,
    compare,
    contests,
    critical_difference,
    crossings,
    latex,
    markdown,
    paired,
    rank,
    ranking,
)
from fastxfer.comparing.crossing import stretches
from fastxfer.comparing.pairs import holm
from fastxfer.errors import DataError, UsageError
from fastxfer.results import NO_EPISODE, complete
from fastxfer.statistics import EPISODES, EPISODES_AND_IMAGES, TEST_IMAGES, summarise

SETTING = {"target": "t", "ways": "5", "shots": "1", "probe": "logistic", "split": "test", "metric": "accuracy"}


def contest(values: np.ndarray, **changes) -> Contest:
    names = tuple("abcdefgh"[: values.shape[1]])
    return Contest(SETTING | changes.pop("setting", {}), names, values, changes.pop("queries", 0), **changes)


def made_rows(values: np.ndarray, backbones: str = "ab", **changes) -> pd.DataFrame:
    """values (n_episodes, n_backbones)"""
    key = {"source": "s", "ways": "5", "seed": 0, "params": "l2=1", "n_queries": 75, "episodes_hash": "h"}
    frames = []
    for backbone, column in zip(backbones, values.T, strict=True):
        own = {"backbone": backbone, "episode": np.arange(len(values)), "value": column}
        frames.append(complete(pd.DataFrame(SETTING | key | own | changes)))
    return pd.concat(frames, ignore_index=True)


def made_images(values: np.ndarray, backbones: str = "ab", *, episodes: int = 1, **changes) -> pd.DataFrame:
    """values (n_images, n_backbones): influences, all of them in one half of the episodes as in the other."""
    key = {"source": "s", "ways": "5", "seed": 0, "params": "l2=1"}
    frames = []
    for backbone, column in zip(backbones, values.T, strict=True):
        own = {"backbone": backbone, "image": np.arange(len(values)), "group": np.arange(len(values)), "n": episodes}
        sums = {"episodes": episodes, "rarity": 0.0, "sum": column * episodes, "odd": column * (episodes // 2)}
        frames.append(pd.DataFrame(SETTING | key | own | sums | changes))
    return pd.concat(frames, ignore_index=True)


# -- one pair ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "queries"), [(6, 0), (12, 5), (16, 0)])
def test_few_sign_flips_are_scipys_exact_test(n, queries):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    d = np.rint(d * queries) / queries if queries else d
    exact = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired.sign_flip_p(d, 1 / queries if queries else 0) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("n", "queries", "mean"), [(20, 0, 0.4), (24, 5, 0.3), (60, 3, 0.0), (300, 75, 0.1), (1000, 0, 0.08)]
)
def test_many_sign_flips_are_those_drawn_at_random(n, queries, mean):
    rng = np.random.default_rng(n)
    d = rng.normal(mean, 1, n)
    d = np.rint(d * queries) / queries if queries else d
    signs = rng.integers(0, 2, (40_000, n), np.int8) * 2.0 - 1
    drawn = float((np.abs(signs @ d) >= abs(d.sum()) - 1e-9).mean())
    got = paired.sign_flip_p(d, 1 / queries if queries else 0)
    assert got == pytest.approx(drawn, abs=4 * math.sqrt(drawn * (1 - drawn) / 40_000))


def test_sign_flips_reach_far_into_the_tail():
    """Of signs alone the test is the binomial one, at any p."""
    d = np.repeat([1.0, -1.0], [90, 10])
    assert paired.sign_flip_p(d / 7, 1 / 7) == pytest.approx(stats.binomtest(90, 100).pvalue, rel=1e-3)
    assert paired.sign_flip_p(np.ones(40)) == 2.0**-39
    assert paired.sign_flip_p(np.zeros(40)) == 1.0
    assert paired.sign_flip_p(d) == pytest.approx(paired.sign_flip_p(-d), rel=1e-12)


def test_the_difference_is_scipys_and_statsmodels():
    values = np.random.default_rng(0).normal([0.70, 0.705], 0.03, (40, 2))
    line = compare([contest(values)], margin=1.5).iloc[0]
    theirs = stats.ttest_rel(*values.T)
    assert (line["low"], line["high"]) == pytest.approx(tuple(100 * b for b in theirs.confidence_interval(0.95)))
    assert contest(values).differences([0], [1], EPISODES).p() == pytest.approx(theirs.pvalue)
    assert line["p_equivalent"] == pytest.approx(ttost_paired(*values.T, -0.015, 0.015)[0])
    d = values[:, 0] - values[:, 1]
    assert line["d"] == pytest.approx(d.mean() / d.std(ddof=1))
    assert line["superiority"] == pytest.approx((d > 0).mean())
    assert (line["over"], line["test"], line["n"], line["n_images"]) == (EPISODES, "sign flips", 40, 0)
    assert np.isnan(line[["low_images", "high_images", "p_images", "p_resampled"]].astype(float)).all()


def test_what_the_corrected_resampled_t_test_is():
    """With n2 of n1 + n2 images for testing, the variance is s² (1/J + n2/n1) (Nadeau & Bengio 2003)."""
    d = np.random.default_rng(1).normal(0.02, 0.03, 15)
    n1, n2 = 80, 20
    t = d.mean() / math.sqrt((1 / 15 + n2 / n1) * d.var(ddof=1))
    assert paired.resampled_p(d, n2 / (n1 + n2)) == pytest.approx(2 * stats.t.sf(abs(t), 14))
    assert paired.resampled_p(d, 0.0) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert math.isnan(paired.resampled_p(d, 1.0))


def test_the_overlap_is_counted_from_the_images():
    """Three episodes of two queries: two share one image, so of three pairs one shares half of its queries."""
    values = np.array([[0.5, 1.0], [1.0, 0.5], [0.5, 0.5]])
    images = made_images(np.zeros((5, 2)), episodes=3)
    images["n"] = np.tile([2, 1, 1, 1, 1], 2)
    rows = made_rows(values, n_queries=2)
    found, notes = contests(rows, lambda cells: images)
    assert notes == []
    assert found[0].overlap == pytest.approx(0.5 / 3)


# -- whole splits ------------------------------------------------------------------------------------------------------

# Albumin and K-G score of 43 patients with ovarian cancer, benefit from surgery or not (DeLong, DeLong & Clarke-Pearson
# 1988, as the SAS/STAT user's guide prints them in its example of comparing ROC curves, with its results).
ALBUMIN = "3 3.2 3.9 2.8 3.2 .9 2.5 1.6 3.8 3.7 3.2 3.8 4.1 3.6 4.3 3.6 2.3 4.2 4 3.5 3.8 3 4.5 3.7 3.1 4.1 4.3 4.3 3.2 2.6 3.3 1.7 3.7 3.3 4.2 3.5 2.9 2.1 2.8 4 3.3 3.7 3.6"
PROTEIN = "5.8 6.3 6.8 4.8 5.8 4 5.7 5.6 5.7 6.7 5.4 6.6 6.6 5.7 7 6.7 4.4 7.6 6.6 5.8 6.8 4.7 7.4 7.4 6.6 8.2 7 6.5 5.1 4.7 6.8 4 6.1 6.3 7.7 6.2 5.7 4.8 6.2 7 5.7 6.9 6.6"
SCORE = "10 5 3 6 3 5 8 5 5 6 4 6 5 5 4 4 6 4 6 6 7 8 5 5 6 6 5 4 5 6 6 7 5 7 6 5 9 7 8 7 6 5 5"
BENEFIT = "0 1 1 0 1 0 0 1 1 1 1 1 1 1 1 0 1 0 0 1 1 0 1 1 1 1 1 1 1 1 0 0 1 1 1 1 0 1 0 1 1 1 1"


def placements(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC, and each patient's influence on it, squares of which sum to DeLong's variance."""
    won = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    out = np.zeros(len(score))
    for axis, part in ((1, positive), (0, ~positive)):
        m = part.sum()
        out[part] = (won.mean(axis=axis) - won.mean()) / m * math.sqrt(m / (m - 1))
    return float(won.mean()), out


def ovarian() -> Contest:
    positive = np.array(BENEFIT.split(), int) == 1
    scores = [np.array(words.split(), float) for words in (ALBUMIN, PROTEIN, SCORE)]
    scores[2] = 10 - scores[2]
    each = [placements(score, positive) for score in scores]
    values = np.array([[area for area, _ in each]])
    halves = np.stack([influence for _, influence in each], axis=-1)[None]
    return contest(values, setting={"metric": "auc"}, halves=halves, n_images=43)


def test_delongs_test_gives_the_published_numbers():
    found = ovarian()
    assert found.values[0] == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    table = compare([found]).set_index(["a", "b"])
    for pair, difference, se, p in ((("a", "c"), 0.0108, 0.0953, 0.9102), (("b", "c"), -0.0780, 0.1046, 0.4561)):
        line = table.loc[pair]
        assert (line["test"], line["over"]) == ("DeLong", TEST_IMAGES)
        assert line["difference"] == pytest.approx(100 * difference, abs=5e-3)
        a, b = ("abc".index(name) for name in pair)
        estimate = found.differences([a], [b], TEST_IMAGES)
        assert np.sqrt(estimate.variance) == pytest.approx(se, abs=5e-5)
        assert estimate._replace(df=math.inf).p() == pytest.approx(p, abs=5e-5)
        assert p < line["p"] < p + 0.02  # by the t distribution


def test_delongs_variance_is_that_of_leaving_patients_out():
    positive = np.array(BENEFIT.split(), int) == 1
    scores = [np.array(ALBUMIN.split(), float), 10 - np.array(SCORE.split(), float)]
    variance = 0.0
    for part in (positive, ~positive):
        left = []
        for i in np.flatnonzero(part):
            rest = np.arange(43) != i
            areas = [placements(score[rest], positive[rest])[0] for score in scores]
            left.append(areas[0] - areas[1])
        m = part.sum()
        variance += (m - 1) / m * ((np.array(left) - np.mean(left)) ** 2).sum()
    assert ovarian().differences([0], [2], TEST_IMAGES).variance == pytest.approx(variance)


def test_mcnemars_test_is_statsmodels():
    rng = np.random.default_rng(2)
    right = rng.random((200, 2)) < [0.8, 0.72]
    values = right.mean(axis=0, keepdims=True)
    influence = (right - values) / 200 * math.sqrt(200 / 199)
    found = contest(values, halves=influence[None], n_images=200, queries=200)
    line = compare([found]).iloc[0]
    table = [[(right[:, 0] == x) & (right[:, 1] == y) for y in (True, False)] for x in (True, False)]
    assert line["test"] == "McNemar"
    assert line["p"] == pytest.approx(mcnemar([[c.sum() for c in r] for r in table], exact=True).pvalue)
    only_a, only_b, n = table[0][1].sum(), table[1][0].sum(), 200
    unbiased = (only_a + only_b - (only_a - only_b) ** 2 / n) / (n * (n - 1))
    most = (1 + abs(only_a - only_b) / n) / n * math.sqrt(n / (n - 1))  # of an image for the one that is behind
    assert found.differences([0], [1], TEST_IMAGES).variance == pytest.approx(unbiased + most**2)


def test_copies_of_an_image_are_worth_one_where_they_are_one_patients():
    rng = np.random.default_rng(3)
    once = rng.normal(0, 0.01, (60, 2))
    values = np.array([[0.8, 0.79]])
    thrice = np.repeat(once / 3, 3, axis=0)
    rows = made_rows(values, episode=NO_EPISODE, shots="full", n_queries=180, metric="f1")
    images = made_images(thrice, shots="full", metric="f1")
    images["group"] = images["image"] // 3
    (grouped,), _ = contests(rows, lambda cells: images)
    (alone,), _ = contests(rows, lambda cells: made_images(once, shots="full", metric="f1"))
    one, other = (c.differences([0], [1], TEST_IMAGES) for c in (grouped, alone))
    assert one.variance == pytest.approx(other.variance * (60 / 59) * (179 / 180))
    assert compare([grouped])["test"].item() == "t over patients"


def test_two_perfect_backbones_are_alike_only_on_many_images():
    for n, verdict in ((60, "undecided"), (3000, "equivalent")):
        found = contest(np.ones((1, 2)), halves=np.zeros((1, n, 2)), n_images=n, queries=n)
        line = compare([found]).iloc[0]
        assert (line["verdict"], line["p"]) == (verdict, 1.0)


# -- all pairs at once ---------------------------------------------------------------------------------------------------


def one_by_one(found: Contest, a: int, b: int, over: str) -> tuple[float, float, float]:
    """Mean, variance and degrees of freedom of one difference, written out for one pair."""
    each, metric = found.values[:, a] - found.values[:, b], found.setting["metric"]
    mean, episodes = each.mean(), each.var(ddof=1) / found.n if found.n > 1 else np.nan
    if over == EPISODES:
        return mean, episodes, max(found.n - 1, 1)
    n, shifts = found.n_groups, found.halves[:, :, a] - found.halves[:, :, b]
    products = shifts[0] * shifts[-1]
    images = products.sum()
    images = images * n / (n - 1) * (found.n_images - 1) / found.n_images if over == TEST_IMAGES else max(images, 0)
    moved = np.abs(products)
    if metric == "accuracy":
        few = moved.sum() ** 2 < 10 * (moved**2).sum() or not moved.any()
        most = 1 / n if few else shifts[:, moved.argmax()].mean()
        images, products = images + most**2, np.r_[products, most**2]
    elif not moved.any():
        return mean, np.nan, 1
    total = images + (0 if over == TEST_IMAGES else episodes)
    error = len(products) * products.var(ddof=1) + (0 if over == TEST_IMAGES else 2 * episodes**2 / (found.n - 1))
    return mean, total, np.clip(2 * total**2 / error, 1, found.n + n - 2)


@pytest.mark.parametrize("metric", ["accuracy", "auc"])
@pytest.mark.parametrize("n", [1, 30])
def test_all_pairs_at_once_are_each_pair_alone(n, metric, monkeypatch):
    rng, k, groups = np.random.default_rng(n), 5, 40
    values = np.rint(75 * rng.uniform(0.5, 0.9, (n, k))) / 75
    halves = rng.normal(0, 0.01, (1 if n == 1 else 2, groups, k)) + rng.normal(0, 0.01, (1, groups, k))
    halves[:, 5:, 3] = halves[:, 5:, 2]  # a handful of images tell these two apart
    halves[:, :, 1], values[:, 1] = halves[:, :, 0], values[:, 0]  # nothing these
    more = {"queries": 75, "halves": halves, "n_images": 60, "overlap": 0.1, "setting": {"metric": metric}}
    found = contest(values, **more)
    pairs = found.pairs()
    for over in (EPISODES, found.over):
        estimates = found.differences(*pairs, over)
        for i, (a, b) in enumerate(zip(*pairs, strict=True)):
            mine = [estimates.mean[i], estimates.variance[i], estimates.df[i]]
            np.testing.assert_allclose(mine, one_by_one(found, a, b, over), rtol=1e-9, atol=1e-15)
    whole = compare([found])
    for module in ("contests", "pairs"):
        monkeypatch.setattr(sys.modules[f"fastxfer.comparing.{module}"], "AT_ONCE", 1)  # pair by pair
    pd.testing.assert_frame_equal(compare([found]), whole, rtol=1e-9)
    for line in whole.itertuples():
        some = ["abcde".index(name) for name in (line.a, line.b)]
        alone = compare([contest(values[:, some], **more | {"halves": halves[:, :, some]})]).iloc[0]
        for name in ("difference", "low_images", "p", "p_episodes", "p_equivalent", "d", "superiority", "p_resampled"):
            np.testing.assert_allclose(getattr(line, name), alone[name], rtol=1e-9, err_msg=name)


def tail_of_one(size: np.ndarray, x: float, gap: float) -> float:
    """Lugannani & Rice's tail of one sum, its saddlepoint found by SciPy's root finder."""
    t = optimize.brentq(lambda t: size @ np.tanh(t * size) - x, 0.0, 50 / size.min(), xtol=1e-15, rtol=1e-14)
    cumulants = np.log(np.cosh(np.minimum(t * size, 300))).sum()
    spread = math.sqrt(((size / np.cosh(np.minimum(t * size, 300))) ** 2).sum())
    w = math.sqrt(2 * (t * x - cumulants))
    u = (2 / gap * math.sinh(t * gap / 2) if gap else t) * spread
    return 2 * (stats.norm.sf(w) + stats.norm.pdf(w) * (1 / u - 1 / w))


@pytest.mark.parametrize("queries", [0, 75])
def test_all_sign_flips_at_once_are_each_alone(queries):
    """From no difference to all differences of one sign but a few."""
    rng = np.random.default_rng(3)
    d = rng.normal(np.linspace(0.01, 2.5, 30), 1, (200, 30)) / 10
    d = np.rint(d * queries) / queries if queries else d
    together = paired.sign_flip_p(d, 1 / queries if queries else 0.0)
    assert together.min() < 1e-40
    for column, p in zip(d.T, together, strict=True):
        size, total = np.abs(column[column != 0]), abs(column.sum())
        gap = 2 / queries * np.gcd.reduce(np.rint(size * queries).astype(int)) if queries else 0.0
        assert p == pytest.approx(tail_of_one(size, total - gap / 2, gap), rel=1e-7)
        assert p == pytest.approx(float(paired.sign_flip_p(column, 1 / queries if queries else 0.0)), rel=1e-8)


def test_the_smallest_difference_on_a_lattice_has_a_p_of_1_and_no_more():
    """Half a step is taken from it, which leaves nothing, or a little less by rounding."""
    for n in range(101, 161, 2):
        d = np.repeat([1.0, -1.0], [(n + 1) // 2, n // 2]) / 75
        line = compare([contest(np.column_stack([0.5 + d, np.full(n, 0.5)]), queries=75)]).iloc[0]
        assert line["p"] == pytest.approx(1)
        assert line["p"] <= 1


# -- lining up ---------------------------------------------------------------------------------------------------------


def test_pairs_are_made_within_a_setting():
    rng = np.random.default_rng(4)
    values = rng.normal(0.7, 0.05, (30, 3))
    rows = pd.concat([made_rows(values, "abc"), made_rows(values[:, :2], "ab", shots="5", episodes_hash="k")])
    found, notes = contests(rows.sample(frac=1, random_state=0))
    assert notes == []
    assert [(c.setting["shots"], c.names, c.n) for c in found] == [("1", ("a", "b", "c"), 30), ("5", ("a", "b"), 30)]
    assert np.array_equal(found[0].values, values)
    table = compare(found)
    assert [tuple(pair) for pair in table[["a", "b"]].to_numpy()] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b")]
    assert table["p_holm"].to_numpy() == pytest.approx(multipletests(table["p"], method="holm")[1])
    assert table["p_bh"].to_numpy() == pytest.approx(multipletests(table["p"], method="fdr_bh")[1])


def test_who_saw_other_episodes_is_left_out():
    values = np.random.default_rng(5).random((10, 3))
    rows = made_rows(values, "abc")
    rows.loc[rows["backbone"] == "c", "episodes_hash"] = "other"
    found, notes = contests(rows)
    assert found[0].names == ("a", "b")
    assert notes == [
        "t, 5 ways, 1 shots, logistic, test, accuracy: c is left out, since it saw other episodes than the others"
    ]


def test_only_the_episodes_that_all_have_are_compared():
    values = np.random.default_rng(6).random((10, 2))
    rows = made_rows(values)
    rows = rows[(rows["backbone"] == "a") | (rows["episode"] < 7)]
    (found,), notes = contests(rows, lambda cells: made_images(np.zeros((4, 2)), episodes=10))
    assert np.array_equal(found.values, values[:7])
    assert found.over == EPISODES
    assert "compared on the 7 episodes (of up to 10)" in notes[0]
    assert "influences are of other episodes" in notes[1]


def test_undefined_values_are_left_out_and_said():
    values = np.random.default_rng(7).random((10, 2))
    values[3, 1] = np.nan
    (found,), notes = contests(made_rows(values))
    assert found.n == 9
    assert "1 of 10 episodes" in notes[0]


def test_between_probes_and_between_shots():
    values = np.random.default_rng(8).random((10, 2))
    rows = pd.concat([made_rows(values), made_rows(values / 2, probe="ridge", params="l2=3")])
    found, _ = contests(rows, between=("probe",))
    assert [(c.setting["label"], c.names) for c in found] == [
        ("a", ("logistic", "ridge")),
        ("b", ("logistic", "ridge")),
    ]
    rows = pd.concat(
        [made_rows(values), made_rows(values / 2, shots="10", episodes_hash="k"), made_rows(values, shots="2")]
    )
    found, _ = contests(rows, between=("shots",))
    assert [c.names for c in found] == [("1", "2", "10")] * 2


def test_costs_and_stopped_runs_are_not_compared():
    values = np.array([[0.5, 0.6]])
    runs = {"episode": NO_EPISODE, "shots": "full", "probe": "finetune"}
    rows = pd.concat([made_rows(values, **runs, metric="seconds"), made_rows(values, **runs, params="p;stopped=5")])
    with pytest.raises(DataError, match="no results to compare"):
        contests(rows)


def test_a_value_that_is_not_there_is_an_error_with_the_nearest():
    rows = made_rows(np.random.default_rng(9).random((5, 2)))
    with pytest.raises(UsageError, match=r"--probe logistc: no result has it\. Did you mean: logistic"):
        contests(rows, only={"probe": ["logistc"]})


def test_params_are_chosen_on_validation():
    rng = np.random.default_rng(10)
    frames = []
    for params, level in (("l2=0.1", 0.2), ("l2=1", 0.9), ("l2=10", 0.3)):
        frames.append(made_rows(rng.normal(level, 0.01, (5, 2)), params=params))
        frames.append(made_rows(1 - rng.normal(level, 0.01, (5, 2)), params=params, split="val", episodes_hash="v"))
    (found,), _ = contests(pd.concat(frames))
    assert found.values.mean() == pytest.approx(0.2, abs=0.02)
    (found,), _ = contests(pd.concat(frames), only={"params": ["l2=10"]})
    assert found.values.mean() == pytest.approx(0.3, abs=0.02)


def test_seeds_of_full_probes_are_replicates_on_the_same_images():
    rng = np.random.default_rng(11)
    full = {"episode": NO_EPISODE, "shots": "full", "n_queries": 50, "metric": "auc"}
    rows = pd.concat([made_rows(rng.random((1, 2)), **full, seed=s, episodes_hash="") for s in range(4)])
    influence = rng.normal(0, 0.01, (50, 2))
    images = pd.concat([made_images(influence, shots="full", metric="auc", seed=s) for s in range(4)])
    (found,), notes = contests(rows, lambda cells: images)
    assert (found.n, found.over, found.overlap, notes) == (4, EPISODES_AND_IMAGES, 1.0, [])
    d = influence[:, 0] - influence[:, 1]
    each = found.values[:, 0] - found.values[:, 1]
    assert found.differences([0], [1], EPISODES_AND_IMAGES).variance == pytest.approx(each.var(ddof=1) / 4 + d @ d)
    assert math.isnan(compare([found])["p_resampled"].item())


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_the_four_verdicts():
    rng = np.random.default_rng(12)
    base = rng.normal(0.7, 0.05, 400)
    cases = {
        "a better": (0.03, 0.02),
        "b better": (-0.03, 0.02),
        "equivalent": (0.002, 0.005),
        "undecided": (0.01, 0.2),
    }
    for verdict, (gap, noise) in cases.items():
        values = np.column_stack([base + gap + rng.normal(0, noise, 400), base])
        assert compare([contest(values)])["verdict"].item() == verdict
    values = np.column_stack([base + 0.03, base])
    assert compare([contest(values, setting={"metric": "log_loss"})])["verdict"].item() == "b better"
    assert compare([contest(values)], margin=5)["verdict"].item() == "equivalent"


def test_images_make_an_interval_wider_by_what_they_do_alone():
    rng = np.random.default_rng(13)
    values = rng.normal(0.7, 0.05, (100, 2))
    influence = rng.normal(0, 0.01, (300, 2))
    (found,), _ = contests(made_rows(values), lambda cells: made_images(influence, episodes=100))
    d = influence[:, 0] - influence[:, 1]
    episodes, both = (found.differences([0], [1], over) for over in (EPISODES, EPISODES_AND_IMAGES))
    assert both.variance == pytest.approx(episodes.variance + d @ d + (d**2).max())
    opposite = made_images(influence, episodes=100).assign(odd=lambda i: i["sum"])  # all in one half: nothing in common
    (apart,), _ = contests(made_rows(values), lambda cells: opposite)
    assert apart.differences([0], [1], EPISODES_AND_IMAGES).variance == pytest.approx(episodes.variance + 1 / 300**2)
    line = compare([found]).iloc[0]
    assert (line["over"], line["test"], line["p"]) == (EPISODES_AND_IMAGES, "crossed t", line["p_images"])


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, math.nan, 0.01]])
def test_holm_is_statsmodels(p):
    p = np.array(p)
    known = np.isfinite(p)
    assert holm(p)[known] == pytest.approx(multipletests(p[known], method="holm")[1])
    assert np.isnan(holm(p)[~known]).all()


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_ranks_leave_open_what_is_not_told_apart():
    rng = np.random.default_rng(14)
    values = rng.normal([0.5, 0.8, 0.7, 0.702], 0.03, (200, 4))
    table = rank([contest(values)]).set_index("name")
    assert table[["rank", "low", "high"]].loc[["a", "b"]].to_numpy().tolist() == [[4, 4, 4], [1, 1, 1]]
    assert table[["low", "high"]].loc[["c", "d"]].to_numpy().tolist() == [[2, 3], [2, 3]]
    losses = rank([contest(values, setting={"metric": "log_loss"})]).set_index("name")
    assert losses.loc["a", ["rank", "low", "high"]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("n", [1, 20])
def test_of_two_the_ranks_are_open_just_where_the_pair_is_undecided(n):
    """Both go by the same exact test: McNemar's of one split, sign flips of episodes. A t test would say otherwise of some."""
    seen, differs = set(), 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        if n == 1:
            right = rng.random((25, 2)) < [0.9, rng.uniform(0.3, 0.9)]
            values = right.mean(axis=0, keepdims=True)
            influence = (right - values) / 25 * math.sqrt(25 / 24)
            found = contest(values, queries=25, halves=influence[None], n_images=25)
        else:
            found = contest(rng.normal([0.5, 0.5 + 0.03 * rng.random()], 0.03, (n, 2)) ** 2)
        sure = bool(compare([found], margin=1e-9)["p_holm"].item() <= 0.05)
        ranks = rank([found])
        assert [line.low == line.high for line in ranks.itertuples()] == [sure, sure]
        seen.add(sure)
        differs += bool(found.differences([0], [1], found.over).p()[0] <= 0.05) != sure
    assert seen == {True, False}
    assert differs > 0 or n > 1  # of 20 episodes the two are nearly alike


def test_ranks_over_targets_add_up_their_errors():
    rng = np.random.default_rng(15)
    some = [contest(rng.normal([0.5, 0.6], 0.1, (50, 2)), setting={"target": name}) for name in "tu"]
    table = rank(some)
    over = table[table["target"] == "all targets"].set_index("name")
    assert over.loc["b", "mean"] == pytest.approx(100 * np.mean([c.values[:, 1].mean() for c in some]))
    assert over.loc["b", ["rank", "low", "high"]].tolist() == [1, 1, 1]


# Demšar 2006, table 6: AUC of C4.5, with m, with cf, with both; .975 twice in a line has ranks 2 and 3 there.
DEMSAR = """.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898
.936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1  .940 .962 .965 .962
.619 .666 .614 .669  .972 .981 .9751 .975  .957 .978 .946 .970"""


def test_critical_differences_are_demsars():
    scores = np.array(DEMSAR.split(), float).reshape(14, 4)
    found = critical_difference({}, ["C4.5", "m", "cf", "m+cf"], scores)
    ranks = found.ranks.set_index("name")["mean_rank"]
    assert ranks[["C4.5", "m", "cf", "m+cf"]].tolist() == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.difference == pytest.approx(1.25, abs=5e-3)
    assert not found.pairs["nemenyi"].any()
    chi2, p = stats.friedmanchisquare(*scores.T)
    assert found.friedman_p == pytest.approx(p)
    assert found.iman_davenport_p == pytest.approx(stats.f.sf(13 * chi2 / (14 * 3 - chi2), 3, 39))
    alone = found.pairs.set_index(["a", "b"])["p"]
    assert alone["m", "C4.5"] == pytest.approx(stats.wilcoxon(scores[:, 1], scores[:, 0], zero_method="zsplit").pvalue)


@pytest.mark.parametrize("n", [8, 10, 30, 60])
def test_wilcoxons_tests_of_all_pairs_are_scipys_of_each(n):
    d = np.random.default_rng(n).normal(0.3, 1, (n, 6))
    d[0, 0], d[1, 1], d[:, 2] = 0.0, -d[0, 1], 0.0  # a zero, a tie, nothing at all
    theirs = [stats.wilcoxon(c, zero_method="zsplit").pvalue if c.any() else 1.0 for c in d.T]
    assert ranking._wilcoxon_p(d) == pytest.approx(theirs, rel=1e-12)


def test_groups_are_runs_of_which_no_two_are_apart():
    rng = np.random.default_rng(16)
    scores = np.array([0.9, 0.9, 0.6, 0.3, 0.3]) + rng.normal(0, 0.01, (30, 5))
    found = critical_difference({}, list("abcde"), scores)
    assert [set(names) for names in found.groups["names"]] == [{"a", "b"}, {"d", "e"}]


# -- crossings ---------------------------------------------------------------------------------------------------------


def curve(found: list, index: int = 0) -> tuple:
    return tuple(found[index][name] for name in ("crossing", "low", "high", "below", "above"))


def test_a_crossing_lies_where_the_interval_contains_zero():
    shots, mean = [1, 10, 100], np.array([0.10, 0.0, -0.10])
    found = stretches(shots, mean, np.eye(3) * 0.01**2, 1e6)
    crossing, low, high, below, above = curve(found)
    assert (crossing, below, above) == (pytest.approx(10), 1, -1)
    for bound, k in ((low, 0), (high, 1)):
        u = np.log10(bound) - k
        value, se = (1 - u) * mean[k] + u * mean[k + 1], 0.01 * math.hypot(u, 1 - u)
        assert abs(value) == pytest.approx(1.95996 * se, rel=1e-4)
    assert low * high == pytest.approx(100)


def test_no_crossing_open_and_undecided():
    shots, tight = [1, 10, 100], np.eye(3) * 0.01**2
    assert np.isnan(curve(stretches(shots, np.array([0.1, 0.2, 0.1]), tight, 99))[:3]).all()
    crossing, low, high, below, above = curve(stretches(shots, np.array([0.1, 0.05, 0.01]), tight, 99))
    assert (math.isnan(crossing), below, above, high) == (True, 1, 0, math.inf)
    assert 10 < low < 100
    assert curve(stretches(shots, np.array([0.01, 0.0, 0.01]), tight, 99))[1:] == (0.0, math.inf, 0, 0)
    two = stretches(shots, np.array([0.1, -0.1, 0.1]), tight, 99)
    assert [curve(two, i)[3:] for i in (0, 1)] == [(1, -1), (-1, 1)]


def test_crossings_of_rows():
    rng = np.random.default_rng(17)
    frames, luck = [], rng.normal(0, 0.02, (300, 1))
    for shots, gap in ((1, 0.10), (5, 0.04), (20, -0.02), (100, -0.08)):
        values = np.array([0.6 + gap, 0.6]) + luck + rng.normal(0, 0.02, (300, 2))
        frames.append(made_rows(values, shots=str(shots), episodes_hash=f"h{shots}"))
    found, _ = contests(pd.concat(frames), between=("backbone", "shots"))
    line = crossings(found).iloc[0]
    assert (line["verdict"], line["below"], line["above"]) == ("crossing", "a", "b")
    assert 5 < line["low"] < line["crossing"] < line["high"] < 20
    assert line["answer"].startswith("below ")
    assert line["answer"].endswith("take b")


# -- tables ------------------------------------------------------------------------------------------------------------


def test_tables_are_bold_by_significance():
    rng = np.random.default_rng(18)
    values = rng.normal([0.7, 0.701, 0.5], 0.03, (100, 3))
    found, _ = contests(made_rows(values, ["a_1", "b&c", "d"]))
    cells = cell_table(found, compare(found))
    assert cells["beaten"].tolist() == [False, False, True]
    page, paper = markdown(cells), latex(cells)
    assert "| a\\_1 | b&c | d |" in page
    assert page.count("**") == 4
    assert r"a\_1 & b\&c & d \\" in paper
    assert paper.count(r"\textbf{") == 2
    assert r"\toprule" in paper
    assert r"95 \% intervals over episodes" in paper


@pytest.mark.parametrize("episodes", [0, 40])
def test_cells_have_the_intervals_of_summarise(episodes):
    rng = np.random.default_rng(20)
    influence = rng.normal(0, 0.01, (60, 2))
    if episodes:
        rows = made_rows(rng.normal(0.9, 0.02, (episodes, 2)))
        images = made_images(influence, episodes=episodes)
    else:
        rows = made_rows(np.array([[0.9, 0.95]]), episode=NO_EPISODE, shots="full")
        images = made_images(influence, shots="full")
    found, _ = contests(rows, lambda cells: images)
    got = found[0].intervals()
    theirs = summarise(rows, images=images)
    if episodes:
        assert np.allclose(got, theirs[["low_images", "high_images"]].to_numpy().T)
    else:
        assert got[0][0] < 0.9 < got[1][0]
    assert np.allclose(contest(found[0].values).intervals(), theirs[["low", "high"]].to_numpy().T, equal_nan=True)


def test_names_of_users_do_no_harm_in_tables():
    values = np.random.default_rng(19).random((10, 2))
    found, _ = contests(made_rows(values, ["<b>|x", r"\input{y}"]))
    cells = cell_table(found, compare(found))
    assert r"\<b>\|x" in markdown(cells)
    assert r"\input{y}" not in latex(cells)
