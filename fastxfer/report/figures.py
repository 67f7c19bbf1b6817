"""Every figure of a page as files: its data as .csv, without a browser, and its picture, drawn by the page's own script.

The data are those of the table and of the CSV button beside each figure, as the page shows them when it opens.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastxfer.comparing.cells import PROBE_ORDER, natural_key
from fastxfer.files import write_whole
from fastxfer.report import cells as c
from fastxfer.report.pictures import figures_of, pictures

Line = Mapping[str, Any]
COST_KINDS = ("seconds", "flops", "parameters")
CELL_HEADS = (
    "target", "backbone", "source", "ways", "shots", "seed", "probe", "params", "split", "metric", "mean", "low", "high",
    "interval", "low_images", "high_images", "n", "n_queries",
)  # fmt: skip
_CELL_KEYS = {"backbone": "label", "n_queries": "queries"}  # where the page's data call it otherwise
_OUTCOME_HEADS = (
    "target", "backbone", "metric", *(f"{kind}_{end}" for kind, mean in
    (("expected", "value"), ("val", "mean"), ("probe", "mean"), ("test", "mean")) for end in (mean, "low", "high")),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure's data: its name, which is that of its files, heads, and rows of text, numbers and None."""

    name: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_figures(
    folder: Path, document: Mapping[str, Any], drawing_page: Callable[[], str], kinds: Sequence[str] = ()
) -> list[Path]:
    """Write each figure's data to `folder` as .csv, then its picture as each of `kinds`; every file whole.

    document:     what the page's script draws
    drawing_page: gives the page, with js/drawings.js at the end of its script
    kinds:        of `fastxfer.report.pictures.KINDS`

    Raises `UsageError` for pictures that this machine cannot draw; the .csv are there by then.
    """
    found = figures(document)
    names = _apart([figure.name for figure in found])
    written = [folder / f"{name}.csv" for name in names]
    for path, figure in zip(written, found, strict=True):
        write_whole(path, _csv(figure).encode())
    if kinds and found:
        instead = f"the figures' data lie in {folder} as .csv"
        drawn = figures_of(drawing_page(), instead)
        for kind in kinds:
            for name, picture in zip(names, pictures(drawn, kind, instead), strict=True):
                written.append(folder / f"{name}.{kind}")
                write_whole(written[-1], picture)
    return written


def figures(document: Mapping[str, Any]) -> list[Figure]:
    """The figures of a page in its order, with the data that they show when it opens.

    document: what the page's script draws: settings, and tables as `columnar` makes them
    """
    return list(_figures(_Opening(document)))


class _Opening:
    """The page's data as lines, and what its filters stand at when it opens (js/filters.js)."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.cells = lines(document["cells"])
        self.targets = list(dict.fromkeys(cell["target"] for cell in self.cells))
        self.defaults = document["defaults"]
        few = [cell for cell in self.cells if cell["shots"] != c.FULL]
        self.probe = self.defaults["probe"] or min(
            (cell["probe"] for cell in few or self.cells),
            key=lambda p: (PROBE_ORDER.index(p) if p in PROBE_ORDER else 99, natural_key(p)),
        )
        self.any_few = bool(few)
        usual = set(self.defaults["waysOf"].values())
        self.ways = None if len(usual) > 1 else next(iter(usual), None)  # None: each target's own

    def of_ways(self, cell: Line) -> bool:
        """Of the ways that the page opens with; a target without a usual number of its own has all its classes."""
        return bool(cell["ways"] == (self.ways or self.defaults["waysOf"].get(cell["target"], "all")))

    def visible(self, cell: Line) -> bool:
        return bool(cell["main"]) and cell["split"] == self.defaults["split"]

    def as_filtered(self, cell: Line) -> bool:
        """Of the usual ways, probe, parameters and seed; of the whole train split there is one choice of them."""
        if not (self.visible(cell) and cell["probe"] == self.probe and cell["chosen"]):
            return False
        return cell["shots"] == c.FULL or (self.of_ways(cell) and cell["seed"] == self.defaults["seed"])

    def at_shots(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those lines that are of the number of shots which figures of one number show."""
        return [line for line in found if line["shots"] == self.defaults["shots"]]


def _figures(of: _Opening) -> Iterator[Figure]:
    document = of.document
    # A full probe is a point of the curve where few shots are of all classes, too.
    shown = [
        cell
        for cell in of.cells
        if of.as_filtered(cell) and of.of_ways(cell) and (cell["shots"] != c.FULL or of.any_few)
    ]
    yield from _by_target(of, "shots", shown, CELL_HEADS, _cell_row)
    yield from _by_target(of, "pairs", of.at_shots(lines(document["pairs"])))
    yield from _ranks(of)
    yield from _by_target(of, "crossings", lines(document["crossings"]))
    full = [cell for cell in of.cells if cell["shots"] == c.FULL and of.visible(cell) and cell["chosen"]]
    yield from _by_target(of, "methods", full, CELL_HEADS, _cell_row)
    yield from _nearness(of)
    gains = [
        gain
        for gain in lines(document["gains"])
        if gain["value"] is not None and (gain["shots"] == c.FULL or _is_number(gain["shots"]))
    ]
    for kind in dict.fromkeys(gain["kind"] for gain in gains):
        yield _table(("gains", kind), [gain for gain in gains if gain["kind"] == kind])
    for name, key in (("paper-beside", "paper"), ("transferability", "agreement")):
        if found := lines(document[key]):
            yield _table((name,), found)
    outcomes = [o for o in document["outcomes"] if o["expected_value"] is not None or o["test_mean"] is not None]
    if outcomes:
        yield Figure("expected-and-found", _OUTCOME_HEADS, [[o[head] for head in _OUTCOME_HEADS] for o in outcomes])
    for key in ("scores", "loss") if document["learning"] else ():
        points = [
            [run["run"], step, value]
            for run in document["learning"]
            for step, value in zip(*run[key], strict=True)
        ]  # fmt: skip
        yield Figure(f"learning-{key}", ("run", "step", "value"), points)
    yield from _costs(of)


