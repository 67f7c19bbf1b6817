"""Targets by name: data sets whose official layout is known. One module a family; this is the list of them.

A family's module has ``read(folder, name, **options) -> Target``. To add one, write the module and a line here; packages
bring others (`fastxfer.plugins`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.plugins import Catalogue
from fastxfer.targets.table import Target


@dataclass(frozen=True)
class Family:
    """A target whose official layout is known, built-in or brought by a package.

    name: of the target. reader: its function, or the module of ``fastxfer.targets`` that has it as ``read``. expects: what has to lie in its folder.
    source: where one gets the data, and what has to be signed. shares: name of the family whose folder it reads, if
    it is a variant. preset: options of the reader that make the variant; a caller's options win. packaged: labels
    alone need no folder, since torchxrayvision has them.
    """

    name: str
    reader: str | Callable[..., Target]
    expects: str
    source: str
    shares: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    packaged: bool = False

    def folder(self, data_root: Path) -> Path:
        """Where its files belong."""
        return data_root / (self.shares or self.name)

    def options(self) -> list[str]:
        """Names of the options that its reader takes."""
        return [p for p in inspect.signature(self._reader()).parameters if p not in ("folder", "name")]

    def _reader(self) -> Callable[..., Target]:
        if not isinstance(self.reader, str):
            return self.reader
        reader: Callable[..., Target] = importlib.import_module(f"fastxfer.targets.{self.reader}").read
        return reader

    def read(self, data_root: Path, options: dict[str, Any]) -> Target:
        """Read the files; `options` go to the reader. `DataError` says what was expected where."""
        folder = self.folder(data_root)
        known = self.options()
        for option in options:
            if option not in known:
                has = f"its options: {', '.join(known)}" if known else "it has none"
                raise UsageError(f"target '{self.name}' has no option '{option}'; {has}.{nearest(option, known)}")
        if not folder.is_dir() and not (self.packaged and options.get("labels_only")):
            raise DataError(
                f"target '{self.name}': there is no folder {folder}; expected there: {self.expects}. "
                f"The data: {self.source}"
            )
        return self._reader()(folder, self.name, **{**self.preset, **options})


_CHEXPERT: dict[str, Any] = {
    "reader": "chexpert",
    "expects": "train.csv and valid.csv of the release with the folders train/ and valid/ beside them (directly, or in "
    "CheXpert-v1.0/ or CheXpert-v1.0-small/)",
    "source": "register with the Stanford AIMI Center and accept its research use agreement: "
    "https://stanfordmlgroup.github.io/competitions/chexpert/",
    "packaged": True,
}
_MIMIC: dict[str, Any] = {
    "reader": "mimic",
    "expects": "mimic-cxr-2.0.0-chexpert.csv.gz (or -negbio), -metadata and -split (or .csv) and the folder files/",
    "source": "become a credentialed user of PhysioNet and sign its data use agreement: "
    "https://physionet.org/content/mimic-cxr-jpg/",
}
_PADCHEST: dict[str, Any] = {
    "reader": "padchest",
    "expects": "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz) and the images, in folders 0 … 54 or "
    "any others",
    "source": "accept the terms of BIMCV: https://bimcv.cipf.es/bimcv-projects/padchest/",
    "packaged": True,
}

_TUBERCULOSIS: dict[str, Any] = {
    "reader": "tuberculosis",
    "expects": "the folders ChinaSet_AllFiles/CXR_png/ (CHNCXR_0001_0.png …) and MontgomerySet/CXR_png/ (MCUCXR_0001_0.png …)",
    "source": "free, from the U.S. National Library of Medicine: "
    "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
}
_CIFAR: dict[str, Any] = {
    "reader": "cifar",
    "expects": "cifar-10-batches-py/ (cifar-100-python/), then once `fastxfer targets export NAME`, which writes train/ "
    "and test/ with class folders",
    "source": "free: https://www.cs.toronto.edu/~kriz/cifar.html",
}
_FLOWERS: dict[str, Any] = {
    "reader": "flowers",
    "expects": "imagelabels.mat, setid.mat and jpg/ (directly, or in flowers-102/)",
    "source": "free: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
}

_OWN = {
    family.name: family
    for family in (
        Family("chexpert", **_CHEXPERT),
        Family("chexpert-paper", **_CHEXPERT, shares="chexpert", preset={"zero_devices": True}),
        Family("mimic-cxr", **_MIMIC),
        Family("mimic-cxr-paper", **_MIMIC, shares="mimic-cxr", preset={"zero_devices": True}),
        Family(
            "nih14",
            "nih14",
            "Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), images in images/ or images_001/ … images_012/, and, "
            "if at hand, train_val_list.txt and test_list.txt",
            "free, with attribution to the NIH Clinical Center: https://nihcc.app.box.com/v/ChestXray-NIHCC",
            packaged=True,
        ),
        Family("padchest", **_PADCHEST),
        Family("padchest-paper", **_PADCHEST, shares="padchest", preset={"split": "image"}),
        Family("padchest-cl", **_PADCHEST, shares="padchest", preset={"split": "image", "exactly_one": True}),
        Family(
            "covidx-cxr2",
            "covidx",
            "the lists train.txt and test.txt with the folders train/ and test/ beside them",
            "free, from Kaggle (COVIDx CXR-2) or built as its authors say: https://github.com/lindawangg/COVID-Net",
        ),
        Family("tuberculosis", **_TUBERCULOSIS),
        Family("tuberculosis-paper", **_TUBERCULOSIS, shares="tuberculosis", preset={"split": "paper"}),
        Family("cifar10", **_CIFAR),
        Family("cifar100", **_CIFAR),
        Family("flowers102", **_FLOWERS),
        Family("flowers102-paper", **_FLOWERS, shares="flowers102", preset={"split": "paper"}),
        Family(
            "pets",
            "pets",
            "annotations/trainval.txt, annotations/test.txt and images/ (directly, or in oxford-iiit-pet/)",
            "free (CC BY-SA 4.0): https://www.robots.ox.ac.uk/~vgg/data/pets/",
        ),
        Family(
            "imagenet1k",
            "imagenet",
            "train/ and val/, each with 1,000 class folders n01440764 … n15075141",
            "register and accept the terms of access: https://image-net.org/download.php",
        ),
        Family(
            "imagenet21k",
            "imagenet",
            "21,841 class folders n00004475 … (directly, or in train/ and val/)",
            "register and accept the terms of access: https://image-net.org/download.php",
        ),
    )
}


def _wrong(name: str, thing: object) -> str:
    if not isinstance(thing, Family):
        return f"it is {thing!r}, expected a fastxfer.targets.Family"
    return "" if thing.name == name else f"its name is '{thing.name}', expected '{name}'"


FAMILIES: Catalogue[Family] = Catalogue("targets", _OWN, _wrong)
