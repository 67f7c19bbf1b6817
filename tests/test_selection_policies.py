"""What is believed is updated as a Student process is, policies run what they say they run, and their formulas are right."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats
from sklearn.gaussian_process.kernels import Matern

from fastxfer.errors import UsageError
from fastxfer.selection import POLICIES, policy_named
from fastxfer.selection.belief import Belief, expected_best, expected_excess
from fastxfer.selection.bound import UpperBound
from fastxfer.selection.frame import Oracle, Random
from fastxfer.selection.gradient import KnowledgeGradient, _comparisons
from fastxfer.selection.halving import Halving, affordable, runs_needed
from fastxfer.selection.improvement import ExpectedImprovement
from fastxfer.selection.kernels import Near, Same, Slope
from fastxfer.selection.model import Effects, _most_probable, believe, learn
from fastxfer.selection.noise import Noise, components, learn_noise
from fastxfer.selection.plan import _gains
from fastxfer.selection.policy import Policy, Situation, duels
from fastxfer.selection.top import TopK


def belief_of(mean: list[float], sd: list[float], *, noise: float = 1.0, seeds: int = 3, dof: float = 1e6) -> Belief:
    """One contest of independent values, each with so many runs."""
    n = len(mean)
    of, seed = np.repeat(np.arange(n), seeds), np.tile(np.arange(seeds), n)
    values = np.diag(np.square(np.array(sd, float)))
    runs = values[np.ix_(of, of)] + noise**2 * np.eye(len(of))
    joint = np.block([[values, values[:, of]], [values[of], runs]])
    means = np.array(mean, float)
    made = np.zeros(len(of), bool)
    return Belief(np.zeros(n, np.int64), of, seed, made, np.concatenate([means, means[of]]), joint, dof)


def situation(belief: Belief, cost: list[float] | None = None) -> Situation:
    points = belief.values[:, None] + [0.0, -1.0, 1.0]
    return Situation(belief, np.array(cost or [1.0] * belief.n), points, [f"b{k}" for k in range(belief.n)])


def wanted(policy: Policy, belief: Belief, cost: list[float] | None = None) -> list[int]:
    return [c.configuration for c in policy.rank(situation(belief, cost)) if c.wanted]


def test_a_run_moves_its_value_as_two_normals_say() -> None:
    before = belief_of([50.0, 40.0], [2.0, 3.0], noise=1.5)
    after = before.observe([0], [53.0])
    weight = 4 / (4 + 1.5**2)
    assert after.values == pytest.approx([50 + weight * 3, 40])
    assert after.covariance[0, 0] == pytest.approx(4 * (1 - weight))
    assert after.runs_made().tolist() == [1, 0]
    assert [list(runs) for runs in after.left()] == [[1, 2], [3, 4, 5]]
    # Two at once are two after another.
    both = before.observe([0, 1], [53.0, 49.0])
    one_by_one = after.observe([1], [49.0])
    np.testing.assert_allclose(both.mean, one_by_one.mean, atol=1e-6)
    assert both.misfit == pytest.approx(one_by_one.misfit)


def test_what_surprises_widens_and_what_does_not_narrows() -> None:
    sure = belief_of([50.0, 50.0], [1.0, 1.0], dof=5.0)
    assert sure.scale == pytest.approx(np.sqrt(3 / 5))  # of a t whose variance is the covariance
    assert sure.observe([0], [60.0]).scale > 1
    assert sure.observe([0], [50.1]).scale < sure.scale


@pytest.mark.parametrize(("mean", "scale", "dof"), [(-1.0, 2.0, 4.0), (0.5, 0.7, 30.0), (-3.0, 1.0, 3.0)])
def test_expected_excess_is_the_integral(mean: float, scale: float, dof: float) -> None:
    exact, _ = integrate.quad(lambda x: x * stats.t.pdf((x - mean) / scale, dof) / scale, 0, np.inf)
    assert expected_excess(np.array([mean]), np.array([scale]), dof)[0] == pytest.approx(exact, rel=1e-6)


def test_expected_excess_of_what_is_certain() -> None:
    assert expected_excess(np.array([2.0, -2.0]), np.zeros(2), 5.0).tolist() == [2.0, 0.0]


def test_expected_best_is_that_of_two_when_two_count() -> None:
    # E max(a + bZ) of two lines is the excess of their difference.
    mean, reach = np.array([1.0, 0.0, -50.0]), np.array([[0.2, 1.5, 0.0]])
    exact = expected_excess(np.array([-1.0]), np.array([1.3]), 30.0)[0]
    assert expected_best(mean, reach, 30.0)[0] == pytest.approx(exact, rel=0.03)


def test_improvement_runs_the_favourite_and_its_likeliest_rival_and_no_one_hopeless() -> None:
    belief = belief_of([60.0, 58.0, 40.0], [2.0, 2.0, 2.0])
    first = ExpectedImprovement().rank(situation(belief))
    assert (first[0].configuration, first[1].wanted) == (0, True)
    rival = next(d for d in duels(belief) if d.rival == 1)
    assert first[0].gain == pytest.approx(rival.gain)
    assert "b1, -2.0 ± 2.8 points against it, is expected to gain 0.40" in first[0].reason
    after = belief.observe([0], [60.0])  # the favourite has one run: now the rival
    assert ExpectedImprovement().rank(situation(after))[0].configuration == 1
    hopeless = next(c for c in ExpectedImprovement().rank(situation(after)) if c.configuration == 2)
    assert hopeless.gain < 1e-6


def test_the_upper_bound_prefers_the_unknown() -> None:
    belief = belief_of([60.0, 58.0, 57.0], [0.1, 0.5, 3.0]).observe([0], [60.0])
    assert wanted(UpperBound(), belief)[0] == 2


def test_the_upper_bound_is_that_of_95_percent() -> None:
    """Of two rivals the further, less certain one leads by its 97.5th percentile, and would not by its 82nd."""
    belief = belief_of([60.0, 58.8, 57.5], [0.001, 0.9, 1.6]).observe([0], [60.0])
    assert wanted(UpperBound(), belief)[0] == 2
    assert wanted(UpperBound(level=0.6), belief)[0] == 1


def test_policies_say_what_they_do() -> None:
    assert "of a 95 % interval" in UpperBound().words
    assert "all of a contest begin" in Halving().words
    assert "the best 3 of a contest begin" in Halving(begin=3).words


def test_the_knowledge_gradient_goes_by_cost() -> None:
    belief = belief_of([60.0, 59.0, 59.0], [1.0, 2.0, 2.0]).observe([0, 1, 2], [60.0, 60.0, 60.0])
    assert wanted(KnowledgeGradient(), belief, [1.0, 1.0, 5.0])[0] == 1
    assert wanted(KnowledgeGradient(), belief, [1.0, 5.0, 1.0])[0] == 2
    by_name = {c.configuration: c for c in KnowledgeGradient().rank(situation(belief))}
    assert 0 < by_name[1].gain < 2
    assert "to compare it with b0: worth" in by_name[1].reason


def test_noise_that_no_single_run_overcomes_is_overcome_by_several() -> None:
    """A run of noise 8 can't turn a lead of 3; three of them can: what counts is the value of a comparison, not of a run."""
    belief = belief_of([60.0, 57.0], [0.0, 4.0], noise=8.0)
    choices = KnowledgeGradient().rank(situation(belief))
    assert choices[0].gain > 0.1


