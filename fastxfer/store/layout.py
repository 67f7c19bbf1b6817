"""The store's layout on disk: names, versions, sizes, and the words when something does not belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError, UsageError, first_line
from fastxfer.targets.table import Target

FORMAT = 2
BLOCK_ROWS = 256  # rows in a file; 1 MB of float16 at dim 2,048
MANY_BLOCKS, LARGE_BLOCK = 4096, 64 << 20  # up to a million images 256 rows do; from there on blocks grow
# What is read at least to get one row (an episode's rows lie scattered), and still large enough to be read fast.
CHUNK_ROWS, CHUNK_BYTES = 64, 256 << 10
TABLE_CHUNK = 65_536
# Stores inside a store: digests of images, and their pixels.
CONTENTS, PIXELS = "contents", "pixels"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,119}")
BLOCK_FILE = re.compile(r"c\.(\d+)\.0")


def block_rows_for(n_images: int, row_bytes: int) -> int:
    """Rows a block unless somebody chooses: 256, more for large targets, so that an array is some thousands of files.

    A block is never more than 64 MiB for that, as it is held in memory several times while it is written.
    """
    rows = BLOCK_ROWS
    while n_images > MANY_BLOCKS * rows and 2 * rows * row_bytes <= LARGE_BLOCK:
        rows *= 2
    return rows


def block_file(number: int) -> str:
    return f"c.{number}.0"


def array_path(backbone: str, target: str) -> str:
    return f"targets/{target}/embeddings/{backbone}"


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a folder's name and nothing more, else raise UsageError."""
    if not NAME.fullmatch(name) or name == "zarr.json":
        raise UsageError(
            f"{what} name '{name}': letters, digits and . _ + = - only, starting with a letter or digit, at most 120"
        )
    return name


def check_format(path: str | Path, attributes: Mapping[str, Any]) -> int:
    """The format of the store whose root has these attributes. DataError if it isn't one, or a newer fastxfer's."""
    version = attributes.get("fastxfer_format")
    if not isinstance(version, int):
        raise DataError(f"'{path}' is a Zarr folder, but not a fastxfer store (no fastxfer_format in its attributes)")
    if version > FORMAT:
        raise DataError(
            f"store '{path}' was made by a newer fastxfer (format {version}, this one reads {FORMAT}): upgrade"
        )
    return version


def check_table(store: str, attrs: Mapping[str, Any], target: Target, files: str = "") -> None:
    """Raise DataError if the stored table is not this target's, or its files (a digest, "" unknown) are others now."""
    if files and attrs.get("files") and attrs["files"] != files:
        raise DataError(
            f"the image files of target '{target.name}' are not those in store '{store}': under the same names they have "
            "other sizes now, and embeddings of old and new images don't mix. Use another --store, or throw the old "
            f"ones away: `fastxfer store rm --target {target.name} --yes`"
        )
    if attrs["fingerprint"] != target.fingerprint:
        raise DataError(
            f"target '{target.name}' is not the one in store '{store}': {target.n_images:,} images, "
            f"fingerprint {target.fingerprint[:12]} now, {attrs['n_images']:,} and {attrs['fingerprint'][:12]} there; "
            f"its images, labels or splits changed. Give the changed one another name (images that the store knows are not "
            f"computed again), use another --store, or throw the old one away: `fastxfer store rm --target {target.name} --yes`"
        )


def check_backbone(store: str, backbone: str, target: str, stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """Raise DataError if what an array holds (its attributes, dim and dtype) is not what is to be written."""
    differs = [k for k in ("identity", "dim", "dtype") if stored.get(k) != fresh.get(k)]
    if not differs:
        return
    what = differs[0]
    if what == "identity":  # say which part of it
        parts = ("weights_sha256", "architecture", "arch_args", "pooling", "preprocessing", "precision")
        what = next((k for k in parts if k in fresh and stored.get(k) != fresh[k]), "identity")
    raise DataError(
        f"store '{store}' already holds another backbone's embeddings of '{target}' as '{backbone}': "
        f"{what} differs (there {_short(stored.get(what))}, now {_short(fresh.get(what))}). Give this one another name "
        f"with --name, or throw the old ones away: `fastxfer store rm {backbone} {target} --yes`"
    )


def bad_rows(attrs: Mapping[str, Any]) -> NDArray[np.int64]:
    """Rows of the full table whose image cannot be decoded, ascending."""
    return np.array(sorted(int(row) for row in attrs["bad"]), dtype=np.int64)


def damaged(
    store: str, what: str, why: object, remedy: str = "`fastxfer store repair` restores what it can"
) -> DataError:
    return DataError(f"store '{store}': {what} is damaged ({first_line(why)}): {remedy}")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
