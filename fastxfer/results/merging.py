"""The rows of several folders of results put into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from fastxfer.errors import DataError
from fastxfer.results import CELL, KEY, SCHEMA, ResultStore, describe
from fastxfer.results import images as image_parts


def merge(sources: Sequence[str | Path], into: str | Path) -> int:
    """Put the rows of several folders of results into one, which may have rows already; how many were added.

    Nothing is written unless all fit: `DataError` for a source without rows, for rows of one key that are not equal in every
    column, for cells of different lists of episodes, and for folders of different studies. The logs of runs follow.
    """
    stores = {Path(path): ResultStore.open(path) for path in (*sources, into)}
    frames = {path: store.read() for path, store in stores.items()}
    for path in map(Path, sources):
        if frames[path].empty:
            raise DataError(f"no results at '{path}': there is nothing to merge")
    studies = {path: store.study() for path, store in stores.items()}
    names = {told["name"]: path for path, told in studies.items() if told}
    if len(names) > 1:
        words = ", ".join(f"'{path}' of '{name}'" for name, path in names.items())
        raise DataError(f"results of different studies are not put into one folder: {words}")
    text = {column: str for column in SCHEMA.names if pa.types.is_dictionary(SCHEMA.field(column).type)}
    together = pd.concat([f.astype(text).assign(folder=str(p)) for p, f in frames.items()], ignore_index=True)
    distinct = together.drop_duplicates(SCHEMA.names)
    clash = distinct.duplicated(list(KEY), keep=False)
    if clash.any():
        one = distinct[clash].sort_values(list(KEY)).iloc[0]
        same = distinct[clash & (distinct[list(KEY)] == one[list(KEY)]).all(axis=1)]
        where = ", ".join(f"{row.value!r} in '{row.folder}'" for row in same.itertuples())
        raise DataError(
            f"{int(distinct[clash].duplicated(list(KEY)).sum()):,} rows are there twice and differ, the first: "
            f"{describe(one)}: {where}. Only equal rows can be merged: decide which are right, and leave the others out"
        )
    lists = distinct.groupby(list(CELL), observed=True)["episodes_hash"].nunique()
    if (lists > 1).any():
        cell = ", ".join(f"{name}={value}" for name, value in zip(CELL, lists[lists > 1].index[0], strict=True))
        raise DataError(f"episodes of different lists under one key ({cell}): the target has changed between them")
    target = stores[Path(into)]
    added = sum(
        target.append_new(frames[path], image_parts.sums_of(stores[path].read_images(), CELL))
        for path in map(Path, sources)
    )
    known = target.runs()
    for path in map(Path, sources):
        for run in stores[path].runs():
            if run not in known:
                target.log_run(run)
    for told in studies.values():
        if told and not target.study():
            target.set_study(told["name"], told["hash"], told["study"])
    return added
