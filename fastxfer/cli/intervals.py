"""Intervals for people, and which rows they are made of."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from fastxfer.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from fastxfer.results import Cell


def interval_words(low: float, high: float) -> str:
    """ "0.7012 … 0.7134", or "–" where there is none."""
    return f"{low:.4f} … {high:.4f}" if math.isfinite(low) and math.isfinite(high) else "–"


def rows_of(rows: pd.DataFrame, cells: Collection[Cell]) -> pd.DataFrame:
    """The rows of some cells."""
    from fastxfer.results import CELL

    key = list(CELL)
    number = rows.groupby(key, observed=True, sort=False).ngroup()
    firsts = rows.loc[~number.duplicated(), key].itertuples(index=False, name=None)
    wanted = [cell in cells for cell in firsts]
    return rows[number.map(dict(enumerate(wanted))).astype(bool)] if wanted else rows


def say_reasons(summary: pd.DataFrame) -> None:
    """Why some cells of `summarise` are without an interval over test images, once a reason."""
    reasons = summary.loc[summary["reason"] != "", "reason"].value_counts()
    for reason, count in reasons.items():
        say(f"no interval over test images for {count:,} of {len(summary):,} cells: {reason}")
