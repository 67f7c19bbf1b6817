"""Contenders on the same episodes: their values side by side, and how far means and differences of them may be off.

Episodes share test images, so there are two questions. Over **episodes**: what other draws of support and queries from
these same images would give. Over **episodes and test images**: what new images of the same kind would give, too. The
first is the variance of a mean of independent draws. The second adds what images do whatever the episode: the products of
their influences on two halves of the episodes, which have nothing but the images in common.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fastxfer.comparing.cells import comparable_cells, natural_key
from fastxfer.progress import progress
from fastxfer.results import CELL, Cell
from fastxfer.statistics import (
    EPISODES,
    EPISODES_AND_IMAGES,
    TEST_IMAGES,
    ImageVariance,
    interval_over_images,
    t_interval,
    variance_over_images,
)
from fastxfer.statistics.intervals import FEWEST_GROUPS

Array = NDArray[Any]

NOTHING = "nothing"
SETTING = ("label", "target", "ways", "shots", "probe", "split", "metric")
BETWEEN = {"backbone": "label", "probe": "probe", "shots": "shots"}
SHARES_OF_RIGHT = ("accuracy", "balanced_accuracy")


class Estimate(NamedTuple):
    """A mean, the variance of its error and the degrees of freedom of that; NaN where it is not known."""

    mean: float
    variance: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval."""
        low, high = t_interval(np.array(self.mean), np.array(self.variance), np.array(self.df), level)
        return float(low), float(high)

    def p(self) -> float:
        """Of the two-sided t test that the mean is 0."""
        if self.variance == 0:
            return float(self.mean == 0)
        return float(2 * stats.t.sf(abs(self.mean) / np.sqrt(self.variance), self.df))

    def p_equivalent(self, margin: float) -> float:
        """Of the two one-sided t tests (Schuirmann 1987) that the mean is further from 0 than `margin`."""
        if self.variance == 0:
            return float(abs(self.mean) >= margin)
        return float(stats.t.sf((margin - abs(self.mean)) / np.sqrt(self.variance), self.df))


