"""What a recipe would cost, before anything is trained: one step is done on tensors that have shapes and no memory.

FLOPs are counted by torch as the step goes, memory as the bytes of tensors alive. GPU-hours follow from a rate that was
measured, or from an assumed share of a GPU's peak.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from fastxfer.errors import UsageError, nearest
from fastxfer.training import loss_sum
from pretrain.augment import preprocessing
from pretrain.recipe import Recipe
from pretrain.state import AUTOCAST, create_network

# Dense peak of the makers' data sheets, TFLOP/s: (16-bit with 32-bit sums, float32 as torch has it for convolutions).
GPUS = {"V100": (125, 15.7), "A100": (312, 156), "H100": (989, 494), "H200": (989, 494), "RTX4090": (165, 82.6)}
PEAK_SHARE = 0.3
# Of the allocator and of the convolutions' workspace nothing is known here: on a CPU, 1.3 to 1.5 times as much was taken.
MEMORY_FACTOR = 2.0


@dataclass(frozen=True)
class Machine:
    """gpus: how many; gpu: of `GPUS`; peak_share: of its peak that is assumed; rate: images a second and GPU, if measured."""

    gpus: int = 1
    gpu: str = "A100"
    peak_share: float = PEAK_SHARE
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise UsageError(f"--gpu '{self.gpu}' is not one of {', '.join(GPUS)}.{nearest(self.gpu, GPUS)}")
        if not 0 < self.peak_share <= 1:
            raise UsageError(f"--peak-share must lie in (0, 1], not {self.peak_share}")
        if self.rate is not None and not self.rate > 0:
            raise UsageError(f"--rate must be above 0, not {self.rate}")


def dry_run(recipe: Recipe, images: int, num_classes: int, multi_label: bool, machine: Machine) -> dict[str, Any]:
    """What `recipe` costs on a source of so many train images, as plain values.

    parameters, dim; size (pixels); flops_forward, flops_step (an image: forward, and forward with backward); memory (bytes a
    GPU, by part; an estimate, a small case on a CPU took up to `MEMORY_FACTOR` as much); batch_size, micro_batch, steps,
    images_seen; images_per_second (a GPU), gpu_hours, hours.
    """
    if recipe.batch_size < machine.gpus:
        raise UsageError(f"{machine.gpus} processes cannot share a batch of {recipe.batch_size}")
    share = math.ceil(recipe.batch_size / machine.gpus)
    micro = min(recipe.micro_batch or share, share)
    step = _one_step(recipe, num_classes, multi_label, micro, more=micro < share)
    weights = 4 * step["parameters"]
    copies = {"weights": weights, "gradients": weights, "momenta": weights if recipe.momentum else 0}
    working = step["peak"] - sum(copies.values())
    copies["average"] = weights if recipe.ema else 0
    if machine.gpus > 1 and recipe.parallel == "ddp":
        copies["reduction"] = weights  # DDP's buckets of gradients
    if machine.gpus > 1 and recipe.parallel == "fsdp":
        copies = {part: size // machine.gpus for part, size in copies.items()}
    memory = {**copies, "activations_and_temporaries": max(working, 0)}
    steps = max(1, math.ceil(recipe.epochs * images / recipe.batch_size))
    peak = 1e12 * GPUS[machine.gpu][recipe.precision == "float32"] * machine.peak_share
    rate = machine.rate or peak / step["flops_step"]
    seconds = steps * recipe.batch_size / rate
    return {
        "architecture": recipe.architecture[0],
        "parameters": step["parameters"],
        "dim": step["dim"],
        "num_classes": num_classes,
        "size": step["size"],
        "flops_forward": step["flops_forward"],
        "flops_step": step["flops_step"],
        "memory": {**memory, "total": sum(memory.values())},
        "train_images": images,
        "batch_size": recipe.batch_size,
        "micro_batch": micro,
        "steps": steps,
        "images_seen": steps * recipe.batch_size,
        "gpus": machine.gpus,
        "gpu": machine.gpu,
        "peak_share": None if machine.rate else machine.peak_share,
        "images_per_second": rate,
        "gpu_hours": seconds / 3600,
        "hours": seconds / 3600 / machine.gpus,
    }


def _one_step(recipe: Recipe, num_classes: int, multi_label: bool, n: int, more: bool) -> dict[str, Any]:
    """A step of n images on tensors without memory; more: of n images twice, since gradients are there by then."""
    with torch.device("meta"):
        network = create_network(recipe, num_classes).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        meter = _Meter()
        with meter:
            network.to_empty(device="cpu")  # where autocast knows what becomes 16 bits, which it doesn't on "meta"
            size = preprocessing(recipe, network.pretrained_cfg)["input_size"][1]  # type: ignore[arg-type]
            optimizer = torch.optim.SGD(
                network.parameters(),
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov and recipe.momentum > 0,
                weight_decay=recipe.weight_decay,
                foreach=True,  # as on a GPU
            )
            images = torch.empty(n, 3, size, size)
            labels = torch.empty(n, num_classes) if multi_label else torch.empty(n, dtype=torch.int64)
            if recipe.momentum:  # there from the second step on
                for p in network.parameters():
                    optimizer.state[p]["momentum_buffer"] = torch.empty_like(p)
            dtype = AUTOCAST[recipe.precision]
            autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
            for _ in range(1 + more):
                meter.flops = 0
                with autocast:
                    logits = network(images)
                forward = meter.flops
                loss_sum(logits.float(), labels)[0].backward()
            optimizer.step()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "dim": int(network.num_features),  # type: ignore[arg-type]
        "size": size,
        "flops_forward": forward / n,
        "flops_step": meter.flops / n,
        "peak": meter.peak,
    }


class _Meter(TorchDispatchMode):
    """Bytes of the tensors that were made in it and are still there; FLOPs of convolutions and products.

    torch's own `FlopCounterMode` has hooks that keep alive what activation checkpointing would have let go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return tree_map_only(torch.Tensor, self._weigh, result)

    def _weigh(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return tensor

    def _gone(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size
