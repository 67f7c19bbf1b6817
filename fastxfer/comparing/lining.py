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
    by_cell = _by_cell(read_images(set(cells["cell"]))) if read_images else None
    common = [column for column in SETTING if column not in differ]
    found: list[Contest] = []
    notes: list[str] = []
    grouped = list(cells.groupby(common, sort=True))
    with progress("lining up episodes", len(grouped), "settings") as advance:
        for key, group in grouped:
            setting = dict(zip(common, key, strict=True))
            sides = {name: _Side.of(part, columns) for name, part in group.groupby(differ, sort=False)}
            if len(sides) > 1:
                contest = _line_up(setting, sides, by_cell, notes)
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
    by_cell: dict[Cell, dict[str, Array]] | None,
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
    if by_cell is None or any(cell not in by_cell for name in names for cell in sides[name].cells):
        return contest
    lines = [_Images.of([by_cell[cell] for cell in sides[name].cells]) for name in names]
    if any(side.replicates != contest.n for side in lines):
        notes.append(f"{where}: nothing is said over test images: their influences are of other episodes than these")
        return contest
    if not all(np.array_equal(side.image, lines[0].image) and np.array_equal(side.n, lines[0].n) for side in lines):
        notes.append(f"{where}: nothing is said over test images: contenders were asked other ones")
        return contest
    return _with_images(contest, lines, _second_half(shared[defined]))


def _cells_of(cells: pd.DataFrame) -> list[Cell]:
    return [tuple(cell) for cell in cells[list(CELL)].itertuples(index=False, name=None)]


def _by_cell(images: pd.DataFrame) -> dict[Cell, dict[str, Array]]:
    """Cell -> its columns of `ResultStore.read_images`, a line an image."""
    if images.empty:
        return {}
    numbers = images.groupby(list(CELL), observed=True, sort=False).ngroup().to_numpy()
    order, ends = np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))
    columns = {
        name: images[name].to_numpy()[order] for name in ("image", "group", "episodes", "rarity", "n", "sum", "odd")
    }
    keys = _cells_of(images.iloc[order[ends - 1]])
    return {
        key: {name: column[start:end] for name, column in columns.items()}
        for key, start, end in zip(keys, [0, *ends[:-1]], ends, strict=True)
    }


def _second_half(keys: Array) -> NDArray[np.bool_]:
    """(n,) which replicates are of the second half: odd episodes; where a seed has a single one, every other seed."""
    _, seeds, sizes = np.unique(keys[:, 0], return_inverse=True, return_counts=True)
    return np.where(sizes[seeds] == 1, seeds, keys[:, 2]) % 2 == 1


@dataclass(frozen=True, eq=False)
class _Images:
    """One contender's test images, its cells (seeds) added up.

    image, group, n, first, second (n_images,): rows of the target, sorted; group; how often asked; sums over two halves of
    the replicates. rarity: on average over cells. replicates: how many these are
    """

    image: Array
    group: Array
    n: Array
    first: Array
    second: Array
    rarity: float
    replicates: int

    @classmethod
    def of(cls, cells: list[dict[str, Array]]) -> _Images:
        replicates = [int(cell["episodes"][0]) for cell in cells]
        # A cell of one replicate is of one half, by the place of its seed.
        seconds = [
            cell["odd"] if episodes > 1 else cell["sum"] * (number % 2)
            for number, (cell, episodes) in enumerate(zip(cells, replicates, strict=True))
        ]
        every = {name: np.concatenate([cell[name] for cell in cells]) for name in cells[0]}
        second = np.concatenate(seconds)
        image, first_at, at = np.unique(every["image"], return_index=True, return_inverse=True)

        def added(values: Array) -> Array:
            return np.bincount(at, values, len(image))

        return cls(
            image,
            every["group"][first_at],
            added(every["n"]),
            added(every["sum"] - second),
            added(second),
            float(every["rarity"][at == 0].mean()),
            sum(replicates),
        )


def _with_images(contest: Contest, lines: list[_Images], second: NDArray[np.bool_]) -> Contest:
    """The contest with what its test images do. lines: of each contender; second (n,): replicates of the second half."""
    group = np.unique(lines[0].group, return_inverse=True)[1]
    counts = [(~second).sum(), second.sum()] if contest.n > 1 else [1]
    if min(counts) == 0:
        return contest
    firsts, seconds = (np.column_stack([getattr(side, name) for side in lines]) for name in ("first", "second"))
    halves = np.zeros((len(counts), int(group.max()) + 1, len(lines)))
    for half, sums, count in zip(halves, (firsts, seconds), counts, strict=False):
        np.add.at(half, group, sums / count)
    asked = lines[0].n
    pairs = contest.n * (contest.n - 1) * contest.queries
    overlap = float((asked * (asked - 1)).sum() / pairs) if pairs else float("nan")
    alone = variance_over_images(
        np.repeat(np.arange(len(lines)), len(group)),
        np.concatenate([side.group for side in lines]),
        np.concatenate([side.n for side in lines]),
        (firsts + seconds).T.ravel(),
        seconds.T.ravel(),
        np.full(len(lines), contest.n),
    )
    rarity = np.array([side.rarity for side in lines])
    return replace(contest, halves=halves, n_images=len(group), overlap=overlap, alone=alone, rarity=rarity)


def _said(name: tuple[str, ...]) -> str:
    return ", ".join(name)
