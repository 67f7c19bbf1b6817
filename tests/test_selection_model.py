"""What the model of results learns and foretells, how runs vary about it, and what policies are told of both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process.kernels import Matern

from fastxfer.selection.kernels import Near, Same, Slope
from fastxfer.selection.model import Effects, _most_probable, believe, learn
from fastxfer.selection.noise import Noise, components, learn_noise


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


def contest(target: str, images: float, own: float, shared: float, seeds: int = 3) -> list[dict[str, object]]:
    """Two configurations whose runs have exactly these variance components."""
    apart = {2: np.array([0.5, -0.5]), 3: np.array([1, -1, 0]) / np.sqrt(2)}[seeds]
    alike = np.array([1.0, -1.0, 0.0][:seeds]) * np.sqrt((2 * shared**2 + own**2) / (4 if seeds == 2 else 2))
    rows = [50 + alike + own * apart, 60 + alike - own * apart]
    at = {"target": target, "shots": f"{images:g}", "images": images}
    return [at | {"configuration": k, "seed": s, "value": v} for k, r in enumerate(rows) for s, v in enumerate(r)]


def test_what_seeds_share_is_learnt_beside_what_they_do_not_and_tables_that_tell_nothing_are_left_out() -> None:
    two = contest("a", 5, 3.0, 1.5, seeds=2) + contest("a", 5 * np.exp(1.5), 3 * np.exp(-0.6), 1.0, seeds=3)
    nothing = [contest("b", 9, 3.0, 1.5)[0], *contest("c", 9, 3.0, 1.5)[::3], *contest("d", 9, 3.0, 1.5)[:3]]
    still = contest("e", 9, 0.04, 9.0)  # what hardly varies says little of noise, and its logarithm much
    for rows in (two, two + nothing + still):
        parts = components(pd.DataFrame(rows)).set_index(["target", "images"])
        assert parts.loc[("a", 5.0), ["own", "shared"]].tolist() == pytest.approx([9.0, 2.25])
        learnt = learn_noise(pd.DataFrame(rows))
        assert learnt.slope == pytest.approx(-0.4)
        assert learnt.intercept == pytest.approx(np.log(3) + 0.4 * np.log(5))
        assert dict(learnt.shared) == pytest.approx({"5": 0.5, "22.4084": np.exp(0.6) / 3})
    assert components(pd.DataFrame(nothing))[["own", "shared"]].isna().all(axis=None)
    apart = contest("f", 9, 3.0, 0.0)  # seeds that do the same to nobody: less than chance would have it
    for line, value in zip(apart, np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]).ravel(), strict=True):
        line["value"] = value
    assert components(pd.DataFrame(apart)).loc[0, ["own", "shared"]].tolist() == [2.0, 0.0]
    one = learn_noise(pd.DataFrame(contest("a", 20, 3.0, 1.5)))
    assert (one.slope, one.own(np.array([20.0]))[0]) == (Noise().slope, pytest.approx(3.0))
