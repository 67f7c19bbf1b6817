"""What a run is made of: network, optimiser, the chances of its images, mixup."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from fastxfer.backbones import load_network
from fastxfer.errors import DataError, UsageError
from fastxfer.finetune.task import Task
from fastxfer.hyperrule import PRESETS, Settings
from fastxfer.plans import PlanEntry
from fastxfer.progress import say


def make_network(entry: PlanEntry, n_classes: int, drop_path: float) -> nn.Module:
    """The whole network; with stochastic depth where its architecture knows it."""
    arch = entry.architecture or None
    if drop_path:
        try:
            return load_network(entry.checkpoint, arch, {**entry.arch_args, "drop_path_rate": drop_path}, n_classes)
        except (UsageError, DataError):  # of timm, or of an architecture file
            say(f"{entry.backbone}: its architecture knows no drop path, so there is none")
    return load_network(entry.checkpoint, arch, entry.arch_args or None, n_classes)


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    rule, lr = PRESETS[settings.preset], settings.schedule.base_lr
    if not rule.adamw:
        return torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, nesterov=rule.nesterov)
    # Layer-wise decay is for transformers; timm's CNNs are fine-tuned at one rate.
    decay = rule.layer_decay if hasattr(network, "patch_embed") else None
    return create_optimizer_v2(network, "adamw", lr=lr, weight_decay=rule.weight_decay, layer_decay=decay)


def chances(task: Task, settings: Settings) -> Any:
    """(n,) chances of the train images, or None: each once an epoch."""
    n, labels = len(task.train.rows), task.train.labels
    if settings.oversample:
        weights = 1.0 / np.bincount(labels)[labels]
        return weights / weights.sum()
    return np.full(n, 1.0 / n) if settings.replacement else None


def mixing(settings: Settings, seed: int, step: int, n: int) -> tuple[float, torch.Tensor] | None:
    if settings.mixup <= 0:
        return None
    rng = np.random.default_rng([seed, 2, step])
    share = float(rng.beta(settings.mixup, settings.mixup))
    return share, torch.from_numpy(rng.permutation(n))


def images_a_problem(task: Task) -> int:
    """The m of a probe's default l2 = 1/m: train images, or those of one label."""
    if not task.multi_label or task.interval:
        return len(task.train.rows)
    return int((~np.isnan(task.train.labels)).sum(axis=0).max())
