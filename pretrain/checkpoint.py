"""Checkpoints: written whole or not at all, read without running any code that they might hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from fastxfer.errors import DataError
from fastxfer.files import whole_file


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) so that `path` is the old file or the new one, also after a crash."""
    with whole_file(path) as file:
        torch.save(content, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this package; `DataError` if it is damaged or somebody else's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"checkpoint '{path}' cannot be read ({str(error).splitlines()[0]}): is it truncated?"
        ) from error
    if not isinstance(content, dict) or not {"model", "meta", "optimizer", "training"} <= set(content):
        raise DataError(
            f"'{path}' is no checkpoint of a pre-training run that could go on: it lacks the optimiser's state"
        )
    return content
