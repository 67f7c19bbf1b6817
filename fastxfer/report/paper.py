"""The paper's cells beside ours, and whether cheap scores rank backbones as fine-tuning does."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from fastxfer.errors import DataError
from fastxfer.paper.beside import beside
from fastxfer.paper.notes import NOTES
from fastxfer.report.facts import Facts
from fastxfer.report.html import Markup, columnar, join, table, tag
from fastxfer.report.words import joined, plural
from fastxfer.transferability import METRIC, rank_agreement


def paper_beside(results: pd.DataFrame, facts: Facts) -> pd.DataFrame:
    """The cells that both have, as `fastxfer.paper.beside.beside` gives them; empty where there are none."""
    architectures = {backbone: str(a.get("architecture", "")) for (backbone, _), a in facts.embeddings.items()}
    both = beside(results, architectures=architectures)
    return both[both["ours"].notna()].reset_index(drop=True)


def sections(both: pd.DataFrame, agreement: pd.DataFrame, figure: Any) -> list[tuple[str, str, str, Markup]]:
    """(id, name in the navigation, heading, content) of what there is; `figure(key, caption)` makes a figure's place."""
    parts = []
    if len(agreement):
        parts.append(
            ("transferability", "Scores", "Do cheap scores tell what to fine-tune?", _agreement(agreement, figure))
        )
    if len(both):
        parts.append(("paper", "Paper", "The paper's cells beside ours", _beside(both, figure)))
    return parts


def _beside(both: pd.DataFrame, figure: Any) -> Markup:
    """Words, figure, table with the notes that hang on its cells."""
    beyond = int(both["beyond"].sum())
    seen = list(dict.fromkeys(key for keys in both["notes"] for key in keys))
    texts = {note.key: note.text for note in NOTES}
    rows: list[list[Any]] = [
        [
            line["target"],
            line["source"],
            line["model"],
            line["shots"],
            line["metric"],
            f"{100 * line['paper']:.1f} ± {100 * line['paper_sd'] / math.sqrt(line['paper_n']):.1f}",
            f"{100 * line['ours']:.1f} ± {100 * line['ours_se']:.1f}",
            join(tag("b", _points(line["difference"])) if line["beyond"] else _points(line["difference"]),
                 f" ({_points(line['low'])} to {_points(line['high'])})" if math.isfinite(line["low"]) else ""),
            " ".join(f"[{seen.index(key) + 1}]" for key in line["notes"]),
            " ".join(w for w in (line["backbone"], line["probe"], line["preset"]) if w),
        ]
        for line in both.to_dict("records")
    ]  # fmt: skip
    return join(
        tag(
            "p",
            f"{plural(len(both), 'cell')} of Cherti & Jitsev (2021) {'has' if len(both) == 1 else 'have'} a counterpart here: the "
            f"same target, source, size and shots. {beyond or 'None'} of the differences {'is' if beyond == 1 else 'are'} beyond "
            "both noises (Holm over all).",
        ),
        figure(
            "paper",
            "The paper's value against ours, in percent; on the line they are equal. Filled: beyond both noises.",
        ),
        table(
            ["target", "source", "size", "shots", "metric", "paper", "ours", "ours less paper", "notes", "our row"],
            rows,
            numeric=frozenset({5, 6, 7}),
        ),
        tag("p", "± is a standard error. Bold: beyond both noises.", class_="note"),
        tag("ol", [tag("li", texts[key]) for key in seen], class_="note") if seen else None,
    )


def agreement(results: pd.DataFrame) -> pd.DataFrame:
    """`rank_agreement`, empty where there are no transferability scores or too few fine-tunings."""
    if not (results["metric"] == METRIC).any():
        return pd.DataFrame()
    try:
        return rank_agreement(results)
    except DataError:
        return pd.DataFrame()


def _agreement(found: pd.DataFrame, figure: Any) -> Markup:
    means = found[found["target"] == ""].sort_values("weighted_tau", ascending=False)
    best = [f"{line.score} ({line.weighted_tau:+.2f})".replace("-", "−") for line in means.head(3).itertuples()]
    n = found.loc[found["target"] != "", "target"].nunique()
    return join(
        tag(
            "p",
            f"How well scores of the embeddings rank backbones as fine-tuning then does, by weighted rank correlation: 1 is the "
            f"same ranking, 0 none. Over {plural(n, 'target')}, {joined(best)} come first.",
        ),
        figure(
            "agreement", "Points are targets, the large mark is their mean. Few backbones make each a rough number."
        ),
    )


def documents(both: pd.DataFrame, agreement: pd.DataFrame) -> dict[str, Any]:
    """What the figures draw."""
    keys = ["target", "source", "model", "shots", "metric", "backbone", "probe"]
    values = ["paper", "paper_sd", "paper_n", "ours", "ours_se", "difference", "low", "high"]
    return {
        "paper": columnar(both.assign(beyond=both["beyond"].astype(int)) if len(both) else both, [*keys, *values, "beyond"]),
        "agreement": columnar(agreement, ["target", "score", "metric", "n_backbones", "weighted_tau", "spearman", "p"]),
    }  # fmt: skip


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
