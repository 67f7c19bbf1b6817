"""The paper's question as a model: what ten times the parameters, or the source images, bring, by relation and shots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError
from fastxfer.scale.mixed import Contrast, Mixed, fit_mixed

Floats = NDArray[np.float64]

SIZE, DATA = "size", "data"
SCALES = ("points", "logit")
_FEW, _MANY = 20, "full"


def regime(shots: str) -> str:
    """ "few" (at most 20), "many" or "full"."""
    return "full" if shots == _MANY else "few" if int(shots) <= _FEW else "many"


@dataclass(frozen=True, eq=False)
class ScaleModel:
    """A fitted model.

    columns: names of its coefficients;  effects_of: name -> Z of each random effect, (n_cells, q)
    cells:   what it was fitted to, with y and v_y (on the model's scale) and fitted, the fixed part
    """

    mixed: Mixed
    columns: tuple[tuple[str, ...], ...]
    effects_of: dict[str, Floats]
    cells: pd.DataFrame
    scale: str

    def gain(self, kind: str, relation: str, shots: str | list[str], level: float = 0.95) -> Contrast:
        """What ten times the `kind` (size or data) brings in a relation: at some shots, or on average of several."""
        ks = [shots] if isinstance(shots, str) else shots
        return self.mixed.contrast(self._weights(kind, relation, ks), level, self._most_df)

    def gap(self, kind: str, relation: str, other: str, shots: list[str], level: float = 0.95) -> Contrast:
        """How much more it brings in one relation than in another."""
        c = self._weights(kind, relation, shots) - self._weights(kind, other, shots)
        return self.mixed.contrast(c, level, self._most_df)

    @property
    def _most_df(self) -> float:
        """As many as there are slopes of targets, less their means: what is over targets knows no more than that."""
        pairs = self.cells.groupby(["target", "relation"]).ngroups
        return float(max(pairs - self.cells["relation"].nunique(), 1))

    def _weights(self, kind: str, relation: str, shots: list[str]) -> Floats:
        wanted = {(kind, relation, k) for k in shots}
        return np.array([1.0 / len(shots) if name in wanted else 0.0 for name in self.columns]) * (
            1.0 if wanted <= set(self.columns) else np.nan
        )

    def effects(self) -> pd.DataFrame:
        """A line a (kind, relation, shots), and a (kind, relation, regime): value, se, df, low, high, n_targets, in percentage
        points (or logits) per tenfold parameters or images. The interval is over targets and sources like these.
        """
        lines = []
        for (relation,), group in self.cells.groupby(["relation"], sort=False):
            shots = sorted(group["shots"].unique(), key=_by_number)
            regimes = {r: [k for k in shots if regime(k) == r] for r in ("few", "many", "full")}
            asked = [(k, [k]) for k in shots] + [(f"{r}, all", ks) for r, ks in regimes.items() if len(ks) > 1]
            for kind in (SIZE, DATA):
                for name, ks in asked:
                    some = group[group["shots"].isin(ks)]
                    found = self.gain(kind, relation, ks)
                    lines.append((kind, relation, name, *found, some["target"].nunique(), len(some)))
        names = ["kind", "relation", "shots", *Contrast._fields, "n_targets", "n_cells"]
        return pd.DataFrame(lines, columns=names)


def fit_scale(cells: pd.DataFrame, scale: str = "points") -> ScaleModel:
    """Fit cells (as `cells_of` gives them).

    y is accuracy or AUC in percentage points, or its logit. Fixed: every target at every number of shots for itself; for
    every relation and number of shots a slope in log10 of parameters, one in log10 of source images (from the mean of the
    sources of its relation) and, where a target has sources of several relations, a step between them. Random: both slopes
    by target and relation, the size's by source, sources, and source by target; and every cell's own deviation. v of the
    cells is known.

    `UsageError` for an unknown scale, `DataError` for cells of one size and one source.
    """
    if scale not in SCALES:
        raise UsageError(f"scale must be one of {', '.join(SCALES)}, got '{scale}'")
    cells = cells.reset_index(drop=True)
    size = np.log10(cells["parameters"].to_numpy(float))
    data = np.log10(cells["images"].to_numpy(float))
    if np.ptp(size) == 0 and np.ptp(data) == 0:
        raise DataError(
            "all cells are of one size of network and one size of source: there is no scale to see the effect of"
        )
    size = size - size.mean()
    data = data - cells.assign(d=data).groupby("relation")["d"].transform("mean").to_numpy()
    value, v = cells["value"].to_numpy(float), cells["v"].to_numpy(float)
    if scale == "logit":
        inside = np.clip(value, 1e-4, 1 - 1e-4)
        y, v = np.log(inside / (1 - inside)), v / (inside * (1 - inside)) ** 2
    else:
        y, v = 100 * value, 1e4 * v

    columns: list[tuple[str, ...]] = []
    parts: list[Floats] = []

    def add(name: tuple[str, ...], column: Any) -> None:
        columns.append(name)
        parts.append(np.asarray(column, np.float64))

    for (target, shots), rows in cells.groupby(["target", "shots"], sort=False).groups.items():
        add(("level", target, shots), cells.index.isin(rows))
    for (relation, shots), rows in cells.groupby(["relation", "shots"], sort=False).groups.items():
        here = cells.index.isin(rows)
        add((SIZE, relation, shots), here * size)
        add((DATA, relation, shots), here * data)
    for (relation, shots), rows in cells.groupby(["relation", "shots"], sort=False).groups.items():
        add(
            ("step", relation, shots), cells.index.isin(rows)
        )  # of the last relation of a target, others' levels leave none

    x = np.stack(parts, axis=1)
    effects = {
        "size by target": _onehot(cells, ["target", "relation"]) * size[:, None],
        "data by target": _onehot(cells, ["target", "relation"]) * data[:, None],
        "size by source": _onehot(cells, ["source"]) * size[:, None],
        "source": _onehot(cells, ["source"]),
        "source by target": _onehot(cells, ["source", "target"]),
        "cell": np.eye(len(cells)),
    }
    effects = {name: z for name, z in effects.items() if z.any()}
    mixed = fit_mixed(y, x, v, effects)
    fitted = x @ mixed.beta
    return ScaleModel(mixed, tuple(columns), effects, cells.assign(y=y, fitted=fitted, v_y=v), scale)


def _onehot(cells: pd.DataFrame, by: list[str]) -> Floats:
    codes = cells.groupby(by, sort=False).ngroup().to_numpy()
    return np.eye(codes.max() + 1)[codes]


def _by_number(shots: str) -> float:
    return np.inf if shots == _MANY else float(shots)
