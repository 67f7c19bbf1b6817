"""What is trained and what a checkpoint holds of it: weights, their moving average, momenta, the gradient scaler.

Weights and momenta go by their names, so that a run may go on with another number of processes, spread in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed.checkpoint
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fastxfer.batches import Group
from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.training import Normaliser, Trainer, bare
from pretrain.ranks import spread
from pretrain.recipe import ARCHITECTURES, Recipe

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_GIVEN_WHOLE = StateDictOptions(full_state_dict=True)
AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def create_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """The recipe's network, its weights drawn from the global generator; `UsageError` for a name or argument timm lacks."""
    name, args = recipe.architecture
    if not timm.is_model(name):
        raise UsageError(
            f"--arch '{name}' is neither an architecture of timm nor bit_tiny."
            f"{nearest(name, [*timm.list_models(), *ARCHITECTURES])}"
        )
    try:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **args)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise UsageError(f"--arch {name} does not take the arguments {args}: {error}") from error
    if recipe.checkpoint_activations:
        try:
            network.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:
            raise UsageError(f"--checkpoint-activations: timm has none for {name}") from error
    return network


class State:
    """A network in training, spread over a group."""

    def __init__(self, network: nn.Module, recipe: Recipe, group: Group, normalise: Normaliser) -> None:
        network = network.to(normalise.device)
        if recipe.channels_last and not (recipe.parallel == "fsdp" and group.count > 1):  # FSDP2 shards plain tensors
            network = network.to(memory_format=torch.channels_last)
        self.ema: ModelEmaV3 | None = None
        if recipe.ema:
            self.ema = ModelEmaV3(network, decay=recipe.ema, use_warmup=True)
            if recipe.parallel == "fsdp":
                self.ema.module = spread(self.ema.module, "fsdp", group, normalise.device)
        if recipe.compile:
            network.compile()
        self.network = spread(network, recipe.parallel, group, normalise.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
        )
        self.trainer = Trainer(
            self.network,
            self.optimizer,
            normalise,
            recipe.micro_batch or recipe.batch_size,
            agc=recipe.agc,
            smoothing=recipe.label_smoothing,
            autocast=AUTOCAST[recipe.precision],
            group=group,
        )

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights, if there is one."""
        return bare(self.network) if self.ema is None else self.ema.module

    def average(self, step: int) -> None:
        """Take the weights after so many steps into the average."""
        if self.ema is not None:
            self.ema.update(bare(self.network), step=step)

    def whole(self) -> dict[str, Any]:
        """model (what is kept), weights (those in training, if others), optimizer; all processes must ask."""
        content = {
            "model": get_model_state_dict(self.result, options=_WHOLE),
            "optimizer": get_optimizer_state_dict(self.network, self.optimizer, options=_WHOLE),
        }
        if self.ema is not None:
            content["weights"] = get_model_state_dict(self.network, options=_WHOLE)
        return content

    def load(self, content: dict[str, Any]) -> None:
        """What `whole` gave; all processes must do it. `DataError` names a weight that doesn't fit."""
        for network, weights in (
            (self.network, content.get("weights", content["model"])),
            *([(self.ema.module, content["model"])] if self.ema is not None else []),
        ):
            _must_fit(get_model_state_dict(network), weights)
            set_model_state_dict(network, dict(weights), options=_GIVEN_WHOLE)
        set_optimizer_state_dict(self.network, self.optimizer, content["optimizer"], options=_GIVEN_WHOLE)

    def shares(self) -> dict[str, Any]:
        """This process's share of the same, tensors only, for torch.distributed.checkpoint."""
        content = {
            "weights": get_model_state_dict(self.network),
            "momenta": get_optimizer_state_dict(self.network, self.optimizer)["state"],
        }
        if self.ema is not None:
            content["average"] = get_model_state_dict(self.ema.module)
        return content

    def load_shares(self, folder: Path) -> None:
        """What `shares` gave, of however many processes; all must do it."""
        content = self.shares()
        torch.distributed.checkpoint.load(content, checkpoint_id=folder)
        set_model_state_dict(self.network, content["weights"])
        if self.ema is not None:
            set_model_state_dict(self.ema.module, content["average"])
        momenta = {**get_optimizer_state_dict(self.network, self.optimizer), "state": content["momenta"]}
        set_optimizer_state_dict(self.network, self.optimizer, momenta)


def _must_fit(here: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    # torch would leave what is missing as it is, without a word.
    for name in sorted({*here, *given}):
        shapes = [tuple(weights[name].shape) if name in weights else "none" for weights in (here, given)]
        if shapes[0] != shapes[1]:
            raise DataError(f"'{name}' is {shapes[1]} in the file, and {shapes[0]} in the network")
