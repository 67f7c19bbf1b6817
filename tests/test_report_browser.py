"""The report in Chromium, without a network: it draws, filters, is read aloud, printed and kept as files, and is quick."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reporting import BACKBONES, CURVE, NASTY, TARGETS, few_rows

from fastxfer.report import read_curves, write_report
from fastxfer.results import complete

pytestmark = pytest.mark.browser


def says(tab: Any, figure: str) -> str:
    """What the first panel of a figure says in words."""
    text: str = tab.locator(f"#{figure}-figure .says").first.inner_text()
    return text


def kept(tab: Any, figure: str, kind: str) -> str:
    """The content of the file that a button of a figure's first panel gives."""
    with tab.expect_download() as download:
        tab.locator(f"#{figure}-figure .files").first.get_by_role("button", name=re.compile(f"^{kind} ")).click()
    assert download.value.suggested_filename.endswith(f".{kind.lower()}")
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_figures_are_drawn_and_filtered(show, report_page):
    tab = show(report_page)
    for figure in ("curves", "methods", "trade"):
        assert tab.locator(f"#{figure}-figure .panel").count() == len(TARGETS)
    first = tab.locator("#curves-figure .plot").first
    assert first.locator("svg .scatterlayer .trace path.js-line").count() >= len(BACKBONES)
    assert re.match(
        r"At 1 shot: bit-small [\d.]+, then effnet-lite0 [\d.]+. At 10 shots: bit-small", says(tab, "curves")
    )
    assert first.get_attribute("aria-describedby") == tab.locator("#curves-figure .says").first.get_attribute("id")
    assert tab.locator("#outcomes-figure svg.main-svg").count() > 0

    # Cost against accuracy: the front is marked.
    # An embedding took 5 × (2.5 + i) s of backbone i; the cheapest is the best on all targets but digits-5-9.
    assert re.match(
        r"effnet-lite0 at [\d.]+ s reaches .*; bit-small at [\d.]+ s reaches .*: nothing cheaper", says(tab, "trade")
    )
    assert "bit-untrained" not in says(tab, "trade")
    tab.select_option("#f-shots", "full")
    assert "bit-small, fine-tuned" not in says(tab, "trade")  # dearer than its probe, and worse
    rows = kept(tab, "trade", "CSV").splitlines()
    assert len(rows) == 1 + 3 + 1
    assert [row.rsplit(",", 1)[1] for row in rows if ",finetune," in row] == ["no"]
    tab.select_option("#f-shots", "5")

    before = says(tab, "curves")
    tab.select_option("#f-probe", "knn")
    assert says(tab, "curves") != before
    tab.select_option("#f-target", "dtd10")
    assert tab.locator("#curves-figure .panel h3").all_inner_texts() == ["dtd10 5-way accuracy, %"]
    tab.select_option("#f-metric", "auc")
    assert "No rows match" in tab.locator("#curves-note").inner_text()
    assert tab.locator("#methods-figure .panel").count() == 1


def test_a_choice_anywhere_is_one_everywhere(show, report_page):
    tab = show(report_page)
    places = ["curves", "methods", "trade"]
    assert tab.locator("#chosen").is_hidden()
    # By keyboard, in the legend: one backbone less.
    button = tab.locator("#methods-legend button").filter(has_text="effnet-lite0")
    button.focus()
    tab.keyboard.press("Enter")
    for legend in ("curves", "methods"):
        pressed = tab.locator(f"#{legend}-legend button").filter(has_text="effnet-lite0").get_attribute("aria-pressed")
        assert pressed == "false"
    assert not [place for place in places if "effnet-lite0" in says(tab, place)]
    assert "effnet-lite0" not in tab.locator("#cells tbody").inner_text()
    assert "all but effnet-lite0" in tab.locator("#chosen").inner_text()
    # A target, by the name over a figure; the focus stays where it was.
    tab.locator("#curves-figure .pick").filter(has_text="lfw").press("Enter")
    assert [tab.locator(f"#{place}-figure .panel").count() for place in places] == [1, 1, 1]
    assert tab.evaluate("document.activeElement.textContent") == "lfw"
    assert tab.locator(".verdict:visible h3").all_inner_texts()[0].startswith("lfw")
    assert set(tab.locator("#cells tbody td[data-key=target]").all_inner_texts()) == {"lfw"}
    tab.locator("#all").click()
    assert [tab.locator(f"#{place}-figure .panel").count() for place in places] == [4, 4, 4]
    # A mark: its backbone alone; again: all.
    for left in (["bit-small"], sorted(BACKBONES)):
        tab.wait_for_selector("html[data-ready]", state="attached")
        tab.evaluate(
            "() => { const plot = document.querySelector('#methods-figure .plot');"
            "plot.emit('plotly_click', { points: [{ data: plot.data.find((t) => t.meta === 'bit-small') }] }); }"
        )
        pressed = tab.locator("#curves-legend button[aria-pressed=true]").all_inner_texts()
        assert sorted(pressed) == left
    # A name in the text.
    tab.locator("#targets .name").filter(has_text="bit-untrained").first.click()
    assert tab.locator("#curves-legend button[aria-pressed=true]").all_inner_texts() == ["bit-untrained"]


