"""Studies: a file is checked whole, done once, gone on with and shared out, and never done twice."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target
from PIL import Image

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.results import KEY, ResultStore
from fastxfer.results.merging import merge
from fastxfer.store.locks import HeldError, hold
from fastxfer.study import Part, Study, World, is_complete, open_world, price, read_part, read_study, run_study, status
from fastxfer.study.page import rows_of
from fastxfer.study.share import Unit, claim, share
from fastxfer.study.stages import Done
from fastxfer.targets.findings import save_findings

STUDY = """
name = "blobs"
targets = ["blobs", "dots"]
store = "STORE"
results = "results"
backbone = [{ name = "good" }, { name = "bad" }]
[fewshot]
ways = 3
shots = [1, 2]
queries = 4
episodes = 10
probes = ["prototype", { name = "knn", k = [1, 2] }]
"""
FEWSHOT = 2 * 2 * 2 * 3  # cells: backbones x targets x shots x settings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "store"
    targets = [blobs_target(name, n_classes=4, n_train=8, n_test=8, n_val=4) for name in ("blobs", "dots")]
    blobs_store(path, *targets, backbones={"good": 0.8, "bad": 3.0, "new": 1.5}, dim=8)
    return path


def write(folder: Path, store: Path, text: str = STUDY, **changes: str) -> Path:
    file = folder / "study.toml"
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text.replace("STORE", str(store)))
    return file


def changed(folder: Path, store: Path, *pairs: tuple[str, str]) -> Path:
    text = STUDY
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return write(folder, store, text)


def by_stage(done: list[Done]) -> dict[str, Done]:
    return {one.stage: one for one in done}


def sorted_rows(path: Path) -> Any:
    return ResultStore.open(path).read().sort_values(list(KEY), ignore_index=True).astype(str)


# -- the file ------------------------------------------------------------------------------------------------------------


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path, store: Path) -> None:
    text = """
    targets = ["blobs", "blops", "photos/", "blobs"]
    store = "STORE"
    sources = ["imagenet1k"]
    colour = "red"
    [[backbone]]
    name = "good"
    source = "imagnet1k"
    [[backbone]]
    checkpoint = "gone.pt"
    pool = "averge"
    [[backbone]]
    name = "other"
    [fewshot]
    shot = [1]
    shots = [1, 20]
    seeds = [-1]
    episodes = "many"
    probes = ["logstic", { name = "knn", k = [0] }]
    [knn]
    probes = [{ name = "knn", l2_by = "cv" }]
    [select]
    budget = "2 gpu-yours"
    [finetune]
    preset = "bitt"
    budget = 3
    """
    file = write(tmp_path, store, text)
    with pytest.raises(DataError) as told:
        open_world(file)
    message = str(told.value)
    first, *problems = message.split("\n  ")
    assert first == f"study '{file}' has {len(problems)} problems:"
    expected = [
        "colour: unknown key.",
        "fewshot.shot: unknown key. Did you mean: shots",
        "fewshot.seeds = -1: expected 0 or more",
        "fewshot.episodes = 'many': expected a whole number",
        "fewshot.probes[2].k = 0: expected 1 or more",
        "finetune.budget = 3: expected a text",
        "targets[4]: 'blobs' is there twice",
        "backbone[1].source: says 'imagnet1k', and `sources` has imagenet1k. Did you mean: imagenet1k?",
        "backbone[2].pool = 'averge': expected post",
        "fewshot: unknown probe 'logstic': choose among logistic",
        "knn: probe 'knn': 'l2_by' is no key of a probe here; expected k",
        "select: chooses by full probes on validation, so it wants a table [probe]",
        "select.budget: --budget '2 gpu-yours': unknown unit 'gpu-yours'. Did you mean: gpu-hours",
        "finetune.preset = 'bitt': expected one of bit, paper, own. Did you mean: bit?",
        "targets[2]: unknown target 'blops'",
        f"targets[3]: folder '{tmp_path / 'photos'}' is not there",
        f"backbone[2].checkpoint: '{tmp_path / 'gone.pt'}' is not there",
        "backbone[3].checkpoint: none given for 'other', and the store lacks its embeddings of blobs, blops",
    ]
    for words in expected:
        assert any(p.startswith(words) for p in problems), f"{words!r} is not in\n{message}"
    assert not store.with_name("store-results").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("targets = [", "is no TOML"),
        ("", "targets: none given"),
        ("targets = 3", "targets = 3: expected a text or a table"),
        ("backbone = 'x'", "backbone = 'x': expected a table"),
        ("embed = []", "embed = []: expected a table"),
        ("[fewshot]\nways = 'every'", "fewshot.ways = 'every': expected a whole number or \"all\""),
        ("[fewshot]\nmetrics = 'acuracy'", "fewshot: unknown metric 'acuracy'"),
        ("[embed]\ndtype = 'flaot16'", "expected \"float16\" or \"float32\". Did you mean: float16"),
        ("[[backbone]]\narch = 'r50'\nname = 'b'", "backbone[1].checkpoint: none given"),
        ("[[backbone]]\nname = 'a/b'", "backbone[1].name"),
        ("[[backbone]]\nsource = 'x'", "backbone[1]: has neither a name nor a checkpoint"),
        ("[[targets]]\nval = 0.1", "targets[1]: has neither a name nor a folder"),
        ("[finetune]", "finetune: does what was selected, so it wants a table [select]"),
        ("[select]\nbudget = 0\n[probe]", "select.budget: --budget '0' is not above 0"),
        ("[select]\npolicy = 'topp'", "select.policy = 'topp': expected one of top, halving"),
        ("[select]\nbudget = '50 usd'", "what a GPU-hour costs is not known here"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_key_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(DataError) as told:
        read_study(tmp_path / "study.toml")
    assert words in str(told.value)


def test_a_file_that_is_not_there_is_offered() -> None:
    with pytest.raises(
        DataError, match=r"'gone.toml' does not exist: `fastxfer study init gone.toml` writes an example"
    ):
        read_study("gone.toml")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("shots = [1, 2]", "shots = [1, 20]")], "fewshot: target 'blobs': class 'class a' has 8 train and 8 test images"),
        ([("ways = 3", "ways = 7")], "has 4 classes, fewer than the 7 ways asked for"),
        ([("ways = 3", 'labels = "per-label"')], "has one label an image; per-label episodes are for multi-label"),
        ([('{ name = "bad" }', '{ name = "badd" }')], "the store lacks its embeddings of blobs, dots"),
        ([('{ name = "bad" }', '{ name = "bad", checkpoint = "other.pt" }')], "'other.pt': the store has embeddings"),
        ([("[fewshot]", 'drop_leaks = "copy"\n[fewshot]')], "drop_leaks: "),
        ([('results = "results"', 'results = "study.toml"')], "results: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_any_work(
    tmp_path: Path, store: Path, pairs: list[tuple[str, str]], words: str
) -> None:
    file = changed(tmp_path, store, *pairs)
    got = CliRunner().invoke(main, ["study", "run", str(file)])
    assert got.exit_code == 1
    assert words in got.output
    assert not (tmp_path / "results").exists()


def test_a_budget_too_small_for_anything_is_said(tmp_path: Path, store: Path) -> None:
    import pandas as pd

    file = changed(tmp_path, store, ("[fewshot]", '[probe]\n[select]\n[finetune]\nbudget = "2 seconds"\n[fewshot]'))
    costs = [
        {"source": "s", "backbone": b, "target": t, "ways": "all", "shots": "full", "seed": 0, "episode": -1, "probe": "finetune",
         "params": "preset=bit", "split": "train", "metric": "seconds", "value": 30.0}
        for b in ("good", "bad") for t in ("blobs", "dots")
    ]  # fmt: skip
    ResultStore.open(tmp_path / "results").append(pd.DataFrame(costs))
    with pytest.raises(
        DataError, match=r"finetune.budget = '2 seconds': too small for anything: the smallest run takes 30"
    ):
        open_world(file)


def test_the_hash_is_of_what_is_asked_not_of_how_it_is_written(tmp_path: Path, store: Path) -> None:
    def hash_of(text: str) -> str:
        (tmp_path / "study.toml").write_text(text.replace("STORE", str(store)))
        return read_study(tmp_path / "study.toml").hash

    first = hash_of(STUDY)
    head, fewshot = STUDY.split("[fewshot]")
    turned = "\n".join(reversed(fewshot.strip().splitlines()))
    same = [
        STUDY.replace("ways = 3", "ways = [3]  # of four"),
        head + "[fewshot]\n" + turned,
        STUDY.replace('["blobs", "dots"]', '["dots", "blobs"]').replace("[1, 2]\nq", "[2, 1]\nq"),
        STUDY.replace('{ name = "good" }, { name = "bad" }', '{ name = "bad" }, { name = "good" }'),
        STUDY.replace("STORE", "s3://elsewhere/store")
        + "backend = 'cpu'\n[embed]\nbatch_size = 4\n[report]\ntitle = 'x'",
        STUDY + "seeds = [0]\nsplit = 'test'",  # the defaults
        STUDY.replace('name = "blobs"', 'name = "another"'),
    ]
    for text in same:
        assert hash_of(text) == first
    for old, new in [("episodes = 10", "episodes = 20"), ("[1, 2]\nq", "[1, 3]\nq"), ("k = [1, 2]", "k = [1]"), ('"bad" }', '"new" }'), ('"dots"]', '"blops"]')]:  # fmt: skip
        assert hash_of(STUDY.replace(old, new)) != first
    assert hash_of(STUDY + "[probe]") != first


# -- running -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, int]]:
    """What was solved: backbone, target, probe and number of episodes, call by call."""
    from fastxfer import evaluation

    calls: list[tuple[str, str, str, int]] = []
    true = evaluation._episode_rows

    def count(pool: Any, source: str, backbone: str, probe: Any, target: Any, episodes: Any, *rest: Any) -> Any:
        calls.append((backbone, target.name, probe.name, episodes.n_episodes))
        return true(pool, source, backbone, probe, target, episodes, *rest)

    monkeypatch.setattr(evaluation, "_episode_rows", count)
    return calls


def test_a_second_run_does_nothing_and_an_extended_study_only_what_is_new(
    tmp_path: Path, store: Path, solved: list[Any]
) -> None:
    def run(*pairs: tuple[str, str]) -> tuple[int, World]:
        solved.clear()
        world = open_world(changed(tmp_path, store, ('["blobs", "dots"]', '["blobs"]'), *pairs))
        before = {part: part.read_bytes() for part in world.results.path.glob("rows-*.parquet")}
        run_study(world)
        assert all(part.read_bytes() == content for part, content in before.items())
        return sum(n for *_, n in solved), world

    asked = 2 * 2 * 2 * 10  # backbones x shots x probes x episodes
    assert run()[0] == asked
    assert run()[0] == 0
    more = [("[1, 2]\nq", "[1, 2, 3]\nq")]
    assert run(*more)[0] == asked // 2
    assert {call[2] for call in solved} == {"prototype", "knn"}
    more += [("episodes = 10", "episodes = 15")]
    assert run(*more)[0] == 2 * 3 * 2 * 5
    more += [('{ name = "bad" }', '{ name = "bad" }, { name = "new" }')]
    assert run(*more)[0] == 3 * 2 * 15
    assert {call[0] for call in solved} == {"new"}
    more += [("queries = 4", "queries = 4\nseeds = [0, 1]")]
    assert run(*more)[0] == 3 * 3 * 2 * 15
    # What the file no longer asks for stays, but is no row of the study.
    none, world = run()
    assert none == 0
    rows = world.results.read()
    assert len(rows_of(world, rows)) == FEWSHOT * 10 // 2 < len(rows)
    assert {run["study_hash"] for run in world.results.runs()} > {world.study.hash}


def test_all_stages_in_order_with_the_hash_in_log_and_report(tmp_path: Path, store: Path) -> None:
    tables = '[probe]\nprobes = { name = "logistic", l2 = [0.1] }\n[knn]\nprobes = { name = "knn", k = 1 }\n[select]\n[report]\n'
    file = changed(tmp_path, store, ("[fewshot]", tables + "[fewshot]"), ('["blobs", "dots"]', '["blobs"]'))
    got = CliRunner().invoke(main, ["study", "run", str(file), "--json"])
    assert got.exit_code == 0, got.output
    told = json.loads(got.stdout)
    assert [one["stage"] for one in told["done"]] == ["embed", "fewshot", "probe", "knn", "select", "report"]
    assert told["stages"]["fewshot"] == [FEWSHOT // 2, FEWSHOT // 2]
    assert told["stages"]["probe"] == told["stages"]["knn"] == [2, 2]
    runs = ResultStore.open(tmp_path / "results").runs()
    assert [(run["stage"], run["study_hash"]) for run in runs] == [(s, told["hash"]) for s in list(told["stages"])[1:]]
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"blobs, hash {told['hash']}" in page
    assert str(tmp_path) not in page
    again = json.loads(CliRunner().invoke(main, ["study", "run", str(file), "--json"]).stdout)
    assert all(one["units"] == one["rows"] == 0 for one in again["done"])
    assert len(ResultStore.open(tmp_path / "results").runs()) == len(runs)
    assert is_complete(status(open_world(file)))
    report = CliRunner().invoke(main, ["study", "report", str(file), "--out", str(tmp_path / "page"), "--json"])
    assert json.loads(report.stdout)["hash"] == told["hash"]
    assert (tmp_path / "page" / "index.html").is_file()


def test_test_images_that_training_has_seen_are_left_out_of_all_rows(tmp_path: Path) -> None:
    target = blobs_target(n_classes=2, n_train=10, n_test=10)
    blobs_store(tmp_path / "store", target, backbones={"good": 0.8}, dim=8)
    copies = [str(target.image_id[i]) for i in (21, 33)]
    leaks = {
        "leaks": [{"test_images": 20, "copy": {"images": copies}, "patient": None}],
        "shortcut_auc": [{"flagged": []}],
    }
    save_findings(tmp_path / "fastxfer-data", [target], leaks)
    file = tmp_path / "study.toml"
    file.write_text(
        """
        drop_leaks = "copy"
        targets = "blobs"
        store = "store"
        backbone = { name = "good" }
        knn = { probes = { name = "knn", k = [1] } }
        fewshot = { ways = "all", shots = 1, episodes = 3, probes = "prototype" }
        """
    )
    world = open_world(file)
    run_study(world)
    rows = world.results.read()
    assert set(rows["probe"]) == {"knn", "prototype"}
    assert rows["params"].astype(str).str.contains("dropped=copy:2").all()
    assert set(rows[rows["split"] == "test"]["n_queries"]) == {18}
    assert is_complete(status(open_world(file)))
    assert all(one.units == 0 for one in run_study(open_world(file)))


def test_a_folder_is_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        image = tmp_path / "images" / "cats" / "ab"[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * i).save(image)
    file = tmp_path / "study.toml"
    file.write_text('targets = ["images/cats/"]\nbackbone = { checkpoint = "gone.pt" }')
    for _ in range(2):
        with pytest.raises(DataError, match=r"has a problem:\n  backbone\[1\].checkpoint: .*gone.pt' is not there"):
            open_world(file)
        monkeypatch.setattr("fastxfer.study.world.add_target", None)
    assert json.loads((tmp_path / "fastxfer-data" / "targets" / "cats.json").read_text())["n_images"] == 12


def test_another_study_is_kept_out_of_a_results_folder(tmp_path: Path, store: Path) -> None:
    run_study(open_world(changed(tmp_path, store, ("episodes = 10", "episodes = 2"))))
    other = changed(tmp_path, store, ('name = "blobs"', 'name = "dots"'))
    with pytest.raises(
        DataError, match=r"holds the rows of the study 'blobs': give this one another folder, or the same `name`"
    ):
        open_world(other)


def test_status_and_price_tell_what_is_missing(tmp_path: Path, store: Path) -> None:
    file = changed(tmp_path, store, ("[fewshot]", "[probe]\n[select]\n[fewshot]"))
    world = open_world(file)
    before = price(world, measure=False)
    assert [(line["stage"], line["left"], line["asked"]) for line in before] == [
        ("embed", 0, 0), ("fewshot", FEWSHOT, FEWSHOT), ("probe", 4, 4)
    ]  # fmt: skip
    assert before[1]["seconds"] is None
    assert not (tmp_path / "results").exists()
    run_study(world, part=read_part(world.study, ["target=dots,backbone=go*"], None))
    told = status(world)
    assert told["stages"] == {
        "embed": [2 * 2 * 80, 2 * 2 * 80], "fewshot": [FEWSHOT // 4, FEWSHOT], "probe": [1, 4], "select": [0, 1]
    }  # fmt: skip
    assert not is_complete(told)
    assert {(c["target"], c["backbone"]) for c in told["cells"] if c["episodes_done"]} == {("dots", "good")}
    got = CliRunner().invoke(main, ["study", "status", str(file)])
    assert "good      blobs     80/80" in got.output
    assert "all" in got.output
    after = price(open_world(file), measure=False)
    assert after[1]["left"] == 3 * FEWSHOT // 4
    assert after[1]["seconds"] > 0
    plan = CliRunner().invoke(main, ["study", "run", str(file), "--plan"])
    assert "Nothing was run." in plan.output


def test_what_is_held_is_shown_at_work(tmp_path: Path, store: Path) -> None:
    world = open_world(changed(tmp_path, store))
    with claim(world.results.path / "running", _Unit("fewshot", [])):
        (one,) = status(world)["running"]
    assert (one["what"], one["pid"]) == ("fewshot", os.getpid())
    assert status(world)["running"] == []


# -- several people, several processes -----------------------------------------------------------------------------------


def test_parts_are_merged_into_the_whole(tmp_path: Path, store: Path) -> None:
    file = changed(tmp_path, store)
    for folder, words in (("whole", ()), ("one", ("--part", "1/2")), ("two", ("--part", "2/2"))):
        got = CliRunner().invoke(main, ["study", "run", str(file), "--results", str(tmp_path / folder), *words])
        assert got.exit_code == 0, got.output
    sizes = [len(sorted_rows(tmp_path / f)) for f in ("one", "two")]
    assert sizes == [FEWSHOT * 10 // 2] * 2
    merged = [
        "results",
        "merge",
        str(tmp_path / "one"),
        str(tmp_path / "two"),
        "--into",
        str(tmp_path / "both"),
        "--json",
    ]
    assert json.loads(CliRunner().invoke(main, merged).stdout)["rows_added"] == sum(sizes)
    assert sorted_rows(tmp_path / "both").equals(sorted_rows(tmp_path / "whole"))
    assert json.loads(CliRunner().invoke(main, merged).stdout)["rows_added"] == 0
    world = open_world(file, results=str(tmp_path / "both"))
    assert is_complete(status(world))
    assert len(world.results.runs()) == 2
    # The whole is in there already, row for row, which is no contradiction.
    assert merge([tmp_path / "whole"], tmp_path / "both") == 0


def test_rows_that_contradict_each_other_are_not_merged(tmp_path: Path, store: Path) -> None:
    world = open_world(changed(tmp_path, store))
    run_study(world)
    rows = world.results.read()
    rows.loc[7, "value"] += 0.25
    ResultStore.open(tmp_path / "other").append(rows)
    with pytest.raises(
        DataError, match=r"1 rows are there twice and differ, the first: source=.*Only equal rows can be merged"
    ):
        merge([world.results.path, tmp_path / "other"], tmp_path / "both")
    assert not list((tmp_path / "both").glob("rows-*"))
    ResultStore.open(tmp_path / "third").append(rows.assign(episodes_hash="0"))
    with pytest.raises(DataError, match="twice and differ"):
        merge([world.results.path, tmp_path / "third"], tmp_path / "both")
    with pytest.raises(DataError, match="there is nothing to merge"):
        merge([tmp_path / "nowhere"], tmp_path / "both")
    ResultStore.open(tmp_path / "other").set_study("another", "0", {})
    with pytest.raises(DataError, match="results of different studies are not put into one folder"):
        merge([world.results.path, tmp_path / "other"], tmp_path / "both")


def test_a_part_is_said_in_words_that_fit_the_study(tmp_path: Path, store: Path) -> None:
    study = open_world(changed(tmp_path, store)).study
    assert read_part(study, ["backbone=bad"], None).pairs(study) == [("bad", "blobs"), ("bad", "dots")]
    parts = [read_part(study, (), f"{i}/3").pairs(study) for i in (1, 2, 3)]
    assert sorted(pair for pairs in parts for pair in pairs) == sorted(study.pairs)
    assert Part().is_whole
    for words, part, told in (
        (["target=bloobs"], None, "the study has no target 'bloobs'. Did you mean: blobs"),
        (["colour=red"], None, "expected backbone=, target= or source="),
        ([], "4/3", "expected I/N with I from 1 to N"),
        (["target=blobs,backbone=bad"], "2/2", "leave nothing of the 4 pairs"),
    ):
        with pytest.raises(UsageError, match=told.replace(".", r"\.")):
            read_part(study, words, part)


class _Unit(Unit):
    """Work that is done once its name is in `log`."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    @property
    def key(self) -> tuple[str, ...]:
        return ("test", self.name)

    @property
    def title(self) -> str:
        return self.name

    def left(self) -> int:
        return int(self.name not in self.log)

    def do(self, advance: Any) -> None:
        self.log.append(self.name)
        advance(1)


