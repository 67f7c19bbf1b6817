"""The sections below the answer: selection, data sets, provenance. Figures are drawn in report.js."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fastxfer.report import cells as c
from fastxfer.report.answer import Name
from fastxfer.report.costs import number
from fastxfer.report.facts import Facts, base_name, without_paths
from fastxfer.report.html import Markup, join, table, tag
from fastxfer.report.words import bounds, duration, percent, plural

SHOWN_CLASSES = 12


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
        }
        for key in ("value", "low", "high"):
            row[f"expected_{key}"] = number(expected.get(key))
        tuned, probed = here[here["probe"] == c.FINETUNE], here[here["probe"] == c.PROBE_ORDER[0]]
        for what, part in (("val", tuned), ("test", tuned), ("probe", probed[probed["chosen"]])):
            of = part[part["split"] == ("val" if what == "val" else "test")]
            for key in ("mean", "low", "high"):
                row[f"{what}_{key}"] = float(of.iloc[0][key]) if len(of) else math.nan
        row["label"] = str(here["label"].iloc[0]) if len(here) else row["backbone"]
        row["recipe"] = str(tuned["params"].iloc[0]) if len(tuned) else ""
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
    done = sum(math.isfinite(r["test_mean"]) or math.isfinite(r["val_mean"]) for r in rows)
    lead = f"From validation rows only, the plan chose {plural(len(rows), 'fine-tuning')}"
    lead += _within(plan.get("budget") or {})
    if rows:
        lead += f"; {'all' if done == len(rows) else done} of them {'has' if done == 1 else 'have'} been run"
    lead += "."
    gains = [100 * g for r in rows if math.isfinite(g := r["test_mean"] - r["probe_mean"])]
    if gains:
        change = sum(gains) / len(gains)
        lead += (
            f" On test images, fine-tuning gave {abs(change):.1f} points {'more' if change >= 0 else 'less'} than the "
            f"full probe{' on average' if len(gains) > 1 else ''}."
        )
    # A column of which nothing is known is left out.
    values = [
        (heading, key, mean)
        for heading, key, mean in (
            ("expected, val", "expected", "value"),
            ("fine-tuned, val", "val", "mean"),
            ("full probe, test", "probe", "mean"),
            ("fine-tuned, test", "test", "mean"),
        )
        if any(math.isfinite(r[f"{key}_{mean}"]) for r in rows)
    ]
    metrics = sorted({c.metric_name(r["metric"]) for r in rows})
    body = [
        [
            join(name(r["label"]), " on ", tag("b", r["target"])),
            *([] if len(metrics) == 1 else [c.metric_name(r["metric"])]),
            *(_interval(r[f"{key}_{mean}"], r[f"{key}_low"], r[f"{key}_high"]) for _, key, mean in values),
        ]
        for r in rows
    ]
    columns: list[Any] = ["fine-tuning", *([] if len(metrics) == 1 else ["metric"]), *(v[0] for v in values)]
    recipes = sorted({r["recipe"] for r in rows} - {""})
    left = [(str(r.get("backbone")), str(r.get("target")), r) for r in plan.get("rejected", [])]
    return join(
        tag("p", lead),
        _policy(plan, name),
        tag("ol", [_choice(r["label"], r["target"], r, name) for r in rows], class_="reasons") if rows else None,
        figure if rows else None,
        table(columns, body, numeric=frozenset(range(len(columns) - len(values), len(columns)))) if body else None,
        tag(
            "p",
            f"{' or '.join(metrics).capitalize()} in percent, with 95 % intervals over images.",
            [" Fine-tuned with ", tag("code", " or ".join(recipes)), "."] if recipes else None,
            class_="note",
        )
        if body
        else None,
        tag(
            "details",
            tag("summary", f"Not chosen ({len(left)})"),
            tag("ul", [_choice(*choice, name) for choice in left], class_="reasons"),
        )
        if left
        else None,
    )


def _within(budget: Mapping[str, Any]) -> str:
    for kind, amount in budget.items():
        if math.isfinite(number(amount)):
            much = (
                plural(int(amount), "run") if kind == "runs" else duration(number(amount)) if kind == "seconds" else ""
            )
            return f" within a budget of {much or f'{amount:g} {kind}'}"
    return ""


def _policy(plan: Mapping[str, Any], name: Name) -> Markup | None:
    """How it was chosen, when it ends, and what would be taken for each target now."""
    told: list[Any] = []
    if policy := str(plan.get("policy") or ""):
        told.append(f"By {without_paths(policy)}.")
    if stop := number(plan.get("stop_gain")):
        told += [f" What is expected to add less than {stop:g} points is not run."] if math.isfinite(stop) else []
    chosen = plan.get("chosen")
    if isinstance(chosen, Mapping) and chosen:
        picks = []
        for target, of in chosen.items():
            tuned = number(of.get("finetuned"))
            value = f" (fine-tuned, {percent(tuned)} on validation)" if math.isfinite(tuned) else ""
            picks.append(join(name(str(of.get("backbone"))), " on ", tag("b", target), value))
        told += [" As things stand it takes ", [[pick, ", "] for pick in picks[:-1]], picks[-1], "."]
    return tag("p", told, class_="note") if told else None


def _interval(mean: float, low: float, high: float) -> Markup:
    if not math.isfinite(mean):
        return Markup("–")
    text = bounds(low, high)
    return join(percent(mean), " ", tag("span", f"({text})", class_="when") if text else None)


def _choice(label: str, target: str, entry: Mapping[str, Any], name: Name) -> Markup:
    return tag("li", name(label), " on ", tag("b", target), f": {_reason(entry)}.")


def _reason(entry: Mapping[str, Any]) -> str:
    return without_paths(str(entry.get("reason") or "")) or "no reason given"


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
                "kept apart" if about.patients else "not known",
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
        *([("Study", facts.study)] if facts.study else []),
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
            h["ways"],
            h["shots"],
            h["seed"],
            f"{h['n']:,}",
            _hash(h["episodes_hash"]),
        ]
        for h in in_order
    ]
    made_by = [", ".join(f"{k} {v}" for k, v in dict(run.get("versions") or {}).items()) for run in runs]
    same = len(set(made_by)) == 1
    run_rows: list[list[Any]] = [
        [
            tag("span", str(run.get("date", ""))[:16].replace("T", " "), class_="when"),
            str(run.get("stage", "")),
            duration(number(run.get("seconds"))),
            tag("code", shown_command(str(run.get("command", "")))),
            *([] if same else [tag("span", versions, class_="small")]),
        ]
        for run, versions in zip(runs, made_by, strict=True)
    ]
    return join(
        tag("dl", [join(tag("dt", k), tag("dd", v)) for k, v in facts_list]),
        join(
            tag("h3", "Commands that made the rows"),
            table(
                ["when (UTC)", "stage", "took", "command", *([] if same else ["versions"])],
                run_rows,
                numeric=frozenset({2}),
            ),
            tag("p", "All with ", made_by[0], ".", class_="note") if same and made_by[0] else None,
        )
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
                numeric=frozenset({1, 2, 3, 4}),
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