def _ranks(of: _Opening) -> Iterator[Figure]:
    """Ranks over all targets, then the mean ranks of the diagram, then target by target."""
    ranks, everywhere = of.at_shots(lines(of.document["ranks"])), of.document["allTargets"]
    over_all = [line for line in ranks if line["target"] == everywhere]
    if over_all:
        yield _table(("ranks", everywhere), over_all)
    for critical in of.at_shots(of.document["critical"]):
        means = [[line["name"], line["mean_rank"]] for line in lines(critical["ranks"])]
        yield Figure(file_name("mean-ranks", critical["metric"]), ("backbone", "mean_rank"), means)
    yield from _by_target(of, "ranks", ranks)


def _nearness(of: _Opening) -> Iterator[Figure]:
    """Each filtered cell, with how near its source is and how far it lies above the mean of its target."""
    near = lines(of.document["proximity"])
    cells = [cell for cell in of.at_shots(of.cells) if of.as_filtered(cell)]
    heads = (*CELL_HEADS, "measure", "reference", "proximity", "proximity_low", "proximity_high", "points_to_mean")
    for measure in dict.fromkeys(line["measure"] for line in near):
        for reference in dict.fromkeys(line["reference"] for line in near if line["measure"] == measure):
            known = {
                (line["source"], line["target"]): line
                for line in near
                if (line["measure"], line["reference"]) == (measure, reference) and line["value"] is not None
            }
            found = [(cell, known[key]) for cell in cells if (key := (cell["source"], cell["target"])) in known]
            means: dict[str, list[float]] = {}
            for cell, _ in found:
                means.setdefault(cell["target"], []).append(cell["mean"])
            rows = [
                [*_cell_row(cell), measure, reference, line["value"], line["low"], line["high"],
                 100 * (cell["mean"] - sum(means[cell["target"]]) / len(means[cell["target"]]))]
                for cell, line in found
            ]  # fmt: skip
            if rows:
                yield Figure(file_name("proximity", measure, reference), heads, rows)


def _costs(of: _Opening) -> Iterator[Figure]:
    """Each filtered cell with what it took, and whether nothing cheaper is as good."""
    costs = of.document["costs"]
    kind = next((kind for kind in COST_KINDS if any(cost[kind] is not None for cost in costs)), None)
    if kind is None:
        return
    known = {(cost["label"], cost["target"], cost["shots"]): cost[kind] for cost in costs}
    priced: list[tuple[Line, float]] = []
    for cell in of.at_shots(of.cells):
        tuned = cell["probe"] == c.FINETUNE
        if of.as_filtered(cell) or (tuned and cell["chosen"] and of.visible(cell)):
            cost = known.get((cell["label"], cell["target"], cell["shots"] if tuned else None))
            if cost is not None and cost > 0:
                priced.append((cell, cost))
    for target in of.targets:
        here = [(cell, cost) for cell, cost in priced if cell["target"] == target]
        best, front = -math.inf, set()
        for i in sorted(range(len(here)), key=lambda i: (here[i][1], -here[i][0]["mean"])):
            if here[i][0]["mean"] > best:
                best = here[i][0]["mean"]
                front.add(i)
        rows = [[*_cell_row(cell), cost, "yes" if i in front else "no"] for i, (cell, cost) in enumerate(here)]
        if rows:
            head = "operations" if kind == "flops" else kind
            yield Figure(file_name("cost", target), (*CELL_HEADS, head, "on_front"), rows)


def _by_target(
    of: _Opening,
    kind: str,
    found: list[dict[str, Any]],
    heads: Sequence[str] = (),
    row: Callable[[Line], list[Any]] | None = None,
) -> Iterator[Figure]:
    """A figure a target that has lines; without `heads` all that the lines hold."""
    for target in of.targets:
        here = [line for line in found if line["target"] == target]
        if here:
            whole = _table((kind, target), here)
            yield whole if row is None else Figure(whole.name, heads, [row(line) for line in here])


def _table(name: Sequence[str], found: list[dict[str, Any]]) -> Figure:
    return Figure(file_name(*name), list(found[0]), [list(line.values()) for line in found])


def _cell_row(cell: Line) -> list[Any]:
    return [cell[_CELL_KEYS.get(head, head)] for head in CELL_HEADS]


def lines(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a table as `fastxfer.report.html.columnar` packs it."""
    unpacked = [
        column if isinstance(column, list) else [column["levels"][code] for code in column["codes"]]
        for column in columns.values()
    ]
    return [dict(zip(columns, line, strict=True)) for line in zip(*unpacked, strict=True)]


def file_name(*parts: str) -> str:
    """As the page names a figure's files: letters, digits and ``_.-`` only, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(parts))[:80]


def _apart(names: Sequence[str]) -> list[str]:
    """The same names, a number behind those that came before, also on file systems that do not know capitals."""
    taken: set[str] = set()
    apart = []
    for name in names:
        free, number = name, 1
        while free.casefold() in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free.casefold())
        apart.append(free)
    return apart


def _csv(figure: Figure) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(figure.heads)
    writer.writerows([_safe(value) for value in row] for row in figure.rows)
    return text.getvalue()


def _safe(value: Any) -> Any:
    """A name that starts like a formula must not become one in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
