"""What people give to `targets add`: a folder of images, a table, or a file that holds both -> a listing."""

from __future__ import annotations

from pathlib import Path

from fastxfer.errors import DataError, UsageError
from fastxfer.images.containers import ENDINGS
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import walk_images
from fastxfer.targets.listing import Listing, read_folder, read_table
from fastxfer.targets.packed import read_npz, read_parquet
from fastxfer.targets.pattern import read_pattern


def read_source(
    source: Path,
    *,
    root: Path | None = None,
    pattern: str | None = None,
    label_column: str = "label",
    group: str | None = None,
    missing_labels: str | None = None,
) -> tuple[str, Listing]:
    """The kind of a source ("folder", "table", "packed") and what it lists.

    source: a folder with a labels.csv (which then decides alone), with class folders, or with Parquet shards; a CSV,
    whose paths start at `root` (default: its folder); an .npz in MedMNIST's layout; a .parquet.
    pattern: which of a folder's images, and what their paths say, see `read_pattern`; a labels.csv then counts for nothing.
    The other options are those of `read_table`.
    """
    if not source.exists():
        glob = "; a glob goes into --pattern, as in '{label}/**/*.jpg'" if "*" in str(source) else ""
        raise DataError(f"{source}: there is no such folder or CSV file{glob}")
    packed = source.suffix.lower() in ENDINGS
    if root is not None and (source.is_dir() or packed):
        raise UsageError(
            f"a root is given with a CSV only; {source} is a {'file' if packed else 'folder'}, and its own root"
        )

    def listed(kind: str, table: Table, base: Path) -> tuple[str, Listing]:
        return kind, read_table(table, base, label_column=label_column, group=group, missing_labels=missing_labels)

    columns = [*map(str.strip, label_column.split(",")), *([group] if group else [])]
    if source.is_file():
        if pattern is not None:
            raise UsageError(f"--pattern goes with a folder of images; {source} is a file")
        base = source.parent
        if source.suffix.lower() == ".npz":
            return listed("packed", read_npz(source), base)
        if packed:
            return listed("packed", read_parquet([source], base, columns), base)
        return listed("table", read_csv(source), root or base)
    found = None
    if pattern is None:
        if (source / "labels.csv").is_file():
            return listed("table", read_csv(source / "labels.csv"), source)
        found = walk_images(source)
        if found.shards and not found.images:
            return listed("packed", read_parquet([source / shard for shard in found.shards], source, columns), source)
    lacks = "there is no labels.csv in this folder" if pattern is None else "--pattern reads no table"
    for given, what in (
        (label_column != "label" and label_column, "column"),
        (group, "group"),
        (missing_labels, "missing labels"),
    ):
        if given:
            raise DataError(f"{source}: {what} '{given}' asked for, but {lacks}")
    return "folder", read_folder(source, found) if pattern is None else read_pattern(source, pattern)
