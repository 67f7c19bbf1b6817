"""`python -m benchmarks [NAME…] [--json] [--save] [--tiny] [--threads N]`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import BENCHMARKS, ON_REQUEST, Entry, Options
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results"


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
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark '{name}': choose among {', '.join(BENCHMARKS)}")
    if given.threads < 1:
        parser.error(f"--threads must be at least 1, got {given.threads}")

    entries: list[Entry] = []
    for name in given.names or [name for name in BENCHMARKS if name not in ON_REQUEST]:
        where = machine()
        some = [entry | where for entry in BENCHMARKS[name](Options(tiny=given.tiny, threads=given.threads))]
        entries += some
        if given.save:
            RESULTS.mkdir(exist_ok=True)
            file = RESULTS / f"{name}-{where['date'][:10]}-{where['commit'][:9]}.json"
            file.write_text(json.dumps(some, indent=1) + "\n", encoding="utf-8")
            print(f"written: {file}", file=sys.stderr)
    if given.json:
        print(json.dumps(entries, indent=1))
    else:
        _table(entries)
    return 0 if all(entry["checked"] for entry in entries) else 1


def _table(entries: list[Entry]) -> None:
    for e in entries:
        if "ours_ms" not in e:
            rates = [
                f"{name} {e[name]:.1%}" for name in ("coverage", "naive", "offered", "miss_rate", "rate") if name in e
            ]
            print(
                f"{e['name']:<54}{e.get('metric', e.get('what')):<19}{'yes' if e['checked'] else 'NO '} {', '.join(rates)}"
            )
    entries = [e for e in entries if "ours_ms" in e]
    if entries:
        _timings(entries)


def _timings(entries: list[Entry]) -> None:
    print(f"{'':<22}{'ours':>12}{'peer':>12}{'ratio':>9}{'a core':>9}  checked  peer")
    for e in entries:
        print(
            f"{e['name']:<22}{e['ours_ms']:>9.3f} ms{e['peer_ms']:>9.2f} ms{e['ratio']:>8.3g}x{e['ratio_per_core']:>8.3g}x"
            f"  {'yes' if e['checked'] else 'NO ':<7}  {e.get('peer_is', e['peer'])}"
        )
    e = entries[0]
    print(f"\n{e['device']}, {e['threads']} thread(s), {e['embeddings']}, commit {e['commit'][:9]}, {e['date']}")


if __name__ == "__main__":
    sys.exit(main())
