"""How often 95 % intervals hold the truth, in simulated worlds where it is known.

A world is drawn anew in each repetition: test images of classes, each easy or hard in its own way, patients, scores. The
values of its episodes and the influences of its images go the way of real ones (`Influences`, `summarise`,
`measure_split`). `coverage` is the share of the intervals that hold the truth, among the repetitions where one is `offered`;
`naive` that of the interval over episodes taken as if it spoke of new images. `band` is what is asked for, and `checked` says
whether coverage is within, give or take what chance alone does in so few repetitions (three standard errors if --tiny,
none in full). `until` runs to a stop by the confidence sequence and counts how often that misses at the stop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from fastxfer.influences import WHOLE_SPLIT, Influences, Sampling
from fastxfer.metrics import METRICS, measure
from fastxfer.results import CELL, complete
from fastxfer.statistics import split_interval, summarise
from fastxfer.statistics.sequences import confidence_sequence
from fastxfer.targets import Target

Array = NDArray[Any]
Entry = dict[str, Any]

REPETITIONS, TINY = 4000, 150
MEANS, HARD = (0.94, 0.96), (0.93, 0.97)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expected(logit: Array, sd: float) -> Array:
    """E expit(logit + sd z), z standard normal."""
    return np.asarray((expit(np.asarray(logit)[..., None] + sd * NODES) * WEIGHTS).sum(axis=-1))


@dataclass(frozen=True)
class Episodic:
    """Few-shot episodes on shared test images: whether image i of class c is right in episode e is a coin of

    logit p = level + class_sd z_c + patient_sd z_p(i) + image_sd z_i + episode_sd z_e + noise_sd z_ie

    images: test images a class; of_patient: images a patient (of one class); the classes' z are the same in all repetitions
    """

    name: str
    classes: int
    images: int
    episodes: int
    level: float
    queries: int = 15
    of_patient: int = 1
    image_sd: float = 1.2
    patient_sd: float = 0.0
    class_sd: float = 0.5
    episode_sd: float = 0.5
    noise_sd: float = 0.5
    natural: bool = False
    band: tuple[float, float] = MEANS

    def run(self, repetitions: int, seed: int) -> list[Entry]:
        rng = np.random.default_rng(seed)
        of_class = self.level + self.class_sd * stats.norm.ppf((np.arange(self.classes) + 0.5) / self.classes)
        patients = np.arange(self.classes * self.images) // self.of_patient
        target = _target(np.repeat(np.arange(self.classes), self.images), patients if self.of_patient > 1 else None)
        within = np.hypot(self.episode_sd, self.noise_sd)
        truth = expected(of_class, float(np.hypot(within, np.hypot(self.image_sd, self.patient_sd)))).mean()
        ways = min(5, self.classes)
        labels = np.repeat(np.arange(ways), self.queries)
        sampling = Sampling(0.0, labels.astype(np.int64), np.sqrt(1 - 1 / self.images))
        values, given, sums = np.empty((repetitions, self.episodes)), np.empty(repetitions), {}
        for r in range(repetitions):
            logit = np.repeat(of_class, self.images) + self.image_sd * rng.normal(size=target.n_images)
            logit += self.patient_sd * rng.normal(size=patients.max() + 1)[patients]
            given[r] = expected(logit, float(within)).mean()
            chosen = rng.random((self.episodes, self.classes)).argsort(axis=1)[:, :ways]
            own = rng.random((self.episodes, ways, self.images)).argsort(axis=2)[:, :, : self.queries]
            rows = (chosen[:, :, None] * self.images + own).reshape(self.episodes, -1)
            odds = logit[rows] + self.episode_sd * rng.normal(size=(self.episodes, 1))
            odds += self.noise_sd * rng.normal(size=odds.shape)
            right = rng.random(odds.shape) < expit(odds)
            scores = np.eye(ways)[np.where(right, labels, (labels + 1) % ways)]
            values[r] = METRICS["accuracy"](scores, labels)
            influences, cell = Influences(target), _cell(r, "accuracy")
            influences.add(cell, scores, labels, values[r], rows, np.arange(self.episodes), sampling)
            sums[cell] = influences.sums()[cell]
        table = summarise(_rows("accuracy", values), images=_frame(sums)).sort_values("seed")
        here, there = (table[list(pair)].to_numpy().T for pair in (("low", "high"), ("low_images", "high_images")))
        about = {"metric": "accuracy", "repetitions": repetitions, "episodes": self.episodes, "images": target.n_images}
        return [
            _entry(f"{self.name}, over episodes", about, *here, given, self.band),
            _entry(f"{self.name}, over images too", about, *there, truth, self.band)
            | {"naive": _coverage(*here, truth)},
        ]


@dataclass(frozen=True)
class Split:
    """One scoring of a whole split: draw(rng) gives scores, labels and groups; the truth is given, or found by drawing."""

    name: str
    metric: str
    draw: Callable[[np.random.Generator], tuple[Array, Array, Array | None]]
    truth: float | None = None
    band: tuple[float, float] = HARD

    def run(self, repetitions: int, seed: int) -> list[Entry]:
        rng = np.random.default_rng(seed)
        truth = self.truth
        if truth is None:
            truth = float(np.mean([measure(self.metric, *self.draw(rng)[:2])[0] for _ in range(2 * repetitions)]))
        bounds = []
        for _ in range(repetitions):
            scores, labels, groups = self.draw(rng)
            bounds.append(split_interval(self.metric, scores, labels, groups=groups))
        about = {"metric": self.metric, "repetitions": repetitions, "episodes": 0, "images": len(labels)}
        return [_entry(f"{self.name}, over images", about, *np.array(bounds).T, truth, self.band)]


@dataclass(frozen=True)
class Whole:
    """Episodes that all ask the whole test split, as all-way k-shot does: `n` images of each class, a new support each."""

    name: str
    metric: str
    n: tuple[int, ...]
    distance: float
    episodes: int = 20
    band: tuple[float, float] = HARD

    def run(self, repetitions: int, seed: int) -> list[Entry]:
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(len(self.n)), self.n)
        target, rows = _target(labels, None), np.arange(len(labels))[None]

        def scores() -> Array:
            own = rng.normal(size=(len(labels), len(self.n))) + self.distance * np.eye(len(self.n))[labels]
            support = 0.5 * rng.normal(size=(self.episodes, 1, len(self.n)))
            return own + support + 0.7 * rng.normal(size=(self.episodes, *own.shape))

        truth = float(np.mean([METRICS[self.metric](scores(), labels).mean() for _ in range(repetitions)]))
        values, sums = np.empty((repetitions, self.episodes)), {}
        for r in range(repetitions):
            s, cell, influences = scores(), _cell(r, self.metric), Influences(target)
            values[r] = METRICS[self.metric](s, labels)
            influences.add(cell, s, labels, values[r], rows, np.arange(self.episodes), WHOLE_SPLIT)
            sums[cell] = influences.sums()[cell]
        table = summarise(_rows(self.metric, values), images=_frame(sums)).sort_values("seed")
        here, there = (table[list(pair)].to_numpy().T for pair in (("low", "high"), ("low_images", "high_images")))
        about = {
            "metric": self.metric,
            "repetitions": repetitions,
            "episodes": self.episodes,
            "images": len(labels),
        }
        return [
            _entry(f"{self.name}, over images too", about, *there, truth, self.band)
            | {"naive": _coverage(*here, truth)}
        ]


@dataclass(frozen=True)
class Until:
    """Episodes until the confidence sequence is narrow enough; accuracies of 75 queries around a mean that varies."""

    name: str
    mean: float
    sd: float
    half: float

    def run(self, repetitions: int, seed: int) -> list[Entry]:
        rng = np.random.default_rng(seed)
        a, b = (p * (self.mean * (1 - self.mean) / self.sd**2 - 1) for p in (self.mean, 1 - self.mean))
        missed, t_missed, took = 0, 0, []
        for _ in range(repetitions):
            used, low, high = np.empty(0), 0.0, 1.0
            while high - low > 2 * self.half:
                more = max(200, len(used) // 10)
                used = np.r_[used, rng.binomial(75, rng.beta(a, b, more)) / 75]
                low, high = confidence_sequence(used, self.half)
            missed += not low <= self.mean <= high
            half = stats.t.ppf(0.975, len(used) - 1) * used.std(ddof=1) / np.sqrt(len(used))
            t_missed += bool(abs(used.mean() - self.mean) > half)
            took.append(len(used))
        sd = float(np.sqrt(self.sd**2 + (self.mean * (1 - self.mean) - self.sd**2) / 75))
        return [
            {
                "name": self.name,
                "metric": "accuracy",
                "repetitions": repetitions,
                "miss_rate": missed / repetitions,
                "t_coverage": 1 - t_missed / repetitions,
                "episodes_used": float(np.mean(took)),
                "episodes_of_a_z_interval": (1.96 * sd / self.half) ** 2,
                "checked": missed / repetitions <= 0.05,
            }
        ]


def shares(n: int, p: float, of_patient: int = 1, spread: float = 0.0) -> Callable[..., Any]:
    """About n images that are right with probability p; with patients, each has its own, of sd `spread` on the logit scale.

    Their number varies by a fifth, since that of right ones is whole: at one n and p, any interval covers 1 or 2 % too
    much or too little (Brown, Cai & DasGupta 2001), and at the next the other way round.
    """
    at = p
    if spread:
        levels = np.linspace(-1, 8, 2000)
        at = float(np.interp(p, expected(levels, spread), levels))

    def draw(rng: np.random.Generator) -> tuple[Array, Array, Array | None]:
        size = int(rng.integers(round(0.8 * n), round(1.2 * n) + 1))
        group = np.arange(size) // of_patient
        chance = expit(at + spread * rng.normal(size=size))[group] if spread else p
        right = rng.random(size) < chance
        return np.eye(2)[right.astype(int)][:, ::-1], np.zeros(size, int), group if of_patient > 1 else None

    return draw


def ranks(positive: int, negative: int, area: float, of_patient: int = 1) -> Callable[..., Any]:
    """Normal scores of this AUC; with patients, half of the variance is theirs."""
    shift = np.sqrt(2) * stats.norm.ppf(area)

    def draw(rng: np.random.Generator) -> tuple[Array, Array, Array | None]:
        labels = np.repeat([1, 0], [positive, negative])
        z = rng.normal(size=len(labels)) + shift * labels
        group = None
        if of_patient > 1:
            group = np.r_[np.arange(positive) // of_patient, positive + np.arange(negative) // of_patient]
            z = shift * labels + np.sqrt(0.5) * (rng.normal(size=len(labels)) + rng.normal(size=len(labels))[group])
        return np.stack([-z, z], axis=1), labels, group

    return draw


def classes(n: tuple[int, ...], distance: float, rare: float = 0.0) -> Callable[..., Any]:
    """Normal scores of several classes, n images of each on average."""

    def draw(rng: np.random.Generator) -> tuple[Array, Array, Array | None]:
        labels = rng.choice(len(n), sum(n), p=np.array(n) / sum(n))
        return rng.normal(size=(len(labels), len(n))) + distance * np.eye(len(n))[labels], labels, None

    return draw


WORLDS = (
    Episodic("hardly an image twice", 10, 200, 30, 1.0),
    Episodic("shared test images", 10, 20, 200, 1.0),
    Episodic("patients", 10, 30, 200, 1.0, of_patient=3, patient_sd=1.0),
    Episodic("few images", 5, 15, 200, 1.0, band=HARD),
    Episodic("near-ceiling accuracy", 10, 20, 200, 5.5, band=HARD),
    Split("100 images", "accuracy", shares(100, 0.8), 0.8, MEANS),
    Split("30 images", "accuracy", shares(30, 0.75), 0.75),
    Split("near the ceiling, 300 images", "accuracy", shares(300, 0.985), 0.985),
    Split("25 patients of 4", "accuracy", shares(100, 0.8, 4, 1.5), 0.8),
    Split("50 positives, 50 negatives", "auc", ranks(50, 50, 0.8), 0.8),
    Split("5 positives, 200 negatives", "auc", ranks(5, 200, 0.85), 0.85),
    Split("5 positives, AUC 0.95", "auc", ranks(5, 200, 0.95), 0.95),
    Split("20 positives, AUC 0.97", "auc", ranks(20, 1000, 0.97), 0.97),
    Split("patients of 3, 30 positives", "auc", ranks(30, 120, 0.85, 3), 0.85),
    Split("5 classes", "auc", classes((20,) * 5, 1.5)),
    Split("5 classes", "balanced_accuracy", classes((20,) * 5, 2.0)),
    Split("5 classes", "f1", classes((20,) * 5, 2.0)),
    Split("10 positives", "average_precision", ranks(10, 200, 0.85)),
    Whole("all-way, 4 classes of 25", "auc", (25,) * 4, 1.5),
    Whole("all-way, a class of 10", "auc", (100, 100, 10), 1.5),
    Whole("all-way, 4 classes of 25", "accuracy", (25,) * 4, 2.0),
    Until("until 0.5 points", 0.7, 0.08, 0.005),
    Until("until 1 point, near the ceiling", 0.98, 0.02, 0.01),
)


def run(options: Any) -> list[Entry]:
    """One entry a world and population."""
    entries: list[Entry] = []
    for i, world in enumerate(WORLDS):
        print(f"coverage: {world.name}", file=sys.stderr)
        for entry in world.run(TINY if options.tiny else REPETITIONS, options.seed + i):
            slack = 3 * np.sqrt(0.05 * 0.95 / entry["repetitions"]) if options.tiny else 0.0
            if "coverage" in entry:
                low, high = entry["band"]
                entry["checked"] = bool(low - slack <= entry["coverage"] <= high + slack)
            entries.append(entry | {"tiny": options.tiny})
    return entries


def _coverage(low: Array, high: Array, truth: Array | float) -> float:
    there = np.isfinite(low)
    return float(((low <= truth) & (truth <= high))[there].mean())


def _entry(name: str, about: Entry, low: Array, high: Array, truth: Array | float, band: tuple[float, float]) -> Entry:
    return about | {
        "name": name,
        "truth": float(np.mean(truth)),
        "coverage": _coverage(low, high, truth),
        "offered": float(np.isfinite(low).mean()),
        "mean_width": float(np.nanmean(high - low)),
        "band": list(band),
    }


def _target(labels: Array, patients: Array | None) -> Target:
    return Target(
        name="world",
        image_id=np.arange(len(labels)).astype(str),
        class_names=tuple(map(str, range(int(labels.max()) + 1))),
        labels=labels,
        split=np.full(len(labels), "test"),
        patient=None if patients is None else patients.astype(str),
    )


def _cell(repetition: int, metric: str) -> tuple[str | int, ...]:
    key = {"seed": repetition, "metric": metric}
    return tuple(key.get(name, "") for name in CELL)


def _rows(metric: str, values: Array) -> pd.DataFrame:
    n, episodes = values.shape
    key = dict.fromkeys(CELL, "") | {"seed": np.repeat(np.arange(n), episodes), "metric": metric}
    return complete(pd.DataFrame({**key, "episode": np.tile(np.arange(episodes), n), "value": values.ravel()}))


def _frame(sums: dict[tuple[str | int, ...], Any]) -> pd.DataFrame:
    """What `ResultStore.read_images` would give."""
    seed = np.repeat([cell[CELL.index("seed")] for cell in sums], [len(s.image) for s in sums.values()])
    columns: dict[str, Any] = dict.fromkeys(CELL, "") | {"seed": seed.astype(np.int64)}
    columns["metric"] = next(iter(sums))[-1]
    for name in ("image", "group", "n", "sum", "odd"):
        columns[name] = np.concatenate([getattr(s, name) for s in sums.values()])
    for name in ("episodes", "rarity"):
        columns[name] = np.repeat([getattr(s, name) for s in sums.values()], [len(s.image) for s in sums.values()])
    return pd.DataFrame(columns)
