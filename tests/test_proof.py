"""The tables of docs/proof.md: each row says what, against what and whether it holds, and what doesn't hold is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import proof, published, records, truth
from benchmarks.__main__ import main
from benchmarks.breaking import faults
from benchmarks.breaking.inputs import PIECES, Kind, damaged, fault_of
from benchmarks.breaking.lasting import declared, imported
from benchmarks.breaking.line import Ended


def test_truth_is_a_row_a_claim(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    main(["truth", "--tiny", "--json", "--save"])
    entries = {e["name"]: e for e in json.loads(capsys.readouterr().out)}
    assert {f"truth/preset/{name}" for name in truth.PARITY} < set(entries)
    computed = [e for name, e in entries.items() if name.split("/")[1] in ("penalties", "preset", "splits", "aucs")]
    assert len(computed) >= 12
    for e in computed:
        assert e["claim"]
        assert e["against"]
        assert e["checked"], e
        assert 0 <= e["figure"] <= e["most"]
    # What was counted before is read from the newest results, as it stands there.
    outside = [w for w in records.newest("coverage") if "coverage" in w and not w["checked"]]
    assert entries["truth/coverage/coverage"]["figure"] == len(outside)
    assert entries["truth/coverage/coverage"]["checked"] == (not outside)
    (saved,) = tmp_path.iterdir()
    assert {e["name"] for e in json.loads(saved.read_text())} == set(entries)


def test_a_protocol_that_is_not_the_published_one_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "big_vision", lambda s, y, q, c: np.zeros((len(q), c)))
    world = truth.World(tmp_path, real=False)
    deviation, most = truth.PARITY["big-vision"]
    assert deviation(world, "big-vision") > most


# ---- what is broken on purpose --------------------------------------------------------------------------------------

SHORT = """
import os, socket, sys, time
from pathlib import Path
from benchmarks.breaking import faults
folder, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "full":
    faults.full(folder, 2)
    (folder / "one").write_bytes(b"x")  # made, and written to
    print(faults.writes())
    for attempt in (lambda: (folder / "two").write_bytes(b"x"), lambda: (folder / "deep").mkdir(),
                    lambda: os.rename(folder / "one", folder / "other")):
        try:
            attempt()
        except OSError as error:
            print(error.errno)
    (folder / "one").unlink()
    Path(folder.parent / "beside").write_bytes(b"x")
elif kind == "clock":
    before = time.monotonic()
    faults.clock(3 * 86400)
    print(round((time.time() - float(sys.argv[3])) / 86400), time.monotonic() - before < 60)
