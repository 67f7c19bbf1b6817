"""`fastxfer store verify|repair|gc|cp|merge|du|migrate|show|export` as a person types them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_cli_embed import OWN, run, run_json, world  # noqa: F401
from test_store import fill, make_store, make_target
from test_store_upkeep import format_1

import fastxfer.store.verifying as verifying
from fastxfer.cli import main
from fastxfer.cli.common import percent_done
from fastxfer.store import EmbeddingStore


@pytest.fixture
def embedded(world: Path) -> Path:  # noqa: F811
    """Two targets by `net`, in blocks of two rows, and their digest; the folder of big's array."""
    result = run("embed", *OWN, "--target", "big", "small", "--block-rows", "2", "--batch-size", "2")
    assert result.exit_code == 0, result.stderr
    return world / "fastxfer-store/targets/big/embeddings/net"


def flip(file: Path, at: int = 5) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def test_verify_names_array_and_rows_and_repair_computes_exactly_those(embedded: Path) -> None:
    digest = run_json("store", "digest")["digest"]
    assert "sound: 2 arrays, 6 blocks" in run("store", "verify").stderr
    assert run_json("store", "verify", "--all")["sound"]
    before = {p: p.stat().st_mtime_ns for p in embedded.glob("c.*.0")}
    flip(embedded / "c.1.0")
    flip(embedded / "zarr.json")
    result = run("store", "verify", "net", "big")
    assert result.exit_code == 1
    assert "net       big     2 to 3  targets/big/embeddings/net/c.1.0" in result.stdout
    assert "2 problems in 1 arrays, 4 blocks" in result.stderr
    assert run("store", "verify", "net", "small").exit_code == 0
    told = run("store", "verify", "--json")
    assert told.exit_code == 1
    assert [p["rows"] for p in json.loads(told.stdout)["problems"]] == [None, [2, 4]]

    refused = CliRunner().invoke(main, ["store", "repair"], input="n\n", prog_name="fastxfer")
    assert refused.exit_code == 2
    assert "Remove 1 damaged blocks (2 embeddings, to be computed anew)?" in refused.stderr
    assert run("store", "verify").exit_code == 1

    # Code runs only when it is named; until then the rows wait.
    waits = run("store", "repair", "--yes")
    assert waits.exit_code == 0, waits.stderr
    assert (
        "net on big: 2 rows are to be computed by the same `fastxfer embed` again (the architecture is code"
        in waits.stderr
    )
    (entry,) = (e for e in run_json("store", "ls") if e["target"] == "big")
    assert (entry["n_present"], entry["complete"]) == (6, False)
    done = run_json("embed", *OWN, "--target", "big", "--block-rows", "2", "--batch-size", "2")
    assert done["embedded"][0]["embedded"] == 2
    assert run_json("store", "digest")["digest"] == digest

    flip(embedded / "c.3.0")
    again = run_json("store", "repair", "net", "big", "--yes", "--arch", "net.py:build")
    assert [e["embedded"] for e in again["embedded"]] == [2]
    assert run_json("store", "digest")["digest"] == digest
    assert run("store", "verify").exit_code == 0
    after = {p: p.stat().st_mtime_ns for p in embedded.glob("c.*.0")}
    assert {p.name for p in after if after[p] != before[p]} == {"c.1.0", "c.3.0"}
    assert "sound: nothing to repair" in run("store", "repair").stderr

    # Code that was named when the backbone was registered under this name need not be named again.
    assert run("backbones", "add", *OWN[1:], "--name", "net").exit_code == 0
    for words in ((), ("--ckpt", "net")):
        flip(embedded / "c.2.0")
        registered = run_json("store", "repair", "net", "big", "--yes", *words)
        assert [e["embedded"] for e in registered["embedded"]] == [2]
    assert run_json("store", "digest")["digest"] == digest


def test_a_damaged_table_comes_back_from_the_register(embedded: Path) -> None:
    column = embedded.parents[1] / "labels/c/0"
    content = column.read_bytes()
    flip(column)
    assert run("store", "verify").exit_code == 1
    left = run("store", "repair", "--data-root", "elsewhere")
    assert left.exit_code == 1
    assert "not repaired: targets/big: targets/big/labels is damaged" in left.stderr
    assert run_json("store", "repair")["done"] == [
        "targets/big: the table's columns are written anew, from the registered target"
    ]
    assert column.read_bytes() == content


