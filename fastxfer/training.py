"""What pre-training and fine-tuning share: images in memory, batches, losses, one optimiser step, prediction.

A batch depends on (seed, step) alone: its rows by one permutation an epoch, the augmentation of each image by its
position in the stream. So a run that was stopped goes on exactly, whatever the number of loader processes was.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastxfer.errors import UsageError
from fastxfer.images import DEFAULT, Pixels, load_image
from fastxfer.progress import progress

Transform = Callable[[Image.Image], Tensor]
AGC_EPS = 1e-3  # Brock et al. (2021): a parameter at zero may still move


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
        self.paths = list(paths)
        self.prepare = prepare
        self.cache_bytes = cache_bytes
        self.meaning = pixels
        self._pixels: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, i: int) -> Image.Image:
        image = load_image(self.paths[i], pixels=self.meaning)
        return image if self.prepare is None else self.prepare(image)

    def load(self, description: str) -> bool:
        """Decode into memory until all is there or the memory is spent; True if all is there.

        `DataError` names the first file that is no image.
        """
        used = 0
        chunk = 64
        with (
            progress(description, len(self), "images") as advance,
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
        rng = np.random.default_rng([seed, 0, epoch])
        order = rng.permutation(n) if weights is None else rng.choice(n, n, p=weights)
        rows.append(order[max(first - epoch * n, 0) : first + batch_size - epoch * n])
    return np.concatenate(rows).astype(np.int64)


@contextmanager
def _borrowed_randomness() -> Iterator[None]:
    """Let transforms use the global generators, which they are written for, and leave those as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_everything(seed: int, position: int) -> None:
    key = int.from_bytes(blake2b(f"{seed}:{position}".encode(), digest_size=8).digest(), "little")
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` = (pixels (batch_size, 3, h, w) uint8, rows (batch_size,) int64) of the training stream."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.images, self.transform = images, transform
        self.batch_size, self.seed, self.weights = batch_size, seed, weights

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = rows_of_step(len(self.images), self.batch_size, self.seed, step, self.weights)
        pixels = []
        with _borrowed_randomness():
            for i, row in enumerate(rows):
                _seed_everything(self.seed, step * self.batch_size + i)
                pixels.append(self.transform(self.images[int(row)]))
        return torch.stack(pixels), torch.from_numpy(rows)


class InOrder(Dataset[Tensor]):
    """Item k = pixels (≤ batch_size, 3, h, w) uint8 of the k-th block of images."""

    def __init__(self, images: Images, transform: Transform, batch_size: int) -> None:
        self.images, self.transform, self.batch_size = images, transform, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, block: int) -> Tensor:
        first = block * self.batch_size
        rows = range(first, min(first + self.batch_size, len(self.images)))
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

    def __call__(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, -1, 1, 1)
        return pixels.to(self.device, non_blocking=True).float().div_(255).sub_(mean).div_(std)


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


@dataclass
class Trainer:
    """One optimiser step on one batch: micro-batches, mixup, adaptive gradient clipping.

    micro_batch: images a forward pass; the gradient is that of the whole batch whatever it is (batch norm apart)
    agc:         clipping factor of Brock et al. (2021), 0 = off; the head is left out by being the head
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    normalise: Normaliser
    micro_batch: int
    agc: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        head = {id(p) for p in head_of(self.network).parameters()}
        self._clipped = [p for p in self.network.parameters() if id(p) not in head]

    def step(self, pixels: Tensor, labels: Tensor, lr: float, mix: tuple[float, Tensor] | None = None) -> float:
        """Update the weights; return the batch's mean loss before the update.

        mix: (λ, partner rows (b,)): images become λ·x + (1−λ)·x[partner], losses likewise
        """
        images = self.normalise(pixels)
        labels = labels.to(images.device)
        parts = [(1.0, labels)]
        if mix is not None:
            share, partner = mix
            partner = partner.to(images.device)
            images = share * images + (1 - share) * images[partner]
            parts = [(share, labels), (1 - share, labels[partner])]
        # Known entries of the whole batch, so that each micro-batch weighs what it should.
        counts = [(~torch.isnan(y)).sum().clamp_(min=1) if y.ndim == 2 else len(y) for _, y in parts]
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)  # timm's layer-wise decay
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for first in range(0, len(images), self.micro_batch):
            chunk = slice(first, first + self.micro_batch)
            logits = self.network(images[chunk])
            loss = torch.zeros((), device=images.device)
            for (share, y), count in zip(parts, counts, strict=True):
                loss = loss + share * loss_sum(logits, y[chunk], self.smoothing)[0] / count
            loss.backward()
            total += float(loss.detach())
        if self.agc > 0:
            adaptive_clip_grad(self._clipped, clip_factor=self.agc, eps=AGC_EPS)
        self.optimizer.step()
        return total


@torch.inference_mode()
def predict(
    network: nn.Module,
    images: Images,
    transform: Transform,
    normalise: Normaliser,
    batch_size: int,
    workers: int = 0,
) -> NDArray[np.float32]:
    """(n_images, n_classes) logits, evaluation mode; the network's mode is put back."""
    training = network.training
    network.eval()
    blocks = InOrder(images, transform, batch_size)
    batches = loader(blocks, range(len(blocks)), workers, normalise.device)
    logits = [network(normalise(pixels)).float().cpu().numpy() for pixels in batches]
    network.train(training)
    return np.concatenate(logits)