def test_table_sorts_filters_and_is_downloaded(show, report_page):
    tab = show(report_page)
    column = "#cells tbody tr td:nth-child(8)"
    header = tab.locator("#cells th[data-key=mean]")
    unsorted = tab.locator(column).all_inner_texts()
    header.locator("button").click()
    down = [float(v) for v in tab.locator(column).all_inner_texts()]
    assert header.get_attribute("aria-sort") == "descending"
    assert down == sorted(down, reverse=True)
    assert [float(v) for v in unsorted] != down
    header.locator("button").press("Enter")
    up = [float(v) for v in tab.locator(column).all_inner_texts()]
    assert header.get_attribute("aria-sort") == "ascending"
    assert up == sorted(up)
    assert up[0] < down[-1]
    tab.locator("#cells th[data-key=shots] button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert "the first 20 shown" in tab.locator("#table-status").inner_text()
    tab.locator("#more").click()
    shots = tab.locator("#cells tbody tr td:nth-child(4)").all_inner_texts()
    assert [s for i, s in enumerate(shots) if i == 0 or shots[i - 1] != s] == ["1", "2", "5", "10", "full"]

    tab.fill("#table-filter", "finetune dtd10 auc test")
    assert tab.locator("#cells tbody tr").count() == 1
    with tab.expect_download() as download:
        tab.locator("#csv").click()
    table = pd.read_csv(download.value.path())
    assert len(table) == 1
    assert (table.loc[0, ["target", "probe", "metric"]] == ["dtd10", "finetune", "auc"]).all()
    assert table.loc[0, "low"] < table.loc[0, "mean"] < table.loc[0, "high"]


def test_a_figure_is_a_table_and_three_kinds_of_file(show, report_page, tmp_path):
    tab = show(report_page, scheme="dark")
    panel = tab.locator("#curves-figure .panel").first
    panel.get_by_role("button", name="Table of this figure").press("Enter")
    shown = panel.locator("table")
    assert shown.locator("tbody tr").count() == 4 * len(BACKBONES)
    assert "in all rows: target digits-5-9" in shown.locator("caption").inner_text()
    heads = shown.locator("th").all_inner_texts()
    assert {"backbone", "shots", "mean", "low", "high"} <= set(heads)
    assert "target" not in heads

    (tmp_path / "data.csv").write_text(kept(tab, "curves", "CSV"))
    table = pd.read_csv(tmp_path / "data.csv")
    assert len(table) == 4 * len(BACKBONES)
    assert (table["low"] < table["mean"]).all()
    # As on white paper, though the screen is dark.
    svg = kept(tab, "curves", "SVG")
    assert svg.startswith("<svg")
    assert "rgb(77, 163, 224)" not in svg
    assert "rgb(0, 114, 178)" in svg or "#0072b2" in svg
    # PDF: the page to be printed is the figure alone, and all is as before when that is done.
    tab.evaluate("window.print = () => { window.printed = document.title; }")
    panel.get_by_role("button", name="PDF of this figure").click()
    tab.wait_for_function("window.printed")
    width, height = (tab.evaluate(f"document.querySelector('.sheet img').{k}") for k in ("width", "height"))
    pdf = tab.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    (box,) = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf)  # one page, in points
    assert [float(v) / 0.75 for v in box] == pytest.approx([width, height], abs=1.5)
    assert tab.locator(".sheet").count() == 0
    assert tab.title() == "Which backbone transfers best?"
    assert tab.locator("#answer").is_visible()


def test_both_colour_schemes_paper_and_phone(show, report_page):
    tab = show(report_page, scheme="dark")
    line = "() => [...document.querySelectorAll('#curves-figure .js-line')].at(-1).style.stroke"
    tick = "() => document.querySelector('#curves-figure .xtick text').style.fill"
    dark = (
        tab.evaluate(line),
        tab.evaluate(tick),
        tab.evaluate("getComputedStyle(document.body).backgroundColor"),
    )
    assert dark[2] == "rgb(23, 24, 26)"
    tab.emulate_media(color_scheme="light")
    tab.wait_for_function(f"(before) => ({line})() !== before", arg=dark[0])
    assert tab.evaluate(tick) != dark[1]
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(f"(before) => ({line})() === before", arg=dark[0])
    tab.emulate_media(color_scheme="dark", media="print")
    tab.wait_for_function(f"(before) => ({line})() !== before", arg=dark[0])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

    phone = show(report_page, width=360)
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert phone.evaluate("Math.max(...[...document.querySelectorAll('.plot svg')].map((s) => s.clientWidth))") <= 360
    # Rows of the long table are cards: backbone on the left, value on the right, all within the screen.
    label, mean = (phone.locator(f"#cells tbody tr td[data-key={k}]").first.bounding_box() for k in ("label", "mean"))
    assert abs(label["y"] - mean["y"]) < 12
    assert 180 < mean["x"] < 360 - mean["width"]


