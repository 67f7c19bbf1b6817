"""What the recipe's options about precision, memory and averages do, and what is said where they cannot help."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastxfer.backbones import read_state_dict
from fastxfer.errors import DataError, UsageError
from fastxfer.targets import Target
from fastxfer.training import Normaliser, Trainer
from pretrain.checkpoint import read_checkpoint
from pretrain.loop import pretrain
from pretrain.recipe import Recipe
from pretrain.state import create_network
from tests.together import Losses, free_port, told

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [64], "stem_chs": 32, "bottle_ratio": 0.5},
    image_size=16,
    epochs=2.0,
    batch_size=12,
    augment="none",
)


def losses(recipe: Recipe, source: Target, out: Path) -> list[float]:
    pretrain(recipe, source, out, logs=[Losses(out.with_suffix(".json"))])
    found: list[float] = told(out)["losses"]
    return found


@pytest.fixture(scope="module")
def plain(source: Target, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(RECIPE, source, tmp_path_factory.mktemp("plain") / "net.pt")


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"channels_last": True}, 1e-5),
        ({"checkpoint_activations": True}, 1e-6),
        ({"precision": "bf16"}, 2e-2),
        ({"precision": "fp16"}, 5e-3),
        ({"ema": 0.9}, 0.0),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_options_change_how_not_what(
    changes: dict[str, Any], tolerance: float, source: Target, plain: list[float], tmp_path: Path
) -> None:
    got = losses(replace(RECIPE, **changes), source, tmp_path / "net.pt")
    np.testing.assert_allclose(got, plain, rtol=tolerance, atol=tolerance)
    if "precision" in changes:
        assert got != plain  # it is done, and not only said
        weights = read_checkpoint(tmp_path / "net.pt")["model"]
        assert {w.dtype for w in weights.values()} == {torch.float32}


def test_compile_makes_one_program(
    source: Target, plain: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler that compiles nothing, which sees the same graph."""
    compiled, true = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m: (compiled.append(m), true(m, backend="eager")))
    assert losses(replace(RECIPE, compile=True), source, tmp_path / "net.pt") == pytest.approx(plain, abs=1e-5)
    assert [type(m).__name__ for m in compiled] == ["ResNetV2"]
    assert not any("_orig_mod" in name for name in read_checkpoint(tmp_path / "net.pt")["model"])


def test_the_scaler_halves_what_overflows_and_skips_the_step(source: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network(RECIPE, 3)
    before = {k: p.detach().clone() for k, p in network.named_parameters()}
    normalise = Normaliser((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = Trainer(network, optimizer, normalise, 12, agc=0.01, autocast=torch.float16)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1e30})
    loss = trainer.step(torch.zeros(12, 3, 16, 16, dtype=torch.uint8), torch.arange(12) % 3, 0.1)
    assert math.isfinite(loss)
    assert trainer.scaler.get_scale() == pytest.approx(5e29)
    assert all(torch.equal(p, before[k]) for k, p in network.named_parameters())


def test_ema_is_what_is_validated_and_kept(source: Target, tmp_path: Path) -> None:
    out, steps = tmp_path / "net.pt", []
    recipe = replace(RECIPE, ema=0.8, epochs=1.0, warmup_epochs=0.0)

    def remember(step: int) -> None:
        steps.append(read_checkpoint(out)["weights"] if out.exists() else None)

    pretrain(recipe, source, out, on_step=remember, checkpoint_every=1)
    content = read_checkpoint(out)
    # timm's average with its warm-up: after s steps, decay 1 − s^(−2/3), at most what was asked for; the first is a copy.
    weights = [*steps[1:], content["weights"]]
    average = weights[0]["stem.conv.weight"]
    for step, later in enumerate(weights[1:], start=1):
        decay = min(1 - (1 + step) ** (-2 / 3), 0.8)
        average = decay * average + (1 - decay) * later["stem.conv.weight"]
    torch.testing.assert_close(content["model"]["stem.conv.weight"], average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(content["model"]["stem.conv.weight"], content["weights"]["stem.conv.weight"])
    # `embed` gets the average, and the history is of it.
    state = read_state_dict(out)
    assert all(torch.equal(state[k], w) for k, w in content["model"].items())
    network = create_network(recipe, 3)
    network.load_state_dict(content["model"])
    images = torch.stack([_pixels(source, i) for i in source.rows("val")])
    with torch.no_grad():
        logits = network.eval()(Normaliser((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))(images))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(source.labels[source.rows("val")]))
    assert content["training"]["history"][-1]["val_loss"] == pytest.approx(float(loss), rel=1e-5)


def _pixels(source: Target, row: int) -> torch.Tensor:
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(source.root / source.image_id[row]))).permute(2, 0, 1)  # type: ignore[operator]


def test_what_a_network_cannot_do_is_said(source: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--checkpoint-activations: timm has none for dla46x_c"):
        create_network(Recipe(arch="dla46x_c", checkpoint_activations=True), 3)
    with pytest.raises(UsageError, match="sharded_checkpoints needs parallel = 'fsdp'"):
        Recipe(sharded_checkpoints=True)


# -- the head and AGC ------------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """A network whose head is as wide as the layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 64)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.body(x))  # type: ignore[no-any-return]


def _bit(multiplier: int = 1) -> nn.Module:
    return timm.create_model("resnetv2_50x1_bit", num_classes=64, channels=[64], stem_chs=32, bottle_ratio=0.5)


def _vit() -> nn.Module:
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=64, **size)


