"""`fastxfer paper`: the paper's cells, beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import (
    ManyValues,
    emit_json,
    json_option,
    print_table,
    results_option,
    same_options,
    store_option,
)


@click.command(cls=ManyValues)
@click.option(
    "--target", "target", multiple=True, metavar="T…", help="The paper's targets, by its names or ours [default: all]."
)
@click.option("--source", "source", multiple=True, metavar="S…", help="The paper's sources [default: all].")
@click.option("--model", "model", multiple=True, metavar="M…", help="bit50x1 bit152x4 [default: both].")
@click.option("--shots", "shots", multiple=True, metavar="K…", help="1 5 10 100 500 full [default: all].")
@click.option(
    "--metric", "metric", multiple=True, metavar="M…", help="acc mean_auc … [default: each target's headline]."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table: .csv, .md or .tex.")
@store_option
@same_options
@results_option
@json_option
def paper(
    target: tuple[str, ...], source: tuple[str, ...], model: tuple[str, ...], shots: tuple[str, ...],
    metric: tuple[str, ...], out: Path | None, store_path: str, results: str | None, as_json: bool,
) -> None:  # fmt: skip
    """What Cherti & Jitsev (2021) found, cell by cell, and beside it rows of ours on the same target, source and size.

    ± is a standard error. A difference is marked (*) where it is beyond both noises. Without rows of ours the paper stands alone. Notes say what
    its reader must know.

    \b
    Examples:
      fastxfer paper --target covidx_cxr2 --shots full --metric acc mean_auc
      fastxfer paper --out paper.tex
    """
    from fastxfer.frames import check_kind, write_frame
    from fastxfer.paper.beside import beside
    from fastxfer.paper.facts import paper_source, paper_target
    from fastxfer.paper.notes import NOTES
    from fastxfer.progress import say
    from fastxfer.results import ResultStore, results_path

    if out is not None:
        check_kind(out)
    done = ResultStore.open(results or results_path(store_path))
    table = beside(
        done.read(),
        architectures=_architectures(store_path),
        target=[paper_target(t) or t for t in target],
        source=[paper_source(s) or s for s in source],
        model=model,
        shots=shots,
        metric=metric,
    )
    seen = list(dict.fromkeys(key for keys in table["notes"] for key in keys))
    numbers = {key: i + 1 for i, key in enumerate(seen)}
    texts = {note.key: note.text for note in NOTES}
    shown = _shown(table, numbers)
    if out is not None:
        write_frame(out, table, shown)
    if as_json:
        emit_json({"cells": table.to_dict("records"), "notes": {key: texts[key] for key in seen}, "out": out})
        return
    print_table(list(shown.columns), shown.to_numpy().tolist(), right=("paper", "ours", "difference"))
    for key in seen:
        click.echo(f"[{numbers[key]}] {texts[key]}")
    matched = int(table["ours"].notna().sum())
    beyond = int(table["beyond"].sum())
    say(f"{matched} cells of ours stand beside the paper's; {beyond} differ by more than both noises (Holm, 5 %)")
    if out is not None:
        say(f"wrote {out}")


def _shown(table: Any, numbers: dict[str, int]) -> Any:
    """The table in words: percent, and notes by number; without columns of ours where there are none."""
    import pandas as pd

    def percent(value: float, spread: float) -> str:
        return "" if value != value else f"{100 * value:.1f} ± {100 * spread:.1f}"

    lines = []
    for r in table.itertuples():
        theirs = {
            "target": r.target, "source": r.source, "model": r.model, "shots": r.shots, "metric": r.metric,
            "paper": percent(r.paper, r.paper_sd / r.paper_n**0.5),
        }  # fmt: skip
        ours = {
            "ours": percent(r.ours, r.ours_se),
            "by": "" if r.ours != r.ours else " ".join(w for w in (r.backbone, r.probe, r.preset) if w),
            "difference": "" if r.ours != r.ours else f"{100 * r.difference:+.1f}{'*' if r.beyond else ''}",
        }
        notes = {"notes": "".join(f"[{numbers[key]}]" for key in r.notes)}
        lines.append({**theirs, **(ours if table["ours"].notna().any() else {}), **notes})
    return pd.DataFrame(lines)


def _architectures(store_path: str) -> dict[str, str]:
    """Backbone -> architecture, of what the store holds, if it is there."""
    from fastxfer.registered import in_store

    return {name: str(facts.get("architecture", "")) for name, facts in in_store(store_path).items()}
