"""Sections that are there only where their data are: nearness of sources, scale, the paper's cells, scores, studies."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from reporting import few_rows, make_claims, make_gains

from fastxfer.errors import DataError
from fastxfer.report import read_tables, write_report
from fastxfer.report.paper import agreement
from fastxfer.results import complete


def full(backbone: str, target: str, probe: str, value: float, **more: object) -> dict[str, object]:
    row = {
        "source": "imagenet1k", "backbone": backbone, "target": target, "ways": "all", "shots": "full", "seed": 0,
        "episode": -1, "probe": probe, "params": "", "split": "test", "metric": "accuracy", "value": value,
        "low": value - 0.01, "high": value + 0.01, "n_queries": 500,
    }  # fmt: skip
    return row | more


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Few shots on cifar10, and fine-tunings: one of the paper's cells by a counterpart of its network, others to rank."""
    few = few_rows(
        {"bit-50x1": [0.6, 0.7], "small": [0.5, 0.6], "tiny": [0.4, 0.5]}, target="cifar10", source="imagenet1k"
    )
    lines = []
    for place, backbone in enumerate(("bit-50x1", "small", "tiny")):
        lines.append(full(backbone, "cifar10", "finetune", 0.93 - 0.1 * place))
        # `logme` ranks as fine-tuning does, `leep` the other way round.
        for score, value in (("logme", -float(place)), ("leep", float(place))):
            lines.append(full(backbone, "cifar10", score, value, split="train", metric="transferability"))
    return pd.concat([few, complete(pd.DataFrame(lines))], ignore_index=True)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tables")
    near = {"source": "imagenet1k", "target": "cifar10", "value": 0.25, "low": 0.2, "high": 0.3, "se": 0.02}
    lines = [{**near, "reference": "small", "measure": "mmd"}, {**near, "reference": "", "measure": "labels"}]
    frames = {"near": pd.DataFrame(lines), "gains": make_gains(), "claims": make_claims()}
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    return [folder / f"{name}.csv" for name in frames]


def text_of(page: Path, section: str) -> str:
    html = page.read_text(encoding="utf-8")
    found = re.search(rf'<section id="{section}".*?</section>', html, re.DOTALL)
    return "" if found is None else re.sub(r"<[^>]+>", " ", found.group()).replace("\u00a0", " ")


SECTIONS = ("proximity", "scale", "paper", "transferability", "compare", "crossings", "learning")


def test_without_data_there_is_no_section(tmp_path: Path) -> None:
    page = write_report(tmp_path / "none", few_rows({"a": [0.5, 0.6]}), tmp_path, plan=None, command="x")
    assert [name for name in SECTIONS if text_of(page, name)] == []


def test_sections_say_what_their_tables_hold(rows: pd.DataFrame, tables: list[Path], tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "none", rows, tmp_path, plan=None, command="x", study="mine, hash 0123", tables=read_tables(tables)
    )
    assert "Distances are by the embeddings of small." in text_of(page, "proximity")
    scale = text_of(page, "scale")
    assert re.search(
        r"near, few shots: ten times the parameters bring\s+\+2\.5\s+points \(\+1\.5 to \+3\.5\), a gain\.", scale
    )
    assert "Of 2 claims of Cherti & Jitsev (2021), 1 is supported and 1 is undecided." in scale.replace("&amp;", "&")
    paper = text_of(page, "paper")
    assert "1 cell of Cherti" in paper
    assert re.search(r"93\.0 ± 0\.5\s+−1\.\d\s+\(", paper)  # theirs: 94.3
    assert re.search(r"Over 1 target, logme \(\+1\.00\)", text_of(page, "transferability"))
    assert re.search(r"Study\s+mine, hash 0123", text_of(page, "provenance"))


def test_scores_without_fine_tunings_are_no_section(rows: pd.DataFrame) -> None:
    assert set(agreement(rows)["score"]) == {"logme", "leep"}
    assert agreement(rows[rows["probe"] != "finetune"]).empty
    assert agreement(rows[rows["metric"] != "transferability"]).empty


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no table at"), ("", "is no CSV table"), ("a,b\n1,2\n", "has the columns a, b")],
)
def test_what_is_no_table_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said) as raised:
        read_tables([file])
    assert "some.csv" in str(raised.value)
    assert "expected a .csv of `fastxfer proximity --out`, `fastxfer scale --figure` and" in str(raised.value)


def test_tables_of_one_kind_follow_one_another(tables: list[Path]) -> None:
    both = read_tables([tables[0], tables[0], tables[2]])
    assert len(both.proximity) == 4
    assert len(both.claims) == 2
    assert both.gains.empty


@pytest.mark.browser
def test_their_figures_are_drawn(show, rows, tables, tmp_path) -> None:
    tab = show(write_report(tmp_path / "none", rows, tmp_path, plan=None, command="x", tables=read_tables(tables)))

    def says(figure: str) -> list[str]:
        found: list[str] = tab.locator(f"#{figure}-figure .says").all_inner_texts()
        return found

    assert says("proximity") == ["Nearest: imagenet1k to cifar10, where bit-50x1 is +10.0 points to the mean."] * 2
    assert tab.locator("#proximity-figure h3").all_inner_texts() == ["MMD² by small", "words of class names in common"]
    assert says("gains")[0] == "near: up to +3.0 points (1 shot). 2 of 3 intervals exclude 0."
    assert says("paper")[0].startswith("Ours lie −1.")
    assert says("agreement") == ["logme 1.00, leep -1.00."]
    # The choice of backbones is theirs, too.
    tab.locator("#curves-legend button").filter(has_text="bit-50x1").click()
    assert says("proximity")[0].startswith("Nearest: imagenet1k to cifar10, where small is +5.0")
    assert tab.locator("#paper-figure .panel").count() == 0
