"""When to stop asking: a confidence sequence, which holds at every number of episodes at once."""

from __future__ import annotations

import numpy as np

from fastxfer.metrics import Array

LARGEST_BET = 0.75
# Before there is a variance to go by: one value in the middle, with the largest variance that [0, 1] allows.
_PRIOR_MEAN, _PRIOR_VARIANCE = 0.5, 0.25


def confidence_sequence(values: Array, half_width: float, level: float = 0.95) -> tuple[float, float]:
    """Low and high of the mean of independent values in [0, 1], after all of them; NaN is passed over.

    Whoever looks after every value, and stops when he likes, still has an interval that holds the mean with probability
    `level`. It is the hedged capital of Waudby-Smith & Ramdas (2024, "Estimating means of bounded random variables by
    betting", section 4): betting λ_t that the mean is above m multiplies a capital by 1 + λ_t (x_t − m), which is a fair
    game if m is the mean, and so hardly ever (Ville 1939: with probability α/2) comes to 2/α. The interval is the m for
    which neither that bet nor the one that the mean is below has come so far.

    λ_t may be anything that looks at x_1 … x_{t−1} alone. It is the best one for the moment when the interval is as narrow as
    `half_width`, h / σ² with the variance so far, at most `LARGEST_BET`. There it takes 2 log(2/α) / 1.96² = 1.9 times the
    episodes of a normal interval, which may be looked at once only.
    """
    from scipy.optimize import brentq  # slow to load, and few runs come here

    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    count = np.arange(1, len(x) + 1)
    mean = (_PRIOR_MEAN + np.cumsum(x)) / (count + 1)
    variance = (_PRIOR_VARIANCE + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.r_[_PRIOR_VARIANCE, variance[:-1]] if len(x) else variance
    bets = np.minimum(half_width / before, LARGEST_BET)
    enough = np.log(2 / (1 - level))

    def won(m: float, side: int) -> float:
        return float(np.log1p(side * bets * (x - m)).sum()) - enough

    # Each capital falls, or rises, as m grows: one m at which it is just enough, if it ever is.
    low = brentq(won, 0.0, 1.0, args=(1,), xtol=1e-6) if len(x) and won(0.0, 1) > 0 else 0.0
    high = brentq(won, 0.0, 1.0, args=(-1,), xtol=1e-6) if len(x) and won(1.0, -1) > 0 else 1.0
    return low, high


def half_width(values: Array, wanted: float, level: float = 0.95) -> float:
    """Half the length of the `confidence_sequence` that is made for being as narrow as `wanted`."""
    low, high = confidence_sequence(values, wanted, level)
    return (high - low) / 2
