"""The study of docs/study.md: it runs, goes on, and its page says nothing that its tables do not."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.realstudy import draw, page
from benchmarks.realstudy.design import ALL_TARGETS, FULL, Extent, backbones, study_file
from benchmarks.realstudy.measure import tables
from benchmarks.realstudy.run import Run
from fastxfer.results import ResultStore

TINY = Extent(
    sizes=("s", "m"), amounts=(5, 10), images_seen=10, foreign=(), targets=("dtd10", "nih"), more_targets=(), per_class=8,
    shots=(1, 5), episodes=20, many=((5, 10),), steps=1, batch=4, proximity=False,
)  # fmt: skip
# Names with a digit in them, and the level of all intervals. All else that has a digit is filled in from the tables.
NAMES = r"Cherti & Jitsev \(2021\)|CIFAR-10|Lite0|MobileNetV\d|ImageNet-1k|ResNet-56|ChestX-ray14|Kermany|`[^`]*`|95 %"


@pytest.fixture(scope="module")
def study(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    Run(out, TINY).run()
    return out


@pytest.mark.real
def test_a_study_goes_on_where_it_was_stopped_and_fills_its_page(study: Path) -> None:
    before = ResultStore.open(study / "results").digest
    Run(study, TINY).run()
    assert ResultStore.open(study / "results").digest == before, "a finished study was measured again"

    page.save(tables(study, TINY), study / "page")
    found = page.load(study / "page")
    text = page.render(found)
    assert "nan" not in text
    assert f"{len(list(backbones(TINY)))} backbones, {len(TINY.targets)} targets" in text
    assert all(figure.data for figure in draw.figures(found).values())
    plan = found["plan"]
    assert (plan["of"] == len(list(backbones(TINY)))).all(), "selection is judged by all fine-tunings"
    assert (plan["lost"] >= 0).all()
    # A cell of the page is the mean of its rows.
    rows = ResultStore.open(study / "results").read()
    some = rows[(rows["target"] == "dtd10") & (rows["backbone"] == "natural-s-10") & (rows["shots"] == "5")]
    cells = found["cells"].query("target == 'dtd10' and backbone == 'natural-s-10' and shots == '5'")
    assert cells["n"].sum() == len(some)
    for n, mean in zip(cells["n"], cells["mean"], strict=True):
        of_cell = [g["value"].mean() for _, g in some.groupby("params", observed=True) if len(g) == n]
        assert any(mean == pytest.approx(100 * value, abs=1e-3) for value in of_cell)


def test_the_template_has_no_number_of_its_own() -> None:
    text = page.TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->|```.*?```|\{[^}]*\}|\]\([^)]*\)", "", text, flags=re.S)
    left = re.sub(NAMES, "", text)
    assert [line for line in left.splitlines() if re.search(r"\d", line)] == []


def test_the_page_is_what_its_tables_say() -> None:
    if not page.PAGE.exists():
        pytest.skip("docs/study.md is not written: python -m benchmarks.realstudy --out FOLDER --save")
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render(page.load())
    for picture in re.findall(r"\]\(study/(\w+\.svg)\)", text):
        assert (page.FOLDER / picture).stat().st_size < 300_000


def test_the_study_has_the_axes_that_it_speaks_of() -> None:
    ours = [b for b in backbones(FULL) if b.images and b.is_ours]
    assert len({b.size for b in ours}) == len({b.images for b in ours}) == 3
    assert len(ours) == 18
    assert len({b.name for b in backbones(FULL)}) == 26
    seen = {(b.name, t) for b in backbones(FULL) for t in ALL_TARGETS if b.has_seen(t)}
    assert {b for b, t in seen if t == "kermany3"} == {b.name for b in backbones(FULL) if b.source == "kermany"}
    assert {b for b, t in seen if t in ("nih", "cifar-unseen")} == {"cxr-nih", "resnet56"}
    assert {t.domain for t in ALL_TARGETS.values()} == {"natural", "chest"}
    assert "[finetune]" in study_file(FULL, FULL.targets, tuned=True)
    assert "[finetune]" not in study_file(FULL, FULL.more_targets, tuned=False)


def test_a_value_that_no_table_has_stops_the_page(tmp_path: Path) -> None:
    page.save({"extent": pd.DataFrame({"key": ["a word"], "value": ['"that no field asks for"']})}, tmp_path)
    with pytest.raises(KeyError):
        page.render(page.load(tmp_path))
