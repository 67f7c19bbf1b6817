"""The demo itself, smaller: every stage in order, on real images; and a second run that finds everything done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastxfer.results import ResultStore
from tests.forks import run_command


def demo(out: Path) -> dict[str, Any]:
    said, log = out.with_suffix(".json"), out.with_suffix(".log")
    code = run_command("demo", "--small", "--json", "--out", str(out), out=said, err=log)
    assert code == 0, log.read_text()[-3000:]
    return json.loads(said.read_text())  # one document, nothing else


@pytest.mark.slow
def test_the_demo_walks_the_whole_road_and_then_finds_it_walked(tmp_path: Path) -> None:
    first = demo(tmp_path / "demo")
    assert first["targets"] == ["digits", "digits-unseen", "faces", "textures"]
    learned, cost, otherwise = first["sentences"]
    assert "Left out" not in learned
    assert "digits, seen in training: " in learned
    assert "for 12 embeddings, " in cost
    assert "for 11,520 few-shot classifiers (" in cost
    assert "for 24 full probes " in cost
    assert "each of the 12 backbone-target pairs on its whole train split" in otherwise
    assert "each of the 2,880 episodes of the 48 few-shot cells" in otherwise  # 3 · 4 · 4 cells of 60
    assert first["classifiers"] == 3 * 4 * 4 * 4 * 60  # backbones, targets, shots, probes, episodes
    assert (tmp_path / "demo" / "report" / "index.html").stat().st_size < 10 * 2**20
    rows = ResultStore.open(tmp_path / "demo" / "store-results").read()
    assert {"logistic", "ridge", "prototype", "knn", "finetune"} == set(rows["probe"])
    logistic = rows[(rows["probe"] == "logistic") & (rows["shots"] == "10") & (rows["target"] == "digits")]
    assert logistic.groupby("backbone", observed=True)["value"].mean()["efficientnet-lite0"] > 0.5  # chance: 0.2

    demo(tmp_path / "demo")
    assert len(ResultStore.open(tmp_path / "demo" / "store-results").read()) == len(rows)
