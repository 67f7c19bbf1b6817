"""The parts of docs/architecture.md that are made of the code: `python tests/rooms.py` writes them anew.

The picture and the table come from the imports, the examples of plug-ins from the files that tests/test_plugins.py uses.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import networkx as nx  # comes with torch
from test_layers import FLOORS, imports, modules, room_of, room_of_import

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
# Heavy libraries that the table names beside the rooms that use them.
HEAVY = ("torch", "timm", "numba", "zarr", "click", "plotly", "umap", "fastxfer._C")
_PART = re.compile(r"(<!-- made of ([^:]*): .*?-->\n).*?(<!-- end -->)", re.DOTALL)


@functools.cache
def import_graph() -> nx.DiGraph:
    """room -> rooms that it imports, and `libraries` of each room."""
    graph = nx.DiGraph()
    for path in modules():
        room = room_of(path)
        if room in ("__init__", "__main__"):
            continue
        graph.add_node(room)
        used = graph.nodes[room].setdefault("libraries", set())
        for name in imports(path):
            used.update(library for library in HEAVY if name == library or name.startswith(f"{library}."))
            other = room_of_import(name)
            if other is not None and other != room:
                graph.add_edge(room, other)
    return graph


def picture() -> str:
    """The floors as boxes, and an arrow for each import that no others imply, but those to the ground floor, which all use."""
    lines = ["```mermaid", "flowchart TD"]
    for number, floor in reversed(list(enumerate(FLOORS, 1))):
        lines.append(f'  subgraph floor{number}["{number}"]')
        lines += sorted(f"    {room}" for room in floor)
        lines.append("  end")
    arrows = nx.transitive_reduction(import_graph()).edges
    lines += sorted(f"  {a} --> {b}" for a, b in arrows if b not in FLOORS[0])
    return "\n".join([*lines, "```"])


def table() -> str:
    """The floors, and beside each room the heavy libraries that it imports."""
    libraries = dict(import_graph().nodes(data="libraries"))
    lines = ["| floor | rooms |", "|---|---|"]
    for number, floor in reversed(list(enumerate(FLOORS, 1))):
        named = [
            f"`{room}`" + (f" ({', '.join(sorted(libraries[room]))})" if libraries[room] else "")
            for room in sorted(floor)
        ]
        lines.append(f"| {number} | {', '.join(named)} |")
    return "\n".join(lines)


def example(file: str) -> Callable[[], str]:
    def show() -> str:
        kind = "toml" if file.endswith(".toml") else "python"
        return f"```{kind}\n{(ROOT / file).read_text(encoding='utf-8')}```"

    return show


MADE: dict[str, Callable[[], str]] = {"the imports": picture, "the floors": table}


def written(page: str) -> str:
    """The page with all its made parts as they should be."""

    def part(match: re.Match[str]) -> str:
        make = MADE.get(match[2]) or example(match[2])
        return f"{match[1]}{make()}\n{match[3]}"

    return _PART.sub(part, page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
