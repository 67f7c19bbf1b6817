"""`fastxfer report`: results become a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import (
    ManyValues,
    command_line,
    data_root_option,
    emit_json,
    json_option,
    results_option,
    store_option,
)
from fastxfer.files import parsed


@click.command(cls=ManyValues)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="report", show_default=True,
              help="Folder for index.html.")  # fmt: skip
@click.option("--plan", "plan_path", type=click.Path(path_type=Path, dir_okay=False),
              help="The plan of `fastxfer select` [default: plan.json beside the results, if there].")  # fmt: skip
@click.option("--curves", "curve_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of `fastxfer finetune --curves`: draws the learning curves.")  # fmt: skip
@click.option("--tables", "table_files", multiple=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE…",
              help="Tables of `fastxfer proximity --out` and `fastxfer scale --figure` or `--paper --out`: their figures.")  # fmt: skip
@click.option("--figures", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Also write every figure there: its picture, and its data as .csv.")  # fmt: skip
@click.option("--as", "pictures", multiple=True, type=click.Choice(["svg", "pdf", "png"]), default=["svg"], show_default=True,
              help="What pictures --figures writes (extra `images`).")  # fmt: skip
@click.option("--title", default="Which backbone transfers best?", show_default=True, help="The page's heading.")
@store_option
@data_root_option
@results_option
@json_option
def report(
    out: Path, plan_path: Path | None, curve_folder: Path | None, table_files: tuple[Path, ...], figures: Path | None,
    pictures: tuple[str, ...], title: str,
    store_path: str, data_root: Path, results: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Write the results as one self-contained HTML page: the answer, curves, table, selection, costs, provenance.

    \b
    Examples:
      fastxfer report --out report && xdg-open report/index.html
      fastxfer report --curves curves --tables near.csv gains.csv --title "Chest X-rays from photographs?"
      fastxfer report --figures figures --as svg pdf
    """
    from fastxfer.errors import DataError
    from fastxfer.report import read_curves, read_tables, write_report
    from fastxfer.report.words import joined
    from fastxfer.results import ResultStore, results_path

    rows = ResultStore.open(results or results_path(store_path))
    frame = rows.read()
    if frame.empty:
        raise DataError(
            f"no results at '{rows.path}': `fastxfer fewshot --episodes 5000` makes some from the embeddings of a store"
            " (`fastxfer embed` fills one)"
        )
    if plan_path is None and (rows.path / "plan.json").is_file():
        plan_path = rows.path / "plan.json"
    page = write_report(
        store_path,
        frame,
        out,
        plan=_read_plan(plan_path) if plan_path else None,
        command=command_line(),
        title=title,
        runs=rows.runs(),
        data_root=data_root,
        curves=read_curves(curve_folder) if curve_folder else (),
        read_images=rows.read_images,
        tables=read_tables(table_files),
        figures=figures,
        pictures=pictures,
    )
    size = page.stat().st_size
    if as_json:
        emit_json({"report": str(page), "bytes": size, "rows": len(frame), "plan": plan_path, "figures": figures})
        return
    click.echo(f"the report lies in {page} ({size / 1e6:.1f} MB, opens without a network)")
    if figures is not None:
        click.echo(f"its figures lie in {figures}, each as {joined(['.csv', *(f'.{kind}' for kind in pictures)])}")


def _read_plan(path: Path) -> dict[str, Any]:
    from fastxfer.errors import DataError

    try:
        plan = parsed(json.loads, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no plan at '{path}': `fastxfer select --out {path}` makes one") from None
    except ValueError as error:
        raise DataError(f"plan '{path}' is no JSON ({error}): `fastxfer select --out {path}` makes it anew") from None
    if not isinstance(plan, dict) or not isinstance(plan.get("entries"), list):
        raise DataError(f"plan '{path}' has no list of entries: `fastxfer select --out {path}` makes one")
    version = plan.get("version")
    if version != 1:
        raise DataError(
            f"plan '{path}' is of version {version!r}, this fastxfer reads version 1: make it anew or upgrade"
        )
    return plan
