"""How far apart two runs of one configuration fall, and how much of it all configurations of a seed share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastxfer.selection.belief import Floats

_SLOPE, _SD_AT_10 = -0.35, 2.0  # where nothing is known: of log sd along log images; points at ten images
_LEAST = 0.05  # points


@dataclass(frozen=True)
class Noise:
    """log(own sd) = intercept + slope log(images), in points; the shared sd is `shared[shots]` times the own one.

    own: of one run about its configuration's value, what its seed does to all configurations apart;  shared: that part
    """

    intercept: float = float(np.log(_SD_AT_10)) - _SLOPE * float(np.log(10))
    slope: float = _SLOPE
    shared: tuple[tuple[str, float], ...] = ()

    def own(self, images: Floats) -> Floats:
        """(n,) sd in points, from the images of the support, all classes together (n,)."""
        return np.maximum(np.exp(self.intercept + self.slope * np.log(images)), _LEAST)

    def common(self, images: Floats, shots: pd.Series) -> Floats:
        """(n,) sd in points of what the runs of a seed share. Where no results tell: as the own one, 0 at full shot."""
        known = dict(self.shared)
        return self.own(images) * np.array([known.get(s, 0.0 if s == "full" else 1.0) for s in shots])


def learn_noise(runs: pd.DataFrame) -> Noise:
    """From runs: target, shots, configuration, seed, images and value in points. Contests without repeated seeds tell nothing.

    The slope is that inside targets, the intercept the mean over targets.
    """
    parts = components(runs)
    parts = parts[parts["own"] > _LEAST**2]
    if parts.empty:
        return Noise()
    log = pd.DataFrame({"x": np.log(parts["images"]), "y": np.log(parts["own"]) / 2})
    inside = log - log.groupby(parts["target"]).transform("mean")
    spread = float((inside["x"] ** 2).sum())
    slope = float((inside["x"] * inside["y"]).sum()) / spread if spread > 1 else _SLOPE
    intercept = float((log["y"] - slope * log["x"]).groupby(parts["target"]).mean().mean())
    shared = (parts["shared"] / parts["own"]).groupby(parts["shots"]).mean()
    return Noise(intercept, slope, tuple((str(s), float(np.sqrt(v))) for s, v in shared.items()))


def components(runs: pd.DataFrame) -> pd.DataFrame:
    """A line a contest: target, shots, images, and its variances `own` and `shared`; NaN where no seed was repeated."""
    found = [
        {"target": target, "shots": shots, "images": float(group["images"].iloc[0]), **_variances(group)}
        for (target, shots), group in runs.groupby(["target", "shots"], observed=True)
    ]
    return pd.DataFrame(found, columns=["target", "shots", "images", "own", "shared"])


def _variances(group: pd.DataFrame) -> dict[str, float]:
    """Variance components of a contest, crossed: configurations (fixed) by seeds (random), one run each, by mean squares."""
    table = group.pivot_table("value", "configuration", "seed", observed=True).dropna()
    n, m = table.shape
    if n < 2 or m < 2:
        return {"own": np.nan, "shared": np.nan}
    about = table.sub(table.mean(axis=1), axis=0)
    of_seeds = about.mean(axis=0)
    own = float(((about - of_seeds) ** 2).to_numpy().sum()) / ((n - 1) * (m - 1))
    between = n * float((of_seeds**2).sum()) / (m - 1)
    return {"own": own, "shared": max(between - own, 0.0) / n}
