"""Tables that people write: UTF-8 CSV with a header, read strictly, with the row named in every complaint."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Self

from fastxfer.errors import DataError, nearest
from fastxfer.images import EXTENSIONS
from fastxfer.targets.leftout import LeftOut

_DELIMITERS = (",", ";", "\t")
_LINE_END = re.compile(r"\r\n|\r|\n")
# Columns whose cells are nobody's business: in a table that has one, a cell in a wrong place may be one of them.
_OF_PATIENTS = frozenset({"patient", "Patient ID", "PatientID", "subject_id"})
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
        if name not in self.columns and any(_is_content(column) for column in self.columns):
            raise DataError(f"{self.file}, row 1: no column '{name}' and no names of columns at all, as it seems")
        if name not in self.columns:
            there = [column if column.isprintable() else repr(column) for column in self.columns]
            raise DataError(
                f"{self.file}: no column '{name}'; the columns are: {', '.join(there)}.{nearest(name, there)}"
            )
        i = self.columns.index(name)
        return [row[i] for row in self.rows]

    def where(self, i: int) -> str:
        """``"labels.csv, row 7"`` for the i-th row, for messages."""
        return f"{self.file}, row {self.row_numbers[i]}"

    def shown(self, cell: str) -> str:
        """A cell that should be one of a few words, as a message may show it: in quotes, but not what may be a patient."""
        return "(not shown)" if _OF_PATIENTS & set(self.columns) and not cell.isalpha() and cell else repr(cell)

    def left_out(self, rows: Sequence[int], reason: str) -> LeftOut:
        """That these rows (counted from 0) were left out."""
        return LeftOut(reason, str(self.file), rows=[self.row_numbers[i] for i in rows])

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
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_csv(path: Path, *, strip: bool = True, columns: Sequence[str] | None = None) -> Table:
    """Read a CSV file: UTF-8 with or without BOM, any line ends, quoted cells; ``,``, ``;`` or tab between cells.

    strip: take blanks around a cell for typing, not for content, and what looks like swallowed rows for broken quoting;
    False for tables that fastxfer wrote. columns: keep the cells of these (those that are
    there), where a table is large.

    Raises `DataError` naming file and row: other encodings, broken quoting, rows longer or shorter than the
    header, a column named twice, no rows at all. Where all rows end in the same number of empty cells more than the
    header, these are left alone; where one does, its cells may have moved.
    """
    text = _decode(path, read_bytes(path))
    # What is quoted separates nothing.
    bare = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").split("\n", 1)[0])
    delimiter = max(_DELIMITERS, key=bare.count)
    records = _records(path, text, delimiter)
    header = next((cells for _, cells, _ in records if cells), None)
    if header is None:
        raise DataError(f"{path}: the table is empty; expected a header such as path,label,split,patient")
    names = tuple(cell.strip() for cell in header)
    twice = sorted({c for c in names if c and names.count(c) > 1})
    if twice and any(map(_is_content, names)):
        raise DataError(f"{path}, row 1: a column occurs twice, and there are no names of columns at all, as it seems")
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} occurs more than once in the header")
    kept = [j for j, column in enumerate(names) if columns is None or column in columns]
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    width = 0
    for number, cells, lines in records:
        if not cells:
            continue  # a blank line
        width = width or (len(names) if any(cells[len(names) :]) else max(len(names), len(cells)))
        if len(cells) != width:
            raise DataError(
                f"{path}, row {number}: {len(cells)} cells where the header has {len(names)} "
                "(a comma inside a cell needs quotes around the cell)"
            )
        if strip and lines > 1 and any(_holds_rows(cell, j, width, delimiter) for j, cell in enumerate(cells)):
            raise DataError(
                f"{path}, row {number}: a quoted cell goes on over line ends and holds what look like rows of their own; "
                "broken quoting? (a quotation mark that is meant as one is written twice)"
            )
        # Tuples of text are nothing to Python's garbage collector; a million small lists would be.
        rows.append(tuple([cells[j].strip() if strip else cells[j] for j in kept]))
        numbers.append(number)
    if not rows:
        raise DataError(f"{path}: the table has a header but no rows")
    return Table(path, tuple(names[j] for j in kept), rows, numbers)


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a list that hold anything, stripped, each with ``"test.txt, row 7"`` for messages.

    Raises `DataError` naming file and row: other encodings, NUL characters, no line at all.
    """
    lines = [
        (line.strip(), f"{path}, row {number}")
        for number, line in enumerate(io.StringIO(_decode(path, read_bytes(path)), newline=None), 1)
        if line.strip()
    ]
    if not lines:
        raise DataError(f"{path}: the list is empty; expected a line for each image")
    for line, where in lines:
        if "\0" in line:
            raise DataError(f"{where}: contains a NUL character; is this a text file?")
    return lines


def _is_content(cell: str) -> bool:
    """Whether a cell of the header is none: a number or an image. Such a "header" may tell who the patients are."""
    return cell.isdecimal() or PurePath(cell).suffix.lower() in EXTENSIONS


def _holds_rows(cell: str, column: int, width: int, delimiter: str) -> bool:
    """Whether the text of a cell goes on as if it were the rest of its row, whole rows, and the start of one."""
    if width == 1 or not _LINE_END.search(cell):
        return False
    first, *between, last = (line.count(delimiter) for line in _LINE_END.split(cell))
    return first == width - 1 - column and last == column and all(count == width - 1 for count in between)


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


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """Row number, cells ([] of a blank line), and over how many lines of the file they go."""
    number = line = 0
    nul = "\0" in text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, cells in enumerate(reader, 1):
            if nul and any("\0" in cell for cell in cells):
                raise DataError(f"{path}, row {number}: contains a NUL character; is this a text file?")
            yield number, cells if any(cell.strip() for cell in cells) else [], reader.line_num - line
            line = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}, row {number + 1}: broken quoting ({error})") from None
