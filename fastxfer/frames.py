"""A table as a file for people: CSV, Markdown or LaTeX, by the file's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from fastxfer.errors import UsageError
from fastxfer.files import write_whole

KINDS = (".csv", ".md", ".tex")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "…": r"\ldots{}",
}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def check_kind(path: Path) -> None:
    """`UsageError` unless the name ends in one of KINDS."""
    if path.suffix not in KINDS:
        raise UsageError(f"--out {path}: a table is written as {', '.join(KINDS)}")


def write_frame(path: Path, full: pd.DataFrame, shown: pd.DataFrame) -> None:
    """Write `full` to a .csv, or `shown` (words, as people are to read them) to a .md or .tex (booktabs); whole or not at all."""
    check_kind(path)
    if path.suffix == ".csv":
        plain = full.map(lambda cell: ";".join(map(str, cell)) if isinstance(cell, list | tuple) else cell)
        text = plain.to_csv(index=False)
    else:
        text = (_markdown if path.suffix == ".md" else _latex)(shown)
    write_whole(path, text.encode())


def in_markdown(text: str) -> str:
    """Text as it is to be read in a cell of a Markdown table."""
    return re.sub(r"([\\|*_`<\[])", r"\\\1", " ".join(text.split()))


def in_latex(text: str) -> str:
    """Text as it is to be read in LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Any) -> str:
        return "| " + " | ".join(in_markdown(str(cell)) for cell in cells) + " |"

    return "\n".join([line(table.columns), line(["---"] * len(table.columns)), *map(line, table.to_numpy()), ""])


def _latex(table: pd.DataFrame) -> str:
    def line(cells: Any) -> str:
        return " & ".join(in_latex(str(cell)) for cell in cells) + r" \\"

    head = [rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", line(table.columns), r"\midrule"]
    return "\n".join([*head, *map(line, table.to_numpy()), r"\bottomrule", r"\end{tabular}", ""])
