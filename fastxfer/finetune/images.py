"""Images on their way into a network that is fine-tuned: sizes, crops, augmentations, and the square of evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms as tv

from fastxfer.backbones import Preprocessing
from fastxfer.batches import Images, Transform, random_resized_crop, to_pixels, xray_moves
from fastxfer.errors import DataError
from fastxfer.hyperrule import PRESETS, Settings
from fastxfer.targets import Target

Prepare = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Pipeline:
    """What is done to images: `prepare…` once, right after decoding; `train` and `evaluation` every time."""

    prepare_train: Prepare
    train: Transform
    prepare_evaluation: Prepare
    evaluation: Transform

    def train_images(self, target: Target, rows: NDArray[np.int64], cache_bytes: int) -> Images:
        return Images(paths(target, rows), self.prepare_train, cache_bytes, target.pixels)

    def evaluation_images(self, target: Target, rows: NDArray[np.int64], cache_bytes: int = 0) -> Images:
        return Images(paths(target, rows), self.prepare_evaluation, cache_bytes, target.pixels)


def pipeline(settings: Settings, preprocessing: Preprocessing) -> Pipeline:
    """The settings' pipeline for a network with this preprocessing."""
    channels, rule = preprocessing.input_size[0], PRESETS[settings.preset]
    as_pixels = to_pixels(channels)
    if settings.augment == "timm":
        return _timm_pipeline(settings, preprocessing, as_pixels)
    squash = resize(settings.crop, square=True)
    if settings.augment == "xray":

        def centre_square(image: Image.Image) -> Image.Image:
            return squash(tv.functional.center_crop(image, [min(image.size)]))

        moved: Transform = tv.Compose([*xray_moves(45, 0.25, 0.1, settings.hflip), tv.Lambda(as_pixels)])
        return Pipeline(centre_square, moved, centre_square, as_pixels)
    crop = random_crop(settings.crop, settings.hflip, as_pixels)
    return Pipeline(resize(settings.resize, rule.square), crop, squash, as_pixels)


def _timm_pipeline(settings: Settings, preprocessing: Preprocessing, as_pixels: Transform) -> Pipeline:
    """timm's: random resized crop and RandAugment; evaluation as the network was evaluated in pre-training."""
    size = settings.crop
    randaugment = PRESETS[settings.preset].randaugment or PRESETS["own"].randaugment
    augment = random_resized_crop(size, 0.35, settings.hflip, randaugment, preprocessing.interpolation)
    evaluate = replace(preprocessing, input_size=(preprocessing.input_size[0], size, size)).geometry()

    def train(image: Image.Image) -> Tensor:
        pixels = np.asarray(augment(image), dtype=np.uint8)
        return as_pixels(Image.fromarray(pixels.transpose(1, 2, 0)))

    def unchanged(image: Image.Image) -> Image.Image:
        return image

    def at_most_double(image: Image.Image) -> Image.Image:
        # A crop may be a third of the image: more pixels than the network's are kept, but not all of a photograph's.
        return image if min(image.size) <= 2 * size else resize(2 * size, square=False)(image)

    return Pipeline(at_most_double, train, unchanged, lambda image: torch.from_numpy(evaluate(image)))


def paths(target: Target, rows: NDArray[np.int64]) -> list[Path]:
    """Files of these rows; `DataError` for a target that has left its images behind."""
    if target.root is None:
        raise DataError(f"target '{target.name}': its images are not known, only its table: load it from --data-root")
    return [target.root / str(i) for i in target.image_id[rows]]


def resize(size: int, square: bool) -> Prepare:
    """To size × size, or the shorter side to `size`; bilinear, antialiased by Pillow."""

    def scaled(image: Image.Image) -> Image.Image:
        scale = size / min(image.size)
        wide, high = (size, size) if square else (max(size, round(s * scale)) for s in image.size)
        return image.resize((wide, high), Image.Resampling.BILINEAR)

    return scaled


def random_crop(size: int, hflip: float, as_pixels: Transform) -> Transform:
    """A random square, mirrored with probability `hflip`; draws from `random`, which `Batches` seeds for each image."""

    def crop(image: Image.Image) -> Tensor:
        left, top = (random.randint(0, side - size) for side in image.size)
        square = image.crop((left, top, left + size, top + size))
        mirrored = random.random() < hflip
        return as_pixels(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else square)

    return crop
