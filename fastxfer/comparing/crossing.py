"""Learning curves over shots: from which number of shots on another backbone is the better one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.comparing.contests import NOTHING, Contest
from fastxfer.metrics import lower_is_better

Array = NDArray[Any]

CROSSING, NO_CROSSING, OPEN, UNDECIDED = "crossing", "no crossing", "open", "undecided"


def crossings(contests: Sequence[Contest], *, level: float = 0.95) -> pd.DataFrame:
    """One line a pair of backbones and stretch of shots in which they are not told apart; one line a pair without any.

    contests   of `lining.contests(between=("backbone", "shots"))`: names are (backbone, shots)

    the setting's columns, a, b, from, to (fewest and most shots seen)
    crossing     shots at which the mean difference, drawn straight between numbers of shots on a log scale, is 0; NaN: nowhere
    low, high    the stretch: where the interval of the difference contains 0, each number of shots at `level`. 0, inf: it goes
                 on to the end of what was seen, so the crossing may lie outside of it
    below, above who leads on its two sides; "" where nobody is known to
    verdict      "crossing", "no crossing" (one leads everywhere), "open" (not told apart up to one end, or between two
                 stretches that the same one leads), "undecided" (nowhere told apart)
    over, answer the population, as in `compare`; the verdict as a sentence

    The stretch contains a crossing of the true curves with probability `level`, since the difference there is 0 and its
    interval contains that (the argument of Fieller 1954, who did so for a ratio). The differences of all shots are taken
    together, with their covariance: support is nested in more support, so they move together.
    """
    lines: list[dict[str, Any]] = []
    for contest in contests:
        shots = {backbone: {s: i for i, (b, s) in enumerate(contest.names) if b == backbone and s.isdigit()}
                 for backbone in dict.fromkeys(b for b, _ in contest.names)}  # fmt: skip
        for a, b in combinations(shots, 2):
            both = sorted((s for s in shots[a] if s in shots[b]), key=int)
            if len(both) > 1 and contest.over != NOTHING:
                weights = np.zeros((len(contest.names), len(both)))
                for column, s in enumerate(both):
                    weights[shots[a][s], column], weights[shots[b][s], column] = 1, -1
                mean, covariance, df = contest.estimates(weights, contest.over)
                sign = -1 if lower_is_better(contest.setting["metric"]) else 1
                found = stretches([int(s) for s in both], sign * mean, covariance, float(df.min()), level=level)
                lines += [
                    {**contest.setting, "a": a, "b": b, "over": contest.over, **_told(one, a, b)} for one in found
                ]
    return pd.DataFrame(lines)


def stretches(
    shots: Sequence[int], mean: Array, covariance: Array, df: float, *, level: float = 0.95
) -> list[dict[str, Any]]:
    """Where a curve of differences is not told from 0: from, to, crossing, low, high, below, above (signs, 0: unknown).

    shots (m,) ascending; mean (m,), covariance (m, m), df: of the differences. A single line with NaN for low and high
    where the curve is told from 0 everywhere.
    """
    at, t = np.log(np.asarray(shots, float)), float(stats.t.ppf(0.5 + level / 2, df))
    cuts = [float(at[0])]
    for k in range(len(at) - 1):
        step = mean[k + 1] - mean[k]
        between = covariance[k, k + 1]
        # (mean + u step)^2 - t^2 variance(u), a quadratic in the share u of the way to the next number of shots.
        inner = [
            step**2 - t**2 * (covariance[k, k] - 2 * between + covariance[k + 1, k + 1]),
            2 * (mean[k] * step - t**2 * (between - covariance[k, k])),
            mean[k] ** 2 - t**2 * covariance[k, k],
        ]
        roots = np.roots(inner) if np.isfinite(inner).all() and any(inner) else np.empty(0)
        ways = sorted(float(u.real) for u in roots if abs(u.imag) < 1e-12 and 0 < u.real < 1)
        cuts += [float(at[k] + u * (at[k + 1] - at[k])) for u in ways] + [float(at[k + 1])]
    middles = (np.array(cuts[1:]) + np.array(cuts[:-1])) / 2
    known = [_sign(x, at, mean, covariance, t) for x in middles]
    runs: list[tuple[int, int]] = []  # first and last piece of each stretch
    for i, sign in enumerate(known):
        if sign == 0:
            if runs and runs[-1][1] == i - 1:
                runs[-1] = (runs[-1][0], i)
            else:
                runs.append((i, i))
    ends = {"from": int(shots[0]), "to": int(shots[-1])}
    if not runs:
        return [
            {**ends, "crossing": math.nan, "low": math.nan, "high": math.nan, "below": known[0], "above": known[-1]}
        ]
    return [
        {
            **ends,
            "crossing": _zero(at, mean, cuts[i], cuts[j + 1]),
            "low": math.exp(cuts[i]) if i else 0.0,
            "high": math.exp(cuts[j + 1]) if j + 1 < len(known) else math.inf,
            "below": known[i - 1] if i else 0,
            "above": known[j + 1] if j + 1 < len(known) else 0,
        }
        for i, j in runs
    ]


def _sign(x: float, at: Array, mean: Array, covariance: Array, t: float) -> int:
    """1 or −1 where the difference at log shots x is told from 0, else 0."""
    k = min(int(np.searchsorted(at, x, side="right")) - 1, len(at) - 2)
    u = (x - at[k]) / (at[k + 1] - at[k])
    weights = np.zeros(len(at))
    weights[k], weights[k + 1] = 1 - u, u
    value, spread = weights @ mean, math.sqrt(max(float(weights @ covariance @ weights), 0.0))
    return int(np.sign(value)) if abs(value) > t * spread else 0


def _zero(at: Array, mean: Array, low: float, high: float) -> float:
    """Shots of the first zero of the mean curve between two log shots; NaN where it has none."""
    for k in range(len(at) - 1):
        if mean[k] == 0 or mean[k] * mean[k + 1] < 0:
            x = at[k] + (at[k + 1] - at[k]) * mean[k] / (mean[k] - mean[k + 1]) if mean[k] else at[k]
            if low - 1e-9 <= x <= high + 1e-9:
                return math.exp(x)
    return math.exp(at[-1]) if mean[-1] == 0 and high >= at[-1] else math.nan


def _told(found: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    """A stretch with names for signs, verdict and answer."""
    below, above = (a if sign > 0 else b if sign < 0 else "" for sign in (found["below"], found["above"]))
    low, high, first, last = (found[name] for name in ("low", "high", "from", "to"))
    span, stretch = f"between {first} and {last} shots", f"{_shots(low)} and {_shots(high)} shots"
    if math.isnan(low):
        verdict, answer = NO_CROSSING, f"{below} leads; no crossing seen {span}"
    elif below and below == above:
        verdict, answer = OPEN, f"{below} leads on both sides; not told apart between {stretch}"
    elif below and above:
        verdict = CROSSING
        answer = f"below {_shots(low)} shots take {below}, above {_shots(high)} take {above}"
    elif below:
        verdict, answer = OPEN, f"below {_shots(low)} shots take {below}; not told apart from there to {last}"
    elif above:
        verdict, answer = OPEN, f"above {_shots(high)} shots take {above}; not told apart from {first} to there"
    else:
        verdict, answer = UNDECIDED, f"not told apart {span}"
    return {**found, "below": below, "above": above, "verdict": verdict, "answer": answer}


def _shots(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
