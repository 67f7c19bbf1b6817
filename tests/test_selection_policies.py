"""What is believed is updated as a Student process is, policies run what they say they run, and their formulas are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from fastxfer.errors import UsageError
from fastxfer.selection import POLICIES, policy_named
from fastxfer.selection.belief import Belief, expected_best, expected_excess
from fastxfer.selection.bound import UpperBound
from fastxfer.selection.frame import Oracle, Random
from fastxfer.selection.gradient import KnowledgeGradient, _comparisons
from fastxfer.selection.halving import Halving, affordable, runs_needed
from fastxfer.selection.improvement import ExpectedImprovement
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


def test_halving_goes_on_where_least_was_run() -> None:
    """Of two contests one has had its first round: the other's comes before its second."""
    one = belief_of([50.0, 51.0, 52.0, 53.0, 54.0, 55.0], [5.0] * 6, noise=0.1)
    two = Belief(np.array([0, 0, 0, 1, 1, 1]), one.of, one.seed, one.made, one.mean, one.covariance, 1e6)
    begun = two.observe([0, 3, 6], [50.0, 51.0, 52.0])
    assert wanted(Halving(), begun) == [5, 4, 3, 2, 1]


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
