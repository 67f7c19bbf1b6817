"""Fine-tunings as they are run: resumed exactly, on the probes' episodes, from the probe's head, within a budget."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from tuning import QUICK, embed_world, entry, few_shot, full_run, make_world, one_thread
from tuning_child import share, wait_in_step_two

from fastxfer.budgets import Budget, Ledger, Rates, parse_budget
from fastxfer.cli import main
from fastxfer.episodes import sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.evaluation import run_protocol
from fastxfer.finetune import Machine, Run, finetune, full_task, run_all, train
from fastxfer.finetune import run as run_module
from fastxfer.finetune.cost import RAPL, forward_flops
from fastxfer.full_splits import run_full
from fastxfer.hyperrule import settle
from fastxfer.probes import LogisticProbe
from fastxfer.protocol import Protocol
from fastxfer.results import ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target

# Children come from a server that has imported everything and computed nothing: a fork of busy threads would hang.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["fastxfer.finetune", "pretrain.loop"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def digits(root: Path) -> Target:
    return make_world(root)


@pytest.fixture(scope="module")
def store(root: Path, digits: Target) -> EmbeddingStore:
    return embed_world(root, digits)


@pytest.fixture
def results(tmp_path: Path) -> ResultStore:
    return ResultStore.open(tmp_path / "results")


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["split"] != "train"].reset_index(drop=True)


def spent(rows: pd.DataFrame, metric: str) -> float:
    return float(rows[(rows["split"] == "train") & (rows["metric"] == metric)]["value"].sum())


class DiedError(Exception):
    pass


# -- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["bit", "paper"])
def test_resume_is_exact_after_a_death_at_any_step(
    preset: str, root: Path, digits: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum, mixup, the head's random start and the order of images included: the same losses to the last bit."""
    run = full_run(root, digits, preset=preset)
    run = replace(run, settings=replace(run.settings, mixup=0.1))
    undisturbed = train(run, Machine())
    step = run_module.Trainer.step
    left = [0]

    def dying(self: Any, *args: Any) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise DiedError
        return step(self, *args)

    monkeypatch.setattr(run_module.Trainer, "step", dying)
    for lived in (0, 3, 2):  # dies before the first step, then at steps 3 and 4, where the checkpoint is a step behind
        left[0] = lived
        with pytest.raises(DiedError):
            train(run, Machine(save_steps=2), checkpoint=tmp_path / "c.pt")
    left[0] = 100
    resumed = train(run, Machine(save_steps=2), checkpoint=tmp_path / "c.pt", curve=tmp_path / "curve.csv")
    assert resumed.state.losses == undisturbed.state.losses
    assert resumed.state.cost.images == 48
    pd.testing.assert_frame_equal(scores(resumed.rows), scores(undisturbed.rows))
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 7


