"""How the head starts: at zero, at its layers' random default, or at the linear probe's solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastxfer.errors import UsageError
from fastxfer.finetune.images import Pipeline
from fastxfer.finetune.task import Task
from fastxfer.ops_full import logistic_full
from fastxfer.training import Normaliser, head_of, predict


def start_head(network: nn.Module, how: str) -> None:
    """Zeros, or the random default of the head's own layers, whatever the network's author chose."""
    for layer in head_of(network).modules():
        if how == "zero":
            for p in layer.parameters(recurse=False):
                nn.init.zeros_(p)
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]


def start_at_probe(
    network: nn.Module, task: Task, pipeline: Pipeline, normalise: Normaliser, l2: float, batch_size: int
) -> None:
    """The head becomes the logistic probe on this network's own embeddings of the train images, as evaluation sees them.

    `UsageError` for a head that is no single linear layer with a bias.
    """
    head = head_of(network)
    if (
        not isinstance(head, nn.Linear | nn.Conv2d)
        or head.bias is None
        or head.weight[0].numel() != head.weight.shape[1]
    ):
        raise UsageError(
            f"--head probe: the head of {type(network).__name__} is {type(head).__name__}, not one linear layer with a bias"
        )
    images = pipeline.evaluation_images(task.target, task.train.rows)
    x = predict(_BeforeHead(network), images, pipeline.evaluation, normalise, batch_size)
    weight, bias = linear_probe(x, task.train.labels, task.n_classes, l2)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight).view(head.weight.shape))
        head.bias.copy_(torch.from_numpy(bias))


def linear_probe(
    x: NDArray[np.float32], labels: NDArray[Any], n_classes: int, l2: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(weight (n_classes, d), bias (n_classes,)) of the logistic probe: (1/m) Σ loss + (l2/2) ‖W‖².

    A probe is linear in its queries: the scores of the mean and of a step along each axis are the whole of it. Classes
    that nothing is known of, which a probe scores −∞ or +∞, stay far out (±30) in the bias.
    """
    x = x.astype(np.float64)
    mean, step = x.mean(axis=0), float(np.abs(x - x.mean(axis=0)).max()) or 1.0
    queries = np.concatenate([mean[None], mean + step * np.eye(x.shape[1])])
    scores = logistic_full(x, labels, queries, n_classes, [l2]).scores[0].astype(np.float64)
    scores = np.nan_to_num(scores, nan=0.0, posinf=30.0, neginf=-30.0)
    weight = (scores[1:] - scores[0]).T / step
    return weight, scores[0] - weight @ mean


class _BeforeHead(nn.Module):
    """What a network's head is given, (b, d)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        head: Any = head_of(self.network)
        hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(1)))
        try:
            self.network(images)
        finally:
            hook.remove()
        if seen[0].shape[1] != head.weight.shape[1]:
            raise UsageError(
                f"--head probe: the head of {type(self.network).__name__} comes before its pooling, so it is not linear in the "
                "embeddings: choose --head zero or random"
            )
        return seen[0]
