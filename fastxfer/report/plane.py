"""Embeddings as points on a page: one panel a (backbone, target), one self-contained HTML file or a picture."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from fastxfer.errors import UsageError
from fastxfer.files import write_whole
from fastxfer.projection import Projection, facing, project, thin
from fastxfer.report.groups import REST, Groups, fewer, groups
from fastxfer.report.html import Markup, content_policy, embed_json, tag
from fastxfer.report.pictures import KINDS, pictures
from fastxfer.report.words import joined
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target

SUFFIXES = (".html", *(f".{kind}" for kind in KINDS))
# The report's colours (Okabe-Ito, its yellow replaced), then the same with other symbols.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#b87a00", "#2f9fd6", "#4d4d4d")
SYMBOLS = ("circle", "diamond", "triangle-up")
GREY, GREY_SYMBOLS = "#a9a9a9", dict(zip(REST, ("x", "square", "circle", "cross", "cross"), strict=True))
MOST_GROUPS = len(COLOURS) * len(SYMBOLS)
_SIDE, _GAP, _TOP, _BOTTOM, _LEGEND = 470, 48, 40, 40, 170  # pixels
_HOVER_LABELS = 5


@dataclass(frozen=True)
class Panel:
    """Points of a plane: rows (m,) of a target's table as the store gives it, by a backbone."""

    backbone: str
    target: Target
    rows: NDArray[np.int64]
    method: str
    projection: Projection
    groups: Groups  # of all rows of the target


def panels_of(
    store: EmbeddingStore,
    backbones: Sequence[str],
    targets: Sequence[str],
    *,
    by: str = "labels",
    label: str | None = None,
    methods: Sequence[str] = ("pca",),
    points: int = 5000,
    seed: int = 0,
) -> list[Panel]:
    """A panel a (target, backbone, method), in this order; all show the same images of a target, at most `points` of them.

    UsageError or DataError for what the store or the target hasn't, see `groups`, `project` and `EmbeddingStore.array`.
    """
    panels: list[Panel] = []
    for name in dict.fromkeys(targets):
        target = store.target(name)
        belongs = groups(target, by, label)
        rows = thin(target.n_images, points, seed)
        first: NDArray[np.float64] | None = None
        for backbone, method in product(dict.fromkeys(backbones), dict.fromkeys(methods)):
            made = project(store.array(backbone, name), rows, method, seed)
            if method == "pca":
                first = made.points if first is None else first
                made = replace(made, points=facing(made.points, first))
            panels.append(Panel(backbone, target, rows, method, made, belongs))
    return panels


def write_plot(panels: list[Panel], out: Path, *, paths: bool = False) -> None:
    """Draw panels, those of one target side by side, to `out`: an .html that needs no network, or an .svg, .png or .pdf.

    Hovering tells row, class and split, and with `paths` the image's path; never a patient. UsageError for another suffix,
    or for a picture without kaleido (extra `images`) and a Chrome or Chromium.
    """
    check_name(out)
    drawn = figure(panels, paths=paths)
    if out.suffix == ".html":
        write_whole(out, _page(panels, drawn).encode())
    else:
        write_whole(out, pictures([drawn], out.suffix[1:], "an .html needs nothing")[0])


def check_name(out: Path) -> None:
    """UsageError for a file that `write_plot` would not write."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name ending in {', '.join(SUFFIXES)}")


def figure(panels: list[Panel], *, paths: bool = False) -> dict[str, Any]:
    """Plotly's data and layout, plain values."""
    targets = list(dict.fromkeys(panel.target.name for panel in panels))
    across = max(sum(panel.target.name == name for panel in panels) for name in targets)
    width, height = across * (_SIDE + _GAP) + _LEGEND, len(targets) * (_SIDE + _TOP + _BOTTOM)
    layout: dict[str, Any] = {
        "width": width,
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": "system-ui, 'Liberation Sans', Arial, sans-serif", "size": 13, "color": "#1c1c1a"},
        "hovermode": "closest",
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for line, name in enumerate(targets):
        of_target = [panel for panel in panels if panel.target.name == name]
        top = 1 - line / len(targets)
        shown = fewer(of_target[0].groups, MOST_GROUPS)
        legend = "legend" if line == 0 else f"legend{line + 1}"
        layout[legend] = {
            "x": 1 - (_LEGEND - 12) / width,
            "y": top - _TOP / height,
            "yanchor": "top",
            "title": {"text": f"<b>{plain(shown.by)}</b>", "font": {"size": 13}},
            "itemsizing": "constant",
            "tracegroupgap": 0,
        }
        for column, panel in enumerate(of_target):
            number = sum(p.target.name in targets[:line] for p in panels) + column + 1
            axis = "" if number == 1 else str(number)
            left, low = (column * (_SIDE + _GAP) + _GAP - 8) / width, top - (_TOP + _SIDE) / height
            for letter, start, length, i in (("x", left, _SIDE / width, 0), ("y", low, _SIDE / height, 1)):
                layout[f"{letter}axis{axis}"] = {
                    "domain": [start, min(start + length, 1.0)],
                    "anchor": f"{'y' if letter == 'x' else 'x'}{axis}",
                    "title": {"text": _axis_title(panel, i), "standoff": 6, "font": {"size": 13}},
                    "showgrid": False,
                    "zeroline": False,
                    "showline": True,
                    "mirror": True,
                    "linecolor": "#dddad1",
                    "ticks": "",
                    "showticklabels": False,
                }
            # A step means the same along both axes, and each panel fills its square.
            layout[f"xaxis{axis}"]["range"], layout[f"yaxis{axis}"]["range"] = _square(panel.projection.points)
            layout["annotations"].append(
                {
                    "text": f"<b>{plain(panel.backbone)}</b> on {plain(name)}{_thinned(panel)}",
                    "x": left,
                    "y": top - (_TOP - 8) / height,
                    "xref": "paper",
                    "yref": "paper",
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                }
            )
            data += _traces(panel, shown, axis, legend, first=column == 0, paths=paths)
    return {"data": data, "layout": layout}


def _traces(panel: Panel, shown: Groups, axis: str, legend: str, *, first: bool, paths: bool) -> list[dict[str, Any]]:
    """One trace a group; grey ones first, so that they lie below, but last in the legend."""
    words = _hover(panel, paths)
    of = shown.of[panel.rows]
    size = 7 if len(of) <= 600 else 5.5 if len(of) <= 2500 else 4
    colourful = [name for name in shown.names if name not in REST]
    traces = []
    for number, name in sorted(enumerate(shown.names), key=lambda item: item[1] not in REST):
        members = np.flatnonzero(of == number)
        i = colourful.index(name) if name in colourful else -1
        points = np.round(panel.projection.points[members], 5)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": points[:, 0].tolist(),
                "y": points[:, 1].tolist(),
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
                "name": plain(_short(name)),
                "legend": legend,
                "legendgroup": f"{legend} {number}",
                "legendrank": 1000 + number,
                "showlegend": first,
                "text": [words[m] for m in members.tolist()],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": GREY if i < 0 else COLOURS[i % len(COLOURS)],
                    "symbol": GREY_SYMBOLS[name] if i < 0 else SYMBOLS[i // len(COLOURS)],
                    "size": size,
                    "opacity": 0.45 if i < 0 else 0.75,
                    "line": {"width": 0.4, "color": "#ffffff"},
                },
            }
        )
    return traces


