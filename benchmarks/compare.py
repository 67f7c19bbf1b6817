"""Error rates of comparisons: how often each test of `fastxfer compare` is wrong in worlds whose truth is known.

Checked: every rate lies where it was promised. There is no peer, since the truth is one; `milliseconds` is what one repetition
takes ours, its world not counted.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.comparing import Contest, compare, rank
from fastxfer.comparing.crossing import stretches
from fastxfer.comparing.pairs import compare_pairs
from fastxfer.metrics import auc
from fastxfer.metrics.influence import influence
from fastxfer.statistics import EPISODES_AND_IMAGES

Array = NDArray[Any]

REPETITIONS, TINY = 4000, 40
LEVEL = 0.95
SHOTS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class World:
    """Right answers as a chance that is a sum: a backbone's own level, the episode's luck with its support, the image.

    share      of right answers, on average over backbones
    gaps       of the backbones, in points, around that; each value is one backbone
    support    how far support moves all backbones together and each for itself, uniform up to it
    images     the same of images (of patients, who have `of_patient` images each)
    queries    of an episode; 0: all images
    these      whether the images are all there are: what they do to each backbone sums to 0
    """

    share: float = 0.7
    gaps: tuple[float, ...] = (0.0, 0.0)
    episodes: int = 200
    n_images: int = 400
    queries: int = 50
    support: tuple[float, float] = (0.05, 0.05)
    images: tuple[float, float] = (0.1, 0.1)
    of_patient: int = 1
    these: bool = False

    def draw(self, rng: np.random.Generator) -> Contest:
        """Episodes, and what came of them."""
        k, n, m = len(self.gaps), self.episodes, self.n_images
        level = self.share + np.array(self.gaps) / 100
        luck = _spread(rng, (n, 1), self.support[0]) + _spread(rng, (n, k), self.support[1])
        groups = np.arange(m) // self.of_patient
        of_image = (_spread(rng, (m, 1), self.images[0]) + _spread(rng, (m, k), self.images[1]))[groups]
        if self.these:
            of_image -= of_image.mean(axis=0)
        asked = _drawn(rng, n, m, self.queries or m)
        chance = level + luck[:, None, :] + of_image[asked]
        right = rng.random((n, asked.shape[1], k)) < chance
        return of_answers(right, asked, groups)


def _drawn(rng: np.random.Generator, n: int, m: int, q: int) -> Array:
    """(n, q) q of m images without repetition, n times."""
    if q == m:
        return np.tile(np.arange(m), (n, 1))
    return np.argpartition(rng.random((n, m), np.float32), q, axis=1)[:, :q]


def _spread(rng: np.random.Generator, shape: tuple[int, ...], most: float) -> Array:
    return rng.uniform(-most, most, shape)


def of_answers(right: Array, asked: Array, groups: Array) -> Contest:
    """The contest of right answers (n, queries, k) to images (n, queries), each of a group (n_images,)."""
    n, q, k = right.shape
    values = right.mean(axis=1)
    # As `fastxfer.influences` does: the whole split, or so many of its images.
    stretch = math.sqrt(q / (q - 1)) if q == len(groups) else q / (q - 1) * math.sqrt(1 - 1 / len(groups))
    each = (right - values[:, None]) / q * stretch
    n_groups = int(groups.max()) + 1
    parts = [np.arange(n) % 2 == half for half in range(min(n, 2))]
    halves = np.zeros((len(parts), n_groups, k))
    for half, part in zip(halves, parts, strict=True):
        for b in range(k):
            half[:, b] = np.bincount(groups[asked[part]].ravel(), each[part, :, b].ravel(), n_groups) / part.sum()
    counts = np.bincount(asked.ravel(), minlength=len(groups)).astype(float)
    overlap = float((counts * (counts - 1)).sum() / (n * (n - 1) * q)) if n > 1 else math.nan
    names = tuple("abcdefgh"[:k])
    return Contest({"target": "made", "metric": "accuracy"}, names, values, q, halves, len(groups), overlap)


def _of_scores(rng: np.random.Generator, positives: int, negatives: int, shift: float, alike: float) -> Contest:
    """AUC of two backbones on one split; scores are normal, those of both of an image correlated."""
    labels = np.repeat([1, 0], [positives, negatives])
    common = rng.normal(size=len(labels))
    halves, values = np.zeros((1, len(labels), 2)), np.zeros((1, 2))
    for b in range(2):
        z = math.sqrt(alike) * common + math.sqrt(1 - alike) * rng.normal(size=len(labels)) + shift * labels
        scores = np.stack([-z, z], axis=1)
        values[0, b] = auc(scores, labels)
        halves[0, :, b] = influence("auc", scores, labels)
    return Contest({"target": "made", "metric": "auc"}, ("a", "b"), values, len(labels), halves, len(labels))


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a (question, world)."""
    repetitions = TINY if options.tiny else REPETITIONS
    rng = np.random.default_rng(options.seed)
    entries = []
    for name, words, (least, most), once in questions():
        print(f"compare/{name}: ", end="", file=sys.stderr, flush=True)
        hits, seconds = 0, 0.0
        for _ in range(repetitions):
            ask = once(rng)
            started = time.perf_counter()
            hits += bool(ask())
            seconds += time.perf_counter() - started
        rate = hits / repetitions
        print(f"{rate:.4f}", file=sys.stderr, flush=True)
        error = math.sqrt(max(rate * (1 - rate), 0.01) / repetitions)
        entries.append(
            {
                "name": f"compare/{name}",
                "what": words,
                "rate": rate,
                "error": error,
                "promised": [least, most],
                "repetitions": repetitions,
                "milliseconds": 1e3 * seconds / repetitions,
                "checked": least - 2 * error <= rate <= most + 2 * error,
                "tiny": options.tiny,
            }
        )
    return entries


