"""`fastxfer scale`: what size of network and of source data bring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import (
    ManyValues,
    data_root_option,
    emit_json,
    json_option,
    print_table,
    results_option,
    store_option,
)

if TYPE_CHECKING:
    import pandas as pd


@click.command(cls=ManyValues)
@click.option(
    "--paper",
    "of_paper",
    is_flag=True,
    help="The paper's 1,440 runs instead of our rows: its claims, each with a verdict.",
)
@click.option(
    "--logit", is_flag=True, help="Gains in logits, which do not shrink near 100 %, instead of percentage points."
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Points within which a difference is none.",
)
@click.option("--probe", default="finetune", show_default=True, metavar="P", help="Whose rows: finetune, or a probe.")
@click.option(
    "--metric",
    metavar="M",
    help="In which metric [default: accuracy; of the paper each target's headline, or such as mean_auc].",
)
@click.option(
    "--backbones",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV: backbone, and any of parameters, images, domain (both of its source), where neither the register nor the "
    "source's name tells.",
)
@click.option(
    "--domain", "domains", multiple=True, metavar="T=D…", help="Domain of a target that is none of the paper's."
)
@click.option(
    "--proximity",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV of `fastxfer proximity`: near and far by measure, not by domain.",
)
@click.option("--measure", default="mmd", show_default=True, metavar="M", help="Which measure of --proximity.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the main table: .csv, .md or .tex.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a figure's data, .csv: gains by relation and shots, or with --paper the differences of every claim.",
)
@data_root_option
@store_option
@results_option
@json_option
def scale(
    of_paper: bool, logit: bool, margin: float, probe: str, metric: str | None, backbones: Path | None, domains: tuple[str, ...],
    proximity: Path | None, measure: str, out: Path | None, figure: Path | None, data_root: Path, store_path: str,
    results: str | None, as_json: bool,
) -> None:  # fmt: skip
    """What ten times the parameters, and ten times the source's images, bring: near and far, at few and many shots.

    A mixed model of all cells at once; intervals are over targets and sources like these. With --paper also the paper's
    claims, one by one.

    \b
    Examples:
      fastxfer scale --paper
      fastxfer scale --paper --metric mean_auc --logit
      fastxfer scale --backbones sizes.csv --domain nih14=X-ray dtd=natural
      fastxfer scale --probe logistic --proximity near.csv --figure gains.csv
    """
    from fastxfer.errors import UsageError
    from fastxfer.files import write_whole
    from fastxfer.frames import check_kind, write_frame
    from fastxfer.progress import say
    from fastxfer.scale import above, fit_scale, paper_cells, paper_cells_by, verdicts

    if out is not None:
        check_kind(out)
    if figure is not None and figure.suffix != ".csv":
        raise UsageError(f"--figure {figure}: a figure's data are written as .csv")
    if of_paper:
        cells = paper_cells_by(metric) if metric else paper_cells()
    else:
        cells = _our_cells(
            probe, metric or "accuracy", backbones, domains, proximity, measure, data_root, store_path, results
        )
    model = fit_scale(cells, "logit" if logit else "points")
    gains = model.effects()
    gains["verdict"] = [above(r.low, r.high) if r.low == r.low else "" for r in gains.itertuples()]
    table, pairs = verdicts(model=model, margin=margin) if of_paper else (None, None)
    main, drawn = (gains, gains) if table is None or pairs is None else (table, pairs)
    shown = _gains(gains) if table is None else _claims(table)
    if out is not None:
        write_frame(out, main, shown)
    if figure is not None:
        write_whole(figure, drawn.to_csv(index=False).encode())
    if as_json:
        emit_json(
            {
                "scale": model.scale,
                "cells": len(cells),
                "gains": gains.to_dict("records"),
                "variances": model.mixed.theta,
                "claims": [] if table is None else table.to_dict("records"),
                "differences": [] if pairs is None else pairs.to_dict("records"),
            }
        )
        return
    if table is not None:
        print_table(list(shown.columns), shown.to_numpy().tolist(), right=("difference", "95 %"))
        click.echo()
    told = _gains(gains)
    print_table(list(told.columns), told.to_numpy().tolist(), right=("gain", "95 %", "se"))
    unit = "logits" if logit else "percentage points"
    say(f"gains are {unit} per tenfold parameters (size) or source images (data), of {len(cells)} cells")
    for path in (out, figure):
        if path is not None:
            say(f"wrote {path}")


def _our_cells(
    probe: str, metric: str, backbones: Path | None, domains: tuple[str, ...], proximity: Path | None, measure: str,
    data_root: Path, store_path: str, results: str | None,
) -> pd.DataFrame:  # fmt: skip

    from fastxfer.errors import UsageError
    from fastxfer.proximity.distances import read_proximities
    from fastxfer.results import ResultStore, results_path
    from fastxfer.scale import cells_of, own

    rows = ResultStore.open(results or results_path(store_path)).read()
    rows = rows[(rows["probe"] == probe) & (rows["metric"] == metric)] if len(rows) else rows
    about = own.about_backbones(rows, data_root, backbones)
    if proximity is not None:
        relations = own.relations_by_proximity(rows, read_proximities(proximity), measure)
    else:
        said = dict(word.partition("=")[::2] for word in domains)
        if not all(said.values()):
            raise UsageError(f"--domain {' '.join(domains)}: expected TARGET=DOMAIN, such as nih14=X-ray")
        relations = own.relations_by_domain(rows, about, said)
    return cells_of(own.runs_of(rows, about, relations, probe=probe, metric=metric))


def _claims(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    def interval(r: Any) -> str:
        return "" if r.low != r.low else f"{r.low:+.1f} … {r.high:+.1f}"

    lines = [
        {
            "": r.key, "claim": r.text, "verdict": r.verdict, "new images": r.verdict_images,
            "difference": "" if r.value != r.value else f"{r.value:+.1f}", "95 %": interval(r), "over": r.over,
            "of": r.n, "stated": r.stated,
        }
        for r in table.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _gains(gains: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    lines = [
        {
            "what": r.kind, "relation": r.relation, "shots": r.shots, "gain": f"{r.value:+.2f}",
            "95 %": f"{r.low:+.2f} … {r.high:+.2f}", "se": f"{r.se:.2f}", "targets": r.n_targets, "above 0": r.verdict,
        }
        if r.value == r.value
        else {
            "what": r.kind, "relation": r.relation, "shots": r.shots, "gain": "", "95 %": "not determined", "se": "",
            "targets": r.n_targets, "above 0": "",
        }
        for r in gains.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(lines)
