"""`fastxfer pretrain` = `python -m pretrain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.cluster import slurm_options
from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table, size_words
from fastxfer.cli.embed import parse_arch_args
from fastxfer.errors import FastxferError, UsageError
from pretrain.logs import SERVICES
from pretrain.recipe import AUGMENTATIONS, INTERPOLATIONS, PARALLEL, PRECISIONS, SCHEDULES, Recipe

if TYPE_CHECKING:
    from pretrain.catalogue import Written

SHOW = "show"
_CHOICES = {
    "schedule": SCHEDULES,
    "augment": AUGMENTATIONS,
    "interpolation": INTERPOLATIONS,
    "precision": PRECISIONS,
    "parallel": PARALLEL,
}
# Fields of the recipe that are not options as they stand.
_RENAMED = {"arch_args": "--arch-arg", "source_args": "--source-arg"}


def option_of(field: str) -> str:
    """The option that sets a field of the recipe."""
    return _RENAMED.get(field, "--" + field.replace("_", "-"))


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option a field of the recipe; None = not given, so that the file or the default stands."""
    for f in reversed(fields(Recipe)):
        text = f.metadata["help"]
        default = None if f.default is MISSING else f.default
        option = option_of(f.name)
        if default is None or isinstance(default, tuple):
            kind = float if f.name in ("mean", "std", "milestones") else str
            command = click.option(option, f.name, multiple=True, type=kind, help=text)(command)
        elif isinstance(default, bool):
            command = click.option(f"{option}/--no-{option[2:]}", f.name, default=None, help=text)(command)
        else:
            choices = _CHOICES.get(f.name)
            kind_of: Any = click.Choice(choices) if choices else type(default)
            shown = f"{text}  [default: {default}]" if default != "" else text
            command = click.option(option, f.name, type=kind_of, default=None, help=shown)(command)
    return command


def _cost_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--dry-run", is_flag=True, help="Say what it would cost, and train nothing."),
            click.option(
                "--images", type=click.IntRange(min=1), help="--dry-run: train images, where the data isn't here."
            ),
            click.option(
                "--gpus", type=click.IntRange(min=1), help="--dry-run: how many  [default: tasks of --slurm, or 1]"
            ),
            click.option(
                "--gpu", default="A100", show_default=True, help="--dry-run: V100, A100, H100, H200 or RTX4090."
            ),
            click.option(
                "--peak-share",
                default=0.3,
                show_default=True,
                help="--dry-run: share of the GPU's peak that is assumed.",
            ),
            click.option("--rate", type=float, help="--dry-run: images a second and GPU that were measured."),
        )
    ):
        command = option(command)
    return command


