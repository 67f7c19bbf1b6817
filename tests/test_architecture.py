"""What docs/architecture.md shows of the code is the code."""

from __future__ import annotations

import networkx as nx
import rooms
from test_layers import FLOORS

KINDS = ("probe", "target", "backbone", "metric", "policy")


def test_the_page_shows_the_imports_and_the_files_as_they_are():
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert page == rooms.written(page), "python tests/rooms.py writes it anew"
    for part in (*rooms.MADE, *(f"tests/outside/fastxfer_example/{kind}.py" for kind in KINDS)):
        assert f"<!-- made of {part}:" in page


def test_no_room_needs_one_that_needs_it():
    assert list(nx.simple_cycles(rooms.import_graph())) == []


def test_the_picture_has_every_room_once_and_every_import_by_some_way():
    graph, drawn = rooms.import_graph(), nx.DiGraph()
    shown = [line.strip() for line in rooms.picture().splitlines() if line.startswith("    ")]
    drawn.add_edges_from(line.strip().split(" --> ") for line in rooms.picture().splitlines() if "-->" in line)
    assert sorted(shown) == sorted(graph) == sorted(set().union(*FLOORS))
    for a, b in graph.edges:
        assert b in FLOORS[0] or nx.has_path(drawn, a, b), (a, b)
