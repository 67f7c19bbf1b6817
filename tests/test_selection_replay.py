"""Replays of policies on fine-tunings that have all been made: the paper's, and rows of our own kind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_selection import row, table, tuned

from benchmarks import selection as benchmark
from benchmarks.__main__ import main
from benchmarks.printing import print_selection
from fastxfer.paper import paper_runs
from fastxfer.selection.frame import Oracle, Random
from fastxfer.selection.improvement import ExpectedImprovement
from fastxfer.selection.noise import Noise
from fastxfer.selection.paper import configurations
from fastxfer.selection.replay import (
    Game,
    Played,
    _foretold,
    beyond_noise,
    drawn,
    from_nothing,
    leave_one_out,
    of_rows,
    play,
    shuffled,
    told_apart,
    with_variance,
)
from fastxfer.selection.top import TopK

PAPER, RUNS = configurations()
TARGET = "tuberculosis_full"


@pytest.fixture(scope="module")
def game() -> Game:
    """Of the paper's noisiest kind: 75 configurations, 375 runs, after the results of the other chest targets."""
    here = PAPER[PAPER["target"] == TARGET]
    return shuffled(here, RUNS, leave_one_out(PAPER, RUNS, TARGET, fit=False), seed=0)


def test_the_papers_configurations_and_what_they_cost() -> None:
    assert len(PAPER) == 289
    assert PAPER["seeds"].sum() == len(RUNS) == 1440
    assert not PAPER.isna().any().any()
    assert (PAPER["cost"] * PAPER["seeds"]).sum() == pytest.approx(1113, abs=1)  # GPU-hours, as docs/finetune.md has it
    # What its tables say of sources and targets, spelled out once more.
    millions = {"imagenet1k": 1.28, "imagenet21k": 14.2, "chexpert": 0.191, "mimic": 0.238, "nih": 0.0865, "padchest": 0.145,
                "chexpert_mimic": 0.429, "chexpert_mimic_nih": 0.515, "chexpert_mimic_nih_padchest": 0.69}  # fmt: skip
    assert set(PAPER["source"]) <= set(millions)
    np.testing.assert_allclose(10 ** PAPER["data"], PAPER["source"].map(millions), rtol=5e-3)
    np.testing.assert_allclose(np.sort(RUNS["value"]), np.sort(100 * paper_runs()["value"]))
    told = pd.DataFrame(
        {
            "padchest": (26, 37_387, "chest"),
            "covidx_cxr2": (2, 15_952, "chest"),
            "tuberculosis_full": (2, 679, "chest"),
            "cifar10": (10, 50_000, "natural"),
            "cifar100": (100, 50_000, "natural"),
            "pets": (37, 3_680, "natural"),
            "flowers_oversampling": (102, 6_149, "natural"),
        },
        index=["classes", "train", "kind"],
    ).T
    assert (PAPER["kind"] == PAPER["target"].map(told["kind"])).all()
    one, full = (PAPER[PAPER["shots"] == shots] for shots in ("1", "full"))
    assert (one["images"] == one["target"].map(told["classes"])).all()
    np.testing.assert_allclose(full["images"], full["target"].map(told["train"]).astype(float), rtol=1e-9)
    large, small = (
        PAPER[PAPER["model"] == m].set_index(["target", "shots", "source"]) for m in ("bit152x4", "bit50x1")
    )
    assert (large["cost"] / small["cost"]).dropna().between(43, 45).all()


def test_what_is_learnt_is_learnt_from_others(game: Game) -> None:
    """Other results of the target's own, and the belief is the same: nothing of it was seen."""
    own, own_runs = PAPER["target"] == TARGET, RUNS["target"] == TARGET
    scrambled = PAPER.assign(value=PAPER["value"].where(~own, 3.0))
    belief = leave_one_out(scrambled, RUNS.assign(value=RUNS["value"].where(~own_runs, 3.0)), TARGET, fit=False)
    np.testing.assert_array_equal(belief.mean, game.belief.mean)
    np.testing.assert_array_equal(belief.covariance, game.belief.covariance)


def test_a_shuffle_keeps_every_run_and_what_seeds_share(game: Game) -> None:
    here = RUNS[RUNS["target"] == TARGET]
    for k in range(0, len(game.table), 20):
        theirs = np.sort(here.loc[here["configuration"] == game.table.index[k], "value"])
        np.testing.assert_array_equal(np.sort(game.outcomes[game.belief.of == k]), theirs)
    # Configurations of a contest keep the same draws of images at the same places.
    first = [k for k in range(len(game.table)) if game.table["shots"].iloc[k] == "1"]
    seeds = []
    for k in first[:4]:
        of_seed = here[here["configuration"] == game.table.index[k]].set_index("value")["seed"]
        mine = game.outcomes[(game.belief.of == k)][np.argsort(game.belief.seed[game.belief.of == k])]
        if of_seed.index.is_unique:
            seeds.append(of_seed[mine].tolist())
    assert len(seeds) > 1
    assert all(s == seeds[0] for s in seeds)


