"""fastxfer: which pre-trained backbone transfers best to which target, found out fast and honestly.

The public names below load their modules on first use, so that importing the package stays quick and torch-free.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastxfer.episodes import Episodes, EpisodeSpec, sample_episodes
    from fastxfer.errors import DataError, FastxferError, UsageError
    from fastxfer.evaluation import evaluate
    from fastxfer.probes import make_probe
    from fastxfer.results import ResultStore
    from fastxfer.store import EmbeddingStore
    from fastxfer.targets import Target, add_target, load_target

__version__ = "0.1.0"

_HOME = {
    "DataError": "errors",
    "EmbeddingStore": "store",
    "EpisodeSpec": "episodes",
    "Episodes": "episodes",
    "FastxferError": "errors",
    "ResultStore": "results",
    "Target": "targets",
    "UsageError": "errors",
    "add_target": "targets",
    "evaluate": "evaluation",
    "load_target": "targets",
    "make_probe": "probes",
    "sample_episodes": "episodes",
}
__all__ = [
    "DataError",
    "EmbeddingStore",
    "EpisodeSpec",
    "Episodes",
    "FastxferError",
    "ResultStore",
    "Target",
    "UsageError",
    "__version__",
    "add_target",
    "evaluate",
    "load_target",
    "make_probe",
    "sample_episodes",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fastxfer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fastxfer' has no attribute '{name}'")
