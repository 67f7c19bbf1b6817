"""`fastxfer backbones` as a person types it: what is there, and names that stand for a checkpoint with its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from fastxfer.backbones import load_backbone
from fastxfer.errors import DataError
from fastxfer.registered import find_registered, load_named
from fastxfer.store import EmbeddingStore
from tests.test_cli_embed import run, run_json, world

__all__ = ["world"]
OPTIONS = ("--mean", "0.25", "--std", "0.5", "--arch-arg", "width=4", "--source", "nih14")


def test_a_registered_name_brings_all_its_options(world: Path) -> None:
    added = run_json("backbones", "add", "net.pt", "--arch", "net.py:build", *OPTIONS, "--name", "mine")
    assert (added["name"], added["dim"], added["source"]) == ("mine", 4, "nih14")
    done = run_json("embed", "--ckpt", "mine", "--target", "small")  # the code was named when it was added
    assert done["backbone"] == "mine"
    assert done["source"] == "nih14"
    assert done["arch_args"] == {"width": 4}
    assert done["preprocessing"]["mean"] == [0.25] * 3
    assert done["checkpoint"] == str(world / "net.pt")
    by_hand = load_backbone(
        "net.pt", arch="net.py:build", arch_args={"width": 4}, preprocessing={"mean": 0.25, "std": 0.5}
    )
    assert done["identity"] == added["identity"] == by_hand.identity
    other = run_json("embed", "--ckpt", "mine", "--target", "small", "--mean", "0.5", "--precision", "bfloat16")
    assert other["backbone"] == "mine-bfloat16"
    assert other["preprocessing"]["mean"] == [0.5] * 3
    assert other["preprocessing"]["std"] == [0.5] * 3
    EmbeddingStore.open("fastxfer-store", mode="a").remove("mine-bfloat16", "small")

    listed = run_json("backbones", "ls")
    assert [(b["name"], b["registered"], b["targets"], b["identity"]) for b in listed] == [
        ("mine", True, ["small"], added["identity"])
    ]
    shown = run_json("backbones", "show", "mine")
    assert shown == added
    assert shown["parameters"] == 4 * 3 * 9 + 4
    assert shown["flops"] == 2 * 5 * 5 * 4 * 27
    table = run("backbones", "ls")
    assert table.exit_code == 0
    assert "mine" in table.stdout


def test_code_or_weights_that_changed_are_refused_until_added_again(world: Path) -> None:
    add = ("backbones", "add", "net.pt", "--arch", "net.py:build", "--mean", "0.5", "--std", "0.5", "--name", "mine")
    assert run(*add).exit_code == 0
    code = world / "net.py"
    code.write_text(code.read_text() + "\nopen('it-ran', 'w')\n")
    for words in (("embed", "--ckpt", "mine", "--target", "small"), ("backbones", "show", "mine")):
        refused = run(*words)
        assert refused.exit_code == 1
        assert "net.py has changed since it was added, so it is not run" in refused.stderr
        assert f"fastxfer backbones add {world / 'net.pt'} --arch {code}:build --name mine --replace" in refused.stderr
    assert not (world / "it-ran").exists()
    assert run("backbones", "ls").exit_code == 0
    again = run(*add)
    assert again.exit_code == 2
    assert "'mine' is registered already: another --name, or --replace" in again.stderr
    assert run(*add, "--replace").exit_code == 0
    assert run("backbones", "show", "mine").exit_code == 0
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, "net.pt")
    with pytest.raises(DataError, match=r"the weights in .*net\.pt are not those that were added"):
        load_named("mine", Path("fastxfer-data"))
    code.unlink()
    gone = run("backbones", "show", "mine")
    assert "net.py is not there any more" in gone.stderr


def test_what_the_store_holds_is_shown_without_running_anything(world: Path) -> None:
    own = ("--ckpt", "net.pt", "--arch", "net.py:build", "--mean", "0.5", "--std", "0.5")
    assert run("embed", *own, "--target", "small", "big", "--name", "theirs").exit_code == 0
    (world / "net.py").unlink()
    shown = run_json("backbones", "show", "theirs")
    assert shown["targets"] == ["big", "small"]
    assert shown["architecture"] == "net.py:build"
    (listed,) = run_json("backbones", "ls")
    assert (listed["name"], listed["registered"], listed["dim"]) == ("theirs", False, 4)


def test_a_file_is_shown_and_names_that_would_mislead_are_refused(world: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), "r.pt")
    shown = run_json("backbones", "show", "r.pt", "--arch", "resnet18", "--input-size", "3,64,64")
    assert (shown["architecture"], shown["dim"], shown["parameters"]) == ("resnet18", 512, 11_176_512)
    # 1.82 billion multiply-adds at 224 x 224 (torchvision's table of models), here without the classifier
    full = run_json("backbones", "show", "r.pt", "--arch", "resnet18", "--input-size", "3,224,224")
    assert full["flops"] / 2 == pytest.approx(1.82e9, rel=0.01)
    for name, message in (("resnet18", "taken for timm's"), ("x.pt", "or for a file"), ("a/b", "backbone name 'a/b'")):
        refused = run("backbones", "add", "r.pt", "--arch", "resnet18", "--name", name)
        assert refused.exit_code == 2, name
        assert message in refused.stderr
    unknown = run("backbones", "show", "resnet5")
    assert unknown.exit_code == 2
    assert "unknown checkpoint name 'resnet5'" in unknown.stderr


def test_a_damaged_or_newer_entry_is_said(world: Path) -> None:
    assert run("backbones", "add", "net.pt", "--arch", "net.py", "--mean", "0.5", "--std", "0.5").exit_code == 0
    path = Path("fastxfer-data/backbones/net.json")
    content = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(DataError, match=r"net\.json: not an entry written by fastxfer, or damaged"):
        find_registered("net", Path("fastxfer-data"))
    path.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(DataError, match=r"net\.json: written by a newer fastxfer \(format 99"):
        find_registered("net", Path("fastxfer-data"))
