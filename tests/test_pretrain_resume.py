"""A run that is killed at any instant, or stopped, or finds its checkpoint damaged, ends where an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastxfer.errors import DataError, UsageError
from fastxfer.targets import Target, add_target
from pretrain.checkpoint import Shelf, check_folder, read_checkpoint, write_checkpoint
from pretrain.loop import pretrain
from pretrain.recipe import Recipe
from tests.together import run, told

# Everything that has a state: drawn paths, augmentation, momenta, average of the weights, scaler of the gradients.
RECIPE = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [32], "stem_chs": 32, "bottle_ratio": 1.0, "drop_path_rate": 0.2},
    image_size=16,
    epochs=3.0,
    batch_size=8,
    micro_batch=3,
    lr=0.8,
    agc=0.01,
    ema=0.9,
    precision="fp16",
    randaugment="rand-m9-n2",
)
STEPS = 14  # of 36 images
KILLS = [("step", 0), ("step", 8), ("link", 1), ("sync", 2), ("sync", 5), ("rename", 3), ("file", 2)]


@pytest.fixture(scope="module")
def undisturbed(source: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "net.pt"
    assert run(1, RECIPE, source, out, checkpoint_every=2) == [0]
    return out


def state(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds but the clock."""
    content = read_checkpoint(path)
    content["training"].pop("seconds")
    for line in content["training"]["history"]:
        line.pop("images_per_second")
    return content


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize(("how", "when"), KILLS)
def test_resume_after_kill_9_at_any_instant(
    how: str, when: int, source: Target, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.pt"
    options: dict[str, Any] = {"checkpoint_every": 2, "resume": True}
    assert run(1, RECIPE, source, out, dies=(0, how, when), **options) == [-signal.SIGKILL]
    assert run(1, RECIPE, source, out, **options) == [0]
    assert same(state(out), state(undisturbed))
    assert told(out)["begun"] == read_checkpoint(out)["meta"]["step"] - len(told(out)["losses"])
    assert {p.name for p in tmp_path.rglob("*.pt")} == {"net.pt", "net-step-000012.pt", "net-best.pt"}


def test_resume_after_kill_9_from_outside(source: Target, undisturbed: Path, tmp_path: Path) -> None:
    """At a time that nobody chose."""
    from tests.together import start

    out = tmp_path / "net.pt"
    for _ in range(3):
        (process,) = start(1, RECIPE, source, out, resume=True, checkpoint_every=2)
        time.sleep(0.3 + np.random.default_rng().random())
        process.kill()
        process.join(60)
    assert run(1, RECIPE, source, out, resume=True, checkpoint_every=2) == [0]
    assert same(state(out), state(undisturbed))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_resume_after_a_request_to_stop(
    sign: signal.Signals, source: Target, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), sign)

    before = signal.getsignal(sign)
    out = tmp_path / "net.pt"
    with pytest.raises(KeyboardInterrupt):
        pretrain(RECIPE, source, out, on_step=stop)
    assert signal.getsignal(sign) is before
    assert f"asked to stop at step 5 of {STEPS}: a checkpoint is written, --resume goes on" in capsys.readouterr().err
    assert read_checkpoint(out)["meta"]["step"] == 5
    assert run(1, RECIPE, source, out, resume=True) == [0]
    assert same(state(out), state(undisturbed))


