"""From rows to contests: contenders lined up episode by episode, with what their test images do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.comparing.cells import comparable_cells, natural_key
from fastxfer.comparing.contests import SETTING, Contest, words_of
from fastxfer.progress import progress
from fastxfer.results import CELL, Cell
from fastxfer.statistics import variance_over_images

Array = NDArray[Any]

BETWEEN = {"backbone": "label", "probe": "probe", "shots": "shots"}


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
    nested = "shots" in between
    lists = np.zeros(len(cells), int) if nested else pd.factorize(cells["episodes_hash"])[0]
    cells = cells.assign(at=at, list=lists, cell=_cells_of(cells))
    columns = {name: rows[name].to_numpy() for name in ("episode", "value", "n_queries")}
    images = read_images(set(cells["cell"])) if read_images else None
    by_cell = _positions(images)
    common = [column for column in SETTING if column not in differ]
    found: list[Contest] = []
    notes: list[str] = []
    grouped = list(cells.groupby(common, sort=True))
    with progress("lining up episodes", len(grouped), "settings") as advance:
        for key, group in grouped:
            setting = dict(zip(common, key, strict=True))
            sides = {name: _Side.of(part, columns) for name, part in group.groupby(differ, sort=False)}
            if len(sides) > 1:
                contest = _line_up(setting, sides, images, by_cell, notes)
                if contest is not None:
                    found.append(contest)
            advance(1)
    found.sort(key=lambda c: [natural_key(c.setting.get(column, "")) for column in SETTING])
    return found, notes


@dataclass(frozen=True, eq=False)
class _Side:
    """One contender: keys (n, 3), sorted (seed, number of the list of episodes, episode); values (n,); its cells."""

    keys: Array
    values: Array
    queries: int
    cells: list[Cell]

    @classmethod
    def of(cls, cells: pd.DataFrame, columns: dict[str, Array]) -> _Side:
        at = np.concatenate(list(cells["at"]))
        of_cell = [np.repeat(cells[name].to_numpy(np.int64), cells["n"]) for name in ("seed", "list")]
        keys = np.column_stack([*of_cell, columns["episode"][at]])
        order = np.lexsort(keys.T[::-1])
        return cls(keys[order], columns["value"][at][order], int(columns["n_queries"][at[0]]), list(cells["cell"]))

    def common(self, keys: Array) -> Array:
        """Those of some keys that it has, too."""
        return pd.DataFrame(keys).merge(pd.DataFrame(self.keys)).to_numpy()

    def only(self, keys: Array) -> _Side:
        """Cut down to some of its keys."""
        frame = pd.DataFrame(self.keys).assign(value=self.values)
        return replace(self, keys=keys, values=pd.DataFrame(keys).merge(frame)["value"].to_numpy())


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
    if not all(np.array_equal(sides[name].keys, shared) for name in names):
        # Those who saw what most others saw are the contest.
        company = {name: sum(len(s.common(sides[name].keys)) > 0 for s in sides.values()) for name in names}
        shared = sides[max(names, key=lambda name: (company[name], len(sides[name].keys)))].keys
        for name in list(names):
            both = sides[name].common(shared)
            if not len(both):
                notes.append(f"{where}: {_said(name)} is left out, since it saw other episodes than the others")
                names.remove(name)
            else:
                shared = both
        sides = {name: sides[name].only(shared) for name in names}
    if len(names) < 2:
        return None
    if len(shared) < most:
        notes.append(f"{where}: compared on the {len(shared):,} episodes (of up to {most:,}) that all of them have")
    values = np.column_stack([sides[name].values for name in names])
    defined = np.isfinite(values).all(axis=1)
    if not defined.any():
        notes.append(f"{where}: the metric is undefined in every episode")
        return None
    if not defined.all():
        left = f"{(~defined).sum():,} of {len(defined):,} episodes are left out"
        notes.append(f"{where}: {left}, a value being undefined")
    plain = tuple(_said(name) if len(name) == 1 else name for name in names)
    contest = Contest(setting, plain, values[defined], sides[names[0]].queries)
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
    return _with_images(contest, [side for side, _ in lines], _second_half(shared[defined]))


def _cells_of(cells: pd.DataFrame) -> list[Cell]:
    return [tuple(cell) for cell in cells[list(CELL)].itertuples(index=False, name=None)]


def _positions(images: pd.DataFrame | None) -> dict[Cell, Array]:
    """Cell -> positions of its images."""
    if images is None or images.empty:
        return {}
    numbers = images.groupby(list(CELL), observed=True, sort=False).ngroup().to_numpy()
    at = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    return dict(zip(_cells_of(images.iloc[[positions[0] for positions in at]]), at, strict=True))


def _second_half(keys: Array) -> NDArray[np.bool_]:
    """(n,) which replicates are of the second half: odd episodes; where a seed has a single one, every other seed."""
    _, seeds, sizes = np.unique(keys[:, 0], return_inverse=True, return_counts=True)
    return np.where(sizes[seeds] == 1, seeds, keys[:, 2]) % 2 == 1


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


def _said(name: tuple[str, ...]) -> str:
    return ", ".join(name)