Once = Callable[[np.random.Generator], Callable[[], bool]]


def questions() -> list[tuple[str, str, tuple[float, float], Once]]:
    """Name, what is counted, the rates promised, and: from random numbers to a question about one world."""
    usual, at_most = (0.04, 0.06), (0.0, 0.05)
    plain, few = World(), World(n_images=60)
    here, patients = World(these=True), World(of_patient=5, images=(0.1, 0.2))
    split = World(queries=0, episodes=1, support=(0.05, 0.0))
    ceiling = World(share=0.98, support=(0.005, 0.005), images=(0.005, 0.005))
    rare = replace(split, share=0.985, gaps=(0.5, -0.5), n_images=2000, support=(0.0, 0.0), images=(0.0, 0.0))
    p_new, p_these, alike = "p_images: a difference on new images", "p_episodes: a difference", "a wrong 'equivalent'"
    return [
        ("sign-flips/these-images", p_these, usual, _wrong(here, "p_episodes")),
        ("sign-flips/20-episodes", p_these, usual, _wrong(replace(here, episodes=20), "p_episodes")),
        ("sign-flips/new-images", f"{p_these} on new images", (0.06, 1.0), _wrong(plain, "p_episodes")),
        ("crossed-t/new-images", p_new, usual, _wrong(plain, "p_images")),
        ("crossed-t/60-images", p_new, usual, _wrong(few, "p_images")),
        ("crossed-t/5000-images", p_new, usual, _wrong(World(n_images=5000), "p_images")),
        ("crossed-t/patients", p_new, usual, _wrong(patients, "p_images")),
        ("crossed-t/whole-split", p_new, usual, _wrong(World(queries=0, episodes=20), "p_images")),
        ("crossed-t/ceiling", p_new, usual, _wrong(ceiling, "p_images")),
        ("resampled-t/new-images", f"p_resampled{p_new[8:]}", at_most, _wrong(plain, "p_resampled")),
        ("mcnemar/one-split", p_new, at_most, _wrong(split, "p")),
        ("delong/50-positives", p_new, usual, _auc(50, 400)),
        ("delong/5-positives", p_new, at_most, _auc(5, 200)),
        ("holm/5-backbones", "families with a wrong 'better'", at_most, _family(World(gaps=(0.0,) * 5))),
        ("equivalent/episodes", alike, at_most, _alike(World(gaps=(1.5, -1.5)), 3.0)),
        ("equivalent/one-split", alike, at_most, _alike(rare, 1.0)),
        ("equivalent/ceiling-300-images", alike, at_most, _one_sided(300, 1)),
        ("equivalent/ceiling-100-images", alike, at_most, _one_sided(100, 1)),
        ("equivalent/ceiling-episodes", alike, at_most, _one_sided(300, 40)),
        ("ranks/ties", "families with a true rank outside", at_most, _ranks(World(gaps=(2.0, 2.0, 0.0, -2.0, -2.0)))),
        ("crossing/at-8", "a crossing outside", usual, _crossing(8.0)),
        ("crossing/at-2", "a crossing outside", usual, _crossing(2.0)),
    ]


