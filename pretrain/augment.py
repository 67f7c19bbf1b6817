"""Augmentation: PIL image in, (3, size, size) uint8 out; pixels are normalised later, a batch at a time.

The transforms draw from the global generators; `fastxfer.batches.Batches` seeds those for every image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import create_transform
from torchvision import transforms as tv

from fastxfer.batches import Transform, random_resized_crop, to_pixels, xray_moves
from pretrain.recipe import ARCHITECTURES, Recipe


def preprocessing(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """Size, mean, std, interpolation and crop of validation: the recipe's, or else those of timm's `config`."""
    known = ARCHITECTURES.get(recipe.arch)
    size = recipe.image_size or (known and known.image_size) or config["input_size"][1]
    return {
        "input_size": [3, size, size],
        "mean": list(recipe.mean or config["mean"]),
        "std": list(recipe.std or config["std"]),
        "interpolation": recipe.interpolation or config["interpolation"],
        # A crop of a picture this small would lose more than its border.
        "crop_pct": recipe.crop_pct or (1.0 if size <= 64 else config["crop_pct"]),
    }


def train_transform(recipe: Recipe, size: int, interpolation: str) -> Transform:
    """The recipe's augmentation.

    crop: random resized crop, flip, RandAugment (timm). xray: the square in the middle; shift, rotation and scale, drawn
    evenly up to the recipe's limits, flip. none: as in validation.
    """
    if recipe.augment == "none":
        return eval_transform(size, interpolation, 1.0)
    if recipe.augment == "crop":
        return random_resized_crop(size, recipe.crop_scale, recipe.hflip, recipe.randaugment, interpolation)
    return tv.Compose(
        [
            tv.Lambda(lambda image: tv.functional.center_crop(image, min(image.size))),
            tv.Resize((size, size), tv.InterpolationMode(interpolation)),
            *xray_moves(recipe.rotate, recipe.shift, recipe.scale, recipe.hflip),
            tv.Lambda(to_pixels(3)),
        ]
    )


def eval_transform(size: int, interpolation: str, crop_pct: float) -> Transform:
    """Shorter side to size/crop_pct, centre crop (timm's evaluation)."""
    plain: Transform = create_transform(size, use_prefetcher=True, interpolation=interpolation, crop_pct=crop_pct)
    return plain
