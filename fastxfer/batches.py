"""Batches of images for training: files in memory, an order that depends on seed and step alone, loader processes.

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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

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


class Batches(Dataset[tuple[Tensor, NDArray[np.int64]]]):
    """Item `step` = (pixels (b, 3, h, w) uint8, rows (b,) int64) of the training stream: the group's share of the batch.

    Rows are an array: a tensor's way from a loader process costs a millisecond, however small it is.
    """

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

    def __getitem__(self, step: int) -> tuple[Tensor, NDArray[np.int64]]:
        share = self.group.share(self.batch_size)
        rows = rows_of_step(len(self.images), self.batch_size, self.seed, step, self.weights)[share]
        pixels = []
        with borrowed_randomness():
            for i, row in enumerate(rows, start=share.start):
                _seed_everything(key_of(self.seed, step * self.batch_size + i))
                pixels.append(self.transform(self.images[int(row)]))
        return torch.stack(pixels), rows


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


def _as_it_is(item: Any) -> Any:
    return item


def loader(dataset: Dataset[Any], items: Sequence[int], workers: int, device: torch.device) -> DataLoader[Any]:
    """The items of a data set in this order, made by `workers` processes (0: in this one)."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts if workers else None,
        # Its own generator: making an iterator must not advance the global one, or a resumed run would differ.
        generator=torch.Generator().manual_seed(0),
    )


def to_pixels(channels: int) -> Transform:
    """RGB image -> (channels, h, w) uint8; one channel = grey, for networks that see nothing else."""

    def convert(image: Image.Image) -> Tensor:
        if channels == 1:
            return torch.from_numpy(np.array(image.convert("L"), dtype=np.uint8))[None]
        return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8)).permute(2, 0, 1)

    return convert


def random_resized_crop(size: int, least: float, hflip: float, randaugment: str, interpolation: str) -> Transform:
    """timm's training transform: a part of the image, `least` of its area or more, a flip, RandAugment ("" = none).

    RGB image -> (3, size, size) uint8, a tensor or an array.
    """
    transform: Transform = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,  # = leave the pixels as uint8
        scale=(least, 1.0),
        hflip=hflip,
        color_jitter=None,  # type: ignore[arg-type]  # timm takes None: no jitter at all
        auto_augment=randaugment or None,
        interpolation=interpolation,
    )
    return transform


def xray_moves(rotate: float, shift: float, scale: float, hflip: float) -> list[Transform]:
    """Rotation (degrees), shift (of the side) and scale, each drawn evenly up to its limit, then a mirror image.

    45°, 0.25, 0.1, 0.5 are those of Cherti & Jitsev (2021), as their code has it.
    """
    moved = tv.RandomAffine(
        rotate, translate=(shift, shift), scale=(1 - scale, 1 + scale), interpolation=tv.InterpolationMode.BILINEAR
    )
    return [moved, tv.RandomHorizontalFlip(hflip)]
