"""`write_report`: aggregates, facts and sections put together into one page that needs nothing else."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from fastxfer.files import write_whole
from fastxfer.report import cells as c
from fastxfer.report import sections
from fastxfer.report.answer import answer, by_target, stand
from fastxfer.report.comparisons import (
    Comparisons,
    compared,
    comparison_section,
    crossings_section,
    documents,
)
from fastxfer.report.costs import costs, costs_section, points
from fastxfer.report.facts import Facts, gather
from fastxfer.report.flags import Flag, flags
from fastxfer.report.html import Markup, content_policy, embed_json, join, tag
from fastxfer.report.words import plural

COLUMNS = (
    "target",
    "label",
    "source",
    "ways",
    "shots",
    "seed",
    "probe",
    "params",
    "split",
    "metric",
    "interval",
)
# The page's script, in this order.
SCRIPTS = ("base", "filters", "panels", "curves", "methods", "pairs", "finetunings", "costs", "table", "start")
COLOURS = 7  # --b0 … of report.css; beyond them they repeat, with other markers and dashes


def write_report(
    store_path: str | Path,
    results: pd.DataFrame,
    out: Path,
    *,
    plan: dict[str, Any] | None,
    command: str,
    title: str = "Which backbone transfers best?",
    runs: Sequence[Mapping[str, Any]] = (),
    data_root: str | Path | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    read_images: c.ReadImages | None = None,
    study: str = "",
) -> Path:
    """Write `out`/index.html, one file that opens without a network, and return its path.

    store_path: the embedding store the results come from; its attributes give costs and provenance (a missing store
                becomes a flag of the report)
    results:    rows with the columns of `fastxfer.results.SCHEMA`
    plan:       the content of plan.json, or None
    command:    the command line that made it; paths in it are shortened to their last part
    runs:       what `ResultStore.runs` remembers of the commands that made the rows: date, command, stage, seconds
    read_images: `ResultStore.read_images`: what test images did, for intervals and comparisons over new images, too
    study:      name and hash of the study whose rows these are, if of one
    curves:     learning curves of fine-tunings, as `read_curves` gives them
    data_root:  where `targets check --save` kept its findings, which become flags; None: they aren't looked for

    Raises `DataError` where there are no rows. An existing index.html is replaced whole or not at all.
    """
    cells = c.aggregate(results, read_images)
    facts = gather(store_path, data_root)
    facts.study = study
    comparisons = compared(results, read_images, cells)
    page = _page(results, cells, comparisons, facts, plan, runs, command, title, curves)
    write_whole(Path(out) / "index.html", page.encode())
    return Path(out) / "index.html"


def _page(
    results: pd.DataFrame,
    cells: pd.DataFrame,
    comparisons: Comparisons,
    facts: Facts,
    plan: dict[str, Any] | None,
    runs: Sequence[Mapping[str, Any]],
    command: str,
    title: str,
    curves: Sequence[Mapping[str, Any]],
) -> str:
    labels = sorted(cells["label"].unique(), key=c.natural_key)
    # Best first on the whole, so that the first colours go to whom most is said about.
    rank = cells[cells["main"]].groupby("label")["mean"].mean().sort_values(ascending=False, kind="stable")
    labels.sort(key=lambda label: list(rank.index).index(label) if label in rank.index else len(rank))
    colour = {label: i for i, label in enumerate(labels)}

    def name(label: str) -> Markup:
        index = colour.get(label)
        style = f"--c:var(--b{index % COLOURS})" if index is not None else None
        return tag("span", label, class_="name", style=style)

    shown = dict(zip(cells["backbone"], cells["label"], strict=True))
    rows = sections.outcomes(plan, cells) if plan else []
    spent = costs(results, cells, runs, facts)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    probe = next(iter(c.probes(cells, full=False)), None)
    ways_of = {target: of.ways for target, of in c.usual(cells).items() if of.ways is not None}
    shots_shown = c.main_shots(cells[cells["probe"] == probe], str(c.main_ways(cells))) or c.FULL
    document: dict[str, Any] = {
        "labels": labels,
        "cells": _columns(cells),
        "defaults": {
            "waysOf": ways_of,
            "seed": c.main_seed(cells),
            "split": c.main_split(cells),
            "probe": probe,
            "shots": shots_shown,
        },
        "classes": {t: len(f.class_names) for t, f in facts.targets.items() if not f.multi_label},
        "outcomes": [_finite(r) for r in rows],
        **documents(comparisons),
        "costs": [_finite(point) for point in points(results, cells, facts)],
        "learning": [dict(curve) for curve in curves],
        "metricNames": {m: c.metric_name(m) for m in [*cells["metric"].unique(), *(str(v["metric"]) for v in curves)]},
    }
    raised = flags(cells, facts)
    standings = stand(cells, comparisons)
    counts = [
        plural(len(labels), "backbone"),
        plural(cells["target"].nunique(), "target"),
        *([plural(spent.fits, "few-shot fit")] if spent.fits else []),
        *([plural(spent.finetunings, "fine-tuning")] if spent.finetunings else []),
    ]
    shots = "Accuracy against shots" if set(cells["metric"]) & {"accuracy"} else "Against shots"
    # (id, name in the navigation, heading, content)
    parts: list[tuple[str, str, str, Any]] = [
        ("answer", "Answer", "The answer", answer(standings, raised, name)),
        ("curves", "Shots", shots, _curves()),
        ("targets", "Targets", "Target by target", by_target(cells, standings, raised, name)),
        *_paired(comparisons, shots_shown),
        ("methods", "Methods", "Probes, neighbours, fine-tuning", _methods(cells)),
        (
            "selection",
            "Selection",
            "What was selected, and why",
            sections.selection(plan, rows, _figure("outcomes", SELECTION), name),
        ),
        *(
            [("learning", "Learning", "Learning curves of fine-tunings", _figure("learning", LEARNING))]
            if curves
            else []
        ),
        ("costs", "Costs", "What it cost", join(costs_section(spent, facts, name, shown), _trade(document["costs"]))),
        ("flags", "Flags", "Flags", _flags(raised)),
        ("table", "Cells", "Every cell", _cell_table()),
        ("provenance", "Provenance", "Provenance", sections.provenance(cells, facts, runs, command, made, name, shown)),
    ]
    files = resources.files("fastxfer.report")
    script = _script(*(files.joinpath(f"js/{name}.js").read_text(encoding="utf-8") for name in SCRIPTS))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"fastxfer {facts.versions.get('fastxfer', '')}"),
        content_policy(get_plotlyjs(), script),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(files.joinpath("report.css").read_text(encoding="utf-8"))),
    )
    body = tag(
        "body",
        tag("a", "Skip to the answer", href="#answer", class_="skip"),
        tag(
            "header",
            tag("p", "fastxfer report", class_="kicker"),
            tag("h1", title),
            tag("p", " · ".join(counts), tag("br"), f"made {made}", class_="byline"),
            tag("nav", [tag("a", short, href=f"#{key}") for key, short, _, _ in parts], aria_label="Sections"),
        ),
        tag("main", [_section(key, heading, content) for key, _, heading, content in parts]),
        tag(
            "div",
            tag("p", id="chosen-words", role="status"),
            tag("button", "Show all", type="button", id="all"),
            class_="chosen",
            id="chosen",
            hidden=True,
        ),
        tag(
            "footer",
            tag("p", "Made by fastxfer. This file holds aggregates only; it makes no request to any network."),
        ),
        tag("script", embed_json(document), type="application/json", id="data"),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup(script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _script(*parts: str) -> str:
    """The parts as one script that adds no name to the page's own."""
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


