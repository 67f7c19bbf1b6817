"""`fastxfer results`: what rows there are, out, and together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import emit_json, json_option, print_table, results_option, store_option

if TYPE_CHECKING:
    from fastxfer.results import ResultStore


@click.group()
def results() -> None:
    """List, export and merge result rows.

    \b
    Example:
      fastxfer results ls
      fastxfer results export --out cells.csv
      fastxfer results merge theirs-results ours-results --into all-results
    """


def _open(results: str | None, store_path: str) -> ResultStore:
    from fastxfer.results import ResultStore, results_path

    return ResultStore.open(results or results_path(store_path))


@results.command()
@store_option
@results_option
@json_option
def ls(store_path: str, results: str | None, as_json: bool) -> None:
    """List what rows there are, a line a backbone, target and probe, and of which study they are.

    \b
    Example:
      fastxfer results ls --results demo/store-results
    """
    from fastxfer.results import CELL

    kept = _open(results, store_path)
    groups: dict[tuple[str, ...], list[tuple[str, str, int]]] = {}
    for cell in kept.cells():
        named = dict(zip(CELL, map(str, cell), strict=True))
        groups.setdefault((named["target"], named["backbone"], named["probe"]), []).append(
            (named["shots"], named["seed"], kept.n_rows(cell))
        )
    lines: list[dict[str, Any]] = [
        {
            **dict(zip(("target", "backbone", "probe"), group, strict=True)),
            "shots": sorted({shots for shots, _, _ in cells}, key=lambda s: float(s) if s != "full" else float("inf")),
            "seeds": sorted({int(seed) for _, seed, _ in cells}),
            "cells": len(cells),
            "rows": sum(n for _, _, n in cells),
        }
        for group, cells in sorted(groups.items())
    ]
    study = kept.study()
    if as_json:
        emit_json({"results": str(kept.path), "study": study.get("name"), "hash": study.get("hash"), "groups": lines})
        return
    if study:
        click.echo(f"of the study '{study['name']}', hash {study['hash']}\n")
    print_table(
        ["target", "backbone", "probe", "shots", "seeds", "cells", "rows"],
        [
            [
                *(line[w] for w in ("target", "backbone", "probe")),
                " ".join(line["shots"]),
                len(line["seeds"]),
                line["cells"],
                line["rows"],
            ]
            for line in lines
        ],
    )


@results.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Name ending in .parquet, .csv or .nc (xarray); a folder for TensorBoard.",
)
@click.option(
    "--to",
    "kind",
    type=click.Choice(["parquet", "csv", "xarray", "tensorboard", "wandb"]),
    help="What to export to [default: as --out ends].",
)
@click.option("--raw", is_flag=True, help="The rows themselves [default: cells: means with intervals].")
@store_option
@results_option
@json_option
def export(out: Path | None, kind: str | None, raw: bool, store_path: str, results: str | None, as_json: bool) -> None:
    """Write results for other programs: Parquet, CSV, xarray, TensorBoard, Weights & Biases.

    \b
    Examples:
      fastxfer results export --out cells.csv
      fastxfer results export --out rows.parquet --raw
      fastxfer results export --out runs --to tensorboard && tensorboard --logdir runs
      WANDB_MODE=offline fastxfer results export --to wandb
    """
    from fastxfer.exports import export as write
    from fastxfer.exports import kind_of

    chosen = kind_of(out, kind)
    kept = _open(results, store_path)
    study = kept.study()
    about = {"study": study["name"], "study_hash": study["hash"]} if study else {}
    count = write(kept.read(), out, kind=chosen, raw=raw, about=about)
    if as_json:
        emit_json({"to": chosen, "out": out, "count": count, **about})
        return
    what = "scalars" if chosen in ("tensorboard", "wandb") else "rows" if raw else "cells"
    click.echo(f"{count:,} {what} written to {out or 'Weights & Biases'}")


@results.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER…")
@click.option(
    "--into",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that gets the rows; it may have some already.",
)
@json_option
def merge(sources: tuple[Path, ...], into: Path, as_json: bool) -> None:
    """Put the rows of several folders into one: what several people or machines did of one study.

    Rows that are in several of them must be equal; else nothing is written, and the first that differs is named.

    \b
    Example:
      fastxfer results merge theirs-results ours-results --into all-results
    """
    from fastxfer.results.merging import merge as put_together

    added = put_together(sources, into)
    if as_json:
        emit_json({"results": str(into), "rows_added": added})
        return
    click.echo(f"{added:,} rows added to {into}")
