"""The head that a checkpoint came with: it says of embeddings what the whole network says of images, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastxfer.backbones import load_backbone
from fastxfer.backbones.heads import source_head
from fastxfer.errors import DataError

TINY_BIT = {"channels": [128, 256], "stem_chs": 32}  # two stages
SMALL = {"input_size": (3, 32, 32)}


def make(arch: str = "resnetv2_50x1_bit", classes: int = 5, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(arch, num_classes=classes, **args)
    head: Any = network.get_classifier()  # type: ignore[operator]
    with torch.no_grad():  # BiT's starts at zero
        head.weight.normal_()
        head.bias.normal_()
    return network.eval()


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def bit() -> nn.Module:
    return make(**TINY_BIT)


def attributes_of(ckpt: str, arch: str = "resnetv2_50x1_bit", **args: Any) -> tuple[dict[str, Any], Any]:
    backbone = load_backbone(ckpt, arch=arch, arch_args=args, preprocessing=SMALL)
    return backbone.provenance(), backbone


def test_head_and_embedding_make_the_networks_answer(bit: nn.Module, tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "bit.pt", bit.state_dict())
    attributes, backbone = attributes_of(ckpt, **TINY_BIT)
    head = source_head(ckpt, attributes, backbone.dim)
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        expected = bit(images).softmax(1).numpy()
        found = head.probabilities(backbone.network(images).numpy())
    assert found == pytest.approx(expected, abs=1e-5)
    assert head.weight.shape == (5, 256)


def test_batch_norms_counters_may_be_missing_and_names_sorted(tmp_path: Path) -> None:
    network = make("resnet18", classes=4)
    state = {n: v for n, v in sorted(network.state_dict().items()) if not n.endswith("num_batches_tracked")}
    ckpt = saved(tmp_path / "resnet18.pt", state)
    attributes, backbone = attributes_of(ckpt, "resnet18")
    head = source_head(ckpt, attributes, backbone.dim)
    assert np.array_equal(head.weight, state["fc.weight"].numpy())


def test_a_file_without_head_is_refused(tmp_path: Path) -> None:
    body = {n: v for n, v in make(**TINY_BIT).state_dict().items() if not n.startswith("head.fc")}
    ckpt = saved(tmp_path / "body.pt", body)
    attributes, backbone = attributes_of(ckpt, **TINY_BIT)
    with pytest.raises(DataError, match="has no classification head"):
        source_head(ckpt, attributes, backbone.dim)


def test_a_head_of_several_labels_is_refused(bit: nn.Module, tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "bit.pt", {"model": bit.state_dict(), "meta": {"multi_label": True}})
    attributes, backbone = attributes_of(ckpt, **TINY_BIT)
    with pytest.raises(DataError, match="labels of which an image may have several"):
        source_head(ckpt, attributes, backbone.dim)


def test_other_weights_under_the_same_name_are_refused(bit: nn.Module, tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "bit.pt", bit.state_dict())
    attributes, backbone = attributes_of(ckpt, **TINY_BIT)
    state = bit.state_dict() | {"stem.conv.weight": bit.state_dict()["stem.conv.weight"] + 1}
    saved(tmp_path / "bit.pt", state)
    with pytest.raises(DataError, match=r"not those that these embeddings were made with"):
        source_head(ckpt, attributes, backbone.dim)


def test_what_is_not_one_linear_layer_on_the_embeddings_is_refused(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    ckpt = saved(tmp_path / "squeeze.pt", squeezenet1_1(num_classes=4).state_dict())
    attributes, backbone = attributes_of(ckpt, "torchvision:squeezenet1_1")
    with pytest.raises(DataError, match="not linear in the embeddings"):  # ReLU and average come behind its last layer
        source_head(ckpt, attributes, backbone.dim)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pooling": "avg-2"}, "taken at 'avg-2'"),
        ({"architecture": "xrv:densenet121"}, "no distribution over classes"),
        ({"architecture": ""}, "do not say which weight file"),
    ],
)
def test_embeddings_that_no_head_was_made_for(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    attributes = {"architecture": "resnet18", "pooling": "post", "weights_sha256": "x"} | changes
    with pytest.raises(DataError, match=words):
        source_head(str(tmp_path / "none.pt"), attributes, 8)


def test_a_name_of_a_hub_is_no_file() -> None:
    with pytest.raises(DataError, match="can be read from a weight file only"):
        source_head("resnet18.a1_in1k", {"architecture": "resnet18", "weights_sha256": "x"}, 512)


def test_a_users_network(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    input_size, mean, std = (3, 32, 32), 0.5, 0.5\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 6, 3)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x).mean((2, 3))\n"
        "def build():\n"
        "    return Net()\n"
    )
    torch.manual_seed(0)
    state = {"conv.weight": torch.randn(6, 3, 3, 3), "conv.bias": torch.randn(6), "fc.weight": torch.randn(4, 6)}
    ckpt = saved(tmp_path / "net.pt", state)
    attributes, backbone = attributes_of(ckpt, f"{code}:build")
    head = source_head(ckpt, attributes, backbone.dim)
    assert np.array_equal(head.weight, state["fc.weight"].numpy())
    assert not head.bias.any()
    saved(tmp_path / "net.pt", state | {"fc2.weight": torch.randn(2, 4)})
    with pytest.raises(DataError, match=r"more than one linear layer: fc\.weight, fc2\.weight"):
        source_head(ckpt, attributes, backbone.dim)
