"""Several processes pre-train one network: the same losses as one, whatever the number; errors before work is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastxfer.targets import Target
from pretrain.checkpoint import read_checkpoint
from pretrain.recipe import Recipe
from pretrain.source import open_source
from tests.together import photos, run, told

# Batches of 10 images: a share is 5 images, or 2 and 3 of four processes; micro-batches of 2 inside. A smooth activation: at
# the corner of a ReLU the last bit of a sum would decide over a whole gradient, and runs would part for no reason.
RECIPE = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [64], "stem_chs": 32, "bottle_ratio": 0.5, "act_layer": "silu"},
    image_size=16,
    batch_size=10,
    micro_batch=2,
    lr=1.0,
    warmup_epochs=0.0,
    agc=0.01,
    augment="crop",
)


def recipe(target: Target, **changes: Any) -> Recipe:
    """50 steps on it."""
    return replace(RECIPE, epochs=499 / len(open_source(target).train.paths), **changes)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Target]:
    folder = tmp_path_factory.mktemp("photos")
    return {many: photos(folder / str(many), multi_label=many) for many in (False, True)}


@pytest.fixture(scope="module")
def alone(sources: dict[bool, Target], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """What one process made of them, whole batches at once."""
    folder = tmp_path_factory.mktemp("alone")
    for many, target in sources.items():
        assert run(1, recipe(target, micro_batch=0), target, folder / f"{many}.pt") == [0]
    return {many: folder / f"{many}.pt" for many in sources}


def same_run(a: Path, b: Path) -> None:
    first, second = told(a), told(b)
    assert len(first["losses"]) == 50
    np.testing.assert_allclose(first["losses"], second["losses"], rtol=1e-5, atol=1e-5)
    assert first["losses"][-1] < first["losses"][0] - 0.01  # the weights have moved by a thousand times what is allowed
    for x, y in zip(first["lines"], second["lines"], strict=True):
        assert x["val_loss"] == pytest.approx(y["val_loss"], rel=1e-4)
    x, y = (read_checkpoint(path)["model"] for path in (a, b))
    assert x.keys() == y.keys()
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "multi_label", "parallel"),
    [(2, False, "ddp"), (2, True, "ddp"), (4, True, "ddp"), (2, True, "fsdp")],
)
def test_two_rank_and_four_lose_as_one_does(
    count: int, multi_label: bool, parallel: str, sources: dict[bool, Target], alone: dict[bool, Path], tmp_path: Path
) -> None:
    target = sources[multi_label]
    assert run(count, recipe(target, parallel=parallel), target, tmp_path / "together.pt") == [0] * count
    same_run(alone[multi_label], tmp_path / "together.pt")