def test_who_runs_nothing_twice_runs_each_once_and_stops(game: Game) -> None:
    played = play(game, TopK(), 30)
    assert len(np.unique(game.belief.of[played.order])) == len(played.order) > 1


def test_the_goal_on_the_hardest_targets(game: Game) -> None:
    """A fifth of the runs, all that was seen paid for: about the best of each contest, far better than at random."""
    budget = 0.2 * game.table["seeds"].sum()
    played = play(game, ExpectedImprovement(), budget)
    drawn = [play(game, Random(seed), budget) for seed in range(3)]
    assert len(played.order) == len(np.unique(played.order)) == budget
    assert played.regret.mean() <= 2.0
    assert played.regret.max() <= 5.0
    assert beyond_noise(game.table, RUNS, played).mean() <= 0.5
    assert played.regret.mean() < np.mean([p.regret.mean() for p in drawn])


def test_it_stops_by_itself_and_never_beyond_its_budget(game: Game) -> None:
    played = play(game, ExpectedImprovement(), 40, stop_gain=0.5)
    assert 0 < len(played.order) < 40
    hours = game.table["cost"].to_numpy()
    dear = play(game, ExpectedImprovement(), 4.0, cost=hours)
    assert hours[game.belief.of[dear.order]].sum() == pytest.approx(dear.cost)
    assert dear.cost <= 4.0


def test_the_oracle_loses_nothing(game: Game) -> None:
    played = play(game, Oracle(game.truth), 100)
    assert len(played.order) == 5  # 1, 5, 10, 100 and full
    assert played.regret.tolist() == [0.0] * 5


def test_means_of_runs_have_the_variance_of_their_contest_or_what_the_noise_says() -> None:
    told = pd.DataFrame({"target": ["t", "u", "v"], "shots": "1", "images": [10.0, 10.0, 40.0], "seeds": [5, 5, 2]})
    two = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0]])
    seen = runs(*two.tolist()).assign(target="t", shots="1", images=10.0)
    calm = runs([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]).assign(target="u", shots="1", images=10.0)
    got = with_variance(told, pd.concat([seen, calm]), Noise(np.log(7.0), -0.5))
    about = two - two.mean(axis=1, keepdims=True)
    own = ((about - about.mean(axis=0)) ** 2).sum() / 2
    np.testing.assert_allclose(got["variance"], [own / 5, 1e-4 / 5, 49 / 40 / 2])


def test_without_history_the_first_runs_are_all_there_is() -> None:
    belief = from_nothing(PAPER[PAPER["target"] == "pets"])
    assert belief.values == pytest.approx(np.full(belief.n, 50.0))


def test_what_is_foretold_of_the_papers_configurations_stands_for_a_probe(game: Game) -> None:
    """The interval is that of the difference to the favourite, which has none to itself."""
    foretold, lead = _foretold(game.belief), game.belief.favourites()
    value, low, high = foretold.T
    own = lead == np.arange(len(lead))
    assert (low[own] == value[own]).all()
    assert (low[~own] < value[~own]).all()
    np.testing.assert_allclose(high - value, value - low)
    scale = game.belief.against(lead)[1]
    np.testing.assert_allclose(value - low, stats.t.ppf(0.975, game.belief.freedom) * scale, atol=1e-9)


def runs(*values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"configuration": k, "seed": s, "value": v} for k, of in enumerate(values) for s, v in enumerate(of)]
    )


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        ([60, 70, 50, 80, 65], [58, 68, 48, 78, 63], True),  # the same seeds, always two points: by pairs alone
        ([60, 70, 50, 80, 65], [59, 74, 45, 79, 66], False),
        ([60, 70, 50, 80, 65], [58, 68.1, 47.9, 78, 63], True),
        ([60, 61, 60, 61, 60], [50, 51, 50, 51, 50], True),
        ([60, 62, 61, 64, 63], [57, 55, 58, 54, 56], True),
        (
            [60, 60.5, 61, 60, 60.2, 60.8],
            [66, 75],
            False,
        ),  # few that vary much: unsure by Welch, sure with one variance
        ([60, 70, 50], [60, 70, 50], False),
        ([60], [60], False),  # one seed
        ([60], [61], True),
    ],
)
def test_told_apart_by_pairs_or_without(a: list[float], b: list[float], apart: bool) -> None:
    assert told_apart(runs(a, b, [0.0] * len(a)), 0, 1) is apart  # whatever others did