def test_runs_of_one_seed_are_compared_by_their_difference_in_which_shared_noise_falls_out() -> None:
    """Two values of sd 1: who knows the better gains sd(difference)·φ(0), which one pair of runs tells, however noisy its seed."""
    belief = belief_of([60.0, 60.0], [1.0, 1.0], noise=0.1)
    shared = np.zeros_like(belief.covariance)
    shared[2:, 2:] = 100.0 * (belief.seed[:, None] == belief.seed)
    noisy = Belief(belief.contest, belief.of, belief.seed, belief.made, belief.mean, belief.covariance + shared, 1e6)
    first = KnowledgeGradient().rank(situation(noisy))[0]
    assert first.gain == pytest.approx(np.sqrt(2) * stats.norm.pdf(0), rel=0.02)
    assert "2 runs to compare it with" in first.reason


def test_comparisons_are_the_rivals_next_runs_alone_and_beside_the_favourites_of_those_seeds() -> None:
    def compared(belief: Belief) -> list[tuple[list[int], list[int], tuple[int, ...]]]:
        found = _comparisons(belief, belief.left(), rival=1, favourite=0)
        assert all((c.rival, c.favourite) == (1, 0) for c in found)
        return [(c.mine.tolist(), c.theirs.tolist(), c.due) for c in found]

    none = belief_of([60.0, 57.0], [1.0, 1.0], seeds=6)  # runs 0 to 5 are the favourite's, 6 to 11 the rival's
    of_each = [([6 + s for s in range(n)], list(range(n))) for n in (1, 2, 3, 5)]
    assert compared(none) == [x for mine, theirs in of_each for x in ((mine, [], (1,)), (mine, theirs, (0, 1)))]
    few = belief_of([60.0, 57.0], [1.0, 1.0], seeds=3)
    assert compared(few.observe([0], [60.0])) == [
        ([3], [], (1,)),  # the favourite's run of that seed is made
        ([3, 4], [], (1,)),
        ([3, 4], [1], (1, 0)),
        ([3, 4, 5], [], (1,)),
        ([3, 4, 5], [1, 2], (1, 0)),
    ]
    assert compared(few.observe([3, 4, 5], [57.0] * 3)) == [([], list(range(n)), (0,)) for n in (1, 2, 3)]
    assert compared(few.observe(range(6), [60.0] * 3 + [57.0] * 3)) == []


