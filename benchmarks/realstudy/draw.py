"""The tables beside the page -> its figures: small SVG files, by Plotly and kaleido (extra `images`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.realstudy.design import ALL_TARGETS
from benchmarks.realstudy.values import FEW, PROBE, REGIMES, TUNED, WHOLE, extent_of

# Okabe and Ito's, as in the report.
BLUE, ORANGE, GREEN, RED, SKY, PINK, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000"
SHADES = (SKY, BLUE, BLACK)  # of the sizes
Figure = Any
PLACE_OF_WHOLE = 400.0  # on the axis of shots


def figures(t: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """All of them, by the names of their files; of fine-tuning and selection only once everything is fine-tuned."""
    drawn = {
        "shots": _shots(t), "matrix": _matrix(t), "verdicts": _verdicts(t), "source": _source(t), "axis": _axis(t),
        "gains": _gains(t), "cost": _cost(t),
    }  # fmt: skip
    return drawn | ({"tuned": _tuned(t), "selection": _selection(t)} if len(t["selection"]) else {})


def write(found: Mapping[str, Figure], folder: Path) -> None:
    """An SVG file each."""
    import plotly.io as pio

    folder.mkdir(parents=True, exist_ok=True)
    drawn = list(found.values())
    files = [folder / f"{name}.svg" for name in found]
    pio.write_images(drawn, files, width=[f.layout.width for f in drawn], height=[f.layout.height for f in drawn])


def _panels(names: list[str], columns: int, height: int, **shared: Any) -> Figure:
    from plotly.subplots import make_subplots

    rows = -(-len(names) // columns)
    figure = make_subplots(rows, columns, subplot_titles=names, **shared)
    return _styled(figure, height)


def _styled(figure: Figure, height: int, **more: Any) -> Figure:
    figure.update_layout(
        template="plotly_white", width=820, height=height, font={"size": 11, "family": "sans-serif"},
        margin={"l": 55, "r": 15, "t": 30, "b": 45}, **more,
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    return figure


def _place(i: int, columns: int) -> dict[str, int]:
    return {"row": i // columns + 1, "col": i % columns + 1}


def _only(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def _shots(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Learning curves of five backbones, both intervals."""
    import plotly.graph_objects as go

    e = extent_of(t)
    most, largest = max(e["amounts"]), e["sizes"][-1]
    shown = {
        f"natural-{largest}-{most}": BLUE, f"chest-{largest}-{most}": RED, f"untrained-{largest}": BLACK, "lite0": GREEN, "cxr-nih": ORANGE,
    }  # fmt: skip
    cells = _only(t["cells"], probe=PROBE)
    targets = list(dict.fromkeys(t["data"]["target"]))
    figure = _panels(targets, 4, 430)
    for i, target in enumerate(targets):
        for name, colour in shown.items():
            line = _only(cells, target=target, backbone=name)
            # A whole split is scored in another metric than episodes are: it is a mark of its own.
            few, whole = line[line["shots"] != WHOLE], line[line["shots"] == WHOLE]
            few = few.assign(x=few["shots"].astype(float)).sort_values("x")
            dash = "dot" if line["seen"].any() else "solid"
            figure.add_trace(
                go.Scatter(
                    x=few["x"], y=few["mean"], name=name, legendgroup=name, showlegend=i == 0, mode="lines+markers",
                    line={"color": colour, "dash": dash, "width": 1.5}, marker={"size": 5},
                    error_y={"array": few["high_images"] - few["mean"], "arrayminus": few["mean"] - few["low_images"], "width": 3, "thickness": 1},
                ),
                **_place(i, 4),
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(
                    x=[PLACE_OF_WHOLE] * len(whole), y=whole["mean"], legendgroup=name, showlegend=False, mode="markers",
                    marker={"color": colour, "size": 7, "symbol": "diamond-open" if line["seen"].any() else "diamond"},
                ),
                **_place(i, 4),
            )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=[1, 5, 20, 100, PLACE_OF_WHOLE], ticktext=["1", "5", "20", "100", "all"])
    figure.update_layout(legend={"orientation": "h", "y": -0.1})
    return figure


