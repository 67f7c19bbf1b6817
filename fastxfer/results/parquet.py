"""A Parquet file with cells in its footer and a checksum on each page: what all parts of results are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastxfer.errors import DataError


def write(file: IO[bytes], table: pa.Table, note: str, **options: Any) -> None:
    """Write a part with its footer to an open file; options: of `pyarrow.parquet.write_table`."""
    noted = table.replace_schema_metadata({b"fastxfer": note.encode()})
    pq.write_table(noted, file, compression="zstd", write_page_checksum=True, **options)


@contextmanager
def whole(part: Path, remedy: str) -> Iterator[None]:
    """A `DataError` with the remedy for whatever damaged bytes make the reader of a part trip over."""
    try:
        yield
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"results: '{part}' is damaged or no part of fastxfer's ({reason}). {remedy}") from error


def read(part: Path, names: Sequence[str] | None = None) -> pa.Table:
    """Some columns, or all; pages that are not what was written are refused, and what makes no sense together."""
    table = pq.read_table(part, columns=names, page_checksum_verification=True)
    table.validate(full=True)
    return table


def footer(part: Path, newest: int) -> tuple[int, list[str], list[Any]]:
    """A part's format, the names of its columns, and its cells; `DataError` for a newer format than `newest`."""
    schema = pq.read_schema(part)
    noted = json.loads((schema.metadata or {})[b"fastxfer"])
    if noted["format"] > newest:
        raise DataError(
            f"results: '{part}' was made by a newer fastxfer (format {noted['format']}, this one reads {newest}): upgrade"
        )
    return noted["format"], schema.names, noted["cells"]
