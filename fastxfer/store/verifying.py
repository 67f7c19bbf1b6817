"""Looking at every byte of a store: what is damaged, where, and which rows that are.

Blocks carry checksums and a seal (`blocks`), every zarr.json a digest of itself and its path (`files`), tables checksums and
a fingerprint, so bytes that changed, files that were cut, and sound ones in another's place are all found. A block that
is not there is damage only where the array was complete once; an interrupted run's array is merely incomplete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zarr.abc.store import Store

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.progress import progress
from fastxfer.store import files
from fastxfer.store.blocks import Layout, layout_of
from fastxfer.store.layout import BLOCK_FILE, CONTENTS, FORMAT, NAME, PIXELS, array_path, block_file, check_format
from fastxfer.store.tables import COLUMNS, has_columns, read_table

_THREADS = 4
Kind = Literal["metadata", "copy", "table", "block", "missing", "unreadable"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    kind: "metadata" a zarr.json; "copy" the copy of one; "table" columns of a target; "block" a file of rows; "missing" a
          block that was there once; "unreadable" a file that the system cannot read, whatever is in it
    path: the file (of a table, its folder), relative to the store;  rows: of the array, those that are concerned
    """

    kind: Kind
    path: str
    why: str
    target: str = ""
    backbone: str = ""
    rows: range | None = None

    def __str__(self) -> str:
        whose = f"'{self.backbone}' on '{self.target}', " if self.backbone else ""
        rows = f"rows {self.rows.start:,} to {self.rows.stop - 1:,}: " if self.rows else ""
        return f"{whose}{rows}{self.path}: {self.why}"

    def inside(self, name: str) -> Problem:
        """The same, as seen from the store that this one's store is inside of."""
        return replace(self, path=f"{name}/{self.path}")

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.path,
            "why": self.why,
            "target": self.target or None,
            "backbone": self.backbone or None,
            "rows": [self.rows.start, self.rows.stop] if self.rows else None,
        }


@dataclass
class Report:
    """What `verify` saw. `incomplete`: (backbone, target) -> rows that were never written, which is no damage."""

    problems: list[Problem] = field(default_factory=list)
    arrays: int = 0
    blocks: int = 0
    bytes: int = 0
    incomplete: dict[tuple[str, str], int] = field(default_factory=dict)


def verify(path: str | Path, backbone: str | None = None, target: str | None = None) -> Report:
    """Check a whole store, with those inside it, or what belongs to one array, byte for byte. Reads only, needs no lock.

    The stores inside (digests of images, pixels) add their problems; what is counted is the embeddings'.
    DataError if there is no store or it has an older format; UsageError if it has no such array.
    """
    report = verify_one(path, backbone, target)
    for inside in stores_inside(path) if backbone is None and target is None else ():
        try:
            found = verify_one(f"{path}/{inside}").problems
        except DataError as error:
            found = [Problem("metadata", files.METADATA, str(error))]
        report.problems += [problem.inside(inside) for problem in found]
    return report


def stores_inside(path: str | Path) -> list[str]:
    """Names of the stores inside a store that are there."""
    backing = files.open_files(path, read_only=True)
    return [name for name in (CONTENTS, PIXELS) if {files.METADATA, files.COPY} & set(files.names(backing, name))]


def verify_one(path: str | Path, backbone: str | None = None, target: str | None = None) -> Report:
    """`verify` without the stores inside."""
    backing = files.open_files(path, read_only=True)
    root = files.local_root(backing)
    if root is not None and not root.is_dir():
        raise DataError(f"no store at '{path}'")
    report = Report()
    _refuse_older(path, backing)
    if _metadata(backing, files.METADATA, report) is None and not report.problems:
        raise DataError(f"'{path}' is not a fastxfer store (no zarr.json in it)")
    _metadata(backing, f"targets/{files.METADATA}", report)
    targets = [n for n in files.names(backing, "targets") if NAME.fullmatch(n) and n != files.METADATA]
    if target is not None and target not in targets:
        raise UsageError(f"store '{path}' holds no target '{target}'.{nearest(target, targets)}")
    work: list[tuple[Layout, str, str, int]] = []
    for name in targets if target is None else [target]:
        work += _target(str(path), backing, name, backbone, report)
    with progress(f"verify {path}", len(work), "blocks") as advance, ThreadPoolExecutor(_THREADS) as pool:
        for size, problem in pool.map(lambda block: _block(backing, *block), work):
            report.blocks += 1
            report.bytes += size
            report.problems += [problem] if problem else []
            advance(1)
    return report


def _refuse_older(path: str | Path, backing: Store) -> None:
    try:
        root = files.read_json(backing, files.METADATA, sealed=False)
    except (ValueError, KeyError, TypeError, OSError):
        return  # which is found again
    if root is not None and check_format(path, root["attributes"]) < FORMAT:
        raise DataError(
            f"store '{path}' has format {root['attributes']['fastxfer_format']}, whose files don't tell enough to be "
            f"verified: `fastxfer store migrate --store {path}` first"
        )


