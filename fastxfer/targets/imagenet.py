"""ImageNet-1k (ILSVRC 2012) and ImageNet-21k as folders of class folders, of class archives, or as webdataset shards."""

from __future__ import annotations

from pathlib import Path

from fastxfer.errors import DataError
from fastxfer.targets.archives import find_archives, read_archives
from fastxfer.targets.listing import build_target, read_folder
from fastxfer.targets.table import Target

CLASSES = {"imagenet1k": 1_000, "imagenet21k": 21_841}
# Of 14 million images; nobody has published a split of ImageNet-21k.
_TEST_SHARE = 0.01


def read(folder: Path, name: str) -> Target:
    """Read class folders ``n01440764/`` … below `folder`; another number of classes is said in the notes.

    Or tar archives, left as they are: ``n01440764.tar`` …, one a class, or webdataset shards (``…-train-0000.tar``).
    ImageNet-1k needs ``train/`` and ``val/``, which everybody tests on. ImageNet-21k may have them; without, one
    image in a hundred of each class becomes test, seed 0.
    """
    archives = find_archives(folder)
    missing = [] if archives else [split for split in ("train", "val") if not (folder / split).is_dir()]
    if missing and (name == "imagenet1k" or len(missing) == 1):
        raise DataError(f"target '{name}': no folder {folder / missing[0]}; expected class folders n01440764 … in it")
    listing = read_archives(folder, archives) if archives else read_folder(folder)
    if name == "imagenet1k" and not {"train", "val"} <= set(listing.split or ()):
        raise DataError(
            f"target '{name}': {folder} holds {len(archives):,} archives; expected some of train and of val"
        )
    count = len(set(listing.labels))
    if count != CLASSES[name]:
        listing.notes.append(f"{count:,} classes where {name} has {CLASSES[name]:,}: a part of it, or another release")
    return build_target(listing, name, test_fraction=_TEST_SHARE)
