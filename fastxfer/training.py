"""What pre-training and fine-tuning share: images in memory, batches, losses, one optimiser step, prediction.

A batch depends on (seed, step) alone: its rows by one permutation an epoch, the augmentation of each image by its
position in the stream. So a run that was stopped goes on exactly, whatever the number of loader processes was, and the
processes of a `Group` make one batch together, each its share of the rows, whatever their number.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from fastxfer.clipping import clip_adaptively
from fastxfer.errors import UsageError
from fastxfer.images import DEFAULT, Pixels, load_image
from fastxfer.progress import progress

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Group:
    """The processes that train one network together, this one's number among them; torch.distributed where several."""

    rank: int = 0
    count: int = 1

    def total(self, values: Tensor) -> Tensor:
        """`values`, summed over the processes in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, here: bool) -> bool:
        """Whether it is so in one of the processes."""
        if self.count == 1:
            return here
        return bool(self.total(torch.tensor(int(here))) > 0)

    def share(self, n: int) -> slice:
        """This process's part of n things in a row; shares differ by one at most."""
        return slice(self.rank * n // self.count, (self.rank + 1) * n // self.count)


ALONE = Group()


class Images:
    """Decoded RGB images of a list of files, held in memory as uint8 as far as `cache_bytes` reaches.

    prepare: what is done to an image once, right after decoding (a resize), or None; pixels: of the target
    """

    def __init__(
        self,
        paths: Sequence[Path],
        prepare: Callable[[Image.Image], Image.Image] | None = None,
        cache_bytes: int = 1 << 30,
        pixels: Pixels = DEFAULT,
    ) -> None:
        self.paths = paths
        self.prepare = prepare
        self.cache_bytes = cache_bytes
        self.meaning = pixels
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, i: int) -> Image.Image:
        image = load_image(self.paths[i], pixels=self.meaning)
        return image if self.prepare is None else self.prepare(image)

    def load(self, description: str, shown: bool = True) -> bool:
        """Decode into memory until all is there or the memory is spent; True if all is there.

        `DataError` names the first file that is no image.
        """
        used = 0
        chunk = 64
        with (
            progress(description, len(self), "images", shown=shown) as advance,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            for first in range(0, len(self), chunk):
                rows = range(first, min(first + chunk, len(self)))
                for i, image in zip(rows, pool.map(self._decode, rows), strict=True):
                    self._pixels[i] = np.asarray(image)
                    used += self._pixels[i].nbytes
                advance(len(rows))
                if used > self.cache_bytes:
                    break
        return len(self._pixels) == len(self)

    def __getitem__(self, i: int) -> Image.Image:
        pixels = self._pixels.get(i)
        return self._decode(i) if pixels is None else Image.fromarray(pixels)


def rows_of_step(
    n: int, batch_size: int, seed: int, step: int, weights: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """(batch_size,) rows of one step of an endless stream of permutations of n rows, one permutation an epoch.

    With `weights` (n,), summing to 1, an epoch is n draws with replacement instead (oversampling of rare classes).
    """
    first = step * batch_size
    rows = []
    for epoch in range(first // n, (first + batch_size - 1) // n + 1):
        if weights is None:
            order = _order(n, seed, epoch)
        else:
            order = np.random.default_rng([seed, 0, epoch]).choice(n, n, p=weights)
        rows.append(order[max(first - epoch * n, 0) : first + batch_size - epoch * n])
    return np.concatenate(rows).astype(np.int64)


@lru_cache(maxsize=2)  # a batch reaches from one epoch into the next; of 14 million rows, drawing it takes 0.6 s
def _order(n: int, seed: int, epoch: int) -> NDArray[Any]:
    order = np.random.default_rng([seed, 0, epoch]).permutation(n)
    order = order.astype(np.min_scalar_type(-n))  # each loader process holds it
    order.flags.writeable = False
    return order


@contextmanager
def borrowed_randomness(key: int | None = None) -> Iterator[None]:
    """Let transforms use the global generators, which they are written for, seeded by `key`; and leave those as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if key is not None:
            _seed_everything(key)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def key_of(*words: int | str) -> int:
    """A seed of 64 bits that these words give, and no others."""
    return int.from_bytes(blake2b(":".join(map(str, words)).encode(), digest_size=8).digest(), "little")


def _seed_everything(key: int) -> None:
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` = (pixels (b, 3, h, w) uint8, rows (b,) int64) of the training stream: the group's share of the batch."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        group: Group = ALONE,
    ) -> None:
        self.images, self.transform = images, transform
        self.batch_size, self.seed, self.weights, self.group = batch_size, seed, weights, group

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        share = self.group.share(self.batch_size)
        rows = rows_of_step(len(self.images), self.batch_size, self.seed, step, self.weights)[share]
        pixels = []
        with borrowed_randomness():
            for i, row in enumerate(rows, start=share.start):
                _seed_everything(key_of(self.seed, step * self.batch_size + i))
                pixels.append(self.transform(self.images[int(row)]))
        return torch.stack(pixels), torch.from_numpy(rows)


class InOrder(Dataset[Tensor]):
    """Item k = pixels (≤ batch_size, 3, h, w) uint8 of the k-th block of these rows of the images (None: of all)."""

    def __init__(
        self, images: Images, transform: Transform, batch_size: int, rows: Sequence[int] | None = None
    ) -> None:
        self.images, self.transform, self.batch_size = images, transform, batch_size
        self.rows = range(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, block: int) -> Tensor:
        rows = self.rows[block * self.batch_size : (block + 1) * self.batch_size]
        return torch.stack([self.transform(self.images[row]) for row in rows])


def _ignore_interrupts(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent decides when a loader process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(dataset: Dataset[Any], items: Sequence[int], workers: int, device: torch.device) -> DataLoader[Any]:
    """The items of a data set in this order, made by `workers` processes (0: in this one)."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts if workers else None,
        # Its own generator: making an iterator must not advance the global one, or a resumed run would differ.
        generator=torch.Generator().manual_seed(0),
    )


def choose_device(name: str) -> torch.device:
    """'auto' = cuda if there is one, else cpu; `UsageError` for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible to PyTorch; use --device cpu, or auto")
    return torch.device(name)


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
