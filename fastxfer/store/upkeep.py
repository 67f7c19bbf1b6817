"""Looking after stores: sizes, what can go, copies, unions, and stores of older formats."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastxfer.errors import DataError, FastxferError, UsageError
from fastxfer.progress import progress, say
from fastxfer.store import files, locks
from fastxfer.store.arrays import StoredArray
from fastxfer.store.blocks import layout_of
from fastxfer.store.embeddings import EmbeddingStore
from fastxfer.store.layout import FORMAT, NAME, array_path, block_file, check_backbone, check_table
from fastxfer.store.tables import COLUMNS

_OLD = 3600.0  # seconds after which a file that somebody may be writing without a lock is taken for left over


@dataclass(frozen=True)
class Usage:
    """Bytes of one array (backbone, target), or of a target's table (backbone "")."""

    target: str
    backbone: str
    files: int
    bytes: int


def usage(store: EmbeddingStore) -> list[Usage]:
    """What takes how much room, by target and backbone."""
    found = []
    for target in store.targets():
        prefix = f"targets/{target}"
        table = [store.size(f"{prefix}/{n}") for n in files.names(store.backing, prefix) if n != "embeddings"]
        found.append(Usage(target, "", sum(n for n, _ in table), sum(b for _, b in table)))
        for backbone in store.backbones(target):
            found.append(Usage(target, backbone, *store.size(array_path(backbone, target))))
    return found


# -- what can go -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs: what it is, its path in the store, why, and how many bytes it takes."""

    what: Literal["lock", "file", "folder", "table"]
    path: str
    why: str
    bytes: int


def leftovers(store: EmbeddingStore) -> list[Leftover]:
    """What killed runs left (half-written files, removals cut short, locks), tables half-written or without embeddings.

    What a running process may still need is not among them.
    """
    return [Leftover(what, path, why, store.size(path)[1]) for what, path, why in _leftovers(store)]


def _leftovers(store: EmbeddingStore) -> Iterator[tuple[Literal["lock", "file", "folder", "table"], str, str]]:
    known = set(store.targets())
    root = files.local_root(store.backing)
    held = set()
    if root is not None:
        for lock in sorted((root / ".locks").glob("*")):
            if locks.is_held(lock):
                held.add(re.sub(r"\.\d+-of-\d+$", "", lock.name))
            else:
                yield "lock", f".locks/{lock.name}", "a lock that nobody holds"
        for path in sorted(root.rglob(f"*{files.PARTIAL}")):
            parts = path.relative_to(root).parts
            if any(part.startswith(files.TRASH) for part in parts):
                continue  # goes with the rest of it
            owner = f"{parts[1]}@{parts[3]}" if len(parts) == 5 else ""
            if owner not in held if owner else time.time() - path.stat().st_mtime > _OLD:
                yield "file", path.relative_to(root).as_posix(), "a file that was never finished"
        for path in sorted(root.rglob(f"{files.TRASH}*")):
            yield "folder", path.relative_to(root).as_posix(), "a removal that was cut short"
    for name in files.names(store.backing, "targets"):
        if name == files.METADATA or name in held or files.PARTIAL in name or not NAME.fullmatch(name):
            continue
        if name not in known:
            if not files.names(store.backing, f"targets/{name}/embeddings"):
                yield "table", f"targets/{name}", "a table that was never finished"
        elif not store.backbones(name) and not any(h.startswith(f"{name}@") for h in held):
            yield "table", f"targets/{name}", "a table without embeddings"


def remove_leftovers(store: EmbeddingStore, found: list[Leftover]) -> None:
    """Remove them. A table goes only under its lock, and if there are still no embeddings."""
    store.check_writable()
    root = files.local_root(store.backing)
    for leftover in found:
        if leftover.what == "table":
            name = leftover.path.removeprefix("targets/")
            with store.locked(name, f"target '{name}'"):
                arrays = files.names(store.backing, f"{leftover.path}/embeddings")
                if not any(NAME.fullmatch(n) and n != files.METADATA for n in arrays):
                    files.delete_tree(store.backing, leftover.path)
        elif root is None:
            continue  # only folders have other leftovers
        elif leftover.what == "lock":
            with locks.hold(root / leftover.path, leftover.path):
                pass  # which removes it, if it is still nobody's
        elif leftover.what == "folder":
            shutil.rmtree(root / leftover.path)
        else:
            (root / leftover.path).unlink(missing_ok=True)


# -- copies and unions -------------------------------------------------------------------------------------------------


def copy(source: EmbeddingStore, backbone: str, target: str, to: EmbeddingStore) -> int:
    """Copy an array and its target's table; how many rows were written. Blocks that `to` has already stay as they are.

    Every block is checked on the way. DataError if `to` holds another target or another backbone's embeddings under
    these names, or if source's are damaged.
    """
    conflict = _conflict(source, backbone, target, to)
    if conflict:
        raise DataError(conflict)
    array = source.stored(backbone, target)
    table = source.target(target, keep_bad=True)
    to.add_target(table, files=source.files_digest(target))
    written = 0
    attributes = {k: v for k, v in array.attributes.items() if k != "complete"}
    with to.writer(
        backbone, target, dim=array.shape[1], dtype=str(array.dtype), attributes=attributes, block_rows=array.block_rows
    ) as out:
        out.mark_bad({row: why for row, why in source.bad_images(target).items() if row not in out.bad})
        absent = array.missing()
        blocks = [b for b in out.missing if not any(a.start < b.stop and b.start < a.stop for a in absent)]
        with progress(f"copy {backbone} on {target}", len(blocks), "blocks") as advance:
            for block in blocks:
                out.write(block, array.read(block))
                written += len(block)
                advance(1)
    return written


