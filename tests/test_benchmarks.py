"""The benchmarks run, check, and say what they promise; at a size that takes seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import fewshot
from benchmarks.__main__ import main
from benchmarks.embeddings import embeddings

FIELDS = [
    "name",
    "ways",
    "shots",
    "dim",
    "pool",
    "episodes",
    "ours_ms",
    "peer",
    "peer_ms",
    "ratio",
    "ratio_per_core",
    "checked",
    "threads",
    "device",
    "commit",
    "date",
]


def test_fewshot_entries(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path)
    assert main(["fewshot", "--tiny", "--json", "--save"]) == 0
    out = capsys.readouterr().out
    entries = json.loads(out)
    assert [e["name"] for e in entries] == ["fewshot/5w1s", "fewshot/5w5s", "fewshot/20w5s", "fewshot/20w20s"]
    for e in entries:
        assert set(FIELDS) <= set(e)
        assert e["checked"]
        assert 0 < abs(e["largest_gap"]) <= 1e-6
        assert e["ratio"] == pytest.approx(e["peer_ms"] / e["ours_ms"])
        assert e["ratio_per_core"] == pytest.approx(e["peer_core_ms"] / e["ours_core_ms"])
        assert 0 < e["pool_ms_per_episode"] < e["ours_ms"]
        assert "synthetic" in e["embeddings"]
    (saved,) = tmp_path.iterdir()
    assert json.loads(saved.read_text()) == entries


def test_a_wrong_answer_is_noticed(monkeypatch, capsys):
    right = fewshot._ours

    def wrong(pool, episodes, l2):
        return right(pool, episodes, l2 * 1.05)

    monkeypatch.setattr(fewshot, "_ours", wrong)
    monkeypatch.setattr(fewshot, "WORK", [(5, 5)])
    assert main(["fewshot", "--tiny"]) == 1
    assert "NO" in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fewshots"])
    assert stop.value.code == 2
    assert "unknown benchmark 'fewshots': choose among fewshot" in capsys.readouterr().err


def test_synthetic_embeddings_say_so():
    x, labels, words = embeddings(40, 30, synthetic=True)
    assert x.shape == (40, 30)
    assert x.dtype == np.float32
    assert np.bincount(labels).tolist() == [2] * 20
    assert "synthetic" in words
