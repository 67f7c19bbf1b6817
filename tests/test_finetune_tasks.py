"""What is fine-tuned, and how it starts: the probes' episodes, the probe's head, presets."""

# ruff: noqa: F811  fixtures that are imported have the names of arguments

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from tuning import QUICK, entry, few_shot, full_run, scores
from tuning_fixtures import digits, results, root, store, threads  # noqa: F401

from fastxfer.cli import main
from fastxfer.episodes import sample_episodes
from fastxfer.errors import UsageError
from fastxfer.evaluation import run_protocol
from fastxfer.finetune import Machine, Run, finetune, full_task, run_all, train, training
from fastxfer.finetune.head import _BeforeHead
from fastxfer.full_splits import run_full
from fastxfer.hyperrule import before_crop, settle
from fastxfer.probes import LogisticProbe
from fastxfer.protocol import Protocol
from fastxfer.results import ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target

# -- few-shot --------------------------------------------------------------------------------------------------------


def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Which images are trained on and scored, by path."""
    found: dict[str, list[Any]] = {"train": [], "scored": []}
    batches, predict = training.Batches, training.predict

    class Spy(batches):  # type: ignore[misc, valid-type]
        def __getitem__(self, step: int) -> Any:
            pixels, rows = super().__getitem__(step)
            found["train"][-1].update(self.images.paths[int(r)] for r in rows)
            return pixels, rows

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            found["train"].append(set())

    def score(network: Any, images: Any, *args: Any) -> Any:
        found["scored"].append(list(images.paths))
        return predict(network, images, *args)

    monkeypatch.setattr(training, "Batches", Spy)
    monkeypatch.setattr(training, "predict", score)
    return found


@pytest.fixture
def command(root: Path, store: EmbeddingStore, tmp_path: Path) -> Callable[..., Result]:
    def run(*words: str) -> Result:
        few = ["--steps", "12", "--batch-size", "8", "--image-size", "16", "--hflip", "0"]
        places = ["--store", store.path, "--results", str(tmp_path / "results"), "--data-root", str(root)]
        extra = [*few, *places] if words[0] == "finetune" else places[:2]
        return CliRunner().invoke(main, [*words, *extra], prog_name="fastxfer")

    return run


@pytest.fixture
def as_target(root: Path, digits: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_target` gives the digits with their val split."""
    monkeypatch.setattr("fastxfer.targets.load_target", lambda name, place: digits)
    monkeypatch.setattr("fastxfer.finetune.runs.load_target", lambda name, place: digits)