@click.command(cls=ManyValues)
@click.argument("words", nargs=-1, metavar="[show] [RECIPE]")
@click.option("--recipe", "recipe_file", hidden=True, help="The same as RECIPE.")
@click.option("--size", default="", help="Size or architecture: what the recipe says of it, and --arch.")
@click.option(
    "--variant", "variants", multiple=True, help="Variants of the recipe, such as optimized, as-meant, field."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Checkpoint to write; a log beside it, .csv."
)
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
@click.option("--log", "logs", multiple=True, type=click.Choice(SERVICES), help="Log there, too.")
@_cost_options
@click.option("--all", "everything", is_flag=True, help="show: the paper's twenty models.")
@slurm_options("--resume")
@data_root_option
@json_option
def pretrain(
    words: tuple[str, ...],
    recipe_file: str | None,
    size: str,
    variants: tuple[str, ...],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    untrained: bool,
    workers: int | None,
    device: str,
    checkpoint_every: int,
    keep: int,
    logs: tuple[str, ...],
    dry_run: bool,
    images: int | None,
    gpus: int | None,
    gpu: str,
    peak_share: float,
    rate: float | None,
    everything: bool,
    data_root: Path,
    as_json: bool,
    tasks: int = 0,
    **values: Any,
) -> None:
    """Pre-train a backbone on a target's train split, or on some of its classes.

    RECIPE is one of this package's (`show` lists them; `show RECIPE` prints it in full, `show --all` the paper's
    twenty models), or a TOML file. Options override it; without one they are the recipe.

    The source is a registered target, or a folder or CSV that `targets add` would take. `embed --ckpt` takes the
    result: the checkpoint says its architecture, source and preprocessing. Ctrl-C and SIGTERM write a checkpoint first.

    \b
    Example:
      fastxfer pretrain --source digits --classes 0 1 2 3 4 --hflip 0 --epochs 20 --out bit.pt
      fastxfer pretrain --source digits --classes 0 1 2 3 4 --untrained --out floor.pt
      fastxfer embed --ckpt bit.pt --target digits
      fastxfer pretrain show imagenet1k --size R152x4
      fastxfer pretrain xray --source chexpert_mimic --size R152x4 --dry-run --gpus 64
    """
    showing = words[:1] == (SHOW,)
    named = [*words[showing:], *([recipe_file] if recipe_file else [])]
    if len(named) > 1:
        raise UsageError(f"one RECIPE at a time, not {' '.join(named)}")
    name = named[0] if named else ""
    if showing and not name:
        _show_all(as_json) if everything else _show_names(as_json)
        return
    if everything:
        raise UsageError("--all goes with `show`: fastxfer pretrain show --all")
    written = _written(name, size, variants, values)
    if showing:
        _show(written, as_json)
        return
    recipe = written.recipe
    if not recipe.source and not (dry_run and images):
        of_recipe = _sources(name) if name else ""
        raise UsageError(f"--source is missing: the target to train on (`fastxfer targets ls` lists them){of_recipe}")
    if dry_run:
        from pretrain.dryrun import Machine

        _tell_cost(written, images, Machine(gpus or tasks or 1, gpu, peak_share, rate), data_root, as_json)
        return
    if out is None:
        raise UsageError("--out is missing: the checkpoint to write (or --dry-run, or `show`)")
    if Path(recipe.source).exists():
        recipe = replace(recipe, source=_register(Path(recipe.source), data_root))

    from fastxfer.progress import say
    from fastxfer.ranks import team_of_environment
    from fastxfer.targets import load_target
    from pretrain.logs import open_logs
    from pretrain.loop import pretrain as run

    team = team_of_environment()
    first = team is None or team.rank == 0
    if written.note and first:
        say(written.note)
    summary = run(
        recipe,
        load_target(recipe.source, data_root, **recipe.source_args),
        out,
        resume=resume,
        overwrite=overwrite,
        untrained=untrained,
        workers=workers,
        device=device,
        checkpoint_every=checkpoint_every,
        keep=keep,
        logs=open_logs(out, recipe, logs),
    )
    if not first:
        return
    if as_json:
        emit_json(summary)
        return
    shown = {k: v for k, v in summary.items() if k not in ("history", "arch_args", "classes")}
    print_table(("what", "value"), [(k, f"{v:,.4g}" if isinstance(v, float) else v) for k, v in shown.items()])


def _written(name: str, size: str, variants: tuple[str, ...], values: Mapping[str, Any]) -> Written:
    """The recipe of that name, if any, with the options that were given."""
    from pretrain.catalogue import Written, read_recipe

    given = {key: value for key, value in values.items() if value is not None and value != ()}
    for key in _RENAMED:
        if key in given:
            given[key] = parse_arch_args(given[key], option_of(key))
    if name:
        written = read_recipe(name, source=given.pop("source", ""), size=size, variants=variants)
    elif variants:
        raise UsageError(f"--variant {' '.join(variants)}: of which RECIPE? `fastxfer pretrain show` lists them")
    else:
        written = Written(Recipe(arch=size) if size else Recipe())
    return replace(written, recipe=written.recipe.override(given, "command line"))


def _sources(name: str) -> str:
    from pretrain.catalogue import layers

    own = layers(name)["sources"]
    return f"; recipe '{name}' knows {', '.join(own)}" if own else ""


def _show_names(as_json: bool) -> None:
    from pretrain.catalogue import layers, names, read_recipe

    found = [{"recipe": name, "about": read_recipe(name).about, **layers(name)} for name in names()]
    if as_json:
        emit_json(found)
        return
    columns = ("recipe", "sizes", "sources", "variants", "about")
    print_table(columns, [[v if isinstance(v := row[c], str) else " ".join(v) for c in columns] for row in found])


def _show(written: Written, as_json: bool) -> None:
    from pretrain.catalogue import to_toml

    if as_json:
        emit_json(
            {"recipe": written.recipe.plain(), "about": written.about, "note": written.note, "images": written.images}
        )
        return
    for line in filter(None, (written.about, written.note)):
        click.echo(f"# {line}")
    click.echo(to_toml(written.recipe), nl=False)


