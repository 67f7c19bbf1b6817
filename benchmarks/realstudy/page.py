"""docs/study.md: a template, and the values that the tables beside the page give."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from benchmarks.embeddings import ROOT
from benchmarks.realstudy.values import values
from fastxfer.files import write_whole

TEMPLATE = Path(__file__).with_name("study.md.template")
PAGE = ROOT / "docs" / "study.md"
FOLDER = ROOT / "docs" / "study"
# A number of the page is never closer to the rows than this.
DIGITS = "%.4f"


def save(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """A CSV file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_whole(
            folder / f"{name}.csv", table.to_csv(index=False, float_format=DIGITS, lineterminator="\n").encode()
        )


def load(folder: Path = FOLDER) -> dict[str, pd.DataFrame]:
    """The tables of a folder, by name."""
    text = {"shots": str, "stage": str}
    # What was asked for is JSON, in which 5 and null are words.
    as_text = {"extent": {"dtype": str, "keep_default_na": False}}
    return {f.stem: pd.read_csv(f, **{"dtype": text, **as_text.get(f.stem, {})}) for f in sorted(folder.glob("*.csv"))}


def render(tables: dict[str, pd.DataFrame]) -> str:
    """The page: the template with its fields filled. A field that no value fills is a KeyError.

    What stands between `<!-- if WORD -->` and `<!-- else -->` is kept if the value WORD is true, else what stands behind it.
    """
    known = values(tables)

    def chosen(block: re.Match[str]) -> str:
        yes, _, no = block[2].partition("<!-- else -->\n")
        return yes if known[block[1]] else no

    text = re.sub(r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n", chosen, TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    return text.format(**known)


def publish(made: Path) -> None:
    """Copy a study's tables beside the page, draw its figures, write the page."""
    from benchmarks.realstudy import draw

    tables = load(made)
    save(tables, FOLDER)
    draw.write(draw.figures(tables), FOLDER)
    write_whole(PAGE, render(load()).encode())
