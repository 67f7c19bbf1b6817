"""Fine-tuning: the two rules to the step, equal results by other means, plans that are checked before work is done."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from digits import write_digits

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.finetune import Machine, conductor, finetune, runs, training
from fastxfer.finetune.images import resize
from fastxfer.hyperrule import PRESETS, hyperrule, mixup_alpha, resolution, settle
from fastxfer.plans import read_plan
from fastxfer.results import ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, add_target, load_target
from fastxfer.targets.findings import save_findings
from fastxfer.training import head_of
from pretrain.loop import pretrain
from pretrain.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"channels": [64], "stem_chs": 64, "bottle_ratio": 1.0}
QUICK: dict[str, Any] = {"steps": 6, "batch_size": 16, "image_size": 16, "hflip": 0.0, "base_lr": 0.03}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the digits (300 train, 100 test, 16 pixels) and an untrained BiT of one block."""
    root = tmp_path_factory.mktemp("world")
    digits = add_target(write_digits(root / "images", n_train=300, n_test=100, size=16), "digits", root)
    recipe = Recipe(arch="resnetv2_50x1_bit", arch_args=TINY, image_size=16, mean=(0.2,) * 3, std=(0.4,) * 3)
    pretrain(recipe, digits, root / "bit.pt", untrained=True)
    return root


@pytest.fixture(scope="module")
def digits(world: Path) -> Target:
    return load_target("digits", world)


@pytest.fixture(scope="module")
def bit(world: Path) -> str:
    return str(world / "bit.pt")


def value(rows: pd.DataFrame, metric: str, split: str = "test") -> float:
    (found,) = rows[(rows["metric"] == metric) & (rows["split"] == split)]["value"]
    return float(found)


# -- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_train", "steps", "warmup", "decays"),
    [
        (19_999, 500, 100, (200, 300, 400)),
        (20_000, 10_000, 500, (3_000, 6_000, 9_000)),
        (499_999, 10_000, 500, (3_000, 6_000, 9_000)),
        (500_000, 20_000, 500, (6_000, 12_000, 18_000)),
    ],
)
def test_hyperrule_every_step(n_train: int, steps: int, warmup: int, decays: tuple[int, ...]) -> None:
    """The learning rate of every step (printed with -s), against the rule written out another way."""
    schedule = hyperrule(n_train, 0.001)
    assert schedule.steps == steps
    expected = np.full(steps, 1e-3)
    expected[:warmup] = np.arange(warmup) / warmup * 1e-3
    for s in decays:
        expected[s + 1 :] /= 10  # the decay fires one step after its mark
    rates = [schedule.lr(step) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    print(f"\n{n_train:,} train images, {steps:,} steps")
    for step in sorted({0, 1, warmup - 1, warmup, *decays, *(s + 1 for s in decays), steps - 1}):
        print(f"  step {step:6,}: lr {rates[step]:.3e}")


def test_hyperrule_small_as_the_paper_states_it() -> None:
    lr = hyperrule(5_000, 0.001).lr
    assert lr(0) == 0
    assert lr(100) == lr(200) == 1e-3
    assert [lr(201), lr(301), lr(401), lr(499)] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6])


def test_hyperrule_scales_to_other_numbers_of_steps() -> None:
    short, full = hyperrule(5_000, 0.003, steps=50), hyperrule(5_000, 0.003)
    assert (short.steps, short.warmup, short.decays) == (50, 10, (20, 30, 40))
    assert [short.lr(s) for s in (0, 5, 20, 49)] == pytest.approx([full.lr(s) for s in (0, 50, 200, 490)])
    assert hyperrule(5_000, 0.003, steps=1).steps == 1
    with pytest.raises(UsageError, match="--steps must be at least 1"):
        hyperrule(5_000, 0.003, steps=0)


def test_hyperrule_mixup_and_resolution() -> None:
    assert [mixup_alpha(n) for n in (19_999, 20_000, 1_000_000)] == [0, 0.1, 0.1]
    assert [resolution(area) for area in (32 * 32, 96 * 96 - 1, 96 * 96)] == [
        (160, 128),
        (160, 128),
        (512, 480),
    ]


