"""The report's paired comparisons: verdicts in the answer, figures that say the same, tables for papers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting import few_rows, text_of

from fastxfer.report import write_report
from fastxfer.report.answer import stand
from fastxfer.report.cells import aggregate
from fastxfer.report.comparisons import compared

EPISODES = 60


def episodes(means: dict[str, float], noise: float = 0.002, seed: int = 0, **columns: str) -> pd.DataFrame:
    """Backbones that share what is hard about an episode (± 5 points), so that only a paired comparison sees their difference."""
    rng = np.random.default_rng(seed)
    common = 0.05 * rng.standard_normal(EPISODES)
    values = {name: list(mean + common + noise * rng.standard_normal(EPISODES)) for name, mean in means.items()}
    return few_rows(values, **columns)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """On t `good` beats `near` by 2 points and `far` by 30; on u two are alike; on v nobody knows. Curves of t cross."""
    return pd.concat(
        [
            episodes({"good": 0.80, "near": 0.78, "far": 0.50}),
            episodes({"good": 0.40, "near": 0.46, "far": 0.30}, seed=1, shots="1", episodes_hash="g"),
            episodes({"good": 0.70, "near": 0.701, "far": 0.50}, seed=2, target="u"),
            episodes({"good": 0.70, "near": 0.71, "far": 0.50}, noise=0.08, seed=3, target="v"),
        ]
    )


def test_the_answer_goes_by_pairs(rows: pd.DataFrame, tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))
    # The intervals of 80 ± 1.3 and 78 ± 1.3 overlap, the paired difference is sure.
    assert re.search(
        r"good leads at 80\.\d % \(.*?\), 2\.0 points above near at 78\.\d % \(.*?\) \(paired: \+[12]\.\d to \+2\.1\)\.",
        text,
    )
    assert re.search(r"near is ahead at .* No difference above 1 point from good\.", text)
    assert re.search(r"Not decided against (good|near)\.", text)
    assert "good leads on t" in text
    assert "on u near and good are ahead, with no difference above 1 point; v is not decided." in text
    assert "better than every other one in paired comparisons" in text


def test_verdicts_are_those_of_the_pairs(rows: pd.DataFrame) -> None:
    cells = aggregate(rows)
    found = compared(rows, None, cells)
    setting = ("t", "5", "5", "logistic")
    better, worse = found.verdict(setting, "good", "near"), found.verdict(setting, "near", "good")
    assert better is not None
    assert worse is not None
    assert (better.word, worse.word) == ("better", "worse")
    assert better.difference == -worse.difference == pytest.approx(2, abs=0.2)
    assert (better.low, better.high) == (-worse.high, -worse.low)
    assert better.low < better.difference < better.high
    assert found.verdict(setting, "good", "nobody") is None
    standings = stand(cells, found)
    assert standings.few["t"].decided
    assert standings.few["u"].is_shared
    assert not standings.few["v"].decided
    assert not standings.few["v"].is_shared


def test_one_episode_is_no_comparison() -> None:
    rows = few_rows({"a": [0.9], "b": [0.5]})
    assert not stand(aggregate(rows), compared(rows, None, aggregate(rows))).few["t"].verdicts


def test_each_target_counts_at_its_own_ways() -> None:
    both = {"a": 0.8, "b": 0.7, "c": 0.6}
    rows = pd.concat([episodes(both, target="wide"), episodes(both, target="narrow", ways="2")])
    found = compared(rows, None, aggregate(rows))
    assert [c.targets for c in found.critical] == [2]
    assert "all targets" in set(found.ranks["target"])


def test_tables_for_papers_are_on_the_page(rows: pd.DataFrame, tmp_path: Path) -> None:
    page = write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x").read_text(encoding="utf-8")
    assert r"\toprule" in page
    assert re.search(r"t &amp; [\d.]+ .* &amp; \\textbf\{80\.\d\}", page)  # far, good
    assert "below 3." in page
    assert "shots take near, above" in page


@pytest.mark.browser
def test_figures_say_what_the_verdicts_are(show, rows, tmp_path) -> None:
    tab = show(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x"))

    def says(figure: str) -> dict[str, str]:
        panels = tab.locator(f"#{figure}-figure .panel").all()
        return {p.locator("h3").inner_text().split(" ")[0]: p.locator(".says").inner_text() for p in panels}

    told = says("matrix")
    assert told["t"] == "good is better than near and far."
    assert told["u"] == "near is better than far; as good as good."
    assert re.match(r"(good|near) is better than far; not told from (good|near)\.", told["v"])
    # Colour where one is better; a word where nobody is.
    first = "document.querySelector('#matrix-figure .plot').data"
    assert tab.evaluate(f"{first}[0].z.flat().filter((v) => v !== null).length") == 6
    assert tab.evaluate(f"{first}[0].text[0][1]") == "+2.0"
    assert "≈" in tab.evaluate(
        "[...document.querySelectorAll('#matrix-figure .plot')].map((p) => p.data[1].text.join()).join()"
    )
    assert says("ranks")["all"].startswith("near: ranks 1 to 2; good: ranks 1 to 2")
    assert "Fewer than six targets" in says("ranks")["Mean"]
    # The filter of shots is theirs, too.
    tab.select_option("#f-shots", "1")
    assert says("matrix") == {"t": "near is better than good and far."}
    # A line of the crossing pair: near's colour, grey, good's colour.
    colours = tab.evaluate(
        "() => { const plot = document.querySelector('#crossings-figure .plot');"
        "return plot.data.filter((t) => t.y[0] === 0).map((t) => t.meta); }"
    )
    assert colours == ["near", "", "good"]
    with tab.expect_download() as download:
        tab.evaluate("document.querySelector('[data-save$=tex]').click()")
    assert Path(download.value.path()).read_text().startswith(r"\begin{table}")