def test_another_checkpoint_is_not_taken_for_lost_rows(embedded: Path) -> None:
    import torch

    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, "other.pt")
    flip(embedded / "c.1.0")
    out = run_json("store", "repair", "--yes", "--arch", "net.py:build", "--ckpt", "other.pt")
    assert out["embedded"] == []
    assert out["to_embed"][0]["rows"] == 2
    assert "'other.pt' is not the checkpoint that 'net' was made with" in out["to_embed"][0]["why"]
    flip(embedded / "c.2.0")
    assert run_json("store", "repair", "--yes", "--no-embed")["to_embed"][0]["why"] == "--no-embed"


def test_show_tells_the_provenance(embedded: Path) -> None:
    told = run_json("store", "show", "net", "big")
    assert told["path"] == "targets/big/embeddings/net"
    assert (told["format"], told["n_images"], told["n_present"], told["complete"]) == (2, 8, 8, True)
    for key in (
        "identity",
        "weights_sha256",
        "preprocessing",
        "code_version",
        "date",
        "target_fingerprint",
        "checkpoint",
    ):
        assert told[key]
    assert not any("sha256" in key and key.startswith("fastxfer") for key in told)
    assert (told["blocks"], told["blocks_present"], told["block_rows"], told["missing_rows"]) == (4, 4, 2, [])
    assert (told["undecodable"], len(told["files_digest"]), told["dtype"]) == ({}, 64, "float16")
    shown = run("store", "show", "net", "big").stdout
    lines = dict(line.strip().split("  ", 1) for line in shown.splitlines() if line.startswith("  "))
    lines = {what: value.strip() for what, value in lines.items()}
    assert lines["identity"] == told["identity"]
    assert lines["weights SHA-256"] == told["weights_sha256"]
    assert lines["architecture"] == "net.py:build"
    assert (lines["input size"], lines["mean"]) == ("3, 12, 12", "0.5, 0.5, 0.5")
    assert (lines["rows"], lines["missing rows"], lines["undecodable"]) == ("8 of 8 (100 %)", "none", "none")
    assert (lines["blocks"], lines["batch"], lines["device"]) == ("4 of 4, of 2 rows", "2", "cpu")
    assert lines["fingerprint"] == told["target_fingerprint"]
    assert lines["files"] == told["files_digest"]
    assert {"fastxfer", "torch", "rate", "forward passes", "begun (UTC)", "pooling", "dtype", "size"} <= set(lines)
    assert "unknown" not in {value for what, value in lines.items() if what != "trained on"}
    assert "More" not in shown  # every attribute has its place


def test_show_and_ls_of_what_is_not_whole(world: Path) -> None:  # noqa: F811
    store = make_store("s", blocks=1, extra="kept")
    store.record_bad("photos", {1: "'a/ä 1.png' is cut short", 9: "'a/ä 9.png' is empty"})
    told = run_json("store", "show", "tiny", "photos", "--store", "s")
    assert told["missing_rows"] == [[4, 8], [8, 10]]
    assert told["undecodable"] == {"1": "'a/ä 1.png' is cut short", "9": "'a/ä 9.png' is empty"}
    shown = run("store", "show", "tiny", "photos", "--store", "s").stdout
    assert re.search(
        r"rows +3 of 8 \(37 %\)\n +missing rows +4 to 7; 8 to 9\n +undecodable +1: 'a/ä 1.png' is cut short; 9: ", shown
    )
    assert re.search(r"More\n  extra +kept", shown)
    head, _, line = run("store", "ls", "--store", "s").stdout.splitlines()
    assert " ".join(head.split()) == "backbone target images dim dtype complete size made (UTC) identity source"
    assert "tiny      photos       8    5  float32  ▰▱▱▱▱ 37 %" in line
    assert " aaaaaaaa " in line


