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
    large,
    neardup,
    path,
    pretrain,
    probe,
    sample,
    scaling,
    selection,
    slopes,
    store,
    study,
)
from benchmarks import compile as compiling
from benchmarks.printing import print_rates, print_slopes

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
    "large": large.run,
    "gram": gram.run,
    "sample": sample.run,
    "growth": growth.run,
    "slopes": slopes.run,
    "neardup": neardup.run,
    "store": store.run,
    "embed": embed.run,
    "pretrain": pretrain.run,
    "selection": selection.run,
    "compile": compiling.run,
    "compare": compare.run,
    "coverage": coverage.run,
    "study": study.run,
    "scaling": scaling.run,
}
# How entries are shown that are not of times (`printing.print_times`).
PRINTERS: dict[str, Callable[[list[Entry]], None]] = {
    "selection": selection.print_table,
    "slopes": print_slopes,
    "compare": print_rates,
    "scaling": print_rates,
    "coverage": coverage.print_coverage,
}
# Run only if named: minutes for an option that few use, or for what isn't timed; half an hour for a size that few have.
ON_REQUEST = {"compile", "compare", "coverage", "large", "scaling", "study"}
