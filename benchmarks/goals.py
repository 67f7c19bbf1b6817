"""What the benchmarks are meant to reach, and how an entry stands to it.

A goal is a limit of one field of the entries with a name. Goals were set before the code was written; none was moved to
meet a figure. An entry may have several, or none: then it is kept to be compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Goal:
    """of: the names that it is for, with *; field: of the entry; least or most: the limit; words: what the field says."""

    of: str
    field: str
    words: str
    least: float | None = None
    most: float | None = None

    def met(self, figure: float) -> bool:
        """Whether a figure is within the limit."""
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"


FASTER = "times as fast, a core"
GOALS = (
    *(
        Goal(f"fewshot/{work}", "ratio_per_core", FASTER, least=least)
        for work, least in (
            ("5w1s", 1000),
            ("5w5s", 400),
            ("20w5s", 120),
            ("20w20s", 20),
            ("5w1s/20k", 500),
            ("5w5s/20k", 120),
            ("20w5s/20k", 60),
            ("20w20s/20k", 10),
            ("*/torch", 5),
            ("*/torch64", 5),
        )
    ),
    Goal("path/*", "times_single", "times a single solve", most=6),
    Goal("gram/pool", "times", "times BLAS", most=1.15),
    Goal("knn/flat", "ratio", "times as fast", least=1),
    Goal("probe/full, same gap", "ratio", "times as fast", least=5),
    Goal("growth/dim*", "times", "times as long", most=1.1),
    Goal("growth/memory/*", "bytes_beyond_pool", "bytes", most=2 * 2**30),
    Goal("slopes/*", "slope_beyond", "beyond the work's slope", most=0.1),
    Goal("sample/*", "share_of_solving", "of solving", most=0.01),
    Goal("bit_r50x1", "ratio", "of the bare rate", least=1),
    Goal("efficientnet_lite0", "ratio", "of the bare rate", least=0.95),
    Goal("efficientnet_lite0/cached", "ratio", "of the bare rate", least=1),
    Goal("many", "ratio", "of the bare rates", least=0.95),
    Goal("first_row", "times", "times as long", most=1.3),
    Goal("store_read*", "ratio", "of NumPy's rate", least=0.8),
    Goal("store_write*", "ratio", "of NumPy's rate", least=0.5),
    Goal("store_gather", "ratio", "of NumPy's rate", least=0.8),
    Goal("store_gather/*", "ratio", "of NumPy's rate", least=0.8),
    Goal("bit_tiny/*", "ratio", "of the bare rate", least=0.95),
    Goal("bit_r50x1/crop", "ratio", "of the bare rate", least=0.95),
    Goal("selection/kg", "saved", "of the fine-tunings not run", least=0.8),
    Goal("selection/kg", "mean_regret_points", "points lost", most=0.5),
    Goal("selection/kg", "worst_regret_points", "points lost at worst", most=3),
)


def judged(entry: Mapping[str, Any]) -> list[tuple[Goal, float, bool]]:
    """The goals of an entry, its figure, and whether it is met; nothing for a trial size."""
    if entry.get("tiny"):
        return []
    entry = dict(entry)
    if "ratio" in entry:
        entry.setdefault("times", 1 / entry["ratio"])
    mine = [goal for goal in GOALS if fnmatchcase(entry["name"], goal.of)]
    return [(goal, float(entry[goal.field]), goal.met(float(entry[goal.field]))) for goal in mine]
