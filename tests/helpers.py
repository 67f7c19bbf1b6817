"""Small worlds for tests: targets and stores made of numbers, without images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target


def toy_target(n_train: Sequence[int], n_test: Sequence[int], patient: NDArray[Any] | None = None) -> Target:
    """Classes a, b, c … with the given numbers of images in train and in test."""
    labels = np.concatenate([np.repeat(np.arange(len(n)), n) for n in (n_train, n_test)])
    return Target(
        name="toy",
        image_id=np.array([f"{i:04}.png" for i in range(len(labels))]),
        class_names=tuple("abcdefgh"[: len(n_train)]),
        labels=labels,
        split=np.repeat(["train", "test"], [sum(n_train), sum(n_test)]),
        patient=patient,
    )


def blobs_target(
    name: str = "blobs",
    *,
    n_classes: int = 6,
    n_train: int = 30,
    n_test: int = 20,
    n_val: int = 0,
    patients: bool = False,
    multi_label: bool = False,
) -> Target:
    """`n_classes` classes with the same number of images each."""
    per_split = {"train": n_train, "val": n_val, "test": n_test}
    split = np.concatenate([np.repeat(s, n * n_classes) for s, n in per_split.items()])
    labels: NDArray[Any] = np.concatenate([np.repeat(np.arange(n_classes), n) for n in per_split.values()])
    n = len(labels)
    if multi_label:
        rng = np.random.default_rng(3)
        labels = np.eye(n_classes, dtype=np.float32)[labels]
        labels[rng.random(labels.shape) < 0.1] = np.nan
    return Target(
        name=name,
        image_id=np.array([f"images/{i:05}.png" for i in range(n)]),
        class_names=tuple(f"class {chr(97 + i)}" for i in range(n_classes)),
        labels=labels,
        split=split,
        patient=np.array([f"{s}-{i // 2}" for i, s in enumerate(split)]) if patients else None,
    )


def blobs_embeddings(target: Target, *, dim: int = 24, spread: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian clouds around a centre a class; the larger `spread`, the harder."""
    rng = np.random.default_rng(seed)
    label = target.exactly_one()
    centres = rng.normal(size=(len(target.class_names), dim))
    return (centres[label] + spread * rng.normal(size=(target.n_images, dim)) + 1.0).astype(np.float32)


def blobs_store(
    path: Path, *targets: Target, backbones: dict[str, float] | None = None, dim: int = 24
) -> EmbeddingStore:
    """A store with embeddings of the targets by backbones of the given spreads (default: one good, one bad)."""
    store = EmbeddingStore.open(path, mode="a")
    for target in targets or (blobs_target(),):
        store.add_target(target)
        for seed, (name, spread) in enumerate((backbones or {"good": 0.8, "bad": 3.0}).items()):
            attributes = {"identity": f"id-{name}", "source": f"source of {name}", "checkpoint": f"{name}.pt"}
            values = blobs_embeddings(target, dim=dim, spread=spread, seed=seed)
            with store.writer(name, target.name, dim=dim, dtype="float32", attributes=attributes) as writer:
                for block in list(writer.missing):
                    writer.write(block, values[block.start : block.stop], seconds=0.5)
    return store
