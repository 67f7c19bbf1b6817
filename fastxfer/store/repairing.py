"""Putting a store right: what can be restored is, and exactly the blocks that are damaged go, for `embed` to make anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from zarr.abc.store import Store

from fastxfer.errors import DataError
from fastxfer.store import files
from fastxfer.store.embeddings import EmbeddingStore
from fastxfer.store.layout import FORMAT
from fastxfer.store.tables import write_columns
from fastxfer.store.verifying import Problem, stores_inside, verify_one
from fastxfer.targets.table import Target

_ROUNDS = 4  # what lies below a damaged zarr.json is seen once that is restored


@dataclass
class Repaired:
    """What `repair` did: a sentence each; what it could not; and the rows that `embed` has to make, by (backbone, target)."""

    done: list[str] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)
    lost: dict[tuple[str, str], list[range]] = field(default_factory=dict)


def repair(
    path: str | Path,
    backbone: str | None = None,
    target: str | None = None,
    *,
    load: Callable[[str], Target | None] = lambda _: None,
) -> Repaired:
    """Verify, restore metadata and tables, remove damaged blocks, and verify again until nothing is left to do; of a whole
    store those inside it as well.

    load: a target by name, as registered, from which a damaged table is written anew if it is the very same; or None

    Killed midway, it goes on when it is run again. DataError if somebody is writing what is to be repaired.
    """
    out = _repair_one(path, backbone, target, load)
    for name in stores_inside(path) if backbone is None and target is None else ():
        inner = _repair_one(f"{path}/{name}", None, None, load)
        out.done += [f"{name}/{told}" for told in inner.done]
        out.left += [problem.inside(name) for problem in inner.left]
    return out


def _repair_one(
    path: str | Path, backbone: str | None, target: str | None, load: Callable[[str], Target | None]
) -> Repaired:
    out = Repaired()
    for _ in range(_ROUNDS):
        problems = verify_one(path, backbone, target).problems
        # Metadata first: the rest is put right through it.
        problems.sort(key=lambda p: (p.kind not in ("metadata", "copy"), p.path.count("/")))
        left = [p for p in problems if not _repair(path, p, load, out)]
        if left == problems:
            break
    out.left = left
    return out


def _repair(path: str | Path, problem: Problem, load: Callable[[str], Target | None], out: Repaired) -> bool:
    backing = files.open_files(path, read_only=False)
    try:
        if problem.kind in ("metadata", "copy") and "/" not in problem.path.removeprefix(f"{files.COPY}/"):
            done = _restore_metadata(backing, problem)  # the root's, without which the store doesn't open
        else:
            done = _repair_inside(EmbeddingStore.open(path, mode="a"), backing, problem, load, out)
    except DataError as error:
        if "is being written by" in str(error):
            raise
        return False
    if done:
        out.done.append(f"{problem.path}: {done}")
    return bool(done)


def _repair_inside(
    store: EmbeddingStore, backing: Store, problem: Problem, load: Callable[[str], Target | None], out: Repaired
) -> str:
    lock = f"{problem.target}@{problem.backbone}" if problem.backbone else problem.target or "repair"
    with store.locked(lock, f"'{problem.backbone}' on '{problem.target}'" if problem.backbone else f"{problem.path}"):
        if problem.kind in ("metadata", "copy"):
            return _restore_metadata(backing, problem) or _restore_table(store, backing, problem, load)
        if problem.kind == "table":
            return _restore_table(store, backing, problem, load)
        if problem.kind in ("block", "missing"):
            # First the array is no longer complete, then the block goes: a kill in between loses nothing.
            array = store.stored(problem.backbone, problem.target)
            store.change_attributes(array, lambda attributes: attributes.update(complete=False))
            files.delete(backing, problem.path)
            if problem.rows is not None:
                out.lost.setdefault((problem.backbone, problem.target), []).append(problem.rows)
            return "removed" if problem.kind == "block" else "noted as missing"
        return ""


def _restore_metadata(backing: Store, problem: Problem) -> str:
    key = problem.path.replace(f"{files.COPY}/", "")
    main, copy = files.read(backing, key), files.read(backing, files.copy_of(key))
    if main is not None and files.is_sealed(key, main):
        files.write(backing, files.copy_of(key), main)
        return "written anew from the file that it is a copy of"
    if copy is not None and files.is_sealed(key, copy):
        files.write(backing, key, copy)
        return "restored from its copy"
    attributes = {
        files.METADATA: {"fastxfer_format": FORMAT},
        f"targets/{files.METADATA}": {},
        f"targets/{problem.target}/embeddings/{files.METADATA}": {},
    }.get(key)
    if attributes is None:
        return ""
    files.write_json(backing, key, {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    return "written anew"


def _restore_table(
    store: EmbeddingStore, backing: Store, problem: Problem, load: Callable[[str], Target | None]
) -> str:
    if problem.backbone or problem.path == f"targets/{problem.target}/{files.METADATA}":
        return ""
    known = load(problem.target)
    if known is None or known.fingerprint != store.fingerprint(problem.target):
        return ""
    write_columns(backing, known)
    return "the table's columns are written anew, from the registered target"