@dataclass(frozen=True)
class Contest:
    """What contenders scored in one setting, all of them in the same replicates.

    A replicate is an episode, or, of full probes and fine-tunings, a seed.

    setting    what they have in common: some of SETTING
    names      (k,) what they differ in, a string each (or a tuple, where they differ in several columns)
    values     (n, k)
    queries    of a replicate, how many
    halves     (2, n_groups, k) of a group of test images (an image, or a patient's): its influence on the mean of each
               contender over one half of the replicates and over the other; of a single replicate (1, n_groups, k). None
               where nobody knows
    n_images   how many images these are
    overlap    share of its queries that a replicate has in common with another one, on average; NaN where nobody knows
    alone      what images do to each contender's own mean, and `rarity` (k,), what belongs to its variance beside that
    """

    setting: dict[str, str]
    names: tuple[Any, ...]
    values: Array
    queries: int
    halves: Array | None = None
    n_images: int = 0
    overlap: float = float("nan")
    alone: ImageVariance | None = None
    rarity: Array | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def n_groups(self) -> int:
        return 0 if self.halves is None else self.halves.shape[1]

    @property
    def grouped(self) -> bool:
        """Whether some groups have several images."""
        return self.n_groups < self.n_images

    @property
    def over(self) -> str:
        """The widest population that these data can speak of."""
        if self.n_groups < FEWEST_GROUPS:
            return EPISODES if self.n > 1 else NOTHING
        return EPISODES_AND_IMAGES if self.n > 1 else TEST_IMAGES

    def intervals(self, level: float = 0.95) -> tuple[Array, Array]:
        """(k,) each: the interval of each contender's own mean over `over`, as `fastxfer.statistics.summarise` has it."""
        mean, n = self.values.mean(axis=0), self.n
        episodes = self.values.var(axis=0, ddof=1) / n if n > 1 else np.zeros(len(mean))
        if self.over in (EPISODES, NOTHING) or self.alone is None or self.rarity is None:
            return t_interval(mean, episodes, np.full(len(mean), n - 1), level)
        metric, replicates = self.setting["metric"], np.full(len(mean), n)
        return interval_over_images(metric, mean, episodes, replicates, self.alone, self.rarity, level)

    def difference(self, a: int, b: int, over: str) -> Estimate:
        """The mean of a less b over a population: EPISODES, TEST_IMAGES (those of one replicate) or EPISODES_AND_IMAGES."""
        weights = np.zeros((len(self.names), 1))
        weights[a], weights[b] = 1, -1
        mean, covariance, df = self.estimates(weights, over)
        return Estimate(float(mean[0]), float(covariance[0, 0]), float(df[0]))

    def estimates(self, weights: Array, over: str) -> tuple[Array, Array, Array]:
        """Of several combinations, weights (k, m): means (m,), covariance (m, m), degrees of freedom (m,).

        NaN where the data do not speak of that population: neither does a metric that no image has moved, unless it is a
        share of right answers.

        Of a share of right answers, the image that moves it most is counted twice, and where a handful do all the moving, an
        image more on which contenders are always of two minds. So Agresti & Min (2005) add a half to each cell of the table
        of two answers: a few images on which contenders differ would else look as if there could be no others.

        Degrees of freedom are Satterthwaite's (1946): those of the images' part come from how unlike its summands are, so
        that a few positives, or a few images on which contenders differ, count as few.
        """
        m = weights.shape[1]
        each = self.values @ weights
        mean, unknown = each.mean(axis=0), np.full((m, m), np.nan)
        episodes = np.cov(each, rowvar=False).reshape(m, m) / self.n if self.n > 1 else unknown
        if over in (EPISODES, NOTHING):
            return mean, episodes, np.full(m, max(self.n - 1.0, 1.0))
        if over != self.over or self.halves is None:
            return mean, unknown, np.ones(m)
        shifts, n = self.halves @ weights, self.n_groups
        images, summands = shifts[0].T @ shifts[-1], shifts[0] * shifts[-1]
        if over == TEST_IMAGES:
            # Influences are made for independent images: their squares sum to an unbiased variance.
            images *= n / (n - 1) * (self.n_images - 1) / self.n_images
        else:
            values, vectors = np.linalg.eigh((images + images.T) / 2)
            images = (vectors * np.maximum(values, 0)) @ vectors.T
        moved = np.abs(summands).sum(axis=1)
        if self.setting["metric"] in SHARES_OF_RIGHT:
            few = moved.sum() ** 2 < FEWEST_GROUPS * (moved**2).sum() or not moved.any()
            most = np.full(m, 1 / n) if few else shifts[:, moved.argmax()].mean(axis=0)
            images, summands = images + np.outer(most, most), np.vstack([summands, most**2])
        elif not moved.any():
            return mean, unknown, np.ones(m)
        total = images if over == TEST_IMAGES else episodes + images
        error = len(summands) * summands.var(axis=0, ddof=1)
        if over == EPISODES_AND_IMAGES:
            error += 2 * np.diag(episodes) ** 2 / (self.n - 1)
        df = 2 * np.diag(total) ** 2 / np.maximum(error, 1e-300)
        return mean, total, np.clip(df, 1.0, self.n + n - 2.0)


