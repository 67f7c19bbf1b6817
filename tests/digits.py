"""scikit-learn's handwritten digits as a folder of PNG files: real images that need no download."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path, *, n_train: int = 1000, n_test: int = 797, size: int = 32) -> Path:
    """`root` with `labels.csv` (path, label, split) and one `size`-pixel PNG an image."""
    root.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split"])
        for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if i >= n_train + n_test:
                break
            image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
            image.resize((size, size), Image.Resampling.BICUBIC).save(root / f"{i}.png")
            table.writerow([f"{i}.png", label, "train" if i < n_train else "test"])
    return root
