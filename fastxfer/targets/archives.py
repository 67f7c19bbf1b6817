"""Data sets that are kept in tar archives: one a class (ImageNet's own), or webdataset shards (timm's ImageNet)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastxfer.errors import DataError
from fastxfer.images import EXTENSIONS, read_tar, tar_index
from fastxfer.progress import progress
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.listing import SPLIT_WORDS, Listing

_CLASS = ".cls"


def find_archives(root: Path) -> list[str]:
    """Archives in `root` or in folders directly below it, relative to it, sorted."""
    return sorted(str(path.relative_to(root)) for pattern in ("*.tar", "*/*.tar") for path in root.glob(pattern))


def read_archives(root: Path, archives: list[str]) -> Listing:
    """List the images of archives; image ids are ``ARCHIVE/FILE``.

    An archive with ``KEY.cls`` beside ``KEY.jpg`` is a shard: the number in it is the class. Of any other the name is the
    class (``n01440764.tar``). A folder, or a part of a shard's name, that is called train, val or test is the split;
    either all archives have one or none. What is no image is counted in the notes. `DataError` names the archive.
    """
    splits = [_split_of(name) for name in archives]
    if None in splits and any(splits):
        odd = archives[splits.index(None)]
        raise DataError(f"{root / odd}: in which split? Others say it by folder or name (train, val, test)")
    image_id: list[str] = []
    labels: list[str] = []
    parts: list[str] | None = [] if all(splits) else None
    others: list[str] = []
    with progress(f"list {root.name}", len(archives), "archives") as advance:
        for archive, split in zip(archives, splits, strict=True):
            index = tar_index(root / archive)
            shard = any(name.endswith(_CLASS) for name in index)
            for name in sorted(index):
                key, ending = os.path.splitext(name)
                if ending.lower() not in EXTENSIONS:
                    others += [f"{archive}/{name}"] if ending != _CLASS else []
                    continue
                image_id.append(f"{archive}/{name}")
                labels.append(_class_of(root / archive, key) if shard else Path(archive).stem)
                if parts is not None and split is not None:
                    parts.append(split)
            advance(1)
    if not image_id:
        raise DataError(f"{root}: no image in {len(archives):,} tar archives")
    listing = Listing(root, image_id, labels, parts, lambda i: str(root / image_id[i]))
    if others:
        listing.left_out.append(LeftOut("files in archives that are no images by their name", str(root), paths=others))
        listing.notes.append(listing.left_out[-1].note)
    return listing


def _split_of(archive: str) -> str | None:
    folder, name = os.path.split(archive)
    words = [folder, *re.split(r"[^a-z]+", name.lower())] if folder else re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS), None)


def _class_of(archive: Path, key: str) -> str:
    if key + _CLASS not in tar_index(archive):
        raise DataError(f"{archive}: '{key}' has no class, '{key}{_CLASS}' isn't in this archive")
    text = read_tar(archive, key + _CLASS)
    if not re.fullmatch(rb"\s*\d{1,6}\s*", text):
        raise DataError(f"{archive}: '{key}{_CLASS}' holds {text[:20]!r}; expected the number of a class")
    return f"{int(text):05d}"  # so that the order of names is that of numbers