SELECTION = (
    "Diamonds: validation, circles: test; hollow: full probe, filled: fine-tuned. The hollow diamond is what the plan "
    "expected. Lines are 95 % intervals over images."
)

LEARNING = "Each run by the name of its table in the folder that fastxfer finetune --curves has written."


def _section(key: str, heading: str, content: Any) -> Markup:
    return tag("section", tag("h2", heading, id=f"{key}-h"), content, id=key, aria_labelledby=f"{key}-h")


def _figure(key: str, caption: str, *, legend: bool = False) -> Markup:
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


def _control(key: str, label: str) -> Markup:
    return tag("label", tag("span", label), tag("select", id=f"f-{key}"), id=f"l-{key}")


def _curves() -> Markup:
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
            [_control(*control) for control in controls],
            class_="controls",
            id="filters",
            aria_label="Filter the figures",
        ),
        _figure(
            "curves",
            "Mean in percent against shots per class, on a log scale. Bands are 95 % intervals: the inner one over episodes, "
            "often narrower than the line, the outer, paler one over episodes and test images, where it is known. Each panel has its own vertical scale. A dotted line marks chance where "
            "it is near. Names in the legend are buttons: they show or hide a backbone in all figures.",
            legend=True,
        ),
    )  # fmt: skip


def _paired(found: Comparisons, shots: str) -> list[tuple[str, str, str, Markup]]:
    parts = []
    if found:
        parts.append(("compare", "Pairs", "Backbones in pairs", comparison_section(found, shots, _figure)))
    if len(found.crossings):
        parts.append(("crossings", "Crossings", "Where curves cross", crossings_section(found, _figure)))
    return parts


