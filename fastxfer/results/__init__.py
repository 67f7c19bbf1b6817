"""Results on disk: tidy rows, one a measured value, in append-only Parquet parts; and a log of the runs that made them.

A part holds whole cells (a cell is a row's key without its episode), each with a contiguous range of episodes that the
part's footer lists. So duplicates are found, and finished work is known, by reading footers only. What each test image did
to the values of a cell lies beside them, see `fastxfer.results.images`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fastxfer.errors import DataError
from fastxfer.files import parsed, write_whole
from fastxfer.results import images as image_parts
from fastxfer.results import parquet
from fastxfer.results.images import Cell, ImageSums

__all__ = [
    "CELL",
    "KEY",
    "NO_EPISODE",
    "SCHEMA",
    "WHOLE_TRAIN",
    "Cell",
    "ImageSums",
    "ResultStore",
    "complete",
    "results_path",
]

FORMAT = 3  # 1 had no column `undefined`, 2 no `l2` and `l2_at_edge`
CELL = ("source", "backbone", "target", "ways", "shots", "seed", "probe", "params", "split", "metric")
KEY = (*CELL[:6], "episode", *CELL[6:])
_STUDY = "study.json"
NO_EPISODE = -1
_REMEDY = "Move it away and run the command that made it again: only its rows will be recomputed."
# Of the key of a row that speaks of a whole train split.
WHOLE_TRAIN: dict[str, Any] = {"ways": "all", "shots": "full", "episode": NO_EPISODE}

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("source", _TEXT),  # what the backbone was trained on
        ("backbone", _TEXT),
        ("target", _TEXT),
        ("ways", _TEXT),  # "5" or "all"
        ("shots", _TEXT),  # "1", "5", … or "full"
        ("seed", pa.int64()),
        ("episode", pa.int32()),  # −1 where there are no episodes (full probes, fine-tunings)
        ("probe", _TEXT),
        ("params", _TEXT),  # "l2=0.04"; "" where there is nothing to say
        ("split", _TEXT),  # the queries' split
        ("metric", _TEXT),
        ("value", pa.float64()),
        ("low", pa.float64()),  # interval over test images where there are no episodes to take one over, else NaN
        ("high", pa.float64()),
        ("n_queries", pa.int32()),
        ("undefined", pa.int32()),  # classes left out of the mean, the metric being undefined for them; 1 for a NaN
        ("converged", pa.bool_()),
        ("l2", pa.float64()),  # the penalty, given or chosen; NaN where there is none (per label: their geometric mean)
        ("l2_at_edge", pa.bool_()),  # whether it was chosen and is the smallest or largest of its grid
        ("episodes_hash", _TEXT),  # which list of episodes; "" where there are none
    ]
)

_Span = tuple[int, int, str]  # first episode, last episode, hash of their list


def results_path(store_path: str | Path) -> Path:
    """Where the results of a store lie unless told otherwise: beside it, ``<store>-results``."""
    text = str(store_path)
    if "://" in text:
        text = text.split("://", 1)[1].replace("/", "_")
    return Path(text.rstrip("/") + "-results")


class _TakenError(DataError):
    """Where a file system's locks do not hold, of two writers of the same cells this one was second."""


