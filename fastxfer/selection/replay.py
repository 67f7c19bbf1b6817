"""Policies played again on fine-tunings that have all been made: what they would have run, and what they would have chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fastxfer.errors import DataError
from fastxfer.selection.belief import Belief, Floats, Ints
from fastxfer.selection.model import believe, learn
from fastxfer.selection.noise import Noise, components, learn_noise
from fastxfer.selection.paper import EFFECTS
from fastxfer.selection.policy import Policy, Situation
from fastxfer.selection.rows import Past, believe_rows, foretellers, probed_rows

LEVEL = 0.95


@dataclass(frozen=True)
class Game:
    """Configurations of which all runs have been made, and what is believed of them before the first.

    table:    (n,) as `fastxfer.selection.paper.configurations` has it
    belief:   prior
    outcomes: (r,) of the belief's runs, in points
    truth:    (n,) values that the choice is judged by, in points
    learn:    runs made -> belief, where variances are learnt from them, too; None: they are only observed
    """

    table: pd.DataFrame
    belief: Belief
    outcomes: Floats
    truth: Floats
    learn: Callable[[Sequence[int]], Belief] | None = None


@dataclass(frozen=True)
class Played:
    """order: the runs made, in their order;  chosen: a configuration a contest;  regret: of each, in points;  cost: of all runs."""

    order: Ints
    chosen: Ints
    regret: Floats
    cost: float


def play(game: Game, policy: Policy, budget: float, *, cost: Floats | None = None, stop_gain: float = 0.0) -> Played:
    """Run what the policy ranks first, tell it the outcome, and so on until the budget is spent or nothing is worth a run.

    budget:    in the unit of cost (n,) a run; without a cost, in runs
    stop_gain: points; a choice that is expected to gain less is not run. Policies that expect nothing don't stop by it
    """
    table, belief = game.table, game.belief
    price = np.ones(belief.n) if cost is None else cost
    probed = _foretold(belief)
    names = [f"{source}/{model}" for source, model in zip(table["source"], table["model"], strict=True)]
    order: list[int] = []
    spent = 0.0
    while True:
        left, made = belief.left(), belief.runs_made()
        worth = (
            choice
            for choice in policy.rank(Situation(belief, price, probed, names))
            if choice.wanted
            and len(left[choice.configuration])
            and (policy.again or not made[choice.configuration])
            and not choice.gain < stop_gain
        )
        best = next((c for c in worth if spent + price[c.configuration] <= budget + 1e-9), None)
        if best is None:
            break
        run = int(left[best.configuration][0])
        spent += float(price[best.configuration])
        order.append(run)
        belief = game.learn(order) if game.learn else belief.observe([run], [game.outcomes[run]])
    picked = policy.choose(belief)
    best_values = np.array([game.truth[members].max() for members in belief.contests()])
    return Played(np.array(order, np.int64), picked, best_values - game.truth[picked], spent)


def _foretold(belief: Belief) -> Floats:
    """(n, 3) what is foretold, and the interval of its difference to the favourite, put about it."""
    scale = belief.against(belief.favourites())[1]
    half = stats.t.ppf(0.5 + LEVEL / 2, belief.freedom) * scale
    return np.column_stack([belief.values, belief.values - half, belief.values + half])


def of_rows(rows: pd.DataFrame, near: Mapping[tuple[str, str], float] | None = None) -> Game:
    """Results in which every probed backbone has been fine-tuned on its target: probe first, then what a policy would have run.

    After each run all is learnt anew, as `select` does after each plan. Judged by what the fine-tunings gave on validation.
    near: as of `select`. `DataError` where a fine-tuning is missing.
    """
    probed, past = probed_rows(rows), Past.of(rows)
    tuned = [past.value_of(row) for row in probed.to_dict("records")]
    if None in tuned:
        row = probed.iloc[tuned.index(None)]
        raise DataError(
            f"no fine-tuning of {row['backbone']} on {row['target']}: a replay needs one of every probed pair. "
            "Run `fastxfer select --policy top --top 1000 --budget 1000`, and its plan"
        )
    outcomes = 100 * np.array(tuned, float)
    foretold = foretellers(rows, probed, near)

    def learn(order: Sequence[int]) -> Belief:  # one run a configuration, numbered alike
        return believe_rows(probed, past.only(probed.iloc[list(order)]), foretold)

    return Game(probed.assign(model=probed["backbone"]), learn(()), outcomes, outcomes, learn)


# -- the paper's fine-tunings ---------------------------------------------------------------------------------------------


def with_variance(table: pd.DataFrame, runs: pd.DataFrame, noise: Noise) -> pd.DataFrame:
    """The table with the variance of its values: that of its contest's runs, else what the noise says."""
    known = components(runs).set_index(["target", "shots"])["own"]
    own = known.reindex(pd.MultiIndex.from_frame(table[["target", "shots"]])).to_numpy()
    own = np.where(np.isnan(own), noise.own(table["images"].to_numpy(float)) ** 2, own)
    return table.assign(variance=np.maximum(own, 1e-4) / table["seeds"])