HOLDER = """
import sys, time
from pathlib import Path
from fastxfer.study.share import claim
class Unit:
    key, title = ("test", "b"), "b"
with claim(Path(sys.argv[1]), Unit()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_is_waited_for_and_taken_over_when_its_holder_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    log: list[str] = []
    heard: list[int] = []
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert log == ["a", "c"]  # the rest was done meanwhile
        if len(waits) == 2:
            holder.kill()
            holder.wait()

    monkeypatch.setattr("fastxfer.study.share.time.sleep", wait)
    share([_Unit(name, log) for name in "abc"], tmp_path, lambda n, note="": heard.append(n))
    assert log == ["a", "c", "b"]
    assert sum(heard) == 3
    assert waits == [0.05, 0.1]


def test_a_claim_on_what_is_done_goes_once_its_holder_is_dead(tmp_path: Path) -> None:
    """Killed after its rows were written, before it let go: nothing is done again, and nothing stays behind."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    log = ["a", "b"]
    share(
        [_Unit(name, log) for name in "ab"], tmp_path, lambda n, note="": None
    )  # alive: its own matter, not waited for
    assert len(list(tmp_path.glob("*.lock"))) == 1
    holder.kill()
    holder.wait()
    share([_Unit(name, log) for name in "ab"], tmp_path, lambda n, note="": None)
    assert list(tmp_path.glob("*.lock")) == []
    assert log == ["a", "b"]


