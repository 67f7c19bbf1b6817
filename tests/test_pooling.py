"""Pooling points and layers: what each is, an array each, and one pass of the network for all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastxfer.backbones import Backbone, load_backbone, load_backbones
from fastxfer.backbones.lean import lean
from fastxfer.backbones.pooling import Pooled
from fastxfer.cli.embed import parse_points
from fastxfer.embed import embed, embed_again, plan
from fastxfer.errors import DataError, UsageError
from tests.test_backbones import TINY_BIT, make
from tests.test_embed import make_images, open_store

X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()
SMALL = {"input_size": (3, 64, 64), "mean": 0.5, "std": 0.5}
VIT = {"img_size": 64, "depth": 3}
REGISTERS = "vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}
FC_NORM = "vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "fc_norm": True}


def load(
    folder: Path, arch: str, args: dict[str, Any], *pools: str, **options: Any
) -> tuple[nn.Module, list[Backbone]]:
    network = make(arch, num_classes=0, **args)
    torch.save(network.state_dict(), folder / "net.pt")
    options = {"preprocessing": SMALL, **options}
    return network, load_backbones(folder / "net.pt", arch=arch, arch_args=args, pools=pools, **options)


def run(backbone: Backbone) -> torch.Tensor:
    with torch.inference_mode():
        return backbone.network(X)


@pytest.mark.parametrize(("arch", "args"), [REGISTERS, FC_NORM])
def test_class_token_mean_and_both_without_registers(tmp_path: Path, arch: str, args: dict[str, Any]) -> None:
    network: Any
    network, backbones = load(tmp_path, arch, args, "post", "cls", "avg", "both", "avg-2", "cls-2")
    out = {b.pooling: run(b) for b in backbones}
    with torch.inference_mode():
        tokens = network.forward_features(X)
        patches = tokens[:, network.num_prefix_tokens :]
        assert patches.shape[1] == 16
        earlier = network.patch_embed(X)
        earlier = network.norm(network.blocks[:2](network.norm_pre(network._pos_embed(earlier))))
        expected = {
            "post": network.forward_head(tokens, pre_logits=True),
            "cls": network.fc_norm(tokens[:, 0]),
            "avg": network.fc_norm(patches.mean(1)),
            "avg-2": network.fc_norm(earlier[:, network.num_prefix_tokens :].mean(1)),
            "cls-2": network.fc_norm(earlier[:, 0]),
        }
    expected["both"] = torch.cat([expected["cls"], expected["avg"]], 1)
    assert out.keys() == expected.keys()
    for pooling, values in expected.items():
        torch.testing.assert_close(out[pooling], values, rtol=1e-5, atol=1e-5, msg=pooling)
    assert {b.pooling: b.dim for b in backbones} == {p: v.shape[1] for p, v in expected.items()}
    torch.testing.assert_close(out["post"], out["avg" if network.global_pool == "avg" else "cls"])
    assert [b.name for b in backbones] == ["net", "net-cls", "net-avg", "net-both", "net-avg-2", "net-cls-2"]
    assert len({b.identity for b in backbones}) == 6
    assert len({b.weights_sha256 for b in backbones}) == 1
    assert backbones[0].provenance()["pooling"] == "post"


def test_transformers_without_class_token_have_layers_too(tmp_path: Path) -> None:
    args = {"img_size": 64, "depth": 2}
    network: Any
    network, (backbone,) = load(tmp_path, "vit_relpos_small_patch16_224", args, "avg-2")
    with torch.inference_mode():
        tokens = network.forward_intermediates(X, indices=[0], norm=True, output_fmt="NLC", intermediates_only=True)
        torch.testing.assert_close(run(backbone), network.fc_norm(tokens[0].mean(1)), rtol=1e-5, atol=1e-5)


def test_one_point_alone_is_the_same_backbone(tmp_path: Path) -> None:
    arch, args = REGISTERS
    _, backbones = load(tmp_path, arch, args, "cls-2", "avg")
    for among in backbones:
        alone = load_backbone(tmp_path / "net.pt", arch=arch, arch_args=args, pool=among.pooling, preprocessing=SMALL)
        assert alone.shared is None
        assert (alone.identity, alone.name, alone.dim) == (among.identity, among.name, among.dim)
        assert torch.equal(run(alone), run(among))


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("resnet18", {}),
        ("resnetv2_50x1_bit", TINY_BIT),
        ("mobilenetv3_small_050", {}),
        ("swin_s3_tiny_224", {"img_size": 64, "depths": (1, 1, 1, 1)}),
        ("hiera_tiny_224", {"img_size": (64, 64), "stages": (1, 1, 1, 1), "q_pool": 3}),
    ],
)
def test_stages_of_cnns_are_averaged(tmp_path: Path, arch: str, args: dict[str, Any]) -> None:
    words = ("avg-1", "avg-2", "post") + (("before",) if "bit" in arch else ())
    network: Any
    network, backbones = load(tmp_path, arch, args, *words)
    with torch.inference_mode():
        known = list(range(len(network.feature_info)))
        stages = network.forward_intermediates(X, indices=known, intermediates_only=True)
        expected = [stages[-1].mean((2, 3)), stages[-2].mean((2, 3))]
        expected.append(network.forward_head(network.forward_features(X), pre_logits=True))
        expected += [network.stages(network.stem(X)).mean((2, 3))] if "bit" in arch else []
    for backbone, values in zip(backbones, expected, strict=True):
        torch.testing.assert_close(run(backbone), values, rtol=1e-5, atol=1e-5, msg=backbone.pooling)


def test_other_words_for_a_point_are_that_point(tmp_path: Path) -> None:
    arch, args = REGISTERS
    _, backbones = load(tmp_path, arch, args, "cls", "cls-1", "post-1", "post-2", "avg", "avg-1")
    assert [b.pooling for b in backbones] == ["cls", "cls-2", "avg"]
    _, backbones = load(tmp_path, "resnet18", {}, "avg", "avg-1", "post-2", name="mine")
    assert [(b.pooling, b.name) for b in backbones] == [("avg-1", "mine-avg-1"), ("avg-2", "mine-avg-2")]


@pytest.mark.parametrize(
    ("arch", "args", "word", "message"),
    [
        ("resnet18", {}, "cls", r"--pool cls: resnet18 has no class token; --pool avg"),
        (
            "vit_tiny_patch16_224",
            {**VIT, "class_token": False, "reg_tokens": 2, "global_pool": "avg"},
            "both",
            "no class token",
        ),
        ("resnet18", {}, "avg-6", r"--layer -6: resnet18 has 5 layers, -1 \(the last\) to -5"),
        ("resnet18", {}, "before", "--pool before is for BiT"),
        ("resnetv2_50x1_bit", TINY_BIT, "before-1", "--pool before is for BiT"),
        ("resnet18", {}, "max", "--pool max: one of post, before, cls, avg, both, or with a --layer"),
        ("torchvision:squeezenet1_1", {}, "avg", "torchvision:squeezenet1_1 gives its embeddings as a whole"),
    ],
)
def test_points_that_are_not_there(tmp_path: Path, arch: str, args: dict[str, Any], word: str, message: str) -> None:
    if ":" in arch:
        import torchvision

        network = torchvision.models.get_model(arch.partition(":")[2], num_classes=2)
    else:
        network = timm.create_model(arch, num_classes=0, **args)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    with pytest.raises(UsageError, match=message):
        load_backbone(tmp_path / "net.pt", arch=arch, arch_args=args, pool=word, preprocessing=SMALL)


def test_a_lean_network_of_several_points(tmp_path: Path) -> None:
    _, backbones = load(tmp_path, "resnet18", {}, "post", "avg-2", "avg-3")
    network = backbones[0].shared
    assert network is not None
    small, why = lean(network, backbones[0].trial, 2)
    assert why == ""
    with torch.inference_mode():
        expected = network(X)
        torch.testing.assert_close(small(X), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_several_points_cost_one_pass_and_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_images(tmp_path, 11)
    arch, args = REGISTERS
    _, backbones = load(tmp_path, arch, args, "cls", "avg-2")
    options: Any = {"dtype": "float32", "batch_size": 2, "block_rows": 4, "workers": 1}
    passes = []
    forward = Pooled.forward
    monkeypatch.setattr(Pooled, "forward", lambda self, x: (passes.append(len(x)), forward(self, x))[1])
    together, apart = open_store(tmp_path / "together"), open_store(tmp_path / "apart")
    done = embed(backbones, [target], together, **options)
    traced = 1  # a lean network is tried, and tracing is a call
    assert len(passes) <= 6 + traced + 1
    assert [d.backbone for d in done] == ["net-cls", "net-avg-2"]
    assert all(d.images_per_second for d in done)
    for pool in ("cls", "avg-2"):
        alone = load_backbone(tmp_path / "net.pt", arch=arch, arch_args=args, pool=pool, preprocessing=SMALL)
        embed(alone, [target], apart, **options)
    assert together.digest() == apart.digest()  # the same bits, whatever the company
    assert together.attributes("net-avg-2", "photos")["pooling"] == "avg-2"
    (tmp_path / "together/targets/photos/embeddings/net-avg-2/c.1.0").unlink()
    again = embed(load(tmp_path, arch, args, "cls", "avg-2")[1], [target], together, **options)
    assert [d.embedded for d in again] == [0, 4]
    assert together.digest() == apart.digest()
    np.testing.assert_allclose(
        together.embeddings("net-cls", "photos"), apart.embeddings("net-cls", "photos"), rtol=0, atol=0
    )


def test_another_point_or_precision_never_shares_an_array(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 3), open_store(tmp_path / "s")
    arch, args = REGISTERS

    def again(**options: Any) -> Backbone:
        return load_backbone(
            tmp_path / "net.pt",
            arch=arch,
            arch_args=args,
            **{"name": "x", "pool": "cls-2", "preprocessing": SMALL, **options},
        )

    load(tmp_path, arch, args, "cls")
    embed(again(), [target], store, dtype="float32")
    for options, message in (
        ({"pool": "avg-2"}, r"pooling differs \(there cls-2, now avg-2\)"),
        ({"pool": "cls"}, r"pooling differs \(there cls-2, now cls\)"),
        ({"precision": "bfloat16"}, r"precision differs"),
        ({"preprocessing": {**SMALL, "mean": 0.4}}, r"preprocessing differs"),
    ):
        with pytest.raises(DataError, match=message):
            embed(again(**options), [target], store, dtype="float32")
    with pytest.raises(DataError, match="dtype differs"):
        embed(again(), [target], store)
    (tmp_path / "s/targets/photos/embeddings/x/c.0.0").unlink()
    assert embed_again(store, "x", target).embedded == 3  # the provenance names the point


def test_a_plan_runs_the_network_of_several_points_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planning = sys.modules[plan.__module__]
    target = make_images(tmp_path, 10)
    _, backbones = load(tmp_path, *REGISTERS, "cls", "avg")
    monkeypatch.setattr(planning, "_forward_ms", lambda *_: 1000.0)
    monkeypatch.setattr(planning, "_decode_ms", lambda *_: 0.0)
    alone = plan(backbones[:1], [target], None, workers=1)
    both = plan(backbones, [target], None, workers=1)
    assert both.seconds == alone.seconds == 10
    assert both.memory_bytes == alone.memory_bytes
    assert both.bytes == 2 * alone.bytes


def test_points_on_the_command_line() -> None:
    assert parse_points("post", None) == ["post"]
    assert parse_points("avg,cls", "-1,-2") == ["avg-1", "avg-2", "cls-1", "cls-2"]
    for wrong in ("2", "-0", "-1,x", ""):
        with pytest.raises(UsageError, match=r"--layer .*: expected layers counted from the last, such as -1,-2"):
            parse_points("avg", wrong)
