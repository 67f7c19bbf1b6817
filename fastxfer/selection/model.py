"""What results foretell of configurations that have not been run: a hierarchical model, fitted as a Gaussian process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel

from fastxfer.selection.belief import Belief, Floats
from fastxfer.selection.kernels import Near, Same, Slope
from fastxfer.selection.noise import Noise

_LEVEL = 50.0**2  # variance of a contest's level, points squared: nothing is known of it
_SPREAD = 1.0  # the prior of every effect's log variance: normal about 0 (1 point), sd 2 (a factor of e in points)


@dataclass(frozen=True)
class Effects:
    """What a value is the sum of, by columns of a table.

    level:  columns of a contest: its level, of which nothing is known
    groups: a random effect each, shared by rows that agree in all of its columns
    slopes: (number, columns): a straight line along the number, shared by rows that agree in the columns
    own:    what rows that agree in these columns have for themselves
    along:  number along which groups and slopes change smoothly; None: they don't
    """

    level: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    own: tuple[str, ...]
    slopes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    along: str | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        return (*(number for number, _ in self.slopes), *((self.along,) if self.along else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        named = [*self.level, *self.own, *(c for g in self.groups for c in g), *(c for _, g in self.slopes for c in g)]
        return (*dict.fromkeys(named), *dict.fromkeys(self.numbers))

    def kernel(self) -> Kernel:
        """The sum of all effects, each of a variance of 1 point squared to begin with."""
        at = {column: i for i, column in enumerate(self.columns)}

        def same(columns: tuple[str, ...]) -> Kernel:
            return Same(tuple(at[c] for c in columns))

        def varied(kernel: Kernel) -> Kernel:
            return ConstantKernel(1.0, (1e-4, 1e4)) * kernel

        effects = [varied(same(group)) for group in self.groups]
        effects += [varied(Slope(at[number]) * same(group)) for number, group in self.slopes]
        total = reduce(add, effects)
        if self.along is not None:
            total = Near(at[self.along]) * total
        return ConstantKernel(_LEVEL, "fixed") * same(self.level) + total + varied(same(self.own))


@dataclass
class Model:
    """Effects with their variances, and the results they were seen in."""

    effects: Effects
    process: GaussianProcessRegressor
    offset: float = 50.0
    codes: dict[str, dict[Any, int]] = field(default_factory=dict)

    def foretell(self, table: pd.DataFrame) -> tuple[Floats, Floats]:
        """Mean (n,) and covariance (n, n) of the rows' values, in points."""
        mean, covariance = self.process.predict(self._encode(table), return_cov=True)
        n = len(table)  # scikit-learn makes a scalar of one
        return np.reshape(mean, n) + self.offset, np.reshape(covariance, (n, n))

    def forgetful(self) -> Model:
        """The same variances, and no result."""
        kernel = getattr(self.process, "kernel_", self.process.kernel)
        return Model(self.effects, GaussianProcessRegressor(kernel, optimizer=None), offset=0.0)

    def _encode(self, table: pd.DataFrame) -> Floats:
        columns = []
        for name in self.effects.columns:
            if name in self.effects.numbers:
                columns.append(table[name].to_numpy(float))
            else:
                known = self.codes.setdefault(name, {})
                columns.append(np.array([known.setdefault(value, len(known)) for value in table[name]], float))
        return np.column_stack(columns)


def learn(effects: Effects, results: pd.DataFrame, *, fit: bool = True) -> Model:
    """A model of results: the effects' columns, `value` (mean of runs, points), `variance` (of that mean).

    fit: choose the variances by their posterior (marginal likelihood times a log-normal prior about one point); else, and where
         there are fewer than eight results, all effects have one point. Without results the model is its prior.
    """
    fit = fit and len(results) >= 8
    variance = results["variance"].to_numpy(float) if len(results) else 1e-6
    process = GaussianProcessRegressor(effects.kernel(), alpha=variance, optimizer=_most_probable if fit else None)
    if results.empty:
        return Model(effects, process)
    model = Model(effects, process, float(results["value"].mean()))
    process.fit(model._encode(results), results["value"].to_numpy(float) - model.offset)
    return model


def _most_probable(objective: Callable[..., Any], start: Floats, bounds: Floats) -> tuple[Floats, float]:
    """scikit-learn's contract of an optimiser; theta are logarithms of variances, and of a length about 2."""

    def penalised(theta: Floats) -> tuple[float, Floats]:
        value, slope = objective(theta, eval_gradient=True)
        away = (theta - start) / (2 * _SPREAD)
        return value + 0.5 * float(away @ away), slope + away / (2 * _SPREAD)

    best = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    return best.x, float(best.fun)


def believe(
    model: Model,
    table: pd.DataFrame,
    noise: Noise,
    *,
    seeds: int | pd.Series = 1,
    dof: float = 3.0,
) -> Belief:
    """What the model says of the configurations of a table, before any run: its columns, `images` and `shots`.

    seeds: runs that may be made of each; a contest's runs of one seed share what the noise says is common
    dof:   how sure the model's scale is (`Belief`)
    """
    mean, covariance = model.foretell(table)
    n = len(table)
    counts = np.broadcast_to(np.asarray(seeds), n)
    of = np.repeat(np.arange(n), counts)
    seed = np.concatenate([np.arange(k) for k in counts])
    contest = table.groupby(list(model.effects.level), sort=False, observed=True).ngroup().to_numpy()
    images = table["images"].to_numpy(float)
    own, common = noise.own(images)[of], noise.common(images, table["shots"])[of]
    together = (contest[of][:, None] == contest[of]) & (seed[:, None] == seed)
    runs = covariance[np.ix_(of, of)] + together * np.outer(common, common) + np.diag(own**2)
    across = covariance[:, of]
    return Belief(
        contest=contest,
        of=of,
        seed=seed,
        made=np.zeros(len(of), bool),
        mean=np.concatenate([mean, mean[of]]),
        covariance=np.block([[covariance, across], [across.T, runs]]),
        dof=max(dof, 3.0),
    )