@pytest.mark.parametrize("sd", [0.01, 1.0])
def test_a_value_less_anothers_has_the_difference_of_means_and_the_root_of_its_variance(sd: float) -> None:
    belief = belief_of([60.0, 61.0, 59.0], [sd, 2 * sd, sd])
    mean, scale = belief.against(np.array([1, 1, 1]))
    np.testing.assert_allclose(mean, [-1, 0, -2])
    np.testing.assert_allclose(scale, belief.scale * sd * np.sqrt([5, 0, 5]))


def test_halving_lets_the_better_half_go_on() -> None:
    belief = belief_of([50.0, 51.0, 52.0, 53.0], [5.0] * 4, noise=0.1, seeds=4)
    assert sorted(wanted(Halving(), belief)) == [0, 1, 2, 3]
    belief = belief.observe([0, 4, 8, 12], [59.0, 51.0, 58.0, 50.0])
    assert sorted(wanted(Halving(), belief)) == [0, 2]
    belief = belief.observe([1, 9], [59.0, 58.0])
    assert wanted(Halving(), belief) == []  # one is left, and it has run
    assert wanted(Halving(begin=2), belief_of([50.0, 51.0, 52.0, 53.0], [5.0] * 4)) == [3, 2]
    assert [runs_needed(n) for n in (2, 4, 14)] == [2, 6, 37]
    assert [affordable(runs) for runs in (2, 5, 6, 13.9)] == [2, 3, 4, 6]


def test_halving_runs_each_round_to_its_end() -> None:
    """Of eight, four go on to a second run and two to a fourth: as many runs as are said to be needed."""
    belief = belief_of([50.0 + k for k in range(8)], [5.0] * 8, noise=0.1, seeds=6)
    begun = belief.observe([0, 6], [50.0, 51.0])
    assert sorted(wanted(Halving(), begun)) == [2, 3, 4, 5, 6, 7]  # who has run waits for the others
    while due := wanted(Halving(), belief):
        belief = belief.observe([belief.left()[due[0]][0]], [50.0 + due[0]])
    assert belief.runs_made().tolist() == [1, 1, 1, 1, 2, 2, 4, 4]
    assert belief.runs_made().sum() == runs_needed(8)


