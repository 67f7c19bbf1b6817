"""`fastxfer select`: what deserves a fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import emit_json, json_option, print_table, results_option, same_options, store_option

if TYPE_CHECKING:
    from fastxfer.selection import Plan


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The plan, a JSON file.")
@click.option(
    "--policy", default="top", show_default=True,
    help="top (by the probe), halving, ucb, ei (expected improvement), kg (knowledge gradient per cost), random, or a package\'s.",
)  # fmt: skip
@click.option(
    "--budget", default="2 runs", show_default=True, metavar="AMOUNT",
    help='Fine-tunings at most: "20 runs" (or 20), "2 gpu-hours", or, with --gpu-hour, "50 usd".',
)  # fmt: skip
@click.option("--gpu-hour", type=click.FloatRange(min=0, min_open=True), help="What a GPU-hour costs, in usd or eur.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="New runs in one plan, the rest of the budget being for the next."
)
@click.option(
    "--stop-gain", type=click.FloatRange(min=0), default=0.0, show_default=True, metavar="POINTS",
    help="Leave out what is expected to add less to its target's choice; an empty plan is the end.",
)  # fmt: skip
@click.option(
    "--top", type=int, default=1, show_default=True, help="Policy top: backbones a target that are chosen outright."
)
@click.option(
    "--proximity", type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of `fastxfer proximity`: past fine-tunings tell what a near source is worth. Not for policy top.",
)  # fmt: skip
@click.option("--measure", default="mmd", show_default=True, metavar="M", help="Which measure of --proximity.")
@store_option
@same_options
@results_option
@json_option
def select(
    out: Path, policy: str, budget: str, gpu_hour: float | None, batch: int | None, stop_gain: float, top: int,
    proximity: Path | None, measure: str, store_path: str, results: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose what deserves a fine-tuning, from validation rows of full probes and past fine-tunings only.

    Scores of `fastxfer transferability` that all backbones of a target have count as far as past fine-tunings bear them out.

    \b
    Example:
      fastxfer select --budget 3 --out plan.json && fastxfer finetune --plan plan.json
      fastxfer select --policy ei --budget "20 runs" --batch 4 --stop-gain 0.2 --out plan.json
      fastxfer select --policy kg --budget "2 gpu-hours" --out plan.json
      fastxfer select --policy ucb --budget "50 usd" --gpu-hour 2.5 --out plan.json
      fastxfer select --policy ei --proximity near.csv --budget "20 runs" --out plan.json
      fastxfer select --policy halving --budget 8 --out plan.json
      fastxfer select --policy random --budget 4 --out plan.json
    """
    from fastxfer.progress import say

    again = {
        "policy": policy,
        "budget": budget,
        "gpu_hour": gpu_hour,
        "batch": batch,
        "stop_gain": stop_gain,
        "top": top,
        "proximity": None if proximity is None else str(proximity.absolute()),
        "measure": measure,
    }
    plan = make_plan(store_path, results, again)
    plan.write(out)
    if as_json:
        emit_json(plan.as_dict())
        return
    show_plan(plan)
    if plan.is_done:
        say(f"nothing more is worth a fine-tuning; the plan in {out} says what is chosen")
    else:
        say(f"the plan lies in {out}; run it with: fastxfer finetune --plan {out}")


def make_plan(store_path: str, results: str | None, again: dict[str, Any]) -> Plan:
    """A plan by the options of this command: policy, budget, gpu_hour, batch, stop_gain, top, proximity and measure."""
    from fastxfer.budgets import parse_budget
    from fastxfer.proximity.distances import distances, read_proximities
    from fastxfer.results import ResultStore, results_path
    from fastxfer.selection import policy_named
    from fastxfer.selection import select as choose
    from fastxfer.store import EmbeddingStore

    budget = parse_budget(again["budget"], gpu_hour=again["gpu_hour"])
    policy = None if again["policy"] == "top" else policy_named(again["policy"])
    store = EmbeddingStore.open(store_path)
    rows = ResultStore.open(results or results_path(store_path)).read()
    # Plans of before 30 November 2026 say nothing of proximity.
    file = again.get("proximity")
    near = None if file is None else distances(read_proximities(Path(file)), again["measure"]).to_dict()
    checkpoints = {(e.backbone, e.target): e.attrs for e in store.entries()}
    plan = choose(
        rows,
        store=store_path,
        budget=budget,
        top=again["top"],
        policy=policy,
        stop_gain=again["stop_gain"],
        batch=again["batch"],
        checkpoints=checkpoints,
        near=near,
    )
    return replace(plan, again=again)


def show_plan(plan: Plan) -> None:
    """What to fine-tune and what not, as a table."""
    print_table(
        ["fine-tune", "backbone", "target", "expected", "gain", "seconds", "why"],
        [
            [
                mark,
                c.backbone,
                c.target,
                f"{c.expected['metric']} {c.expected['value']:.3f}",
                f"{c.expected['gain']:+.3f}" if "gain" in c.expected else "",
                "" if c.estimated_seconds is None else f"{c.estimated_seconds:,.0f}",
                c.reason,
            ]
            for mark, choices in (("yes", plan.entries), ("no", plan.rejected))
            for c in choices
        ],
    )
