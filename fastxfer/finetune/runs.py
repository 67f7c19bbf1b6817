"""From a plan, or a checkpoint, to runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastxfer.backbones import SUFFIXES, load_backbone
from fastxfer.episodes import sample_episodes
from fastxfer.errors import DataError, FastxferError, UsageError
from fastxfer.finetune.run import Run
from fastxfer.finetune.task import Task, episode_tasks, full_task
from fastxfer.hyperrule import Settings, settle
from fastxfer.plans import PlanEntry
from fastxfer.protocol import Protocol
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, load_target


@dataclass(frozen=True)
class Study:
    """What is fine-tuned of each (backbone, target): the whole train split, or the episodes of a few-shot protocol.

    labels:    of a multi-label target's whole train split, see `full_task`
    overrides: of `settle`
    l2:        (backbone, target) -> the penalty that the full probe's protocol chose, for heads that start there
    """

    seed: int = 0
    protocol: Protocol | None = None
    labels: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    l2: dict[tuple[str, str], float] = field(default_factory=dict)

    def tasks(self, target: Target, shots: str = "full") -> list[Task]:
        """shots: "full" = as the protocol says, or "5" = so many, whatever it says"""
        protocol = self.protocol
        if shots != "full":
            protocol = replace(protocol or Protocol(episodes=5, seed=self.seed), shots=(int(shots),))
        if protocol is None:
            return [full_task(target, self.seed, self.labels)]
        specs = [protocol.spec(target, k) for k in protocol.shots]
        drawn = [(spec, sample_episodes(target, spec, protocol.seed, protocol.episodes)) for spec in specs]
        return [task for spec, episodes in drawn for task in episode_tasks(target, episodes, protocol.metrics_of(spec))]

    def runs(self, entry: PlanEntry, target: Target) -> list[Run]:
        tasks = self.tasks(target, entry.shots)
        # Every episode of a number of shots has the same settings.
        settled: dict[str, Settings] = {}
        for task in tasks:
            if task.shots not in settled:
                n = None if task.shots == "full" else len(task.train.rows)
                settled[task.shots] = self._with_l2(settle(task.target, n_train=n, **self.overrides), entry, task)
        return [Run(entry, task, settled[task.shots]) for task in tasks]

    def _with_l2(self, settings: Settings, entry: PlanEntry, task: Task) -> Settings:
        if settings.head != "probe" or settings.head_l2 is not None or task.shots != "full":
            return settings  # of an episode, l2 = 1/m, as the probes' default has it
        found = self.l2.get((entry.backbone, task.target.name))
        if found is None:
            raise UsageError(
                f"--head probe: the results hold no full logistic probe of {entry.backbone} on {task.target.name} that says "
                "which l2 to take: run `fastxfer probe` first, or give --head-l2"
            )
        return replace(settings, head_l2=float(f"{found:.6g}"))


def prepare(entries: Sequence[PlanEntry], store: EmbeddingStore, data_root: Path, study: Study) -> list[Run]:
    """What a plan asks for, checked before any work is done: targets, checkpoints and settings.

    Targets keep the rows that the store's embeddings have (images skipped there are skipped here), so that probe and
    fine-tuning see the same images (and are without the same leaks); `DataError` if labels or splits have changed since.
    """
    runs = []
    for entry in entries:
        try:
            target = as_embedded(store.target(entry.target), load_target(entry.target, data_root), store)
            if not entry.checkpoint:
                raise DataError("the plan names no checkpoint: run `fastxfer select` again, or use --ckpt")
            if entry.checkpoint.endswith(SUFFIXES) and not Path(entry.checkpoint).exists():
                raise DataError(f"checkpoint '{entry.checkpoint}' is not there any more")
            runs += study.runs(entry, target)
        except FastxferError as error:
            raise type(error)(f"plan entry {entry.number} ({entry.backbone} on {entry.target}): {error}") from error
    return runs


def prepare_checkpoint(
    ckpt: str,
    targets: Sequence[Target],
    study: Study,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    name: str | None = None,
    source: str | None = None,
) -> list[Run]:
    """The runs of one checkpoint on these targets, named as the checkpoint says unless told otherwise."""
    backbone = load_backbone(ckpt, arch=arch, arch_args=arch_args or None)
    runs = []
    for number, target in enumerate(targets, start=1):
        entry = PlanEntry(
            backbone=name or backbone.name,
            target=target.name,
            checkpoint=ckpt,
            source=source or backbone.source,
            architecture=arch or "",
            arch_args=dict(arch_args or {}),
            number=number,
        )
        runs += study.runs(entry, target)
    return runs


def as_embedded(stored: Target, loaded: Target, store: EmbeddingStore) -> Target:
    """The stored table with the loaded target's folder, if both say the same of the stored images."""
    position = {str(name): i for i, name in enumerate(loaded.image_id)}
    try:
        rows = np.array([position[str(name)] for name in stored.image_id], np.int64)
    except KeyError as error:
        raise DataError(f"image {error} of the store '{store.path}' is not in the target any more") from None
    now = replace(loaded.take(rows), dropped=stored.dropped)
    if now.fingerprint != replace(stored, root=None).fingerprint:
        raise DataError(
            f"labels, classes or splits of target '{loaded.name}' have changed since it was embedded into "
            f"'{store.path}': embed it again, or restore them"
        )
    return now
