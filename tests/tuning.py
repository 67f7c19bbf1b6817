"""A small world for fine-tuning: digits with a val split, an untrained BiT of one block, a store that has embedded them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from digits import write_digits

from fastxfer.backbones import load_backbone
from fastxfer.embed import embed
from fastxfer.finetune import Run, Study, full_task
from fastxfer.hyperrule import settle
from fastxfer.plans import PlanEntry
from fastxfer.protocol import Protocol
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, add_target
from pretrain.loop import pretrain
from pretrain.recipe import Recipe

TINY = {"channels": [64], "stem_chs": 64, "bottle_ratio": 1.0}
QUICK: dict[str, Any] = {"steps": 6, "batch_size": 8, "image_size": 16, "hflip": 0.0, "base_lr": 0.03}
SIZE = 16


def make_world(root: Path) -> Target:
    """`root`: images, a target "digits" of 160 train, 40 val and 60 test images, bit.pt, other.pt, a store with bit's."""
    digits = add_target(write_digits(root / "images", n_train=200, n_test=60, size=SIZE), "digits", root)
    recipe = Recipe(arch="resnetv2_50x1_bit", arch_args=TINY, image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    for seed, name in enumerate(("bit", "other", "third")):
        pretrain(replace(recipe, seed=seed), digits, root / f"{name}.pt", untrained=True)
    return with_val(digits)


def with_val(digits: Target) -> Target:
    """A fifth of the train images is for validation."""
    split = digits.split.copy()
    split[np.random.default_rng(0).choice(np.flatnonzero(split == "train"), 40, replace=False)] = "val"
    return replace(digits, split=split)


def embed_world(root: Path, target: Target) -> EmbeddingStore:
    store = EmbeddingStore.open(root / "store", mode="a")
    embed(load_backbone(root / "bit.pt"), [target], store, dtype="float32", workers=1)
    return store


def entry(root: Path, name: str = "bit") -> PlanEntry:
    return PlanEntry(name, "digits", str(root / f"{name}.pt"), "untrained")


def full_run(root: Path, target: Target, name: str = "bit", seed: int = 0, **changes: Any) -> Run:
    return Run(entry(root, name), full_task(target, seed), settle(target, **{**QUICK, **changes}))


def few_shot(protocol: Protocol, **changes: Any) -> Study:
    return Study(protocol=protocol, overrides=QUICK | changes)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["split"] != "train"].reset_index(drop=True)


def spent(rows: pd.DataFrame, metric: str) -> float:
    return float(rows[(rows["split"] == "train") & (rows["metric"] == metric)]["value"].sum())
