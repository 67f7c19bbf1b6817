"""docs/benchmarks.md with its picture, and the README's short table, from benchmarks/results: `python -m benchmarks.page`.

Of each entry the newest result counts. No figure of the page is typed by anybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.goals import judged
from benchmarks.machine import ROOT
from benchmarks.records import RESULTS, fate, newest, newest_of_each

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "slopes.svg"
README = ROOT / "README.md"
MARKS = ("<!-- made by python -m benchmarks.page -->\n", "<!-- as far as here -->\n")
HEAD = """# What was to be reached, and what was

    python -m benchmarks --json --save        # all of it; NAME… for some, --threads N
    python -m benchmarks.page                 # this page again, from benchmarks/results

Each benchmark first checks that ours and the peer agree, then times both in turn on the same data in the same run. A goal was
set before the code was written; a missed one stays here as missed, and the pages of its part say what was tried.
Of each entry the newest result is shown. Ratios hold for the machine that is named; times are in the files.
"""


def entries(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The newest of each (name, threads), in the order of the files' names."""
    newest: dict[tuple[str, Any], dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        for entry in json.loads(file.read_text(encoding="utf-8")):
            if "name" not in entry:  # of the proof
                continue
            key = (entry["name"], entry.get("threads"))
            if key not in newest or entry["date"] >= newest[key]["date"]:
                newest[key] = entry
    return list(newest.values())


def page(found: Iterable[dict[str, Any]]) -> str:
    """The page in Markdown."""
    rows, runs, slopes = [], {}, []
    for entry in found:
        run = f"{entry['device']}, {entry['cores']} cores, commit {entry['commit'][:9]}, {entry['date'][:10]}"
        number = runs.setdefault(run, len(runs) + 1)
        for goal, figure, met in judged(entry):
            threads = entry.get("threads")
            peer = entry.get("peer_is") or entry.get("peer") or ""
            rows.append(
                f"| {entry['name']} | {threads or ''} | {peer} | {goal.limit} {goal.words} | "
                f"{'' if met else '**'}{_figure(figure)}{'' if met else '**'} | {'yes' if met else 'no'} | "
                f"{'yes' if entry['checked'] else 'NO'} | {number} |"
            )
        if "points" in entry:
            slopes.append(entry)
    table = [
        "| what | threads | peer | goal | figure | met | checked | run |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    parts = [HEAD, "\n".join(table), "Runs: " + "; ".join(f"{n} = {run}" for run, n in runs.items()) + "."]
    if slopes:
        parts += [
            "## How time grows with the work",
            "Slopes of double-logarithmic lines: measured, and of the counted work (`benchmarks/slopes.py` says what is counted).",
            f"![Time against work, an axis a panel; dashed: the work's own slope]({PICTURE.name})",
            "\n".join(
                ["| axis | from … to | measured | the work's |", "|---|---|---|---|"]
                + [
                    f"| {e['name'].split('/')[1]} | {e['points'][0][0]:,} … {e['points'][-1][0]:,} | {e['slope']:.2f} | "
                    f"{e['expected_slope']:.2f} |"
                    for e in slopes
                ]
            ),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def summary(found: Iterable[dict[str, Any]]) -> str:
    """The README's table: how many of each kind hold."""
    met = [ok for entry in found for _, _, ok in judged(entry)]
    rows = [("goals of speed, memory, selection", sum(met), len(met), "benchmarks")]
    truth, broken, mutants = newest("truth"), newest_of_each("reliability"), newest("mutants")
    if truth:
        rows.append(
            ("claims against other programs and known truths", sum(e["checked"] for e in truth), len(truth), "proof")
        )
    if broken:
        rows.append(
            (
                "kills, faults, bad inputs that were survived",
                sum(e["held"] for e in broken),
                sum(e["cases"] for e in broken),
                "proof",
            )
        )
    if mutants:
        fates = [fate(e) for e in mutants]
        noticed = sum(f.startswith("killed") for f in fates)
        rows += [
            ("wrong lines that the tests noticed as they were", fates.count("killed"), len(mutants), "proof"),
            (
                "… and notice now, but for those that mean the same",
                noticed,
                len(mutants) - fates.count("same"),
                "proof",
            ),
        ]
    lines = [f"| {what} | {held:,} of {of:,} | [docs/{page}.md](docs/{page}.md) |" for what, held, of, page in rows]
    return "\n".join(["| | | in full |", "|---|---|---|", *lines]) + "\n"


def with_summary(readme: str, table: str) -> str:
    """The README with this table between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return before + MARKS[0] + table + MARKS[1] + after


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def picture(slopes: list[dict[str, Any]]) -> bytes:
    """The slopes as SVG, a panel an axis."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2, cols=4, subplot_titles=[e["name"].split("/")[1] for e in slopes], vertical_spacing=0.18
    )
    for i, entry in enumerate(slopes):
        at = {"row": i // 4 + 1, "col": i % 4 + 1}
        values, times = zip(*entry["points"], strict=True)
        middle = len(values) // 2
        expected = [times[middle] * (v / values[middle]) ** entry["expected_slope"] for v in values]
        figure.add_trace(go.Scatter(x=values, y=expected, mode="lines", line={"dash": "dash", "color": "#888"}), **at)
        figure.add_trace(go.Scatter(x=values, y=times, mode="lines+markers", line={"color": "#0072b2"}), **at)
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:,}" for v in values], **at)
        figure.update_yaxes(type="log", dtick=1, **at)
    figure.update_yaxes(title="milliseconds", col=1)
    figure.update_layout(width=1000, height=520, showlegend=False, template="plotly_white", margin={"t": 40, "b": 40})
    drawn: bytes = figure.to_image("svg")
    return drawn


def main() -> None:
    """Write them."""
    found = entries()
    README.write_text(with_summary(README.read_text(encoding="utf-8"), summary(found)), encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    slopes = [entry for entry in found if "points" in entry]
    if slopes:
        PICTURE.write_bytes(picture(slopes))


if __name__ == "__main__":
    main()
