"""torchxrayvision's networks: their files, their pixels, their features; no network is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from fastxfer.backbones import load_backbone, load_network, xray
from fastxfer.errors import DataError, UsageError
from tests.test_backbones import Bomb

xrv: Any = pytest.importorskip("torchxrayvision")
ALL = "xrv:densenet121-res224-all"


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Their DenseNet with random weights and norms that are not at their defaults."""
    torch.manual_seed(0)
    network: nn.Module = xrv.models.DenseNet(num_classes=18).eval()
    for value in network.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return network


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)


def test_their_file_their_pixels_their_features(theirs: nn.Module, tmp_path: Path) -> None:
    torch.save(theirs, tmp_path / "theirs.pt")  # a whole module, as they publish them
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    grey = pixels()
    with torch.inference_mode():
        # normalize(): "roughly [-1024 1024]"
        images = torch.from_numpy(xrv.utils.normalize(grey, 255)[None, None])
        expected = theirs.features2(images)  # type: ignore[operator]
    identities = set()
    for file in ("theirs.pt", "state.pt"):
        backbone = load_backbone(tmp_path / file, arch=ALL)
        identities.add(backbone.identity)
        assert (backbone.dim, backbone.preprocessing.input_size) == (1024, (1, 224, 224))
        mine = backbone.preprocessing.normalise(
            torch.from_numpy(backbone.preprocessing.geometry()(Image.fromarray(grey).convert("RGB")))[None]
        )
        torch.testing.assert_close(mine, images, rtol=0, atol=1e-3)
        assert (float(mine.min()), float(mine.max())) == (-1024, 1024)
        with torch.inference_mode():
            torch.testing.assert_close(backbone.network(mine), expected, rtol=1e-4, atol=1e-4)
    assert len(identities) == 1
    tuned = load_network(tmp_path / "theirs.pt", ALL, None, 3)
    assert tuned(torch.zeros(2, 1, 64, 64)).shape == (2, 3)


def test_by_name_from_their_cache(theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(theirs, tmp_path / "cached.pt")
    asked = []
    monkeypatch.setattr(xrv.models, "get_weights", lambda name: asked.append(name) or str(tmp_path / "cached.pt"))
    backbone = load_backbone(ALL)
    assert asked == ["densenet121-res224-all"]
    assert backbone.name == "xrv-densenet121-res224-all"
    assert (backbone.checkpoint, backbone.architecture) == (ALL, ALL)
    assert backbone.source == "nih14+padchest+chexpert+mimic-cxr+google+openi+rsna"
    assert backbone.identity == load_backbone(tmp_path / "cached.pt", arch=ALL).identity

    def unreachable(name: str) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(xrv.models, "get_weights", unreachable)
    with pytest.raises(DataError, match=rf"could not be fetched \(no route to host\).*--ckpt FILE --arch {ALL}"):
        load_backbone(ALL)


def test_their_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = torchvision.models.resnet50(num_classes=18).eval()
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    torch.save(network.state_dict(), tmp_path / "state.pt")
    backbone = load_backbone(
        tmp_path / "state.pt", arch="xrv:resnet50-res512-all", preprocessing={"input_size": (1, 64, 64)}
    )
    images = torch.linspace(-1024, 1024, 2 * 64 * 64).reshape(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.fc(backbone.network(images)), network(images), rtol=1e-4, atol=1e-4)
    assert backbone.dim == 2048
    assert xray.preprocessing("resnet50-res512-all")["input_size"] == (1, 512, 512)


def test_code_in_their_kind_of_file_is_refused_all_the_same(theirs: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": theirs, "extra": Bomb()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt is refused: besides weights it holds Python code .*mkdir"):
        load_backbone(tmp_path / "evil.pt", arch=ALL)
    torch.save(theirs, tmp_path / "theirs.pt")
    with pytest.raises(DataError, match="is refused: besides weights it holds Python code"):
        load_backbone(tmp_path / "theirs.pt", arch="densenet121")  # nobody named them
    assert not os.path.exists("/tmp/fastxfer-must-not-exist")


def test_names_they_do_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"no model 'densenet121-res224-al'\. Did you mean: densenet121-res224-all"):
        load_backbone("xrv:densenet121-res224-al")
    with pytest.raises(UsageError, match="leave --arch resnet50 out"):
        load_backbone(ALL, arch="resnet50")
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=f"--arch-arg: {ALL} takes none"):
        load_backbone(tmp_path / "w.pt", arch=ALL, arch_args={"width": 3})

    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(xray.importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r"needs torchxrayvision .*pip install 'fastxfer\[xray\]'"):
        load_backbone(ALL)