def test_what_another_has_done_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    log: list[str] = []

    class Fast(_Unit):
        def do(self, advance: Any) -> None:
            log.extend("ab")  # somebody else was at b
            advance(1)

    heard: list[int] = []
    share([Fast("a", log), _Unit("b", log)], tmp_path, lambda n, note="": heard.append(n))
    assert log == ["a", "b"]
    assert sum(heard) == 2


@pytest.mark.parametrize(("age", "is_taken"), [(60.0, False), (600.0, True)])
def test_a_claim_of_another_host_counts_while_it_is_touched(tmp_path: Path, age: float, is_taken: bool) -> None:
    unit = _Unit("a", [])
    with claim(tmp_path, unit):
        (lock,) = tmp_path.glob("*.lock")
    lock.write_text(json.dumps({"pid": 1, "host": f"not-{socket.gethostname()}", "since": "2026"}))
    os.utime(lock, (time.time() - age,) * 2)
    if is_taken:
        with claim(tmp_path, unit):
            pass
    else:
        with pytest.raises(HeldError, match="is being written by process 1 on not-"), claim(tmp_path, unit):
            pass
        # That is this study's patience; a store's is longer.
        with pytest.raises(HeldError), hold(lock, "a"):
            pass


def test_a_lost_race_is_silent_and_harmless(tmp_path: Path, store: Path) -> None:
    world = open_world(changed(tmp_path, store))
    run_study(world)
    rows = world.results.read()
    loser = ResultStore(tmp_path / "results")  # has not looked yet
    parts = sorted(p.name for p in loser.path.glob("rows-*"))
    assert loser.append_new(rows[rows["backbone"] == "bad"]) == 0
    assert sorted(p.name for p in loser.path.glob("rows-*")) == parts
    more = rows[rows["episode"] == 9].assign(episode=np.int32(10))
    assert loser.append_new(rows[rows["episode"] == 9]) == 0
    assert loser.append_new(more) == FEWSHOT
    with pytest.raises(DataError, match="rows of other episodes under the same key"):
        loser.append_new(more.assign(episode=np.int32(11), episodes_hash="0"))


