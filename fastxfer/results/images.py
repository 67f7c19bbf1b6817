"""What test images did to the values of cells, on disk: a second table beside the rows, in sibling parts of theirs.

One line a (cell, test image), as `SCHEMA` has it; a cell's lines lie together, and the part's footer says whose they are and
of how many episodes. A part is written before the part of rows of the same name that commits it; without that it is
nobody's, and ignored. Sums of several parts of a cell add up.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from fastxfer.results import parquet

FORMAT = 1
_REMEDY = "Delete it: its cells then have no intervals over test images, their rows stay."
COLUMNS = ("image", "group", "episodes", "rarity", "n", "sum", "odd")

SCHEMA = pa.schema(
    [
        ("image", pa.int32()),  # row of the target, as it was evaluated
        ("group", pa.int32()),  # row of the first image of the same patient; the image itself where nobody knows
        ("n", pa.int32()),  # how often the episodes asked it
        ("sum", pa.float32()),  # of its influences on the values of the episodes
        ("odd", pa.float32()),  # the part of the sum that comes from episodes of odd number
    ]
)

Cell = tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class ImageSums:
    """What the test images of one cell did to its values: arrays (n_images,), in the order of `image`.

    episodes: how many values the sums are over, the undefined ones left out; 1 where there are no episodes
    rarity:   what belongs to the variance over images beside the sums (`fastxfer.metrics.rarity`), or None if another part
              of the cell knows
    """

    episodes: int
    image: NDArray[np.int64]
    group: NDArray[np.int64]
    n: NDArray[np.int64]
    sum: NDArray[np.float64]
    odd: NDArray[np.float64]
    rarity: float | None = 0.0


def write(file: Any, images: Mapping[Cell, ImageSums]) -> None:
    """Write a part to an open file."""
    cells = [[list(cell), len(sums.image), sums.episodes, sums.rarity] for cell, sums in images.items()]
    footer = json.dumps({"format": FORMAT, "cells": cells}, default=int)
    columns = [
        pa.array(np.concatenate([getattr(sums, name) for sums in images.values()]), SCHEMA.field(name).type, safe=False)
        for name in SCHEMA.names
    ]
    packed = {name: "BYTE_STREAM_SPLIT" if name in ("sum", "odd") else "DELTA_BINARY_PACKED" for name in SCHEMA.names}
    parquet.write(file, pa.table(columns, schema=SCHEMA), footer, use_dictionary=False, column_encoding=packed)


def read(parts: Collection[Path], key: tuple[str, ...], cells: Collection[Cell] | None = None) -> pd.DataFrame:
    """The lines of all parts, or of some cells: columns `key`, COLUMNS; sorted by cell in the order of finding, and image."""
    wanted = None if cells is None else set(cells)
    numbers: dict[Cell, int] = {}
    of_cell: list[NDArray[np.int64]] = []
    tables: list[pa.Table] = []
    episodes: list[int] = []
    rarity: list[float | None] = []
    for part in parts:
        of_part = _footer(part)
        if wanted is not None and not any(cell in wanted for cell, *_ in of_part):
            continue
        with parquet.whole(part, _REMEDY):
            table, start = parquet.read(part), 0
            if not table.schema.equals(SCHEMA):
                raise ValueError(f"its columns are {', '.join(table.schema.names)}")
        for cell, n_lines, n_episodes, more in of_part:
            if wanted is None or cell in wanted:
                number = numbers.setdefault(cell, len(numbers))
                if number == len(episodes):
                    episodes.append(0)
                    rarity.append(None)
                episodes[number] += n_episodes
                rarity[number] = more if rarity[number] is None else rarity[number]
                tables.append(table.slice(start, n_lines))
                of_cell.append(np.full(n_lines, number))
            start += n_lines
    lines = pa.concat_tables(tables or [SCHEMA.empty_table()]).to_pandas()
    lines = lines.astype({"sum": float, "odd": float})
    lines["cell"] = np.concatenate([*of_cell, np.empty(0, np.int64)])
    if len(of_cell) > len(numbers):  # some cells in several parts
        sums = lines.groupby(["cell", "image"], sort=True)
        lines = sums.agg({"group": "first", "n": "sum", "sum": "sum", "odd": "sum"}).reset_index()
    else:
        lines = lines.sort_values(["cell", "image"], ignore_index=True)
    number = lines.pop("cell").to_numpy(np.int64)
    lines["episodes"] = np.array(episodes, np.int64)[number]
    lines["rarity"] = np.array(rarity, np.float64)[number]  # None becomes NaN
    keys: dict[str, Any] = {}
    for i, name in enumerate(key):
        codes, values = pd.factorize(np.array([cell[i] for cell in numbers], dtype=object))
        if all(isinstance(value, int) for value in values):
            keys[name] = np.array(values, np.int64)[codes][number]
        else:
            keys[name] = pd.Categorical.from_codes(codes[number], categories=values)
    return pd.DataFrame(keys).join(lines)[[*key, *COLUMNS]]


def sums_of(lines: pd.DataFrame, key: tuple[str, ...]) -> dict[Cell, ImageSums]:
    """What `read` gave, as it was handed to `write`."""
    found = {}
    for cell, of_cell in lines.groupby(list(key), observed=True, sort=False):
        columns = {name: of_cell[name].to_numpy() for name in SCHEMA.names}
        episodes, rarity = of_cell["episodes"].iloc[0], of_cell["rarity"].iloc[0]
        found[tuple(cell)] = ImageSums(
            episodes=int(episodes), rarity=None if np.isnan(rarity) else float(rarity), **columns
        )
    return found


def _footer(part: Path) -> list[tuple[Cell, int, int, float | None]]:
    """(cell, lines, episodes, rarity) of a part, in its order."""
    with parquet.whole(part, _REMEDY):
        *_, cells = parquet.footer(part, FORMAT)
        return [(tuple(cell), lines, episodes, more) for cell, lines, episodes, more in cells]