def leave_one_out(table: pd.DataFrame, runs: pd.DataFrame, target: str, *, fit: bool = True) -> Belief:
    """What is believed of a target's configurations after the whole results of others of its kind, and none of its own.

    fit: see `learn`. Kinds share no effect of `EFFECTS`, and how far effects spread differs between them. The noise is learnt from all others.
    """
    here = table[table["target"] == target]
    alike = table[(table["target"] != target) & (table["kind"] == here["kind"].iloc[0])]
    noise = learn_noise(runs[runs["target"] != target])
    model = learn(EFFECTS, with_variance(alike, runs[runs["target"] != target], noise), fit=fit)
    return believe(model, here, noise, seeds=here["seeds"], dof=alike["target"].nunique())


def from_nothing(table: pd.DataFrame) -> Belief:
    """What is believed of all configurations before any result: effects of one point, noise as of the default."""
    return believe(learn(EFFECTS, table[:0].assign(variance=0.0)), table, Noise(), seeds=table["seeds"])


def shuffled(table: pd.DataFrame, runs: pd.DataFrame, belief: Belief, seed: int) -> Game:
    """The paper's own runs, each contest's seeds in another order, the same for all of its configurations.

    table: some of the configurations, with their row numbers;  belief: of these
    """
    rng = np.random.default_rng(seed)
    here = runs[runs["configuration"].isin(table.index)]
    ranks = {key: rng.permutation(10) for key in here.groupby(["target", "shots"], sort=True).groups}
    place = [
        ranks[key][s] for key, s in zip(zip(here["target"], here["shots"], strict=True), here["seed"], strict=True)
    ]
    # A configuration that lacks a seed keeps the others' order; its runs are numbered by it.
    mixed = here.assign(place=place).sort_values(["configuration", "place"])
    number = mixed.groupby(["target", "shots"])["place"].rank("dense").astype(int).to_numpy() - 1
    game_belief = Belief(**{**vars(belief), "seed": number})
    return Game(table, game_belief, mixed["value"].to_numpy(float), table["value"].to_numpy(float))


def drawn(
    table: pd.DataFrame, belief: Belief, posterior: tuple[Floats, Floats], noise: tuple[Floats, Floats], seed: int
) -> Game:
    """A world in which the truth is known: values drawn from what all of the paper's results say, runs with its noise about them.

    posterior: mean (n,) and covariance (n, n) of values;  noise: own and shared sd (n,) of the contests
    """
    rng = np.random.default_rng(seed)
    mean, covariance = posterior
    truth = rng.multivariate_normal(mean, covariance, method="eigh")
    own, shared = noise
    common: dict[tuple[int, int], float] = {}
    for contest, number in zip(belief.contest[belief.of], belief.seed, strict=True):
        common.setdefault((int(contest), int(number)), float(rng.standard_normal()))
    of_seed = np.array([common[int(c), int(s)] for c, s in zip(belief.contest[belief.of], belief.seed, strict=True)])
    outcomes = truth[belief.of] + shared[belief.of] * of_seed + own[belief.of] * rng.standard_normal(len(belief.of))
    return Game(table, belief, outcomes, truth)


def told_apart(runs: pd.DataFrame, best: int, other: int) -> bool:
    """Whether the paper's own runs tell two configurations apart at 95 %: paired by seed, or unpaired (Welch).

    Either test suffices, so that a tie is one by both.
    """
    a, b = (runs.loc[runs["configuration"] == k].set_index("seed")["value"] for k in (best, other))
    both = a.index.intersection(b.index)
    difference = (a[both] - b[both]).to_numpy()
    if np.ptp(difference) == 0:  # they agree in all of the seeds, or differ by the same in all
        return bool(difference[0] != 0)
    paired = stats.ttest_1samp(difference, 0.0).pvalue
    return bool(min(paired, stats.ttest_ind(a, b, equal_var=False).pvalue) < 1 - LEVEL)


def beyond_noise(table: pd.DataFrame, runs: pd.DataFrame, played: Played) -> Floats:
    """(contests,) the regret of each, 0 where the paper's runs do not tell the chosen configuration from the best."""
    counted = played.regret.copy()
    values = table["value"].to_numpy(float)
    for i, k in enumerate(played.chosen):
        row = table.iloc[k]
        members = np.flatnonzero((table["target"] == row["target"]) & (table["shots"] == row["shots"]))
        best = members[np.argmax(values[members])]
        if counted[i] > 0 and not told_apart(runs, int(table.index[best]), int(table.index[k])):
            counted[i] = 0.0
    return counted
