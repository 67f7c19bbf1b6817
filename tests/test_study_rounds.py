"""A study's loop select → finetune → select: it ends by itself, its plans are the same for all, and no kill loses anything."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_selection_loop import embed_untrained
from tuning import one_thread

from fastxfer.errors import DataError
from fastxfer.results import KEY, ResultStore
from fastxfer.selection import FINETUNED, Plan
from fastxfer.study import World, is_complete, open_world, price, run_study, status
from fastxfer.study.rounds import plan_files, told

STUDY = """
name = "loop"
targets = ["digits"]
store = "STORE"
data_root = "ROOT"
backbone = [BACKBONES]
[probe]
probes = { name = "logistic", l2 = [0.01] }
[select]
policy = "ei"
budget = 4
batch = 1
stop_gain = 0.01
[finetune]
steps = 2
batch_size = 8
image_size = 16
"""
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three untrained backbones, embedded on digits with a validation split."""
    root = tmp_path_factory.mktemp("rounds")
    with one_thread():
        embed_untrained(root, NAMES)
    text = STUDY.replace("STORE", str(root / "store")).replace("ROOT", str(root))
    (root / "study.toml").write_text(text.replace("BACKBONES", ", ".join(f'{{ name = "{name}" }}' for name in NAMES)))
    return root / "study.toml"


def world(file: Path, results: Path) -> World:
    return open_world(file, results=str(results))


def run(file: Path, results: Path) -> World:
    with one_thread():
        run_study(world(file, results))
    return world(file, results)


def plans(world: World) -> list[list[tuple[str, str, bool]]]:
    """What each plan asks for and leaves out: backbone, reason, whether it is asked for."""
    found = []
    for path in plan_files(world):
        plan = json.loads(path.read_text())
        found.append([(e["backbone"], e["reason"], k == "entries") for k in ("entries", "rejected") for e in plan[k]])
    return found


def scores(world: World) -> Any:
    """The rows but those that say how long something took."""
    rows = world.results.read().astype(dict.fromkeys(("metric", *KEY[:5], "probe", "params", "split"), str))
    return rows[rows["metric"] != "seconds"].sort_values(list(KEY), ignore_index=True).astype(str)


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return run(file, tmp_path_factory.mktemp("whole"))


def tuned(world: World) -> list[str]:
    rows = world.results.read()
    return sorted(set(rows.loc[rows["probe"] == "finetune", "backbone"].astype(str)))


def test_it_goes_round_until_nothing_new_is_worth_a_run(file: Path, whole: World, tmp_path: Path) -> None:
    made = [json.loads(path.read_text()) for path in plan_files(whole)]
    asked = [entry["backbone"] for plan in made for entry in plan["entries"]]
    assert len(made) == len(asked) + 1 > 2  # one a round, and the last plan has none
    assert sorted(asked) == tuned(whole)
    # Each plan knows what the runs before it have given.
    for number, plan in enumerate(made):
        known = {e["backbone"] for e in [*plan["entries"], *plan["rejected"]] if FINETUNED in e["expected"]}
        assert known == set(asked[:number])
    last = "less than 0.01" if len(asked) < 3 else "all its runs are made"
    assert any(last in entry["reason"] for entry in made[-1]["rejected"])
    shown = told(whole)
    assert shown is not None
    assert [entry["backbone"] for entry in shown["entries"]] == asked
    assert shown["chosen"] == made[-1]["chosen"]

    state = status(whole)
    assert is_complete(state)
    assert state["stages"]["select"] == [len(made), len(made)]
    assert state["stages"]["finetune"] == [len(asked), len(asked)]
    assert [line["left"] for line in price(whole, measure=False) if line["stage"] == "finetune"] == [0]
    before = {path: path.stat().st_mtime_ns for path in whole.results.path.iterdir()}
    assert all(done.units == 0 for done in run_study(whole))
    assert {path: path.stat().st_mtime_ns for path in whole.results.path.glob("plan-*")}.items() <= before.items()

    # Where the gain asked for is out of reach, nothing is run at all.
    high = tmp_path / "high.toml"
    high.write_text(file.read_text().replace("stop_gain = 0.01", "stop_gain = 60.0"))
    other = run(high, tmp_path / "results")
    assert (len(plan_files(other)), tuned(other)) == (1, [])
    assert is_complete(status(other))


def test_killed_between_any_two_steps_it_goes_on_to_the_same_plans_and_rows(
    file: Path, whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process dies just before, and the next one just after, each plan and each set of rows is on disk."""
    steps: list[bool] = []

    def dying(act: Any) -> Any:
        def do(*arguments: Any, **named: Any) -> Any:
            if not steps:
                steps.append(False)
                raise KeyboardInterrupt
            got = act(*arguments, **named)
            if steps.pop():
                return got
            steps.clear()
            raise KeyboardInterrupt

        return do

    monkeypatch.setattr(Plan, "write", dying(Plan.write))
    monkeypatch.setattr(ResultStore, "append_new", dying(ResultStore.append_new))
    deaths = 0
    while True:
        try:
            here = run(file, tmp_path)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths >= 2 * len(plan_files(whole))
    assert plans(here) == plans(whole)
    assert scores(here).equals(scores(whole))


def test_several_at_once_agree_on_every_plan(file: Path, whole: World, tmp_path: Path) -> None:
    with one_thread(), ThreadPoolExecutor(3) as workers:
        for done in [workers.submit(lambda: run_study(world(file, tmp_path))) for _ in range(3)]:
            done.result()
    here = world(file, tmp_path)
    assert plans(here) == plans(whole)
    assert scores(here).equals(scores(whole))
    assert is_complete(status(here))
    assert not list((tmp_path / "running").glob("*.pt"))


def test_one_plan_is_made_without_a_batch(file: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.toml"
    alone.write_text(file.read_text().replace("batch = 1\nstop_gain = 0.01\n", "").replace("budget = 4", "budget = 1"))
    here = run(alone, tmp_path / "results")
    assert len(plan_files(here)) == len(tuned(here)) == 1
    assert is_complete(status(here))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "steps = 2",
            'steps = 2\nbudget = "2 runs"',
            r"finetune.budget: a loop of plans \(select.batch\) has the budget",
        ),
        ("steps = 2", "steps = 2\nshots = 5", "select.batch: plans again by fine-tunings on whole train splits"),
        ("batch = 1\n", "batch = 0\n", "select.batch = 0: expected 1 or more"),
    ],
)
def test_what_a_loop_cannot_do_is_said(file: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        open_world(wrong, results=str(tmp_path / "results"))
