"""`fastxfer probes`: the probes and published protocols that there are; and the options that all probes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fastxfer.cli.common import emit_json, json_option, print_table

F = TypeVar("F", bound=Callable[..., Any])


def transform_option(f: F) -> F:
    return click.option(
        "--transform",
        "transform",
        multiple=True,
        metavar="T…",
        help="What is done to embeddings first, in this order: centre, l2, power, standardise.",
    )(f)


def class_weight_option(f: F) -> F:
    return click.option(
        "--class-weight",
        type=click.Choice(["balanced"]),
        help="logistic: balanced lets every class weigh the same, however few its images; scikit-learn's [default: "
        "every image weighs the same].",
    )(f)


def per_class_option(f: F) -> F:
    return click.option(
        "--per-class",
        is_flag=True,
        help="Also each class alone: rows of metric recall:NAME, auc:NAME … beside the means [fewshot: with --ways all or "
        "per label].",
    )(f)


def vote_option(f: F) -> F:
    return click.option(
        "--vote",
        type=click.Choice(["temperature", "plain", "distance"]),
        help="knn: votes weigh exp(similarity / temperature), one each, or one over the cosine distance [default: "
        "temperature].",
    )(f)


def choice_options(f: F) -> F:
    """`l2_by`, `folds`, `criterion`."""
    for option in (
        click.option(
            "--l2-criterion",
            "criterion",
            type=click.Choice(["loss", "accuracy", "balanced_accuracy"]),
            help="What the choice of --l2-by makes best on held-out images [default: loss].",
        ),
        click.option(
            "--folds", type=click.IntRange(min=2), metavar="N", help="Folds of the support for --l2-by [default: 5]."
        ),
        click.option(
            "--l2-by",
            type=click.Choice(["fixed", "holdout", "cv", "val"]),
            default="fixed",
            show_default=True,
            help="How one of --l2 is chosen: each on its own, by a held-out fold of the support, by all folds in turn, "
            "or by the target's validation split. Without --l2 the grid is C = 10^-6 … 10^5, 45 values.",
        ),
    ):
        f = option(f)
    return f


@click.group()
def probes() -> None:
    """List and explain probes and presets (published protocols).

    \b
    Example:
      fastxfer probes show kornblith
    """


def _entries() -> list[dict[str, Any]]:
    from fastxfer.presets import PRESETS
    from fastxfer.probes import PROBES

    commands = {
        "logistic": ("fewshot", "probe"),
        "knn": ("fewshot", "knn"),
        "ridge": ("fewshot",),
        "prototype": ("fewshot",),
    }
    plain = {"note": "", "settings": "", "episodes": {}}
    own = [
        {
            "name": name,
            "kind": "probe",
            "commands": list(commands[name]),
            "what": probe.summary,
            "source": "docs/probes.md",
        }
        for name, probe in PROBES.own.items()
    ]
    brought = [
        {
            "name": plugin.name,
            "kind": "probe",
            "commands": ["fewshot", "probe"] if probe else [],
            "what": probe.summary if probe else problem,
            "source": str(plugin),
        }
        for plugin, probe, problem in PROBES.tried()
    ]
    return [{**entry, **plain} for entry in own + brought] + [
        {
            "name": p.name,
            "kind": "preset",
            "commands": list(p.commands),
            "what": p.line,
            "source": p.source,
            "note": p.note,
            "settings": "; ".join([p.probe.name, *p.probe.settings(1000)]),
            "episodes": p.episodes,
        }
        for p in PRESETS.values()
    ]


@probes.command()
@json_option
def ls(as_json: bool) -> None:
    """List probes and presets, a line each.

    \b
    Example:
      fastxfer probes ls
    """
    entries = _entries()
    if as_json:
        emit_json(entries)
        return
    print_table(
        ["name", "kind", "commands", "what"],
        [[e["name"], e["kind"], ", ".join(e["commands"]), e["what"]] for e in entries],
    )


@probes.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Explain one probe or preset: what it does, how its rows say so, and its source.

    \b
    Example:
      fastxfer probes show kornblith
    """
    from fastxfer.errors import UsageError, nearest

    entries = {e["name"]: e for e in _entries()}
    if name not in entries:
        raise UsageError(f"unknown probe '{name}'.{nearest(name, entries)} `fastxfer probes ls` lists them.")
    entry = entries[name]
    if as_json:
        emit_json(entry)
        return
    click.echo(f"{entry['name']}: {entry['what']}")
    click.echo(f"source: {entry['source']}")
    if entry["note"]:
        click.echo(f"here: {entry['note']}")
    if entry["settings"]:
        click.echo(f"params in the rows, for 1,000 fitted images: {entry['settings']}")
    if entry["episodes"]:
        click.echo("episodes: " + ", ".join(f"{k} {v}" for k, v in entry["episodes"].items()))
    for command in entry["commands"]:
        click.echo(f"run: fastxfer {command}" + ("" if command == name else f" --probe {name}"))
