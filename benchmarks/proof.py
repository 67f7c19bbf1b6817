"""docs/proof.md, from what lies in benchmarks/results: `python -m benchmarks.proof`. No figure of the page is typed by anybody.

Three tables: truth (`benchmarks.truth`), reliability (`benchmarks.reliability`) and mutants (`benchmarks.mutants`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.records import RESULTS, Entry, fate, newest, newest_of_each

PAGE = ROOT / "docs" / "proof.md"
HEAD = """# The proof: truth, reliability, mutants

    python -m benchmarks truth --json --save         # ours against others, and against known truths
    python -m benchmarks reliability --json --save   # what is broken on purpose, and what comes of it
    python -m benchmarks.mutants --seed 0 --count 100  # whether the tests see a wrong line
    python -m benchmarks.proof                       # this page again, from benchmarks/results

Of each the newest result is shown, missed ones as missed. An hour of fuzzing (`--minutes 60`, 177,563 examples,
benchmarks/results/reliability-2026-11-30-de80ad54b.json) found four that were badly taken; they are mended, and the rows of fuzzing
below are of ten minutes after that.
"""
SWEPT = """Before the sample of seed 5, all mutants of statistics, selection and episodes were tried against their parts' own tests, and those
that mattered got tests; of it only what is of the store was never looked at before."""


def table(entries: Iterable[Entry]) -> list[str]:
    """Lines of Markdown: claims, then what was broken."""
    entries = list(entries)
    lines = []
    if claims := [e for e in entries if "claim" in e]:
        lines += ["| what | against | limit | figure | holds |", "|---|---|---|---|---|", *map(_claim, claims)]
    if broken := [e for e in entries if "cases" in e]:
        lines += [
            "| what | how many | held | the worst of them | holds |",
            "|---|---|---|---|---|",
            *map(_broken, broken),
        ]
    return lines


def print_claims(entries: list[Entry]) -> None:
    """The same lines for a terminal."""
    print("\n".join(table(entries)))


def _claim(entry: Entry) -> str:
    figure = f"{entry['figure']:.2g} {entry['unit']}".strip()
    missed = "; ".join(entry.get("missed", ()))
    return (
        f"| {entry['claim']} | {entry['against']} | ≤ {entry['most']:.2g} | {figure}{f' ({missed})' if missed else ''} "
        f"| {_yes(entry)} |"
    )


def _broken(entry: Entry) -> str:
    return f"| {entry['what']} | {entry['cases']:,} | {entry['held']:,} | {entry['worst']} | {_yes(entry)} |"


def _yes(entry: Entry) -> str:
    return "yes" if entry["checked"] else "**no**"


def _run(entry: Entry) -> str:
    return (
        f"{entry['device']}, {entry['cores']} cores, load {entry['load']}, commit {entry['commit'][:9]}, "
        f"{entry['date'][:10]}"
    )


def _mutants(entries: list[Entry]) -> list[str]:
    """A row a part and a sample, and the survivors' lines."""
    lines = [
        "| | mutants | killed at first | by a test that was added since | mean the same | live |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Entry]] = {}
    for kind, word in (("part", "{}"), ("seed", "seed {}")):
        for entry in entries:
            groups.setdefault(word.format(entry[kind]), []).append(entry)
    for name, some in {**groups, "all": entries}.items():
        killed = sum(e["killed"] for e in some)
        since, same, live = (sum(fate(e) == now for e in some) for now in ("killed since", "same", "live"))
        lines.append(f"| {name} | {len(some)} | {killed} ({killed / len(some):.0%}) | {since} | {same} | {live} |")
    lines += ["", SWEPT]
    survivors = [e for e in entries if not e["killed"]]
    if survivors:
        lines += ["", "Survivors:", "", "| where | the line | became | note |", "|---|---|---|---|"]
        lines += [
            f"| {e['file']}:{e['line']} | `{_code(e['before'])}` | `{_code(e['after'])}` | {e.get('note', '')} |"
            for e in survivors
        ]
    return lines


def _code(text: str) -> str:
    return text.strip().replace("|", "\\|")


def page(folder: Path = RESULTS) -> str:
    """The page in Markdown."""
    text = [HEAD]
    for title, entries, lines in (
        ("Truth", newest("truth", folder), table),
        ("Reliability", newest_of_each("reliability", folder), table),
        ("Mutants", newest("mutants", folder), _mutants),
    ):
        text += [f"## {title}\n"]
        runs = list(dict.fromkeys(map(_run, entries)))
        text += ["; ".join(runs) + ".\n", *lines(entries), ""] if entries else ["No result yet.\n"]
    return "\n".join(text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}", file=sys.stderr)