@pytest.fixture
def group() -> Any:
    """A group of this process alone, in which a network can be wrapped."""
    store = torch.distributed.TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "ddp"])
@pytest.mark.parametrize("make", [_bit, _vit, Dense])
def test_agc_leaves_out_the_head_by_being_the_head(make: Callable[[], nn.Module], wrapped: bool, group: Any) -> None:
    """Conv heads and dense ones, all as wide as layers of the body, which are clipped."""
    torch.manual_seed(0)
    network = make()
    head = {id(p) for p in network.get_classifier().parameters()}  # type: ignore[operator]
    names = {k for k, p in network.named_parameters() if id(p) in head}
    assert names
    rest = [p for p in network.parameters() if id(p) not in head and p.ndim > 1]
    assert any(p.shape[0] == 64 for p in rest)
    for p in network.parameters():  # no parameter at zero: the norm that decides is its own
        nn.init.normal_(p, 0.0, 0.1)
    before = {k: p.detach().clone() for k, p in network.named_parameters()}
    normalise = Normaliser((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    whole = DistributedDataParallel(network) if wrapped else network
    trainer = Trainer(whole, torch.optim.SGD(whole.parameters(), lr=1.0), normalise, 5, agc=1e-3)
    pixels = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer.step(pixels, torch.arange(10), lr=1.0)
    free = []
    for name, p in network.named_parameters():
        moved, old = p.detach() - before[name], before[name]
        over = tuple(range(1, p.ndim)) if p.ndim > 1 else None
        ratio = torch.linalg.vector_norm(moved, dim=over) / torch.linalg.vector_norm(old, dim=over).clamp(min=1e-3)
        if name in names:
            free.append(float(ratio.max()))
        else:
            assert float(ratio.max()) <= 1.01e-3, name
    assert max(free) > 2e-3


# -- BiT's own parts -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_bit_is_computed_as_its_paper_says() -> None:
    """Kolesnikov et al. (2020): weights standardised an output channel, groups of 32, zeros around the max-pool."""
    torch.manual_seed(0)
    network = create_network(Recipe(), 5).eval()
    for p in network.parameters():
        nn.init.normal_(p, 0.1, 0.3)
    x = torch.randn(2, 3, 32, 32)

    def conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(layer.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        standard = (layer.weight - mean) / torch.sqrt(variance + 1e-10)
        return nn.functional.conv2d(x, standard, stride=layer.stride, padding=layer.kernel_size[0] // 2)

    def norm(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(x, 32, layer.weight, layer.bias, eps=1e-5).relu()  # type: ignore[arg-type]

    def forward(pad: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        y = pad(conv(network.stem.conv, x))  # type: ignore[union-attr, arg-type]
        for stage in network.stages:  # type: ignore[union-attr]
            for block in stage.blocks:
                before = norm(block.norm1, y)
                shortcut = y if block.downsample is None else conv(block.downsample.conv, before)
                z = conv(block.conv2, norm(block.norm2, conv(block.conv1, before)))
                y = conv(block.conv3, norm(block.norm3, z)) + shortcut
        return network.head(norm(network.norm, y))  # type: ignore[operator, arg-type]

    zeros = forward(lambda y: nn.functional.max_pool2d(nn.functional.pad(y, (1, 1, 1, 1)), 3, 2))
    nothing = forward(lambda y: nn.functional.max_pool2d(y, 3, 2, padding=1))
    got = network(x)
    torch.testing.assert_close(got, zeros, rtol=1e-5, atol=1e-5)
    assert float((got - nothing).abs().max()) > 1e-4 * float(got.abs().max())  # the usual max-pool is another network


# -- memory ------------------------------------------------------------------------------------------------------------


class Hungry(Dense):
    """A network for whose images there is little memory."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@pytest.mark.parametrize(("most", "advice"), [(5, "--micro-batch 3 fits"), (0, "even one image does not fit")])
def test_out_of_memory_says_what_would_fit(
    most: int, advice: str, source: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Hungry(most)
    network.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    monkeypatch.setattr("pretrain.loop.create_network", lambda recipe, classes: network)
    with pytest.raises(DataError, match=rf"does not hold 12 images of 16 pixels at once: {advice}.*bf16 need less"):
        pretrain(RECIPE, source, tmp_path / "net.pt")
    assert network.seen == ([12, 6, 3] if most else [12, 6, 3, 1])
    assert not (tmp_path / "net.pt").exists()


def test_an_error_that_is_not_of_memory_is_not_called_so(
    source: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        pretrain(RECIPE, source, tmp_path / "net.pt")


# -- watching ----------------------------------------------------------------------------------------------------------


def test_logs_are_told_of_every_step(source: Target, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    class Log:
        def on_begin(self, step: int, steps: int) -> None:
            calls.append(("begin", step, steps))

        def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
            assert loss > 0 <= lr
            assert rate > 0
            calls.append(("step", step))

        def on_validation(self, step: int, line: Any) -> None:
            calls.append(("validation", step, sorted(line)[0]))

        def on_end(self) -> None:
            calls.append(("end",))

    pretrain(RECIPE, source, tmp_path / "net.pt", logs=[Log()])
    epochs = [[*(("step", 3 * e + s) for s in (1, 2, 3)), ("validation", 3 * e + 3, "epoch")] for e in (0, 1)]
    assert calls == [("begin", 0, 6), *itertools.chain(*epochs), ("end",)]
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        pretrain(RECIPE, source, tmp_path / "b.pt", logs=[Log()], on_step=lambda step: 1 // (2 - step))
    assert calls == [("begin", 0, 6), ("step", 1), ("step", 2), ("end",)]
