"""Tables that other commands have written, as sections: how near sources are, what scale brings, the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fastxfer.errors import DataError
from fastxfer.report.html import Markup, columnar, join, table, tag
from fastxfer.report.words import joined

KINDS = {
    "proximity": ("fastxfer proximity --out", {"source", "target", "reference", "measure", "value", "low", "high"}),
    "gains": ("fastxfer scale --figure", {"kind", "relation", "shots", "value", "low", "high", "n_targets", "n_cells"}),
    "claims": ("fastxfer scale --paper --out", {"key", "text", "verdict", "value", "low", "high", "over"}),
}
"""Kinds of tables by the columns that tell them."""


@dataclass(frozen=True)
class Tables:
    """Empty where no table of the kind was given."""

    proximity: pd.DataFrame = field(default_factory=pd.DataFrame)
    gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    claims: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_tables(files: Sequence[Path]) -> Tables:
    """Tables by their columns, see KINDS; several of a kind follow one another. `DataError` for a file that is none."""
    found: dict[str, list[pd.DataFrame]] = {kind: [] for kind in KINDS}
    for file in files:
        try:
            frame = pd.read_csv(file, dtype={"shots": str, "reference": str}, keep_default_na=True)
        except FileNotFoundError:
            raise DataError(f"no table at '{file}': {_expected()}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"'{file}' is no CSV table ({error}): {_expected()}") from None
        kind = next((kind for kind, (_, columns) in KINDS.items() if columns <= set(frame.columns)), None)
        if kind is None:
            raise DataError(f"'{file}' has the columns {', '.join(map(str, frame.columns))}: {_expected()}")
        found[kind].append(frame)
    return Tables(**{kind: pd.concat(frames, ignore_index=True) for kind, frames in found.items() if frames})


def _expected() -> str:
    return f"expected a .csv of {joined([f'`{command}`' for command, _ in KINDS.values()])}"


def documents(tables: Tables) -> dict[str, Any]:
    """What the figures draw."""
    near = tables.proximity.fillna({"reference": ""})
    return {
        "proximity": columnar(near, ["source", "target", "reference", "measure", "value", "low", "high"]),
        "gains": columnar(tables.gains, ["kind", "relation", "shots", "value", "low", "high", "n_targets", "n_cells"]),
    }


def sections(tables: Tables, figure: Any) -> list[tuple[str, str, str, Markup]]:
    """(id, name in the navigation, heading, content) of what there is; `figure(key, caption)` makes a figure's place."""
    parts = []
    if len(tables.proximity):
        parts.append(("proximity", "Proximity", "How near the sources are", _proximity(tables.proximity, figure)))
    if len(tables.gains) or len(tables.claims):
        parts.append(("scale", "Scale", "What scale brings, near and far", _scale(tables, figure)))
    return parts


def _proximity(near: pd.DataFrame, figure: Any) -> Markup:
    references = sorted({str(r) for r in near["reference"].dropna()} - {""})
    lead = (
        f"Each point is a backbone on a target: to the left its source's images are near to the target's, to the right far. "
        f"Upwards is better than the target's other backbones. Distances are by the embeddings of {joined(references)}."
        if references
        else "Each point is a backbone on a target: how near its source is, and how much better it is than the target's others."
    )
    return join(
        tag("p", lead),
        figure(
            "proximity",
            "Of Fréchet, MMD and A-distance small is near, of shares of neighbours and words large; axes are turned so that near "
            "is always on the left. Lines are 95 % intervals. Probe, shots and metric are those of the filters above.",
        ),
    )


def _scale(tables: Tables, figure: Any) -> Markup:
    told = []
    for line in (
        tables.gains[tables.gains["shots"].str.endswith(", all")].to_dict("records") if len(tables.gains) else ()
    ):
        what = {"size": "parameters", "data": "source images"}.get(line["kind"], line["kind"])
        where = {"few, all": "few shots", "many, all": "many shots"}.get(line["shots"], line["shots"])
        told.append(
            tag("li", f"{line['relation']}, {where}: ten times the {what} bring ", tag("b", f"{line['value']:+.1f}".replace("-", "−")),
                f" points{_between(line)}, {_sign(line)}.")
        )  # fmt: skip
    return join(
        tag("ul", told) if told else None,
        figure(
            "gains",
            "What ten times the parameters (size) or the source's images (data) bring, in points, by a mixed model of all cells. "
            "Bands are 95 % intervals over targets and sources like these.",
        )
        if len(tables.gains)
        else None,
        _claims(tables.claims) if len(tables.claims) else None,
    )


def _claims(claims: pd.DataFrame) -> Markup:
    counts = claims["verdict"].value_counts()
    told = joined([f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in counts.items()])
    rows: list[list[Any]] = [
        [tag("b", line["verdict"]), line["text"], f"{line['value']:+.1f}".replace("-", "−") if _known(line["value"]) else "–",
         _between(line).strip(" ()") or "–", str(line["over"])]
        for line in claims.to_dict("records")
    ]  # fmt: skip
    return join(
        tag("h3", "The paper's claims"),
        tag("p", f"Of {len(claims)} claims of Cherti & Jitsev (2021), {told}."),
        table(["verdict", "claim", "difference, points", "95 %", "over"], rows, numeric=frozenset({2, 3})),
    )


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _between(line: dict[Any, Any]) -> str:
    if not (_known(line["low"]) and _known(line["high"])):
        return ""
    return f" ({line['low']:+.1f} to {line['high']:+.1f})".replace("-", "−")


def _sign(line: dict[Any, Any]) -> str:
    if _known(line["low"]) and line["low"] > 0:
        return "a gain"
    return "a loss" if _known(line["high"]) and line["high"] < 0 else "undecided"
