"""`python -m benchmarks [NAME…] [--json] [--save] [--tiny] [--threads N]`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import BENCHMARKS, ON_REQUEST, PRINTERS, Entry, Options
from benchmarks.machine import machine
from benchmarks.printing import print_times, print_where

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
<<<<<<< HEAD
    found: dict[str, list[Entry]] = {}
    for name in dict.fromkeys(given.names) or [name for name in BENCHMARKS if name not in ON_REQUEST]:
        where = machine()
        some = [entry | where for entry in BENCHMARKS[name](options)]
        found[name] = some
        if given.save:
            RESULTS.mkdir(exist_ok=True)
            file = RESULTS / f"{name}-{where['date'][:10]}-{where['commit'][:9]}.json"
            mine = {entry["name"] for entry in some}
            before = json.loads(file.read_text(encoding="utf-8")) if given.only and file.exists() else []
            some = [*(entry for entry in before if entry["name"] not in mine), *some]
            file.write_text(json.dumps(some, indent=1) + "\n", encoding="utf-8")
            print(f"written: {file}", file=sys.stderr)
    entries = [entry for some in found.values() for entry in some]
=======
    entries: list[Entry] = []
    for name in given.names or [name for name in BENCHMARKS if name not in ON_REQUEST]:
        where, some = machine(), []
        for entry in BENCHMARKS[name](options):
            some.append(entry | where)
            if given.save:
                _save(name, some, add=bool(given.only))
        entries += some
>>>>>>> df8b13b8e7934009556ea5537b19509fced02df0
    if given.json:
        print(json.dumps(entries, indent=1))
    else:
        for name, some in found.items():
            PRINTERS.get(name, print_times)(some)
        print_where(entries)
    return 0 if all(entry["checked"] for entry in entries) else 1


<<<<<<< HEAD
=======
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


def _table(entries: list[Entry]) -> None:
    """Entries that were timed, then rates that were counted, then intervals that were tried."""
    timed = [e for e in entries if "ours_ms" in e]
    counted = [e for e in entries if "rate" in e and "promised" in e]
    if timed:
        print(f"{'':<22}{'ours':>12}{'peer':>12}{'ratio':>9}{'a core':>9}  checked  peer")
    for e in timed:
        print(
            f"{e['name']:<22}{e['ours_ms']:>9.3f} ms{e['peer_ms']:>9.2f} ms{e['ratio']:>8.3g}x{e['ratio_per_core']:>8.3g}x"
            f"  {'yes' if e['checked'] else 'NO ':<7}  {e.get('peer_is', e['peer'])}"
        )
    if counted:
        print(f"{'':<38}{'rate':>8}{'promised':>16}{'error':>8}  checked  of")
    for e in counted:
        print(
            f"{e['name']:<38}{e['rate']:>8.4f}{'{:g} … {:g}'.format(*e['promised']):>16}{e['error']:>8.4f}"
            f"  {'yes' if e['checked'] else 'NO ':<7}  {e['what']}, {e['repetitions']:,} worlds"
        )
    for e in entries:
        if e not in timed and e not in counted:
            rates = [f"{name} {e[name]:.1%}" for name in ("coverage", "naive", "offered", "miss_rate") if name in e]
            print(f"{e['name']:<54}{e.get('metric', ''):<19}{'yes' if e['checked'] else 'NO '} {', '.join(rates)}")
    if entries:
        e = entries[0]
        where = f"{e['threads']} thread(s), {e['embeddings']}, " if timed else ""
        print(f"\n{e['device']}, {where}commit {e['commit'][:9]}, {e['date']}")


>>>>>>> df8b13b8e7934009556ea5537b19509fced02df0
if __name__ == "__main__":
    sys.exit(main())
