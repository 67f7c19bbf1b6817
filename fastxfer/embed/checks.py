"""Looking before leaping: what can be refused in seconds is refused before hours are spent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.images import check_header, exists, load_image
from fastxfer.targets.table import Target

_SHOWN = 10
# So long images are looked at before the first forward pass; those that remain are seen when they are decoded.
LOOK_SECONDS = 2.0
_AT_ONCE = 4096


def path_of(target: Target, row: int) -> str:
    """The address of a row's image."""
    return os.path.join(str(target.root), str(target.image_id[row]))


def check_images(target: Target, rows: NDArray[np.int64], threads: int, *, contents: bool) -> None:
    """Raise DataError naming images that are missing or, if `contents`, cannot be decoded, as far as time allows."""
    until = time.monotonic() + LOOK_SECONDS

    def look(row: int) -> str | None:
        if time.monotonic() > until:
            return None
        path = path_of(target, row)
        if not exists(path):
            return f"{path}: there is no such file"
        if contents:
            try:
                check_header(path)
                if not _looks_whole(path):
                    load_image(path, pixels=target.pixels)
            except DataError as error:
                return str(error)
        return None

    wrong: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        for i in range(0, len(rows), _AT_ONCE):
            wrong += [problem for problem in pool.map(look, rows[i : i + _AT_ONCE].tolist()) if problem]
            if time.monotonic() > until:
                break
    if wrong:
        lost = sum(problem.endswith("there is no such file") for problem in wrong)
        remedy = (
            "bring the files back, or add the target again"
            if lost
            else "repair or remove them, or leave them out with --skip-bad"
        )
        raise DataError(
            f"target '{target.name}': {len(wrong):,} of {len(rows):,} images "
            f"{'are missing' if lost == len(wrong) else 'cannot be used'}; nothing was computed; {remedy}: "
            f"{join(wrong)}"
        )


def is_lost(target: Target, row: int, error: DataError) -> bool:
    """Whether a file went away or its disk failed, which is no fault of the image: leaving it out would hide it."""
    cause = error.__cause__
    gone = isinstance(cause, OSError) and cause.errno is not None
    return gone or not exists(path_of(target, row))


def join(problems: Sequence[str]) -> str:
    """Some of them, and how many more."""
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _looks_whole(path: str) -> bool:
    """Whether an image's first and last bytes are those of a whole JPEG or PNG; if not, only decoding can tell."""
    if not os.path.isfile(path):  # inside a container
        return False
    with open(path, "rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 32))
        tail = file.read()
    if head.startswith(b"\xff\xd8\xff"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    return head == b"\x89PNG\r\n\x1a\n" and tail[-8:-4] == b"IEND"
