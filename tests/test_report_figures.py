"""`fastxfer report --figures`: every figure's data and picture as files, the same that the page's buttons give."""

from __future__ import annotations

import csv
import html
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from reporting import CURVE, NASTY, RENAME, few_rows, make_gains, make_plan, make_rows, make_store
from test_report_sections import full

from fastxfer.cli import main
from fastxfer.errors import UsageError
from fastxfer.report import read_curves, read_tables, write_report
from fastxfer.results import ResultStore, complete, results_path


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page with every kind of figure, and the folder of their data."""
    folder = tmp_path_factory.mktemp("everything")
    rows = make_rows(20)
    names = ("bit-50x1", "small", "tiny")
    lines = [full(b, "cifar10", "finetune", 0.93 - 0.1 * i) for i, b in enumerate(names)]
    lines += [full(b, "cifar10", "logme", -i, split="train", metric="transferability") for i, b in enumerate(names)]
    near = rows[["source", "target"]].drop_duplicates().assign(reference="r", value=0.25, low=0.2, high=0.3)
    near = pd.concat([near.assign(measure=m) for m in ("mmd", "neighbours")])
    near["value"] += 0.01 * near["target"].astype("category").cat.codes
    near.to_csv(folder / "near.csv", index=False)
    make_gains().to_csv(folder / "gains.csv", index=False)
    (folder / "curves").mkdir()
    (folder / "curves" / "run.csv").write_text(CURVE)
    page = write_report(
        make_store(folder / "store"), pd.concat([rows, complete(pd.DataFrame(lines))], ignore_index=True), folder, plan=make_plan(), command="x",
        curves=read_curves(folder / "curves"), tables=read_tables([folder / "near.csv", folder / "gains.csv"]),
        figures=folder / "figures",
    )  # fmt: skip
    return page, folder / "figures"


def table(text: str) -> list[list[str | float]]:
    """Cells of a CSV, numbers as numbers of nine digits, however they were written."""

    def value(cell: str) -> str | float:
        try:
            return float(f"{float(cell):.9g}")
        except ValueError:
            return cell

    return [[value(cell) for cell in line] for line in csv.reader(text.splitlines())]


KINDS = {
    "shots", "pairs", "ranks", "mean-ranks", "crossings", "methods", "proximity", "gains", "paper-beside",
    "transferability", "expected-and-found", "learning", "cost",
}  # fmt: skip


def test_every_kind_of_figure_has_its_data(everything: tuple[Path, Path]) -> None:
    names = {path.name for path in everything[1].iterdir()}
    assert {k for k in KINDS if any(n.startswith((f"{k}-", f"{k}.")) for n in names)} == KINDS
    assert all(re.fullmatch(r"[\w.-]+\.csv", name, re.ASCII) for name in names)
    # Means of the usual probe at the usual settings, one line a backbone and number of shots; then the whole train split.
    shown = pd.read_csv(everything[1] / "shots-lfw.csv")
    assert shown["probe"].unique().tolist() == ["logistic"]
    assert sorted(shown["shots"].unique()) == [1, 2, 5, 10]
    assert len(shown) == 3 * 4


@pytest.mark.browser
def test_the_page_gives_the_same_files(show: Any, everything: tuple[Path, Path]) -> None:
    page, folder = everything
    tab = show(page)
    # What is to be downloaded, as the buttons make it, without waiting for each file.
    tab.evaluate(
        "() => { window.kept = []; URL.createObjectURL = (blob) => { kept.push(blob.text()); return 'data:,'; };"
        "HTMLAnchorElement.prototype.click = function () { kept.push(this.download); }; }"
    )
    tab.evaluate("document.querySelectorAll('.files button:nth-child(4)').forEach((button) => button.click())")
    kept = tab.evaluate("Promise.all(kept)")
    found = dict(zip(kept[1::2], kept[::2], strict=True))
    assert set(found) == {path.name for path in folder.iterdir()}
    for name, text in found.items():
        assert table(text) == table((folder / name).read_text("utf-8")), name


@pytest.mark.browser
def test_pictures_are_drawn_with_title_and_legend(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    rows = few_rows({NASTY: [0.5, 0.6]}, target=RENAME["dtd10"])
    figures = tmp_path / "figures"
    write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x", figures=figures, pictures=("svg", "pdf"))
    data = sorted(path.stem for path in figures.glob("*.csv"))
    assert len(data) == 1
    for kind, start in (("svg", b"<svg"), ("pdf", b"%PDF")):
        drawn = sorted(figures.glob(f"*.{kind}"))
        assert [path.stem for path in drawn] == data
        assert all(path.read_bytes().startswith(start) for path in drawn)
    curve = next(figures.glob("shots-*.svg")).read_text("utf-8")
    assert "5-way accuracy" in curve
    assert "<script>window.pwned=1</scrip…" in html.unescape(curve)  # the legend's, which is text
    assert "<script" not in curve
    # The page itself was written without the drawings' script.
    assert "window.figures" not in (tmp_path / "index.html").read_text("utf-8")


def test_names_stay_apart_and_formulas_stay_text(tmp_path: Path) -> None:
    """Names of targets that become the same name of a file, also where capitals count for nothing."""
    rows = pd.concat([few_rows({"=1+1": [0.5, 0.6], "b": [0.4, 0.5]}, target=t) for t in ("a/b", "a b", "A?b")])
    write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x", figures=tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").glob("shots-*"))
    assert len({name.casefold() for name in names}) == 3
    assert all(re.fullmatch(r"shots-[aA]_b(-[23])?\.csv", name) for name in names)
    assert {pd.read_csv(tmp_path / "figures" / name)["target"].iloc[0] for name in names} == {"a/b", "a b", "A?b"}
    assert "\n" in (tmp_path / "figures" / names[0]).read_text("utf-8")
    assert ",'=1+1," in (tmp_path / "figures" / names[0]).read_text("utf-8")


def test_without_kaleido_the_data_are_there_and_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    ResultStore.open(results_path("fastxfer-store")).append(few_rows({"a": [0.5, 0.6]}))
    result = CliRunner().invoke(main, ["report", "--figures", "figures", "--as", "pdf"])
    assert result.exit_code == 2
    assert "pip install kaleido, or fastxfer[images]; the figures' data lie in figures as .csv" in result.stderr
    assert (tmp_path / "report" / "index.html").is_file()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["shots-t.csv"]


def test_without_a_browser_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kaleido = pytest.importorskip("kaleido")

    class Missing:
        def __init__(self, **_: Any) -> None:
            raise RuntimeError("no browser found")

    monkeypatch.setattr(kaleido, "Kaleido", Missing)
    with pytest.raises(UsageError, match=r"no browser found.*is Chrome or Chromium installed\? The figures' data lie"):
        write_report(
            tmp_path / "none", few_rows({"a": [0.5, 0.6]}), tmp_path, plan=None, command="x",
            figures=tmp_path / "figures", pictures=("svg",),
        )  # fmt: skip
    assert (tmp_path / "figures" / "shots-t.csv").is_file()
