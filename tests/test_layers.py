"""The house's floors: imports go only to a lower one, and each heavy library is let in through one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    set(rooms.split())
    for rooms in (
        "errors files progress images backend crew stopping plugins",
        "metrics targets store episodes results reference plans transforms projection budgets frames",
        "ops ops_full backbones clipping batches protocol statistics hyperrule choosing influences ranks holdings",
        "training probes estimators embed registered until proximity paper",
        "evaluation full_splits finetune presets comparing",
        "selection audit scale transferability",
        "report",
        "demo study exports doctor",
        "cli pretrain",
    )
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The noun that all rooms share lives in targets/; the kinds of rows in results/: same floor, looked at sideways.
SIDEWAYS = {
    ("episodes", "targets"),
    ("store", "targets"),
    ("ops", "ops_full"),
    ("ops_full", "reference"),
    ("cli", "pretrain"),
    ("backend", "errors"),
    ("images", "files"),
    ("plugins", "errors"),
    ("images", "errors"),
    ("images", "progress"),
    ("embed", "training"),
    ("statistics", "results"),
    ("full_splits", "evaluation"),
    ("probes", "estimators"),
    ("report", "transferability"),
}
DOORS = {
    "torch": {
        "backbones",
        "batches",
        "clipping",
        "embed",
        "training",
        "finetune",
        "pretrain",
        "ops",
        "ops_full",
        "exports",
        "doctor",
    },
    "zarr": {"store"},
    "click": {"cli"},
    "plotly": {"report"},
    "umap": {"projection"},
    "fastxfer._C": {"backend"},
}


def modules() -> list[Path]:
    return sorted([*ROOT.glob("fastxfer/**/*.py"), *ROOT.glob("pretrain/**/*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__main__":
        return "__main__"
    return "pretrain" if parts[0] == "pretrain" else parts[1]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, those inside functions too; type-checking blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of_import(name: str) -> str | None:
    """The room that a name is imported from; None if it isn't one of ours."""
    first, *rest = name.split(".")
    if first == "fastxfer" and rest and rest[0] not in ("__version__", "_C"):
        return rest[0]
    return "pretrain" if first == "pretrain" else None


def violations(path: Path) -> Iterator[str]:
    room = room_of(path)
    if room in ("__init__", "__main__"):  # the package's face may name any room
        return
    for name in imports(path):
        for library, rooms in DOORS.items():
            if (name == library or name.startswith(f"{library}.")) and room not in rooms:
                yield f"{room} imports {library}, which belongs to {', '.join(sorted(rooms))}"
        other = room_of_import(name)
        if other is None:
            continue
        if other != room and FLOOR[other] >= FLOOR[room] and (room, other) not in SIDEWAYS:
            yield f"{room} imports {other}, which is not on a lower floor"


def test_every_room_has_a_floor():
    assert {room_of(p) for p in modules()} - {"__init__", "__main__"} <= set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path):
    assert list(violations(path)) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("fastxfer/metrics.py", "from fastxfer.evaluation import evaluate", "metrics imports evaluation"),
        ("fastxfer/store/new.py", "def f():\n    import torch", "store imports torch"),
        ("fastxfer/report/new.py", "import click.core", "report imports click"),
        ("fastxfer/probes.py", "from fastxfer import _C", "probes imports fastxfer._C"),
        ("fastxfer/finetune.py", "import pretrain.loop", "finetune imports pretrain"),
    ],
)
def test_a_shortcut_is_noticed(tmp_path, monkeypatch, file, source, found):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert any(v.startswith(found) for v in violations(path))


def test_fewshot_starts_without_what_is_slow_to_load():
    import subprocess
    import sys

    code = (
        "import sys; import fastxfer.evaluation, fastxfer.until, fastxfer.cli, fastxfer.cli.fewshot;"
        "print([m for m in ('scipy.stats', 'scipy.optimize') if m in sys.modules]);"
        "import fastxfer.selection;"
        "print([m for m in ('torch', 'timm', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[]", "[]"]
