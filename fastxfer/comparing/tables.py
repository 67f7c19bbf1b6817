"""Tables for papers and pages: cells with intervals, in Markdown and LaTeX; bold says what was not told from the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fastxfer.comparing.cells import natural_key
from fastxfer.comparing.contests import NOTHING, SETTING, Contest, words_of
from fastxfer.comparing.pairs import POINT
from fastxfer.frames import in_latex, in_markdown
from fastxfer.metrics import lower_is_better


def cell_table(contests: Sequence[Contest], pairs: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """One line a contender of each contest: the setting's columns, name, mean, low, high (points), over, beaten.

    pairs: of `compare`. beaten: whether some other contender is better by `p_holm`. So what is not beaten is not "the best":
    it is what these data do not tell from it.
    """
    lines = []
    for contest in contests:
        here = pairs[(pairs[list(contest.setting)] == pd.Series(contest.setting)).all(axis=1)]
        surely = here[here["p_holm"] <= 1 - level]
        up = (surely["difference"] > 0) != lower_is_better(contest.setting["metric"])
        beaten = set(surely["b"].where(up, surely["a"]))
        means, over = contest.values.mean(axis=0), "" if contest.over == NOTHING else contest.over
        for name, mean, low, high in zip(contest.names, means, *contest.intervals(level), strict=True):
            points = {"mean": POINT * mean, "low": POINT * low, "high": POINT * high}
            lines.append({**contest.setting, "name": name, **points, "over": over, "beaten": name in beaten})
    return pd.DataFrame(lines)


def markdown(cells: pd.DataFrame, *, digits: int = 1) -> str:
    """The cells of `cell_table`, a column a contender, as a Markdown table under a line that says what is in it."""
    table = _Table.of(cells, digits)
    marks = [*[":--"] * len(table.columns), *["--:"] * len(table.names)]
    lines = [[*map(in_markdown, [*table.columns, *table.names])], marks]
    for heads, values in table.rows:
        lines.append([*map(in_markdown, heads), *(f"**{v}** {i}" if bold else f"{v} {i}" for v, i, bold in values)])
    body = "\n".join("| " + " | ".join(words) + " |" for words in lines)
    return f"{in_markdown(table.caption)}\n\n{body}\n"


def latex(cells: pd.DataFrame, *, digits: int = 1) -> str:
    r"""The cells of `cell_table` as a LaTeX table for \usepackage{booktabs}."""
    table = _Table.of(cells, digits)
    lines = [[*map(in_latex, [*table.columns, *table.names])]]
    for heads, values in table.rows:
        means = [rf"\textbf{{{value}}}" if bold else value for value, _, bold in values]
        intervals = [rf" {{\scriptsize {in_latex(interval)}}}" if interval else "" for _, interval, _ in values]
        shown = [value + interval for value, interval in zip(means, intervals, strict=True)]
        lines.append([*map(in_latex, heads), *shown])
    head, *body = [" & ".join(words) + r" \\" for words in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{in_latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}{'r' * len(table.names)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


@dataclass(frozen=True)
class _Table:
    """columns: of the settings, where they differ; names: a column each; rows: (words of the setting, (value, interval, bold))."""

    caption: str
    columns: list[str]
    names: list[str]
    rows: list[tuple[list[str], list[tuple[str, str, bool]]]]

    @classmethod
    def of(cls, cells: pd.DataFrame, digits: int) -> _Table:
        setting = [column for column in SETTING if column in cells]
        differ = [column for column in setting if cells[column].nunique() > 1]
        names = sorted(cells["name"].unique(), key=natural_key)
        rows = []
        for _, group in cells.groupby(setting, sort=False):
            of = group.set_index("name")
            values = [_value(of.loc[name], digits) if name in of.index else ("", "", False) for name in names]
            rows.append(([str(group[column].iloc[0]) for column in differ], values))
        common = words_of({column: str(cells[column].iloc[0]) for column in setting if column not in differ})
        over = " or ".join(name for name in cells["over"].unique() if name)
        caption = (
            f"{common[:1].upper()}{common[1:]}: means in points, 95 % intervals over {over or 'nothing known'}. Bold: no other "
            "is surely better (all pairs tested, Holm's correction)."
        )
        return cls(caption, ["backbone" if c == "label" else c for c in differ], names, rows)


def _value(cell: pd.Series, digits: int) -> tuple[str, str, bool]:
    interval = f"[{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]" if pd.notna(cell["low"]) else ""
    return f"{cell['mean']:.{digits}f}", interval, not cell["beaten"]
