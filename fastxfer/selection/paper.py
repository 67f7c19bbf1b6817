"""The paper's configurations as a policy sees them: what is known of each before it is run, and what a run costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fastxfer.paper import paper_runs
from fastxfer.selection.model import Effects

CELL = ["target", "shots", "source", "model"]

# Images a source was trained on (Cherti and Jitsev 2021, tables of sources; what their loaders keep).
_SOURCE_IMAGES = {
    "imagenet1k": 1.28e6,
    "imagenet21k": 14.2e6,
    "chexpert": 191_010,
    "mimic": 238_000,
    "nih": 86_524,
    "padchest": 144_638,
    "chexpert_mimic": 429_000,
    "chexpert_mimic_nih": 515_000,
    "chexpert_mimic_nih_padchest": 690_000,
}
# Train images, classes, pixels a side of a fine-tuning, and whether they are chest X-rays.
_TARGETS = pd.DataFrame(
    [
        ("cifar10", 50_000, 10, 128, False),
        ("cifar100", 50_000, 100, 128, False),
        ("pets", 3_680, 37, 480, False),
        ("flowers_oversampling", 6_149, 102, 480, False),
        ("covidx_cxr2", 15_952, 2, 480, True),
        ("tuberculosis_full", 679, 2, 480, True),
        ("padchest", 37_387, 26, 224, True),
    ],
    columns=["target", "train", "classes", "pixels", "chest"],
).set_index("target")
_GMAC = {("bit50x1", 128): 1.4, ("bit50x1", 224): 4.2, ("bit50x1", 480): 19.1}
_GMAC |= {("bit152x4", 128): 61.0, ("bit152x4", 224): 187.0, ("bit152x4", 480): 845.0}
_BATCH = 128
_FLOPS = 60e12  # sustained, as docs/finetune.md has it

EFFECTS = Effects(
    level=("target", "shots"),
    groups=(
        # What backbones do to all targets of a kind, and to one of them: by its domain, source and size, and by itself.
        *(("kind", *by) for by in (("domain",), ("source",), ("model",), ("source", "model"))),
        *(("target", *by) for by in (("domain",), ("source",), ("model",), ("source", "model"))),
    ),
    slopes=(("data", ("kind", "domain")),),
    own=("target", "shots", "source", "model"),
    along="depth",
)
"""A value is its contest's level, and effects of source, size and data, on the targets of a kind and on one, along the shots."""


def configurations() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(289 configurations, their 1,440 runs).

    Configurations: target, shots, source, model; kind of the target and domain of the source ("chest" or "natural"); data (log10 of
    the source's million images), depth (log of train images a class), images (of the support); seeds, cost (GPU-hours a
    run), value (mean of the runs, points). Runs: `configuration` (row of the former), target, shots, seed, images, value in points.
    """
    runs = paper_runs()
    runs["value"] *= 100
    table = runs.groupby(CELL, sort=False).agg(
        value=("value", "mean"), seeds=("seed", "size"), steps=("last_step", "max")
    ).reset_index()  # fmt: skip
    of = _TARGETS.loc[table["target"]].reset_index(drop=True)
    a_class = of["train"] / of["classes"]
    shots = table["shots"].where(table["shots"] != "full").astype(float).fillna(np.inf)
    table["depth"] = np.log(np.minimum(shots, a_class))
    table["images"] = np.minimum(shots, a_class) * of["classes"]
    table["kind"] = np.where(of["chest"], "chest", "natural")
    table["domain"] = np.where(table["source"].str.startswith("imagenet"), "natural", "chest")
    table["data"] = np.log10(table["source"].map(_SOURCE_IMAGES) / 1e6)
    gmac = np.array([_GMAC[key] for key in zip(table["model"], of["pixels"], strict=True)])
    # A multiply-add is two operations, a step forward and backward three passes forward.
    table["cost"] = table["steps"].clip(lower=500) * _BATCH * gmac * 6e9 / _FLOPS / 3600
    row = {key: i for i, key in enumerate(table[CELL].itertuples(index=False, name=None))}
    runs["configuration"] = [row[key] for key in runs[CELL].itertuples(index=False, name=None)]
    runs["images"] = table["images"].to_numpy()[runs["configuration"]]
    return table, runs.sort_values(["configuration", "seed"], ignore_index=True)