def test_a_favourite_is_worth_what_its_closest_rival_may_gain() -> None:
    belief = belief_of([60.0, 59.0, 50.0], [2.0] * 3)
    near, far = duels(belief)
    assert near.gain > far.gain > 0
    assert _gains(belief).tolist() == [near.gain, near.gain, far.gain]
    assert _gains(belief_of([59.0, 50.0, 60.0], [2.0] * 3)).tolist() == [near.gain, far.gain, near.gain]


def test_halving_begins_with_the_best_probed() -> None:
    belief = belief_of([50.0, 51.0, 52.0], [5.0] * 3)
    probed = np.array([[70.0, 40.0, 99.0], [60.0, 59.0, 61.0], [65.0, 64.0, 66.0]])
    begun = Halving(begin=2).rank(Situation(belief, np.ones(3), probed, ["a", "b", "c"]))
    assert [c.configuration for c in begun if c.wanted] == [0, 2]
    assert begun[0].reason == "among 2 of 2 left, of which each gets 1 run"


def test_top_k_is_by_what_was_probed() -> None:
    belief = belief_of([60.0, 59.5, 40.0], [1.0] * 3)
    choices = TopK().rank(situation(belief))
    assert [(c.configuration, c.wanted) for c in choices] == [(0, True), (1, True), (2, False)]


def test_the_frame_draws_by_its_seed_and_knows_the_truth() -> None:
    belief = belief_of([1.0, 2.0, 3.0], [1.0] * 3)
    orders = {tuple(wanted(Random(seed), belief)) for seed in range(20)}
    assert len(orders) == 6
    assert wanted(Random(3), belief) == wanted(Random(3), belief)
    oracle = Oracle(np.array([5.0, 9.0, 1.0]))
    assert wanted(oracle, belief) == [1]
    assert oracle.choose(belief).tolist() == [1]


def test_no_policy_wants_a_run_where_none_is_left() -> None:
    belief = belief_of([1.0, 2.0], [1.0, 1.0], seeds=1).observe([0, 1], [1.0, 2.0])
    for name in POLICIES:
        policy = policy_named(name)
        assert [k for k in wanted(policy, belief) if policy.again] == [], name


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown policy 'halvin'. Did you mean: halving"):
        policy_named("halvin")


# -- the model -----------------------------------------------------------------------------------------------------------


def test_kernels_are_what_they_say_and_their_gradients_too() -> None:
    X = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 3.0], [1.0, 1.0, 5.0]])
    assert Same((0,))(X).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert Same((0, 1))(X).tolist() == np.eye(3).tolist()
    assert Slope(2)(X)[0].tolist() == [4, 6, 10]
    for other in (Same((0,)), Slope(2), Near(2)):
        assert other.diag(X).tolist() == np.diag(other(X)).tolist()
        assert not other.is_stationary()
    kernel = Near(2, 1.5)
    np.testing.assert_allclose(kernel(X), Matern(1.5, nu=1.5)(X[:, [2]]))
    K, slope = kernel(X, eval_gradient=True)
    step = 1e-6
    more = Near(2, 1.5 * np.exp(step))(X)
    np.testing.assert_allclose(slope[:, :, 0], (more - K) / step, atol=1e-5)
    assert np.diag(K) == pytest.approx(kernel.diag(X))


EFFECTS = Effects(level=("target",), groups=(("backbone",),), own=("target", "backbone"))


