"""`fastxfer plot embeddings`: the right points in the right colours, nothing that shouldn't be on the page, no network."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import blobs_embeddings, blobs_store, blobs_target
from test_store import make_store

from fastxfer.cli import main
from fastxfer.errors import UsageError
from fastxfer.projection import project
from fastxfer.report.groups import fewer, groups
from fastxfer.report.plane import COLOURS, figure, panels_of
from fastxfer.targets import Target

HOSTILE = "</script><img src=x onerror=alert(1)>%{x}&amp;"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """In the store `fastxfer-store`, by `good` and `bad`; with patients, and a class whose name is an attack."""
    monkeypatch.chdir(tmp_path)
    target = blobs_target(patients=True)
    names = (HOSTILE, *target.class_names[1:])
    target = replace(target, class_names=names, view=np.array(["PA", "L", ""])[np.arange(target.n_images) % 3])
    blobs_store(tmp_path / "fastxfer-store", target)
    return target


def page_figure(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figure">(.*?)</script>', path.read_text("utf-8"))
    assert found
    return json.loads(found[1])


def test_coordinates_are_the_projection_s(blobs: Target) -> None:
    (panel,) = run_json("plot", "embeddings", "good", "blobs")["panels"]
    assert not Path("embeddings.html").exists()  # JSON asks for no file
    truth = project(blobs_embeddings(blobs, spread=0.8), np.arange(blobs.n_images))
    assert np.allclose(np.stack([panel["x"], panel["y"]], axis=1), truth.points, atol=1e-4)
    assert panel["explained"] == pytest.approx(truth.explained)
    assert panel["group"] == [blobs.class_names[i] for i in blobs.labels]
    assert panel["rows"] == list(range(blobs.n_images))
    assert "image_id" not in panel
    assert "patient" not in json.dumps(panel)


def test_side_by_side_and_thinned_aloud(blobs: Target) -> None:
    result = run("plot", "embeddings", "good", "blobs", "--beside", "bad", "--points", "50", "--by", "split")
    assert result.exit_code == 0, result.stderr
    assert "blobs: 50 of 300 images are shown, drawn with seed 0; --points 300 shows all" in result.stderr
    drawn = page_figure(Path("embeddings.html"))
    assert [t["name"] for t in drawn["data"]] == ["train", "test"] * 2
    assert [t["showlegend"] for t in drawn["data"]] == [True, True, False, False]
    assert sum(len(t["x"]) for t in drawn["data"]) == 100
    titles = [a["text"] for a in drawn["layout"]["annotations"]]
    assert titles == ["<b>good</b> on blobs, 50 of 300 images", "<b>bad</b> on blobs, 50 of 300 images"]
    assert re.fullmatch(r"PC 1 \(\d+\.\d % of variance\)", drawn["layout"]["xaxis"]["title"]["text"])
    # The same images, and axes that run the same way.
    two = run_json("plot", "embeddings", "good", "blobs", "--beside", "bad", "--points", "50", "--seed", "3")["panels"]
    assert two[0]["rows"] == two[1]["rows"]
    x, y = (np.array([p["x"], p["y"]]) for p in two)
    assert ((x - x.mean(axis=1, keepdims=True)) * y).sum(axis=1).min() >= 0


def test_images_left_out_are_not_in_the_picture_and_a_url_is_a_store_too() -> None:
    store = make_store("memory://plot/store")
    before = panels_of(store, ["tiny"], ["photos"])[0].projection.points
    store.record_bad("photos", {1: "is cut short"})
    (panel,) = panels_of(store, ["tiny"], ["photos"])
    assert panel.rows.tolist() == list(range(9))  # rows as in `store.target`
    assert panel.target.image_id[1] == "a/ä 2.png"
    assert np.array_equal(panel.groups.of, panel.target.labels)
    assert panel.projection.points.shape == (9, 2)
    assert not np.allclose(panel.projection.points, before[[0, *range(2, 10)]])


def test_no_patient_and_no_path_is_on_the_page(blobs: Target) -> None:
    assert run("plot", "embeddings", "good", "blobs").exit_code == 0
    page = Path("embeddings.html").read_text("utf-8").split("Plotly", 1)[0]
    assert blobs.patient is not None
    assert not any(who in page for who in set(blobs.patient.tolist()))
    assert "images/0" not in page
    assert "<img" not in page
    assert run("plot", "embeddings", "good", "blobs", "--paths", "--out", "paths.html").exit_code == 0
    hover = page_figure(Path("paths.html"))["data"][1]["text"][0]
    assert re.fullmatch(r"row \d+<br>class b<br>train<br>images/\d+\.png", hover)


def test_each_label_has_colour_and_symbol() -> None:
    names = tuple(f"c{i:02}" for i in range(30))
    target = Target(
        name="many",
        image_id=np.array([f"{i}.png" for i in range(300)]),
        class_names=names,
        labels=np.minimum(np.arange(300) % 33, 29),
        split=np.repeat("train", 300),
    )
    some = fewer(groups(target), 21)
    assert some.names[-1] == "other classes"
    assert len(some.names) == 21
    assert "c29" in some.names  # the largest
    projection = project(np.random.default_rng(0).normal(size=(300, 5)), np.arange(300))
    panel = SimpleNamespace(
        backbone="net", target=target, rows=np.arange(300), method="pca", projection=projection, groups=groups(target)
    )
    looks = [(t["marker"]["color"], t["marker"]["symbol"]) for t in figure([panel])["data"]]  # type: ignore[list-item]
    assert len(set(looks)) == len(looks) == 21
    assert {colour for colour, _ in looks[1:]} == set(COLOURS)


def test_multi_label_targets(tmp_path: Path) -> None:
    target = blobs_target(multi_label=True)
    target.labels[0] = [1, 1, 0, 0, 0, 0]
    target.labels[1] = [0, 0, np.nan, 0, 0, 0]
    every = groups(target)
    assert [every.names[i] for i in every.of[:2]] == ["several labels", "no label"]
    one = groups(target, label="class c")
    assert one.names == ("class c", "not class c", "unknown")
    expected = np.where(np.isnan(target.labels[:, 2]), 2, np.where(target.labels[:, 2] == 1, 0, 1))
    assert np.array_equal(one.of, expected)
    store = blobs_store(tmp_path / "s", target)
    drawn = figure(panels_of(store, ["good"], ["blobs"], label="class c"))
    assert [t["name"] for t in drawn["data"]] == ["unknown", "class c", "not class c"]  # grey lies below
    assert "row 0<br>class a, class b<br>train" in drawn["data"][2]["text"]


def test_both_methods_beside_each_other(blobs: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, **_: Any) -> None: ...

        def fit_transform(self, values: Any) -> Any:
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    assert run("plot", "embeddings", "good", "blobs", "--method", "pca", "umap").exit_code == 0
    layout = page_figure(Path("embeddings.html"))["layout"]
    assert layout["xaxis"]["title"]["text"].startswith("PC 1 (")
    assert layout["yaxis2"]["title"]["text"] == "UMAP 2"
    assert "Principal components and UMAP of what good made" in Path("embeddings.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("good", "blobs", "--by", "source"), 2, "target 'blobs' has no such column; it has labels, split, view"),
        (("good", "blobs", "--label", "class bb"), 2, "target 'blobs' has no such label. Did you mean: class b"),
        (("good", "blobs", "--out", "x.jpg"), 2, "--out x.jpg: expected a name ending in .html, .svg, .png, .pdf"),
        (("goood", "blobs"), 2, "good"),
        (("good", "blob"), 2, "blobs"),
    ],
)
def test_what_is_not_there(blobs: Target, words: tuple[str, ...], code: int, message: str) -> None:
    result = run("plot", "embeddings", *words)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_picture_needs_kaleido(blobs: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    result = run("plot", "embeddings", "good", "blobs", "--out", "x.png")
    assert result.exit_code == 2
    assert "pip install kaleido, or fastxfer[images]; an .html needs nothing" in result.stderr
    with pytest.raises(UsageError, match="--by shape"):
        groups(blobs, "shape")


def test_by_a_column_that_says_it_too(blobs: Target) -> None:
    assert run("plot", "embeddings", "good", "blobs", "--by", "view").exit_code == 0
    traces = page_figure(Path("embeddings.html"))["data"]
    assert [t["name"] for t in traces] == ["not known", "L", "PA"]
    assert traces[1]["text"][0].endswith("<br>view: L")


@pytest.mark.browser
def test_a_browser_draws_it_without_a_network(blobs: Target, show: Any) -> None:
    from playwright.sync_api import expect

    assert run("plot", "embeddings", "good", "blobs", "--beside", "bad").exit_code == 0
    tab = show(Path("embeddings.html").resolve())
    assert tab.locator("#plot .scatterlayer .trace").count() == 12
    assert tab.locator("#plot path.point").count() == 600
    buttons = [b.get_attribute("data-title") for b in tab.locator(".modebar-btn").all()]
    assert set(buttons) <= {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}  # no "Share"
    entries = tab.locator("#plot .legendtext")
    assert entries.all_text_contents()[0].startswith("</script><img")  # words, not tags
    tab.locator("#plot .legendtoggle").nth(1).click()
    expect(tab.locator("#plot path.point")).to_have_count(500)  # gone from both panels
    assert tab.locator("img").count() == 0


@pytest.mark.browser
def test_pictures(blobs: Target) -> None:
    pytest.importorskip("kaleido")
    assert run("plot", "embeddings", "good", "blobs", "--out", "x.svg").exit_code == 0
    drawn = Path("x.svg").read_text("utf-8")
    assert drawn.startswith("<svg")
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", drawn)
