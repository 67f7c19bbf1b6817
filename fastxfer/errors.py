"""The errors a person is meant to read: each names the file, row or option, and says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastxferError(Exception):
    """Something is wrong with the data; the CLI prints the message and exits with 1."""

    exit_code = 1


class DataError(FastxferError):
    """A file, table, checkpoint or store is not what it should be."""


class UsageError(FastxferError):
    """A request that cannot be met whatever the data; the CLI exits with 2."""

    exit_code = 2


def first_line(error: object) -> str:
    """The first line of what an error of others says, or its type where it says nothing.

    >>> first_line(ValueError("too short\\nby three")), first_line(AssertionError())
    ('too short', 'AssertionError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """``" Did you mean: a, b?"`` for the closest known names, or ``""``.

    >>> nearest("chexprt", ["chexpert", "cifar10"])
    ' Did you mean: chexpert?'
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean: {', '.join(close)}?" if close else ""
