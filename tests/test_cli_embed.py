"""`fastxfer embed` and `fastxfer store` as a person types them."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from PIL import Image

from fastxfer.cli import main
from fastxfer.cli.embed import parse_arch_args
from fastxfer.errors import UsageError
from fastxfer.store import EmbeddingStore

NETWORK = """
import torch
import zarr
class Net(torch.nn.Module):
    input_size = (3, 12, 12)
    def __init__(self, width=4):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, 2)
    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))
def build(width=4):
    return Net(width)
"""


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-evil",)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two targets (cats and dogs, 8 and 4 images) and a user's own network."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    for target, count in (("big", 4), ("small", 2)):
        for label in ("cat", "dog"):
            for split in ("train", "test"):
                (tmp_path / target / split / label).mkdir(parents=True)
                for i in range(count // 2):
                    pixels = rng.integers(0, 256, (16, 14, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / target / split / label / f"{i}.png")
        result = run("targets", "add", tmp_path / target, "--name", target)
        assert result.exit_code == 0, result.stderr
    (tmp_path / "net.py").write_text(NETWORK)
    torch.manual_seed(0)
    torch.save({"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4)}, tmp_path / "net.pt")
    return tmp_path


OWN = ("--ckpt", "net.pt", "--arch", "net.py:build", "--mean", "0.5", "--std", "0.5")


def test_a_log_tells_rate_and_what_the_time_goes_to(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastxfer.progress.LOG_EVERY_SECONDS", 0.0)
    told = run("embed", *OWN, "--target", "big").stderr
    assert re.search(
        r"embed net on big: 8/8 images, [\d,.]+ images/s, took 0:00:\d\d; .*\b(decode|forward|write) \d+ %", told
    )


def test_embed_list_digest_export_remove(world: Path) -> None:
    result = run("embed", *OWN, "--target", "big", "small", "--source", "imagenet1k")
    assert result.exit_code == 0, result.stderr
    assert "big" in result.stdout
    listed = run_json("store", "ls")
    assert [(e["backbone"], e["target"], e["n_images"], e["dim"], e["dtype"]) for e in listed] == [
        ("net", "big", 8, 4, "float16"),
        ("net", "small", 4, 4, "float16"),
    ]
    assert all(e["complete"] and e["source"] == "imagenet1k" and e["bytes"] > 0 and e["date"] for e in listed)
    shown = run("store", "ls")
    assert shown.exit_code == 0
    assert "small" in shown.stdout

    digest = run_json("store", "digest")["digest"]
    assert run("store", "digest").stdout.strip() == digest
    assert run("embed", *OWN, "--target", "small", "big", "--store", "other").exit_code == 0
    assert run_json("store", "digest", "--store", "other")["digest"] == digest

    assert run("store", "export", "net", "big", "--out", "big.npz").exit_code == 0
    with np.load("big.npz") as npz:
        assert npz["embeddings"].shape == (8, 4)
        assert npz["class_names"].tolist() == ["cat", "dog"]
        assert sorted(npz["split"].tolist()) == ["test"] * 4 + ["train"] * 4
        assert [str(i).split("/")[-2] for i in npz["image_id"]] == [("cat", "dog")[k] for k in npz["labels"]]

    refused = CliRunner().invoke(main, ["store", "rm", "net", "big"], input="n\n", prog_name="fastxfer")
    assert refused.exit_code == 2
    assert len(run_json("store", "ls")) == 2
    assert run("store", "rm", "net", "big", "--yes").exit_code == 0
    assert [e["target"] for e in run_json("store", "ls")] == ["small"]
    assert run("store", "rm", "--target", "small", "--yes").exit_code == 0
    assert run_json("store", "ls") == []
    assert EmbeddingStore.open("fastxfer-store").targets() == ["big"]


def test_json_is_one_document_and_a_second_run_does_nothing(world: Path) -> None:
    first = run_json(
        "embed", *OWN, "--target", "small", "--arch-arg", "width=4", "--name", "mine", "--dtype", "float32"
    )
    assert first["backbone"] == "mine"
    assert first["arch_args"] == {"width": 4}
    assert first["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert first["embedded"][0]["state"] == "embedded"
    again = run_json(
        "embed", *OWN, "--target", "small", "--arch-arg", "width=4", "--name", "mine", "--dtype", "float32"
    )
    assert again["embedded"][0]["state"] == "complete already"
    assert again["identity"] == first["identity"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("--ckpt", "r152x4.pt", "--target", "big"),
            1,
            "'r152x4.pt' is not there. It would come from: `fastxfer pretrain",
        ),
        (("--ckpt", "resnet5", "--target", "big"), 2, "Did you mean: resnet5"),
        ((*OWN, "--target", "bg"), 2, "unknown target 'bg' in fastxfer-data. Did you mean: big?"),
        (
            ("--ckpt", "evil.pt", *OWN[2:], "--target", "big"),
            1,
            "evil.pt is refused: besides weights it holds Python code (posix.mkdir",
        ),
        (("--ckpt", "cut.pt", *OWN[2:], "--target", "big"), 1, "cut.pt is no whole"),
        ((*OWN, "--target", "big", "--store", "newer"), 1, "'newer' was made by a newer fastxfer (format 7, this one"),
        ((*OWN,), 2, "Missing option '--target'"),
        ((*OWN, "--target", "big", "--arch-arg", "width"), 2, "--arch-arg width: expected name=value"),
        (
            (*OWN, "--target", "big", "--arch-arg", "width=5"),
            1,
            "conv.weight is (4, 3, 3, 3) in the file, (5, 3, 3, 3) in the network",
        ),
        ((*OWN, "--target", "big", "--input-size", "3x8x8"), 2, "--input-size 3x8x8: expected numbers with commas"),
        ((*OWN, "--target", "big", "--pool", "before"), 2, "--pool before is for BiT"),
        ((*OWN, "--target", "big", "--name", "../up"), 2, "backbone name '../up'"),
        (("--ckpt", "net.pt", "--target", "big"), 2, "which architecture is net.pt?"),
        (
            ("--ckpt", "net.pt", "--arch", "net.py:build", "--target", "big"),
            2,
            "does not say its mean, std: give --mean 0.5 --std 0.5",
        ),
    ],
)
def test_bad_requests(world: Path, words: tuple[str, ...], code: int, message: str) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "extra": Evil()}, "evil.pt")
    (world / "cut.pt").write_bytes((world / "net.pt").read_bytes()[:400])
    zarr.create_group(world / "newer", attributes={"fastxfer_format": 7})
    result = run("embed", *words)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not Path("fastxfer-store/targets").exists()
    assert not Path("made-by-evil").exists()


def test_a_bad_image_stops_or_is_skipped(world: Path) -> None:
    (world / "big/train/cat/0.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    result = run("embed", *OWN, "--target", "big")
    assert result.exit_code == 1
    assert "1 of 8 images cannot be used; nothing was computed" in result.stderr
    assert "cat/0.png" in result.stderr
    document = run_json("embed", *OWN, "--target", "big", "--skip-bad")
    assert (document["embedded"][0]["n_images"], document["embedded"][0]["bad"]) == (7, 1)
    assert run_json("store", "ls")[0]["n_images"] == 7


def test_a_full_disk_is_one_line_and_the_next_run_finishes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, written = os.fsync, Path("fastxfer-store/targets/big/embeddings/net")

    def full(handle: int) -> None:
        if len(list(written.glob("c.*.0"))) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        result = run("embed", *OWN, "--target", "big", "--block-rows", "1")
    assert result.exit_code == 1
    assert "no space left on the disk" in result.stderr
    assert "What was finished is kept: free some space and run it again" in result.stderr
    assert [p for p in Path("fastxfer-store").rglob("*") if ".partial" in p.name] == []
    (half,) = run_json("store", "ls")
    assert 0 < half["n_present"] < 8
    assert not half["complete"]
    assert run_json("embed", *OWN, "--target", "big", "--block-rows", "1")["embedded"][0]["state"] == "embedded"
    run("embed", *OWN, "--target", "big", "--store", "other")
    assert run_json("store", "digest")["digest"] == run_json("store", "digest", "--store", "other")["digest"]


def test_another_backbone_under_the_same_name(world: Path) -> None:
    assert run("embed", *OWN, "--target", "small").exit_code == 0
    result = run("embed", *OWN, "--target", "small", "--mean", "0.4")
    assert result.exit_code == 1
    assert "preprocessing differs" in result.stderr
    assert run("embed", *OWN, "--target", "small", "--mean", "0.4", "--name", "net-mean04").exit_code == 0
    assert [e["backbone"] for e in run_json("store", "ls")] == ["net", "net-mean04"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("ls", "--store", "nowhere"), 1, "no store at 'nowhere'"),
        (("export", "net", "tiny", "--out", "x.npz"), 2, "holds no target 'tiny'"),
        (("export", "nett", "small", "--out", "x.npz"), 2, "Did you mean: net?"),
        (("export", "net", "small", "--out", "x.csv"), 2, "expected a name ending in .npz, .parquet, .npy"),
        (("rm", "net"), 2, "name BACKBONE TARGET, or --target NAME"),
        (("rm",), 2, "name BACKBONE TARGET, or --target NAME"),
        (("rm", "nett", "small", "--yes"), 2, "Did you mean: net?"),
        (("rm", "--target", "tiny", "--yes"), 2, "holds no target 'tiny'. It holds: small"),
    ],
)
def test_store_says_what_is_wrong(world: Path, words: tuple[str, ...], code: int, message: str) -> None:
    assert run("embed", *OWN, "--target", "small").exit_code == 0
    result = run("store", *words)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert len(run_json("store", "ls")) == 1


def test_arch_args_are_values() -> None:
    words = ("pad_type=same", "depth=3", "layers=[1, 2]", "rate=0.5", "flag=True", "name='3'")
    assert parse_arch_args(words) == {
        "pad_type": "same",
        "depth": 3,
        "layers": [1, 2],
        "rate": 0.5,
        "flag": True,
        "name": "3",
    }
    with pytest.raises(UsageError, match="expected name=value"):
        parse_arch_args(("a-b=3",))


def test_a_plan_foretells_and_writes_nothing(world: Path) -> None:
    plans = run_json("embed", *OWN, "--target", "big", "--plan")
    (part,) = plans["parts"]
    assert not Path("fastxfer-store").exists()
    assert part["n_missing"] == part["n_images"] == 8
    assert part["bytes"] == part["n_images"] * part["dim"] * 2 == plans["bytes"]
    assert part["decode_ms"] > 0
    assert part["forward_ms"] > 0
    assert plans["seconds"] == pytest.approx(part["seconds"])
    assert plans["cache_bytes"] == 8 * 3 * 12 * 12
    told = run("embed", *OWN, "--target", "big", "small", "--plan")
    assert "8 of 8" in told.stdout
    assert "Nothing was written." in told.stdout
    run_json("embed", *OWN, "--target", "big")
    assert run_json("embed", *OWN, "--target", "big", "--plan")["parts"][0]["n_missing"] == 0


def test_several_checkpoints_in_one_command(world: Path) -> None:
    """One pass; an --arch and --source for all or one each, a --name each; a count that doesn't fit is refused."""
    both = ("--ckpt", "net.pt", "net.pt", "--target", "big", "--mean", "0.5", "--std", "0.5")
    done = run_json(
        "embed", *both, "--arch", "net.py:build", "net.py:build", "--name", "one", "two", "--source", "made"
    )
    assert [(e["backbone"], e["embedded"]) for e in done["embedded"]] == [("one", 8), ("two", 8)]
    assert [b["source"] for b in done["backbones"]] == ["made", "made"]
    shared = run_json("embed", *both, "--arch", "net.py:build", "--name", "one", "two", "--source", "made")
    assert [e["embedded"] for e in shared["embedded"]] == [0, 0]
    result = run("embed", *both, "--arch", "net.py:build", "--name", "one")
    assert result.exit_code == 2
    assert "--name: 1 given for 2 --ckpt; expected none, or one a checkpoint" in result.stderr
    # A registered one needs no words; the other has its own.
    assert run("backbones", "add", *OWN[1:], "--name", "known").exit_code == 0
    mixed = ("--ckpt", "known", "net.pt", "--target", "small", "--arch", "-", "net.py:build", "--name", "-", "three")
    done = run_json("embed", *mixed, "--mean", "0.5", "--std", "0.5")
    assert [(e["backbone"], e["embedded"]) for e in done["embedded"]] == [("known", 4), ("three", 4)]