@pytest.mark.parametrize(
    ("done", "of", "words", "bar"),
    [
        (0, 8, "0 %", "▱▱▱▱▱ 0 %"),
        (9999, 10000, "99 %", "▰▰▰▰▱ 99 %"),
        (8, 8, "100 %", "100 %"),
        (0, 0, "100 %", "100 %"),
    ],
)
def test_percent_done_says_100_only_of_what_is_whole(done: int, of: int, words: str, bar: str) -> None:
    assert (percent_done(done, of), percent_done(done, of, bar=True)) == (words, bar)


def test_gc_du_cp_merge(world: Path) -> None:  # noqa: F811
    ours = make_store("ours", blocks=1)
    theirs = make_store("theirs")
    fill(theirs, make_target(name="rays"), backbone="second")
    partial = Path("ours/targets/x.abc.partial")
    partial.write_bytes(b"half")
    os.utime(partial, (1, 1))
    assert "1 could go, 4 B: add --yes" in run("store", "gc", "--store", "ours").stderr
    assert partial.exists()
    assert run_json("store", "gc", "--store", "ours", "--yes")["leftovers"][0]["bytes"] == 4
    assert not partial.exists()
    assert "nothing is left over" in run("store", "gc", "--store", "ours").stderr

    assert run_json("store", "cp", "tiny", "photos", "--to", "third", "--store", "ours")["rows"] == 4
    assert run("store", "cp", "nobody", "photos", "--to", "fourth", "--store", "ours").exit_code == 2
    assert not Path("fourth").exists()
    assert [e["rows"] for e in run_json("store", "merge", "theirs", "--store", "ours")] == [6, 10]
    assert ours.digest() == theirs.digest()
    fill(EmbeddingStore.open("other", mode="a"), make_target(), identity="b" * 64)
    refused = run("store", "merge", "other", "--store", "ours")
    assert refused.exit_code == 1
    assert "nothing was merged; 1 of 1 arrays don't fit" in refused.stderr

    used = run_json("store", "du", "--store", "ours")
    assert {(u["target"], u["backbone"]) for u in used} == {
        ("photos", None), ("photos", "tiny"), ("rays", None), ("rays", "second"),
    }  # fmt: skip
    assert "in all" in run("store", "du", "--store", "ours").stderr


def test_migrate_and_what_it_was_before(world: Path) -> None:  # noqa: F811
    format_1(Path("old"), make_target())
    digest = run_json("store", "digest", "--store", "old")["digest"]
    assert run_json("store", "ls", "--store", "old")[0]["complete"]
    refused = run("store", "verify", "--store", "old")
    assert refused.exit_code == 1
    assert "fastxfer store migrate --store old" in refused.stderr
    assert run_json("store", "migrate", "--store", "old") == {"store": "old", "format": 2, "blocks": 3}
    assert "nothing was to do" in run("store", "migrate", "--store", "old").stderr
    assert run_json("store", "digest", "--store", "old")["digest"] == digest
    assert run("store", "verify", "--store", "old").exit_code == 0


def test_export_by_suffix(world: Path) -> None:  # noqa: F811
    make_store("s")
    for name in ("x.npz", "x.parquet", "x.npy"):
        assert run_json("store", "export", "tiny", "photos", "--out", name, "--store", "s")["out"] == name
    assert np.load("x.npy", mmap_mode="r").shape == (10, 5)


@pytest.mark.parametrize("words", [("verify", "net"), ("verify", "net", "big", "--all"), ("repair", "net")])
def test_one_array_or_all(world: Path, words: tuple[str, ...]) -> None:  # noqa: F811
    result = run("store", *words)
    assert result.exit_code == 2
    assert "name BACKBONE TARGET, or --all" in result.stderr


def test_a_read_error_is_no_damage_to_remove(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = verifying.files.read

    def fail(store: Any, key: str) -> bytes | None:
        if key.endswith("c.1.0"):
            raise OSError(5, os.strerror(5), key)
        return true(store, key)

    monkeypatch.setattr(verifying.files, "read", fail)
    result = run("store", "repair", "--yes")
    assert result.exit_code == 1
    assert (
        "not repaired: 'net' on 'big', rows 2 to 3: targets/big/embeddings/net/c.1.0: Input/output error"
        in result.stderr
    )
    assert (embedded / "c.1.0").exists()
