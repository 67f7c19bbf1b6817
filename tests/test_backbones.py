"""Backbones: every kind of weight file, the features the classifier sees, an identity, and refusals that help."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fastxfer import backbones
from fastxfer.backbones import Preprocessing, load_backbone, load_network, read_checkpoint, read_state_dict
from fastxfer.backbones.checkpoint import timm_names_of_bit
from fastxfer.backbones.matching import fit_weights
from fastxfer.errors import DataError, UsageError

ARCHITECTURES = Path(__file__).parent / "architectures"
TINY_BIT = {"channels": [128, 256], "stem_chs": 32}  # two stages
X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64).sin()
SMALL = {"input_size": (3, 64, 64)}


def make(arch: str, seed: int = 0, **args: object) -> nn.Module:
    """A random network whose norms are not at their defaults, so that a swapped one shows."""
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model(arch, **args)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                value.uniform_(0.5, 1.5)
            elif "head" in name or "fc" in name or "classifier" in name:
                value.normal_(std=0.1)
    return network.eval()


def embed(backbone: backbones.Backbone, x: torch.Tensor = X) -> torch.Tensor:
    with torch.inference_mode():
        return backbone.network(x)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return make("resnet18", num_classes=7)


@pytest.fixture(scope="module")
def resnet_file(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.save(resnet.state_dict(), path)
    return path


# -- what the classifier sees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("resnet18", {}),
        ("mobilenetv3_small_050", {}),  # 288 channels, but its classifier sees 1,024
        ("tf_efficientnet_lite0", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "global_pool": "avg", "class_token": False}),
        ("resnetv2_50x1_bit", TINY_BIT),
    ],
)
def test_embeddings_are_what_the_classifier_sees(tmp_path: Path, arch: str, args: dict[str, object]) -> None:
    network = make(arch, num_classes=11, **args)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone(tmp_path / "w.safetensors", arch=arch, arch_args=args, preprocessing=SMALL)
    out = embed(backbone)
    assert out.shape == (2, backbone.dim)
    with torch.inference_mode():
        head = network.get_classifier()
        logits = head(out[:, :, None, None]).flatten(1) if isinstance(head, nn.Conv2d) else head(out)
        torch.testing.assert_close(logits, network(X), rtol=1e-5, atol=1e-5)


def test_bit_is_pooled_after_its_last_norm_and_relu(tmp_path: Path) -> None:
    network = make("resnetv2_50x1_bit", num_classes=3, **TINY_BIT)
    torch.save(network.state_dict(), tmp_path / "bit.pt")
    options = {"arch": "resnetv2_50x1_bit", "arch_args": TINY_BIT, "preprocessing": SMALL}
    post = load_backbone(tmp_path / "bit.pt", **options)
    before = load_backbone(tmp_path / "bit.pt", pool="before", **options)
    with torch.inference_mode():
        body = network.stages(network.stem(X))
        norm = nn.functional.group_norm(body, 32, network.norm.weight, network.norm.bias, 1e-5)
    torch.testing.assert_close(embed(post), norm.relu().mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed(before), body.mean((2, 3)))
    assert (post.name, before.name) == ("bit", "bit-before")
    assert post.identity != before.identity
    torch.save(make("resnet18").state_dict(), tmp_path / "r.pt")
    with pytest.raises(UsageError, match=r"--pool before is for BiT .*resnet18 has no such point"):
        load_backbone(tmp_path / "r.pt", arch="resnet18", pool="before")


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_backbone(resnet: nn.Module, tmp_path: Path) -> None:
    state = resnet.state_dict()
    parallel = OrderedDict((f"module.{k}", v) for k, v in state.items())
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    wider = {**state, "fc.weight": torch.zeros(99, 512), "fc.bias": torch.zeros(99)}
    older = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "c.pth")
    torch.save({"state_dict": parallel, "best_acc1": np.float64(71.2)}, tmp_path / "d.pth.tar")
    torch.save(headless, tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    torch.save(wider, tmp_path / "f.pth")
    torch.save(older, tmp_path / "g.pt")
    expected = None
    for path in sorted(tmp_path.iterdir()):
        backbone = load_backbone(path, arch="resnet18", preprocessing=SMALL)
        out = embed(backbone)
        expected = out if expected is None else expected
        torch.testing.assert_close(out, expected, rtol=0, atol=0, msg=path.name)
        assert backbone.identity == load_backbone(tmp_path / "b.pt", arch="resnet18", preprocessing=SMALL).identity
    assert set(read_state_dict(tmp_path / "d.pth.tar")) == set(state)


def google_npz(network: nn.Module) -> dict[str, torch.Tensor]:
    """A BiT network under the names and in the layout of Google's .npz files (written from their published names)."""

    def hwio(w: torch.Tensor) -> torch.Tensor:
        return w.permute(2, 3, 1, 0)

    out = {
        "resnet/root_block/standardized_conv2d/kernel": hwio(network.stem.conv.weight),
        "resnet/group_norm/gamma": network.norm.weight,
        "resnet/group_norm/beta": network.norm.bias,
        "resnet/head/conv2d/kernel": hwio(network.head.fc.weight),
        "resnet/head/conv2d/bias": network.head.fc.bias,
    }
    for i, stage in enumerate(network.stages, 1):
        for j, block in enumerate(stage.blocks, 1):
            unit = f"resnet/block{i}/unit{j:02d}"
            for k, letter in enumerate("abc", 1):
                out[f"{unit}/{letter}/standardized_conv2d/kernel"] = hwio(getattr(block, f"conv{k}").weight)
                norm = getattr(block, f"norm{k}")
                out[f"{unit}/{letter}/group_norm/gamma"] = norm.weight
                out[f"{unit}/{letter}/group_norm/beta"] = norm.bias
            if block.downsample is not None:
                out[f"{unit}/a/proj/standardized_conv2d/kernel"] = hwio(block.downsample.conv.weight)
    return {k: v.detach() for k, v in out.items()}