def contests(
    rows: pd.DataFrame,
    read_images: Callable[[Collection[Cell]], pd.DataFrame] | None = None,
    *,
    between: Sequence[str] = ("backbone",),
    only: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Contest], list[str]]:
    """All contests of some results, and notes on what could not take part.

    rows         columns of `fastxfer.results.SCHEMA`
    read_images  `ResultStore.read_images`; None: nothing is said over test images, nor of cells that it has no lines of
    between      what contenders differ in: "backbone", "probe" or "shots", or several of these; all else is alike
    only         see `comparable_cells`

    Contenders are lined up by seed, episode and list of episodes; those that saw other episodes are left out, and so are
    episodes that not all of them have, or in which a value is undefined. Between numbers of shots the lists differ by
    their nature, but support is nested and queries are the same, so seed and episode are enough.
    """
    cells, at = comparable_cells(rows, only or {})
    differ = [BETWEEN[name] for name in between]
    seen = {name: rows[name].to_numpy() for name in ("seed", "episode", "value", "n_queries")}
    images = read_images(set(_cells_of(cells))) if read_images else None
    by_cell = _positions(images)
    common = [column for column in SETTING if column not in differ]
    found: list[Contest] = []
    notes: list[str] = []
    grouped = list(cells.assign(at=at).groupby(common, sort=True))
    with progress("lining up episodes", len(grouped), "settings") as advance:
        for key, group in grouped:
            setting = dict(zip(common, key, strict=True))
            sides = {name: _Side.of(part, seen, "shots" in between) for name, part in group.groupby(differ, sort=False)}
            if len(sides) > 1:
                contest = _line_up(setting, sides, images, by_cell, notes)
                if contest is not None:
                    found.append(contest)
            advance(1)
    found.sort(key=lambda c: [natural_key(c.setting.get(column, "")) for column in SETTING])
    return found, notes


@dataclass(frozen=True)
class _Side:
    """One contender's rows: key (seed, list of episodes, episode), value; and its cells."""

    rows: pd.DataFrame
    cells: list[Cell]

    @classmethod
    def of(cls, cells: pd.DataFrame, seen: dict[str, Array], nested: bool) -> _Side:
        at = np.concatenate(list(cells["at"]))
        lists = np.repeat("" if nested else cells["episodes_hash"].astype(str), cells["n"])
        frame = pd.DataFrame({"list": np.asarray(lists, object), **{name: column[at] for name, column in seen.items()}})
        frame = frame.sort_values(["seed", "list", "episode"], ignore_index=True)
        return cls(frame, _cells_of(cells))

    @property
    def keys(self) -> pd.DataFrame:
        return self.rows[["seed", "list", "episode"]]


def _line_up(
    setting: dict[str, str],
    sides: dict[Any, _Side],
    images: pd.DataFrame | None,
    by_cell: dict[Cell, Array],
    notes: list[str],
) -> Contest | None:
    where = words_of(setting)
    names = sorted(sides, key=lambda name: [natural_key(part) for part in name])
    most = max(len(sides[name].keys) for name in names)
    shared = sides[names[0]].keys
    if not all(sides[name].keys.equals(shared) for name in names):
        shared = sides[max(names, key=lambda name: _company(sides, name))].keys
        for name in list(names):
            both = shared.merge(sides[name].keys)
            if both.empty:
                notes.append(f"{where}: {_said(name)} is left out, since it saw other episodes than the others")
                names.remove(name)
            else:
                shared = both
        sides = {name: _Side(shared.merge(sides[name].rows), sides[name].cells) for name in names}
    if len(names) < 2:
        return None
    if len(shared) < most:
        notes.append(f"{where}: compared on the {len(shared):,} episodes (of up to {most:,}) that all of them have")
    values = np.column_stack([sides[name].rows["value"].to_numpy() for name in names])
    defined = np.isfinite(values).all(axis=1)
    if not defined.any():
        notes.append(f"{where}: the metric is undefined in every episode")
        return None
    if not defined.all():
        notes.append(
            f"{where}: {(~defined).sum():,} of {len(defined):,} episodes are left out, a value being undefined"
        )
    queries = int(sides[names[0]].rows["n_queries"].iloc[0])
    plain = tuple(_said(name) if len(name) == 1 else name for name in names)
    contest = Contest(setting, plain, values[defined], queries)
    if images is None or any(cell not in by_cell for name in names for cell in sides[name].cells):
        return contest
    lines = [_image_lines(images, [by_cell[cell] for cell in sides[name].cells]) for name in names]
    if any(episodes != contest.n for _, episodes in lines):
        notes.append(f"{where}: nothing is said over test images: their influences are of other episodes than these")
        return contest
    asked = lines[0][0][["image", "n"]]
    if not all(np.array_equal(side[["image", "n"]], asked) for side, _ in lines):
        notes.append(f"{where}: nothing is said over test images: contenders were asked other ones")
        return contest
    return _with_images(contest, [side for side, _ in lines], _second_half(sides[names[0]].rows[defined]))


