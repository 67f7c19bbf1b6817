"""Fine-tunings as they are run: resumed exactly, within a budget, halved, by several processes, and what they cost."""

# ruff: noqa: F811  fixtures that are imported have the names of arguments

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tuning import full_run, scores, spent
from tuning_child import share, wait_in_step_two
from tuning_fixtures import digits, results, root, store, threads  # noqa: F401

from fastxfer.budgets import Budget, Ledger, Rates, parse_budget
from fastxfer.errors import DataError, UsageError
from fastxfer.finetune import Machine, run_all, train, training
from fastxfer.finetune.cost import RAPL, forward_flops
from fastxfer.results import ResultStore
from fastxfer.targets import Target
from tests.forks import server


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
    step = training.Trainer.step
    left = [0]

    def dying(self: Any, *args: Any) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise DiedError
        return step(self, *args)

    monkeypatch.setattr(training.Trainer, "step", dying)
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
    del one
    assert Ledger(tmp_path / "l").add() == {"images": 7, "runs": 1}
    del two
    assert Ledger(tmp_path / "l").add() == {}  # another job of the same name


def test_halving_stops_the_worse_half_and_finishes_the_best(
    root: Path, digits: Target, results: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs of eight steps: two end after two, one after four; their rows say so, and no test image was scored."""
    worth = {"bit": 0.5, "other": 0.9, "third": 0.7, "fourth": 0.1}
    runs = [full_run(root, digits, "bit" if n == "fourth" else n, steps=8, eval_every=0) for n in worth]
    runs[3] = replace(runs[3], entry=replace(runs[3].entry, backbone="fourth"))
    monkeypatch.setattr(training.Outcome, "score", lambda self, metric, at=None: worth[names[id(self.state.losses)]])
    names: dict[int, str] = {}
    real = training._Training.go

    def go(self: Any, *args: Any) -> Any:
        names[id(self.state.losses)] = self.run.entry.backbone
        kept.append(self.state.losses)  # so that ids are not used twice
        return real(self, *args)

    kept: list[Any] = []
    monkeypatch.setattr(training._Training, "go", go)
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
    again = run_all(runs, results, halving=True)
    assert [o["state"] for o in again] == ["lost", "already there", "lost", "lost"]
    assert len(results.read()) == len(rows)
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
        monkeypatch.setattr("fastxfer.finetune.conductor.train", real)
        theirs.extend(run_all(runs, ResultStore.open(results.path)))
        return real(*args, **options)

    monkeypatch.setattr("fastxfer.finetune.conductor.train", meanwhile)
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

    monkeypatch.setattr(training.Trainer, "step", full)
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
