"""Policies of selection, replayed on the paper's 1,440 fine-tunings: what each would have run, and what it would have lost.

Rules, in words, in docs/selection.md. In short: a target's configurations are judged by the mean of the paper's own runs; a policy pays
for every run that it sees, and has the results of other targets only, or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.progress import say
from fastxfer.selection.bound import UpperBound
from fastxfer.selection.frame import Oracle, Random
from fastxfer.selection.gradient import KnowledgeGradient
from fastxfer.selection.halving import Halving, affordable
from fastxfer.selection.improvement import ExpectedImprovement
from fastxfer.selection.model import learn
from fastxfer.selection.noise import components, learn_noise
from fastxfer.selection.paper import EFFECTS, configurations
from fastxfer.selection.policy import Policy
from fastxfer.selection.replay import (
    Game,
    beyond_noise,
    drawn,
    from_nothing,
    leave_one_out,
    play,
    shuffled,
    with_variance,
)
from fastxfer.selection.top import TopK

SHARE = 0.2  # of a target's fine-tunings that may be run
GOAL = {"saved": 0.8, "mean": 0.5, "worst": 3.0}

POLICIES: dict[str, Callable[[Game, float, int], Policy]] = {
    "oracle": lambda game, runs, seed: Oracle(game.truth),
    "random": lambda game, runs, seed: Random(seed),
    "top-1": lambda game, runs, seed: TopK(1),
    "top-3": lambda game, runs, seed: TopK(3),
    "halving": lambda game, runs, seed: Halving(affordable(runs / len(game.belief.contests()))),
    "ucb": lambda game, runs, seed: UpperBound(),
    "ei": lambda game, runs, seed: ExpectedImprovement(),
    "kg": lambda game, runs, seed: KnowledgeGradient(),
}


@dataclass(frozen=True)
class Replay:
    """One line of the table.

    history: what the policy starts with: whole results of the "other targets" of the one that it chooses for, or "nothing"
    world:   "paper", the paper's own runs, or "drawn", values and runs drawn from what the paper's results say of them
    unit:    of the budget: "runs" or "gpu-hours" (SHARE of a target's own)
    """

    policy: str
    replays: int
    stop_gain: float = 0.0
    history: str = "other targets"
    world: str = "paper"
    unit: str = "runs"

    @property
    def name(self) -> str:
        odd = [f"stop {self.stop_gain:g}"] if self.stop_gain else []
        odd += [self.unit] if self.unit != "runs" else []
        odd += ["nothing known"] if self.history == "nothing" else []
        odd += ["drawn"] if self.world == "drawn" else []
        return ", ".join([f"selection/{self.policy}", *odd])


REPLAYS = (
    Replay("oracle", 1),
    *(Replay(policy, 8) for policy in ("random", "top-1", "top-3", "halving", "ucb", "ei", "kg")),
    *(Replay("ei", 8, stop_gain=points) for points in (0.05, 0.1, 0.2)),
    *(Replay(policy, 3, unit="gpu-hours") for policy in ("random", "ei", "kg")),
    *(Replay(policy, 2, history="nothing") for policy in ("random", "ei")),
    *(Replay(policy, 8, world="drawn") for policy in ("random", "ei")),
)
TINY = (
    Replay("oracle", 1),
    Replay("random", 2),
    Replay("ei", 2),
    Replay("ei", 2, stop_gain=0.1),
    Replay("ei", 2, world="drawn"),
)


def run(options: Any) -> list[dict[str, Any]]:
    """A dict a line: policy, saved (share of fine-tunings not run), regret in points by both countings, cells, choices, seeds."""
    table, runs = configurations()
    if options.tiny:
        table = table[table["target"].isin(["pets", "flowers_oversampling"])]
        runs = runs[runs["configuration"].isin(table.index)]
    say("selection: learning from all targets but one, for each")
    beliefs = {target: leave_one_out(table, runs, target) for target in table["target"].unique()}
    checked = _is_out_of_sample(table, runs, beliefs)
    entries = []
    for replay in TINY if options.tiny else REPLAYS:
        say(f"{replay.name}: {replay.replays} replays")
        entries.append(_entry(replay, table, runs, beliefs, options) | {"checked": checked})
    return entries


def _entry(
    replay: Replay, table: pd.DataFrame, runs: pd.DataFrame, beliefs: dict[str, Any], options: Any
) -> dict[str, Any]:
    started = time.perf_counter()
    found = [_replayed(replay, table, runs, beliefs, options.seed + number) for number in range(replay.replays)]
    seconds = (time.perf_counter() - started) / replay.replays
    plain, counted = (np.array([result[key] for result in found]) for key in ("plain", "counted"))
    all_runs, all_hours = float(table["seeds"].sum()), float((table["cost"] * table["seeds"]).sum())
    saved = 1 - np.mean([result["runs"] for result in found]) / all_runs
    worst = int(plain.mean(axis=0).argmax())
    return {
        "name": replay.name,
        "policy": replay.policy,
        "history": replay.history,
        "world": replay.world,
        "stop_gain_points": replay.stop_gain,
        "budget": f"{100 * SHARE:g} % of the {replay.unit}",
        "saved": float(saved),
        "saved_gpu_hours": float(1 - np.mean([result["hours"] for result in found]) / all_hours),
        **_regret(plain, ""),
        **(_regret(counted, "_beyond_noise") if replay.world == "paper" else {}),
        "hardest_cell": found[0]["cells"][worst],
        "hardest_cell_regret_points": float(plain.mean(axis=0)[worst]),
        "regret_by_cell": dict(zip(found[0]["cells"], plain.mean(axis=0).round(3).tolist(), strict=True)),
        "cells": len(table),
        "choices": plain.shape[1],
        "seeds": replay.replays,
        "reaches_goal": bool(
            saved >= GOAL["saved"] and plain.mean() <= GOAL["mean"] and plain.max(axis=1).mean() <= GOAL["worst"]
        ),
        "ours_ms": 1e3 * seconds,
        "threads": options.threads,
    }


def _regret(regret: np.ndarray, ending: str) -> dict[str, float | None]:
    """Over replays (rows) and choices (columns): the mean, and the mean of each replay's worst, with standard errors."""
    mean, worst = regret.mean(axis=1), regret.max(axis=1)

    def error(of: np.ndarray) -> float | None:
        return float(of.std(ddof=1) / np.sqrt(len(of))) if len(of) > 1 else None

    return {
        f"mean_regret{ending}_points": float(mean.mean()),
        f"mean_regret{ending}_se": error(mean),
        f"worst_regret{ending}_points": float(worst.mean()),
        f"worst_regret{ending}_se": error(worst),
        f"highest_regret{ending}_points": float(worst.max()),
    }


def _replayed(
    replay: Replay, table: pd.DataFrame, runs: pd.DataFrame, beliefs: dict[str, Any], seed: int
) -> dict[str, Any]:
    """One replay over all targets, each with its own budget; with no history, all at once."""
    parts = {"all": from_nothing(table)} if replay.history == "nothing" else beliefs
    result: dict[str, Any] = {"runs": 0, "hours": 0.0, "plain": [], "counted": [], "cells": []}
    for target, belief in parts.items():
        here = table if target == "all" else table[table["target"] == target]
        if replay.world == "paper":
            game = shuffled(here, runs, belief, seed)
        else:
            game = drawn(here, belief, _posterior(table, runs, here), _noise(runs, here), seed)
        hours = here["cost"].to_numpy()
        in_runs = SHARE * float(here["seeds"].sum())
        budget = in_runs if replay.unit == "runs" else SHARE * float((here["cost"] * here["seeds"]).sum())
        cost = hours if replay.unit == "gpu-hours" else None
        policy = POLICIES[replay.policy](game, in_runs, seed)
        played = play(game, policy, budget, cost=cost, stop_gain=replay.stop_gain)
        result["runs"] += len(played.order)
        result["hours"] += float(hours[belief.of[played.order]].sum())
        result["plain"] += played.regret.tolist()
        result["counted"] += beyond_noise(here, runs, played).tolist() if replay.world == "paper" else []
        chosen = here.iloc[played.chosen]
        result["cells"] += (chosen["target"] + ", " + chosen["shots"]).tolist()
    return result


_POSTERIORS: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}