def _hover(panel: Panel, paths: bool) -> list[str]:
    """For each point: row, class or positive labels, split, its group if that is something else; ready for Plotly."""
    target, told = panel.target, []
    also = panel.groups.by not in ("class", "labels", "split", *target.class_names)
    for row in panel.rows.tolist():
        if target.multi_label:
            positive = [target.class_names[i] for i in np.flatnonzero(target.labels[row] > 0.5)]
            more = len(positive) - _HOVER_LABELS
            what = ", ".join(positive[:_HOVER_LABELS]) + (f" and {more} more" if more > 0 else "") or "no label"
        else:
            what = target.class_names[int(target.labels[row])]
        lines = [f"row {row:,}", what, str(target.split[row])]
        if also:
            lines.append(f"{panel.groups.by}: {panel.groups.names[panel.groups.of[row]]}")
        if paths:
            lines.append(str(target.image_id[row]))
        told.append("<br>".join(map(plain, lines)))
    return told


def plain(text: str) -> str:
    """Text for Plotly, which would read tags, entities and %{…} of its own in it."""
    return html.escape(text, quote=False).replace("%{", "%\u200b{")


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _thinned(panel: Panel) -> str:
    n = panel.target.n_images
    return "" if len(panel.rows) == n else f", {len(panel.rows):,} of {n:,} images"


def _axis_title(panel: Panel, i: int) -> str:
    if panel.projection.explained is None:
        return f"{panel.method.upper()} {i + 1}"
    return f"PC {i + 1} ({100 * panel.projection.explained[i]:.1f} % of variance)"


def _square(points: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Ranges of both axes, equally long, around all points."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.53 * float((high - low).max()) or 1.0
    middle = (low + high) / 2
    x, y = ([float(m) - half, float(m) + half] for m in middle)
    return x, y


def _page(panels: list[Panel], drawn: dict[str, Any]) -> str:
    script = resources.files("fastxfer.report").joinpath("plane.js").read_text(encoding="utf-8")
    backbones = joined(list(dict.fromkeys(panel.backbone for panel in panels)))
    targets = joined(list(dict.fromkeys(panel.target.name for panel in panels)))
    first = panels[0]
    names = {"pca": "Principal components", "umap": "UMAP"}
    what = joined([names[method] for method in dict.fromkeys(panel.method for panel in panels)])
    title = f"Embeddings of {targets}"
    lead = f"{what} of what {backbones} made of the images. A point is an image; a click on the legend hides a group."
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        content_policy(get_plotlyjs(), script),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    notes = {
        "pca": "How much of all variance a principal component holds stands beside it; the rest is not in the picture.",
        "umap": "UMAP keeps neighbours together; how far apart groups lie means little.",
    }
    note = " ".join(words for method, words in notes.items() if any(panel.method == method for panel in panels))
    body = tag(
        "body",
        tag("h1", title),
        tag("p", lead),
        tag("div", id="plot", role="img", aria_label=f"{title}: {what} of {backbones}, coloured by {first.groups.by}"),
        tag("p", note, class_="note"),
        tag("script", embed_json(drawn), type="application/json", id="figure"),
        tag("script", Markup(get_plotlyjs())),
        tag("script", Markup(script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


STYLE = """
body { margin: 0; padding: 1.2rem 1.6rem 2rem; background: #fff; color: #1c1c1a; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 0.2rem; }
p { margin: 0 0 0.6rem; max-width: 60rem; }
#plot { overflow-x: auto; }
.note { color: #5d5c57; font-size: 0.9rem; }
"""
