"""`python -m benchmarks.breaking KIND… [--tiny] [MINUTES]`: rows as JSON; `benchmarks.reliability` starts it with the faults."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.breaking import beside, disk, flips, inputs, lasting, objects

KINDS: dict[str, Callable[..., Iterator[disk.Row]]] = {
    "flips": flips.flips,
    "checkpoint": flips.checkpoint,
    "malformed": inputs.malformed,
    "disk": disk.full_disk,
    "clocks": beside.clocks,
    "writers": beside.writers,
    "offline": beside.offline,
    "fuzz": inputs.fuzz,
    "dependencies": lasting.dependencies,
    "soak": lasting.soak,
    "objects": objects.objects,
}


def main(*words: str) -> None:
    """Print the rows of each kind that is named, a line each, as they come; a number is the minutes of fuzzing."""
    minutes = [float(word) for word in words if word not in KINDS and word != "--tiny"]
    with tempfile.TemporaryDirectory() as work:
        roads = disk.Roads(Path(work))
        for name in (word for word in words if word in KINDS):
            print(name, file=sys.stderr, flush=True)
            for row in KINDS[name](roads, "--tiny" in words, *(minutes if name == "fuzz" else [])):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