def test_axe_finds_no_fault(show, report_page):
    """In light on a desk and in dark on a phone, with everything open that can be opened."""
    from axe_playwright_python.sync_playwright import Axe

    tab = show(report_page)
    tab.locator("#curves-figure .files button").first.click()
    tab.locator("#curves-legend button").first.click()
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width, scheme in ((1200, "light"), (390, "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_selector("html[data-ready]", state="attached")
        found = Axe().run(tab).response["violations"]
        assert [(v["id"], v["impact"], [node["target"] for node in v["nodes"]][:3]) for v in found] == []


def test_nothing_that_users_named_is_run(show, nasty_page):
    tab = show(nasty_page)
    assert tab.evaluate("window.pwned") is None
    assert tab.locator("main img, main a[href^=javascript], body style").count() == 0
    assert tab.title() == NASTY
    assert NASTY in tab.locator("#curves-legend").inner_text()
    assert tab.locator("#methods-figure svg a").count() == 0
    # Figure labels are shortened, but what is shown is the text itself.
    assert "<script>window.pwned=1" in " ".join(tab.locator("#methods-figure svg .ytick").all_text_contents())
    plot = tab.locator("#curves-figure .plot").first
    plot.locator("svg .scatterlayer .trace .point").first.hover(force=True)
    tab.wait_for_selector("#curves-figure .hoverlayer .hovertext")
    assert "onerror" in " ".join(plot.locator(".hoverlayer").all_text_contents()) or NASTY[:20] in " ".join(
        plot.locator(".hoverlayer").all_text_contents()
    )
    tab.fill("#table-filter", "finetune")
    for button in tab.locator(".files button:has-text('Table')").all():
        button.click()
    tab.locator("#curves-legend button").first.click()
    tab.locator("#curves-figure .pick").first.click()
    assert "<svg" in kept(tab, "curves", "SVG")
    assert tab.locator("main img, main a[href^=javascript], body style").count() == 0
    assert tab.evaluate("window.pwned") is None


def test_many_backbones_stay_apart_and_a_full_point_joins_its_curve(show, tmp_path):
    names = {f"b{i}": [0.5 + i / 40, 0.52 + i / 40, 0.51 + i / 40] for i in range(9)}
    curve = pd.concat([few_rows(names, ways="all", shots=s, episodes_hash=s) for s in ("1", "5")])
    full = few_rows({b: [v[0] + 0.2] for b, v in names.items()}, ways="all", shots="full", episodes_hash="")
    rows = pd.concat([curve, full.assign(episode=-1, low=full["value"] - 0.05, high=full["value"] + 0.05)])
    tab = show(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
    ticks = tab.locator("#curves-figure .xtick").all_text_contents()
    assert [t for t in ticks if t] == ["1", "5", "full"]
    looks = tab.evaluate(
        "() => document.querySelector('#curves-figure .plot').data.filter((t) => t.mode === 'lines+markers')"
        ".map((t) => t.line.color + t.line.dash + t.marker.symbol)"
    )
    assert len(set(looks)) == len(names)


def test_learning_curves_of_several_runs_in_one_figure(show, tmp_path):
    (tmp_path / "pre-trained.csv").write_text(CURVE)
    (tmp_path / "random.csv").write_text(CURVE.replace("0.5,", "0.3,"))
    rows, curves = few_rows({"a": [0.5, 0.6]}), read_curves(tmp_path)
    tab = show(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x", curves=curves))
    assert tab.locator("#learning-figure .panel").count() == 2
    scores = tab.locator("#learning-figure .plot").first
    assert scores.locator("svg .scatterlayer .trace path.js-line").count() == 2
    assert says(tab, "learning") == "pre-trained ends at 0.5. random ends at 0.3."
    assert tab.locator("#learning-figure .legendtext").all_text_contents() == ["pre-trained", "random"] * 2


def test_many_rows_open_within_two_seconds(show, tmp_path):
    """200,000 episodes of 120 cells: the page holds the cells alone, and draws what is in sight first."""
    targets, backbones, shots, episodes = 5, 8, ("1", "5", "20"), 1667
    rng = np.random.default_rng(0)
    cells = pd.MultiIndex.from_product(
        [[f"t{i}" for i in range(targets)], [f"b{i}" for i in range(backbones)], shots, range(episodes)],
        names=["target", "backbone", "shots", "episode"],
    ).to_frame(index=False)
    rows = cells.assign(
        source="s", ways="5", seed=0, probe="logistic", params="l2=1", split="test", metric="accuracy",
        episodes_hash="h", value=rng.beta(8, 3, len(cells)),
    )  # fmt: skip
    page = write_report(tmp_path / "none", complete(rows), tmp_path, plan=None, command="x")
    assert len(rows) > 200_000
    assert page.stat().st_size < 6e6
    tab = show(page)
    devtools = tab.context.new_cdp_session(tab)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy() -> float:
        metrics: dict[str, float] = {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}
        return metrics["TaskDuration"]

    taken = []
    for _ in range(3):  # what else the machine does takes caches and turns from it
        before = busy()
        tab.reload(wait_until="domcontentloaded")
        taken.append(busy() - before)
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        if taken[-1] < 2:
            break
    assert 0.2 < min(taken) < 2
    assert tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    assert tab.locator("#curves-figure .panel svg.main-svg").count() >= targets
