"""`fastxfer pretrain` = `python -m pretrain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.cluster import slurm_options
from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table
from fastxfer.cli.embed import parse_arch_args
from fastxfer.errors import UsageError
from pretrain.recipe import AUGMENTATIONS, PARALLEL, PRECISIONS, SCHEDULES, Recipe, read_recipe

_CHOICES = {"schedule": SCHEDULES, "augment": AUGMENTATIONS, "precision": PRECISIONS, "parallel": PARALLEL}
# Fields of the recipe that are not options as they stand.
_RENAMED = {"arch_args": "--arch-arg"}


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option a field of the recipe; None = not given, so that the file or the default stands."""
    for f in reversed(fields(Recipe)):
        text = f.metadata["help"]
        default = f.default if f.name != "arch_args" else None
        option = _RENAMED.get(f.name, "--" + f.name.replace("_", "-"))
        if f.name in ("classes", "arch_args", "mean", "std", "milestones"):
            kind = str if f.name in ("classes", "arch_args") else float
            command = click.option(option, f.name, multiple=True, type=kind, help=text)(command)
        elif isinstance(default, bool):
            command = click.option(f"{option}/--no-{option[2:]}", f.name, default=None, help=text)(command)
        else:
            choices = _CHOICES.get(f.name)
            kind_of: Any = click.Choice(choices) if choices else type(default)
            shown = f"{text}  [default: {default}]" if default != "" else text
            command = click.option(option, f.name, type=kind_of, default=None, help=shown)(command)
    return command


@click.command(cls=ManyValues)
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML file; options override its keys.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Checkpoint to write.")
@_recipe_options
@click.option("--resume", is_flag=True, help="Go on exactly where --out was left; begin if it isn't there.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@click.option("--untrained", is_flag=True, help="Write the random initialisation of the same seed: the floor.")
@click.option("--workers", type=click.IntRange(min=0), help="Loader processes; default: the cores less one.")
@click.option("--device", default="auto", show_default=True, help="auto = cuda if there is one, else cpu.")
@click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, help="Also every so many steps.")
@click.option(
    "--keep", type=click.IntRange(min=1), default=2, show_default=True, help="Last checkpoints, and the best."
)
@slurm_options("--resume")
@data_root_option
@json_option
def pretrain(
    recipe_file: Path | None,
    out: Path,
    resume: bool,
    overwrite: bool,
    untrained: bool,
    workers: int | None,
    device: str,
    checkpoint_every: int,
    keep: int,
    data_root: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Pre-train a backbone on a target's train split, or on some of its classes.

    The source is a registered target, or a folder or CSV that `targets add` would take. `embed --ckpt` takes the
    result: the checkpoint says its architecture, source and preprocessing. Ctrl-C and SIGTERM write a checkpoint first.

    \b
    Example:
      fastxfer pretrain --source digits --classes 0 1 2 3 4 --hflip 0 --epochs 20 --out bit.pt
      fastxfer pretrain --source digits --classes 0 1 2 3 4 --untrained --out floor.pt
      fastxfer embed --ckpt bit.pt --target digits
    """
    given = {name: value for name, value in values.items() if value is not None and value != ()}
    if "arch_args" in given:
        given["arch_args"] = parse_arch_args(given["arch_args"])
    recipe = (read_recipe(recipe_file) if recipe_file else Recipe()).override(given, "command line")
    if not recipe.source:
        raise UsageError("--source is missing: the target to train on (`fastxfer targets ls` lists them)")

    from fastxfer.targets import load_target
    from pretrain.loop import pretrain as run

    if Path(recipe.source).exists():
        from dataclasses import replace

        recipe = replace(recipe, source=_register(Path(recipe.source), data_root))
    summary = run(
        recipe,
        load_target(recipe.source, data_root),
        out,
        resume=resume,
        overwrite=overwrite,
        untrained=untrained,
        workers=workers,
        device=device,
        checkpoint_every=checkpoint_every,
        keep=keep,
    )
    if as_json:
        emit_json(summary)
        return
    shown = {k: v for k, v in summary.items() if k not in ("history", "arch_args", "classes")}
    print_table(("what", "value"), [(k, f"{v:,.4g}" if isinstance(v, float) else v) for k, v in shown.items()])


def _register(source: Path, data_root: Path) -> str:
    """A folder or CSV given in place of a name is added as a target under its own name."""
    import re

    from fastxfer.targets import add_target

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().stem).strip("-._") or "source"
    return add_target(source, name, data_root).name
