"""How often 95 % intervals of proximity and of the scale model hold the truth, in worlds where it is known.

* proximity/…: distances of Gaussians, whose Fréchet distance has a formula and whose MMD is the mean of many; that of equal sets is 0.
* scale/paper: the layout of the paper's 289 cells with the model that its runs gave as the truth; gains by size and data, and
  the gap of near and far. scale/small: four targets and six sources.
* scale/pairs: paired differences of five seeds whose variances differ by configuration.

Checked: every rate lies where it was promised, up to three of its own errors. There is no peer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fastxfer.proximity import measures
from fastxfer.scale.cells import differences, paper_cells
from fastxfer.scale.model import DATA, SIZE, ScaleModel, fit_scale

SPREAD = np.geomspace(4, 0.1, 16)
HIGH = 0.995
Found = dict[str, tuple[list[bool], tuple[float, float], str]]  # name -> held or not, promised, in words


def run(options: Any) -> list[dict[str, Any]]:
    """An entry an interval."""
    entries = []
    for make, repetitions, tiny in WORLDS:
        found: Found = {}
        count = tiny if options.tiny else repetitions
        print(f"scaling: {make.__name__[1:]}, {count} worlds", file=sys.stderr)
        for i in range(count):
            for name, held, promised, words in make(np.random.default_rng([options.seed, i])):
                found.setdefault(name, ([], promised, words))[0].extend(held)
        for name, (held, (least, most), words) in found.items():
            rate, error = float(np.mean(held)), float(np.sqrt(0.05 * 0.95 / len(held)))
            entries.append(
                {
                    "name": name,
                    "what": words,
                    "rate": rate,
                    "error": error,
                    "promised": [least, most],
                    "repetitions": count,
                    "checked": bool(options.tiny or least - 3 * error <= rate <= most + 3 * error),
                }
            )
    return entries


Held = Iterator[tuple[str, list[bool], tuple[float, float], str]]


def _proximity(rng: np.random.Generator) -> Held:
    for name, apart, scale, n in (
        ("equal", 0.0, 1.0, 300),
        ("moved", 1.0, 1.0, 300),
        ("wider", 0.0, 2.0, 300),
        ("few", 1.0, 1.0, 100),
    ):
        truth = apart**2 + (np.sqrt(scale) - 1) ** 2 * SPREAD.sum()
        x, y = rng.normal(size=(n, 16)) * np.sqrt(SPREAD), rng.normal(size=(n, 16)) * np.sqrt(scale * SPREAD)
        y[:, 0] += apart
        found = measures.frechet(x, y, dims=None, seed=int(rng.integers(2**31)))
        yield f"scaling/frechet/{name}", [found.low <= truth <= found.high], (0.9, 1.0), f"Fréchet, 2 x {n} images"
    for name, apart, n, other in (("equal", 0.0, 100, 100), ("near", 0.3, 200, 80), ("apart", 1.0, 200, 80)):
        x, y = rng.normal(size=(n, 4)), rng.normal(size=(other, 4))
        y[:, 0] += apart
        # Of a Gaussian kernel with σ = 2 in four dimensions: E k(x, x') = (4 / 6)², E k(x, y) = that times exp(−apart² / 12).
        truth = 2 * (4 / 6) ** 2 * (1 - np.exp(-(apart**2) / 12))
        found = measures.mmd(x, y, bandwidth=2.0)
        yield f"scaling/mmd/{name}", [found.low <= truth <= found.high], (0.9, 1.0), f"MMD, {n} + {other} images"
    found = measures.neighbour_overlap(rng.normal(size=(200, 8)), rng.normal(size=(150, 8)))
    yield "scaling/neighbours/equal", [found.low <= 1 <= found.high], (0.93, 1.0), "neighbours, 200 + 150 images"


def _pairs(rng: np.random.Generator) -> Held:
    for name, df in (("alike", np.inf), ("unlike", 5.0)):
        size = 6
        spread = 0.02 * (np.ones(size) if np.isinf(df) else np.sqrt(df / rng.chisquare(df, size)))
        luck = 0.1 * rng.normal(size=5)
        lines = [
            ("t", str(s), m, "1", u, 0.5 + (m == "b") * 0.03 + luck[u] + spread[s] * rng.normal())
            for s in range(size)
            for m in "ab"
            for u in range(5)
        ]
        runs = pd.DataFrame(lines, columns=["target", "source", "model", "shots", "unit", "value"])
        found = differences(runs, {"model": ["b"]}, {"model": ["a"]}, on=["source"])
        half = stats.t.ppf(0.975, found["df"]) * np.sqrt(found["v"])
        held = (np.abs(found["value"] - 0.03) <= half).tolist()
        yield f"scaling/pairs/{name}", held, (0.94, 0.97), "differences of five paired seeds"


def _small(rng: np.random.Generator) -> Held:
    by_target = rng.normal(size=(4, 2, 2))
    by_source, both = 0.7 * rng.normal(size=6), 0.5 * rng.normal(size=(6, 4))
    lines = []
    for i, target in enumerate("tuvw"):
        for j, images in enumerate((1e5, 3e5, 1e6, 2e5, 6e5, 3e6)):
            far = int((j >= 3) == (i < 2))
            for size in (1e7, 1e8):
                for shots in ("5", "full"):
                    y = 50 + 5 * i + (3 + by_target[i, far, 0]) * np.log10(size) + by_source[j] + both[j, i]
                    y += (2 + by_target[i, far, 1]) * np.log10(images) + rng.normal()
                    lines.append(
                        (target, str(j), f"{size:g}", shots, y / 100, 0.5e-4, size, images, ("near", "far")[far])
                    )
    names = ["target", "source", "model", "shots", "value", "v", "parameters", "images", "relation"]
    model = fit_scale(pd.DataFrame(lines, columns=names))
    contrasts: list[tuple[str, Callable[[ScaleModel], Any], float]] = [
        ("size", lambda m: m.gain(SIZE, "near", "full"), 3.0),
        ("data", lambda m: m.gain(DATA, "far", "5"), 2.0),
        ("gap", lambda m: m.gap(SIZE, "near", "far", ["5", "full"]), 0.0),
    ]
    for name, of, truth in contrasts:
        got = of(model)
        yield f"scaling/small/{name}", [got.low <= truth <= got.high], (0.92, HIGH), "gains, 96 cells of 4 targets"


_TRUTH: list[ScaleModel] = []


def _paper(rng: np.random.Generator) -> Held:
    if not _TRUTH:
        _TRUTH.append(fit_scale(paper_cells()))
    truth = _TRUTH[0]
    y = truth.cells["fitted"].to_numpy() + np.sqrt(truth.cells["v_y"].to_numpy()) * rng.normal(size=len(truth.cells))
    for name, z in truth.effects_of.items():
        y = y + np.sqrt(truth.mixed.theta[name]) * (z @ rng.normal(size=z.shape[1]))
    again = fit_scale(truth.cells.drop(columns=["y", "fitted", "v_y"]).assign(value=y / 100))
    few = ["1", "5", "10"]
    contrasts: list[tuple[str, Callable[[ScaleModel], Any]]] = [
        ("size, natural, full", lambda m: m.gain(SIZE, "natural to natural", "full")),
        ("size, X-ray, full", lambda m: m.gain(SIZE, "X-ray to X-ray", "full")),
        ("size, far, few", lambda m: m.gain(SIZE, "natural to X-ray", few)),
        ("data, X-ray, full", lambda m: m.gain(DATA, "X-ray to X-ray", "full")),
        ("gap, full", lambda m: m.gap(SIZE, "X-ray to X-ray", "natural to X-ray", ["full"])),
    ]
    for name, of in contrasts:
        known, got = of(truth), of(again)
        yield (
            f"scaling/paper/{name}",
            [got.low <= known.value <= got.high],
            (0.92, HIGH),
            "gains, the paper's 289 cells",
        )


# What draws a world and asks it, how often, and how often for a test.
WORLDS = [(_proximity, 400, 6), (_pairs, 300, 8), (_small, 400, 5), (_paper, 100, 2)]