def _show_all(as_json: bool) -> None:
    from pretrain.catalogue import paper

    models = [(model, model.read()) for model in paper()]
    if as_json:
        emit_json(
            [
                {"name": m.name, "words": m.words, "in_repository": m.known, "images": w.images, "note": w.note}
                | {"recipe": w.recipe.plain()}
                for m, w in models
            ]
        )
        return
    columns = ("model", "fastxfer pretrain …", "source", "outputs", "batch", "base lr", "peak lr", "epochs", "warm-up")
    rows = []
    for m, w in models:
        r = w.recipe
        rows.append([m.name + ("" if m.known else " (*)"), " ".join(m.words), r.source, r.num_classes, r.batch_size])
        rows[-1] += [f"{r.lr:g}", f"{r.lr * r.batch_size / 256:g}", f"{r.epochs:g}", f"{r.warmup_epochs:g}"]
    print_table(
        [*columns, "schedule", "agc"],
        [[*row, w.recipe.schedule, f"{w.recipe.agc:g}"] for row, (_, w) in zip(rows, models, strict=True)],
    )
    click.echo("(*) its configuration is missing from the paper's repository")


def _tell_cost(written: Written, images: int | None, machine: Any, data_root: Path, as_json: bool) -> None:
    from pretrain.dryrun import dry_run

    recipe, told = written.recipe, "as told"
    if images is None:
        images, classes, multi_label, told = _size_of_source(written, data_root)
    else:
        classes, multi_label = recipe.num_classes, recipe.augment == "xray"
    if not classes:
        raise UsageError("--dry-run: how many classes? give --num-classes, or a source whose data is here")
    cost = dry_run(recipe, images, classes, multi_label, machine)
    if as_json:
        emit_json({**cost, "source": recipe.source, "images_are": told, "note": written.note})
        return
    billions = 1e9
    memory = ", ".join(
        f"{part} {size_words(size)}" for part, size in cost["memory"].items() if part != "total" and size
    )
    assumed = (
        f"{machine.peak_share:.0%} of an {machine.gpu}'s peak, assumed" if machine.rate is None else "measured, as told"
    )
    lines = [
        (
            "network",
            f"{recipe.arch}, {cost['parameters'] / 1e6:,.1f} M weights, {classes:,} outputs, {cost['size']} pixels",
        ),
        (
            "FLOPs an image",
            f"{cost['flops_forward'] / billions:,.2f} G forward, {cost['flops_step'] / billions:,.2f} G a step",
        ),
        (
            "memory a GPU",
            f"{size_words(cost['memory']['total'])} for {cost['micro_batch']} images (estimate): {memory}",
        ),
        ("images", f"{images:,} ({told}) x {recipe.epochs:g} epochs = {cost['images_seen']:,}"),
        ("steps", f"{cost['steps']:,} of {cost['batch_size']:,} images"),
        ("images a second", f"{cost['images_per_second']:,.0f} a GPU ({assumed})"),
        (
            "GPU-hours",
            f"{cost['gpu_hours']:,.1f}: {cost['hours']:,.1f} hours on {machine.gpus:,} GPU{'s' * (machine.gpus > 1)}",
        ),
    ]
    print_table(("what", "value"), lines + ([("note", written.note)] if written.note else []))


def _size_of_source(written: Written, data_root: Path) -> tuple[int, int, bool, str]:
    """(train images, outputs, whether multi-label, how that is known): of the data, or by hearsay where it isn't here."""
    from fastxfer.targets import load_target
    from pretrain.source import head_size, open_source

    recipe = written.recipe
    try:
        name = _register(Path(recipe.source), data_root) if Path(recipe.source).exists() else recipe.source
        target = load_target(name, data_root, **recipe.source_args)
    except FastxferError:
        if not (written.images and recipe.num_classes):
            raise
        return written.images, recipe.num_classes, recipe.augment == "xray", "as in the paper; the data is not here"
    source = open_source(target, recipe.classes, val_fraction=recipe.val_fraction, seed=recipe.seed)
    return len(source.train), head_size(recipe, source), source.train.labels.ndim == 2, f"of {source.name}"


def _register(source: Path, data_root: Path) -> str:
    """A folder or CSV given in place of a name is added as a target under its own name."""
    import re

    from fastxfer.targets import add_target

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().stem).strip("-._") or "source"
    return add_target(source, name, data_root).name
