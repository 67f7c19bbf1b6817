"""Fine-tuning of the whole network: BiT-HyperRule (Kolesnikov et al. 2020), the variant of Cherti & Jitsev (2021), and timm's
conventions.

A run is one fit, of a train split or of an episode of the probes; test is scored after the last step. Its rows are those of
the probes, with probe "finetune", so that the two can be compared.

    task      what is trained and scored: images, labels, metrics
    images    pixels on their way into the network
    head      how the head starts
    run       what one run is, and its rows; `state` is its checkpoint, `cost` its bill
    training  a run done: train, score
    runs      plans and checkpoints -> runs
    conductor runs done, within a budget, by one process or several
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from fastxfer.backbones import load_backbone
from fastxfer.finetune.conductor import run_all
from fastxfer.finetune.run import Machine, Run
from fastxfer.finetune.runs import Study, prepare, prepare_checkpoint
from fastxfer.finetune.task import Task, episode_tasks, full_task
from fastxfer.finetune.training import train
from fastxfer.hyperrule import Settings, settle
from fastxfer.plans import PlanEntry
from fastxfer.targets import Target

__all__ = [
    "Machine",
    "Run",
    "Study",
    "Task",
    "episode_tasks",
    "finetune",
    "full_task",
    "prepare",
    "prepare_checkpoint",
    "run_all",
    "train",
]


def finetune(
    ckpt: str,
    target: Target | Task,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    backbone_name: str | None = None,
    source: str | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    machine: Machine | None = None,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Fine-tune a checkpoint on a target's train split, or on a task; return the rows of its val (if any) and test images.

    settings:   as `settle` made them; else made from `overrides`, its arguments
    checkpoint: file from which an interrupted run goes on
    curve:      CSV to write, one line a step: step, lr, loss, and scores on the way

    Multi-label targets get a binary cross-entropy over known entries. One row a metric and split, with an interval
    over the split's images; rows of split "train" say what it cost (`cost.Cost`).
    """
    task = target if isinstance(target, Task) else full_task(target, seed)
    few = len(task.train.rows) if task.shots != "full" else None
    chosen = settings or settle(task.target, n_train=few, **overrides)
    if backbone_name is None or source is None:
        backbone = load_backbone(ckpt, arch=arch, arch_args=arch_args)
        backbone_name, source = backbone_name or backbone.name, source or backbone.source
    entry = PlanEntry(backbone_name, task.target.name, ckpt, source, arch or "", dict(arch_args or {}))
    rows = train(Run(entry, task, chosen), machine or Machine(), checkpoint=checkpoint, curve=curve).rows
    assert rows is not None  # it was not told to stop
    return rows
