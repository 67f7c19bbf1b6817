"""Checkpoints: written whole or not at all, read without running any code that they might hold."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastxfer.errors import DataError


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) so that `path` is the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
