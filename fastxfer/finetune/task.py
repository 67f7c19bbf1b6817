"""What one fine-tuning is trained and scored on: a whole train split, or one episode of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.episodes import Episodes
from fastxfer.errors import DataError
from fastxfer.influences import WHOLE_SPLIT, Sampling, sampling_of
from fastxfer.protocol import params_of
from fastxfer.results import NO_EPISODE, WHOLE_TRAIN
from fastxfer.targets import Target

Ints = NDArray[np.int64]
Labels = NDArray[Any]

SINGLE_LABEL_METRICS = ("accuracy", "balanced_accuracy", "auc")
MULTI_LABEL_METRICS = ("auc", "average_precision")


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of the target with their labels: (m,) int64, or (m, n_classes) float32 with NaN = unknown."""

    split: str
    rows: Ints
    labels: Labels


@dataclass(frozen=True, eq=False)
class Task:
    """Train `train`, score each of `scored` at the end; `val` serves choices on the way (None: there is none).

    n_classes:  of the head; classes without a train image included
    seed:       of the study, in the rows; `stream` is that of this run's own randomness
    extra:      what `params` say behind the settings
    sampling:   how the images that are scored were chosen
    """

    target: Target
    train: Part
    scored: tuple[Part, ...]
    val: Part | None
    n_classes: int
    metrics: tuple[str, ...]
    ways: str
    shots: str
    seed: int
    episode: int
    episodes_hash: str
    extra: str
    sampling: Sampling = WHOLE_SPLIT

    @property
    def multi_label(self) -> bool:
        return self.train.labels.ndim == 2

    @property
    def interval(self) -> bool:
        """Whether rows carry an interval over images, as those without episodes do."""
        return self.episode == NO_EPISODE

    @property
    def stream(self) -> int:
        """Seed of head, order and augmentation: each episode its own, the same for any number of shots."""
        return self.seed + ((self.episode + 1) << 32)

    @property
    def name(self) -> str:
        """For people: "pets", "pets, 5-way 1-shot, episode 3"."""
        if self.episode == NO_EPISODE:
            return self.target.name
        return f"{self.target.name}, {self.ways}-way {self.shots}-shot, episode {self.episode}"


def full_task(target: Target, seed: int, labels: str | None = None) -> Task:
    """The whole train split; val (if any) and test are scored.

    labels: of a multi-label target: None or "per-label", all that is known; "exactly-one", its images with one positive
            label, as if single-label (Cherti & Jitsev 2021, PadChest-Cl)

    `DataError` for a target without train or test images.
    """
    forced = target.multi_label and labels == "exactly-one"
    if forced:
        one = target.exactly_one()
        target = replace(target, labels=one).take(np.flatnonzero(one >= 0))
    for split in ("train", "test"):
        if len(target.rows(split)) == 0:
            what = "to score on" if split == "test" else "to train on"
            raise DataError(f"target '{target.name}' has no {split} images {what}")
    parts = {split: Part(split, rows := target.rows(split), target.labels[rows]) for split in ("train", "val", "test")}
    val = parts["val"] if len(parts["val"].rows) else None
    extra = [*(["labels=exactly-one"] if forced else []), *([f"dropped={target.dropped}"] if target.dropped else [])]
    return Task(
        target,
        parts["train"],
        tuple(part for part in (val, parts["test"]) if part is not None),
        val,
        len(target.class_names),
        MULTI_LABEL_METRICS if target.multi_label else SINGLE_LABEL_METRICS,
        seed=seed,
        episodes_hash="",
        **WHOLE_TRAIN,
        extra="".join(f";{word}" for word in extra),
    )


def episode_tasks(target: Target, episodes: Episodes, metrics: Sequence[str]) -> list[Task]:
    """A task an episode: its support is trained on, its queries are scored, as the probes' are."""
    spec, ways = episodes.spec, episodes.ways
    alike = 2 if spec.per_label else 1  # axes of labels that all episodes share
    sampling = sampling_of(episodes, target)
    tasks = []
    for i in range(episodes.n_episodes):
        support, query = (
            labels if labels.ndim == alike else labels[i] for labels in (episodes.support_labels, episodes.query_labels)
        )
        if not spec.per_label:
            support, query = support.astype(np.int64), query.astype(np.int64)
        asked = Part(spec.query_split, episodes.query[0 if len(episodes.query) == 1 else i], query)
        tasks.append(
            Task(
                target,
                Part("train", episodes.support[i], support),
                (asked,),
                _validation(target, episodes.classes[i], spec.per_label),
                ways,
                tuple(metrics),
                ways=str(spec.ways),
                shots=str(spec.shots),
                seed=episodes.seed,
                episode=episodes.first + i,
                episodes_hash=episodes.hash,
                extra=params_of("", spec, target.dropped),
                sampling=sampling,
            )
        )
    return tasks


def _validation(target: Target, classes: Ints, per_label: bool) -> Part | None:
    """The val split's images of an episode's classes, under its labels."""
    rows = target.rows("val")
    if per_label:
        labels: Labels = target.labels[rows][:, classes]
        kept = ~np.isnan(labels).all(axis=1)
    else:
        own = np.full(len(target.class_names) + 1, -1)
        own[classes] = np.arange(len(classes))
        labels = own[target.exactly_one()[rows]]  # −1 looks up the last place, which is −1
        kept = labels >= 0
    return Part("val", rows[kept], labels[kept]) if kept.any() else None