def test_resume_begins_again_where_the_checkpoint_is_damaged_or_anothers(
    root: Path, digits: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = full_run(root, digits)
    train(run, Machine(), checkpoint=tmp_path / "c.pt", until=2)
    whole = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(whole[: len(whole) // 2])
    assert train(run, Machine(), checkpoint=tmp_path / "c.pt").state.cost.images == 48
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "c.pt").write_bytes(whole)
    other = full_run(root, digits, name="other")
    assert train(other, Machine(), checkpoint=tmp_path / "c.pt").rows is not None
    assert "is of another checkpoint, other images or other settings" in capsys.readouterr().err


def test_resume_by_the_same_command_after_sigterm(root: Path, digits: Target, results: ResultStore) -> None:
    """A real process gets SIGTERM in a step; the same runs go on, and nothing is left of the checkpoint."""
    here, there = server.Pipe()
    child = server.Process(target=wait_in_step_two, args=(root, results.path, there))
    child.start()
    assert here.poll(60)
    assert here.recv() == 2
    child.terminate()
    assert here.poll(60)
    assert here.recv() == "interrupted"
    child.join()
    assert len(results.read()) == 0
    assert len(list((results.path / "running").glob("*.pt"))) == 1
    run = full_run(root, digits)
    (outcome,) = run_all([run], results)
    assert outcome["state"] == "done"
    assert outcome["images"] == 48
    undisturbed = train(run, Machine()).rows
    pd.testing.assert_frame_equal(scores(results.read().astype(str)), scores(undisturbed.astype(str)))
    assert not list((results.path / "running").glob("*.pt"))


# -- few-shot --------------------------------------------------------------------------------------------------------


def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Which images are trained on and scored, by path."""
    found: dict[str, list[Any]] = {"train": [], "scored": []}
    batches, predict = run_module.Batches, run_module.predict

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

    monkeypatch.setattr(run_module, "Batches", Spy)
    monkeypatch.setattr(run_module, "predict", score)
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
    step = run_module.Trainer.step

    def first(self: Any, *args: Any) -> float:
        if not before:
            part = run_module.Part("test", test_rows, digits.labels[test_rows])
            images = run_module.pipeline(run.settings, load_preprocessing(root)).evaluation_images(digits, part.rows)
            before.append(run_module.predict(self.network, images, _as_they_are, self.normalise, 64))
        return step(self, *args)

    monkeypatch.setattr(run_module.Trainer, "step", first)
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


# -- presets ---------------------------------------------------------------------------------------------------------


def test_own_preset_is_timms_conventions(root: Path, digits: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from pretrain.checkpoint import write_checkpoint

    args = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    meta = {"architecture": "vit_tiny_patch16_224", "arch_args": args, "input_size": [3, 16, 16]}
    write_checkpoint(root / "vit.pt", {"model": network.state_dict(), "meta": meta})
    found: dict[str, Any] = {}
    step = run_module.Trainer.step

    def first(self: Any, pixels: Any, labels: Any, lr: float, mix: Any = None) -> float:
        loss = step(self, pixels, labels, lr, mix)
        found.update(trainer=self, lr=lr, rates=[g["lr"] for g in self.optimizer.param_groups])
        return loss

    monkeypatch.setattr(run_module.Trainer, "step", first)
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
        assert set(measured["split"][:-1]) == {split}
    assert settle(digits).watched == ("val", 100)
    assert settle(digits, "paper").watched == ("test", 100)
    assert settle(digits, n_train=50).watched == ("val", 0)


def test_xray_augmentation_moves_turns_and_mirrors() -> None:
    import random

    from PIL import Image, ImageDraw

    from fastxfer.finetune.images import to_pixels, xray_augmentation

    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).rectangle((24, 24, 39, 39), fill=(255, 255, 255))
    torch.manual_seed(0)
    random.seed(0)
    augment = xray_augmentation(0.5, to_pixels(3))
    centres = []
    for _ in range(200):
        pixels = augment(image).float()[0]
        y, x = (pixels > 127).nonzero().float().mean(0).tolist()
        centres.append((x - 31.5, y - 31.5))
    reach = np.abs(centres).max(axis=0)
    assert (reach > 12).all()
    assert (reach <= 17).all()  # a quarter of 64 pixels


# -- cost ------------------------------------------------------------------------------------------------------------


def test_cost_rows_count_images_and_operations(root: Path, digits: Target) -> None:
    rows = train(full_run(root, digits, eval_every=3), Machine()).rows
    assert rows is not None
    assert spent(rows, "images") == 48
    assert spent(rows, "images_scored") == 40 + 40 + 60  # val on the way and at the end, test
    linear = torch.nn.Conv2d(3, 5, 2)
    assert forward_flops(linear, (3, 4, 4)) == 2 * 5 * 9 * 12
    assert spent(rows, "flops") > 0
    assert ((rows["metric"] == "joules").any()) == bool(list(RAPL.glob("*-rapl:?")) and os.access(RAPL, os.R_OK))


def test_flops_of_the_papers_network_are_those_of_the_literature() -> None:
    import timm

    with torch.device("meta"):
        network = timm.create_model("resnetv2_50x1_bit", num_classes=1000)
    assert forward_flops(network, (3, 224, 224)) / 2e9 == pytest.approx(4.23, rel=0.05)


# -- budget ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "kind"),
    [
        ("2 gpu-hours", 7200, "device-seconds"),
        ("30 minutes", 1800, "seconds"),
        ("1 hour", 3600, "seconds"),
        ("90s", None, "unknown unit 's'"),
        ("3 runs", 3, "runs"),
        ("1e6 images", 1e6, "images"),
        ("1,000 images", 1000, "images"),
        ("2 gpu-ours", None, "Did you mean: gpu-hours"),
        ("hours", None, "is no number and unit"),
        ("0 runs", None, "is not above 0"),
    ],
)
def test_budget_words(text: str, amount: float | None, kind: str) -> None:
    if amount is None:
        with pytest.raises(UsageError, match=kind):
            parse_budget(text)
    else:
        assert parse_budget(text) == Budget(amount, kind, text)


def test_budget_spent_in_a_run_keeps_it_for_the_next(
    root: Path, digits: Target, results: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [full_run(root, digits, name) for name in ("bit", "other", "third")]  # 48 images each
    first = run_all(runs, results, budget=parse_budget("70 images"))
    assert [(o["state"], o.get("step")) for o in first] == [("done", None), ("stopped", 3), ("left", None)]
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "the budget of 70 images is spent: other on digits was stopped at step 3 of 6; its checkpoint is kept" in said
    )
    assert "third on digits is left for another time" in said
    second = run_all(runs, results, budget=parse_budget("24 images"))  # just enough for what is left of it
    assert [o["state"] for o in second] == ["already there", "done", "left"]
    assert second[1]["images"] == 48
    rows = results.read()
    undisturbed = train(runs[1], Machine()).rows
    pd.testing.assert_frame_equal(
        scores(rows[rows["backbone"] == "other"]).astype(str), scores(undisturbed).astype(str)
    )


@pytest.mark.parametrize("text", ["47 images", "0.5 runs"])
def test_budget_too_small_for_anything(text: str, root: Path, digits: Target, results: ResultStore) -> None:
    with pytest.raises(UsageError, match=r"is too small for anything: the smallest of 2 runs takes .*Give more"):
        run_all([full_run(root, digits), full_run(root, digits, "other")], results, budget=parse_budget(text))
    assert not results.path.exists()


def test_budget_of_time_is_judged_by_what_earlier_runs_took(root: Path, digits: Target, results: ResultStore) -> None:
    done, other = full_run(root, digits), full_run(root, digits, seed=1)
    (first,) = run_all([done], results)
    with pytest.raises(UsageError, match=r"about .* seconds, by what earlier ones took"):
        run_all([other], results, budget=Budget(first["seconds"] / 10, "device-seconds", "a blink"))
    # Nobody knows how long another backbone takes: it is begun, and stopped.
    (stopped,) = run_all([full_run(root, digits, "other")], results, budget=Budget(1e-6, "device-seconds", "a blink"))
    assert stopped["state"] in ("left", "stopped")


def test_budget_of_runs(root: Path, digits: Target, results: ResultStore) -> None:
    runs = [full_run(root, digits, name) for name in ("bit", "other", "third")]
    assert [o["state"] for o in run_all(runs, results, budget=parse_budget("2 runs"))] == ["done", "done", "left"]
    # Those that are there count nothing.
    assert [o["state"] for o in run_all(runs, results, budget=parse_budget("1 run"))] == ["already there"] * 2 + [
        "done"
    ]


def test_budget_ledger_of_several_processes(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "l"), Ledger(tmp_path / "l")
    one.add(images=3, runs=1)
    assert two.add(images=4) == {"images": 7, "runs": 1}
    assert one.add() == {"images": 7, "runs": 1}
    assert Ledger().add(images=1) == {"images": 1}


def test_halving_stops_the_worse_half_and_finishes_the_best(
    root: Path, digits: Target, results: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs of eight steps: two end after two, one after four; their rows say so, and no test image was scored."""
    worth = {"bit": 0.5, "other": 0.9, "third": 0.7, "fourth": 0.1}
    runs = [full_run(root, digits, "bit" if n == "fourth" else n, steps=8, eval_every=0) for n in worth]
    runs[3] = replace(runs[3], entry=replace(runs[3].entry, backbone="fourth"))
    monkeypatch.setattr(run_module.Outcome, "score", lambda self, metric, at=None: worth[names[id(self.state.losses)]])
    names: dict[int, str] = {}
    real = run_module._Training.go

    def go(self: Any, *args: Any) -> Any:
        names[id(self.state.losses)] = self.run.entry.backbone
        kept.append(self.state.losses)  # so that ids are not used twice
        return real(self, *args)

    kept: list[Any] = []
    monkeypatch.setattr(run_module._Training, "go", go)
    outcomes = run_all(runs, results, halving=True)
    assert [o["state"] for o in outcomes] == ["lost", "done", "lost", "lost"]
    rows = results.read()
    images = rows[rows["metric"] == "images"].astype({"backbone": str}).set_index("backbone")["value"]
    assert images.to_dict() == {"bit": 16, "fourth": 16, "third": 32, "other": 64}
    stopped = rows[rows["backbone"] != "other"]
    assert set(stopped["split"]) == {"train", "val"}
    assert {p.rpartition(";")[2] for p in stopped["params"]} == {"stopped=2", "stopped=4"}
    # The same command has nothing to do but to look; without --halving the others are finished from where they are.
    monkeypatch.undo()
    last = run_all(runs, results)
    assert [o["state"] for o in last] == ["done", "already there", "done", "done"]
    assert last[0]["images"] == 64


def test_halving_needs_validation_images(root: Path, digits: Target, results: ResultStore) -> None:
    without = digits.take(np.flatnonzero(digits.split != "val"))
    with pytest.raises(
        UsageError, match="--halving stops runs by their validation scores, and target 'digits' has no val"
    ):
        run_all([full_run(root, without)], results, halving=True)


def test_a_run_that_another_process_does_is_left_to_it(
    root: Path, digits: Target, results: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first of two is under way here, a second caller does the other one, and neither is done twice."""
    runs = [full_run(root, digits), full_run(root, digits, "other")]
    theirs: list[Any] = []
    real = train

    def meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr("fastxfer.finetune.runs.train", real)
        theirs.extend(run_all(runs, ResultStore.open(results.path)))
        return real(*args, **options)

    monkeypatch.setattr("fastxfer.finetune.runs.train", meanwhile)
    ours = run_all(runs, results)
    assert [o["state"] for o in theirs] == ["elsewhere", "done"]
    assert [o["state"] for o in ours] == ["done", "already there"]


def test_budget_of_two_ranks(root: Path, digits: Target, results: ResultStore) -> None:
    """Two processes of one job share three runs of four, and each is done once."""
    here, there = server.Pipe()
    team = [server.Process(target=share, args=(root, results.path, "3 runs", rank, there)) for rank in (0, 1)]
    for member in team:
        member.start()
    for member in team:
        member.join(120)
    assert [member.exitcode for member in team] == [0, 0]
    told = [here.recv() for _ in team]
    done = [backbone for states in told for backbone, state in states.items() if state == "done"]
    assert len(done) == len(set(done)) == 3
    assert spent(results.read(), "images") == 3 * 48


def test_too_little_memory_says_what_would_fit(root: Path, digits: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *batch: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run_module.Trainer, "step", full)
    with pytest.raises(
        DataError, match=r"bit on digits: .* of 8 images is more than the memory holds: give --micro-batch 4"
    ):
        train(full_run(root, digits), Machine(micro_batch=8))


def test_rates_estimate_what_a_run_will_take(root: Path, digits: Target, results: ResultStore) -> None:
    run_all([full_run(root, digits)], results)
    rows = results.read()
    rates = Rates.of(rows)
    seconds = spent(rows, "seconds")
    assert rates.seconds_of("bit", "digits") == pytest.approx(seconds)
    assert rates.images_per_second("bit", 16) == pytest.approx(48 / seconds)
    assert rates.images_per_second("bit", 32) == pytest.approx(48 / seconds / 4)
    assert rates.seconds_of("bit", "elsewhere") == rates.seconds_of("new", "digits") == pytest.approx(seconds)
    assert rates.seconds_of("new", "elsewhere") is None
    assert rates.images_per_second("new", 16) is None
    assert Rates.of(rows.iloc[:0]).seconds_of("bit", "digits") is None


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
