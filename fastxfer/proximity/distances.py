"""A table of proximities as one distance of each source from each target."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fastxfer.errors import DataError, UsageError, nearest

OVERLAPS = ("neighbours", "labels")  # large is near


def distances(table: pd.DataFrame, measure: str) -> pd.Series:
    """(source, target) -> mean rank of a measure over the references, 1 the nearest; of a table of `proximity`.

    Ranks, because a measure's unit is another one with each reference. `UsageError` for an unknown measure.
    """
    own = table[table["measure"] == measure]
    if own.empty:
        known = sorted(set(table["measure"]))
        raise UsageError(f"no measure '{measure}' in the proximities, but {', '.join(known)}.{nearest(measure, known)}")
    sign = -1 if measure in OVERLAPS else 1
    ranks = (sign * own["value"]).groupby(own["reference"]).rank()
    return ranks.groupby([own["source"], own["target"]]).mean()


def read_proximities(file: Path) -> pd.DataFrame:
    """What `fastxfer proximity --out` wrote. `DataError` if it is no such table."""
    try:
        table = pd.read_csv(file, keep_default_na=False).astype({"value": float})
        return table.astype(dict.fromkeys(("source", "target", "reference", "measure"), str))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"--proximity {file} is no table of `fastxfer proximity --out` ({error})") from None
