"""`fastxfer plot`: embeddings to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import ManyValues, emit_json, json_option, seed_option, store_option

if TYPE_CHECKING:
    from fastxfer.report.plane import Panel


@click.group()
def plot() -> None:
    """Draw embeddings as points of a plane.

    \b
    Example:
      fastxfer plot embeddings resnet50 photos
    """


@plot.command(cls=ManyValues)
@click.argument("backbone")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--beside", multiple=True, metavar="BACKBONE…", help="Other backbones on the same images, side by side.")
@click.option(
    "--by",
    type=click.Choice(["labels", "split", "view", "source"]),
    default="labels",
    show_default=True,
    help="What colours stand for.",
)
@click.option("--label", metavar="NAME", help="Colour by one label: who has it, who hasn't, of whom it is unknown.")
@click.option(
    "--method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="pca = principal components of all images; umap = neighbourhoods of those shown (extra `umap`).",
)
@click.option(
    "--points",
    type=click.IntRange(min=3),
    default=5000,
    show_default=True,
    help="Images shown of a target, drawn at random where it has more.",
)
@click.option("--paths", is_flag=True, help="Tell the images' paths on hovering (they may name patients).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .html to write, or .svg, .png, .pdf (extra `images`) [default: embeddings.html; with --json none].",
)
@seed_option
@store_option
@json_option
def embeddings(
    backbone: str,
    targets: tuple[str, ...],
    beside: tuple[str, ...],
    by: str,
    label: str | None,
    method: str,
    points: int,
    paths: bool,
    out: Path | None,
    seed: int,
    store_path: str,
    as_json: bool,
) -> None:
    """Draw BACKBONE's embeddings of each TARGET: one page that needs no network, with row, class and split on hovering.

    Patients are never shown, paths only with --paths.

    \b
    Examples:
      fastxfer plot embeddings resnet50 photos
      fastxfer plot embeddings resnet50 photos flowers --beside bit-m-r50x1 --method umap --out both.html
      fastxfer plot embeddings resnet50 chexpert --label Cardiomegaly --points 2000 --out heart.svg
    """
    from fastxfer.progress import say
    from fastxfer.report.plane import check_name, panels_of, write_plot
    from fastxfer.store import EmbeddingStore

    if out is not None:
        check_name(out)
    store = EmbeddingStore.open(store_path)
    panels = panels_of(store, [backbone, *beside], targets, by=by, label=label, method=method, points=points, seed=seed)
    for name, (n, shown) in {p.target.name: (p.target.n_images, len(p.rows)) for p in panels}.items():
        if shown < n:
            say(f"{name}: {shown:,} of {n:,} images are shown, drawn with seed {seed}; --points {n} shows all")
    if out is None and not as_json:
        out = Path("embeddings.html")
    if out is not None:
        write_plot(panels, out, paths=paths)
    if as_json:
        emit_json({"store": store_path, "out": out, "seed": seed, "panels": [_as_dict(p, paths) for p in panels]})
    else:
        say(f"wrote {out}")


def _as_dict(panel: Panel, paths: bool) -> dict[str, Any]:
    points, told = panel.projection.points, panel.groups
    return {
        "backbone": panel.backbone,
        "target": panel.target.name,
        "method": panel.method,
        "explained": panel.projection.explained,
        "n_images": panel.target.n_images,
        "by": told.by,
        "rows": panel.rows,
        "x": points[:, 0],
        "y": points[:, 1],
        "group": [told.names[i] for i in told.of[panel.rows]],
        "split": panel.target.split[panel.rows],
        **({"image_id": panel.target.image_id[panel.rows]} if paths else {}),
    }
