"""Image files below a root folder: listing them, and making sure that none leaves it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastxfer.errors import DataError
from fastxfer.images import EXTENSIONS, count_rows, member_names, members, tables
from fastxfer.images.containers import split_address, tar_index


@dataclass
class Found:
    """What a walk over a folder came upon; all paths relative to it, "/" between folders, sorted."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)  # Parquet and Arrow tables
    others: list[str] = field(default_factory=list)  # files that are no images by name


def walk_images(root: Path) -> Found:
    """List the image files below `root` (by their ending), in all depths.

    Symbolic links are followed as long as they stay inside `root`; one that leaves it is a `DataError`, since what
    it points to is not part of the data set that is being described. Names starting with a dot and `__MACOSX` are
    left alone: they are the leavings of operating systems.
    """
    found = Found()
    real_root = os.path.realpath(root)
    # (path, relative, real paths of the folders above): a link to a folder above would turn the walk into a circle.
    stack: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (real_root,))]
    while stack:
        folder, relative, above = stack.pop()
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = f"{relative}/{entry.name}" if relative else entry.name
            if not _is_text(entry.name):
                raise DataError(
                    f"{os.fsencode(entry.path)!r}: this name is not UTF-8, so no table can hold it; rename the file"
                )
            real = None
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not _inside(real, real_root):
                    raise DataError(
                        f"{entry.path}: this link leads out of {root}, to {real}; links are followed only inside the "
                        "folder (add the folder that holds both, with a CSV, or copy the files)"
                    )
                if not os.path.exists(real):
                    raise DataError(f"{entry.path}: this link leads to {real}, which isn't there")
            if entry.is_dir():
                # Below a followed link the real path is no longer the path as walked, so resolve it there.
                real = real or os.path.join(above[-1], entry.name)
                if real not in above:
                    found.folders.append(path)
                    stack.append((entry.path, path, (*above, real)))
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in EXTENSIONS:
                found.images.append(path)
            else:
                if ending in tables.ENDINGS:
                    found.shards.append(path)
                found.others.append(path)
    found.images.sort()
    found.folders.sort()
    found.shards.sort()
    found.others.sort()
    return found


def locate_images(root: Path, paths: Sequence[str], where: Iterable[str]) -> list[str]:
    """Turn listed paths into image ids: relative to `root`, normalised, "/" between folders.

    paths: as listed; absolute ones are fine if they lead into `root`; an address in a container is one, too. where: what messages call each
    ("labels.csv, row 7"). Every file must exist, and be inside `root` after links were followed.
    Raises `DataError` for the first path that leaves, and for missing files together (first few named, all counted).
    """
    base, real_root = os.path.abspath(root), os.path.realpath(root)
    listings: dict[str, dict[str, bool] | None] = {}
    ids: list[str] = []
    missing: list[str] = []
    for path, place in zip(paths, where, strict=True):
        image_id = _relative(path, base, real_root)
        if image_id is None:
            raise DataError(f"{place}: {path!r} leaves the data root {root}; list paths relative to it, without '..'")
        folder, _, name = image_id.rpartition("/")
        if folder not in listings:
            listings[folder] = _list(os.path.join(base, folder), real_root)
        names = listings[folder]
        is_link = None if names is None else names.get(name)
        full = f"{base}/{image_id}"
        if names is None or (is_link and not _inside(os.path.realpath(full), real_root)):
            raise DataError(f"{place}: {path!r} leads out of the data root {root} through a symbolic link")
        if is_link is None or (is_link and not os.path.isfile(full)):
            # What doesn't look like a path isn't quoted: where columns moved, it may be a patient.
            missing.append(f"{place}: {path!r}" if {".", "/"} & set(path) else f"{place}: no name of a file")
        ids.append(image_id)
    if missing:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing):,} of {len(paths):,} listed images are not below {root}: {'; '.join(missing[:5])}{more}"
        )
    return ids


def find_by_name(root: Path, files: Sequence[str], where: Sequence[str]) -> list[str]:
    """Image ids of files known by name only, in whatever folders below `root` they were unpacked to.

    files: names, or paths whose last part is the name. where: what messages call each.
    Raises `DataError` for files that are missing (first few named, all counted) or lie in two folders.
    """
    lying: dict[str, str] = {}
    twice: dict[str, str] = {}
    for path in walk_images(root).images:
        name = os.path.basename(path)
        if lying.setdefault(name, path) != path:
            twice[name] = path
    names = [os.path.basename(file) for file in files]
    check_ids(names, where)
    for name, place in zip(names, where, strict=True):
        if name in twice:
            raise DataError(f"{place}: {name!r} lies in two folders, {lying[name]} and {twice[name]}; keep one")
    missing = [i for i, name in enumerate(names) if name not in lying]
    if missing:
        few = "; ".join(f"{where[i]}: {names[i]!r}" for i in missing[:3])
        more = ", …" if len(missing) > 3 else ""
        raise DataError(f"{len(missing):,} of {len(names):,} images are not below {root}: {few}{more}")
    return [lying[name] for name in names]


def check_ids(image_id: Sequence[str], where: Sequence[str]) -> None:
    """Raise `DataError` for the first image that is none by its name, leaves the root by its path, or is listed twice.

    where: what messages call each ("labels.csv, row 7").
    """
    first: dict[str, int] = {}
    for i, name in enumerate(image_id):
        if os.path.splitext(name)[1].lower() not in EXTENSIONS:  # not quoted: where columns moved, it may be a patient
            raise DataError(f"{where[i]}: the image's name doesn't end as one (.png, .jpg, …); have columns moved?")
        if {"", ".", ".."} & set(name.split("/")):
            raise DataError(
                f"{where[i]}: {name!r} leaves the data root or names no file; list plain paths, without '..', '.' and '//'"
            )
        if first.setdefault(name, i) != i:
            raise DataError(f"{where[i]}: {name!r} is listed twice, first in {where[first[name]]}")


def _relative(path: str, base: str, real_root: str) -> str | None:
    if os.path.isabs(path):
        for start in (base, real_root):
            if _inside(os.path.normpath(path), start):
                return os.path.relpath(os.path.normpath(path), start).replace(os.sep, "/")
        return None
    normal = os.path.normpath(path).replace(os.sep, "/")
    return None if normal == ".." or normal.startswith("../") else normal


def _list(folder: str, real_root: str) -> dict[str, bool] | None:
    """Names of the files of a folder -> is it a link; {} if there is no such folder, None if it is outside."""
    if not _inside(os.path.realpath(folder), real_root):
        return None
    try:
        return {e.name: e.is_symlink() for e in os.scandir(folder) if e.is_symlink() or e.is_file()}
    except NotADirectoryError:
        return dict.fromkeys(_names_inside(folder), False)
    except FileNotFoundError:
        return {}
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # no such folder can be there
            return {}
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _names_inside(address: str) -> Iterable[str]:
    """Last parts of the addresses of images in a container: rows of FILE/MEMBER, files in an archive's folder."""
    inside = split_address(f"{address}/0")
    if inside is None:
        return ()
    file, member = inside[0], inside[1].rpartition("/")[0]
    if file.lower().endswith(".tar"):
        folders = (name.rpartition("/") for name in tar_index(file))
        return [name for folder, _, name in folders if folder == member]
    if member not in member_names(file):
        return ()
    if file.lower().endswith(".npz"):
        return map(str, range(members(file)[member][0]))
    return map(str, range(count_rows(file)))


def _is_text(name: str) -> bool:
    """Whether a name from the file system is UTF-8; Python carries other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