def results(n_targets: int, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    """Ten backbones on targets of very different levels; a backbone's effect is the same everywhere."""
    of = rng.normal(0, effect, 10)
    rows = [
        {"target": f"t{t}", "backbone": f"b{b}", "value": 30 + 8 * t + of[b] + rng.normal(0, 0.5), "variance": 0.01}
        for t in range(n_targets)
        for b in range(10)
    ]
    return pd.DataFrame(rows).assign(effect=np.tile(of, n_targets))


def test_what_backbones_do_elsewhere_foretells_a_new_target() -> None:
    seen = results(5, 4.0, np.random.default_rng(0))
    new = seen[:10].assign(target="new")
    foretold, covariance = learn(EFFECTS, seen).foretell(new)
    assert np.corrcoef(foretold, new["effect"])[0, 1] > 0.98
    own = learn(EFFECTS, seen).process.kernel_.get_params()["k2__k1__constant_value"]
    assert np.sqrt(own) == pytest.approx(0.5, rel=0.4)
    difference = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert np.sqrt(difference) < 2  # the level, of which nothing is known, is out of it


@pytest.mark.parametrize(
    ("n", "asked", "fitted"), [(7, True, False), (8, True, True), (8, False, False), (0, True, False)]
)
def test_variances_are_learned_from_eight_results_on_if_asked(n: int, asked: bool, fitted: bool) -> None:
    seen = results(1, 4.0, np.random.default_rng(0))
    model = learn(EFFECTS, seen[:n], fit=asked)
    variances = getattr(model.process, "kernel_", model.process.kernel)
    assert np.array_equal(variances.theta, EFFECTS.kernel().theta) != fitted
    mean, covariance = model.forgetful().foretell(seen)
    assert mean.tolist() == [0.0] * 10
    np.testing.assert_allclose(covariance, variances(model._encode(seen)))
    if not n:
        assert model.foretell(seen)[0].tolist() == [50.0] * 10  # of percentages nothing is known but what they are


def test_what_was_seen_is_foretold_in_its_own_points() -> None:
    seen = results(5, 4.0, np.random.default_rng(0))
    foretold, _ = learn(EFFECTS, seen).foretell(seen)
    np.testing.assert_allclose(foretold, seen["value"], atol=1.0)


def test_variances_are_most_probable_under_their_prior() -> None:
    """With a likelihood that is a normal of the logarithms, the mode is the weighted mean of its centre and the prior's."""
    centre, start = np.array([1.0, -3.0]), np.array([0.0, 0.5])

    def objective(theta: np.ndarray, eval_gradient: bool) -> tuple[float, np.ndarray]:
        assert eval_gradient
        return 0.5 * float(((theta - centre) ** 2).sum()), theta - centre

    mode, least = _most_probable(objective, start, np.array([[-9.0, 9.0]] * 2))
    expected = (centre + start / 4) / (1 + 1 / 4)  # the prior's variance is 2 squared
    assert mode == pytest.approx(expected, abs=1e-4)
    assert least == pytest.approx(0.5 * ((expected - centre) ** 2).sum() + ((expected - start) ** 2).sum() / 8)


def test_one_configuration_and_no_result_are_enough() -> None:
    none = results(1, 1.0, np.random.default_rng(0))[:0]
    table = pd.DataFrame({"target": ["t"], "backbone": ["b"], "images": [10.0], "shots": ["full"]})
    belief = believe(learn(EFFECTS, none), table, Noise(), seeds=2)
    assert belief.n == 1
    assert len(belief.of) == 2


def test_runs_vary_together_with_what_has_their_value_and_their_seed() -> None:
    """Of two backbones on two targets, two seeds each: the value's covariance, what a contest's seed shares, and their own."""
    seen = results(3, 4.0, np.random.default_rng(0))
    table = pd.DataFrame(
        {
            "target": ["new", "t0", "new", "t0"],
            "backbone": ["b0", "b0", "b1", "b1"],
            "images": [5.0, 50.0] * 2,
            "shots": "1",
        }
    )
    noise = Noise(np.log(3.0), -0.4, (("1", 0.7),))
    model = learn(EFFECTS, seen)
    belief = believe(model, table, noise, seeds=2, dof=7.0)
    mean, values = model.foretell(table)
    own = 3.0 * table["images"] ** -0.4
    assert (belief.of.tolist(), belief.seed.tolist()) == ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4)
    assert [members.tolist() for members in belief.contests()] in ([[0, 2], [1, 3]], [[1, 3], [0, 2]])
    np.testing.assert_allclose(belief.mean, [*mean, *np.repeat(mean, 2)])
    for a, (i, s) in enumerate(zip(belief.of, belief.seed, strict=True)):
        np.testing.assert_allclose(belief.covariance[4 + a, :4], values[i])
        for b, (k, t) in enumerate(zip(belief.of, belief.seed, strict=True)):
            shared = (0.7 * own[i]) ** 2 if s == t and table["target"][i] == table["target"][k] else 0.0
            expected = values[i, k] + shared + (own[i] ** 2 if a == b else 0.0)
            assert belief.covariance[4 + a, 4 + b] == pytest.approx(expected)
    assert belief.dof == 7.0
    assert believe(model, table, noise, dof=1.0).dof == 3.0  # below, a t's variance is none


