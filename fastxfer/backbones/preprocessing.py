"""What a checkpoint wants its images to look like, in the words of timm's data config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from fastxfer.errors import UsageError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
# How many times as many pixels a side as are wanted a JPEG keeps when it is decoded at a fraction of its size.
FAST_JPEG = 2


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, scale to 0…1, subtract `mean`, divide by `std`.

    input_size:    (channels, height, width); 1 channel = the image as grey (ITU-R 601 luma)
    crop_pct:      height / resized height; the resized image is cropped in the middle
    crop_mode:     "center" (shorter side resized), "squash" (both sides, ratio lost), "border" (longer side, padded)
    mean, std:     one number a channel, for pixels scaled to 0…1
    fast_jpeg:     decode JPEG files no larger than twice the resized image wants, where they can be; other pixels, slightly
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    fast_jpeg: bool = False

    def __post_init__(self) -> None:
        size = tuple(int(s) for s in self.input_size)
        if len(size) != 3 or size[0] not in (1, 3) or min(size) < 1 or max(size) > 8192:
            raise UsageError(
                f"input size {size}: expected channels,height,width such as 3,224,224, with 1 or 3 channels"
            )
        object.__setattr__(self, "input_size", size)
        for name in ("mean", "std"):
            values = getattr(self, name)
            values = tuple(float(v) for v in (values if isinstance(values, list | tuple) else [values]))
            values = values * size[0] if len(values) == 1 else values
            if len(values) != size[0] or not all(np.isfinite(values)) or (name == "std" and min(values) <= 0):
                raise UsageError(
                    f"{name} {values}: expected 1 or {size[0]} numbers{' above 0' if name == 'std' else ''}"
                )
            object.__setattr__(self, name, values)
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation '{self.interpolation}': one of {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise UsageError(f"crop mode '{self.crop_mode}': one of {', '.join(CROP_MODES)}")
        if not 0.05 <= self.crop_pct <= 1.0:
            raise UsageError(
                f"crop_pct {self.crop_pct}: expected 0.05 to 1, the share of the resized image that is kept"
            )

    @property
    def resize(self) -> int:
        """Height in pixels before the crop."""
        return int(self.input_size[1] / self.crop_pct)

    @property
    def enough(self) -> int:
        """Pixels a side that a JPEG is decoded to at least; 0 = all."""
        return FAST_JPEG * max(self.resize, self.input_size[2]) if self.fast_jpeg else 0

    def as_dict(self) -> dict[str, Any]:
        """Its words; `fast_jpeg` only where it is on, since it is younger than most identities."""
        words = asdict(self)
        return words if self.fast_jpeg else {k: v for k, v in words.items() if k != "fast_jpeg"}

    @property
    def geometry_key(self) -> str:
        """What `geometry` depends on, in a word: equal for preprocessings whose pixels are equal."""
        fill = f" {self.mean}" if self.crop_mode == "border" else ""  # timm pads with the mean
        fast = " fast-jpeg" if self.fast_jpeg else ""
        return f"{self.input_size} {self.interpolation} {self.crop_pct} {self.crop_mode}{fill}{fast}"

    def geometry(self) -> Callable[[Image.Image], NDArray[np.uint8]]:
        """The half that runs where images are decoded: RGB image -> uint8 (channels, height, width).

        timm's own evaluation transform without its last step, so its pixels to the bit.
        """
        transform = create_transform(
            input_size=self.input_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,  # = stop before scaling and normalising
        )
        grey = self.input_size[0] == 1

        def apply(image: Image.Image) -> NDArray[np.uint8]:
            pixels: Any = transform(image.convert("L") if grey else image)
            return np.asarray(pixels, dtype=np.uint8)

        return apply

    def normalise(self, pixels: Tensor) -> Tensor:
        """The half that runs on the device: uint8 (b, c, h, w) -> float32, in the order torchvision does it."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        return pixels.float().div_(255).sub_(mean).div_(std)


def merge(*sources: Mapping[str, Any] | None) -> dict[str, Any]:
    """The words of Preprocessing found in `sources`, the first that has one (not None) deciding."""
    known = [f.name for f in fields(Preprocessing)]
    found: dict[str, Any] = {}
    for source in sources:
        for name in known:
            if source and source.get(name) is not None:
                found.setdefault(name, source[name])
    return found
