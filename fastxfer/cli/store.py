"""`fastxfer store`: what is there, whether two are equal, out, and away."""

from __future__ import annotations

from pathlib import Path

import click

from fastxfer.cli.common import emit_json, json_option, print_table, store_option
from fastxfer.errors import UsageError


@click.group()
def store() -> None:
    """List, digest, export and remove embeddings.

    \b
    Examples:
      fastxfer store ls
      fastxfer store export resnet50 photos --out photos.npz
      fastxfer store rm resnet50 photos --yes
    """


@store.command("ls")
@store_option
@json_option
def list_entries(store_path: str, as_json: bool) -> None:
    """List the embeddings: backbone, target, size, dtype, whether complete.

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
            "yes" if e.complete else f"{e.n_present:,} there",
            e.attrs.get("source", "unknown"),
            _size(e.bytes),
            str(e.attrs.get("date", ""))[:16].replace("T", " "),
        )
        for e in entries
    ]
    print_table(["backbone", "target", "images", "dim", "dtype", "complete", "source", "size", "made (UTC)"], rows)


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
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .npz to write.")
@store_option
@json_option
def export(backbone: str, target: str, out: Path, store_path: str, as_json: bool) -> None:
    """Write embeddings, labels, class_names, split and image_id (and patient) to one .npz; rows correspond.

    \b
    Example:
      fastxfer store export resnet50 photos --out photos.npz
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore

    if out.suffix != ".npz":
        raise UsageError(f"--out {out}: expected a name ending in .npz")
    EmbeddingStore.open(store_path).export(backbone, target, out)
    if as_json:
        emit_json({"out": out, "backbone": backbone, "target": target})
    else:
        say(f"wrote {out}")


@store.command("rm")
@click.argument("backbone", required=False)
@click.argument("target", required=False)
@click.option(
    "--target", "whole_target", metavar="NAME", help="Remove this target with the embeddings of all backbones."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
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


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