class ResultStore:
    """The rows of one study: ``ResultStore.open(path)``, ``append(rows)``, ``read()``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells: dict[Cell, list[_Span]] = {}
        self._parts: dict[str, frozenset[Cell]] = {}  # file -> the cells that it has rows of

    @classmethod
    def open(cls, path: str | Path) -> ResultStore:
        """Open the results in a folder, which need not exist yet; `DataError` if a part is damaged or newer."""
        store = cls(Path(path))
        store.refresh()
        return store

    def refresh(self) -> None:
        """Look for what others have added since."""
        for part in sorted(self.path.glob("rows-*.parquet")):
            if part.name not in self._parts:
                self._note(part, _footer(part))

    def episodes_done(self, cell: Cell, episodes_hash: str) -> int:
        """How many episodes of a cell are there, counted from episode 0 without a gap.

        `DataError` if the cell's rows are of another list of episodes, which happens when a target has changed.
        """
        done = 0
        for first, last, of_list in sorted(self._cells.get(cell, [])):
            if of_list != episodes_hash:
                named = ", ".join(f"{name}={value}" for name, value in zip(CELL, cell, strict=True))
                raise DataError(
                    f"results '{self.path}' hold rows of other episodes under the same key ({named}): the target's "
                    "images, labels or splits have changed since. Use another --results folder or move this one away."
                )
            if first > done:
                break
            done = max(done, last + 1)
        return done

    def holds(self, cell: Cell, episode: int) -> bool:
        """Whether the row of this episode (NO_EPISODE: the only row) of a cell is there."""
        return any(first <= episode <= last for first, last, _ in self._cells.get(cell, []))

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._cells

    def cells(self) -> Collection[Cell]:
        """The cells that have rows, known without reading any."""
        return self._cells.keys()

    def n_rows(self, cell: Cell) -> int:
        """How many rows a cell has."""
        return sum(last - first + 1 for first, last, _ in self._cells.get(cell, []))

    @property
    def digest(self) -> str:
        """Names what rows there are: another one as soon as some are added."""
        return hashlib.sha256("\n".join(sorted(self._parts)).encode()).hexdigest()[:16]

    def append(self, rows: pd.DataFrame, images: Mapping[Cell, ImageSums] | None = None) -> None:
        """Add rows, all or none of them; `DataError` if a key is there already or twice among the new ones.

        images: of some or all of their cells, what each test image did to the values of just these rows
        """
        if rows.empty:
            return
        rows = complete(rows).reset_index(drop=True)
        empty = rows[list(KEY)].isna().any()
        if empty.any():
            raise ValueError(f"rows without a value in key column {list(empty[empty].index)}")
        repeated = rows.duplicated(list(KEY))
        if repeated.any():
            raise DataError(f"results: the same row twice: {describe(rows.loc[repeated.idxmax()])}")
        with self._only_writer():
            self.refresh()
            self._write(rows, self._new_cells(rows), images or {})

    def append_new(self, rows: pd.DataFrame, images: Mapping[Cell, ImageSums] | None = None) -> int:
        """Add those rows whose keys are not there yet; how many that were. `images` as for `append`.

        Whatever another process has written of them meanwhile stays as it is: what is measured twice is equal. Of a cell
        that is there in part, the images cannot be taken apart: it has them for the episodes that were there.
        """
        rows = complete(rows).reset_index(drop=True)
        with self._only_writer():
            self.refresh()
            keep, whole = np.ones(len(rows), bool), set()
            for cell, at in rows.groupby(list(CELL), sort=False, observed=True).indices.items():
                self.episodes_done(tuple(cell), str(rows["episodes_hash"].iloc[at[0]]))  # refuses another list's
                episodes = rows["episode"].to_numpy()[at]
                for first, last, _ in self._cells.get(tuple(cell), []):
                    keep[at] &= (episodes < first) | (episodes > last)
                if keep[at].all():
                    whole.add(tuple(cell))
            rows = rows[keep].reset_index(drop=True)
            try:
                if len(rows):
                    sums = {cell: of_cell for cell, of_cell in (images or {}).items() if cell in whole}
                    self._write(rows, self._new_cells(rows), sums)
            except _TakenError:
                return 0
        return len(rows)

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        """Between looking for duplicates and writing, no other process writes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield  # closing the file gives the lock back

    def _new_cells(self, rows: pd.DataFrame) -> list[tuple[Cell, _Span]]:
        cells = []
        for cell, group in rows.groupby(list(CELL), sort=True, observed=True):
            episodes = np.sort(group["episode"].to_numpy())
            first, last = int(episodes[0]), int(episodes[-1])
            if last - first + 1 != len(episodes):
                raise ValueError(f"episodes of a cell are not contiguous: {cell}")
            for old_first, old_last, _ in self._cells.get(tuple(cell), []):
                if first <= old_last and old_first <= last:
                    raise DataError(f"results: already there: {describe(group.iloc[0])} ({self.path})")
            of_list = group["episodes_hash"].iloc[0]
            if (group["episodes_hash"] != of_list).any():
                raise ValueError(f"episodes of a cell are of several lists: {cell}")
            cells.append((tuple(cell), (first, last, str(of_list))))
        return cells

    def _write(self, rows: pd.DataFrame, cells: list[tuple[Cell, _Span]], images: Mapping[Cell, ImageSums]) -> None:
        alien = images.keys() - {cell for cell, _ in cells}
        if alien:
            raise ValueError(f"images of cells without rows: {sorted(alien, key=str)[0]}")
        footer = json.dumps({"format": FORMAT, "cells": [[list(cell), *span] for cell, span in cells]}, default=int)
        # Named by what it holds, and linked rather than renamed: where a file system's locks do not hold, of two writers
        # of the same cells the second finds the name taken.
        part = self.path / f"rows-{hashlib.sha256(footer.encode()).hexdigest()[:20]}.parquet"
        table = pa.Table.from_pandas(rows, schema=SCHEMA, preserve_index=False)
        if images:  # first, since the rows commit them; what a killed run left under this name is replaced
            with self._temporary() as (name, file):
                image_parts.write(file, images)
                _sync(file, name)
                os.replace(name, _images_of(part))
        with self._temporary() as (name, file):
            parquet.write(file, table, footer)
            _sync(file, name)
            try:
                os.link(name, part)
            except FileExistsError:
                raise _TakenError(f"results: another process has just written these rows ({part})") from None
        self._note(part, cells)

    def _note(self, part: Path, cells: list[tuple[Cell, _Span]]) -> None:
        self._parts[part.name] = frozenset(cell for cell, _ in cells)
        for cell, span in cells:
            self._cells.setdefault(cell, []).append(span)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[str, IO[bytes]]]:
        """A file in the folder that is gone in the end, unless it was renamed."""
        handle, name = tempfile.mkstemp(dir=self.path, prefix=".rows-", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield name, file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)

    def log_run(self, run: dict[str, Any]) -> None:
        """Note what a command did (its line, versions, seconds): one JSON line in ``runs.jsonl``."""
        line = json.dumps({"date": datetime.now(UTC).isoformat(timespec="seconds"), **run}, ensure_ascii=False) + "\n"
        with self._only_writer(), open(self.path / "runs.jsonl", "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(line.encode()) < len(line.encode()):  # the disk was full in the middle of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            except BaseException:
                file.truncate(before)
                raise

    def runs(self) -> list[dict[str, Any]]:
        """The runs noted by `log_run`, oldest first; `DataError` for a line that is none."""
        log = self.path / "runs.jsonl"
        if not log.is_file():
            return []
        found = []
        for number, line in enumerate(log.read_bytes().split(b"\n"), start=1):
            if line.strip():
                try:
                    found.append(parsed(json.loads, line))
                except ValueError:
                    raise DataError(f"results: '{log}', line {number} is damaged: delete that line") from None
        return found

    def study(self) -> dict[str, Any]:
        """What `set_study` noted last; {} for rows of no study. `DataError` if the note is damaged."""
        note = self.path / _STUDY
        if not note.is_file():
            return {}
        try:
            told = parsed(json.loads, note.read_text(encoding="utf-8"))
            return {"name": str(told["name"]), "hash": str(told["hash"]), "study": dict(told["study"])}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"results: '{note}' is damaged: delete it, and run the study again") from None

    def set_study(self, name: str, of_hash: str, study: Mapping[str, Any]) -> None:
        """Note whose rows these are: a study's name, hash and content."""
        told = {"name": name, "hash": of_hash, "study": dict(study)}
        if self.study() != told:
            write_whole(self.path / _STUDY, (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())

    def read(self, columns: Sequence[str] | None = None, cells: Collection[Cell] | None = None) -> pd.DataFrame:
        """All rows; text columns are categorical. An empty frame with the right columns where there are none.

        cells: only these are wanted: files without them are not opened, but rows of others may come along
        """
        self.refresh()
        names = list(columns) if columns else SCHEMA.names
        wanted = sorted(n for n, held in self._parts.items() if cells is None or not held.isdisjoint(cells))
        tables = [_read_part(self.path / name, names) for name in wanted]
        if not tables:
            tables = [SCHEMA.empty_table().select(names)]
        return pa.concat_tables(tables).unify_dictionaries().to_pandas()

    def read_images(self, cells: Collection[Cell] | None = None) -> pd.DataFrame:
        """What each test image did to the values of the cells, all or some: one line a (cell, image).

        Columns CELL, `image` (row of the target as it was evaluated), `group` (row of the first image of the same patient,
        or the image itself), `episodes` (of the cell, the undefined ones left out; 1 without episodes) and `rarity` (of the
        cell: what belongs to its variance over images beside the sums, `fastxfer.metrics.rarity`), `n` (how often they
        asked the image), `sum` of its influences on the episodes' values (`fastxfer.metrics.influence`) and `odd`, the
        part of the sum that comes from episodes of odd number. Text columns are categorical. Cells that were made before
        this table was kept, or whose metric has no influence, have no lines.
        """
        self.refresh()
        parts = [_images_of(self.path / name) for name in sorted(self._parts)]
        return image_parts.read([part for part in parts if part.exists()], CELL, cells)


def _images_of(part: Path) -> Path:
    """The sibling of a part of rows that holds its images."""
    return part.with_name(part.name.replace("rows-", "images-", 1))


def _sync(file: IO[bytes], name: str) -> None:
    """Bring what was written to the disk, for everybody to read."""
    file.flush()
    os.fsync(file.fileno())
    os.chmod(name, 0o644)


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with every column of the schema, in its order; `ValueError` for a missing key column or an unknown one."""
    missing = [c for c in (*KEY, "value") if c not in rows]
    unknown = [c for c in rows if c not in SCHEMA.names]
    if missing or unknown:
        raise ValueError(f"rows lack {missing} and have unknown columns {unknown}")
    defaults = {"low": np.nan, "high": np.nan, "n_queries": 0, "undefined": 0, "converged": True, "episodes_hash": ""}
    defaults |= {"l2": np.nan, "l2_at_edge": False}
    return rows.assign(**{c: v for c, v in defaults.items() if c not in rows})[SCHEMA.names]


def _read_part(part: Path, names: list[str]) -> pa.Table:
    """Columns of a part; those that it is too old to have are zero, or NaN."""
    with parquet.whole(part, _REMEDY):
        version, there, _ = parquet.footer(part, FORMAT)
        if version == FORMAT and (lost := [name for name in names if name in SCHEMA.names and name not in there]):
            raise ValueError(f"it lacks column {lost[0]}")
        table = parquet.read(part, [name for name in names if name in there])
        for field in table.schema:
            if field.name in SCHEMA.names and field.type != SCHEMA.field(field.name).type:
                raise ValueError(f"column {field.name} holds {field.type}")
    for name in names:
        if name in SCHEMA.names and name not in there:
            kind = SCHEMA.field(name).type
            missing = np.full(table.num_rows, np.nan if pa.types.is_floating(kind) else 0.0)
            table = table.append_column(name, pa.array(missing, pa.float64()).cast(kind))
    return table.select(names)


def _footer(part: Path) -> list[tuple[Cell, _Span]]:
    with parquet.whole(part, _REMEDY):
        *_, cells = parquet.footer(part, FORMAT)
        return [(tuple(cell), (first, last, of_list)) for cell, first, last, of_list in cells]


def describe(row: pd.Series) -> str:
    return ", ".join(f"{name}={row[name]}" for name in KEY)
