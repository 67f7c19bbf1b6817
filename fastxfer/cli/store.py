"""`fastxfer store`: what is there, whether two are equal, out, and away; `show` is in `provenance`, the rest in `upkeep`."""

from __future__ import annotations

from pathlib import Path

import click

from fastxfer.cli.common import emit_json, json_option, percent_done, print_table, size_words, store_option
from fastxfer.cli.provenance import show
from fastxfer.cli.upkeep import COMMANDS, yes_option
from fastxfer.errors import UsageError


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
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .npz, .parquet or .npy to write."
)
@store_option
@json_option
def export(backbone: str, target: str, out: Path, store_path: str, as_json: bool) -> None:
    """Write embeddings, labels, split, image_id and what else is known of each row for other programs.

    .npz and .parquet hold all of it; a .npy holds the embeddings alone, for np.load(…, mmap_mode="r"), and the rest lies
    beside it in a .rows.parquet. Rows correspond.

    \b
    Examples:
      fastxfer store export resnet50 photos --out photos.npz
      fastxfer store export resnet50 photos --out photos.parquet
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore

    EmbeddingStore.open(store_path).export(backbone, target, out)
    if as_json:
        emit_json({"out": out, "backbone": backbone, "target": target})
    else:
        say(f"wrote {out}")


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
