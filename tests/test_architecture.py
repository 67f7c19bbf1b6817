"""What docs/architecture.md shows of the code is the code."""

from __future__ import annotations

import rooms
from test_layers import FLOORS

KINDS = ("probe", "target", "backbone", "metric", "policy")


def test_the_page_shows_the_imports_and_the_files_as_they_are():
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert page == rooms.written(page), "python tests/rooms.py writes it anew"
    for part in (*rooms.MADE, *(f"tests/outside/fastxfer_example/{kind}.py" for kind in KINDS)):
        assert f"<!-- made of {part}:" in page


def test_the_picture_has_every_room_once_and_every_import_by_some_way():
    import networkx as nx

    graph, drawn, called = rooms.import_graph(), nx.DiGraph(), {}
    for line in rooms.picture().splitlines():
        if "[" in line and "subgraph" not in line:
            key, _, names = line.strip().removesuffix('"]').partition('["')
            for name in names.split(" + "):
                assert name not in called
                called[name] = key
        elif "-->" in line:
            drawn.add_edge(*line.strip().split(" --> "))
    assert set(called) == set(graph) == set().union(*FLOORS)
    for a, b in graph.edges:
        if b not in FLOORS[0] and called[a] != called[b]:
            assert nx.has_path(drawn, called[a], called[b]), (a, b)