def _posterior(table: pd.DataFrame, runs: pd.DataFrame, here: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """What all results say of these configurations, their own among them."""
    key = tuple(here.index)
    if key not in _POSTERIORS:
        kind = table[table["kind"] == here["kind"].iloc[0]]
        model = learn(EFFECTS, with_variance(kind, runs, learn_noise(runs)))
        _POSTERIORS[key] = model.foretell(here)
    return _POSTERIORS[key]


def _noise(runs: pd.DataFrame, here: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    of_contest = components(runs).set_index(["target", "shots"])
    of_contest = of_contest.loc[pd.MultiIndex.from_frame(here[["target", "shots"]])]
    return np.sqrt(of_contest["own"].to_numpy()), np.sqrt(of_contest["shared"].to_numpy())


def _is_out_of_sample(table: pd.DataFrame, runs: pd.DataFrame, beliefs: dict[str, Any]) -> bool:
    """Whether a target's own results play no part in what is believed of it: the belief stays when they are others.

    And whether the published means are those of the runs.
    """
    target = table["target"].iloc[-1]
    own, own_runs = table["target"] == target, runs["target"] == target
    other = leave_one_out(
        table.assign(value=table["value"].where(~own, 7.0)),
        runs.assign(value=runs["value"].where(~own_runs, 7.0)),
        target,
    )
    same = np.array_equal(other.mean, beliefs[target].mean) and np.array_equal(
        other.covariance, beliefs[target].covariance
    )
    means = runs.groupby("configuration")["value"].mean().loc[table.index]
    return bool(same and np.allclose(means, table["value"]))
