"""Tables with a column of encoded images: Parquet, and Arrow's own format, as a stream or as a file.

``.arrow`` files are streams where Hugging Face's `datasets` wrote them (``save_to_disk``, its cache), and Arrow files where
pandas or Arrow did, like ``.feather``; the first bytes tell. Arrow files are mapped, not read: a group costs what is taken
out of it. A group is a row group of Parquet, or a record batch of Arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from fastxfer.errors import DataError

ENDINGS = (".parquet", ".arrow", ".feather")
_ARROW_FILE = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_schema(file: str) -> Any:
    """The Arrow schema; `DataError` names a damaged file."""
    with _named(file):
        schema = _parquet(file).schema_arrow if _is_parquet(file) else _arrow(file).schema
        schema.empty_table().flatten().column_names  # noqa: B018 - whether all names are UTF-8, those in structs too
        return schema


def group_lengths(file: str) -> tuple[int, ...]:
    """How many rows each group has."""
    with _named(file):
        if _is_parquet(file):
            about = _parquet(file).metadata
            return tuple(about.row_group(i).num_rows for i in range(about.num_row_groups))
        return tuple(batch.num_rows for batch in _batches(file))


def read_group(file: str, column: str, group: int) -> Any:
    """One column of a group, as an Arrow array; `DataError` if it isn't there or damaged."""
    names = read_schema(file).names
    if column not in names:
        raise DataError(f"{file}: no column '{column}'; there are {', '.join(names)}")
    with _named(file, f"column '{column}' cannot be read"):
        if _is_parquet(file):
            return _parquet(file).read_row_group(group, columns=[column]).column(column)
        values = next(islice(_batches(file, group), 1)).column(column)
        values.validate(full=True)  # Arrow takes offsets as they are: damaged ones would lead anywhere in memory
        return values


def read_columns(file: str, columns: Sequence[str]) -> Any:
    """These columns of all groups, as an Arrow table."""
    import pyarrow

    with _named(file):
        if _is_parquet(file):
            return _parquet(file).read(columns=list(columns))
        parts = [batch.select(list(columns)) for batch in _batches(file)]
        for part in parts:
            part.validate(full=True)
        schema = read_schema(file)
        return pyarrow.Table.from_batches(parts, pyarrow.schema([schema.field(name) for name in columns]))


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _parquet(file: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file)


def _arrow(file: str) -> Any:
    """A reader of Arrow's stream or file format."""
    import pyarrow.ipc

    source = pyarrow.memory_map(file)
    if source.read(len(_ARROW_FILE)) == _ARROW_FILE:
        return pyarrow.ipc.open_file(source)
    # A stream that was cut between two batches reads like a whole one, but for its end mark.
    source.seek(max(0, source.size() - len(_END_OF_STREAM)))
    if source.read() != _END_OF_STREAM:
        raise DataError(f"{file}: not a readable Arrow file (neither a whole stream nor a file; cut short?)")
    source.seek(0)
    return pyarrow.ipc.open_stream(source)


def _batches(file: str, first: int = 0) -> Iterator[Any]:
    reader = _arrow(file)
    if hasattr(reader, "get_batch"):
        return (reader.get_batch(i) for i in range(first, reader.num_record_batches))
    return islice(reader, first, None)


@contextmanager
def _named(file: str, what: str = "") -> Iterator[None]:
    """Errors of Arrow become a `DataError` in one line, with the file named."""
    import pyarrow

    kind = "Parquet" if _is_parquet(file) else "Arrow"
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # ValueError: names that aren't UTF-8
        raise DataError(f"{file}: {what or f'not a readable {kind} file'} ({' '.join(str(error).split())})") from error
