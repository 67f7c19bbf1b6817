"""What is believed of configurations before and between fine-tunings: a joint Student t over values and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_JITTER = 1e-9  # of the variance of runs: one that is certain already must not divide by nothing


@dataclass(frozen=True)
class Belief:
    """A Student t process over the values of n configurations and over the r runs that may be made of them, in points.

    contest:    (n,) which contest a configuration is in; one of each contest will be chosen
    of, seed:   (r,) the configuration of a run, and its seed: runs of one contest and seed share their support
    made:       (r,) whether the run has been made
    mean:       (n + r,) values first, then runs
    covariance: (n + r, n + r) of the process, were its scale right
    dof:        how sure the scale is; the number of targets that it was learnt from. At least 3
    misfit:     (y - mean)' covariance^-1 (y - mean) of the runs made: the number of runs, were the scale right

    A run is a value with noise. The level of a contest is in the covariance, and falls out of every comparison inside it. A
    target may vary more, or less, than those that the covariance was learnt from: the runs themselves tell (Shah, Wilson and
    Ghahramani 2014, arXiv 1402.4306).
    """

    contest: Ints
    of: Ints
    seed: Ints
    made: NDArray[np.bool_]
    mean: Floats
    covariance: Floats
    dof: float = 3.0
    misfit: float = 0.0

    @property
    def n(self) -> int:
        return len(self.contest)

    @property
    def values(self) -> Floats:
        """(n,) the expected values."""
        return self.mean[: self.n]

    @property
    def freedom(self) -> float:
        """Degrees of freedom of what is believed now."""
        return self.dof + float(self.made.sum())

    @property
    def scale(self) -> float:
        """Factor of standard deviations: of the t's scale against the covariance's root."""
        return float(np.sqrt((self.dof + self.misfit - 2) / self.freedom))

    def observe(self, runs: Sequence[int] | Ints, results: Sequence[float] | Floats) -> Belief:
        """The belief after these runs, in points: conditioning on some of the coordinates."""
        where = self.n + np.asarray(runs, np.int64)
        if not len(where):
            return self
        across = self.covariance[:, where]
        inner = across[where]
        inner = inner + _JITTER * max(float(inner.trace()), _JITTER) * np.eye(len(where))
        surprise = np.asarray(results, float) - self.mean[where]
        gain = np.linalg.solve(inner, across.T).T
        made = self.made.copy()
        made[where - self.n] = True
        return replace(
            self,
            made=made,
            mean=self.mean + gain @ surprise,
            covariance=self.covariance - gain @ across.T,
            misfit=self.misfit + float(surprise @ np.linalg.solve(inner, surprise)),
        )

    def runs_made(self) -> Ints:
        """(n,) runs made of each configuration."""
        return np.bincount(self.of[self.made], minlength=self.n)

    def left(self) -> list[Ints]:
        """The runs not yet made of each configuration, by seed."""
        runs = np.flatnonzero(~self.made)
        runs = runs[np.lexsort((self.seed[runs], self.of[runs]))]
        return np.split(runs, np.searchsorted(self.of[runs], np.arange(1, self.n)))

    def contests(self) -> list[Ints]:
        """The configurations of each contest."""
        return [np.flatnonzero(self.contest == c) for c in np.unique(self.contest)]

    def favourites(self) -> Ints:
        """(n,) for each configuration, that of its contest which is expected to be best; the first of equals."""
        best = np.empty(self.n, np.int64)
        for members in self.contests():
            best[members] = members[np.argmax(self.values[members])]
        return best

    def against(self, other: Ints) -> tuple[Floats, Floats]:
        """Mean and t-scale (n,) of each value less that of its `other` (n,); the contest's level is out of it."""
        own = np.arange(self.n)
        covariance = self.covariance[: self.n, : self.n]
        variance = covariance[own, own] + covariance[other, other] - 2 * covariance[own, other]
        return self.values - self.values[other], self.scale * np.sqrt(np.maximum(variance, 0.0))


def expected_excess(mean: Floats, scale: Floats, dof: float) -> Floats:
    """E max(0, x) of x = mean + scale t, t Student with dof > 1: expected improvement (Jones et al. 1998; for the t as in Shah
    et al. 2014; tests hold it against integration)."""
    certain = scale <= 0
    z = np.where(certain, 0.0, mean / np.where(certain, 1.0, scale))
    # The density, by its definition: scipy.stats takes fifty times as long, and a replay asks for it at every run.
    log_density = special.gammaln((dof + 1) / 2) - special.gammaln(dof / 2) - (dof + 1) / 2 * np.log1p(z**2 / dof)
    density = np.exp(log_density) / np.sqrt(dof * np.pi)
    excess = mean * special.stdtr(dof, z) + scale * (dof + z**2) / (dof - 1) * density
    return np.where(certain, np.maximum(mean, 0.0), excess)


def expected_best(mean: Floats, reach: Floats, dof: float) -> Floats:
    """E max_k(mean_k + reach_ok t) - max_k mean_k for each option o: what a t-distributed outcome is worth.

    mean (k,), reach (o, k) -> (o,). The h(a, b) of Frazier, Powell and Dayanik 2009 (INFORMS J. Computing 21), over
    128 equally likely values of t.
    """
    t = special.stdtrit(dof, (np.arange(128) + 0.5) / 128)
    outcomes = (mean[None, :, None] + reach[:, :, None] * t).max(axis=1)
    return np.maximum(outcomes.mean(axis=1) - mean.max(), 0.0)
