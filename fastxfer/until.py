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


class Until:
    """Knows the values of cells, and whether their means are known to ± `half_width` by the confidence sequence."""

    def __init__(self, half_width: float, metrics: Iterable[str], rows: pd.DataFrame) -> None:
        for metric in metrics:
            found = meaning(metric)
            if found is None or not found.share:
                bounded = [m for m, own in METRICS.own.items() if own.share]
                raise UsageError(
                    f"--until is for metrics between 0 and 1, and {metric} is none: choose among {', '.join(bounded)}"
                )
        self.half_width = half_width
        self._values: dict[Cell, NDArray[np.float64]] = {}
        self.add(rows)

    def add(self, rows: pd.DataFrame) -> None:
        """New rows of cells, from the episode on where the last ones ended."""
        for cell, part in rows.groupby(list(CELL), observed=True, sort=False):
            values = part.sort_values("episode")["value"].to_numpy(np.float64)
            self._values[tuple(cell)] = np.r_[self._values.get(tuple(cell), np.empty(0)), values]

    def interval(self, cell: Cell) -> tuple[float, float]:
        """The confidence sequence's low and high of a cell, at its last episode."""
        return confidence_sequence(self._values.get(cell, np.empty(0)), self.half_width)

    def is_known(self, cell: Cell) -> bool:
        low, high = self.interval(cell)
        return high - low <= 2 * self.half_width

    def windows(self, episodes: Episodes, cells: Iterable[Cell]) -> Iterator[Episodes]:
        """Episodes in parts, until all the cells are known; what came of one part is to be added before the next."""
        cells, start = list(cells), 0
        while start < episodes.n_episodes and not all(self.is_known(cell) for cell in cells):
            stop = min(episodes.n_episodes, start + max(FEWEST, (episodes.first + start) // 10))
            yield episodes.window(start, stop)
            start = stop