def _methods(cells: pd.DataFrame) -> Markup:
    if not (cells["shots"] == c.FULL).any():
        return tag(
            "p",
            "There are no results on the whole train split yet: ",
            tag("code", "fastxfer probe"),
            " and ",
            tag("code", "fastxfer knn"),
            " make them from the same embeddings in seconds.",
        )
    return _figure(
        "methods",
        "What the whole train split gives, by method. Lines are 95 % intervals over images. Metric, split and target "
        "are those chosen above.",
        legend=True,
    )


def _trade(known: list[dict[str, Any]]) -> Markup | None:
    if not any(math.isfinite(v) for p in known for k in ("seconds", "flops", "parameters") if (v := p[k]) is not None):
        return None
    return join(
        tag("h3", "Cost against accuracy"),
        tag("form", _control("cost", "Cost in"), class_="controls", aria_label="Cost of the figures below"),
        _figure(
            "trade",
            "Up and to the left is better. Filled marks are the front: nothing that costs less is as good. The cost of a "
            "probe is that of embedding all images of its target, once for all shots and probes; solving the probes "
            "takes little more, and the same for every backbone. The cost of a fine-tuning (star) is that of one run.",
        ),
    )


def _cell_table() -> Markup:
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


def _flags(raised: list[Flag]) -> Markup:
    if not raised:
        return tag(
            "p",
            "Nothing to warn of: all fits converged, no target is saturated or has a small test split, and no source is "
            "a target.",
        )
    return tag("ul", [tag("li", tag("b", flag.head, ":"), " ", flag.text) for flag in raised], class_="flags")


def _columns(cells: pd.DataFrame) -> dict[str, Any]:
    """The cells column by column, text as numbers into its list of distinct values: small however many there are."""
    document: dict[str, Any] = {}
    for column in COLUMNS:
        codes, levels = pd.factorize(cells[column])
        document[column] = {"codes": codes.tolist(), "levels": levels.tolist()}
    for column in ("mean", "low", "high", "low_images", "high_images"):
        document[column] = [None if not math.isfinite(v) else round(float(v), 6) for v in cells[column]]
    document["n"] = [int(v) for v in cells["n"]]
    document["queries"] = [int(v) for v in cells["n_queries"]]
    document["main"] = [int(v) for v in cells["main"]]
    document["chosen"] = [int(v) for v in cells["chosen"]]
    return document


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