def test_noise_where_nothing_is_known_is_two_points_at_ten_images_and_falls() -> None:
    images = np.array([10.0, 1000.0, 1e9])
    np.testing.assert_allclose(Noise().own(images), [2.0, 2.0 * 100**-0.35, 0.05])
    np.testing.assert_allclose(
        Noise(shared=(("5", 0.5),)).common(images, pd.Series(["1", "5", "full"])),
        [2.0, 0.5 * 2.0 * 100**-0.35, 0.0],
    )


def test_noise_of_a_small_table_is_that_of_the_textbook() -> None:
    """Two configurations by three seeds, by the mean squares of a two-way table."""
    values = {(0, 0): 0.0, (0, 1): 1.0, (0, 2): 3.0, (1, 0): 0.0, (1, 1): 2.0, (1, 2): 2.0}
    rows = [
        {"target": "a", "shots": "1", "configuration": k, "seed": s, "images": 10.0, "value": v}
        for (k, s), v in values.items()
    ]
    table = np.array([[0.0, 1, 3], [0, 2, 2]])
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    within = (rest**2).sum() / 2
    between = 2 * ((table.mean(0) - table.mean()) ** 2).sum() / 2
    parts = components(pd.DataFrame(rows)).iloc[0]
    assert parts["own"] == pytest.approx(within)
    assert parts["shared"] == pytest.approx((between - within) / 2)


def test_how_noise_falls_with_the_images_is_learnt_inside_targets() -> None:
    """Own deviations c / √images, with another c in each target: the slope is that, the intercept the mean of both log c."""
    pattern = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])  # mean squares within: 2
    rows = [
        {
            "target": t,
            "shots": str(n),
            "configuration": k,
            "seed": s,
            "images": float(n),
            "value": c * n**-0.5 * pattern[k, s],
        }
        for t, c in (("a", 3.0), ("b", 12.0))
        for n in (10, 100, 1000)
        for k in range(2)
        for s in range(3)
    ]
    learnt = learn_noise(pd.DataFrame(rows))
    assert learnt.slope == pytest.approx(-0.5)
    np.testing.assert_allclose(learnt.own(np.array([4.0, 400.0])), np.sqrt(2) * 6 / np.array([2, 20]))
    assert learnt.intercept == pytest.approx(np.log(np.sqrt(2) * np.sqrt(3.0 * 12.0)))


def test_noise_is_taken_apart_into_own_and_shared() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for target, (images, own, shared) in {"a": (10.0, 2.0, 4.0), "b": (1000.0, 0.5, 0.0)}.items():
        for shots in ("1",):
            common = rng.normal(0, shared, 200)
            rows += [
                {"target": target, "shots": shots, "configuration": k, "seed": s, "images": images,
                 "value": 10 * k + common[s] + rng.normal(0, own)}
                for k in range(8) for s in range(200)
            ]  # fmt: skip
    parts = components(pd.DataFrame(rows)).set_index("target")
    assert np.sqrt(parts.loc["a", ["own", "shared"]].to_numpy(float)) == pytest.approx([2.0, 4.0], rel=0.15)
    assert np.sqrt(parts.loc["b", "own"]) == pytest.approx(0.5, rel=0.1)
    learnt = learn_noise(pd.DataFrame(rows))
    assert dict(learnt.shared)["1"] > 1
    assert learn_noise(pd.DataFrame(rows)[:0]) == Noise()  # nothing known: the default
