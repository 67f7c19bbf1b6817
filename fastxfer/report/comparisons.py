"""Paired comparisons for the report: `fastxfer.comparing` asked about the settings that the report speaks of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from fastxfer.comparing import (
    Contest,
    Critical,
    cell_table,
    compare,
    contests,
    critical_differences,
    crossings,
    latex,
    markdown,
    rank,
)
from fastxfer.comparing.contests import NOTHING
from fastxfer.comparing.crossing import CROSSING
from fastxfer.comparing.pairs import A_BETTER, EQUIVALENT, UNDECIDED
from fastxfer.comparing.ranking import ALL_TARGETS
from fastxfer.report import cells as c
from fastxfer.report.html import Markup, columnar, join, tag
from fastxfer.report.words import joined, plural

MARGIN = 1.0  # points, below which a difference counts as none


@dataclass(frozen=True)
class Comparisons:
    """Frames as `fastxfer.comparing` makes them, of the usual ways and the preferred probe of each target.

    Each number of shots is one family: its pairs, over all targets, are corrected together.
    """

    pairs: pd.DataFrame
    ranks: pd.DataFrame
    critical: tuple[Critical, ...]
    crossings: pd.DataFrame
    tables: Mapping[str, tuple[str, str]]  # shots -> (Markdown, LaTeX)
    notes: tuple[str, ...] = ()
    _of: dict[tuple[str, str, str, str], dict[tuple[str, str], c.Verdict]] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return len(self.pairs) > 0

    def verdict(self, setting: tuple[str, str, str, str], a: str, b: str) -> c.Verdict | None:
        """Of a against b; setting: target, ways, shots, probe. None where the two were not compared."""
        if not self._of and len(self.pairs):
            for line in self.pairs[self.pairs["over"] != NOTHING].to_dict("records"):
                where = (line["target"], line["ways"], line["shots"], line["probe"])
                self._of.setdefault(where, {}).update(_both_sides(line))
        return self._of.get(setting, {}).get((a, b))


NONE = Comparisons(pd.DataFrame(), pd.DataFrame(), (), pd.DataFrame(), {})


def _both_sides(line: Mapping[str, Any]) -> dict[tuple[str, str], c.Verdict]:
    a, b, d = str(line["a"]), str(line["b"]), float(line["difference"])
    wide = math.isfinite(line["low_images"])
    low, high = (float(line[f"{end}_images" if wide else end]) for end in ("low", "high"))
    word = line["verdict"]
    if word not in (EQUIVALENT, UNDECIDED):
        word = "better" if word == A_BETTER else "worse"
    other = {"better": "worse", "worse": "better"}.get(word, word)
    return {(a, b): c.Verdict(word, d, low, high), (b, a): c.Verdict(other, -d, -high, -low)}


def compared(results: pd.DataFrame, read_images: c.ReadImages | None, cells: pd.DataFrame) -> Comparisons:
    """All pairs of backbones of each target in the settings that the answer and the curves show.

    results, read_images: see `fastxfer.comparing.contests`; cells: of `cells.aggregate`
    """
    usual = c.usual(cells)
    rows = results[results["probe"].isin({p for u in usual.values() for p in (u.probe, u.full)})]
    only = {"split": (c.main_split(cells),)}

    def is_usual(contest: Contest) -> bool:
        of, setting = usual.get(contest.setting["target"]), contest.setting
        if of is None:
            return False
        if setting.get("shots") == c.FULL:
            return setting["probe"] == of.full
        return (setting["ways"], setting["probe"]) == (of.ways, of.probe)

    found, notes = contests(rows, read_images, only=only)
    families: dict[str, list[Contest]] = {}
    for contest in found:
        if is_usual(contest):
            families.setdefault(contest.setting["shots"], []).append(contest)
    if not families:
        return NONE
    tables: dict[str, tuple[str, str]] = {}
    pairs, ranks, critical = [], [], []
    for shots in sorted(families, key=c.natural_key):
        family = families[shots]
        lines = compare(family, margin=MARGIN)
        of_cells = cell_table(family, lines)
        tables[shots] = (markdown(of_cells), latex(of_cells))
        pairs.append(lines)
        # Targets with fewer classes than the others have their own number of ways: over targets, each counts at its usual one.
        level = [replace(contest, setting={**contest.setting, "ways": "usual"}) for contest in family]
        ranks.append(rank(level))
        critical += critical_differences(level)
    along, _ = contests(rows, read_images, between=("backbone", "shots"), only=only)
    return Comparisons(
        pd.concat(pairs, ignore_index=True),
        pd.concat(ranks, ignore_index=True),
        tuple(critical),
        crossings([contest for contest in along if is_usual(contest)]),
        tables,
        tuple(dict.fromkeys(notes)),
    )


def sections(found: Comparisons, shots: str, figure: Any) -> list[tuple[str, str, str, Markup]]:
    """(id, name in the navigation, heading, content) of what there is; `figure(key, caption)` makes a figure's place."""
    parts = []
    if found:
        parts.append(("compare", "Pairs", "Backbones in pairs", _pairs(found, shots, figure)))
    if len(found.crossings):
        parts.append(("crossings", "Crossings", "Where curves cross", _crossings(found, figure)))
    return parts


