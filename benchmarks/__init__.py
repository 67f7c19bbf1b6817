"""Benchmarks: `python -m benchmarks [NAME…] [--json]`. Each first checks that ours and the peer agree, then times both; or
counts how often ours is wrong in worlds whose truth is known (`compare`).

A benchmark is a module whose `run` makes entries of `Options`. An entry is a dict that says everything about one comparison:
what was done, on what, by whom, how fast, whether the answers were checked, on which machine, at which commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

Entry = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """tiny: a size for tests, seconds in all; threads: of ours and of the peer; seed: of the episodes; minutes: of fuzzing; only:
    some kinds of what is broken."""

    tiny: bool = False
    threads: int = 1
    seed: int = 0
    minutes: float = 2.0
    only: tuple[str, ...] = ()


BENCHMARKS = (
    "fewshot", "path", "knn", "probe", "large", "gram", "sample", "growth", "slopes", "neardup", "store", "embed", "pretrain",
    "selection", "compile", "compare", "coverage", "study", "scaling", "truth", "reliability",
)  # fmt: skip
# Run only if named: minutes for an option that few use, or for what isn't timed; half an hour for a size that few have;
# what proves rather than times.
ON_REQUEST = {"compile", "compare", "coverage", "large", "reliability", "scaling", "study", "truth"}


def module(name: str) -> Any:
    """The module of a benchmark, loaded when it is asked for."""
    return import_module(f"benchmarks.{name}")
