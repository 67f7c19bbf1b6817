"""Pre-training: it learns, it goes on exactly, it never leaves half a checkpoint, it explains itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from digits import write_digits

from fastxfer.backbones import load_backbone
from fastxfer.batches import Batches, Images, rows_of_step
from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.images import load_image
from fastxfer.targets import Target, add_target
from fastxfer.training import Normaliser, Trainer, loss_sum
from pretrain.augment import train_transform
from pretrain.catalogue import read_recipe
from pretrain.checkpoint import read_checkpoint, write_checkpoint
from pretrain.loop import DivergedError, pretrain
from pretrain.recipe import Recipe
from pretrain.schedule import Schedule
from pretrain.source import open_source

pytestmark = pytest.mark.usefixtures("one_thread")

# As small as a BiT can be: one stage of GroupNorm(32) and weight-standardised bottlenecks, with stochastic depth so
# that the global generator matters too.
TINY = {"channels": [32], "stem_chs": 32, "bottle_ratio": 1.0, "drop_path_rate": 0.2}
SHORT = Recipe(arch="resnetv2_50x1_bit", arch_args=TINY, image_size=16, epochs=3, batch_size=16, hflip=0.0, lr=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def digits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return add_target(folder, "digits", tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def few(digits: Target) -> Target:
    """100 train images: six steps of 16 an epoch, with an epoch's end inside a batch."""
    return digits.take(np.r_[digits.rows("train")[:110], digits.rows("test")[:50]])


