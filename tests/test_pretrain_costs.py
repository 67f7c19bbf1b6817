"""What a dry run says, and where a run's numbers go."""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastxfer.cli import main
from fastxfer.errors import UsageError
from fastxfer.targets import Target
from pretrain.catalogue import paper, read_recipe
from pretrain.checkpoint import read_checkpoint
from pretrain.dryrun import MEMORY_FACTOR, Machine, dry_run
from pretrain.logs import CsvLog, TensorBoardLog, WandbLog, open_logs
from pretrain.loop import pretrain
from pretrain.recipe import Recipe
from pretrain.state import create_network
from tests.together import photos

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [32], "stem_chs": 32, "bottle_ratio": 1.0},
    image_size=16,
    epochs=2.0,
    batch_size=12,
    augment="none",
)


# -- dry runs -------------------------------------------------------------------------------------------------------


def test_dry_run_of_the_papers_largest_takes_no_memory() -> None:
    """R152x4: its weights alone are 3.7 GB, and nothing of them is made."""
    recipe = read_recipe("imagenet1k", size="R152x4", variants=["as-meant"]).recipe
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = dry_run(recipe, 1_281_167, 1000, False, Machine(64, rate=100.0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes
    assert cost["parameters"] / 1e6 == pytest.approx(936.53, abs=0.01)
    assert cost["dim"] == 8192
    # The paper's table has 186.9 GMACs: its counter adds what is neither convolution nor product.
    assert cost["flops_forward"] / 2e9 == pytest.approx(186.9, rel=0.03)
    assert cost["flops_step"] / cost["flops_forward"] == pytest.approx(3, rel=0.02)
    assert cost["memory"]["weights"] == 4 * cost["parameters"]
    assert cost["micro_batch"] == 16
    assert cost["steps"] == -(-90 * 1_281_167 // 1024)
    assert cost["gpu_hours"] == pytest.approx(cost["images_seen"] / 100 / 3600)
    assert cost["hours"] == pytest.approx(cost["gpu_hours"] / 64)
    # And the table of docs/pretrain.md, at half of an A100's peak.
    docs = (Path(__file__).parents[1] / "docs" / "pretrain.md").read_text(encoding="utf-8").replace(",", "")
    found = re.finditer(r"^\| (\w+) \| \d+ \| [\d.]+ \| (\d+) \|$", docs, re.MULTILINE)
    hours = {row[1]: float(row[2]) for row in found}
    images = {model.source or model.recipe: model.read().images for model in paper() if not model.variant}
    an_image = 90 * cost["flops_step"] / (0.5 * 312e12) / 3600
    assert hours == {name: pytest.approx(n * an_image, abs=0.51, rel=2e-3) for name, n in images.items()}


def test_dry_run_of_a_tiny_network_by_hand() -> None:
    """12 images in micro-batches of 5, and what options change."""
    recipe = replace(TINY, arch="test_resnet", arch_args={}, micro_batch=5, ema=0.9)
    network = create_network(recipe, 7)
    parameters = sum(p.numel() for p in network.parameters())
    alone = dry_run(recipe, 100, 7, False, Machine())
    memory = alone["memory"]
    assert alone["parameters"] == parameters
    assert memory["weights"] == memory["gradients"] == memory["momenta"] == memory["average"] == 4 * parameters
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert alone["steps"] == 17
    four = dry_run(replace(recipe, parallel="fsdp"), 100, 7, True, Machine(4))
    assert four["micro_batch"] == 3
    assert four["memory"]["weights"] == parameters
    assert "reduction" in dry_run(recipe, 100, 7, False, Machine(2))["memory"]
    assert "images_per_second" in alone
    with pytest.raises(UsageError, match=r"--gpu 'A10' is not one of .* Did you mean: A100"):
        Machine(gpu="A10")
    with pytest.raises(UsageError, match="13 processes cannot share a batch of 12"):
        dry_run(recipe, 100, 7, False, Machine(13))


def test_dry_run_memory_follows_precision_and_checkpointing() -> None:
    recipe = Recipe(arch="R50x1", image_size=192, batch_size=32)
    beyond = "activations_and_temporaries"
    full = dry_run(recipe, 100, 10, False, Machine())["memory"][beyond]
    half = dry_run(replace(recipe, precision="bf16"), 100, 10, False, Machine())["memory"][beyond]
    again = dry_run(replace(recipe, checkpoint_activations=True), 100, 10, False, Machine())["memory"][beyond]
    assert 0.4 < half / full < 0.8
    assert again < 0.6 * full


def test_dry_run_memory_against_what_a_step_took() -> None:
    """The peak of a process that does two steps of bit_tiny on a CPU, less what it had before it made the network."""
    code = """
import torch
from pretrain.recipe import Recipe
from pretrain.state import create_network
torch.set_num_threads(1)
def step(network, optimizer, n, side):
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(network(torch.rand(n, 3, side, side)), torch.zeros(n, dtype=torch.long)).backward()
    optimizer.step()
small = create_network(Recipe(), 10)
step(small, torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9), 2, 32)  # libraries load
before = int(open('/proc/self/statm').read().split()[1]) * 4096
network = create_network(Recipe(), 10)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
for _ in range(2):
    step(network, optimizer, 24, 128)
# Not getrusage, whose peak begins with that of the process that forked this one.
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(1024 * int(peak.split()[1]) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    recipe = Recipe(image_size=128, batch_size=24)
    estimate = dry_run(recipe, 100, 10, False, Machine())["memory"]["total"]
    assert 0.9 < float(done.stdout) / estimate < MEMORY_FACTOR, (done.stdout, estimate)


def test_dry_run_command(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(main, ["pretrain", *words, "--data-root", str(tmp_path)], prog_name="fastxfer")

    tiny = ["--arch", "test_resnet", "--micro-batch", "1", "--dry-run"]
    hearsay = run("imagenet1k", *tiny, "--slurm", "nodes=16", "tasks_per_node=4", "--json")
    assert hearsay.exit_code == 0, hearsay.stderr
    cost = json.loads(hearsay.stdout)
    assert (cost["gpus"], cost["train_images"], cost["num_classes"]) == (64, 1_281_167, 1000)
    assert "the data is not here" in cost["images_are"]
    words = run("--num-classes", "3", "--images", "500", *tiny, "--rate", "50", "--gpus", "2")
    assert words.exit_code == 0, words.stderr
    assert "500 (as told) x 30 epochs" in words.stdout
    assert "50 a GPU (measured, as told)" in words.stdout
    assert not list(tmp_path.iterdir())
    for label in "abc":
        photos(tmp_path / "d" / label, 6)
    told = run("--source", str(tmp_path / "d"), *tiny, "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["num_classes"] == 3
    for wrong, message in (
        (["xray", "--source", "no-such", *tiny], "unknown target 'no-such'"),
        (["--images", "5", *tiny], "how many classes"),
        (["imagenet1k", *tiny, "--slurm", "nodes=x"], "expected a number, such as nodes=4"),
    ):
        done = run(*wrong)
        assert done.exit_code == 2
        assert message in done.stderr


# -- logs -----------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_step_once_also_after_a_kill(source: Target, tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    log = tmp_path / "net.csv"

    class KilledError(Exception):
        pass

    def kill(step: int) -> None:
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(TINY, source, out, on_step=kill, checkpoint_every=3, logs=open_logs(out, TINY))
    assert [row["step"] for row in rows(log) if row["kind"] == "step"][-1] == "5"
    with log.open("a") as file:
        file.write("step,6,,0.")  # a line that a kill cut short
    summary = pretrain(TINY, source, out, resume=True, logs=open_logs(out, TINY))
    found = rows(log)
    steps = [row for row in found if row["kind"] == "step"]
    assert [int(row["step"]) for row in steps] == list(range(1, summary["steps"] + 1))
    epochs = [row for row in found if row["kind"] == "epoch"]
    assert [float(row["val_accuracy"]) for row in epochs] == [line["val_accuracy"] for line in summary["history"]]
    assert float(epochs[0]["loss"]) == summary["history"][0]["loss"]
    assert float(steps[-1]["loss"]) > 0
    # A run that begins again begins its log again.
    pretrain(replace(TINY, epochs=0.1), source, out, overwrite=True, logs=[CsvLog(log)])
    assert len(rows(log)) < len(found)


def test_tensorboard_gets_the_same_numbers(source: Target, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "net.pt"
    summary = pretrain(TINY, source, out, logs=open_logs(out, TINY, ["tensorboard"]))
    events = EventAccumulator(str(tmp_path / "net.tensorboard"))
    events.Reload()
    told = events.Scalars("train/loss")
    assert [event.step for event in told] == list(range(1, summary["steps"] + 1))
    logged = [float(row["loss"]) for row in rows(tmp_path / "net.csv") if row["kind"] == "step"]
    assert [event.value for event in told] == pytest.approx(logged, rel=1e-6)
    assert events.Scalars("val/accuracy")[-1].value == pytest.approx(summary["history"][-1]["val_accuracy"])
    assert {"train/lr", "train/images_per_second", "val/loss", "epoch"} <= set(events.Tags()["scalars"])


def test_wandb_offline(source: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "net.pt"
    log = WandbLog(out, TINY)
    told: list[dict[str, Any]] = []
    begin = log.on_begin

    def on_begin(step: int, steps: int) -> None:
        begin(step, steps)
        true = log._run.log
        monkeypatch.setattr(log._run, "log", lambda values: (told.append(values), true(values)))

    monkeypatch.setattr(log, "on_begin", on_begin)
    summary = pretrain(replace(TINY, epochs=1.0), source, out, logs=[log])
    assert [line["step"] for line in told if "train/loss" in line] == list(range(1, summary["steps"] + 1))
    assert told[-1]["val/accuracy"] == summary["history"][-1]["val_accuracy"]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert WandbLog(out, TINY).id == log.id != WandbLog(tmp_path / "other.pt", TINY).id


def test_logs_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=rf"--log {name} needs the package {name}: pip install 'fastxfer\[logs\]'"):
            open_logs(tmp_path / "net.pt", TINY, [name])
    with pytest.raises(UsageError):
        TensorBoardLog(tmp_path)


def test_without_validation_the_last_checkpoint_is_the_result(source: Target, tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    whole = replace(TINY, val_fraction=0.0)
    source = replace(source, split=np.where(source.split == "val", "test", "train"))
    summary = pretrain(whole, source, out, logs=open_logs(out, whole))
    assert summary["train_images"] == len(source.rows("train"))
    assert summary["val_images"] == 0
    assert not any(key.startswith("val_") for line in summary["history"] for key in line)
    assert read_checkpoint(out)["meta"]["step"] == summary["steps"]
    assert [row["val_loss"] for row in rows(tmp_path / "net.csv") if row["kind"] == "epoch"] == [""] * 2


def test_wide_head_is_told_to_embed(source: Target, tmp_path: Path) -> None:
    """The paper's slip: more outputs than classes; the backbone takes no notice."""
    from fastxfer.backbones import load_backbone

    out = tmp_path / "net.pt"
    recipe = replace(TINY, num_classes=40, interpolation="box", crop_pct=1.0, mixup=0.2)
    summary = pretrain(recipe, source, out)
    assert 0 <= summary["val_accuracy"] <= 1
    backbone = load_backbone(out)
    assert backbone.dim == 32
    assert backbone.preprocessing.interpolation == "box"
    assert read_recipe("imagenet1k", size="R152x4").recipe.num_classes == 10_000