def _matrix(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Every full probe; a circle marks what has seen its target."""
    import plotly.graph_objects as go

    cells = _only(t["cells"], probe=PROBE, shots=WHOLE)
    wide = cells.pivot_table("mean", "backbone", "target")
    order = [b for b in t["backbones"]["backbone"][::-1] if b in wide.index]
    targets = [x for x in ALL_TARGETS if x in wide]
    wide = wide.loc[order, targets]
    seen = cells.pivot_table("seen", "backbone", "target", aggfunc="max").loc[order, targets]
    words = [[f"{v:.0f}{' ○' if s else ''}" for v, s in zip(a, b, strict=True)] for a, b in zip(wide.to_numpy(), seen.to_numpy(), strict=True)]  # fmt: skip
    # Colours within a target: its own range.
    shade = (wide - wide.min()) / (wide.max() - wide.min())
    figure = go.Figure(
        go.Heatmap(
            z=shade.to_numpy(), x=targets, y=order, text=words, texttemplate="%{text}", colorscale="Blues", showscale=False,
            zmin=0, zmax=1.6,
        )
    )  # fmt: skip
    figure = _styled(figure, 60 + 20 * len(order))
    figure.update_xaxes(side="top")
    return figure


def _verdicts(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Shares of pairs by verdict, five shots, on these images and on new ones."""
    import plotly.graph_objects as go

    v = _only(t["verdicts"], probe=PROBE, shots=FEW)
    figure = go.Figure()
    for over, columns in (
        ("these images", ("better_episodes",)),
        ("new images", ("better", "equivalent", "undecided")),
    ):
        y = [f"{target}, {over}" for target in v["target"]]
        for column in columns:
            name, colour = {"better": ("told apart", BLUE), "better_episodes": ("told apart", BLUE), "equivalent": ("equivalent", GREEN), "undecided": ("undecided", "#CCCCCC")}[column]  # fmt: skip
            figure.add_bar(
                x=100 * v[column] / v["pairs"], y=y, name=name, orientation="h", marker_color=colour, legendgroup=name,
                showlegend=column != "better_episodes",
            )  # fmt: skip
    order = [f"{target}, {over}" for target in v["target"] for over in ("new images", "these images")]
    figure = _styled(figure, 80 + 22 * len(order), barmode="stack", legend={"orientation": "h", "y": -0.12})
    figure.update_yaxes(categoryorder="array", categoryarray=order)
    figure.update_xaxes(title="share of pairs, %", range=[0, 100])
    return figure


def _source(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Natural less chest at the same size and amount; both intervals."""
    import plotly.graph_objects as go

    some = _only(t["contrasts"], kind="source", probe=PROBE)
    some = some[some["shots"].isin([FEW, WHOLE])]
    targets = list(dict.fromkeys(some["target"]))
    figure = _panels([f"{FEW} shots", "whole train split"], 2, 420, shared_yaxes=True)
    e = extent_of(t)
    colours = dict(zip(e["sizes"], SHADES, strict=False))
    for i, shots in enumerate((FEW, WHOLE)):
        for j, (size, colour) in enumerate(colours.items()):
            part = _only(some, shots=shots)
            part = part[part["a"].str.split("-").str[1] == size]
            amount = part["a"].str.split("-").str[-1].astype(int)
            rank = amount.map({a: k for k, a in enumerate(e["amounts"])})
            y = [targets.index(x) for x in part["target"]] + (3 * j + rank - 4) * 0.09
            figure.add_trace(
                go.Scatter(
                    x=part["difference"], y=y, mode="markers", name=f"size {size.upper()}", showlegend=i == 0,
                    marker={"color": colour, "size": 6, "symbol": ["circle-open" if s else "circle" for s in part["seen"]]},
                    error_x={"array": part["high_images"] - part["difference"], "arrayminus": part["difference"] - part["low_images"], "width": 0, "thickness": 1},
                ),
                row=1, col=i + 1,
            )  # fmt: skip
    figure.update_yaxes(tickvals=list(range(len(targets))), ticktext=targets)
    figure.update_xaxes(title="natural less chest, points", zeroline=True, zerolinecolor="#888888")
    figure.update_layout(legend={"orientation": "h", "y": -0.18})
    return figure


def _axis(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Five shots against images of the source, a line a size; natural full, chest dotted."""
    import plotly.graph_objects as go

    cells = _only(t["cells"], probe=PROBE, shots=FEW).merge(t["backbones"].drop(columns="seen"), on="backbone")
    e, targets = extent_of(t), list(dict.fromkeys(t["data"]["target"]))
    figure = _panels(targets, 4, 430)
    for i, target in enumerate(targets):
        for domain, dash in (("natural", "solid"), ("chest", "dot")):
            for size, colour in zip(e["sizes"], SHADES, strict=False):
                line = _only(cells, target=target, domain=domain, size=size).sort_values("images")
                figure.add_trace(
                    go.Scatter(
                        x=line["images"], y=line["mean"], mode="lines+markers", name=f"{domain}, {size.upper()}", legendgroup=f"{domain}{size}",
                        showlegend=i == 0, line={"color": colour, "dash": dash, "width": 1.5},
                        marker={"size": 5, "symbol": ["circle-open" if s else "circle" for s in line["seen"]]},
                    ),
                    **_place(i, 4),
                )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=e["amounts"], ticktext=[f"{a:,}" for a in e["amounts"]])
    figure.update_layout(legend={"orientation": "h", "y": -0.1})
    return figure


def _gains(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Gains per tenfold, the paper's beside ours."""
    import plotly.graph_objects as go

    same = {"natural to natural": "natural to natural", "natural to chest": "natural to X-ray", "chest to chest": "X-ray to X-ray"}  # fmt: skip
    gains = t["gains"].replace({"relation": same})
    gains = gains[gains["relation"].isin(same.values()) & gains["shots"].isin(REGIMES)].dropna(subset=["value"])
    figure = _panels(["ten times the parameters", "ten times the images"], 2, 360, shared_yaxes=True)
    rows = [f"{relation}, {regime.split(',')[0]}" for relation in same.values() for regime in REGIMES]
    for i, kind in enumerate(("size", "data")):
        for of, colour, shift in (("ours", BLUE, 0.12), ("paper", ORANGE, -0.12)):
            part = _only(gains, kind=kind, of=of)
            y = [rows.index(f"{r.relation}, {r.shots.split(',')[0]}") + shift for r in part.itertuples()]
            figure.add_trace(
                go.Scatter(
                    x=part["value"], y=y, mode="markers", name=of, showlegend=i == 0, marker={"color": colour, "size": 7},
                    error_x={"array": part["high"] - part["value"], "arrayminus": part["value"] - part["low"], "thickness": 1, "width": 3},
                ),
                row=1, col=i + 1,
            )  # fmt: skip
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows)
    figure.update_xaxes(title="points", zeroline=True, zerolinecolor="#888888", range=[-25, 25])
    figure.update_layout(legend={"orientation": "h", "y": -0.22})
    return figure


def _tuned(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Fine-tuning against the full probe of the same pair."""
    import plotly.graph_objects as go

    whole = _only(t["cells"], shots=WHOLE)
    wide = whole[whole["probe"].isin([PROBE, TUNED])].pivot_table("mean", ["target", "backbone"], "probe").dropna().reset_index()  # fmt: skip
    domain, foreign = t["backbones"].set_index("backbone")["domain"], extent_of(t)["foreign"]
    targets = list(dict.fromkeys(wide["target"]))
    figure = _panels(targets, len(targets), 260)
    for i, target in enumerate(targets):
        part = _only(wide, target=target)
        ends = [min(part[PROBE].min(), part[TUNED].min()), max(part[PROBE].max(), part[TUNED].max())]
        figure.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line={"color": "#BBBBBB", "width": 1}, showlegend=False),
            row=1, col=i + 1,
        )  # fmt: skip
        for name, colour in (("natural", BLUE), ("chest", RED), ("untrained", BLACK)):
            some = part[part["backbone"].map(domain) == name]
            figure.add_trace(
                go.Scatter(
                    x=some[PROBE], y=some[TUNED], mode="markers", name=name, legendgroup=name, showlegend=i == 0,
                    marker={"color": colour, "size": 6, "symbol": ["diamond" if b in foreign else "circle" for b in some["backbone"]]},
                ),
                row=1, col=i + 1,
            )  # fmt: skip
    figure.update_xaxes(title="probe")
    figure.update_yaxes(title="fine-tuned", col=1)
    figure.update_layout(legend={"orientation": "h", "y": -0.35})
    return figure


def _selection(t: Mapping[str, pd.DataFrame]) -> Figure:
    """What is lost at each number of runs, by policy."""
    import plotly.graph_objects as go

    figure = _panels(["mean over targets", "worst target"], 2, 300)
    for (policy, group), colour in zip(
        t["selection"].groupby("policy", sort=False), (BLUE, GREEN, ORANGE, BLACK, SKY, PINK), strict=True
    ):
        for i, column in enumerate(("lost_mean", "lost_worst")):
            figure.add_trace(
                go.Scatter(
                    x=100 * group["runs"] / group["of"], y=group[column], mode="lines+markers", name=policy, legendgroup=policy,
                    showlegend=i == 0, line={"color": colour, "width": 1.5},
                ),
                row=1, col=i + 1,
            )  # fmt: skip
    figure.update_xaxes(title="fine-tunings made, % of all")
    figure.update_yaxes(title="points lost on test", col=1, rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "y": -0.3})
    return figure


def _cost(t: Mapping[str, pd.DataFrame]) -> Figure:
    """Seconds of the cores by part of the study."""
    import plotly.graph_objects as go

    spent = t["spent"].dropna(subset=["core"])
    figure = go.Figure(go.Bar(x=spent["core"], y=spent["stage"], orientation="h", marker_color=BLUE))
    figure = _styled(figure, 90 + 24 * len(spent))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="core-seconds")
    return figure