def weights(path: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = read_checkpoint(path)["model"]
    return model


def same(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def test_learns_half_of_the_digits(digits: Target, tmp_path: Path) -> None:
    """The demo's own pre-training, a little shorter: chance is 0.2."""
    recipe = Recipe(classes=("0", "1", "2", "3", "4"), epochs=9, hflip=0.0)
    started = time.perf_counter()
    summary = pretrain(recipe, digits, tmp_path / "bit.pt")
    assert summary["val_accuracy"] >= 0.9
    losses = [line["loss"] for line in summary["history"]]
    assert losses[-1] < 0.4 * losses[0]
    assert time.perf_counter() - started < 60
    meta = read_checkpoint(tmp_path / "bit.pt")["meta"]
    assert meta["source"] == "digits[0,1,2,3,4]"
    assert meta["class_names"] == ["0", "1", "2", "3", "4"]
    # What meta says makes the network again, and the weights fit to the last key.
    network = timm.create_model(meta["architecture"], num_classes=meta["num_classes"], **meta["arch_args"])
    network.load_state_dict(weights(tmp_path / "bit.pt"))
    assert sum(p.numel() for p in network.parameters()) == summary["parameters"] == 366_629
    # And `embed` needs no word about it: the embeddings, through the head that is left out, give the same validation.
    backbone = load_backbone(tmp_path / "bit.pt")
    assert (backbone.source, backbone.dim, backbone.preprocessing.input_size) == (
        "digits[0,1,2,3,4]",
        256,
        (3, 32, 32),
    )
    val = open_source(digits, recipe.classes).val
    geometry = backbone.preprocessing.geometry()
    pixels = torch.from_numpy(np.stack([geometry(load_image(path)) for path in val.paths]))
    with torch.inference_mode():
        features = backbone.network(backbone.preprocessing.normalise(pixels))
        logits = network.head.fc(features[:, :, None, None]).flatten(1)
    assert float((logits.argmax(1).numpy() == val.labels).mean()) == pytest.approx(summary["val_accuracy"])


def test_resume_after_a_crash_is_exact(few: Target, tmp_path: Path) -> None:
    pretrain(SHORT, few, tmp_path / "whole.pt")

    class CrashError(Exception):
        pass

    def crash(step: int) -> None:
        if step == 11:  # amid the second epoch: what came after the last checkpoint is lost, and done again
            raise CrashError

    with pytest.raises(CrashError):
        pretrain(SHORT, few, tmp_path / "crashed.pt", on_step=crash, checkpoint_every=4)
    assert read_checkpoint(tmp_path / "crashed.pt")["meta"]["step"] == 8
    torch.manual_seed(123)  # whatever else was drawn in between
    summary = pretrain(SHORT, few, tmp_path / "crashed.pt", resume=True)
    assert same(tmp_path / "whole.pt", tmp_path / "crashed.pt")
    whole = read_checkpoint(tmp_path / "whole.pt")["training"]["history"]
    for key in ("step", "loss", "val_loss", "val_accuracy", "lr"):
        assert [line[key] for line in whole] == [line[key] for line in summary["history"]]


def test_resume_after_sigterm_is_exact(few: Target, tmp_path: Path) -> None:
    pretrain(SHORT, few, tmp_path / "whole.pt")

    def stop(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        pretrain(SHORT, few, tmp_path / "stopped.pt", on_step=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_checkpoint(tmp_path / "stopped.pt")["meta"]["step"] == 9
    pretrain(SHORT, few, tmp_path / "stopped.pt", resume=True)
    assert same(tmp_path / "whole.pt", tmp_path / "stopped.pt")


def test_resume_after_kill_9_of_the_command(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        "source = 'd'\nclasses = ['0', '1']\narch = 'resnetv2_50x1_bit'\nimage_size = 16\nepochs = 4\nbatch_size = 16\n"
        "[arch_args]\nchannels = [32]\nstem_chs = 32\nbottle_ratio = 1.0\n"
    )
    add_target(folder, "d", tmp_path)
    words = ["--recipe", str(tmp_path / "tiny.toml"), "--data-root", str(tmp_path), "--checkpoint-every", "1"]
    line = [sys.executable, "-m", "pretrain", *words, "--out", str(tmp_path / "killed.pt")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(line, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 0 < read_checkpoint(tmp_path / "killed.pt")["meta"]["step"] < 45
    for out in ("killed.pt", "whole.pt"):
        gone_on = CliRunner().invoke(main, ["pretrain", *words, "--resume", "--out", str(tmp_path / out)])
        assert gone_on.exit_code == 0, gone_on.stderr
    assert same(tmp_path / "killed.pt", tmp_path / "whole.pt")


def test_loader_processes_change_nothing(few: Target, tmp_path: Path) -> None:
    recipe = replace(SHORT, epochs=1.0, randaugment="rand-m9-n2")
    pretrain(recipe, few, tmp_path / "none.pt", workers=0)
    pretrain(recipe, few, tmp_path / "two.pt", workers=2, cache_bytes=1)
    assert same(tmp_path / "none.pt", tmp_path / "two.pt")


def test_untrained_is_where_training_starts(few: Target, tmp_path: Path) -> None:
    pretrain(SHORT, few, tmp_path / "floor.pt", untrained=True)
    # A learning rate that is lost in rounding leaves the start as it was.
    pretrain(replace(SHORT, lr=1e-30, epochs=0.1), few, tmp_path / "start.pt")
    assert same(tmp_path / "floor.pt", tmp_path / "start.pt")
    assert read_checkpoint(tmp_path / "floor.pt")["meta"]["source"] == "untrained"
    pretrain(replace(SHORT, seed=1), few, tmp_path / "other.pt", untrained=True)
    assert not same(tmp_path / "floor.pt", tmp_path / "other.pt")


def test_rows_of_step_are_permutations_one_an_epoch() -> None:
    stream = np.concatenate([rows_of_step(10, 4, seed=3, step=s) for s in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert list(stream[:10]) != list(stream[10:])
    # A batch larger than the data set holds every image, several times.
    assert np.bincount(rows_of_step(3, 7, seed=0, step=0)).min() == 2


def test_augmentation_depends_on_the_position_alone(few: Target) -> None:
    images = Images([few.root / name for name in few.image_id[:32]])  # type: ignore[operator]
    for augment in ("crop", "xray"):
        recipe = replace(SHORT, augment=augment, hflip=0.5)
        batches = Batches(images, train_transform(recipe, 16, "bicubic"), 8, seed=0)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        third = batches[3][0]
        assert torch.equal(torch.get_rng_state(), state)
        batches[0]
        assert torch.equal(batches[3][0], third)
        assert third.dtype == torch.uint8
        assert third.shape == (8, 3, 16, 16)
        assert not torch.equal(batches[7][0], third)


def test_schedules() -> None:
    step = Schedule("step", peak=0.1, steps=90, warmup=5, start=0.25, milestones=(30, 60, 80))
    assert [step.lr(s) for s in (0, 5, 29)] == pytest.approx([0.025, 0.1, 0.1])
    assert [step.lr(s) for s in (30, 60, 80, 89)] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-4])
    cosine = Schedule("cosine", peak=1.0, steps=110, warmup=10, min_lr=0.2)
    assert [cosine.lr(s) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1.0, 0.6, 0.2])
    assert Schedule("constant", 0.3, 9, 0).lr(8) == 0.3


def test_masked_loss_ignores_what_is_unknown() -> None:
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1], [5.0, 5.0]])
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0], [torch.nan, torch.nan]])
    total, count = loss_sum(logits, labels)
    expected = np.log1p(np.exp(-0.3)) + np.log1p(np.exp(2.0)) + np.log1p(np.exp(-0.1))
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(count) == 3
    nothing, none = loss_sum(logits[2:].requires_grad_(), labels[2:])
    nothing.backward()
    assert nothing.item() == none.item() == 0
    assert torch.isfinite(nothing)


