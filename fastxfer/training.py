"""What pre-training and fine-tuning share: losses, one optimiser step, prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from fastxfer.batches import ALONE, Group, Images, InOrder, Transform, loader
from fastxfer.clipping import clip_adaptively
from fastxfer.errors import UsageError


@dataclass(frozen=True)
class Normaliser:
    """uint8 pixels to what the network was trained on: (x/255 − mean)/std, float32, on the device."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    @cached_property
    def _of_bytes(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation on the scale of the pixels, (1, channels, 1, 1) each."""
        statistics = 255 * torch.tensor([self.mean, self.std], dtype=torch.float64)
        mean, std = statistics.float().to(self.device).view(2, 1, -1, 1, 1)
        return mean, std

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = self._of_bytes
        there = pixels.to(self.device, non_blocking=True)
        return there.to(torch.float32, memory_format=self.memory_format).sub_(mean).div_(std)


def loss_sum(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """(sum of the losses, how many they are), so that parts of a batch add up to the batch.

    labels (b,) int64: softmax cross-entropy, one an image. labels (b, classes) float: binary cross-entropy, one a
    known entry; NaN = unknown adds nothing to either, also where a whole image or batch is unknown.
    """
    if labels.ndim == 1:
        total = nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return total, torch.tensor(float(len(labels)), device=logits.device)
    known = ~torch.isnan(labels)
    y = torch.nan_to_num(labels) * (1 - smoothing) + smoothing / 2
    losses = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    return torch.where(known, losses, 0.0).sum(), known.sum().float()


def head_of(network: nn.Module) -> nn.Module:
    """The classifier of a timm-like network."""
    head: Any = network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise UsageError(f"{type(network).__name__}: networks with several heads cannot be trained here")
    return head


def bare(network: nn.Module) -> nn.Module:
    """The network itself, where it is wrapped for several processes."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@dataclass
class Trainer:
    """One optimiser step on one batch: micro-batches, mixup, mixed precision, adaptive gradient clipping.

    network:     as it is, or wrapped in DistributedDataParallel, or sharded by `fully_shard`
    micro_batch: images a forward pass and process; the gradient is that of the whole batch whatever it is (batch norm apart)
    agc:         clipping factor of Brock et al. (2021), 0 = off; the head is left out by being the head
    autocast:    bfloat16 or float16 (with a gradient scaler) for what torch.autocast takes for safe, None = off
    group:       the processes whose shares make the batch
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    normalise: Normaliser
    micro_batch: int
    agc: float = 0.0
    smoothing: float = 0.0
    autocast: torch.dtype | None = None
    group: Group = ALONE

    def __post_init__(self) -> None:
        head = {id(p) for p in head_of(bare(self.network)).parameters()}
        self._clipped = [p for p in self.network.parameters() if id(p) not in head]
        self._device = self.normalise.device.type
        self.scaler = torch.amp.GradScaler(self._device, enabled=self.autocast is torch.float16)

    def step(
        self,
        pixels: Tensor,
        labels: Tensor,
        lr: float,
        mix: tuple[float, Tensor] | None = None,
        box: tuple[slice, slice] | None = None,
        whole: int | None = None,
    ) -> float:
        """Update the weights; return the mean loss of the group's whole batch before the update.

        pixels, labels: this process's share of the batch
        mix:   (λ, partner rows (b,)): images become λ·x + (1−λ)·x[partner], losses likewise
               Of entries whose label is unknown only the images count.
        box:   (rows, columns) of the images that come from the partner whole, where they are not blended (CutMix)
        whole: images of the whole batch; None = as many in each process
        """
        images = self.normalise(pixels)
        labels = labels.to(images.device)
        parts = [(1.0, labels)]
        if mix is not None:
            share, partner = mix
            partner = partner.to(images.device)
            if box is None:
                images = share * images + (1 - share) * images[partner]
            else:
                images[..., *box] = images[partner][..., *box]
            parts = [(share, labels), (1 - share, labels[partner])]
        # Known entries of the whole batch, so that each micro-batch of each process weighs what it should.
        entries = [(~torch.isnan(y)).sum() if y.ndim == 2 else torch.tensor(len(y), device=y.device) for _, y in parts]
        counts = self.group.total(torch.stack(entries)).clamp_(min=1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # timm's layer-wise decay
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=images.device)
        chunks = self._chunks(len(images), whole or len(images) * self.group.count)
        for chunk in chunks:
            with self._reducing(chunk is chunks[-1]):
                with self._precision():
                    logits = self.network(images[chunk])
                loss = torch.zeros((), device=images.device)
                for (share, y), count in zip(parts, counts, strict=True):
                    loss = loss + share * loss_sum(logits.float(), y[chunk], self.smoothing)[0] / count
                # Both wrappers take the mean of the processes' gradients; the loss is divided by the whole batch's count.
                self.scaler.scale(loss * self.group.count).backward()
            total += loss.detach()
        if self.agc > 0:
            self.scaler.unscale_(self.optimizer)
            clip_adaptively(self._clipped, self.agc)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(self.group.total(total))

    def fits(self, pixels: Tensor, labels: Tensor) -> bool:
        """Whether the memory holds a forward and a backward pass of these images at once; changes no weight."""
        try:
            with self._precision():
                logits = bare(self.network)(self.normalise(pixels))
            loss_sum(logits.float(), labels.to(logits.device))[0].backward()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            if self._device == "cuda":
                torch.cuda.empty_cache()
        return True

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device, self.autocast, enabled=self.autocast is not None)

    def _chunks(self, n: int, whole: int) -> list[slice]:
        """Micro-batches of n images, as even as can be.

        Sharded weights are gathered for each, by all processes together: so their number is one where shares differ by one.
        """
        smallest, largest = whole // self.group.count, -(-whole // self.group.count)
        count = min(-(-largest // self.micro_batch), smallest)
        return [slice(k * n // count, (k + 1) * n // count) for k in range(count)]

    @contextmanager
    def _reducing(self, last: bool) -> Iterator[None]:
        """Gradients add up in each process, and between processes with the last micro-batch only."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(last)
        sums_only = isinstance(self.network, DistributedDataParallel) and not last
        with self.network.no_sync() if sums_only else nullcontext():  # type: ignore[operator]
            yield


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory, or the machine's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@torch.no_grad()  # not inference_mode: sharded weights that are gathered in it could not be trained on
def predict(
    network: nn.Module,
    images: Images,
    transform: Transform,
    normalise: Normaliser,
    batch_size: int,
    workers: int = 0,
    rows: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """(n_rows, n_classes) logits of these rows of the images (None: of all), evaluation mode; the mode is put back."""
    training = network.training
    network.eval()
    blocks = InOrder(images, transform, batch_size, rows)
    batches = loader(blocks, range(len(blocks)), workers, normalise.device)
    logits = [network(normalise(pixels)).float().cpu().numpy() for pixels in batches]
    network.train(training)
    return np.concatenate(logits)
