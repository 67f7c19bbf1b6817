"""The sections below the answer: selection, costs, data sets, provenance. Their figures are drawn in report.js."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.report import cells as c
from fastxfer.report.answer import Name, percent, plural
from fastxfer.report.facts import Facts, base_name, without_paths
from fastxfer.report.html import Markup, join, table, tag

SHOWN_CLASSES = 12
PROBING = ("fewshot", "probe", "knn")


def duration(seconds: float) -> str:
    """``0.4 s``, ``45 s``, ``3 min 20 s``, ``2.5 h``, ``3.1 days``; "unknown" for NaN."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _interval(mean: float, low: float, high: float) -> str:
    if not math.isfinite(mean):
        return "–"
    return f"{percent(mean)} ({percent(low)}–{percent(high)})" if math.isfinite(low) else percent(mean)


def outcomes(plan: dict[str, Any], cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Each selected cell of the plan with what its fine-tuning then gave: plain values, NaN where unknown.

    `expected*` are the plan's, on the rows it was made from (validation); `validation*` and `test*` are the fine-tuned
    network's on the same metric; `probe` is the full probe's test value, what stopping at the probe would have given.
    """
    found = []
    for entry in plan.get("entries", []):
        expected = entry.get("expected") or {}
        metric = str(expected.get("metric") or plan.get("metric") or "")
        here = cells[
            (cells["backbone"] == str(entry.get("backbone")))
            & (cells["target"] == str(entry.get("target")))
            & (cells["shots"] == str(entry.get("shots", c.FULL)))
            & (cells["metric"] == metric)
        ]
        row: dict[str, Any] = {
            "backbone": str(entry.get("backbone")),
            "target": str(entry.get("target")),
            "metric": metric,
            "reason": str(entry.get("reason") or ""),
            "estimated_seconds": _number(entry.get("estimated_seconds")),
        }
        for key in ("value", "low", "high"):
            row[f"expected_{key}"] = _number(expected.get(key))
        tuned, probed = here[here["probe"] == c.FINETUNE], here[here["probe"] == c.PROBE_ORDER[0]]
        for what, part in (("val", tuned), ("test", tuned), ("probe", probed[probed["chosen"]])):
            of = part[part["split"] == ("val" if what == "val" else "test")]
            for key in ("mean", "low", "high"):
                row[f"{what}_{key}"] = float(of.iloc[0][key]) if len(of) else math.nan
        row["label"] = str(here["label"].iloc[0]) if len(here) else row["backbone"]
        found.append(row)
    return found


def selection(plan: dict[str, Any] | None, rows: list[dict[str, Any]], figure: Markup, name: Name) -> Markup:
    """What the plan chose and why, what came of it, and what it left out."""
    if not plan:
        return tag(
            "p",
            "No plan was given: ",
            tag("code", "fastxfer select --out plan.json"),
            " makes one from validation rows, and the report then tells what it chose and what came of it.",
        )
    budget = (plan.get("budget") or {}).get("runs")
    done = [r for r in rows if math.isfinite(r["test_mean"]) or math.isfinite(r["val_mean"])]
    lead = [f"The plan chose {plural(len(rows), 'fine-tuning')}"]
    lead.append(f" within a budget of {plural(int(budget), 'run')}" if budget is not None else "")
    lead.append(f", from validation rows only; {len(done)} of them {'has' if len(done) == 1 else 'have'} been run.")
    gains = [r["test_mean"] - r["probe_mean"] for r in rows]
    gains = [100 * g for g in gains if math.isfinite(g)]
    if gains:
        change = sum(gains) / len(gains)
        lead.append(
            f" On test images fine-tuning gave {abs(change):.1f} points {'more' if change >= 0 else 'less'} than the "
            f"full probe{' on average' if len(gains) > 1 else ''}."
        )
    body = [
        [
            join(name(r["label"]), " on ", tag("b", r["target"])),
            c.metric_name(r["metric"]),
            _interval(r["expected_value"], r["expected_low"], r["expected_high"]),
            _interval(r["val_mean"], r["val_low"], r["val_high"]),
            _interval(r["probe_mean"], r["probe_low"], r["probe_high"]),
            _interval(r["test_mean"], r["test_low"], r["test_high"]),
        ]
        for r in rows
    ]
    reasons = [tag("li", name(r["label"]), " on ", tag("b", r["target"]), f": {_reason(r)}") for r in rows]
    rejected = [
        tag("li", name(str(r.get("backbone"))), " on ", tag("b", str(r.get("target"))), f": {_reason(r)}")
        for r in plan.get("rejected", [])
    ]
    columns: list[Any] = [
        "fine-tuning",
        "metric",
        "expected, val",
        "fine-tuned, val",
        "full probe, test",
        "fine-tuned, test",
    ]
    return join(
        tag("p", lead),
        tag("ol", reasons, class_="reasons") if reasons else None,
        figure if rows else None,
        table(columns, body, numeric=frozenset({2, 3, 4, 5})) if body else None,
        tag("details", tag("summary", f"Left out ({len(rejected)})"), tag("ul", rejected, class_="reasons"))
        if rejected
        else None,
    )


def _reason(entry: Mapping[str, Any]) -> str:
    return without_paths(str(entry.get("reason") or "")) or "no reason given"


def costs(
    results: pd.DataFrame,
    cells: pd.DataFrame,
    plan: dict[str, Any] | None,
    runs: Sequence[Mapping[str, Any]],
    facts: Facts,
) -> dict[str, Any]:
    """Seconds spent and, by measured seconds of a fine-tuning, what fine-tuning every (backbone, target) would take."""
    text = results[["backbone", "target", "probe", "metric", "value"]].astype(
        {"backbone": str, "target": str, "probe": str}
    )
    seconds = text[text["metric"] == c.SECONDS]
    tuned = seconds[seconds["probe"] == c.FINETUNE]
    pairs = sorted(set(zip(cells["backbone"], cells["target"], strict=True)))
    # A pair that was never fine-tuned costs what its target did, else its backbone, else the mean of all.
    by_target, by_backbone = (
        tuned.groupby("target")["value"].mean(),
        tuned.groupby("backbone")["value"].mean(),
    )
    by_pair = tuned.groupby(["backbone", "target"])["value"].mean()
    estimates = {
        (e.get("backbone"), e.get("target")): _number(e.get("estimated_seconds"))
        for e in (plan or {}).get("entries", [])
    }
    everything = 0.0
    for backbone, target in pairs:
        guesses: Iterable[float] = (
            by_pair.get((backbone, target), math.nan),
            estimates.get((backbone, target), math.nan),
            by_target.get(target, math.nan),
            by_backbone.get(backbone, math.nan),
            float(tuned["value"].mean()) if len(tuned) else math.nan,
        )
        everything += next((float(g) for g in guesses if math.isfinite(g)), math.nan)
    embedding = {pair: _number(attributes.get("seconds")) for pair, attributes in facts.embeddings.items()}
    few = cells[(cells["shots"] != c.FULL) & cells["main"]]
    shots = few[["ways", "shots"]].drop_duplicates()
    return {
        "embedding": sum(v for v in embedding.values() if math.isfinite(v)),
        "embedding_known": any(math.isfinite(v) for v in embedding.values()),
        "by_pair": embedding,
        "probing": float(np.nansum([_number(r.get("seconds")) for r in runs if r.get("stage") in PROBING])),
        "finetuning": float(tuned["value"].sum()),
        "finetunings": len(tuned),
        "fits": int(few["n"].sum()),
        "everything": everything if len(tuned) else math.nan,
        "pairs": len(pairs),
        "settings": len(shots),
    }


def costs_section(spent: dict[str, Any], figure: Markup, facts: Facts, name: Name, labels: dict[str, str]) -> Markup:
    total = spent["embedding"] + spent["probing"] + spent["finetuning"]
    known = "" if spent["embedding_known"] else " (embedding times are not in the store)"
    first = f"These results took {duration(total)}{known}: embedding {duration(spent['embedding'])}"
    if spent["probing"]:
        first += f", probes {duration(spent['probing'])}"
    first += f", {plural(spent['finetunings'], 'fine-tuning')} {duration(spent['finetuning'])}."
    first += f" They hold {spent['fits']:,} few-shot fits." if spent["fits"] else ""
    if math.isfinite(spent["everything"]):
        second = (
            f"Fine-tuning all {spent['pairs']} pairs of backbone and target once, on the whole train split, would "
            f"take about {duration(spent['everything'])} by the measured seconds of a fine-tuning"
        )
        if total > 0:
            ratio = spent["everything"] / total
            second += f", {ratio:.1f} times as much" if ratio >= 1 else f", {100 * ratio:.0f} % of that"
        second += (
            f"; the {plural(spent['settings'], 'few-shot setting')} would each add runs of their own, one an episode."
            if spent["settings"]
            else "."
        )
    else:
        second = "No fine-tuning was measured here, so what fine-tuning everything would take is not known."
    rows: list[list[Any]] = []
    for (backbone, target), attributes in sorted(facts.embeddings.items()):
        about = facts.targets.get(target)
        rate = _number(attributes.get("images_per_second"))
        rows.append(
            [
                name(labels.get(backbone, backbone)),
                target,
                f"{about.n_images:,}" if about else "–",
                duration(spent["by_pair"][backbone, target]),
                f"{rate:,.0f}" if math.isfinite(rate) else "–",
            ]
        )
    columns: list[Any] = ["backbone", "target", "images", "embedding", "images/s"]
    return join(
        tag("p", first, " ", second),
        figure if math.isfinite(spent["everything"]) else None,
        tag(
            "details",
            tag("summary", "Embedding, cell by cell"),
            table(columns, rows, numeric=frozenset({2, 3, 4})),
        )
        if rows
        else None,
    )


def data_sets(facts: Facts) -> Markup | None:
    if not facts.targets:
        return None
    rows: list[list[Any]] = []
    for target, about in sorted(facts.targets.items()):
        shown = ", ".join(about.class_names[:SHOWN_CLASSES])
        more = len(about.class_names) - SHOWN_CLASSES
        rows.append(
            [
                tag("b", target, class_="when"),
                f"{about.n_images:,}",
                tag("span", " / ".join(f"{n:,} {split}" for split, n in about.splits.items()), class_="when"),
                f"{len(about.class_names)}{', multi-label' if about.multi_label else ''}",
                "kept apart" if about.patients else "unknown",
                tag("span", shown + (f" and {more} more" if more > 0 else ""), class_="small"),
            ]
        )
    return join(
        tag("h3", "Targets"),
        table(["target", "images", "splits", "classes", "patients", "class names"], rows, numeric=frozenset({1})),
    )


def provenance(
    cells: pd.DataFrame,
    facts: Facts,
    runs: Sequence[Mapping[str, Any]],
    command: str,
    made: str,
    name: Name,
    labels: dict[str, str],
) -> Markup:
    """Command, versions, digests and hashes."""
    facts_list: list[tuple[str, Any]] = [
        ("Command", tag("code", shown_command(command))),
        ("Made", made),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts.versions.items())),
        (
            "Store",
            join(tag("code", facts.store), *([", digest ", _hash(facts.digest)] if facts.digest else [])),
        ),
    ]
    backbones: list[list[Any]] = []
    seen: set[tuple[str, str]] = set()
    for (backbone, _), a in sorted(facts.embeddings.items()):
        identity = str(a.get("identity", ""))
        if (backbone, identity) in seen:
            continue
        seen.add((backbone, identity))
        backbones.append(
            [
                name(labels.get(backbone, backbone)),
                str(a.get("source", "unknown")),
                str(a.get("architecture", "unknown")),
                base_name(a.get("checkpoint", "unknown")),
                _hash(identity),
                _hash(str(a.get("weights_sha256", ""))),
                str(a.get("code_version", "")),
            ]
        )
    episodes = cells[cells["episodes_hash"].astype(str) != ""]
    hashes = episodes.groupby(["target", "ways", "shots", "seed", "episodes_hash"], sort=True)["n"].max().reset_index()
    in_order = sorted(
        hashes.to_dict("records"), key=lambda h: (h["target"], c.natural_key(h["ways"]), float(h["shots"]))
    )
    episode_rows: list[list[Any]] = [
        [
            h["target"],
            "all classes" if h["ways"] == "all" else f"{h['ways']}-way",
            h["shots"],
            h["seed"],
            f"{h['n']:,}",
            _hash(h["episodes_hash"]),
        ]
        for h in in_order
    ]
    run_rows: list[list[Any]] = [
        [
            tag("span", str(run.get("date", ""))[:16].replace("T", " "), class_="when"),
            tag("code", shown_command(str(run.get("command", "")))),
            duration(_number(run.get("seconds"))),
            tag(
                "span",
                ", ".join(f"{k} {v}" for k, v in dict(run.get("versions") or {}).items()),
                class_="small",
            ),
        ]
        for run in runs
    ]
    return join(
        tag("dl", [join(tag("dt", k), tag("dd", v)) for k, v in facts_list]),
        join(tag("h3", "Commands that made the rows"), table(["when", "command", "took", "versions"], run_rows))
        if run_rows
        else None,
        tag("h3", "Backbones"),
        table(
            [
                "backbone",
                "trained on",
                "architecture",
                "checkpoint",
                "identity",
                "weights SHA-256",
                "embedded by",
            ],
            backbones,
        )
        if backbones
        else tag("p", "The store says nothing about them."),
        data_sets(facts),
        tag(
            "details",
            tag("summary", f"Lists of episodes ({len(episode_rows)})"),
            tag(
                "p",
                "The same hash means the same episodes: backbones are then compared on equal draws.",
                class_="note",
            ),
            table(
                ["target", "ways", "shots", "seed", "episodes", "hash"],
                episode_rows,
                numeric=frozenset({2, 3, 4}),
            ),
        )
        if episode_rows
        else None,
    )


def shown_command(command: str) -> str:
    """A command line whose paths are reduced to their last part."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unbalanced quote: cut at spaces
        words = command.split()
    shown = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if "/" in value or "\\" in value:
            value = f"…/{base_name(value)}"
        shown.append(option + equals + (shlex.quote(value) if " " in value else value))
    return " ".join(shown)


def _hash(text: str) -> Markup:
    """The first characters of a hash; the whole of it in the tooltip and, on paper, where there is room."""
    return tag("code", text[:12] or "–", title=text or None, class_="hash")