def test_interrupted_it_says_what_is_kept(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastxfer.study import units

    true, calls = units.run_protocol, []

    def stop(*arguments: Any, **options: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return true(*arguments, **options)

    monkeypatch.setattr(units, "run_protocol", stop)
    got = CliRunner().invoke(main, ["study", "run", str(changed(tmp_path, store))])
    assert got.exit_code == 130
    assert f"fewshot {FEWSHOT // 2}/{FEWSHOT} are there and kept" in got.stderr
    (run,) = ResultStore.open(tmp_path / "results").runs()
    assert run["units"] == 2
    assert run["episodes"] == 2 * 2 * 2 * 10


def test_submitted_to_slurm_as_it_was_typed(tmp_path: Path, store: Path) -> None:
    words = ["study", "run", str(changed(tmp_path, store)), "--slurm", "nodes=2", "tasks_per_node=4", "--slurm-show"]
    got = CliRunner().invoke(main, words)
    assert got.exit_code == 0, got.output
    assert "#SBATCH --nodes=2" in got.output
    assert "--ntasks-per-node=4" in got.output


def test_an_example_is_written_that_reads(tmp_path: Path) -> None:
    file = tmp_path / "made" / "study.toml"
    words = [
        "study",
        "init",
        str(file),
        "--target",
        "pets",
        "photos/",
        "--ckpt",
        "resnet50.a1_in1k",
        "weights/mine.pth.tar",
    ]
    assert CliRunner().invoke(main, words).exit_code == 0
    study: Study = read_study(file)
    assert study.targets == ["pets", "photos"]
    assert study.backbones == ["resnet50.a1_in1k", "mine"]
    assert study.keys.targets[1].folder == str(file.parent / "photos/")
    assert study.stages == ["embed", "fewshot", "probe", "knn", "select", "report"]
    assert CliRunner().invoke(main, words).exit_code == 2
