"""`write_report`: aggregates, facts and sections put together into one page that needs nothing else."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from fastxfer.files import write_whole
from fastxfer.report import cells as c
from fastxfer.report import comparisons, paper, sections, tables
from fastxfer.report.answer import Standings, answer, by_target, stand
from fastxfer.report.comparisons import Comparisons
from fastxfer.report.costs import Costs, costs, costs_section, points
from fastxfer.report.facts import Facts, gather
from fastxfer.report.figures import write_figures
from fastxfer.report.flags import Flag, flags
from fastxfer.report.html import Markup, columnar, content_policy, embed_json, join, tag
from fastxfer.report.places import cell_table, curves_place, figure, flag_list, methods_place, trade_place
from fastxfer.report.tables import Tables
from fastxfer.report.words import plural

TEXT = ("target", "label", "source", "ways", "shots", "seed", "probe", "params", "split", "metric", "interval")
NUMBERS = ("mean", "low", "high", "low_images", "high_images", "n", "queries", "main", "chosen")
# The page's script, in this order.
SCRIPTS = ("base", "filters", "panels", "curves", "methods", "pairs", "scale", "finetunings", "costs", "table", "start")
COLOURS = 7  # --b0 … of report.css; beyond them they repeat, with other markers and dashes
SELECTION = (
    "Diamonds: validation, circles: test; hollow: full probe, filled: fine-tuned. The hollow diamond is what the plan "
    "expected. Lines are 95 % intervals over images."
)
LEARNING = "Each run by the name of its table in the folder that fastxfer finetune --curves has written."


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
    tables: Tables | None = None,
    figures: Path | None = None,
    pictures: Sequence[str] = (),
) -> Path:
    """Write `out`/index.html, one file that opens without a network, and return its path.

    store_path: the embedding store the results come from; its attributes give costs and provenance (a missing store
                becomes a flag of the report)
    results:    rows with the columns of `fastxfer.results.SCHEMA`
    plan:       the content of plan.json, or None
    command:    the command line that made it; paths in it are shortened to their last part
    runs:       what `ResultStore.runs` remembers of the commands that made the rows: date, command, stage, seconds
    data_root:  where `targets check --save` kept its findings, which become flags; None: they aren't looked for
    curves:     learning curves of fine-tunings, as `read_curves` gives them
    read_images: `ResultStore.read_images`: what test images did, for intervals and comparisons over new images, too
    study:      name and hash of the study whose rows these are, if of one
    tables:     of other commands, as `read_tables` gives them
    figures:    a folder that gets every figure's data as .csv, and its picture as each of `pictures`, see `write_figures`

    Raises `DataError` where there are no rows. An existing index.html is replaced whole or not at all.
    """
    cells = c.aggregate(results, read_images)
    facts = gather(store_path, data_root)
    facts.study = study
    compared = comparisons.compared(results, read_images, cells)
    material = _Material(results, cells, compared, facts, plan, tuple(runs), tuple(curves), tables or Tables(), command)
    write_whole(Path(out) / "index.html", _page(material, title).encode())
    if figures is not None:
        write_figures(figures, _document(material), lambda: _page(material, title, (*SCRIPTS, "drawings")), pictures)
    return Path(out) / "index.html"


@dataclass(frozen=True)
class _Material:
    """What a page is made of, see `write_report`; and what follows from that."""

    results: pd.DataFrame
    cells: pd.DataFrame
    compared: Comparisons
    facts: Facts
    plan: dict[str, Any] | None
    runs: tuple[Mapping[str, Any], ...]
    curves: tuple[Mapping[str, Any], ...]
    tables: Tables
    command: str

    @cached_property
    def labels(self) -> list[str]:
        """Best first on the whole, so that the first colours go to whom most is said about."""
        labels = sorted(self.cells["label"].unique(), key=c.natural_key)
        means = self.cells[self.cells["main"]].groupby("label")["mean"].mean()
        return sorted(labels, key=lambda label: -means.get(label, -math.inf))

    @cached_property
    def name(self) -> Callable[[str], Markup]:
        """A backbone's label -> its name with its colour."""
        colour = {label: i for i, label in enumerate(self.labels)}

        def name(label: str) -> Markup:
            style = f"--c:var(--b{colour[label] % COLOURS})" if label in colour else None
            return tag("span", label, class_="name", style=style)

        return name

    @cached_property
    def shots(self) -> str:
        """The number of shots that figures of one number show at first."""
        few = self.cells[self.cells["probe"] == self.probe]
        return c.main_shots(few, str(c.main_ways(self.cells))) or c.FULL

    @cached_property
    def probe(self) -> str | None:
        return next(iter(c.probes(self.cells, full=False)), None)

    @cached_property
    def outcomes(self) -> list[dict[str, Any]]:
        return sections.outcomes(self.plan, self.cells) if self.plan else []

    @cached_property
    def prices(self) -> list[dict[str, Any]]:
        return [_finite(point) for point in points(self.results, self.cells, self.facts)]

    @cached_property
    def beside(self) -> pd.DataFrame:
        return paper.paper_beside(self.results, self.facts)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        return paper.agreement(self.results)

    @cached_property
    def spent(self) -> Costs:
        return costs(self.results, self.cells, self.runs, self.facts)