def _pairs(found: Comparisons, shots: str, figure: Any) -> Markup:
    """Words, then figures: matrix, ranks, critical differences; tables for papers."""
    here = found.pairs[found.pairs["shots"] == shots]
    counts = here["verdict"].map(lambda v: v if v in (EQUIVALENT, UNDECIDED) else "told apart").value_counts()
    told = [f"{counts[word]:,} are {word}" for word in ("told apart", EQUIVALENT, UNDECIDED) if word in counts]
    where = "with the whole train split" if shots == c.FULL else f"at {plural(int(shots), 'shot')}"
    lead = (
        "Every backbone saw the same episodes, so what counts is the difference in each of them. "
        f"Of {plural(len(here), 'pair')} {where}, {joined(told)}. Equivalent means that a difference above {MARGIN:g} point is "
        "ruled out, undecided that these data leave it open who is better. Verdicts are over "
        f"{joined(sorted({str(o) for o in here['over']}))}, corrected for all pairs at these shots (Holm)."
    )
    return join(
        tag("p", lead),
        figure(
            "matrix",
            "Row less column, in points. Coloured: the paired test tells the two apart, blue where the row is the better one. "
            "“≈” equivalent, “?” undecided. The number of shots is that of the filter above.",
        ),
        tag("h3", "Ranks"),
        figure(
            "ranks",
            "Lines are the ranks that the data leave open, for all backbones of a panel at once (95 %). “all targets” is of the "
            "mean over them. In the diagram of mean ranks, a bar joins those that Wilcoxon's test over targets does not tell apart.",
        ),
        _paper_tables(found.tables, shots),
        tag("p", " ".join(f"{note[:1].upper()}{note[1:]}." for note in found.notes), class_="note")
        if found.notes
        else None,
    )


def _crossings(found: Comparisons, figure: Any) -> Markup:
    """Where curves cross, in sentences and as a figure."""
    sure = found.crossings[found.crossings["verdict"] == CROSSING]
    sentences = [
        tag("li", tag("b", line["target"]), f", {line['a']} and {line['b']}: {line['answer']}.")
        for line in sure.to_dict("records")
    ]
    n = len(found.crossings[["target", "a", "b"]].drop_duplicates())
    lead = f"Of {plural(n, 'pair')} of curves, {len(sure):,} {'crosses' if len(sure) == 1 else 'cross'} within the shots seen, at 95 %."
    return join(
        tag("p", lead),
        tag("ul", sentences) if sentences else None,
        figure(
            "crossings",
            "Who is the better one at how many shots, a line a pair, in the backbone's colour; grey: not told apart. The "
            "stretch of grey contains the crossing, with probability 95 %.",
        ),
    )


def _paper_tables(tables: Mapping[str, tuple[str, str]], shots: str) -> Markup:
    def text(words: str, kind: str, at: str) -> Markup:
        return join(
            tag("p", tag("button", f"Download .{kind}", type="button", data_save=f"cells-{at}.{kind}"), class_="note"),
            tag("pre", words, tabindex="0"),
        )

    first = [shots, *(s for s in tables if s != shots)]
    return tag(
        "details",
        tag("summary", "Tables for a paper, in LaTeX and Markdown"),
        tag("p", "Bold: no other backbone is better by the paired comparison. What is bold is not told from the best.", class_="note"),
        [
            tag("details", tag("summary", "Whole train split" if at == c.FULL else plural(int(at), "shot")),
                text(tables[at][1], "tex", at), text(tables[at][0], "md", at))
            for at in first if at in tables
        ],
        class_="on-screen",
    )  # fmt: skip


def documents(found: Comparisons) -> dict[str, Any]:
    """What the figures draw: lists of lines by name."""
    keep = ["target", "ways", "shots", "probe", "metric"]
    numbers = ["difference", "low", "high", "low_images", "high_images", "p_holm"]
    return {
        "pairs": columnar(found.pairs, [*keep, "a", "b", "mean_a", "mean_b", *numbers, "verdict", "over", "n"]),
        "ranks": columnar(found.ranks, [*keep, "name", "mean", "rank", "low", "high", "over"]),
        "crossings": columnar(
            found.crossings,
            [*[k for k in keep if k != "shots"], "a", "b", "from", "to", "crossing", "low", "high", "below", "above", "verdict", "answer"],
        ),
        "critical": [
            {
                "shots": one.setting["shots"],
                "metric": one.setting["metric"],
                "targets": one.targets,
                "ranks": columnar(one.ranks, ["name", "mean_rank"]),
                "groups": [list(names) for names in one.groups["names"]],
            }
            for one in found.critical
        ],
        "allTargets": ALL_TARGETS,
    }  # fmt: skip
