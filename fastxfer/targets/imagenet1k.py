"""ImageNet-1k (ILSVRC 2012) as the usual two folders of class folders; its val is what everybody tests on."""

from __future__ import annotations

from pathlib import Path

from fastxfer.errors import DataError
from fastxfer.targets.listing import build_target, read_folder
from fastxfer.targets.table import Target

CLASSES = 1000


def read(folder: Path, name: str) -> Target:
    """Read ``train/n…/`` and ``val/n…/`` below `folder`; fewer than the 1,000 classes are said in the notes."""
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise DataError(f"target '{name}': no folder {folder / split}; expected class folders n01440764 … in it")
    listing = read_folder(folder)
    count = len(set(listing.labels))
    if count != CLASSES:
        listing.notes.append(f"{count:,} classes where ImageNet-1k has {CLASSES:,}: a part of it, or another data set")
    return build_target(listing, name)
