"""What the paper's names stand for: models, sources, targets; and what they are called here.

Sizes as its code feeds them (docs/targets.md and docs/pretrain.md say how they were counted); merged sources are sums.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NATURAL, XRAY = "natural", "X-ray"


class Model(NamedTuple):
    """parameters: of the network without head; pattern: of names that mean it here, backbones' and architectures'."""

    parameters: float
    pattern: str


class Source(NamedTuple):
    domain: str
    images: float


class PaperTarget(NamedTuple):
    """n_train, n_test: images; pattern: of targets' names here."""

    domain: str
    classes: int
    n_train: int
    n_test: int
    pattern: str

    @property
    def per_class(self) -> float:
        """Train images of a class, on average."""
        return self.n_train / self.classes


MODELS = {
    "bit50x1": Model(23.50e6, r"(^|[^0-9])50x1"),
    "bit152x4": Model(928.34e6, r"(^|[^0-9])152x4"),
}
_CHEXPERT, _MIMIC, _NIH, _PADCHEST = 191_010, 238_000, 86_524, 144_638
SOURCES = {
    "imagenet1k": Source(NATURAL, 1.28e6),
    "imagenet21k": Source(NATURAL, 14.2e6),
    "chexpert": Source(XRAY, _CHEXPERT),
    "mimic": Source(XRAY, _MIMIC),
    "nih": Source(XRAY, _NIH),
    "padchest": Source(XRAY, _PADCHEST),
    "chexpert_mimic": Source(XRAY, _CHEXPERT + _MIMIC),
    "chexpert_mimic_nih": Source(XRAY, _CHEXPERT + _MIMIC + _NIH),
    "chexpert_mimic_nih_padchest": Source(XRAY, _CHEXPERT + _MIMIC + _NIH + _PADCHEST),
}
TARGETS = {
    "cifar10": PaperTarget(NATURAL, 10, 50_000, 10_000, r"cifar10(?!0)"),
    "cifar100": PaperTarget(NATURAL, 100, 50_000, 10_000, r"cifar100"),
    "pets": PaperTarget(NATURAL, 37, 3_680, 3_669, r"pets(?!.*species)"),
    "flowers_oversampling": PaperTarget(NATURAL, 102, 6_149, 2_040, r"flowers"),
    "covidx_cxr2": PaperTarget(XRAY, 2, 15_952, 400, r"covidx-cxr2"),
    "tuberculosis_full": PaperTarget(XRAY, 2, 679, 121, r"tuberculosis"),
    "padchest": PaperTarget(XRAY, 26, 37_387, 4_153, r"padchest-cl"),
}
METRICS = {"acc": "accuracy", "mean_auc": "auc", "mean_average_precision": "average_precision"}
"""The paper's metrics -> ours; its others (of class 0) have none here."""
_MEMBERS = {
    "chexpert": "chexpert",
    "mimic": "mimic",
    "mimic-cxr": "mimic",
    "nih": "nih",
    "nih14": "nih",
    "padchest": "padchest",
}
_MEMBERS |= {"imagenet1k": "imagenet1k", "imagenet21k": "imagenet21k", "in1k": "imagenet1k", "in21k": "imagenet21k"}


def paper_target(name: str) -> str | None:
    """The paper's name of a target of ours: "flowers102-paper" is "flowers_oversampling"; None for one it has not."""
    return next((theirs for theirs, facts in TARGETS.items() if re.match(facts.pattern, name.lower())), None)


def paper_source(name: str) -> str | None:
    """The paper's name of a source of ours: "chexpert-paper+mimic-cxr-paper" is "chexpert_mimic"."""
    if name in SOURCES:
        return name
    members = [_MEMBERS.get(part.removesuffix("-paper")) for part in name.lower().split("+")]
    together = "_".join(m for m in _MEMBERS.values() if m in members) if None not in members else ""
    ordered = "_".join(dict.fromkeys(together.split("_")))
    return ordered if ordered in SOURCES and len(members) == len(ordered.split("_")) else None


def paper_model(*words: str) -> str | None:
    """The paper's model that a backbone's name, or else its architecture, speaks of."""
    return next((m for word in words for m, facts in MODELS.items() if re.search(facts.pattern, word.lower())), None)
