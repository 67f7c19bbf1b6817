"""Where figures and the long table stand on the page: report/js draws them there."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from fastxfer.report import cells as c
from fastxfer.report.flags import Flag
from fastxfer.report.html import Markup, join, tag


def figure(key: str, caption: str, *, legend: bool = False) -> Markup:
    return tag(
        "figure",
        tag(
            "div",
            class_="legend",
            id=f"{key}-legend",
            role="group",
            aria_label="Backbones shown",
            data_lines=key == "curves",
        )
        if legend
        else None,
        tag("div", id=f"{key}-figure", class_="panels"),
        tag("figcaption", caption, " ", tag("span", id=f"{key}-note")),
        id=f"{key}-box",
    )


def control(key: str, label: str) -> Markup:
    return tag("label", tag("span", label), tag("select", id=f"f-{key}"), id=f"l-{key}")


def curves_place() -> Markup:
    controls = [
        ("probe", "Probe"),
        ("ways", "Ways"),
        ("params", "Parameters"),
        ("metric", "Metric"),
        ("split", "Split"),
        ("seed", "Seed"),
        ("shots", "Shots, where one is shown"),
        ("target", "Target"),
    ]
    return join(
        tag("noscript", tag("p", "The figures and the table need JavaScript; everything else is readable without.")),
        tag(
            "form",
            [control(*words) for words in controls],
            class_="controls",
            id="filters",
            aria_label="Filter the figures",
        ),
        figure(
            "curves",
            "Mean in percent against shots per class, on a log scale. Bands are 95 % intervals: the inner one over episodes, "
            "often narrower than the line, the outer, paler one over episodes and test images, where it is known. Each panel has its own vertical scale. A dotted line marks chance where "
            "it is near. Names in the legend are buttons: they show or hide a backbone in all figures.",
            legend=True,
        ),
    )  # fmt: skip


def methods_place(cells: pd.DataFrame) -> Markup:
    if not (cells["shots"] == c.FULL).any():
        return tag(
            "p",
            "There are no results on the whole train split yet: ",
            tag("code", "fastxfer probe"),
            " and ",
            tag("code", "fastxfer knn"),
            " make them from the same embeddings in seconds.",
        )
    return figure(
        "methods",
        "What the whole train split gives, by method. Lines are 95 % intervals over images. Metric, split and target "
        "are those chosen above.",
        legend=True,
    )


def trade_place(known: list[dict[str, Any]]) -> Markup | None:
    if not any(math.isfinite(v) for p in known for k in ("seconds", "flops", "parameters") if (v := p[k]) is not None):
        return None
    return join(
        tag("h3", "Cost against accuracy"),
        tag("form", control("cost", "Cost in"), class_="controls", aria_label="Cost of the figures below"),
        figure(
            "trade",
            "Up and to the left is better. Filled marks are the front: nothing that costs less is as good. The cost of a "
            "probe is that of embedding all images of its target, once for all shots and probes; solving the probes "
            "takes little more, and the same for every backbone. The cost of a fine-tuning (star) is that of one run.",
        ),
    )


def cell_table() -> Markup:
    return join(
        tag(
            "div",
            tag(
                "label",
                tag("span", "Filter"),
                tag(
                    "input",
                    type="search",
                    id="table-filter",
                    placeholder="words that a row must have",
                    autocomplete="off",
                ),
            ),
            tag("button", "Download CSV", type="button", id="csv"),
            class_="controls",
        ),
        tag("p", id="table-status", class_="note", role="status", aria_live="polite"),
        tag(
            "div",
            tag("table", tag("thead"), tag("tbody"), id="cells"),
            class_="scroll",
            tabindex="0",
            role="group",
            aria_label="Table of every cell",
        ),
        tag("p", tag("button", "Show all rows", type="button", id="more", hidden=True)),
    )


def flag_list(raised: list[Flag]) -> Markup:
    if not raised:
        return tag(
            "p",
            "Nothing to warn of: all fits converged, no target is saturated or has a small test split, and no source is "
            "a target.",
        )
    return tag("ul", [tag("li", tag("b", flag.head, ":"), " ", flag.text) for flag in raised], class_="flags")