else:
    faults.offline()
    for attempt in (socket.socket, lambda: socket.getaddrinfo("localhost", 80)):
        try:
            attempt()
        except OSError as error:
            print(type(error).__name__)
    socket.socketpair()
    print(faults.refused())
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [("full", "2 28 28 28"), ("clock", "3 True"), ("offline", "PermissionError gaierror 2")],
)
def test_faults_reach_every_write_clock_and_socket(kind: str, said: str, tmp_path: Path) -> None:
    import os
    import time

    (tmp_path / "disk").mkdir()
    environment = os.environ | {"LD_PRELOAD": str(faults.library())}
    # Of the package only what is needed: its other rooms take seconds to import.
    lean = SHORT.replace("from benchmarks.breaking import faults", LEAN)
    done = subprocess.run(
        [sys.executable, "-c", lean, str(tmp_path / "disk"), kind, str(time.time())],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == said.split(), done.stderr
    assert list((tmp_path / "disk").iterdir()) == []


LEAN = f"""
import types
for name in ("benchmarks", "benchmarks.breaking", "benchmarks.embeddings"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["benchmarks.embeddings"].CACHE = Path({str(faults.library().parent)!r})
sys.modules["benchmarks.breaking"].__path__ = [{str(Path(faults.__file__).parent)!r}]
from benchmarks.breaking import faults
"""


@pytest.mark.parametrize(
    ("code", "words", "bad"),
    [
        (0, "done", False),
        (1, "Error: labels.csv, row 3: no label", False),
        (2, "Usage: …\nError: no such option", False),
        (1, "nothing is said", True),
        (1, "Error: this should not happen: KeyError: 'x'.", True),
        (70, "Traceback (most recent call last):\nKeyError: 'x'", True),
        (139, "", True),
        (None, "", True),
    ],
)
def test_an_end_is_a_sentence_or_a_fault(code: int | None, words: str, bad: bool) -> None:
    assert bool(Ended(code, words, 1.0).fault) == bad


def test_damage_is_the_same_for_the_same_seed_and_never_none() -> None:
    content = b"path,label,split\n" + b"".join(b"%02d.png,a,train\n" % i for i in range(40))
    made = [damaged(content, np.random.default_rng(seed)) for seed in range(300)]
    assert made == [damaged(content, np.random.default_rng(seed)) for seed in range(300)]
    assert len(set(made)) > 200
    assert sum(one == content for one in made) < 15
    assert any(piece in one for one in made for piece in PIECES[-4:])


def test_a_traceback_and_a_hang_are_told(monkeypatch, tmp_path) -> None:
    from fastxfer import targets

    file = tmp_path / "labels.csv"
    file.write_text("path,label\n")
    kind = Kind("labels.csv", file, ["targets", "add", tmp_path, "--name", "x", "--data-root", tmp_path])
    assert fault_of(kind, b"path,label\na.png,b\n") == ""  # a sentence: there is no such image
    assert file.read_text() == "path,label\n"

    def breaks(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(targets, "add_target", breaks)
    assert "should not happen" in fault_of(kind, b"path,label\n")
    monkeypatch.setattr("benchmarks.breaking.inputs.SECONDS", 1)
    monkeypatch.setattr(targets, "add_target", lambda *_, **__: __import__("time").sleep(30))
    assert "no end within" in fault_of(kind, b"path,label\n")


def test_libraries_that_are_imported_are_declared() -> None:
    assert imported() - declared() == set()
    assert {"numpy", "torch", "zarr", "click"} <= imported()


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_results_say() -> None:
    assert proof.PAGE.read_text(encoding="utf-8") == proof.page(), "run python -m benchmarks.proof"


def test_a_page_of_made_up_results(tmp_path: Path) -> None:
    where = {"device": "a machine", "cores": 2, "load": 0.5, "commit": "c" * 40, "date": "2026-11-30T00:00:00+00:00"}
    claim = {"claim": "x", "against": "y", "most": 1e-6, "figure": 2e-6, "unit": "gap", "checked": False} | where
    broken = {
        "name": "reliability/z",
        "what": "z",
        "cases": 1000,
        "held": 1000,
        "worst": "fine",
        "checked": True,
    } | where
    mutant = {"part": "store", "file": "a.py", "line": 3, "before": " a | b", "after": " a & b"} | where
    (tmp_path / "truth-2026-11-30-c.json").write_text(json.dumps([claim]))
    (tmp_path / "truth-2026-11-29-c.json").write_text(
        json.dumps([claim | {"claim": "superseded", "date": "2026-11-29"}])
    )
    (tmp_path / "reliability-2026-11-30-c.json").write_text(json.dumps([broken]))
    mutants = [
        mutant | {"seed": 0, "killed": True},
        mutant | {"seed": 0, "killed": False, "now": "same", "note": "means the same"},
        mutant | {"seed": 1, "killed": False, "now": "killed", "note": "a test was added"},
        mutant | {"seed": 1, "killed": False},
    ]
    (tmp_path / "mutants-2026-11-30-c.json").write_text(json.dumps(mutants))
    text = proof.page(tmp_path)
    assert "| x | y | ≤ 1e-06 | 2e-06 gap | **no** |" in text
    assert "superseded" not in text
    assert "| z | 1,000 | 1,000 | fine | yes |" in text
    assert "| store | 4 | 1 (25%) | 1 | 1 | 1 |" in text
    assert "| seed 1 | 2 | 0 (0%) | 1 | 0 | 1 |" in text
    assert "| a.py:3 | `a \\| b` | `a & b` | means the same |" in text
    assert "No result yet" in proof.page(tmp_path / "none")
