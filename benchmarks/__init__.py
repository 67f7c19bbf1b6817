"""Benchmarks: `python -m benchmarks [NAME…] [--json]`. Each first checks that ours and the peer agree, then times both; or
counts how often ours is wrong in worlds whose truth is known (`compare`).

A benchmark is a function from `Options` to entries. An entry is a dict that says everything about one comparison: what
was done, on what, by whom, how fast, whether the answers were checked, on which machine, at which commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    proof,
    reliability,
    sample,
    scaling,
    selection,
    slopes,
    store,
    study,
    truth,
)
from benchmarks import compile as compiling
from benchmarks.printing import print_rates, print_slopes

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


BENCHMARKS: dict[str, Callable[[Any], Iterable[Entry]]] = {
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
    "truth": truth.run,
    "reliability": reliability.run,
}
# How entries are shown that are not of times (`printing.print_times`).
PRINTERS: dict[str, Callable[[list[Entry]], None]] = {
    "selection": selection.print_table,
    "slopes": print_slopes,
    "compare": print_rates,
    "scaling": print_rates,
    "coverage": coverage.print_coverage,
    "truth": proof.print_claims,
    "reliability": proof.print_claims,
}
# Run only if named: minutes for an option that few use, or for what isn't timed; half an hour for a size that few have;
# what proves rather than times.
ON_REQUEST = {"compile", "compare", "coverage", "large", "reliability", "scaling", "study", "truth"}
