"""`fastxfer select`: what deserves a fine-tuning."""

from __future__ import annotations

from pathlib import Path

import click

from fastxfer.cli.common import emit_json, json_option, print_table, results_option, same_options, store_option


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The plan, a JSON file.")
@click.option("--budget", type=int, default=2, show_default=True, help="Fine-tunings at most.")
@click.option("--top", type=int, default=1, show_default=True, help="Backbones a target that are chosen outright.")
@store_option
@same_options
@results_option
@json_option
def select(out: Path, budget: int, top: int, store_path: str, results: str | None, as_json: bool) -> None:
    """Choose what deserves a fine-tuning, from validation rows of full probes only.

    \b
    Example:
      fastxfer select --budget 3 --out plan.json && fastxfer finetune --plan plan.json
    """
    from fastxfer.progress import say
    from fastxfer.results import ResultStore, results_path
    from fastxfer.selection import select as choose
    from fastxfer.store import EmbeddingStore

    store = EmbeddingStore.open(store_path)
    rows = ResultStore.open(results or results_path(store_path)).read()
    checkpoints = {(e.backbone, e.target): e.attrs for e in store.entries()}
    plan = choose(rows, store=store_path, budget=budget, top=top, checkpoints=checkpoints)
    plan.write(out)
    if as_json:
        emit_json(plan.as_dict())
        return
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
    say(f"the plan lies in {out}; run it with: fastxfer finetune --plan {out}")
