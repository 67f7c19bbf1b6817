"""`fastxfer backbones`: what is embedded, what is registered, and what is known of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table, store_option
from fastxfer.cli.embed import parse_arch_args, parse_preprocessing, preprocessing_options


@click.group()
def backbones() -> None:
    """List, show and register backbones (checkpoints).

    \b
    Examples:
      fastxfer backbones ls
      fastxfer backbones show resnet50.a1_in1k
      fastxfer backbones add runs/last.pt --name r50-nih --source nih14
    """


@backbones.command()
@store_option
@data_root_option
@json_option
def ls(store_path: str, data_root: Path, as_json: bool) -> None:
    """List the backbones that are registered, and those whose embeddings the store holds.

    \b
    Example:
      fastxfer backbones ls
    """
    from fastxfer.registered import find_registered, in_store, registered_names

    stored = in_store(store_path)
    rows = []
    for name in dict.fromkeys([*registered_names(data_root), *sorted(stored)]):
        entry = find_registered(name, data_root)
        facts: dict[str, Any] = {**(entry.facts if entry else {}), **stored.get(name, {})}
        rows.append(
            {
                "name": name,
                "registered": entry is not None,
                "targets": stored.get(name, {}).get("targets", []),
                **{k: facts.get(k) for k in ("architecture", "pooling", "dim", "source", "checkpoint", "identity")},
            }
        )
    if as_json:
        emit_json(rows)
        return
    print_table(
        ["backbone", "registered", "embedded", "architecture", "pooling", "dim", "source", "identity"],
        [
            (
                row["name"],
                "yes" if row["registered"] else "no",
                ", ".join(row["targets"]),
                row["architecture"],
                row["pooling"],
                row["dim"],
                row["source"],
                str(row["identity"])[:12],
            )
            for row in rows
        ],
    )


@backbones.command(cls=ManyValues)
@click.argument("name", metavar="NAME|FILE")
@click.option("--arch", metavar="NAME", help="Architecture of a file, as in `embed` [default: guessed].")
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V…", help="Keyword arguments of the architecture.")
@preprocessing_options
@store_option
@data_root_option
@json_option
def show(
    name: str,
    arch: str | None,
    arch_args: tuple[str, ...],
    store_path: str,
    data_root: Path,
    as_json: bool,
    **words: Any,
) -> None:
    """Tell all that is known of a backbone: a registered name, one in the store, a file, or a timm name.

    Identity, architecture, parameters and FLOPs (2 a multiply-add, of one image), preprocessing, width, source. Code that
    only the store names is not run: what the store knows is told.

    \b
    Examples:
      fastxfer backbones show r50-nih
      fastxfer backbones show weights/r50.pt --arch resnet50
    """
    from fastxfer.registered import facts_of, find_registered, in_store, load_named

    stored = {} if find_registered(name, data_root) or Path(name).exists() else in_store(store_path)
    if name in stored:
        facts = stored[name]
    else:
        (backbone,) = load_named(
            name,
            data_root,
            arch=arch,
            arch_args=parse_arch_args(arch_args),
            preprocessing=parse_preprocessing(**words),
        )
        facts = {"name": backbone.name, **facts_of(backbone)}
    if as_json:
        emit_json(facts)
        return
    told: dict[str, Any] = {**facts, **{k: f"{facts[k]:,.0f}" for k in ("parameters", "flops") if k in facts}}
    print_table(["what", "value"], [(k, str(v)) for k, v in told.items()])


@backbones.command(cls=ManyValues)
@click.argument("ckpt", metavar="FILE|NAME")
@click.option("--name", help="What to call it [default: the file's name].")
@click.option(
    "--arch", metavar="NAME", help="timm name, torchvision:NAME, xrv:NAME or FILE.py:function [default: guessed]."
)
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V…", help="Keyword arguments of the architecture.")
@click.option("--source", metavar="TEXT", help="What it was trained on [default: what the file says, or unknown].")
@preprocessing_options
@click.option("--replace", is_flag=True, help="Take the place of what has this name.")
@data_root_option
@json_option
def add(
    ckpt: str,
    name: str | None,
    arch: str | None,
    arch_args: tuple[str, ...],
    source: str | None,
    replace: bool,
    data_root: Path,
    as_json: bool,
    **words: Any,
) -> None:
    """Register a checkpoint with its options, for `embed --ckpt NAME`.

    It is loaded once. An --arch FILE.py counts as named by you from then on, as long as the file stays as it is.

    \b
    Examples:
      fastxfer backbones add runs/last.pt --name r50-nih --source nih14
      fastxfer backbones add w.safetensors --arch mine.py:build --input-size 3,224,224 --mean 0.5 --std 0.5 --name mine
    """
    from fastxfer.progress import say
    from fastxfer.registered import add_backbone

    entry = add_backbone(
        ckpt,
        name,
        data_root,
        arch=arch,
        arch_args=parse_arch_args(arch_args),
        source=source,
        preprocessing=parse_preprocessing(**words),
        replace=replace,
    )
    if as_json:
        emit_json({"name": entry.name, **entry.facts})
    else:
        say(
            f"registered {entry.name}: {entry.facts['architecture']}, {entry.facts['dim']} wide; embed --ckpt {entry.name}"
        )