def google_torch(network: nn.Module) -> dict[str, torch.Tensor]:
    """The same under the names of the BiT authors' PyTorch file, which the paper's checkpoints have."""
    out = {
        "root.conv.weight": network.stem.conv.weight,
        "head.gn.weight": network.norm.weight,
        "head.gn.bias": network.norm.bias,
        "head.conv.weight": network.head.fc.weight,
        "head.conv.bias": network.head.fc.bias,
    }
    for i, stage in enumerate(network.stages, 1):
        for j, block in enumerate(stage.blocks, 1):
            unit = f"body.block{i}.unit{j:02d}"
            for k in (1, 2, 3):
                out[f"{unit}.conv{k}.weight"] = getattr(block, f"conv{k}").weight
                out[f"{unit}.gn{k}.weight"] = getattr(block, f"norm{k}").weight
                out[f"{unit}.gn{k}.bias"] = getattr(block, f"norm{k}").bias
            if block.downsample is not None:
                out[f"{unit}.downsample.weight"] = block.downsample.conv.weight
    return {f"module.{k}": v.detach() for k, v in out.items()}


def test_bit_from_every_file_and_timms_own_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = make("resnetv2_50x1_bit", num_classes=21)
    state = network.state_dict()
    np.savez(tmp_path / "BiT-M-R50x1.npz", **{k: v.numpy() for k, v in google_npz(network).items()})
    torch.save({"step": 3, "model": google_torch(network)}, tmp_path / "model.pth.tar")
    save_file(state, tmp_path / "own.safetensors")
    meta = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    torch.save(
        {"model": state, "meta": {**meta, "crop_pct": 0.875, "source": "x"}, "epoch": 3}, tmp_path / "pretrained.pt"
    )
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=21).eval()
    with torch.no_grad():
        theirs.load_pretrained(tmp_path / "BiT-M-R50x1.npz")
        expected = theirs.forward_head(theirs.forward_features(X), pre_logits=True)
    seen = set()
    for name in ("BiT-M-R50x1.npz", "model.pth.tar", "own.safetensors", "pretrained.pt"):
        backbone = load_backbone(tmp_path / name)  # no --arch: the shapes tell
        torch.testing.assert_close(embed(backbone), expected, rtol=0, atol=0)
        assert "architecture resnetv2_50x1_bit (from the shapes)" in capsys.readouterr().err
        assert backbone.preprocessing.input_size == (3, 224, 224)
        assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
        assert backbone.dim == 2048
        seen.add(backbone.identity)
    assert len(seen) == 1
    assert load_backbone(tmp_path / "model.pth.tar").name == tmp_path.name  # "model" says nothing


