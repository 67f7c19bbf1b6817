"""`targets check --save`, and who reads it: `fewshot`, `probe` and `knn --drop-leaks`, the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import blobs_store, blobs_target

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.report import write_report
from fastxfer.results import ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target
from fastxfer.targets.findings import load_findings, save_findings

COPIES = [f"images/{i:05}.png" for i in (61, 63, 65)]
OF_PATIENTS = [f"images/{i:05}.png" for i in (65, 90, 91)]


def found(copies: list[str], patients: list[str] | None, flagged: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of a check's report that are kept."""
    leaks = {"copy": {"images": copies}, "patient": None if patients is None else {"images": patients}}
    return {"leaks": [{"test_images": 30, **leaks}], "shortcut_auc": [{"flagged": flagged}]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A store of a target of 60 train and 40 test images, three of them leaks."""
    monkeypatch.chdir(tmp_path)
    target = blobs_target(n_classes=2, n_train=30, n_test=20, patients=True)
    blobs_store(tmp_path / "fastxfer-store", target, backbones={"good": 0.8})
    flagged = [{"trait": "format", "label": None, "auc": 0.97, "error": 0.01}]
    save_findings("fastxfer-data", [target], found(COPIES, OF_PATIENTS, flagged))
    return target


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="fastxfer")
    assert result.exit_code == 0, result.output
    return result


def run_json(*words: object) -> Any:
    return json.loads(run(*words, "--json").stdout)


def refused(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="fastxfer")
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    return result.stderr


def test_findings_come_back_and_those_of_another_table_are_refused(world: Target) -> None:
    findings = load_findings("fastxfer-data", "blobs", world.fingerprint)
    assert findings is not None
    assert findings.leaking("copy") == set(COPIES)
    assert findings.leaking("patient") == {*COPIES, *OF_PATIENTS}
    assert load_findings("fastxfer-data", "others", world.fingerprint) is None
    with pytest.raises(DataError, match=r"another table of target 'blobs'.*targets check blobs --save"):
        load_findings("fastxfer-data", "blobs", "0" * 64)
    Path("fastxfer-data/targets/leaks/blobs.json").write_text("{")
    with pytest.raises(DataError, match=r"blobs\.json: damaged.*targets check blobs --save"):
        load_findings("fastxfer-data", "blobs", world.fingerprint)


def test_a_store_without_some_images(world: Target) -> None:
    store = EmbeddingStore.open("fastxfer-store")
    less = store.leaving_out({"blobs": COPIES}, "copy")
    target, whole = less.target("blobs"), store.target("blobs")
    keep = ~np.isin(whole.image_id, COPIES)
    assert (target.n_images, target.dropped, whole.dropped) == (97, "copy:3", "")
    assert target.image_id.tolist() == whole.image_id[keep].tolist()
    values = store.embeddings("good", "blobs")
    np.testing.assert_array_equal(less.embeddings("good", "blobs"), values[keep])
    np.testing.assert_array_equal(less.rows("good", "blobs", np.array([60, 62]))[:], values[keep][[60, 62]])
    assert less.fingerprint("blobs") == less.target("blobs", keep_bad=True).fingerprint == world.fingerprint
    assert store.leaving_out({"blobs": ["elsewhere.png"]}, "copy").target("blobs").dropped == ""


def test_fewshot_drops_leaks_says_how_many_and_keeps_both_kinds_of_rows(world: Target) -> None:
    words = ("fewshot", "--ways", "all", "--shots", 1, "--episodes", 3, "--probe", "prototype", "--metric", "accuracy")
    plain = run_json(*words)
    assert plain["leaks"] == [
        "blobs: 3 of 30 test images (10.0%) are copies of images of train or val.",
        "blobs: 3 of 30 test images (10.0%) show patients of train or val.",
        "blobs: What the images are not about predicts their labels (format; AUC up to 0.97).",
    ]
    dropped = run_json(*words, "--drop-leaks")
    assert dropped["leaks"] == [
        "blobs: 3 test images left out (copy)",
        "blobs: 2 of 27 test images (7.4%) show patients of train or val.",
        plain["leaks"][2],
    ]
    assert (plain["rows_added"], dropped["rows_added"]) == (3, 3)
    assert plain["cells"][0]["flags"] == ["copies", "patients", "shortcuts"]
    (cell,) = dropped["cells"]
    assert cell["flags"] == ["patients", "shortcuts"]
    assert cell["params"].split(";")[-1] == "dropped=copy:3"
    rows = ResultStore.open("fastxfer-store-results").read()
    assert sorted(rows["n_queries"].unique()) == [37, 40]
    assert run_json(*words, "--drop-leaks")["rows_added"] == 0
    (cell,) = run_json(*words, "--drop-leaks", "patient")["cells"]
    assert (cell["params"].split(";")[-1], cell["flags"]) == ("dropped=patient:5", ["shortcuts"])
    assert run(*words).stdout.splitlines()[0].split()[-1] == "flags"
    assert run(*words).stdout.rstrip().endswith("  copies, patients, shortcuts")


@pytest.mark.parametrize("command", [("probe", "--l2", 1), ("knn", "--k", 1)])
def test_full_probes_drop_leaks(world: Target, command: tuple[Any, ...]) -> None:
    plain, dropped = run_json(*command), run_json(*command, "--drop-leaks")
    assert (plain["rows_added"], dropped["rows_added"]) == (6, 6)  # a plain run does not count as done
    assert dropped["leaks"][0] == "blobs: 3 test images left out (copy)"
    flags = [{(r["split"], *r["flags"]) for r in run["rows"]} for run in (plain, dropped)]
    known = {("val", "shortcuts"), ("test", "patients", "shortcuts")}
    assert flags == [known - {("test", "patients", "shortcuts")} | {("test", "copies", "patients", "shortcuts")}, known]
    assert run(*command).stdout.splitlines()[0].endswith("flags")
    queries = [{r["n_queries"] for r in run["rows"] if r["split"] == "test"} for run in (plain, dropped)]
    assert queries == [{40}, {37}]
    assert run_json(*command, "--drop-leaks")["rows_added"] == run_json(*command)["rows_added"] == 0


def test_cells_of_backbones_whose_source_contains_test_images_are_flagged(world: Target) -> None:
    words = ("fewshot", "--ways", "all", "--shots", 1, "--episodes", 3, "--probe", "prototype")
    splits = {COPIES[0]: "test", COPIES[1]: "test", COPIES[2]: "val"}
    images = [{"target": "blobs", "image": image, "split": split} for image, split in splits.items()]
    looked = {**found([], None, []), "source": "source of good", "source_images": images}
    save_findings("fastxfer-data", [world], looked)
    save_findings("fastxfer-data", [world], found(COPIES[:1], None, []))  # a later check without a source keeps it
    said = run_json(*words)
    contained = (
        "2 of 30 test images (6.7%) are images of 'source of good' or copies of such: backbones trained on it have"
    )
    assert said["leaks"][1].startswith(f"blobs: {contained}")
    assert said["cells"][0]["flags"] == ["copies", "source"]
    # Of two images one is a copy, too, and goes with the copies.
    assert "1 of 29 test images (3.4%) are images of 'source of good'" in run_json(*words, "--drop-leaks")["leaks"][1]
    rows = ResultStore.open("fastxfer-store-results").read()
    page = write_report(
        "fastxfer-store", rows, Path("out"), plan=None, command="x", data_root="fastxfer-data"
    ).read_text()
    assert "good was trained on source of good, which contains test images of blobs." in page
    assert COPIES[0] not in page


def test_what_cannot_be_dropped_is_refused_with_what_to_do(world: Target) -> None:
    few = ("fewshot", "--shots", 1, "--episodes", 2, "--probe", "prototype", "--drop-leaks")
    assert "--drop-leaks is about test images" in refused(*few, "--split", "val")
    save_findings("fastxfer-data", [world], found(COPIES, None, []))
    assert "nobody knows the patients of target 'blobs'" in refused(*few, "patient")
    save_findings("fastxfer-data", [replace(world, class_names=("x", "y"))], found([], None, []))
    assert "have changed since; `fastxfer targets check blobs --save" in refused(*few)
    assert any("have changed since" in line for line in run_json(*few[:-1])["leaks"])  # said, without stopping
    Path("fastxfer-data/targets/leaks/blobs.json").unlink()
    assert "not checked for leaks: fastxfer targets check blobs --save" in refused("probe", "--drop-leaks")


def test_the_report_flags_affected_targets_and_names_no_image(world: Target, tmp_path: Path) -> None:
    words = ("fewshot", "--ways", "all", "--shots", 1, "--episodes", 3, "--probe", "prototype")
    run(*words)
    run(*words, "--drop-leaks")
    rows = ResultStore.open("fastxfer-store-results").read()
    page = write_report("fastxfer-store", rows, tmp_path, plan=None, command="x", data_root="fastxfer-data").read_text()
    assert "blobs: 3 of 30 test images (10.0%) are copies of images of train or val." in page
    assert "Rows on blobs with dropped=copy:3 in their parameters leave out so many test images." in page
    assert COPIES[0] not in page
    quiet = write_report("fastxfer-store", rows, tmp_path, plan=None, command="x").read_text()
    assert "are copies of images" not in quiet