def _page(of: _Material, title: str, scripts: Sequence[str] = SCRIPTS) -> str:
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    raised, spent = flags(of.cells, of.facts), of.spent
    parts = _sections(of, stand(of.cells, of.compared), raised, made)
    counts = [
        plural(len(of.labels), "backbone"),
        plural(of.cells["target"].nunique(), "target"),
        *([plural(spent.fits, "few-shot fit")] if spent.fits else []),
        *([plural(spent.finetunings, "fine-tuning")] if spent.finetunings else []),
    ]
    files = resources.files("fastxfer.report")
    script = _script(*(files.joinpath(f"js/{name}.js").read_text(encoding="utf-8") for name in scripts))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"fastxfer {of.facts.versions.get('fastxfer', '')}"),
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
        tag("script", embed_json(_document(of)), type="application/json", id="data"),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup(script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(of: _Material, standings: Standings, raised: list[Flag], made: str) -> list[tuple[str, str, str, Any]]:
    """(id, name in the navigation, heading, content); those of which nothing is known are left out."""
    cells, facts, name = of.cells, of.facts, of.name
    shown = dict(zip(cells["backbone"], cells["label"], strict=True))
    against = "Accuracy against shots" if set(cells["metric"]) & {"accuracy"} else "Against shots"
    chosen = sections.selection(of.plan, of.outcomes, figure("outcomes", SELECTION), name)
    spending = join(costs_section(of.spent, facts, name, shown), trade_place(of.prices))
    return [
        ("answer", "Answer", "The answer", answer(standings, raised, name)),
        ("curves", "Shots", against, curves_place()),
        ("targets", "Targets", "Target by target", by_target(cells, standings, raised, name)),
        *comparisons.sections(of.compared, of.shots, figure),
        ("methods", "Methods", "Probes, neighbours, fine-tuning", methods_place(cells)),
        *tables.sections(of.tables, figure),
        *paper.sections(of.beside, of.agreement, figure),
        ("selection", "Selection", "What was selected, and why", chosen),
        *(
            [("learning", "Learning", "Learning curves of fine-tunings", figure("learning", LEARNING))]
            if of.curves
            else []
        ),
        ("costs", "Costs", "What it cost", spending),
        ("flags", "Flags", "Flags", flag_list(raised)),
        ("table", "Cells", "Every cell", cell_table()),
        (
            "provenance",
            "Provenance",
            "Provenance",
            sections.provenance(cells, facts, of.runs, of.command, made, name, shown),
        ),
    ]


def _document(of: _Material) -> dict[str, Any]:
    """What the page's script draws."""
    cells = of.cells
    metrics = [*cells["metric"].unique(), *(str(curve["metric"]) for curve in of.curves)]
    return {
        "labels": of.labels,
        "cells": columnar(cells.rename(columns={"n_queries": "queries"}), [*TEXT, *NUMBERS]),
        "defaults": {
            "waysOf": {target: usual.ways for target, usual in c.usual(cells).items() if usual.ways is not None},
            "seed": c.main_seed(cells),
            "split": c.main_split(cells),
            "probe": of.probe,
            "shots": of.shots,
        },
        "classes": {t: len(f.class_names) for t, f in of.facts.targets.items() if not f.multi_label},
        **comparisons.documents(of.compared),
        **tables.documents(of.tables),
        **paper.documents(of.beside, of.agreement),
        "outcomes": [_finite(row) for row in of.outcomes],
        "costs": of.prices,
        "learning": [dict(curve) for curve in of.curves],
        "metricNames": {metric: c.metric_name(metric) for metric in metrics},
    }


def _script(*parts: str) -> str:
    """The parts as one script that adds no name to the page's own."""
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _section(key: str, heading: str, content: Any) -> Markup:
    return tag("section", tag("h2", heading, id=f"{key}-h"), content, id=key, aria_labelledby=f"{key}-h")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
