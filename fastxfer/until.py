"""As many episodes as the question needs and no more: `--until "ci 0.5"`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastxfer.episodes import Episodes
from fastxfer.errors import UsageError
from fastxfer.metrics import METRICS, meaning
from fastxfer.results import CELL, Cell
from fastxfer.statistics.sequences import confidence_sequence

FEWEST = 100  # episodes between two looks; later a tenth of those that are there


def parse_until(text: str) -> float:
    """ "ci 0.5", half a point, -> 0.005; `UsageError` for anything else."""
    word, _, number = text.strip().partition(" ")
    try:
        points = float(number)
    except ValueError:
        points = float("nan")
    if word != "ci" or not 0 < points < 50:
        raise UsageError(
            f"--until '{text}' is no such condition: give \"ci 0.5\" for a 95 % interval of ± 0.5 points (above 0, below 50)"
        )
    return points / 100


def looks(most: int) -> Iterator[int]:
    """The numbers of episodes at which means are looked at, up to `most`: always the same ones, wherever a run begins, so
    that it stops where any other would.
    """
    n = 0
    while (n := n + max(FEWEST, n // 10)) <= most:
        yield n


class Until:
    """Knows the values of cells, and after how many episodes their means are known to ± `half_width` by the confidence sequence."""

    def __init__(self, half_width: float, metrics: Iterable[str], rows: pd.DataFrame | None = None) -> None:
        for metric in metrics:
            found = meaning(metric)
            if found is None or not found.share:
                bounded = [m for m, own in METRICS.own.items() if own.share]
                raise UsageError(
                    f"--until is for metrics between 0 and 1, and {metric} is none: choose among {', '.join(bounded)}"
                )
        self.half_width = half_width
        self._values: dict[Cell, NDArray[np.float64]] = {}
        self._unknown: dict[tuple[Cell, ...], int] = {}  # the last look at which not all of them were known
        if rows is not None:
            self.add(rows)

    def add(self, rows: pd.DataFrame) -> None:
        """Rows of cells, columns CELL, episode, value; those of episodes that it knows already are passed over."""
        for cell, part in rows.groupby(list(CELL), observed=True, sort=False):
            known = self._values.get(tuple(cell), np.empty(0))
            new = part[part["episode"] >= len(known)].sort_values("episode")
            self._values[tuple(cell)] = np.r_[known, new["value"].to_numpy(np.float64)]

    def interval(self, cell: Cell) -> tuple[float, float]:
        """The confidence sequence's low and high of a cell, at its last episode."""
        return confidence_sequence(self._values.get(cell, np.empty(0)), self.half_width)

    def needed(self, cells: Iterable[Cell], most: int) -> int | None:
        """Episodes that the cells need: up to the first look, of at most `most`, at which the means of all are known; None
        where the episodes that are there do not tell.
        """
        cells = tuple(sorted(cells, key=str))
        there = min(len(self._values.get(cell, ())) for cell in cells)
        for n in looks(min(most, there)):
            if n > self._unknown.get(cells, 0):
                intervals = (confidence_sequence(self._values[cell][:n], self.half_width) for cell in cells)
                if all(high - low <= 2 * self.half_width for low, high in intervals):
                    return n
                self._unknown[cells] = n
        return None

    def windows(self, episodes: Episodes, cells: Iterable[Cell]) -> Iterator[Episodes]:
        """Episodes in parts, until the means of all cells are known; what came of one part is to be added before the next.

        episodes: the rest of a list, behind those that all of the cells have
        """
        cells, first, most = list(cells), episodes.first, episodes.first + episodes.n_episodes
        for stop in [*looks(most), most]:
            if stop <= first:
                continue
            if self.needed(cells, most) is not None:
                return
            yield episodes.window(first - episodes.first, stop - episodes.first)
            first = stop