@pytest.mark.parametrize("name", ["50x1", "50x3", "101x1", "101x3", "152x2", "152x4"])
def test_bit_of_every_size_is_told_from_shapes_and_fits(name: str) -> None:
    with torch.device("meta"):  # their shapes without their memory
        network = timm.create_model(f"resnetv2_{name}_bit", num_classes=21)
        body = timm.create_model(f"resnetv2_{name}_bit", num_classes=0)
    paper = {k.removeprefix("module."): v for k, v in google_torch(network).items()}
    for theirs in (network.state_dict(), google_npz(network), paper):
        checkpoint = backbones.Checkpoint(Path("x.pt"), timm_names_of_bit(theirs))
        assert backbones.architecture.guess(checkpoint)[0] == f"resnetv2_{name}_bit"
        fit = fit_weights(checkpoint.state, body, ("head.fc",), name, ordered=False)
        assert {k: v.shape for k, v in fit.state.items()} == {k: v.shape for k, v in body.state_dict().items()}


def test_other_names_same_order_is_taken_and_said(
    resnet: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = {f"_x{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(resnet.state_dict().items())}
    torch.save(renamed, tmp_path / "other.pth")
    backbone = load_backbone(tmp_path / "other.pth", arch="resnet18", preprocessing=SMALL)
    with torch.inference_mode():
        expected = resnet.forward_head(resnet.forward_features(X), pre_logits=True)
    torch.testing.assert_close(embed(backbone), expected)
    assert "same order and shapes: taken in order (_x0.weight = conv1.weight" in capsys.readouterr().err
    # Scale, shift, mean and variance have one shape: swapped, the order is no proof any more.
    swapped = list(renamed.items())
    i = next(i for i, (k, _) in enumerate(swapped) if k.endswith("running_mean"))
    swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
    torch.save(dict(swapped), tmp_path / "swapped.pth")
    with pytest.raises(DataError, match="do not fit its body"):
        load_backbone(tmp_path / "swapped.pth", arch="resnet18")
    # Sorted by name, as .safetensors are, order is no proof either.
    save_file(renamed, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="do not fit its body"):
        load_backbone(tmp_path / "other.safetensors", arch="resnet18")


def test_fp16_weights_run_in_float32_unless_asked(resnet: nn.Module, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in resnet.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    options = {"arch": "resnet18", "preprocessing": SMALL}
    backbone = load_backbone(tmp_path / "half.safetensors", **options)
    assert {p.dtype for p in backbone.network.parameters()} == {torch.float32}
    low = load_backbone(tmp_path / "half.safetensors", precision="bfloat16", **options)
    assert {p.dtype for p in low.network.parameters()} == {torch.bfloat16}
    assert low.identity != backbone.identity
    assert low.name == "half-bfloat16"
    assert low.weights_sha256 == backbone.weights_sha256


def test_meta_of_a_pretrained_checkpoint_is_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = {
        "architecture": "resnetv2_50x1_bit",
        "arch_args": TINY_BIT,
        "source": "digits0-4",
        "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": 5,
    }
    network = make("resnetv2_50x1_bit", num_classes=5, **TINY_BIT)
    torch.save({"model": network.state_dict(), "meta": meta, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "p.pt")
    backbone = load_backbone(tmp_path / "p.pt")
    assert (backbone.source, backbone.preprocessing.mean) == ("digits0-4", (0.1, 0.2, 0.3))
    assert (backbone.preprocessing.input_size, backbone.preprocessing.interpolation) == ((3, 32, 32), "bilinear")
    assert "(the file says so)" in capsys.readouterr().err
    overridden = load_backbone(tmp_path / "p.pt", source="mine", preprocessing={"mean": (0.5,)})
    assert (overridden.source, overridden.preprocessing.mean) == ("mine", (0.5, 0.5, 0.5))
    assert overridden.identity != backbone.identity
    assert overridden.weights_sha256 == backbone.weights_sha256


def test_a_small_toml_beside_the_weights(resnet: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resnet.state_dict(), tmp_path / "w.pth.tar")
    beside = tmp_path / "w.toml"
    beside.write_text(
        'arch = "resnet18"\nsource = "chexpert"\ninput_size = [3, 64, 64]\nmean = 0.25\nstd = [0.1, 0.2, 0.3]\ncrop_pct = 0.9\n'
    )
    backbone = load_backbone(tmp_path / "w.pth.tar")
    assert "architecture resnet18 (w.toml says so)" in capsys.readouterr().err
    assert (backbone.architecture, backbone.source) == ("resnet18", "chexpert")
    assert backbone.preprocessing == Preprocessing((3, 64, 64), 0.25, (0.1, 0.2, 0.3), "bicubic", 0.9)  # type: ignore[arg-type]
    given = load_backbone(tmp_path / "w.pth.tar", source="mine", preprocessing={"mean": 0.5})
    assert (given.source, given.preprocessing.mean[0], given.preprocessing.crop_pct) == ("mine", 0.5, 0.9)
    beside.write_text('arch = "resnetv2_50x1_bit"\n[arch_args]\nchannels = [128, 256]\nstem_chs = 32\n')
    torch.save(make("resnetv2_50x1_bit", **TINY_BIT).state_dict(), tmp_path / "w.pth.tar")
    assert load_backbone(tmp_path / "w.pth.tar", preprocessing=SMALL).arch_args == TINY_BIT
    for content, message in (
        (
            'arch = "net.py:build"',
            r"w\.toml: arch 'net\.py:build' is code, which runs only when you name it yourself: --arch",
        ),
        ("maen = 0.5", r"w\.toml: 'maen' is not known here\. Did you mean: mean\?"),
        ("mean = ", r"w\.toml is no whole TOML file"),
        ("arch = 3", r"w\.toml: arch = 3, expected words"),
        ('arch_args = "x"', r"w\.toml: arch_args = 'x', expected a table"),
    ):
        beside.write_text(content)
        with pytest.raises(DataError, match=message):
            load_backbone(tmp_path / "w.pth.tar")


def test_a_file_cannot_name_code(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('/tmp/fastxfer-must-not-exist')\n")
    meta = {"architecture": f"{tmp_path / 'evil.py'}:build", "arch_args": {}}
    torch.save({"model": {"w": torch.zeros(1)}, "meta": meta}, tmp_path / "w.pt")
    with pytest.raises(
        UsageError, match=r"w\.pt says that its architecture is code .*evil\.py.*--arch FILE\.py:function"
    ):
        load_backbone(tmp_path / "w.pt")
    assert not Path("/tmp/fastxfer-must-not-exist").exists()


def test_a_files_name_may_tell_the_architecture(resnet_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_backbone(resnet_file).architecture == "resnet18"
    assert "architecture resnet18 (from the file's name)" in capsys.readouterr().err


def test_identity_knows_weights_and_not_names(resnet: nn.Module, resnet_file: Path, tmp_path: Path) -> None:
    first = load_backbone(resnet_file)
    other = tmp_path / "resnet18-renamed.pth"
    other.write_bytes(resnet_file.read_bytes())
    save_file(resnet.state_dict(), tmp_path / "a.safetensors")
    for path, options in ((other, {"name": "x", "source": "y"}), (tmp_path / "a.safetensors", {"arch": "resnet18"})):
        renamed = load_backbone(path, **options)
        assert renamed.identity == first.identity
        assert renamed.weights_sha256 == first.weights_sha256
    state = copy.deepcopy(resnet.state_dict())
    state["layer4.1.bn2.running_var"][3] += 1e-3
    torch.save(state, other)
    assert load_backbone(other).identity != first.identity


def test_identity_knows_everything_that_changes_embeddings(tmp_path: Path) -> None:
    args = {"img_size": 64, "depth": 2}
    torch.save(make("vit_tiny_patch16_224", num_classes=0, **args).state_dict(), tmp_path / "w.pt")

    def load(**options: object) -> backbones.Backbone:
        words: dict[str, object] = {"arch": "vit_tiny_patch16_224", "arch_args": args, "preprocessing": SMALL}
        return load_backbone(tmp_path / "w.pt", **{**words, **options})  # type: ignore[arg-type]

    others = [
        {"pool": "avg"},
        {"pool": "cls-2"},
        {"precision": "bfloat16"},
        {"precision": "tf32"},
        {"arch_args": {**args, "num_heads": 6}},  # the same shapes of weights
        *({"preprocessing": {**SMALL, key: value}} for key, value in OTHER_PIXELS.items()),
    ]
    plain = load()
    assert load().identity == plain.identity
    assert len({b.identity for b in (plain, *(load(**options) for options in others))}) == 1 + len(others)
    assert {load(**options).weights_sha256 for options in others} == {plain.weights_sha256}


OTHER_PIXELS = {"mean": 0.4, "std": 0.3, "interpolation": "box", "crop_pct": 0.7, "crop_mode": "squash"}


# -- refusals ----------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/fastxfer-must-not-exist",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Bomb()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save(nn.Linear(2, 2), tmp_path / "whole_module.pt")
    for name, what in (("evil.pt", "mkdir"), ("whole_module.pt", "Linear")):
        with pytest.raises(
            DataError, match=rf"{name} is refused: besides weights it holds Python code .*{what}.*safetensors"
        ):
            load_backbone(tmp_path / name, arch="resnet18")
    with pytest.raises(DataError, match=r"plain\.pth is (refused|no whole)"):
        load_backbone(tmp_path / "plain.pth", arch="resnet18")
    np.savez(tmp_path / "evil.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match=r"evil\.npz is no whole \.npz of plain arrays"):
        load_backbone(tmp_path / "evil.npz", arch="resnet18")
    assert not Path("/tmp/fastxfer-must-not-exist").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".npz"])
def test_damaged_files_are_refused(resnet_file: Path, tmp_path: Path, suffix: str) -> None:
    whole = resnet_file.read_bytes()
    for number, content in enumerate([b"", b"G", b"<html>404</html>", whole[: len(whole) // 2]]):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"checkpoint .*{number}{suffix} is (no whole|refused)"):
            read_checkpoint(path)


def test_a_body_that_does_not_fit_is_named(resnet_file: Path, resnet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_backbone(resnet_file, arch="resnet50")
    assert "does not fit resnet50" in str(error.value)
    assert "layer1.0.conv1.weight is (64, 64, 3, 3) in the file, (64, 64, 1, 1) in the network" in str(error.value)
    assert "layer1.0.conv3.weight (256, 64, 1, 1) is missing in the file" in str(error.value)
    assert "Is it another architecture (--arch)" in str(error.value)
    deeper = {**resnet.state_dict(), "layer4.2.conv1.weight": torch.zeros(1)}
    torch.save(deeper, tmp_path / "deeper.pt")
    with pytest.raises(DataError, match=r"layer4\.2\.conv1\.weight \(1,\) is in the file, not in the network"):
        load_backbone(tmp_path / "deeper.pt", arch="resnet18")
    broken = {**resnet.state_dict(), "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(DataError, match="NaN or infinite weights"):
        load_backbone(tmp_path / "broken.pt", arch="resnet18")


def test_names_that_are_not_there(resnet_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'r152x4\.pt' is not there\. It would come from: `fastxfer pretrain … --out r152x4\.pt`"
    ):
        load_backbone("r152x4.pt")
    with pytest.raises(DataError, match=r"is not there"):
        load_backbone("runs/last")
    with pytest.raises(UsageError, match=r"unknown checkpoint name 'resnet5': .*Did you mean: resnet5"):
        load_backbone("resnet5")
    with pytest.raises(UsageError, match=r"unknown architecture 'rsnet18': .*Did you mean: .*resnet18"):
        load_backbone(resnet_file, arch="rsnet18")
    with pytest.raises(
        UsageError,
        match=r"timm has no pre-trained weights for 'resnet18\.nosuch'; with weights there are: resnet18\.a1_in1k",
    ):
        load_backbone("resnet18.nosuch")
    with pytest.raises(UsageError, match="leave --arch resnet50 out"):
        load_backbone("resnet18", arch="resnet50")
    with pytest.raises(UsageError, match=r"cannot be made with --arch-arg colour='red': TypeError"):
        load_backbone(resnet_file, arch="resnet18", arch_args={"colour": "red"})
    (tmp_path / "nameless.pt").write_bytes(resnet_file.read_bytes())
    with pytest.raises(UsageError, match=r"which architecture is .*nameless\.pt\? .*--arch FILE\.py:build"):
        load_backbone(tmp_path / "nameless.pt")
    (tmp_path / "our_resnet18_of_june.pt").write_bytes(resnet_file.read_bytes())
    with pytest.raises(UsageError, match="give perhaps --arch resnet18, which its name holds; else --arch NAME"):
        load_backbone(tmp_path / "our_resnet18_of_june.pt")
    with pytest.raises(DataError, match=r"is a folder without model\.safetensors"):
        load_backbone(tmp_path)


def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        DataError, match=r"'resnet18' could not be fetched \(no route to host\).*--ckpt FILE --arch resnet18"
    ):
        load_backbone("resnet18")


def test_a_timm_name_brings_weights_and_config(monkeypatch: pytest.MonkeyPatch) -> None:
    true = timm.create_model
    calls = []

    def local(name: str, pretrained: bool = False, **args: object) -> nn.Module:
        calls.append((name, pretrained))
        return true(name, pretrained=False, **args)

    monkeypatch.setattr(timm, "create_model", local)
    backbone = load_backbone("mobilenetv3_small_050.lamb_in1k")
    assert calls == [("mobilenetv3_small_050.lamb_in1k", True)]
    assert (backbone.name, backbone.source, backbone.dim) == ("mobilenetv3_small_050.lamb_in1k", "imagenet1k", 1024)
    assert backbone.preprocessing.crop_pct == 0.875


# -- torchvision and a user's own --------------------------------------------------------------------------------------


def test_torchvision_by_prefix_or_because_timm_has_no_such_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=3).eval()
    save_file(network.state_dict(), tmp_path / "s.safetensors")
    by_name = load_backbone(tmp_path / "s.safetensors", arch="squeezenet1_1", preprocessing=SMALL)
    assert "architecture torchvision:squeezenet1_1 (timm has no squeezenet1_1)" in capsys.readouterr().err
    by_prefix = load_backbone(tmp_path / "s.safetensors", arch="torchvision:squeezenet1_1", preprocessing=SMALL)
    assert by_name.identity == by_prefix.identity
    assert by_name.dim == 512
    with torch.inference_mode():
        torch.testing.assert_close(embed(by_name), network.features(X).mean((2, 3)))
    plain = load_backbone(tmp_path / "s.safetensors", arch="squeezenet1_1").preprocessing
    assert (plain.input_size, plain.resize, plain.interpolation) == ((3, 224, 224), 256, "bilinear")
    vgg = torchvision.models.alexnet(num_classes=3).eval()
    torch.save(vgg.state_dict(), tmp_path / "v.pt")
    backbone = load_backbone(tmp_path / "v.pt", arch="torchvision:alexnet", preprocessing=SMALL)
    with torch.inference_mode():
        torch.testing.assert_close(vgg.classifier[6](embed(backbone)), vgg(X))
    with pytest.raises(
        UsageError, match=r"unknown architecture 'torchvision:squeezenet1_2'\. Did you mean: squeezenet1_1"
    ):
        load_backbone(tmp_path / "s.safetensors", arch="torchvision:squeezenet1_2")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_b_16", {"image_size": 64}),
        ("swin_t", {}),
        ("mobilenet_v3_small", {}),
        ("googlenet", {"aux_logits": True}),
    ],
)
def test_torchvisions_embeddings_are_what_the_classifier_sees(
    tmp_path: Path, name: str, args: dict[str, object]
) -> None:
    torch.manual_seed(0)
    more = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=3, **args, **more).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    backbone = load_backbone(
        tmp_path / "w.pt", arch=f"torchvision:{name}", arch_args={**args, **more}, preprocessing=SMALL
    )
    heads = {"vit_b_16": "heads.head", "swin_t": "head", "mobilenet_v3_small": "classifier.3", "googlenet": "fc"}
    with torch.inference_mode():
        logits = network.get_submodule(heads[name])(embed(backbone))
        torch.testing.assert_close(logits, network(X), rtol=1e-4, atol=1e-4)


USER = """
import torch
class Net(torch.nn.Module):
    {attributes}
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x){pooled}
def build():
    return Net()
def other():
    return 3
"""


def test_a_users_own_network(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        USER.format(attributes="input_size = (3, 8, 8); mean = 0.5; std = (0.1, 0.2, 0.3)", pooled=".mean((2, 3))")
    )
    torch.save(
        {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.zeros(4), "fc.weight": torch.ones(2, 4)},
        tmp_path / "w.pt",
    )
    backbone = load_backbone(tmp_path / "w.pt", arch=f"{file}:build")
    assert (backbone.dim, backbone.preprocessing.std, backbone.preprocessing.mean) == (
        4,
        (0.1, 0.2, 0.3),
        (0.5, 0.5, 0.5),
    )
    assert load_backbone(tmp_path / "w.pt", arch=str(file)).identity == backbone.identity
    network = load_network(tmp_path / "w.pt", f"{file}:build", None, 5)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert network.get_classifier().out_features == 5
    with pytest.raises(UsageError, match=r"mine\.py:bild: no such function there\. Did you mean: build\?"):
        load_backbone(tmp_path / "w.pt", arch=f"{file}:bild")
    with pytest.raises(DataError, match="returned int, expected a torch module"):
        load_backbone(tmp_path / "w.pt", arch=f"{file}:other")
    with pytest.raises(DataError, match=r"missing\.py: no such file"):
        load_backbone(tmp_path / "w.pt", arch=str(tmp_path / "missing.py"))
    file.write_text("import nosuchmodule\n")
    with pytest.raises(DataError, match=r"failed: ModuleNotFoundError: No module named 'nosuchmodule'"):
        load_backbone(tmp_path / "w.pt", arch=str(file))
    file.write_text(USER.format(attributes="", pooled=".mean((2, 3))"))
    with pytest.raises(
        UsageError, match=r"does not say its input_size, mean, std: give --input-size 3,224,224 --mean 0.5 --std 0.5"
    ):
        load_backbone(tmp_path / "w.pt", arch=str(file))
    given = load_backbone(
        tmp_path / "w.pt", arch=str(file), preprocessing={"input_size": (3, 9, 9), "mean": 0.5, "std": 0.5}
    )
    assert given.preprocessing.input_size == (3, 9, 9)
    file.write_text(USER.format(attributes="input_size = (3, 8, 8); mean = std = 0.5", pooled=""))
    with pytest.raises(DataError, match=r"forward gives \(1, 4, 6, 6\) for one image, expected \(1, dim\)"):
        load_backbone(tmp_path / "w.pt", arch=str(file))


def test_load_network_keeps_the_body_and_renews_the_head(resnet_file: Path, resnet: nn.Module, tmp_path: Path) -> None:
    network = load_network(resnet_file, None, None, 3)
    assert network.get_classifier().out_features == 3
    assert all(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(value, resnet.state_dict()[name], rtol=0, atol=0)
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "s.pt")


def test_a_head_before_the_pooling_becomes_a_linear_one_on_the_embeddings(tmp_path: Path) -> None:
    """SqueezeNet's own is a convolution with a ReLU behind it: from zero, no gradient would ever reach it."""
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "s.pt")
    network = load_network(tmp_path / "s.pt", "squeezenet1_1", None, 6).eval()
    head = network.get_classifier()
    x = load_backbone(tmp_path / "s.pt", arch="squeezenet1_1", preprocessing=SMALL).network(X)
    torch.testing.assert_close(network(X), head(x))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    torch.nn.functional.cross_entropy(network(X), torch.tensor([4, 5])).backward()
    assert head.weight.grad.abs().max() > 0


# -- preprocessing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("size", "crop_pct"), [((3, 24, 24), 0.875), ((3, 20, 28), 1.0)])
def test_pixels_are_timms_to_the_bit(crop_mode: str, size: tuple[int, int, int], crop_pct: float) -> None:
    words = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
    ours = Preprocessing(input_size=size, crop_pct=crop_pct, crop_mode=crop_mode, **words)
    theirs = timm.data.create_transform(input_size=size, crop_pct=crop_pct, crop_mode=crop_mode, **words)
    rng = np.random.default_rng(0)
    for shape in [(40, 31, 3), (17, 90, 3), (24, 24, 3)]:
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        pixels = ours.geometry()(image)
        assert pixels.dtype == np.uint8
        assert pixels.shape == size
        out = ours.normalise(torch.from_numpy(pixels)[None])[0]
        assert torch.equal(out, theirs(image))


def test_one_channel_is_grey() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    pixels = Preprocessing(input_size=(1, 8, 8), mean=0.5, std=0.5).geometry()(image)
    np.testing.assert_array_equal(pixels[0], grey)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"input_size": (2, 8, 8)}, "1 or 3 channels"),
        ({"input_size": (8, 8)}, "expected channels,height,width"),
        ({"std": 0.0}, "above 0"),
        ({"mean": (0.5, 0.5)}, "expected 1 or 3 numbers"),
        ({"interpolation": "cubic"}, "interpolation 'cubic': one of"),
        ({"crop_pct": 1.5}, r"crop_pct 1\.5"),
        ({"crop_mode": "middle"}, "crop mode 'middle'"),
    ],
)
def test_preprocessing_that_makes_no_sense(words: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing(**{"input_size": (3, 8, 8), "mean": 0.5, "std": 0.5, **words})  # type: ignore[arg-type]


# -- real weights ------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "options", "dim"),
    [
        ("natural_cifar10_resnet56", {"arch": f"{ARCHITECTURES / 'cifar_resnet56.py'}:build"}, 64),
        ("cxr_mobilenetv3_small_nih15", {"arch": str(ARCHITECTURES / "cxr_mobilenetv3.py")}, 576),
        (
            "natural_mobilenetv2_100_in1k",
            {"arch": "mobilenetv2_100", "arch_args": {"pad_type": "same"}, "preprocessing": {"mean": 0.5, "std": 0.5}},
            1280,
        ),
        ("cxr_squeezenet1_1_kermany3", {"arch": "squeezenet1_1"}, 512),
    ],
)
def test_the_real_weights_load(real: Path, file: str, options: dict[str, object], dim: int) -> None:
    backbone = load_backbone(real / "weights" / f"{file}.safetensors", **options)  # type: ignore[arg-type]
    assert (backbone.name, backbone.dim) == (file, dim)
