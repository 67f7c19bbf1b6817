"""What people give to `targets add`: a folder of images, a table, or a file that holds both -> a listing."""

from __future__ import annotations

from pathlib import Path

from fastxfer.errors import DataError, UsageError
from fastxfer.images import tables
from fastxfer.images.containers import ENDINGS
from fastxfer.targets.archives import find_archives, read_archives
from fastxfer.targets.csvfile import Table, read_csv
from fastxfer.targets.files import walk_images
from fastxfer.targets.listing import Listing, read_folder, read_table
from fastxfer.targets.packed import read_npz, read_shards
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

    source: a folder with a labels.csv (which then decides alone), with class folders, or with Parquet or Arrow shards; a CSV,
    whose paths start at `root` (default: its folder); an .npz in MedMNIST's layout; a .parquet or .arrow; tar archives.
    pattern: which of a folder's images, and what their paths say, see `read_pattern`; a labels.csv then counts for nothing.
    The other options are those of `read_table`.
    """
    if not source.exists():
        glob = "; a glob goes into --pattern, as in '{label}/**/*.jpg'" if "*" in str(source) else ""
        raise DataError(f"{source}: there is no such folder or CSV file{glob}")
    if not (source.is_dir() or source.is_file()):
        raise DataError(f"{source}: neither a folder nor a CSV file")
    ending = "" if source.is_dir() else source.suffix.lower()
    if root is not None and (source.is_dir() or ending in ENDINGS):
        raise UsageError(f"a root is given with a CSV only; {source} is its own root")
    columns = [*map(str.strip, label_column.split(",")), *([group] if group else [])]

    def of_table(kind: str, table: Table, base: Path) -> tuple[str, Listing]:
        return kind, read_table(table, base, label_column=label_column, group=group, missing_labels=missing_labels)

    def without_table(why: str) -> None:
        for given, what in ((label_column, "column"), (group, "group"), (missing_labels, "missing labels")):
            if given not in (None, "label"):
                raise DataError(f"{source}: {what} '{given}' asked for, but {why}")

    if source.is_file():
        if pattern is not None:
            raise UsageError(f"--pattern goes with a folder of images; {source} is a file")
        if ending == ".npz":
            return of_table("packed", read_npz(source), source.parent)
        if ending in tables.ENDINGS:
            return of_table("packed", read_shards([source], source.parent, columns), source.parent)
        if ending != ".tar":
            return of_table("table", read_csv(source), root or source.parent)
        without_table("an archive has no table")
        return "packed", read_archives(source.parent, [source.name])
    if pattern is not None:
        without_table("--pattern reads no table")
        return "folder", read_pattern(source, pattern)
    if (source / "labels.csv").is_file():
        return of_table("table", read_csv(source / "labels.csv"), source)
    found = walk_images(source)
    if found.shards and not found.images:
        return of_table("packed", read_shards([source / shard for shard in found.shards], source, columns), source)
    without_table("there is no labels.csv in this folder")
    archives = [] if found.images else find_archives(source)
    return ("packed", read_archives(source, archives)) if archives else ("folder", read_folder(source, found))
