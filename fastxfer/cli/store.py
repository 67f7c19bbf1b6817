"""`fastxfer store`: what is there, whether two are equal, out, and away; `show` is in `provenance`, the rest in `upkeep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastxfer.cli.common import (
    data_root_option,
    emit_json,
    json_option,
    percent_done,
    print_table,
    size_words,
    store_option,
)
from fastxfer.cli.provenance import show
from fastxfer.cli.upkeep import COMMANDS, yes_option
from fastxfer.errors import UsageError

if TYPE_CHECKING:
    from fastxfer.store import EmbeddingStore


@click.group()
def store() -> None:
    """List, verify, export, copy and remove embeddings.

    \b
    Examples:
      fastxfer store ls
      fastxfer store verify
      fastxfer store export resnet50 photos --out photos.npz
      fastxfer store rm resnet50 photos --yes
    """


@store.command("ls")
@store_option
@json_option
def list_entries(store_path: str, as_json: bool) -> None:
    """List the embeddings: backbone, target, how complete, size, when made, from which weights (identity's first eight).

    A terminal that is too narrow goes without identity, source, date and dtype, in this order; a pipe gets all.

    \b
    Example:
      fastxfer store ls --json
    """
    from fastxfer.store import EmbeddingStore

    entries = EmbeddingStore.open(store_path).entries()
    if as_json:
        emit_json(
            [
                {
                    "backbone": e.backbone,
                    "target": e.target,
                    "n_images": e.n_images,
                    "dim": e.dim,
                    "dtype": e.dtype,
                    "complete": e.complete,
                    "n_present": e.n_present,
                    "source": e.attrs.get("source"),
                    "bytes": e.bytes,
                    "date": e.attrs.get("date"),
                    "identity": e.attrs.get("identity"),
                    "architecture": e.attrs.get("architecture"),
                    "images_per_second": e.attrs.get("images_per_second"),
                }
                for e in entries
            ]
        )
        return
    rows = [
        (
            e.backbone,
            e.target,
            e.n_images,
            e.dim,
            e.dtype,
            percent_done(e.n_present, e.n_images, bar=True),
            size_words(e.bytes),
            str(e.attrs.get("date", ""))[:16].replace("T", " "),
            str(e.attrs.get("identity", ""))[:8],
            e.attrs.get("source", "unknown"),
        )
        for e in entries
    ]
    columns = ["backbone", "target", "images", "dim", "dtype", "complete", "size", "made (UTC)", "identity", "source"]
    spare = ["identity", "source", "made (UTC)", "dtype"]
    print_table(columns, rows, right=("size", "complete"), spare=spare)


@store.command()
@store_option
@json_option
def digest(store_path: str, as_json: bool) -> None:
    """One number for the content: equal content, equal digest, whatever the dates, paths and layout.

    \b
    Example:
      fastxfer store digest --store fastxfer-store
    """
    from fastxfer.store import EmbeddingStore

    value = EmbeddingStore.open(store_path).digest()
    if as_json:
        emit_json({"store": store_path, "digest": value})
    else:
        click.echo(value)


@store.command()
@click.argument("backbone")
@click.argument("target")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The .npz, .parquet or .npy to write; with --format projector a folder.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["by-name", "projector"]),
    default="by-name",
    show_default=True,
    help="by-name = what --out ends in; projector = for TensorBoard's Embedding Projector.",
)
@click.option("--points", type=click.IntRange(min=1), help="Projector: rows, drawn at random if more [default: 10000].")
@click.option("--seed", type=click.IntRange(min=0), help="Projector: which rows are drawn [default: 0].")
@click.option("--thumbnails", is_flag=True, help="Projector: a sprite sheet of the images, if they are still at hand.")
@click.option("--paths", is_flag=True, help="Projector: the images' paths, too (they may name patients).")
@click.option("--url", help="Projector: where the folder will be served, for projector.tensorflow.org/?config=…")
@store_option
@data_root_option
@json_option
def export(
    backbone: str,
    target: str,
    out: Path,
    form: str,
    points: int | None,
    seed: int | None,
    thumbnails: bool,
    paths: bool,
    url: str | None,
    store_path: str,
    data_root: Path,
    as_json: bool,
) -> None:
    """Write embeddings, labels, split, image_id and what else is known of each row for other programs.

    .npz and .parquet hold all of it; a .npy holds the embeddings alone, for np.load(…, mmap_mode="r"), and the rest lies
    beside it in a .rows.parquet. Rows correspond. The projector's folder never tells patients, and paths only with --paths.

    \b
    Examples:
      fastxfer store export resnet50 photos --out photos.npz
      fastxfer store export resnet50 photos --out photos.parquet
      fastxfer store export resnet50 photos --out projector --format projector --thumbnails
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore

    only = {"--points": points, "--seed": seed, "--thumbnails": thumbnails, "--paths": paths, "--url": url}
    given = [name for name, value in only.items() if value not in (None, False)]
    if form == "by-name" and given:
        raise UsageError(f"{given[0]} goes with --format projector")
    opened = EmbeddingStore.open(store_path)
    if form == "by-name":
        opened.export(backbone, target, out)
        if as_json:
            emit_json({"out": out, "backbone": backbone, "target": target})
        else:
            say(f"wrote {out}")
        return

    from fastxfer.store.projector import export_projector

    if out.is_file():
        raise UsageError(f"--out {out}: is a file; --format projector writes a folder")
    root = _root_of(opened, target, data_root) if thumbnails else None
    done = export_projector(
        opened, backbone, target, out, points=points or 10_000, seed=seed or 0, paths=paths, images=root, url=url
    )
    if done.n_points < done.n_images:
        say(f"{done.n_points:,} of {done.n_images:,} images, drawn with seed {seed or 0}")
    if as_json:
        emit_json({"out": out, "backbone": backbone, "target": target, **vars(done)})
    else:
        say(f"wrote {', '.join(done.files)} to {out}: tensorboard --logdir {out}")


def _root_of(opened: EmbeddingStore, target: str, data_root: Path) -> Path:
    """Where the images of a stored target lie, which must be the registered one of this name."""
    from fastxfer.targets import load_target

    found = load_target(target, data_root)
    if found.root is None or found.fingerprint != opened.fingerprint(target):
        raise UsageError(f"--thumbnails: the registered target '{target}' is not the one that was embedded")
    return found.root


@store.command()
@store_option
@json_option
def du(store_path: str, as_json: bool) -> None:
    """Tell what takes how much room, by target and backbone.

    \b
    Example:
      fastxfer store du
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore
    from fastxfer.store.upkeep import usage

    found = usage(EmbeddingStore.open(store_path))
    if as_json:
        emit_json([vars(u) | {"backbone": u.backbone or None} for u in found])
        return
    found.sort(key=lambda u: -u.bytes)
    print_table(
        ["target", "backbone", "files", "size"],
        [(u.target, u.backbone or "(table)", u.files, size_words(u.bytes)) for u in found],
    )
    say(f"in all {sum(u.files for u in found):,} files, {size_words(sum(u.bytes for u in found))}")


@store.command("rm")
@click.argument("backbone", required=False)
@click.argument("target", required=False)
@click.option(
    "--target", "whole_target", metavar="NAME", help="Remove this target with the embeddings of all backbones."
)
@yes_option
@store_option
def remove(backbone: str | None, target: str | None, whole_target: str | None, yes: bool, store_path: str) -> None:
    """Remove BACKBONE's embeddings of TARGET, or with --target a target and everything made from it.

    \b
    Examples:
      fastxfer store rm resnet50 photos
      fastxfer store rm --target photos --yes
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore

    if (whole_target is None) == (backbone is None) or (backbone is not None and target is None):
        raise UsageError("store rm: name BACKBONE TARGET, or --target NAME")
    opened = EmbeddingStore.open(store_path)
    name = whole_target or target or ""
    gone = [e for e in opened.entries() if e.target == name and backbone in (None, e.backbone)]
    if name not in opened.targets():
        raise UsageError(
            f"store '{store_path}' holds no target '{name}'. It holds: {', '.join(opened.targets()) or 'none'}"
        )
    if backbone is not None and not gone:
        opened.attributes(backbone, name)  # says what there is instead
    what = f"{backbone} on {name}" if backbone else f"target {name} with {len(gone)} backbones"
    images = sum(e.n_present for e in gone)
    if not yes and not click.confirm(f"Remove {what} ({images:,} embeddings)?", err=True):
        raise UsageError("nothing was removed")
    EmbeddingStore.open(store_path, mode="a").remove(backbone, name)
    say(f"removed {what}")


for command in [show, *COMMANDS]:
    store.add_command(command)