def _conflict(source: EmbeddingStore, backbone: str, target: str, to: EmbeddingStore) -> str:
    """Why an array cannot be copied; "" if it can. Nothing is written."""
    if target not in to.targets():
        return ""
    try:
        there = to.target_attributes(target)
        check_table(to.path, there, source.target(target, keep_bad=True), source.files_digest(target))
        if backbone in to.backbones(target):
            mine, theirs = to.stored(backbone, target), source.stored(backbone, target)
            one, other = ({**a.attributes, "dim": a.shape[1], "dtype": str(a.dtype)} for a in (mine, theirs))
            check_backbone(to.path, backbone, target, one, other)
        if to.backbones(target) and set(to.bad_images(target)) != set(source.bad_images(target)):
            return (
                f"target '{target}': other images could not be decoded in store '{source.path}' than in '{to.path}', so "
                f"their files differ; embed it anew, or keep the two apart"
            )
    except FastxferError as error:
        return str(error)
    return ""


def merge(other: EmbeddingStore, into: EmbeddingStore) -> list[tuple[str, str, int]]:
    """Unite all of another store with this one: (backbone, target, rows written) an array.

    Of an array that both have, the blocks that are missing here are taken from there. First everything is compared:
    DataError naming all that does not belong together, and then nothing is written.
    """
    pairs = [(backbone, target) for target in other.targets() for backbone in other.backbones(target)]
    conflicts = [words for backbone, target in pairs if (words := _conflict(other, backbone, target, into))]
    if conflicts:
        raise DataError(
            f"nothing was merged; {len(conflicts)} of {len(pairs)} arrays don't fit: " + "\n".join(conflicts)
        )
    for target in other.targets():
        if not other.backbones(target):
            into.add_target(other.target(target, keep_bad=True), files=other.files_digest(target))
    return [(backbone, target, copy(other, backbone, target, into)) for backbone, target in pairs]


# -- older formats -----------------------------------------------------------------------------------------------------


def migrate(path: str | Path) -> int:
    """Bring a store to the present format, in place; how many blocks were written anew. Nothing is computed.

    Killed midway, the store is what it was to those who read it, and the next run goes on. DataError if a block is
    damaged (named), once all others are done.
    """
    backing = files.open_files(path, read_only=False)
    store = EmbeddingStore.open(path)
    if store.version == FORMAT:
        return 0
    store = EmbeddingStore(path, backing, read_only=False, version=store.version)
    written, damaged = 0, []
    for target in store.targets():
        with store.locked(target, f"target '{target}'"):
            there = [f"targets/{target}/{c}" for c in COLUMNS if c in files.names(backing, f"targets/{target}")]
            for group in (*there, f"targets/{target}"):
                _seal(store, f"{group}/{files.METADATA}")
        for backbone in store.backbones(target):
            with store.locked(f"{target}@{backbone}", f"'{backbone}' on '{target}'"):
                array = store.stored(backbone, target)
                missing = {b.start for b in array.missing()}
                there_now = [b for b in array.blocks if b.start not in missing]
                with progress(f"migrate {backbone} on {target}", len(there_now), "blocks") as advance:
                    for block in there_now:
                        try:
                            written += _renew(store, array, block)
                        except DataError as error:
                            damaged.append(str(error))
                        advance(1)
                _seal(store, f"{array.path}/{files.METADATA}", complete=not missing)
        _seal(store, f"targets/{target}/embeddings/{files.METADATA}")
    if damaged:
        raise DataError(
            f"store '{path}' keeps format {store.version}, since blocks of it are damaged; delete them, run this again, "
            f"then the same `fastxfer embed`: " + "; ".join(damaged)
        )
    _seal(store, f"targets/{files.METADATA}")
    _seal(store, files.METADATA, fastxfer_format=FORMAT)
    say(f"store '{path}' has format {FORMAT} now")
    return written


def _renew(store: EmbeddingStore, array: StoredArray, block: range) -> bool:
    """Write a block of format 1 as one of the present format; False if it is one already."""
    document = files.read_json(store.backing, f"{array.path}/{files.METADATA}", sealed=False)
    layout = layout_of(document or {}, store.fingerprint(array.target))
    if layout is None:
        raise UsageError(f"store '{store.path}': {array.path} is not as format {store.version} says; embed it anew")
    key = f"{array.path}/{block_file(block.start // array.block_rows)}"
    number = block.start // array.block_rows
    content = files.read(store.backing, key)
    if content is None or not layout.check(number, content):
        return False
    files.write(store.backing, key, layout.encode(number, array.read(block)))
    return True


def _seal(store: EmbeddingStore, key: str, **changes: object) -> None:
    document = files.read_json(store.backing, key, sealed=False)
    if document is not None:
        document["attributes"] |= changes
        files.write_json(store.backing, key, document)
