"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds of cats and dogs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastxfer.errors import DataError
from fastxfer.targets.csvfile import read_lines
from fastxfer.targets.files import check_ids, locate_images
from fastxfer.targets.table import Target

N_BREEDS = 37
SPECIES = ("cat", "dog")
_LISTS = {"trainval.txt": "train", "test.txt": "test"}


def read(folder: Path, name: str, *, species: bool = False, labels_only: bool = False) -> Target:
    """Read ``annotations/trainval.txt`` (train), ``annotations/test.txt`` and ``images/``, in `folder` or in its
    ``oxford-iiit-pet/``.

    A line is ``Abyssinian_100 1 1 1``: image, breed, species (1 cat, 2 dog), number within the species.

    species:     cat or dog instead of the breed
    labels_only: the lists only; `root` is None
    """
    root = folder / "oxford-iiit-pet" if (folder / "oxford-iiit-pet").is_dir() else folder
    ids: list[str] = []
    where: list[str] = []
    split: list[str] = []
    breeds: list[int] = []
    kinds: list[int] = []
    breed_names: dict[int, str] = {}
    about: dict[str, tuple[int, int]] = {}
    for file, part in _LISTS.items():
        path = root / "annotations" / file
        if not path.is_file():
            raise DataError(f"target '{name}': no {path}; expected the lists trainval.txt and test.txt in annotations/")
        for line, place in read_lines(path):
            if line.startswith("#"):
                continue
            image, *numbers = line.split()
            if len(numbers) != 3 or not all(n.isdecimal() for n in numbers) or numbers[1] not in ("1", "2"):
                raise DataError(
                    f"{place}: {line!r}; expected such as 'Abyssinian_100 1 1 1' (image, breed, species, …)"
                )
            breed = int(numbers[0])
            breed_name, kind = image.rsplit("_", 1)[0], int(numbers[1]) - 1
            if breed_names.setdefault(breed, breed_name) != breed_name:
                raise DataError(f"{place}: breed {breed} is {breed_name!r} here, {breed_names[breed]!r} before")
            if about.setdefault(breed_name, (breed, kind)) != (breed, kind):
                before = f"breed {about[breed_name][0]}, a {SPECIES[about[breed_name][1]]}"
                raise DataError(f"{place}: {breed_name!r} is breed {breed}, a {SPECIES[kind]}; before, it was {before}")
            ids.append(f"images/{image}.jpg")
            where.append(place)
            split.append(part)
            breeds.append(breed)
            kinds.append(kind)
        if part not in split:
            raise DataError(f"{path}: no image in this list; expected such as 'Abyssinian_100 1 1 1'")
    notes = []
    if len(breed_names) != N_BREEDS:
        notes.append(f"{len(breed_names)} breeds where the data set has {N_BREEDS}")
    order = {breed: j for j, breed in enumerate(sorted(breed_names))}
    check_ids(ids, where)
    if not labels_only:
        ids = locate_images(root, ids, where)
    return Target(
        name,
        np.array(ids),
        SPECIES if species else tuple(breed_names[breed] for breed in order),
        np.array(kinds if species else [order[breed] for breed in breeds], dtype=np.int64),
        np.array(split),
        root=None if labels_only else root.absolute(),
        notes=tuple(notes),
    )
