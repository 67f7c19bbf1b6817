"""`fastxfer study`: a whole study from one TOML file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.cluster import slurm_options
from fastxfer.cli.common import F, ManyValues, command_line, emit_json, json_option, print_table, size_words, versions

if TYPE_CHECKING:
    from fastxfer.study import World

_file = click.argument("file", type=click.Path(path_type=Path), metavar="FILE.toml")


def place_options(f: F) -> F:
    """`store`, `results`, `data_root`: places of this machine in place of the file's."""
    for option in (
        click.option(
            "--data-root", type=click.Path(path_type=Path), help="Folder with the data sets [default: the file's]."
        ),
        click.option("--results", help="Folder of the result rows [default: the file's, or beside the store]."),
        click.option("--store", help="Embedding store (folder or fsspec URL) [default: the file's]."),
    ):
        f = option(f)
    return f


@click.group()
def study() -> None:
    """Run a whole study from one TOML file, and tell how far it is.

    \b
    Example:
      fastxfer study init study.toml
      fastxfer study run study.toml --plan
      fastxfer study run study.toml
      fastxfer study status study.toml --watch
    """


@study.command(cls=ManyValues)
@_file
@click.option("--plan", "as_plan", is_flag=True, help="Only foretell what is left: cells, runs, time and bytes.")
@click.option(
    "--dry-run", "only_check", is_flag=True, help="Only check the file and say what is left; loads no network."
)
@click.option(
    "--only",
    multiple=True,
    metavar="WHAT=NAME,…",
    help="Only some pairs, up to the probes: backbone=, target= or source= and a name or pattern; several: any of them.",
)
@click.option("--part", metavar="I/N", help="Only the I-th of N parts, up to the probes: for N people or machines.")
@slurm_options()
@place_options
@json_option
def run(
    file: Path, as_plan: bool, only_check: bool, only: tuple[str, ...], part: str | None, store: str | None,
    results: str | None, data_root: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Do what is missing of a study: embed, fewshot, probe, knn, select, finetune, report, as its file asks.

    The file is checked whole before anything starts. Whatever is finished is kept: run it again after an interruption, or
    after adding backbones, shots, seeds or episodes, and only what is missing is done. Several processes may run the same
    study at once, started by hand, by torchrun or by --slurm: they share the work.

    \b
    Examples:
      fastxfer study run study.toml --plan
      fastxfer study run study.toml
      fastxfer study run study.toml --part 1/3
      fastxfer study run study.toml --only target=pets,backbone=r50*
      fastxfer study run study.toml --slurm nodes=4 gpus_per_node=4 tasks_per_node=4
    """
    from fastxfer.progress import say
    from fastxfer.ranks import team_of_environment
    from fastxfer.study import open_world, price, read_part, run_study, status
    from fastxfer.study.status import as_line

    world = open_world(file, store=store, results=results, data_root=data_root)
    chosen = read_part(world.study, only, part)
    if as_plan or only_check:
        lines = price(world, chosen, measure=as_plan)
        if as_json:
            emit_json({"study": world.study.name, "hash": world.study.hash, "stages": lines})
        else:
            _print_price(world, lines)
        return
    say(
        f"study '{world.study.name}', hash {world.study.hash}: {len(chosen.pairs(world.study))} pairs of backbone and target"
    )
    try:
        done = run_study(world, part=chosen, command=command_line(), told={"versions": versions()})
    except KeyboardInterrupt:
        say(f"interrupted: {as_line(status(world))} are there and kept; `fastxfer study run {file}` goes on from here")
        raise
    team = team_of_environment()
    if team is not None and team.rank > 0:
        return  # one table, one document
    told = status(world)
    if as_json:
        stages = [
            {"stage": d.stage, "units": d.units, "rows": d.rows, "episodes": d.episodes, "seconds": d.seconds}
            for d in done
        ]
        emit_json(
            {**{k: told[k] for k in ("study", "hash", "results", "store")}, "done": stages, "stages": told["stages"]}
        )
        return
    print_table(
        ["stage", "there", "asked", "done here", "rows added", "seconds"],
        [[d.stage, *told["stages"][d.stage], d.units, d.rows, f"{d.seconds:.1f}"] for d in done],
    )
    if not chosen.is_whole:
        say(
            "this was a part: when all parts are there, run the study without --only and --part for what looks at all of it"
        )
    keys = world.study.keys.report
    if keys and told["stages"]["report"][0]:
        say(f"the report lies in {Path(keys.out) / 'index.html'}")


@study.command()
@_file
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=5.0,
    metavar="[SECONDS]",
    help="Look again every so many seconds [5] until all is there.",
)
@place_options
@json_option
def status(
    file: Path, watch: float | None, store: str | None, results: str | None, data_root: Path | None, as_json: bool
) -> None:
    """Tell what of a study is there, what is missing and who is at work, from store and results alone.

    --json has every few-shot cell with its episodes.

    \b
    Example:
      fastxfer study status study.toml --watch 10
    """
    from fastxfer.study import is_complete, open_world
    from fastxfer.study import status as tell

    while True:
        told = tell(open_world(file, store=store, results=results, data_root=data_root))
        if as_json:
            emit_json(told)
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            _print_status(told)
        if not watch or is_complete(told):
            return
        time.sleep(watch)


@study.command()
@_file
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for index.html [default: the file's]."
)
@place_options
@json_option
def report(
    file: Path, out: Path | None, store: str | None, results: str | None, data_root: Path | None, as_json: bool
) -> None:
    """Write the report of a study's rows, finished or not; it carries the study's hash.

    \b
    Example:
      fastxfer study report study.toml --out report
    """
    from fastxfer.study import open_world
    from fastxfer.study.page import ReportUnit
    from fastxfer.study.units import Tally

    world = open_world(file, store=store, results=results, data_root=data_root)
    keys = world.study.keys.report
    unit = ReportUnit(world, command_line(), out or Path(keys.out if keys else "report"), Tally())
    unit.do(lambda n, note="": None)
    page = unit.out / "index.html"
    if as_json:
        emit_json(
            {"report": str(page), "bytes": page.stat().st_size, "study": world.study.name, "hash": world.study.hash}
        )
        return
    click.echo(f"the report lies in {page} (study '{world.study.name}', hash {world.study.hash})")


@study.command(cls=ManyValues)
@_file
@click.option("--target", "targets", multiple=True, metavar="NAME|FOLDER/…", help="Targets by name, or folders.")
@click.option("--ckpt", "ckpts", multiple=True, metavar="FILE|NAME…", help="Checkpoints.")
def init(file: Path, targets: tuple[str, ...], ckpts: tuple[str, ...]) -> None:
    """Write an example, with comments, to be edited; never over a file that is there.

    \b
    Example:
      fastxfer study init study.toml --target photos/ --ckpt resnet50.a1_in1k weights/mine.pt
    """
    from fastxfer.errors import UsageError
    from fastxfer.study.example import example

    if file.exists():
        raise UsageError(f"'{file}' is there already: name another file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(example(targets, ckpts), encoding="utf-8")
    click.echo(f"written: {file}. Edit it, then: fastxfer study run {file} --plan")


def _print_price(world: World, lines: Sequence[dict[str, Any]]) -> None:
    from fastxfer.report.words import duration

    print_table(
        ["stage", "left", "of", "", "time", "on disk"],
        [
            [
                line["stage"],
                line["left"],
                line["asked"],
                line["unit"],
                "not known yet" if line["seconds"] is None else duration(line["seconds"]) if line["seconds"] else "",
                size_words(line["bytes"]) if line["bytes"] else "",
            ]
            for line in lines
        ],
    )
    known = [line["seconds"] for line in lines if line["seconds"] is not None]
    open_ends = len(known) < len(lines)
    click.echo(
        f"\nStudy '{world.study.name}', hash {world.study.hash}: about {duration(sum(known))}"
        f"{' and what is not known yet' if open_ends else ''}, one process. Nothing was run."
    )


def _print_status(told: dict[str, Any]) -> None:
    stages = list(told["stages"])
    click.echo(f"study '{told['study']}', hash {told['hash']}\n")
    columns = [s for s in stages if any(s in pair for pair in told["pairs"])]
    room = shutil.get_terminal_size().lines - len(told["running"]) - 12
    pairs = [p for p in told["pairs"] if any(p[s][0] < p[s][1] for s in columns)]
    shown = pairs[: max(10, room)]
    print_table(
        ["backbone", "target", *columns],
        [
            *([p["backbone"], p["target"], *(_count(p[s]) for s in columns)] for p in shown),
            *(
                [[f"and {len(pairs) - len(shown)} more with something missing", "", *("" for _ in columns)]]
                if len(pairs) > len(shown)
                else []
            ),
            ["all", "", *(_count(told["stages"][s]) for s in columns)],
        ],
        right=columns,
    )
    others = [f"{s} {'done' if told['stages'][s][0] else 'to do'}" for s in stages if s not in columns]
    if others:
        click.echo("\n" + ", ".join(others))
    for one in told["running"]:
        click.echo(f"at work: {one['what']} (process {one['pid']} on {one['host']} since {one['since']})")


def _count(count: Sequence[int]) -> str:
    return f"{count[0]:,}/{count[1]:,}"