def _company(sides: dict[Any, _Side], name: Any) -> tuple[int, int]:
    """With how many others a contender has episodes in common, and how many episodes it has."""
    own = sides[name].keys
    return sum(not own.merge(side.keys).empty for side in sides.values()), len(own)


def _cells_of(cells: pd.DataFrame) -> list[Cell]:
    return [tuple(cell) for cell in cells[list(CELL)].itertuples(index=False, name=None)]


def _positions(images: pd.DataFrame | None) -> dict[Cell, Array]:
    """Cell -> positions of its images."""
    if images is None or images.empty:
        return {}
    numbers = images.groupby(list(CELL), observed=True, sort=False).ngroup().to_numpy()
    at = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    return dict(zip(_cells_of(images.iloc[[positions[0] for positions in at]]), at, strict=True))


def _second_half(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """(n,) which replicates are of the second half: odd episodes; where a seed has a single one, every other seed."""
    _, seeds, sizes = np.unique(rows["seed"], return_inverse=True, return_counts=True)
    return np.where(sizes[seeds] == 1, seeds, rows["episode"]) % 2 == 1


def _image_lines(images: pd.DataFrame, at: list[Array]) -> tuple[pd.DataFrame, int]:
    """One contender's images, sorted, its cells (seeds) added up: image, group, n, first and second (sums over halves of
    replicates), rarity; and how many replicates these are."""
    parts, replicates = [], 0
    for number, positions in enumerate(at):
        part = images.iloc[positions]
        episodes = int(part["episodes"].iloc[0])
        # A cell of one replicate is of one half, by the place of its seed.
        second = part["odd"] if episodes > 1 else part["sum"] * (number % 2)
        parts.append(part.assign(first=part["sum"] - second, second=second))
        replicates += episodes
    sums = {"group": "first", "n": "sum", "first": "sum", "second": "sum", "rarity": "mean"}
    return pd.concat(parts).groupby("image", observed=True).agg(sums).reset_index(), replicates


def _with_images(contest: Contest, lines: list[pd.DataFrame], second: NDArray[np.bool_]) -> Contest:
    """The contest with what its test images do. lines: a frame a contender; second (n,): replicates of the second half."""
    group = np.unique(lines[0]["group"], return_inverse=True)[1]
    counts = [(~second).sum(), second.sum()] if contest.n > 1 else [1]
    if min(counts) == 0:
        return contest
    halves = np.zeros((len(counts), int(group.max()) + 1, len(lines)))
    for half, name, count in zip(halves, ("first", "second"), counts, strict=False):
        np.add.at(half, group, np.column_stack([side[name] for side in lines]) / count)
    asked = lines[0]["n"].to_numpy(float)
    pairs = contest.n * (contest.n - 1) * contest.queries
    overlap = float((asked * (asked - 1)).sum() / pairs) if pairs else float("nan")
    every = pd.concat(lines)
    alone = variance_over_images(
        np.repeat(np.arange(len(lines)), len(group)),
        every["group"].to_numpy(),
        every["n"].to_numpy(),
        (every["first"] + every["second"]).to_numpy(),
        every["second"].to_numpy(),
        np.full(len(lines), contest.n),
    )
    rarity = np.array([side["rarity"].iloc[0] for side in lines])
    return replace(contest, halves=halves, n_images=len(group), overlap=overlap, alone=alone, rarity=rarity)


def words_of(setting: Mapping[str, str]) -> str:
    """ "pets, 5 ways, 1 shots, logistic, test, accuracy": a setting, for people."""
    named = {"ways": "{} ways", "shots": "{} shots"}
    return ", ".join(named.get(column, "{}").format(value) for column, value in setting.items())


def _said(name: tuple[str, ...]) -> str:
    return ", ".join(name)
