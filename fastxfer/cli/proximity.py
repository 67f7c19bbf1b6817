"""`fastxfer proximity`: how near a source is to targets."""

from __future__ import annotations

from pathlib import Path

import click

from fastxfer.cli.common import (
    ManyValues,
    emit_json,
    json_option,
    print_table,
    same_options,
    seed_option,
    store_option,
)


@click.command(cls=ManyValues)
@click.argument("source")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="B…",
    help="Backbones whose embeddings are compared; with several, how much the choice matters is shown "
    "[default: all that embedded source and targets].",
)
@click.option(
    "--measure", "names", multiple=True, metavar="M…", help="frechet mmd a-distance neighbours labels [default: all]."
)
@click.option(
    "--images", type=click.IntRange(min=40), default=2000, show_default=True, help="Images of each set at most."
)
@click.option(
    "--dims", type=click.IntRange(min=0), default=64, show_default=True, help="Principal axes of frechet; 0: all."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table, a .csv file.")
@store_option
@same_options
@seed_option
@json_option
def proximity(
    source: str, targets: tuple[str, ...], references: tuple[str, ...], names: tuple[str, ...], images: int, dims: int,
    out: Path | None, store_path: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """How near SOURCE is to each TARGET: data sets that one and the same backbone has embedded.

    Of frechet, mmd and a-distance small is near; of neighbours and labels large. Only train images are looked at.

    \b
    Example:
      fastxfer proximity imagenet1k pets nih14 --reference r50x1-in1k r50x1-cxr --out near.csv
    """
    from fastxfer.errors import UsageError
    from fastxfer.files import write_whole
    from fastxfer.progress import say
    from fastxfer.proximity import MEASURES, reference_agreement
    from fastxfer.proximity import proximity as measure
    from fastxfer.store import EmbeddingStore

    if out is not None and out.suffix != ".csv":
        raise UsageError(f"--out {out}: the table is written as .csv")
    table = measure(
        EmbeddingStore.open(store_path),
        source,
        targets,
        references=references or None,
        names=names or tuple(MEASURES),
        images=images,
        dims=dims or None,
        seed=seed,
    )
    agreement = reference_agreement(table)
    if out is not None:
        write_whole(out, table.to_csv(index=False).encode())
    if as_json:
        emit_json({"rows": table.to_dict("records"), "references": agreement.to_dict("records"), "out": out})
        return
    print_table(
        ["target", "measure", "reference", "value", "95 %", "se", "images"],
        [
            [r.target, r.measure, r.reference, f"{r.value:.4g}", f"{r.low:.4g} … {r.high:.4g}", f"{r.se:.2g}",
             f"{r.n_source:,} + {r.n_target:,}" if r.reference else f"{r.n_source:,} words"]
            for r in table.sort_values(["measure", "reference", "value"]).itertuples()
        ],
        right=("value", "95 %", "se"),
    )  # fmt: skip
    if len(agreement):
        click.echo()
        print_table(
            ["measure", "reference", "other", "targets", "rank correlation"],
            [
                [r.measure, r.reference, r.other, r.n_targets, "" if r.spearman != r.spearman else f"{r.spearman:+.2f}"]
                for r in agreement.itertuples()
            ],
            right=("rank correlation",),
        )
        if (agreement["n_targets"] < 3).any():
            say("a rank correlation between references takes three targets")
    if out is not None:
        say(f"wrote {out}")