def _metadata(backing: Store, key: str, report: Report, target: str = "", backbone: str = "") -> dict[str, Any] | None:
    """Check a zarr.json and its copy; what it says, by the copy if need be; None if there is neither."""
    sound = None
    both: list[tuple[Kind, str]] = [("copy", files.copy_of(key)), ("metadata", key)]
    for kind, name in both:
        try:
            content = files.read(backing, name)
        except OSError as error:
            report.problems.append(Problem("unreadable", name, str(error.strerror), target, backbone))
            continue
        if content is not None and files.is_sealed(key, content):
            sound = content
        elif content is not None:
            report.problems.append(Problem(kind, name, "it is not as it was written", target, backbone))
        elif sound is not None and kind == "metadata":
            report.problems.append(Problem(kind, name, "it is missing", target, backbone))
    if sound is None:
        return None
    document: dict[str, Any] = json.loads(sound)
    document["attributes"].pop(files.DIGEST)
    return document


def _target(
    store: str, backing: Store, name: str, backbone: str | None, report: Report
) -> Iterator[tuple[Layout, str, str, int]]:
    """Check a target's table and its arrays' metadata; yield the blocks that are to be read."""
    prefix = f"targets/{name}"
    there = files.names(backing, prefix)
    before = len(report.problems)
    document = _metadata(backing, f"{prefix}/{files.METADATA}", report, name)
    known = {*COLUMNS, "embeddings"} & set(there)
    # Some object stores keep an emptied folder's name for a while.
    if document is None and len(report.problems) == before and known and files.size(backing, prefix)[0]:
        report.problems.append(Problem("metadata", f"{prefix}/{files.METADATA}", "it and its copy are missing", name))
    if document is None or "fingerprint" not in document["attributes"]:
        return  # beyond telling, or the table of a run that was killed while writing it
    for column in (c for c in COLUMNS if c in there):
        _metadata(backing, f"{prefix}/{column}/{files.METADATA}", report, name)
    sound = all(p.kind == "copy" for p in report.problems[before:])
    if sound and has_columns(document["attributes"]):
        try:
            read_table(store, backing, name, document["attributes"])
        except DataError as error:
            report.problems.append(Problem("table", prefix, str(error).removeprefix(f"store '{store}': "), name))
        except OSError as error:
            report.problems.append(Problem("unreadable", prefix, str(error), name))
    _metadata(backing, f"{prefix}/embeddings/{files.METADATA}", report, name)
    backbones = [n for n in files.names(backing, f"{prefix}/embeddings") if NAME.fullmatch(n) and n != files.METADATA]
    if backbone is not None and backbone not in backbones:
        raise UsageError(
            f"store '{store}' holds no embeddings of '{name}' by '{backbone}'.{nearest(backbone, backbones)}"
        )
    for one in backbones if backbone is None else [backbone]:
        yield from _array(backing, one, name, str(document["attributes"]["fingerprint"]), report)


def _array(
    backing: Store, backbone: str, target: str, fingerprint: str, report: Report
) -> Iterator[tuple[Layout, str, str, int]]:
    path = array_path(backbone, target)
    key = f"{path}/{files.METADATA}"
    numbers = sorted(int(m[1]) for n in files.names(backing, path) if (m := BLOCK_FILE.fullmatch(n)))
    before = len(report.problems)
    document = _metadata(backing, key, report, target, backbone)
    if document is None:
        if numbers and len(report.problems) == before:
            report.problems.append(Problem("metadata", key, "it and its copy are missing", target, backbone))
        return
    layout = layout_of(document, fingerprint)
    if layout is None:
        report.problems.append(Problem("metadata", key, "it describes no array of this format", target, backbone))
        return
    report.arrays += 1
    absent = sorted(set(range(layout.n_blocks)) - set(numbers))
    if document["attributes"].get("complete"):
        report.problems += [
            Problem("missing", f"{path}/{block_file(n)}", "it is missing", target, backbone, layout.rows(n))
            for n in absent
        ]
    elif absent:
        report.incomplete[backbone, target] = sum(len(layout.rows(n)) for n in absent)
    for number in numbers:
        if number < layout.n_blocks:
            yield layout, backbone, target, number
        else:
            why = "it lies beyond the array's rows"
            report.problems.append(Problem("block", f"{path}/{block_file(number)}", why, target, backbone))


def _block(backing: Store, layout: Layout, backbone: str, target: str, number: int) -> tuple[int, Problem | None]:
    """(bytes, what is wrong) of one block."""
    path = f"{array_path(backbone, target)}/{block_file(number)}"
    rows = layout.rows(number)
    try:
        content = files.read(backing, path)
    except OSError as error:
        return 0, Problem("unreadable", path, str(error.strerror or error), target, backbone, rows)
    if content is None:
        return 0, Problem("missing", path, "it went away", target, backbone, rows)
    why = layout.check(number, content)
    return len(content), Problem("block", path, why, target, backbone, rows) if why else None