@pytest.mark.parametrize("ways", ["all", "3"])
def test_few_shot_is_on_the_images_that_episodes_show_prints(
    ways: str,
    command: Callable[..., Result],
    root: Path,
    as_target: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = seen(monkeypatch)
    few = ["--shots", "2", "--ways", ways, "--seed", "5", *(["--queries", "2"] if ways == "3" else [])]
    done = command("finetune", "--ckpt", str(root / "bit.pt"), "--target", "digits", *few, "--episodes", "2", "--json")
    assert done.exit_code == 0, done.output
    assert [o["state"] for o in json.loads(done.stdout)["runs"]] == ["done", "done"]
    rows = ResultStore.open(tmp_path / "results").read()
    for episode in (0, 1):
        shown = json.loads(
            command("episodes", "show", "--target", "digits", *few, "--episode", str(episode), "--json").stdout
        )
        folder = root / "images"
        assert found["train"][episode] == {folder / one["image"] for one in shown["support"]}
        assert found["scored"][episode] == [folder / one["image"] for one in shown["query"]]
        of = rows[rows["episode"] == episode]
        assert set(of["episodes_hash"]) == {shown["episodes_hash"]}
        assert set(zip(of["ways"], of["shots"], of["seed"], of["probe"], strict=True)) == {(ways, "2", 5, "finetune")}
    again = json.loads(
        command(
            "finetune", "--ckpt", str(root / "bit.pt"), "--target", "digits", *few, "--episodes", "2", "--json"
        ).stdout
    )
    assert [o["state"] for o in again["runs"]] == ["already there"] * 2


def test_few_shot_rows_pair_with_the_probes(
    store: EmbeddingStore, digits: Target, root: Path, results: ResultStore
) -> None:
    """One key but for probe and params: a join of the two finds every row."""
    protocol = Protocol(ways=3, shots=(1, 2), episodes=2, queries=2)
    run_protocol(store, results, protocol, [LogisticProbe()])
    run_all(few_shot(protocol, steps=2).runs(entry(root), digits), results)
    rows = results.read()
    rows = rows[rows["split"] == "test"].astype(str)
    key = ["backbone", "target", "ways", "shots", "seed", "episode", "split", "metric", "episodes_hash", "n_queries"]
    probed, tuned = (rows[rows["probe"] == name] for name in ("logistic", "finetune"))
    assert len(probed) == len(tuned) == 4
    assert len(probed.merge(tuned, on=key)) == 4
    # What sets the episodes apart is said the same way.
    assert {p.rpartition(";")[2] for p in rows["params"]} == {"queries=2"}


def test_few_shot_supports_are_nested_and_start_alike(digits: Target, root: Path) -> None:
    one, five = few_shot(Protocol(ways="all", shots=(1, 5), episodes=1)).runs(entry(root), digits)
    assert set(one.task.train.rows) < set(five.task.train.rows)
    assert one.task.stream == five.task.stream
    assert one.settings == five.settings


@pytest.mark.parametrize("labels", ["exactly-one", "per-label"])
def test_few_shot_of_a_multi_label_target(labels: str, digits: Target, root: Path) -> None:
    table = np.eye(10, dtype=np.float32)[digits.labels]
    table[:, 9] = np.nan  # nobody knows who is a nine
    target = replace(digits, labels=table)
    kept = replace(target, labels=table[:, :9], class_names=digits.class_names[:9])
    protocol = Protocol(ways="all", shots=(2,), episodes=1, labels=labels)
    (run,) = few_shot(protocol, steps=2).runs(entry(root), kept)
    (episodes,) = (sample_episodes(kept, protocol.spec(kept, 2), 0, 1),)
    np.testing.assert_array_equal(run.task.train.rows, episodes.support[0])
    rows = scores(train(run, Machine()).rows)
    assert set(rows["metric"]) == set(protocol.metrics_of(protocol.spec(kept, 2)))
    assert rows["value"].between(0, 1).all()
    assert ("labels=per-label" in rows["params"].iloc[0]) == (labels == "per-label")


def test_few_shot_draws_with_replacement_below_a_micro_batch_of_the_paper(digits: Target) -> None:
    def drawn(n: int, preset: str = "paper", **changes: Any) -> bool:
        return settle(digits, preset, n_train=n, **changes).replacement

    assert [drawn(n) for n in (10, 63, 64)] == [True, True, False]  # CIFAR's size: 2 micro-batches of 64
    assert [drawn(n, image_size=480) for n in (3, 4)] == [True, False]  # others: 32 of 4
    assert [drawn(n, "bit") for n in (511, 512)] == [True, False]
    assert not drawn(1, "own")
    few = settle(digits, "paper", n_train=50)
    assert (few.schedule.steps, few.batch_size, few.mixup, few.oversample) == (500, 128, 0, False)


def test_exactly_one_on_the_whole_train_split(digits: Target, root: Path) -> None:
    table = np.eye(10, dtype=np.float32)[digits.labels]
    table[::4, 3] = 1  # several positives, or a three that is a three
    task = full_task(replace(digits, labels=table), 0, "exactly-one")
    assert task.train.labels.ndim == 1
    assert len(task.train.rows) < len(digits.rows("train"))
    rows = scores(train(Run(entry(root), task, settle(task.target, **QUICK)), Machine()).rows)
    assert set(rows["metric"]) == {"accuracy", "balanced_accuracy", "auc"}
    assert rows["params"].iloc[0].endswith(";labels=exactly-one")


# -- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["single", "masked"])
def test_the_head_starts_at_the_probes_solution(
    labels: str, root: Path, digits: Target, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step the network predicts what the probe on its stored embeddings does, to 1e-4."""
    if labels == "masked":
        table = np.eye(10, dtype=np.float32)[digits.labels]
        table[::3, 1] = np.nan
        digits = replace(digits, labels=table)
    x, train_rows, test_rows = store.embeddings("bit", "digits"), digits.rows("train"), digits.rows("test")
    probe = LogisticProbe(l2=(0.01,))
    (solution,) = probe.solve_full(x[train_rows], digits.labels[train_rows], x[test_rows], 10)
    before: list[Any] = []
    step = training.Trainer.step

    def first(self: Any, *args: Any) -> float:
        if not before:
            part = training.Part("test", test_rows, digits.labels[test_rows])
            images = training.pipeline(run.settings, load_preprocessing(root)).evaluation_images(digits, part.rows)
            before.append(training.predict(self.network, images, _as_they_are, self.normalise, 64))
        return step(self, *args)

    monkeypatch.setattr(training.Trainer, "step", first)
    run = full_run(root, digits, head="probe", head_l2=0.01)
    train(run, Machine())
    expected, got = (probe.probabilities(s, False) if labels == "single" else s for s in (solution.scores, before[0]))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert ";head=probe;head_l2=0.01" in run.params


def load_preprocessing(root: Path) -> Any:
    from fastxfer.backbones import load_backbone

    return load_backbone(root / "bit.pt").preprocessing


def _as_they_are(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def test_the_probes_l2_is_that_of_its_own_rows(
    store: EmbeddingStore, root: Path, digits: Target, tmp_path: Path, command: Callable[..., Result], as_target: None
) -> None:
    words = ("finetune", "--ckpt", str(root / "bit.pt"), "--target", "digits", "--head", "probe", "--json")
    missing = command(*words)
    assert missing.exit_code == 2
    assert "run `fastxfer probe` first, or give --head-l2" in missing.stderr
    run_full(store, ResultStore.open(tmp_path / "results"), LogisticProbe(l2=(0.003, 0.3)))
    (done,) = json.loads(command(*words).stdout)["runs"]
    assert done["state"] == "done"
    rows = ResultStore.open(tmp_path / "results").read()
    chosen = float(rows[(rows["probe"] == "logistic") & (rows["split"] == "test")]["l2"].iloc[0])
    assert f";head=probe;head_l2={chosen:g}" in done["params"]
    # A probe's head is worth something before it is tuned.
    few = command(*words, "--shots", "5", "--episodes", "1", "--ways", "all", "--base-lr", "1e-9")
    assert json.loads(few.stdout)["runs"][0]["accuracy"] > 0.3  # chance: 0.1
    assert "--head-l2 is the probe's penalty" in command(*words[:-3], "--head-l2", "1").stderr


def test_a_head_before_the_pooling_cannot_start_at_a_probe() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 2, 1)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images).relu().mean((2, 3))

    with pytest.raises(UsageError, match="the head of Early comes before its pooling, so it is not linear"):
        _BeforeHead(Early())(torch.zeros(1, 3, 4, 4))


# -- presets ---------------------------------------------------------------------------------------------------------


def test_own_preset_is_timms_conventions(root: Path, digits: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from pretrain.checkpoint import write_checkpoint

    args = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    meta = {"architecture": "vit_tiny_patch16_224", "arch_args": args, "input_size": [3, 16, 16]}
    write_checkpoint(root / "vit.pt", {"model": network.state_dict(), "meta": meta})
    found: dict[str, Any] = {}
    step = training.Trainer.step

    def first(self: Any, pixels: Any, labels: Any, lr: float, mix: Any = None) -> float:
        loss = step(self, pixels, labels, lr, mix)
        found.update(trainer=self, lr=lr, rates=[g["lr"] for g in self.optimizer.param_groups])
        return loss

    monkeypatch.setattr(training.Trainer, "step", first)
    settings = settle(digits, "own", steps=3, batch_size=8)
    assert settings.params == "preset=own;steps=3;batch=8;size=own;lr=0.0005"
    assert settings.augment == "timm"
    rows = finetune(str(root / "vit.pt"), digits, settings=settings)
    assert set(rows["split"]) == {"train", "val", "test"}
    trainer = found["trainer"]
    assert type(trainer.optimizer).__name__ == "AdamW"
    assert trainer.smoothing == 0.1
    # Two blocks: embedding, blocks and head have four rates, each 0.75 of the next.
    assert sorted({round(rate / found["lr"], 6) for rate in found["rates"]}) == pytest.approx(
        [0.75**k for k in (3, 2, 1, 0)]
    )
    assert {g["weight_decay"] for g in trainer.optimizer.param_groups} == {0, 0.05}
    assert max(getattr(b.drop_path1, "drop_prob", 0) for b in trainer.network.blocks) == pytest.approx(0.1)
    rates = [replace(settings.schedule, steps=500, warmup=100).lr(s) for s in (0, 50, 100, 300, 499)]
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 2.5e-4, 0], abs=1e-8)
    with pytest.raises(UsageError, match=r"does not take images of 24 pixels .*give --image-size 16"):
        finetune(str(root / "vit.pt"), digits, **{**QUICK, "image_size": 24})


@pytest.mark.parametrize("augment", ["crop", "xray"])
def test_own_with_another_augmentation_has_the_networks_own_size(root: Path, digits: Target, augment: str) -> None:
    run = full_run(root, digits, preset="own", augment=augment, image_size=None)
    assert (run.task.target.n_images, run.settings.crop) == (digits.n_images, 0)
    got = train(run, Machine(), until=2)
    assert len(got.state.losses) == 2
    assert before_crop(16) == 20
    assert before_crop(480) == 512


def test_paper_exceptions_by_target(digits: Target) -> None:
    def under(name: str, preset: str = "paper", **changes: Any) -> Any:
        return settle(replace(digits, name=name), preset, **changes)

    padchest = under("padchest-cl")
    assert (padchest.crop, padchest.resize, padchest.augment, padchest.normalise) == (224, 224, "xray", "half")
    assert (under("digits").augment, under("digits").normalise) == ("crop", "source")
    assert under("padchest-cl", "bit").augment == "crop"
    for name in ("covidx-cxr2", "flowers_oversampling", "Flowers-102"):
        assert under(name).oversample
        assert not under(name, n_train=50).oversample  # full shot only
        assert not under(name, "bit").oversample
        assert not under(name, oversample=False).oversample
    assert not under("cifar10").oversample


def test_evaluation_on_the_way_is_on_validation_but_under_paper(root: Path, digits: Target, tmp_path: Path) -> None:
    table: dict[str, pd.DataFrame] = {}
    for preset in ("bit", "paper"):
        got = train(full_run(root, digits, preset=preset, eval_every=2), Machine(), curve=tmp_path / f"{preset}.csv")
        assert got.rows is not None
        table[preset] = pd.read_csv(tmp_path / f"{preset}.csv")
        told = ";watched=test/2" in got.rows["params"].iloc[0]
        assert told == (preset == "paper")
    for preset, split in (("bit", "val"), ("paper", "test")):
        measured = table[preset].dropna(subset="accuracy")
        assert list(measured["step"]) == [1, 3, 5]
        assert set(measured["split"]) == {split}
    assert settle(digits).watched == ("val", 100)
    assert settle(digits, "paper").watched == ("test", 100)
    assert settle(digits, n_train=50).watched == ("val", 0)


def test_xray_augmentation_moves_turns_and_mirrors() -> None:
    import random

    from PIL import Image, ImageDraw
    from torchvision.transforms import Compose

    from fastxfer.batches import xray_moves
    from fastxfer.finetune.images import to_pixels

    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).rectangle((24, 24, 39, 39), fill=(255, 255, 255))
    torch.manual_seed(0)
    random.seed(0)
    augment = Compose([*xray_moves(45, 0.25, 0.1, 0.5), to_pixels(3)])
    centres = []
    for _ in range(200):
        pixels = augment(image).float()[0]
        y, x = (pixels > 127).nonzero().float().mean(0).tolist()
        centres.append((x - 31.5, y - 31.5))
    reach = np.abs(centres).max(axis=0)
    assert (reach > 12).all()
    assert (reach <= 17).all()  # a quarter of 64 pixels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ways", "5"), "--ways is about episodes: it goes with --shots"),
        (("--budget", "5 monkeys"), "unknown unit 'monkeys'"),
        (("--shots", "1000"), "Lower --shots"),
        (("--shots", "1", "--ways", "11"), "has 10 classes, fewer than the 11 ways"),
        (("--oversample", "--head", "prob"), "'prob' is not one of"),
    ],
)
def test_bad_options_are_errors_before_any_work(
    words: tuple[str, ...], message: str, command: Callable[..., Result], root: Path, as_target: None, tmp_path: Path
) -> None:
    failed = command("finetune", "--ckpt", str(root / "bit.pt"), "--target", "digits", *words)
    assert failed.exit_code in (1, 2)
    assert message in " ".join(failed.stderr.split())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norm_keeps_the_statistics_of_pre_training(frozen: bool, root: Path, digits: Target) -> None:
    """Also after a look at validation, which puts the network into another mode and back."""
    import timm

    network = timm.create_model("resnet10t", num_classes=0)
    torch.save(network.state_dict(), root / "resnet10t.pt")
    run = full_run(root, digits, "resnet10t", frozen_norm=frozen, eval_every=2, steps=4, image_size=32)
    train(run, Machine(), checkpoint=root / "c.pt", until=3)
    after = torch.load(root / "c.pt", weights_only=True)["network"]
    kept = [torch.equal(after[name], value) for name, value in network.state_dict().items() if "running_mean" in name]
    assert len(kept) > 5
    assert all(kept) == frozen
    assert (";norm=frozen" in run.params) == frozen
