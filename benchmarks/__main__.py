"""`python -m benchmarks [NAME…] [--json] [--save] [--tiny] [--threads N]`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from benchmarks import BENCHMARKS, ON_REQUEST, Entry, Options, module
from benchmarks.machine import machine
from benchmarks.printing import print_coverage, print_rates, print_selection, print_slopes, print_times, print_where
from benchmarks.proof import print_claims
from benchmarks.records import RESULTS

# How entries are shown that are not of times.
PRINTERS: dict[str, Callable[[list[Entry]], None]] = {
    "selection": print_selection,
    "slopes": print_slopes,
    "compare": print_rates,
    "scaling": print_rates,
    "coverage": print_coverage,
    "truth": print_claims,
    "reliability": print_claims,
}


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks; 1 if one found ours and the peer to disagree."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Checks first, then times.",
        epilog="Example: python -m benchmarks fewshot --threads 2 --json",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all but {', '.join(ON_REQUEST)})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list of entries on stdout, nothing else")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME-DATE-COMMIT.json")
    parser.add_argument("--tiny", action="store_true", help="a size for tests: the numbers mean nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of ours and of the peer (default 1)")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="reliability: of fuzzing, all parsers together (default 2)"
    )
    parser.add_argument("--only", nargs="+", default=(), help="reliability: only these kinds of damage")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark '{name}': choose among {', '.join(BENCHMARKS)}")
    if given.threads < 1:
        parser.error(f"--threads must be at least 1, got {given.threads}")

    options = Options(tiny=given.tiny, threads=given.threads, minutes=given.minutes, only=tuple(given.only))
    found: dict[str, list[Entry]] = {}
    for name in dict.fromkeys(given.names) or [name for name in BENCHMARKS if name not in ON_REQUEST]:
        where = machine()
        found[name] = []
        for entry in module(name).run(options):
            found[name].append(entry | where)
            if given.save:
                _save(name, found[name], add=bool(given.only))
    entries = [entry for some in found.values() for entry in some]
    if given.json:
        print(json.dumps(entries, indent=1))
    else:
        for name, some in found.items():
            PRINTERS.get(name, print_times)(some)
        print_where(entries)
    return 0 if all(entry["checked"] for entry in entries) else 1


def _save(name: str, entries: list[Entry], *, add: bool) -> None:
    """Write what there is so far, so that an interrupted run keeps it; `add`: beside others of the same day and commit."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{entries[0]['date'][:10]}-{entries[0]['commit'][:9]}.json"
    mine = {entry["name"] for entry in entries}
    before = json.loads(file.read_text(encoding="utf-8")) if add and file.exists() else []
    kept = [*(entry for entry in before if entry["name"] not in mine), *entries]
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if len(entries) == 1:
        print(f"writing: {file}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