def _trainer(micro: int, agc: float = 0.0, lr: float = 0.1) -> tuple[Trainer, torch.nn.Module]:
    torch.manual_seed(0)
    network = timm.create_model("resnetv2_50x1_bit", num_classes=64, channels=[64], stem_chs=32, bottle_ratio=0.5)
    normalise = Normaliser((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), torch.device("cpu"))
    return Trainer(network, torch.optim.SGD(network.parameters(), lr=lr), normalise, micro, agc=agc), network


@pytest.mark.parametrize("multi_label", [False, True])
def test_micro_batches_give_the_gradient_of_the_batch(multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (10, 3, 16, 16), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 64, 10))
    if multi_label:
        # Unevenly many known entries, so that a mean of micro-batch means would be another number.
        table = rng.choice([0.0, 1.0, np.nan], (10, 64)).astype(np.float32)
        table[:6, 4:] = np.nan
        labels = torch.from_numpy(table)
    results = []
    for micro in (10, 3):
        trainer, network = _trainer(micro)
        loss = trainer.step(pixels, labels, lr=0.5, mix=(0.7, torch.arange(9, -1, -1)))
        results.append((loss, torch.cat([p.detach().flatten() for p in network.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_agc_clips_everything_but_the_head() -> None:
    """A body convolution as wide as there are classes is clipped: the head is known by being the head."""
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer, network = _trainer(8, agc=1e-4, lr=1.0)
    before = {k: p.detach().clone() for k, p in network.named_parameters()}
    trainer.step(pixels, torch.arange(8), lr=1.0)
    moved = {
        k: (p.detach() - before[k]).norm() / before[k].norm().clamp(min=1e-3) for k, p in network.named_parameters()
    }
    assert before["stages.0.blocks.0.conv3.weight"].shape[0] == 64
    assert moved["stages.0.blocks.0.conv3.weight"] <= 1.01e-4
    assert moved["head.fc.weight"] > 1e-2


def test_classes_are_renumbered_in_the_order_asked(digits: Target) -> None:
    source = open_source(digits, ("7", "3"))
    assert source.class_names == ("7", "3")
    names = {str(p.relative_to(digits.root)) for p in source.train.paths} | {  # type: ignore[arg-type]
        str(p.relative_to(digits.root))
        for p in source.val.paths  # type: ignore[arg-type]
    }
    train = digits.rows("train")
    expected = set(digits.image_id[train][np.isin(digits.labels[train], [7, 3])])
    assert names == expected  # no test image, nothing else
    of_image = dict(zip(digits.image_id, digits.labels, strict=True))
    for path, label in zip(source.train.paths, source.train.labels, strict=True):
        assert of_image[path.name] == (7, 3)[label]
    assert source.held_out
    assert 0.08 < len(source.val.paths) / len(expected) < 0.12


def test_held_out_patients_are_apart(digits: Target) -> None:
    patient = np.array([f"p{i // 7}" for i in range(digits.n_images)])
    source = open_source(replace(digits, patient=patient), ("0", "1", "2"))
    of_image = dict(zip(digits.image_id, patient, strict=True))
    sides = [{of_image[p.name] for p in part.paths} for part in (source.train, source.val)]
    assert sides[0].isdisjoint(sides[1])
    assert sides[1]


def test_multi_label_source_trains(few: Target, tmp_path: Path) -> None:
    table = np.eye(10, dtype=np.float32)[few.labels]
    table[::3, 5:] = np.nan
    table[4] = np.nan
    summary = pretrain(replace(SHORT, epochs=1.0), replace(few, labels=table), tmp_path / "m.pt")
    assert 0 <= summary["val_auc"] <= 1
    assert np.isfinite(summary["loss"])


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_stops_with_a_message_and_keeps_the_checkpoint(few: Target, tmp_path: Path) -> None:
    pretrain(replace(SHORT, epochs=1.0), few, tmp_path / "ok.pt")
    bad = replace(SHORT, lr=1e18, warmup_epochs=0.0, momentum=0.0, nesterov=False)
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) at step \d+ .*\.png.*--lr .*--agc 0\.01"):
        pretrain(bad, few, tmp_path / "bad.pt")
    assert not (tmp_path / "bad.pt").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    write_checkpoint(path, {"model": {}, "meta": {"step": 1}, "optimizer": {}, "training": {}})

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, {"model": {}, "meta": {"step": 2}, "optimizer": {}, "training": {}})
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    assert read_checkpoint(path)["meta"]["step"] == 1


def test_resume_refuses_what_would_not_be_the_same_run(few: Target, tmp_path: Path) -> None:
    out = tmp_path / "a.pt"
    pretrain(replace(SHORT, epochs=0.5), few, out)
    with pytest.raises(UsageError, match="exists: --resume goes on from it, --overwrite replaces it"):
        pretrain(SHORT, few, out)
    with pytest.raises(UsageError, match=r"another recipe: epochs \(0\.5 → 3\)"):
        pretrain(SHORT, few, out, resume=True)
    with pytest.raises(DataError, match=r"begun on \d+ images of the source, which now has \d+"):
        pretrain(replace(SHORT, epochs=0.5), few.take(np.arange(80)), out, resume=True)
    out.write_bytes(out.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cannot be read .*truncated"):
        pretrain(SHORT, few, out, resume=True)


def test_sources_that_cannot_be_trained_on(digits: Target) -> None:
    with pytest.raises(UsageError, match=r"no class '11'\. Did you mean: 1\? It has: 0, 1, 2"):
        open_source(digits, ("0", "11"))
    with pytest.raises(DataError, match="has no train images"):
        open_source(digits.take(digits.rows("test")))
    with pytest.raises(DataError, match="are of one class: nothing to learn"):
        open_source(digits, ("4",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"unknown key 'epoch'\. Did you mean: epochs"),
        ("epochs = 'many'", r"epochs = 'many' should be a number"),
        ("batch_size = 2.5", r"batch_size = 2\.5 should be a whole number"),
        ("nesterov = 1", r"nesterov = 1 should be true or false"),
        (
            "schedule = 'cosin'",
            r"schedule 'cosin' is not one of cosine, step, constant\. Did you mean: cosine",
        ),
        ("mean = [0.5]", "mean needs three values"),
        ("epochs =", "is no TOML"),
    ],
)
def test_recipe_errors_name_the_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises((DataError, UsageError), match=message):
        read_recipe(tmp_path / "r.toml")


def test_a_broken_image_is_named_before_training(folder: Path, few: Target, tmp_path: Path) -> None:
    for name in few.image_id:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    broken = str(few.image_id[17])
    (tmp_path / broken).write_bytes((folder / broken).read_bytes()[:60])
    with pytest.raises(DataError, match=broken.replace(".", r"\.")):
        pretrain(SHORT, replace(few, root=tmp_path), tmp_path / "x.pt")


def test_command_line(folder: Path, tmp_path: Path) -> None:
    run = lambda *words: CliRunner().invoke(main, ["pretrain", *words], prog_name="fastxfer")  # noqa: E731
    common = [
        "--source",
        str(folder),
        "--data-root",
        str(tmp_path),
        "--image-size",
        "16",
        "--batch-size",
        "16",
    ]
    common += [
        "--arch",
        "resnetv2_50x1_bit",
        "--arch-arg",
        "channels=[32]",
        "stem_chs=32",
        "bottle_ratio=1.0",
    ]
    out = str(tmp_path / "c.pt")
    done = run(*common, "--classes", "0", "1", "--epochs", "0.2", "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["classes"] == ["0", "1"]
    assert document["arch_args"]["channels"] == [32]
    assert document["steps"] == read_checkpoint(Path(out))["meta"]["step"] > 0
    again = run(*common, "--out", out)
    assert again.exit_code == 2
    assert "--resume goes on from it" in again.stderr
    wrong = run(
        "--source",
        str(folder),
        "--data-root",
        str(tmp_path),
        "--arch",
        "resnet5",
        "--out",
        str(tmp_path / "w"),
    )
    assert wrong.exit_code == 2
    assert "is neither an architecture of timm nor bit_tiny. Did you mean: resnet" in wrong.stderr
    nothing = run("--out", out)
    assert nothing.exit_code == 2
    assert "--source is missing" in nothing.stderr
