"""Benchmarks: `python -m benchmarks [NAME…] [--json]`. Each first checks that ours and the peer agree, then times both; or
counts how often ours is wrong in worlds whose truth is known (`compare`).

A benchmark is a function from `Options` to entries. An entry is a dict that says everything about one comparison: what
was done, on what, by whom, how fast, whether the answers were checked, on which machine, at which commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import (
    compare,
    coverage,
    embed,
    fewshot,
    gram,
    growth,
    knn,
    neardup,
    path,
    pretrain,
    probe,
    sample,
    store,
)
from benchmarks import compile as compiling

Entry = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """tiny: a size for tests, seconds in all; threads: of ours and of the peer; seed: of the episodes."""

    tiny: bool = False
    threads: int = 1
    seed: int = 0


BENCHMARKS: dict[str, Callable[[Any], list[Entry]]] = {
    "fewshot": fewshot.run,
    "path": path.run,
    "knn": knn.run,
    "probe": probe.run,
    "gram": gram.run,
    "sample": sample.run,
    "growth": growth.run,
    "neardup": neardup.run,
    "store": store.run,
    "embed": embed.run,
    "pretrain": pretrain.run,
    "compile": compiling.run,
    "coverage": coverage.run,
    "compare": compare.run,
}
# Minutes for an option that few use, or for what isn't timed: run only if named.
ON_REQUEST = {"compile", "coverage", "compare"}