def _wrong(world: World, column: str) -> Once:
    def once(rng: np.random.Generator) -> Callable[[], bool]:
        contest = world.draw(rng)
        return lambda: bool(compare_pairs(contest, level=LEVEL)[column].item() <= 1 - LEVEL)

    return once


def _auc(positives: int, negatives: int) -> Once:
    def once(rng: np.random.Generator) -> Callable[[], bool]:
        contest = _of_scores(rng, positives, negatives, 1.2, 0.5)
        return lambda: bool(compare_pairs(contest, level=LEVEL)["p"].item() <= 1 - LEVEL)

    return once


def _family(world: World) -> Once:
    def once(rng: np.random.Generator) -> Callable[[], bool]:
        contest = world.draw(rng)
        return lambda: bool((compare([contest], level=LEVEL)["p_holm"] <= 1 - LEVEL).any())

    return once


def _alike(world: World, margin: float) -> Once:
    """Of backbones that lie as far apart as the margin."""

    def once(rng: np.random.Generator) -> Callable[[], bool]:
        contest = world.draw(rng)
        return lambda: bool(compare_pairs(contest, margin=margin, level=LEVEL)["p_equivalent"].item() <= 1 - LEVEL)

    return once


def _one_sided(n_images: int, episodes: int) -> Once:
    """One backbone is right everywhere, the other always wrong on one image of a hundred."""

    def once(rng: np.random.Generator) -> Callable[[], bool]:
        right = np.stack([np.ones(n_images, bool), rng.random(n_images) >= 0.01], axis=-1)
        asked = _drawn(rng, episodes, n_images, 50 if episodes > 1 else n_images)
        contest = of_answers(right[asked], asked, np.arange(n_images))
        return lambda: bool(compare_pairs(contest, level=LEVEL)["p_equivalent"].item() <= 1 - LEVEL)

    return once


def _ranks(world: World) -> Once:
    gaps = np.array(world.gaps)
    least = 1 + (gaps[None, :] > gaps[:, None]).sum(axis=1)
    most = len(gaps) - (gaps[None, :] < gaps[:, None]).sum(axis=1)

    def once(rng: np.random.Generator) -> Callable[[], bool]:
        contest = world.draw(rng)

        def ask() -> bool:
            table = rank([contest], level=LEVEL).set_index("name").loc[list(contest.names)]
            return bool((table["low"] > least).any() or (table["high"] < most).any())

        return ask

    return once


def _crossing(shots: float) -> Once:
    """Two backbones whose difference falls by two points a doubling, through 0 at `shots`; support is nested."""

    def once(rng: np.random.Generator) -> Callable[[], bool]:
        n, m, q = 200, 400, 50
        at = np.log2(np.array(SHOTS) / shots)
        # Differences of an episode at all numbers of shots: its support's own luck is a walk, its images stay.
        luck = np.cumsum(rng.normal(0, 0.01, (n, len(SHOTS))), axis=1) + rng.normal(0, 0.03, (n, 1))
        image = rng.normal(0, 0.1, m)
        asked = _drawn(rng, n, m, q)
        noise = rng.normal(0, 0.3, (n, q, len(SHOTS)))
        each = -0.02 * at + luck[:, None] + image[asked][:, :, None] + noise
        contest = _of_numbers(each, asked, m)
        weights = np.eye(len(SHOTS))

        def ask() -> bool:
            mean, covariance, df = contest.estimates(weights, EPISODES_AND_IMAGES)
            found = stretches(SHOTS, mean, covariance, float(df.min()), level=LEVEL)
            return not any(s["low"] <= shots <= s["high"] for s in found)

        return ask

    return once


def _of_numbers(each: Array, asked: Array, n_images: int) -> Contest:
    """The contest of any numbers (n, queries, k), one an image and contender."""
    _, q, k = each.shape
    values = each.mean(axis=1)
    centred = (each - values[:, None]) / (q - 1) * math.sqrt(1 - 1 / n_images)
    halves = np.zeros((2, n_images, k))
    for half in range(2):
        for b in range(k):
            halves[half, :, b] = np.bincount(asked[half::2].ravel(), centred[half::2, :, b].ravel(), n_images) / len(
                values[half::2]
            )
    return Contest({"target": "made", "metric": "score"}, tuple(map(str, SHOTS)), values, q, halves, n_images)
