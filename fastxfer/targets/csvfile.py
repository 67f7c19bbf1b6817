"""Tables that people write: UTF-8 CSV with a header, read strictly, with the row named in every complaint."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fastxfer.errors import DataError, nearest

_DELIMITERS = (",", ";", "\t")
_BOMS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


@dataclass(frozen=True)
class Table:
    """A CSV file in memory: cells are strings, stripped unless it was asked for otherwise.

    rows: the cells, one tuple a row; row_numbers: where each stands in the file, counted as a spreadsheet does
    (the header is row 1, blank lines count).
    """

    file: Path
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    row_numbers: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """The cells of a column, top to bottom. `DataError` lists the columns there are."""
        if name not in self.columns:
            raise DataError(
                f"{self.file}: no column '{name}'; the columns are: {', '.join(self.columns)}."
                f"{nearest(name, self.columns)}"
            )
        i = self.columns.index(name)
        return [row[i] for row in self.rows]

    def where(self, i: int) -> str:
        """``"labels.csv, row 7"`` for the i-th row, for messages."""
        return f"{self.file}, row {self.row_numbers[i]}"

    def take(self, rows: Sequence[int]) -> Self:
        """The same table with these rows only."""
        return replace(self, rows=[self.rows[i] for i in rows], row_numbers=[self.row_numbers[i] for i in rows])


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in ``.gz``."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_csv(path: Path, *, strip: bool = True, columns: Sequence[str] | None = None) -> Table:
    """Read a CSV file: UTF-8 with or without BOM, any line ends, quoted cells; ``,``, ``;`` or tab between cells.

    strip: take blanks around a cell for typing, not for content. columns: keep the cells of these (those that are
    there), where a table is large.

    Raises `DataError` naming file and row: other encodings, broken quoting, rows longer or shorter than the
    header, a column named twice, no rows at all.
    """
    text = _decode(path, read_bytes(path))
    bare = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])  # what is quoted separates nothing
    delimiter = max(_DELIMITERS, key=bare.count)
    records = _records(path, text, delimiter)
    header = next((cells for _, cells in records if cells), None)
    if header is None:
        raise DataError(f"{path}: the table is empty; expected a header such as path,label,split,patient")
    names = tuple(cell.strip() for cell in header)
    twice = sorted({c for c in names if c and names.count(c) > 1})
    if twice:
        raise DataError(f"{path}: column '{twice[0]}' occurs more than once in the header")
    kept = [j for j, column in enumerate(names) if columns is None or column in columns]
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    for number, cells in records:
        if not cells:
            continue  # a blank line
        if len(cells) != len(names) and any(cells[len(names) :] or ["short"]):
            raise DataError(
                f"{path}, row {number}: {len(cells)} cells where the header has {len(names)} "
                "(a comma inside a cell needs quotes around the cell)"
            )
        # Tuples of text are nothing to Python's garbage collector; a million small lists would be.
        rows.append(tuple([cells[j].strip() if strip else cells[j] for j in kept]))
        numbers.append(number)
    if not rows:
        raise DataError(f"{path}: the table has a header but no rows")
    return Table(path, tuple(names[j] for j in kept), rows, numbers)


def _decode(path: Path, raw: bytes) -> str:
    for bom, encoding in _BOMS:
        if raw.startswith(bom):
            raise DataError(f"{path}: written as {encoding}, expected UTF-8; save it as 'CSV UTF-8'")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, row {row}: byte 0x{raw[error.start]:02x} is not UTF-8; save the table as 'CSV UTF-8'"
        ) from None


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    nul = "\0" in text
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1):
            if nul and any("\0" in cell for cell in cells):
                raise DataError(f"{path}, row {number}: contains a NUL character; is this a text file?")
            yield number, cells if any(cell.strip() for cell in cells) else []
    except csv.Error as error:
        raise DataError(f"{path}, row {number + 1}: broken quoting ({error})") from None
