"""What earlier runs wrote to benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = ROOT / "benchmarks" / "results"
Entry = Mapping[str, Any]


def newest(name: str, folder: Path = RESULTS) -> list[Entry]:
    """The entries of the newest result with that name, [] where there is none."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob(f"{name}-2*.json")]
    return max(found, key=lambda entries: str(entries[0]["date"]), default=[])


def newest_of_each(name: str, folder: Path = RESULTS) -> list[Entry]:
    """The newest entry of each name over all results of a benchmark, for one that is run in parts."""
    found: dict[str, Entry] = {}
    every = [e for file in folder.glob(f"{name}-2*.json") for e in json.loads(file.read_text(encoding="utf-8"))]
    for entry in sorted(every, key=lambda e: str(e["date"])):
        found[entry["name"]] = entry
    return list(found.values())


def fate(mutant: Entry) -> str:
    """`killed` at first, `killed since`, the `same` in another spelling, or `live`: the latter three a person's word (`now`)."""
    if mutant["killed"]:
        return "killed"
    return {"killed": "killed since", "same": "same"}.get(mutant.get("now", ""), "live")
