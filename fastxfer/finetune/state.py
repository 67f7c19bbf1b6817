"""The checkpoint of a running fine-tuning: all that is needed to go on exactly, or to go on with something else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastxfer.errors import first_line
from fastxfer.files import whole_file
from fastxfer.finetune.cost import Cost
from fastxfer.progress import say


@dataclass
class State:
    """Where a run is.

    step:   finished steps
    losses: one a step
    scores: what was measured on the way: {"step": 100, "split": "val", "accuracy": 0.9, …}
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)


def save(
    path: Path, identity: str, state: State, network: torch.nn.Module, optimizer: Any, device: torch.device
) -> None:
    """Write the checkpoint of a run, whole or not at all."""
    content = {
        "identity": identity,
        "step": state.step,
        "losses": state.losses,
        "scores": state.scores,
        "cost": vars(state.cost),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    with whole_file(path) as file:
        torch.save(content, file)


def load(path: Path, identity: str) -> dict[str, Any] | None:
    """What `save` wrote for this very run; None where there is nothing of use, which is said if there was something."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content["identity"]
    except Exception as error:  # torch's reader of damaged bytes raises whatever it trips over
        say(f"'{path}' cannot be read ({first_line(error)}): this fine-tuning begins again")
        return None
    if known != identity:
        say(f"'{path}' is of another checkpoint, other images or other settings: this fine-tuning begins again")
        return None
    assert isinstance(content, dict)
    return content


def restore(content: dict[str, Any], network: torch.nn.Module, optimizer: Any, device: torch.device) -> State:
    """Put network, optimiser and random numbers back to where `content` was written."""
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(content["cuda_rng"], device)
    return State(content["step"], content["losses"], content["scores"], Cost(**content["cost"]))


def digest(*words: object) -> str:
    """A name for what these words say."""
    return hashlib.sha256("\0".join(map(str, words)).encode()).hexdigest()[:24]