@pytest.mark.parametrize(
    ("b", "counted"), [([59.7, 61.0, 60.3, 61.4, 59.4], 0.0), ([59.5, 60.5, 59.5, 60.5, 59.5], 0.5)]
)
def test_a_loss_counts_where_the_runs_tell_it_however_small(b: list[float], counted: float) -> None:
    contest = pd.DataFrame({"target": "t", "shots": "1", "value": [60.4, 59.9]})
    played = Played(np.array([1]), np.array([1]), np.array([0.5]), 1.0)
    assert beyond_noise(contest, runs([60, 61, 60, 61, 60], b), played) == [counted]


def test_drawn_runs_fall_about_the_truth_by_their_own_chance_and_their_seeds(game: Game) -> None:
    n, of, belief = len(game.table), game.belief.of, game.belief
    truth, no = (np.linspace(20.0, 80.0, n), np.zeros((n, n))), np.zeros(n)
    still = drawn(game.table, belief, truth, (no, no), seed=1)
    assert still.outcomes.tolist() == truth[0][of].tolist()
    shared = np.linspace(1.0, 3.0, n)
    by_seed = drawn(game.table, belief, truth, (no, shared), seed=1)
    size = (by_seed.outcomes - truth[0][of]) / shared[of]
    seeds = pd.DataFrame({"contest": belief.contest[of], "seed": belief.seed, "size": size}).groupby(
        ["contest", "seed"]
    )
    assert seeds["size"].agg(np.ptp).max() < 1e-9
    assert seeds["size"].first().nunique() == len(seeds)
    alone = drawn(game.table, belief, truth, (shared, no), seed=1)
    size = (alone.outcomes - truth[0][of]) / shared[of]
    assert len(np.unique(size)) == len(size)
    assert stats.kstest(size, "norm").pvalue > 0.01


# -- rows of our own kind ------------------------------------------------------------------------------------------------


def world(seed: int, n: int = 8) -> list[dict[str, Any]]:
    """Six targets: fine-tuning gives what the probe did, ten points, and one and a half of chance."""
    rng = np.random.default_rng(seed)
    rows = []
    for target in "uvwxyz":
        for k, probe in enumerate(rng.uniform(0.4, 0.8, n)):
            rows += [row(f"b{k}", float(probe), half=0.01, target=target)]
            rows += tuned(f"b{k}", float(probe + 0.1 + rng.normal(0, 0.015)), target=target)
    return rows


def test_outcomes_of_our_own_rows_are_in_points() -> None:
    rows = world(0)
    game = of_rows(table(*rows))
    tuned_to = {
        (r["target"], r["backbone"]): r["value"] for r in rows if r["probe"] == "finetune" and r["split"] == "val"
    }
    assert game.outcomes.tolist() == [
        100 * tuned_to[key] for key in zip(game.table["target"], game.table["model"], strict=True)
    ]
    assert game.truth.tolist() == game.outcomes.tolist()


def test_the_probes_information_counts_on_our_own_rows() -> None:
    """Replayed on rows of probes and fine-tunings: with the probes two of eight runs do; with others' probes they don't."""
    lost: dict[str, list[float]] = {"probed": [], "mixed up": []}
    for seed in range(2):
        rows = table(*world(seed))
        rng = np.random.default_rng(seed)
        other = rows.copy()
        is_probe = (other["probe"] != "finetune").to_numpy()
        mixed = rng.permutation(other.loc[is_probe, ["value", "low", "high"]].to_numpy())
        other.loc[is_probe, ["value", "low", "high"]] = mixed
        for name, these in (("probed", rows), ("mixed up", other)):
            game = of_rows(these)
            played = play(game, ExpectedImprovement(), 2 * 6)
            assert len(played.order) <= 12
            lost[name].append(played.regret.mean())
    assert np.mean(lost["probed"]) < 0.6
    assert np.mean(lost["mixed up"]) > 2


def test_the_benchmark_says_what_it_must(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "TINY", (benchmark.TINY[0], benchmark.TINY[-1]))
    assert main(["selection", "--tiny", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [e["name"] for e in entries] == ["selection/oracle", "selection/ei, drawn"]
    for e in entries:
        assert {"policy", "saved", "mean_regret_points", "worst_regret_points", "cells", "seeds"} <= set(e)
        assert {"name", "checked", "device", "commit", "date", "threads", "ours_ms"} <= set(e)
        assert e["checked"]
        assert e["saved"] >= 0.8
        assert 0 <= e["mean_regret_points"] <= e["worst_regret_points"]
    print_selection(entries)
    assert "| oracle | 94." in capsys.readouterr().out
