"""Several processes pre-train one network: the same losses as one, whatever the number; errors before work is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastxfer.batches import Group
from fastxfer.errors import UsageError
from fastxfer.targets import Target
from pretrain.checkpoint import read_checkpoint
from pretrain.ranks import check_shares
from pretrain.recipe import Recipe
from pretrain.source import open_source
from tests.together import clip_in_shares, come, free_port, photos, run, server, told

# Batches of 10 images: a share is 5 images, or 2 and 3 of four processes; micro-batches of 2 inside. A smooth activation: at
# the corner of a ReLU the last bit of a sum would decide over a whole gradient, and runs would part for no reason.
RECIPE = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [64], "stem_chs": 32, "bottle_ratio": 0.5, "act_layer": "silu"},
    image_size=16,
    batch_size=10,
    micro_batch=2,
    lr=1.0,
    warmup_epochs=0.0,
    agc=0.01,
    augment="crop",
)


def recipe(target: Target, **changes: Any) -> Recipe:
    """50 steps on it."""
    return replace(RECIPE, epochs=499 / len(open_source(target).train.paths), **changes)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Target]:
    folder = tmp_path_factory.mktemp("photos")
    return {many: photos(folder / str(many), multi_label=many) for many in (False, True)}


@pytest.fixture(scope="module")
def alone(sources: dict[bool, Target], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """What one process made of them, whole batches at once."""
    folder = tmp_path_factory.mktemp("alone")
    for many, target in sources.items():
        assert run(1, recipe(target, micro_batch=0), target, folder / f"{many}.pt") == [0]
    return {many: folder / f"{many}.pt" for many in sources}


def same_run(a: Path, b: Path) -> None:
    first, second = told(a), told(b)
    assert len(first["losses"]) == 50
    np.testing.assert_allclose(first["losses"], second["losses"], rtol=1e-5, atol=1e-5)
    assert first["losses"][-1] < first["losses"][0] - 0.01  # the weights have moved by a thousand times what is allowed
    for x, y in zip(first["lines"], second["lines"], strict=True):
        assert x["val_loss"] == pytest.approx(y["val_loss"], rel=1e-4)
    x, y = (read_checkpoint(path)["model"] for path in (a, b))
    assert x.keys() == y.keys()
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "multi_label", "parallel"),
    [(2, False, "ddp"), (2, True, "ddp"), (4, True, "ddp"), (2, True, "fsdp")],
)
def test_two_rank_and_four_lose_as_one_does(
    count: int, multi_label: bool, parallel: str, sources: dict[bool, Target], alone: dict[bool, Path], tmp_path: Path
) -> None:
    target = sources[multi_label]
    assert run(count, recipe(target, parallel=parallel), target, tmp_path / "together.pt") == [0] * count
    same_run(alone[multi_label], tmp_path / "together.pt")


def of_slurm(rank: int, count: int, port: int) -> dict[str, str]:
    """What srun sets, and a `scontrol` that knows the nodes."""
    words = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": count, "SLURM_LOCALID": rank, "SLURM_JOB_ID": port - 20_000}
    plain = {word: str(value) for word, value in words.items()}
    return {**plain, "SLURM_STEP_NODELIST": "node[07-08]", "PATH": os.environ["FAKE_SCONTROL"], "SLURM_STEP_ID": "0"}


def test_two_rank_under_slurm(sources: dict[bool, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames node[07-08]' ] && echo 127.0.0.1 && echo 127.0.0.2\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("FAKE_SCONTROL", f"{scontrol.parent}:/bin:/usr/bin")
    short = replace(RECIPE, epochs=1.0)
    assert run(2, short, sources[False], tmp_path / "net.pt", words=of_slurm) == [0, 0]
    assert len(told(tmp_path / "net.pt")["losses"]) == 4
    # Without scontrol nobody knows where to meet, and it is said what to set.
    monkeypatch.setenv("FAKE_SCONTROL", "")
    assert run(2, short, sources[False], tmp_path / "b.pt", words=of_slurm) == [1, 1]
    message = (tmp_path / "b.1.error").read_text()
    assert "set MASTER_ADDR to its name and MASTER_PORT to a free port" in message


def test_two_rank_stop_together(sources: dict[bool, Target], tmp_path: Path) -> None:
    """One of them is asked to stop: all finish the step, one writes, and all leave."""
    out = tmp_path / "net.pt"
    assert run(2, RECIPE, sources[False], out, dies=(1, "term", 3)) == [1, 1]
    assert [(tmp_path / f"net.{rank}.error").read_text() for rank in (0, 1)] == ["KeyboardInterrupt: "] * 2
    assert read_checkpoint(out)["meta"]["step"] == 3
    assert "asked to stop at step 3 of" in (tmp_path / "net.0.err").read_text()
    assert (tmp_path / "net.1.err").read_text() == ""


def test_two_rank_diverge_together(sources: dict[bool, Target], tmp_path: Path) -> None:
    bad = replace(RECIPE, lr=1e18, momentum=0.0, agc=0.0)
    assert run(2, bad, sources[True], tmp_path / "net.pt") == [1, 1]
    messages = [(tmp_path / f"net.{rank}.error").read_text() for rank in (0, 1)]
    for message in messages:
        assert re.match(r"DivergedError: the loss became (nan|inf) at step \d+ .*\.png.*--lr .*--agc 0\.01", message)
    assert messages[0] != messages[1]  # each names its own images
    assert not (tmp_path / "net.pt").exists()


def test_two_rank_of_a_batch_of_one(sources: dict[bool, Target], tmp_path: Path) -> None:
    assert run(2, replace(RECIPE, batch_size=1), sources[False], tmp_path / "net.pt") == [1, 1]
    for rank in (0, 1):
        assert (tmp_path / f"net.{rank}.error").read_text() == (
            "UsageError: 2 processes for a batch of 1 images: each needs one at least. "
            "Start 1 processes at most, or give a larger --batch-size"
        )
    assert not (tmp_path / "net.pt").exists()


def two(work: Callable[[int, int, int, Path], None], out: Path) -> list[int]:
    """Exit codes of two processes that do the work together."""
    port = free_port()
    team = [server.Process(target=work, args=(rank, 2, port, out)) for rank in (0, 1)]
    for process in team:
        process.start()
    for process in team:
        process.join(120)
    return [process.exitcode for process in team]


def test_two_rank_wait_for_who_comes_late(tmp_path: Path) -> None:
    """Whoever goes on first may leave with an error, and nobody could meet at its place any more."""
    assert two(come, tmp_path) == [0, 0]
    met, went_on = zip(*(map(float, (tmp_path / f"{rank}").read_text().split()) for rank in (0, 1)), strict=True)
    assert max(met) < min(went_on)


def test_more_processes_than_shards_is_an_error() -> None:
    paths = [Path(f"/data/train-{i % 3}.tar/{i}.jpg") for i in range(12)]
    check_shares(Group(1, 3), 32, paths)
    check_shares(Group(1, 4), 32, [Path("/data/a.png"), Path("/data/b.png")])
    with pytest.raises(UsageError, match=r"4 processes for a source of 3 tar shards.* Start 3 processes at most"):
        check_shares(Group(0, 4), 32, paths)


def test_two_rank_agc_of_weights_in_shares(tmp_path: Path) -> None:
    assert two(clip_in_shares, tmp_path / "c.pt") == [0, 0]
    told = torch.load(tmp_path / "c.pt")
    for ours, timms in zip(told["ours"], told["timm"], strict=True):
        torch.testing.assert_close(ours, timms, rtol=1e-6, atol=1e-7)
