"""Whether a target's files are still those that were added: their sizes and times, as one digest.

Contents would tell more, but reading a million images at every load costs more than it is worth: what was written anew
has another time. A data set that was copied or checked out anew has other times and its old sizes, and is told as that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.images.containers import ENDINGS, split_address

_SHOWN = 3
COPIED = "all its files have later times than when they were added, and the same sizes, as copies have"


def record_files(root: Path, image_id: Iterable[str]) -> dict[str, Any]:
    """What the register keeps of the files: digests of all sizes and times and of the sizes alone, and the latest time (ns)."""
    seen = _look(root, list(_files(root, image_id)))
    return {"digest": _digest(seen), "sizes": _digest(seen[:, 0]), "latest": int(seen[:, 1].max())}


def find_changes(root: Path, image_id: Iterable[str], recorded: dict[str, Any]) -> str:
    """What happened to the files since `record_files`, as a sentence; "" for nothing."""
    files = list(_files(root, image_id))
    seen = _look(root, files)
    if _digest(seen) == recorded["digest"]:
        return ""
    later = seen[:, 1] > recorded["latest"]
    if later.all() and _digest(seen[:, 0]) == recorded.get("sizes"):
        return COPIED
    told = [
        f"{len(rows):,} {what} ({', '.join(files[i] for i in rows[:_SHOWN])}{', …' if len(rows) > _SHOWN else ''})"
        for what, rows in (
            ("missing", np.flatnonzero(seen[:, 0] < 0)),
            ("written later", np.flatnonzero(later)),
        )
        if len(rows)
    ]
    what = ", ".join(told) or "other sizes or times"
    return f"its files have changed since they were added: {what}; what was embedded before is of the old ones"


def digest_of_sizes(root: Path, image_id: Iterable[str]) -> str:
    """One word for the sizes of all files, which a copied data set keeps and a changed one hardly; "" if one is missing."""
    sizes = _look(root, list(_files(root, image_id)))[:, 0]
    return "" if (sizes < 0).any() else _digest(sizes)


def _digest(seen: NDArray[np.int64]) -> str:
    return hashlib.sha256(seen.tobytes()).hexdigest()


def _files(root: Path, image_id: Iterable[str]) -> Iterator[str]:
    """The files that images lie in, relative to `root`: their own, or, once, the container's."""
    containers: set[str] = set()
    for path in image_id:
        lower = path.lower()
        address = None
        if any(f"{ending}/" in lower for ending in ENDINGS):
            address = split_address(f"{root}/{path}")
        if address is None:
            yield path
        elif address[0] not in containers:
            containers.add(address[0])
            yield os.path.relpath(address[0], root)


def _look(root: Path, files: list[str]) -> NDArray[np.int64]:
    """(files, 2) int64: size in bytes and time of the last change in ns; −1 where there is no such file."""
    seen = np.full((len(files), 2), -1, np.int64)
    start = f"{root}/"
    for i, file in enumerate(files):
        try:
            about = os.stat(start + file)
        except OSError:
            continue
        seen[i] = about.st_size, about.st_mtime_ns
    return seen
