"""A study whose few-shot episodes stop by themselves: the same rows, whoever does it, however often it is killed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import blobs_store, blobs_target

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.results import CELL, KEY, ResultStore
from fastxfer.results.merging import merge
from fastxfer.study import World, is_complete, open_world, price, read_part, read_study, run_study, status
from fastxfer.study.page import rows_of
from fastxfer.until import FEWEST, looks

STUDY = """
name = "until"
targets = ["blobs"]
store = "STORE"
backbone = [{ name = "good" }, { name = "bad" }]
[fewshot]
ways = 3
shots = [1, 2]
queries = 4
episodes = 3000
until = "ci 1.5"
probes = ["prototype", { name = "knn", k = [1, 2] }]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("until")
    target = blobs_target("blobs", n_classes=4, n_train=8, n_test=8)
    blobs_store(folder / "store", target, backbones={"good": 0.2, "bad": 3.0}, dim=8)
    (folder / "study.toml").write_text(STUDY.replace("STORE", str(folder / "store")))
    return folder / "study.toml"


def world(file: Path, results: Path) -> World:
    return open_world(file, results=str(results))


def in_order(frame: Any, *key: str) -> Any:
    return frame.astype(dict.fromkeys(CELL, str)).sort_values([*key], ignore_index=True).astype(str)


def everything(results: Path) -> tuple[Any, Any]:
    store = ResultStore.open(results)
    return in_order(store.read(), *KEY), in_order(store.read_images(), *CELL, "image")


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    run_study(world(file, results))
    return results


def test_it_stops_where_the_means_are_known_and_is_complete_then(file: Path, whole: Path) -> None:
    sizes = ResultStore.open(whole).read().groupby(list(CELL), observed=True).size()
    assert len(sizes) == 2 * 2 * 3
    assert set(sizes) <= set(looks(3000))
    assert sizes.nunique() > 1
    assert sizes.max() < 3000
    told = status(world(file, whole))
    assert is_complete(told)
    assert {c["episodes"] for c in told["cells"]} == set(sizes)
    assert [line["left"] for line in price(world(file, whole), measure=False) if line["stage"] == "fewshot"] == [0]
    assert [(d.stage, d.episodes) for d in run_study(world(file, whole))] == [("embed", 0), ("fewshot", 0)]
    # Before it is run, as many episodes as there may be are told.
    assert {c["episodes"] for c in status(world(file, whole / "none"))["cells"]} == {3000}


def test_under_kills_the_rows_are_those_of_an_undisturbed_run(
    file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process dies after some windows, before or behind the moment when one is on disk."""
    rng, write, deaths = Random(0), ResultStore.append_new, 0
    left = 0

    def dying(self: ResultStore, *arguments: Any) -> int:
        nonlocal left
        left -= 1
        if left == 0 and rng.random() < 0.5:
            raise KeyboardInterrupt
        added = write(self, *arguments)
        if left == 0:
            raise KeyboardInterrupt
        return added

    monkeypatch.setattr(ResultStore, "append_new", dying)
    while True:
        left = rng.randint(1, 12)
        try:
            run_study(world(file, tmp_path))
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths > 3
    for mine, theirs in zip(everything(tmp_path), everything(whole), strict=True):
        assert mine.equals(theirs)


def test_parts_of_several_people_are_merged_into_the_same_rows(file: Path, whole: Path, tmp_path: Path) -> None:
    study = read_study(file)
    for number in (1, 2):
        run_study(world(file, tmp_path / f"part-{number}"), part=read_part(study, [], f"{number}/2"))
    merge([tmp_path / "part-1", tmp_path / "part-2"], tmp_path / "merged")
    assert everything(tmp_path / "merged")[0].equals(everything(whole)[0])
    assert is_complete(status(world(file, tmp_path / "merged")))


def test_rows_beyond_the_stop_are_not_the_studys(file: Path, whole: Path, tmp_path: Path) -> None:
    """What another run has left in the folder changes nothing of what the study says, and is neither lost nor done anew."""
    longer = tmp_path / "study.toml"
    longer.write_text(file.read_text().replace('until = "ci 1.5"\n', "").replace("3000", "1500"))
    results = tmp_path / "results"
    run_study(world(longer, results))
    here = world(file, results)
    run_study(here)
    sizes = here.results.read().groupby(list(CELL), observed=True).size()
    assert sizes.min() >= 1500
    assert in_order(rows_of(here, here.results.read()), *KEY).equals(everything(whole)[0])
    assert is_complete(status(here))


def test_the_condition_is_part_of_the_hash_and_bad_ones_are_told(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "study.toml"
    other.write_text(file.read_text().replace("ci 1.5", "ci 2"))
    without = tmp_path / "without.toml"
    without.write_text(file.read_text().replace('until = "ci 1.5"\n', ""))
    assert len({read_study(f).hash for f in (file, other, without)}) == 3
    for words, said in (("2.5", 'give "ci 0.5"'), ("ci 80", "above 0, below 50")):
        other.write_text(file.read_text().replace("ci 1.5", words))
        with pytest.raises(DataError, match="fewshot: --until") as error:
            open_world(other, results=str(tmp_path / "none"))
        assert said in str(error.value)
    text = file.read_text().replace('"prototype", ', "")
    other.write_text(text.replace('until = "ci 1.5"', 'until = "ci 1.5"\nmetrics = "log_loss"'))
    result = CliRunner().invoke(main, ["study", "run", str(other), "--results", str(tmp_path / "none"), "--dry-run"])
    assert result.exit_code == 1
    assert "log_loss is none: choose among accuracy" in result.output
    assert FEWEST == 100