def test_settings_of_a_target(digits: Target) -> None:
    assert settle(digits).params == "preset=bit;steps=500;batch=512;size=128;lr=0.003"
    assert settle(digits, "paper").params == "preset=paper;steps=500;batch=128;size=128;lr=0.001;watched=test/100"
    own = settle(digits, steps=60, batch_size=32, image_size=32, base_lr=0.01, hflip=0, oversample=True)
    assert own.params == "preset=bit;steps=60;batch=32;size=32;lr=0.01;flip=0;oversample=1"
    assert (own.resize, settle(digits, image_size=480).resize) == (40, 512)
    with pytest.raises(UsageError, match=r"--preset 'papr' is not one of bit, paper, own\. Did you mean: paper"):
        settle(digits, "papr")
    with pytest.raises(DataError, match="has no train images"):
        settle(digits.take(digits.rows("test")))


# -- the run ---------------------------------------------------------------------------------------------------------


def test_learns_and_reports_rows(digits: Target, bit: str, tmp_path: Path) -> None:
    own = {**QUICK, "steps": 60, "batch_size": 32, "base_lr": 0.3}
    rows = finetune(bit, digits, backbone_name="bit", curve=tmp_path / "c" / "loss.csv", **own)
    assert value(rows, "accuracy") > 0.5  # chance: 0.1
    assert value(rows, "auc") > 0.85
    assert value(rows, "seconds", "train") > 0
    assert set(rows["split"]) == {"test", "train"}
    one = rows.iloc[0]
    assert (one["probe"], one["shots"], one["ways"], one["episode"]) == ("finetune", "full", "all", -1)
    assert (one["source"], one["backbone"], one["n_queries"]) == ("untrained", "bit", 100)
    accuracy = rows[rows["metric"] == "accuracy"].iloc[0]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    with (tmp_path / "c" / "loss.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert [int(line["step"]) for line in curve] == list(range(60))
    assert float(curve[-1]["loss"]) < 0.7 * float(curve[0]["loss"])
    # The head starts at zero, so the first loss is that of a guess among ten classes.
    assert float(curve[0]["loss"]) == pytest.approx(np.log(10), abs=1e-4)
    assert float(curve[0]["lr"]) == 0


def test_same_seed_same_rows_whatever_the_micro_batch(digits: Target, bit: str) -> None:
    torch.manual_seed(1)
    first = finetune(bit, digits, **QUICK)
    torch.manual_seed(2)
    rows = [first, finetune(bit, digits, **QUICK), finetune(bit, digits, machine=Machine(micro_batch=5), **QUICK)]
    a, b, split = (r[r["split"] != "train"] for r in rows)
    pd.testing.assert_frame_equal(a, b)
    assert value(split, "auc") == pytest.approx(value(a, "auc"), abs=1e-3)
    other = finetune(bit, digits, seed=1, **QUICK)
    assert value(other, "auc") != value(a, "auc")


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the first step of a fine-tuning sees."""
    seen: dict[str, Any] = {}

    class Spy(training.Trainer):
        def step(self, pixels: torch.Tensor, labels: torch.Tensor, lr: float, mix: Any = None) -> float:
            if not seen:
                seen.update(trainer=self, pixels=pixels, mix=mix, head=head_of(self.network).weight.detach().clone())
            return super().step(pixels, labels, lr, mix)

    monkeypatch.setattr(training, "Trainer", Spy)
    return seen


def test_bit_preset_is_what_it_says(digits: Target, bit: str, spied: dict[str, Any]) -> None:
    finetune(bit, digits, **{**QUICK, "steps": 1})
    group = spied["trainer"].optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 0)
    assert spied["trainer"].agc == 0
    assert spied["trainer"].normalise.mean == spied["trainer"].normalise.std == (0.5, 0.5, 0.5)
    assert not spied["head"].any()
    assert spied["pixels"].shape == (16, 3, 16, 16)
    assert spied["mix"] is None


def test_paper_preset_is_what_it_says(digits: Target, bit: str, spied: dict[str, Any]) -> None:
    finetune(bit, digits, preset="paper", **{**QUICK, "steps": 1})
    group = spied["trainer"].optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0)
    assert spied["trainer"].agc == 0.01
    # The source's own normalisation, as its checkpoint says.
    assert spied["trainer"].normalise.mean == pytest.approx((0.2,) * 3)
    assert spied["trainer"].normalise.std == pytest.approx((0.4,) * 3)
    # torch's default for a convolution of 64 inputs is uniform within ±1/√64.
    assert 0.9 / 8 < float(spied["head"].abs().max()) <= 1 / 8
    assert (PRESETS["paper"].batch_size, PRESETS["paper"].base_lr) == (128, 0.001)


def test_large_targets_are_mixed(digits: Target, bit: str, spied: dict[str, Any]) -> None:
    settings = replace(settle(digits, **{**QUICK, "steps": 2}), mixup=0.1)
    finetune(bit, digits, settings=settings)
    share, partner = spied["mix"]
    assert 0 <= share <= 1
    assert sorted(partner.tolist()) == list(range(16))


def test_paper_resizes_the_shorter_side_bit_both() -> None:
    from PIL import Image

    image = Image.new("RGB", (60, 40))
    assert resize(20, square=True)(image).size == (20, 20)
    assert resize(20, square=False)(image).size == (30, 20)


def test_oversampling_draws_classes_equally_often(digits: Target, bit: str, spied: dict[str, Any]) -> None:
    train = digits.rows("train")
    rare = np.concatenate([train[digits.labels[train] != 3], train[digits.labels[train] == 3][:2], digits.rows("test")])
    target = digits.take(rare)
    from fastxfer.batches import rows_of_step

    finetune(bit, target, **{**QUICK, "steps": 1, "oversample": True})
    labels = target.labels[target.rows("train")]
    weights = 1 / np.bincount(labels)[labels]
    drawn = np.concatenate([rows_of_step(len(labels), 64, 0, s, weights / weights.sum()) for s in range(40)])
    share = np.bincount(labels[drawn], minlength=10) / len(drawn)
    assert share == pytest.approx(np.full(10, 0.1), abs=0.03)


def test_multi_label_with_unknown_entries_and_val(digits: Target, bit: str) -> None:
    table = np.eye(10, dtype=np.float32)[digits.labels]
    table[np.arange(0, len(table), 3), 1] = np.nan
    split = digits.split.copy()
    split[:60] = "val"
    rows = finetune(bit, replace(digits, labels=table, split=split.astype(str)), **QUICK)
    assert {(s, m) for s, m in zip(rows["split"], rows["metric"], strict=True)} == {
        ("val", "auc"),
        ("val", "average_precision"),
        ("test", "auc"),
        ("test", "average_precision"),
        *(("train", cost) for cost in ("seconds", "images", "images_scored", "flops")),
    } | ({("train", "joules")} if (rows["metric"] == "joules").any() else set())
    assert 0 < value(rows, "auc", "val") < 1


def test_divergence_says_what_to_try(digits: Target, bit: str) -> None:
    with pytest.raises(DataError, match=r"the loss became (nan|inf) at step \d+ .*--base-lr .*--preset paper"):
        finetune(bit, digits, **{**QUICK, "base_lr": 1e30})


# -- plans and the command -------------------------------------------------------------------------------------------


@pytest.fixture
def studied(world: Path, digits: Target, tmp_path: Path) -> Path:
    """A store that has embedded all but one (broken) image, and a plan of two entries for it."""
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    store.add_target(digits)
    (tmp_path / "plan.json").write_text(json.dumps(plan(tmp_path, world)))
    return tmp_path


def plan(folder: Path, world: Path, **changes: Any) -> dict[str, Any]:
    entry = {
        "backbone": "bit",
        "target": "digits",
        "checkpoint": str(world / "bit.pt"),
        "source": "untrained",
    }
    entry |= {"architecture": "resnetv2_50x1_bit", "arch_args": TINY, "shots": "full", "reason": "best of 2"}
    whole = {"version": 1, "store": str(folder / "store"), "created": "2026-01-01", "policy": "top-1"}
    return {
        **whole,
        "budget": {"runs": 2},
        "rejected": [],
        "entries": [entry, {**entry, "backbone": "again"}],
        **changes,
    }


@pytest.fixture
def run(studied: Path, world: Path) -> Callable[..., Result]:
    def command(*words: str) -> Result:
        small = ["--steps", "2", "--batch-size", "8", "--image-size", "16"]
        places = ["--data-root", str(world), "--store", str(studied / "store")]
        return CliRunner().invoke(main, ["finetune", *words, *small, *places], prog_name="fastxfer")

    return command


def test_plan_runs_once(run: Callable[..., Result], studied: Path) -> None:
    first = run("--plan", str(studied / "plan.json"), "--only", "2", "--json")
    assert first.exit_code == 0, first.stderr
    assert [(r["backbone"], r["state"]) for r in json.loads(first.stdout)["runs"]] == [("again", "done")]
    both = run("--plan", str(studied / "plan.json"), "--json", "--curves", str(studied / "curves"))
    assert both.exit_code == 0, both.stderr
    assert [r["state"] for r in json.loads(both.stdout)["runs"]] == ["done", "already there"]
    rows = ResultStore.open(studied / "store-results").read()
    assert len(rows[rows["split"] == "test"]) == 2 * 3
    assert set(rows["params"]) == {"preset=bit;steps=2;batch=8;size=16;lr=0.003"}
    assert [p.name for p in (studied / "curves").iterdir()] == ["bit-digits-seed0.csv"]
    assert run("--plan", str(studied / "plan.json"), "--preset", "paper", "--only", "1").exit_code == 0


def test_plan_within_a_budget(run: Callable[..., Result], studied: Path) -> None:
    words = ("--plan", str(studied / "plan.json"), "--json")
    small = run(*words, "--budget", "15 images")
    assert small.exit_code == 2
    assert "--budget '15 images' is too small for anything: the smallest of 2 runs takes 16 images" in small.stderr
    states = [json.loads(run(*words, "--budget", "1 run").stdout)["runs"] for _ in range(2)]
    assert [[r["state"] for r in runs] for runs in states] == [["done", "left"], ["already there", "done"]]
    assert states[0][0]["images"] == 16


def test_interrupt_keeps_what_was_finished(
    run: Callable[..., Result], studied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = conductor.train

    def interrupted(run: Any, *args: Any, **options: Any) -> Any:
        if run.entry.backbone == "again":
            raise KeyboardInterrupt
        return whole(run, *args, **options)

    monkeypatch.setattr(conductor, "train", interrupted)
    assert run("--plan", str(studied / "plan.json")).exit_code == 130
    monkeypatch.setattr(conductor, "train", whole)
    after = json.loads(run("--plan", str(studied / "plan.json"), "--json").stdout)
    assert [r["state"] for r in after["runs"]] == ["already there", "done"]


def test_checkpoint_by_name(run: Callable[..., Result], bit: str, studied: Path, world: Path) -> None:
    done = run("--ckpt", bit, "--target", "digits")
    assert done.exit_code == 0, done.stderr
    assert "accuracy" in done.stdout
    rows = ResultStore.open(studied / "store-results").read()
    assert set(rows["backbone"]) == {"bit"}
    assert set(rows["source"]) == {"untrained"}
    words = ["backbones", "add", bit, "--name", "known", "--source", "elsewhere", "--data-root", str(world)]
    added = CliRunner().invoke(main, words, prog_name="fastxfer")
    assert added.exit_code == 0, added.stderr
    registered = run("--ckpt", "known", "--target", "digits")
    assert registered.exit_code == 0, registered.stderr
    rows = ResultStore.open(studied / "store-results").read()
    both = rows[rows["metric"] == "accuracy"].set_index("backbone")
    assert both.loc["known", "source"] == "elsewhere"
    assert both.loc["known", "value"] == both.loc["bit", "value"]


@pytest.fixture
def leaking(world: Path, digits: Target) -> Iterator[list[str]]:
    """Two test images that are copies of train, as found by `targets check --save`."""
    copies = digits.image_id[digits.rows("test")][:2].tolist()
    found = {"test_images": len(digits.rows("test")), "copy": {"images": copies}, "patient": None}
    (file,) = save_findings(world, [digits], {"leaks": [found], "shortcut_auc": [{"flagged": []}]})
    yield copies
    file.unlink()


@pytest.mark.parametrize("by", ["plan", "checkpoint"])
def test_leaks_are_said_flagged_and_dropped(
    by: str, run: Callable[..., Result], leaking: list[str], bit: str, digits: Target, studied: Path
) -> None:
    start = (
        ("--plan", str(studied / "plan.json"), "--only", "1") if by == "plan" else ("--ckpt", bit, "--target", "digits")
    )
    n_test = len(digits.rows("test"))
    plain, dropped = (json.loads(run(*start, *words, "--json").stdout) for words in ((), ("--drop-leaks",)))
    said = f"digits: 2 of {n_test} test images ({2 / n_test:.1%}) are copies of images of train or val."
    assert (plain["leaks"], plain["runs"][0]["flags"]) == ([said], ["copies"])
    assert dropped["leaks"] == ["digits: 2 test images left out (copy)"]
    (outcome,) = dropped["runs"]
    assert (outcome["state"], outcome["flags"]) == ("done", [])
    assert outcome["params"].endswith(";dropped=copy:2")
    rows = ResultStore.open(studied / "store-results").read()
    assert sorted(rows.loc[rows["split"] == "test", "n_queries"].unique()) == [n_test - 2, n_test]
    assert json.loads(run(*start, "--drop-leaks", "--json").stdout)["runs"][0]["state"] == "already there"
    assert "nobody knows the patients of target 'digits'" in run(*start, "--drop-leaks", "patient").stderr
    assert "copies" in run(*start).stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has version 2, this fastxfer reads 1"),
        ({"entires": []}, "unknown field 'entires'. Did you mean: entries"),
        ({"entries": [{"backbone": "a", "target": "b"}]}, "entry 1 has no 'checkpoint'"),
        (
            {"entries": [{"backbone": "a", "target": "b", "checkpont": "c"}]},
            "unknown field 'checkpont'. Did you mean",
        ),
        ({"entries": [{"backbone": 3, "target": "b", "checkpoint": "c"}]}, "backbone = 3 should be a text"),
        (
            {"entries": [{"backbone": "a", "target": "b", "checkpoint": "c", "shots": "five"}]},
            "shots = 'five' should be 'full' or a number of images a class",
        ),
        ({"entries": 3}, "has no list of entries"),
    ],
)
def test_plan_errors_name_the_entry(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(plan(tmp_path, tmp_path, **changes)))
    with pytest.raises(DataError) as error:
        read_plan(tmp_path / "p.json")
    assert message in str(error.value)


def test_plan_of_another_store(run: Callable[..., Result], studied: Path, world: Path) -> None:
    (studied / "other.json").write_text(json.dumps(plan(studied, world, store="elsewhere")))
    failed = run("--plan", str(studied / "other.json"))
    assert failed.exit_code == 1
    assert "was made for the store 'elsewhere', not for" in failed.stderr
    missing = run("--plan", str(studied / "none.json"))
    assert missing.exit_code == 1
    assert "does not exist: `fastxfer select --out" in missing.stderr


def test_everything_is_checked_before_the_first_run(run: Callable[..., Result], studied: Path, world: Path) -> None:
    whole = plan(studied, world)
    whole["entries"][1]["checkpoint"] = "gone.pt"
    (studied / "gone.json").write_text(json.dumps(whole))
    failed = run("--plan", str(studied / "gone.json"))
    assert failed.exit_code == 1
    assert "plan entry 2 (again on digits): checkpoint 'gone.pt' is not there any more" in failed.stderr
    assert not (studied / "store-results").exists()
    whole["entries"][1] = {**whole["entries"][0], "target": "digit"}
    (studied / "name.json").write_text(json.dumps(whole))
    assert "plan entry 2 (bit on digit): " in run("--plan", str(studied / "name.json")).stderr


def test_labels_changed_since_embedding(
    run: Callable[..., Result], studied: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        runs,
        "load_target",
        lambda name, root: replace(load_target(name, root), labels=np.zeros(400, np.int64)),
    )
    failed = run("--plan", str(studied / "plan.json"))
    assert failed.exit_code == 1
    assert "labels, classes or splits of target 'digits' have changed since it was embedded" in failed.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --plan plan.json, or --ckpt with --target"),
        (("--ckpt", "a.pt"), "--ckpt needs --target"),
        (("--plan", "p.json", "--arch", "resnet50"), "--arch goes with --ckpt"),
        (("--ckpt", "a.pt", "--target", "digits", "--only", "1"), "--only goes with --plan"),
    ],
)
def test_options_that_contradict(run: Callable[..., Result], words: tuple[str, ...], message: str) -> None:
    failed = run(*words)
    assert failed.exit_code == 2
    assert message in failed.stderr