def test_a_scheduler_that_listens_is_told_after_the_checkpoint(
    source: Target, undisturbed: Path, tmp_path: Path
) -> None:
    """submitit puts the job back into the queue, where it finds what was written; where its handler returns, the run goes on."""
    out, found = tmp_path / "net.pt", []

    def listen(_number: int, _frame: Any) -> None:
        found.append(read_checkpoint(out)["meta"]["step"])
        if len(found) == 2:
            raise SystemExit(3)

    before = signal.signal(signal.SIGUSR2, listen)
    try:
        with pytest.raises(SystemExit):
            pretrain(RECIPE, source, out, on_step=lambda step: step in (4, 7) and os.kill(os.getpid(), signal.SIGUSR2))
        assert signal.getsignal(signal.SIGUSR2) is listen
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert found == [4, 7]
    assert run(1, RECIPE, source, out, resume=True) == [0]
    assert same(state(out), state(undisturbed))


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty"])
def test_resume_from_the_one_before_a_damaged_checkpoint(
    harm: str, source: Target, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.pt"
    assert run(1, RECIPE, source, out, checkpoint_every=2, dies=(0, "step", 6)) == [-signal.SIGKILL]
    content = bytearray(out.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 4
    out.write_bytes(content[: {"flipped": None, "truncated": len(content) - 700, "empty": 0}[harm]])
    pretrain(RECIPE, source, out, resume=True, checkpoint_every=2)
    err = capsys.readouterr().err
    assert f"checkpoint '{out}' cannot be read (it does not end with the digest of its bytes)" in err
    assert f"going on from '{tmp_path / 'net.checkpoints/net-step-000005.pt'}', the one before" in err
    assert same(state(out), state(undisturbed))
    # The last of its kind: there is none to fall back on.
    for path in tmp_path.rglob("*.pt"):
        path.write_bytes(b"PK" + path.read_bytes()[2:-9])
    with pytest.raises(DataError, match=rf"'{out}' .*there is none before it: --overwrite begins again"):
        pretrain(RECIPE, source, out, resume=True)


def test_a_flipped_byte_is_seen_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    write_checkpoint(path, {"model": {"w": torch.arange(9.0)}, "meta": {}, "optimizer": {}, "training": {}})
    whole = path.read_bytes()
    assert torch.equal(torch.load(path, weights_only=True)["model"]["w"], torch.arange(9.0))  # a file as any other
    assert torch.equal(torch.load(path, mmap=True, weights_only=True)["model"]["w"], torch.arange(9.0))
    for place in [*range(0, len(whole), 37), len(whole) - 70, len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=rf"checkpoint '{path}' cannot be read"):
            read_checkpoint(path)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "net.pt", keep=3)
    for step in range(10, 80, 10):
        content = {"model": {}, "meta": {"step": step}, "optimizer": {}, "training": {}}
        shelf.put(content, step, best=step in (10, 30))
    kept = {p.name: read_checkpoint(p)["meta"]["step"] for p in tmp_path.rglob("*.pt")}
    assert kept == {"net.pt": 70, "net-step-000060.pt": 60, "net-step-000050.pt": 50, "net-best.pt": 30}
    assert not list(tmp_path.rglob("*.partial"))


def test_resume_refuses_another_architecture_and_allows_another_machine(source: Target, tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    half = replace(RECIPE, epochs=0.2)
    pretrain(half, source, out)
    with pytest.raises(UsageError, match=r"another recipe: arch \('resnetv2_50x1_bit' → 'resnet18'\)"):
        pretrain(replace(half, arch="resnet18", arch_args={}), source, out, resume=True)
    content = read_checkpoint(out)
    content["weights"] = {k: v for k, v in content["weights"].items() if "head" not in k}
    write_checkpoint(out, content)
    with pytest.raises(
        DataError, match=r"do not fit resnetv2_50x1_bit as this timm makes it \('head\.fc\.bias' is none"
    ):
        pretrain(half, source, out, resume=True)
    # How the machine does it may change; what comes of it may not.
    pretrain(half, source, tmp_path / "b.pt")
    other = replace(half, micro_batch=8, channels_last=True, checkpoint_activations=True, parallel="fsdp")
    assert pretrain(other, source, tmp_path / "b.pt", resume=True)["steps"] == 1
    with pytest.raises(UsageError, match=r"another recipe: precision \('fp16' → 'bf16'\)"):
        pretrain(replace(other, precision="bf16"), source, tmp_path / "b.pt", resume=True)


# -- several processes ---------------------------------------------------------------------------------------------

# float32 and nothing drawn by the network itself: one process and two compute the same but for the last bits.
TOGETHER = replace(
    RECIPE,
    arch_args={"channels": [64], "stem_chs": 32, "bottle_ratio": 0.5, "act_layer": "silu"},
    precision="float32",
    agc=0.0,
    lr=4.0,
)


@pytest.fixture(scope="module")
def alone(source: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "net.pt"
    assert run(1, TOGETHER, source, out, checkpoint_every=2) == [0]
    return out


def close(a: Path, b: Path) -> None:
    x, y = read_checkpoint(a), read_checkpoint(b)
    lines = x["training"]["history"], y["training"]["history"]
    for key in ("step", "loss", "val_loss", "lr", "val_accuracy"):
        np.testing.assert_allclose(*([line[key] for line in some] for some in lines), rtol=1e-5)
    for part in ("model", "weights"):
        for name in x[part]:
            torch.testing.assert_close(x[part][name], y[part][name], rtol=1e-3, atol=1e-5)


def test_resume_two_rank_in_shares(source: Target, alone: Path, tmp_path: Path) -> None:
    """FSDP2: killed, damaged, gone on with by one process; and one file of the whole at the end."""
    out = tmp_path / "net.pt"
    recipe = replace(TOGETHER, parallel="fsdp", sharded_checkpoints=True)
    options: dict[str, Any] = {"checkpoint_every": 2, "resume": True}
    assert -signal.SIGKILL in run(2, recipe, source, out, dies=(1, "step", 8), **options)
    folder = tmp_path / "net.checkpoints"
    assert {p.name for p in folder.iterdir()} == {"net-step-000005", "net-step-000006", "net-step-000008"}
    with pytest.raises(UsageError, match=r"'.*net-step-000008' exists: --resume goes on from it"):
        pretrain(recipe, source, out)
    check_folder(folder / "net-step-000008")
    share = folder / "net-step-000008/__1_0.distcp"
    share.write_bytes(share.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"net-step-000008' is damaged: '__1_0\.distcp' is not what was written"):
        check_folder(folder / "net-step-000008")
    assert -signal.SIGKILL in run(2, recipe, source, out, dies=(0, "step", 5), **options)
    assert "going on from '" + str(folder / "net-step-000006") in out.with_suffix(".0.err").read_text()
    assert run(1, replace(recipe, parallel="ddp", sharded_checkpoints=False), source, out, resume=True) == [0]
    assert told(out)["begun"] == 10
    close(out, alone)


def test_resume_two_rank_of_torchrun(source: Target, tmp_path: Path) -> None:
    """The command of the documentation; one of its processes is killed, and two go on."""
    assert source.root is not None
    rows = zip(source.image_id, source.labels, source.split, strict=True)
    table = "".join(f"{name},{'abc'[label]},{split}\n" for name, label, split in rows)
    (tmp_path / "photos.csv").write_text(f"path,label,split\n{table}")
    photos = add_target(tmp_path / "photos.csv", "photos", tmp_path, root=source.root)
    recipe = replace(TOGETHER, source="photos", epochs=6.0, randaugment="")
    pretrain(recipe, photos, tmp_path / "alone.pt")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretrain"]
    for key, value in recipe.plain().items():
        if value != Recipe().plain()[key] and key != "arch_args":
            words += [f"--{key.replace('_', '-')}", str(value)]
    words += ["--arch-arg", *(f"{k}={v}".replace(" ", "") for k, v in recipe.arch_args.items())]
    words += ["--out", str(tmp_path / "net.pt"), "--data-root", str(tmp_path), "--checkpoint-every", "1", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (tmp_path / "net.pt").exists():
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert torchrun.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        assert torchrun.wait(120) != 0
    assert 0 < read_checkpoint(tmp_path / "net.pt")["meta"]["step"] < 27
    assert run(2, recipe, photos, tmp_path / "net.pt", resume=True) == [0, 0]
    assert 0 < told(tmp_path / "net.pt")["begun"] < 25
    close(tmp_path / "net.pt", tmp_path / "alone.pt")
