"""torchxrayvision's chest X-ray networks: one grey channel from -1,024 to 1,024, pooled as their classifiers are."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from fastxfer.errors import DataError, UsageError, first_line, nearest

XRV = "xrv:"
# What a whole module of theirs is pickled from, besides its own classes. None of these runs anything when it is made.
_LAYERS: tuple[Any, ...] = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Linear,
    nn.MaxPool2d,
    nn.ReLU,
    nn.Sequential,
    set,
)
_SOURCES = {"nih": "nih14", "pc": "padchest", "chex": "chexpert", "mimic_ch": "mimic-cxr", "mimic_nb": "mimic-cxr"}
_SOURCES |= {"kaggle": "rsna+nih14", "rsna": "rsna+nih14"}  # the RSNA challenge's images are ChestX-ray14's


class DenseFeatures(nn.Module):
    """Their DenseNet without classifier: (b, 1, h, w) -> (b, dim)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.features = network.features

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.features(images).relu().mean((2, 3))
        return out


def make(name: str, num_classes: int) -> tuple[nn.Module, str]:
    """One of their networks by its name, without weights, and the name of its classifier.

    Raises UsageError for an unknown name, or if torchxrayvision is not installed.
    """
    if _facts(name)["architecture"] == "densenet":
        network: nn.Module = _models().DenseNet(num_classes=num_classes)
        return network, "classifier"
    network = torchvision.models.get_model(name.partition("-")[0], weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network, "fc"


def preprocessing(name: str) -> dict[str, Any]:
    """What their networks want, in the words of `Preprocessing`."""
    side = _facts(name)["input_resolution"]
    # (2 x - 1) * 1,024 of pixels from 0 to 1
    return {"input_size": (1, side, side), "mean": (0.5,), "std": (1 / 2048,), "interpolation": "bilinear"}


def labels(name: str) -> int:
    """Classes of their classifier."""
    return len(_facts(name)["labels"])


def source(name: str) -> str:
    """What a network of theirs was trained on, by the names of fastxfer's targets, as the file's name tells."""
    words = re.split(r"-(?=densenet|resnet)", Path(_facts(name)["weights_url"]).name)[0].split("-")
    return "+".join(dict.fromkeys(part for word in words for part in _SOURCES.get(word, word).split("+")))


def pickled_classes() -> Sequence[Any]:
    """The classes that a weight file of theirs, a pickled DenseNet, is allowed to name."""
    models = _models()
    return [models.DenseNet, models._DenseBlock, models._DenseLayer, models._Transition, *_LAYERS]


def fetch(name: str) -> Path:
    """The weight file of a name, from their cache or their site. DataError if it can't be had."""
    _facts(name)
    get: Callable[[str], str] = _models().get_weights
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a bar of progress
            return Path(get(name))
    except Exception as error:  # what their HTTP library raises
        raise DataError(
            f"the weights of '{XRV}{name}' could not be fetched ({first_line(error)}). Without a network: "
            f"fetch the file elsewhere and give it with --ckpt FILE --arch {XRV}{name}"
        ) from None


def _models() -> Any:
    try:
        return importlib.import_module("torchxrayvision.models")
    except ImportError as error:
        raise UsageError(
            f"{XRV}… needs torchxrayvision ({error}): pip install 'fastxfer[xray]', or pip install torchxrayvision"
        ) from None


def _facts(name: str) -> dict[str, Any]:
    known = {k: v for k, v in _models().model_urls.items() if k.startswith(("densenet121-", "resnet"))}
    if name not in known:
        there = f" There are: {', '.join(known)}."
        raise UsageError(f"torchxrayvision has no model '{name}'.{nearest(name, known)}{there}")
    return {"input_resolution": 224, **known[name], "architecture": "densenet" if name[0] == "d" else "resnet"}
