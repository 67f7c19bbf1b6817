"""The command line: parse, call the library, print. Exit code 0 = done, 1 = data, 2 = usage, 130 = interrupted."""

from __future__ import annotations

import errno
import importlib
import os
import traceback
import warnings
from typing import Any

import click
from click.shell_completion import CompletionItem

from fastxfer import __version__
from fastxfer.errors import FastxferError, nearest

# Threads that wait by spinning bring a machine to its knees as soon as anyone else works on it: beside one other process on
# two cores, embedding took ten times as long. Read when the first compiled module loads, so before any does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# command -> (module of fastxfer.cli, one line of help); a module is imported only when its command runs.
COMMANDS = {
    "embed": ("embed", "Turn a target's images into embeddings, one forward pass an image."),
    "backbones": ("backbones", "List, show and register backbones (checkpoints)."),
    "targets": ("targets", "List, show, add and check targets (data sets)."),
    "fewshot": ("fewshot", "Thousands of few-shot episodes on cached embeddings."),
    "episodes": ("episodes", "Show which images an episode is made of."),
    "probe": ("probe", "Linear probe on the full train split."),
    "knn": ("probe", "Nearest neighbours from the full train split."),
    "probes": ("probes", "List and explain probes and presets (published protocols)."),
    "compare": ("compare", "Which backbone is surely better, pair by pair; ranks; where curves cross."),
    "transferability": ("transferability", "Score how well backbones should transfer, from train embeddings alone."),
    "proximity": ("proximity", "How near a source is to targets, by their embeddings."),
    "paper": ("paper", "The paper's cells, beside ours."),
    "scale": ("scale", "What model and data size bring, near and far, at few and many shots."),
    "select": ("select", "Choose what deserves a fine-tuning, from validation rows only."),
    "finetune": ("finetune", "Fine-tune what a plan selected, or one checkpoint on one target."),
    "study": ("study", "Run a whole study from one TOML file, and tell how far it is."),
    "results": ("results", "List, export and merge result rows."),
    "store": ("store", "List, verify, export, copy and remove embeddings."),
    "report": ("report", "Write the HTML report."),
    "plot": ("plot", "Draw embeddings as points of a plane."),
    "pretrain": ("pretrain", "Pre-train a backbone."),
    "doctor": ("doctor", "What this machine can do, what is missing, how to get it."),
    "completion": ("completion", "Complete commands and options with the tab key."),
    "demo": ("demo", "The whole road on real images that packages ship."),
}


# The map that --help draws: headings, and the commands under them in the order of the road.
SECTIONS = {
    "The road": ("targets", "embed", "fewshot", "probe", "knn", "compare", "select", "finetune", "report"),
    "Whole studies": ("study", "results"),
    "What to expect before fine-tuning": ("proximity", "transferability", "scale", "paper"),
    "A closer look": ("backbones", "probes", "episodes", "store", "plot"),
    "Before and beside": ("pretrain", "doctor", "completion", "demo"),
}


# room -> page of docs/ that an error from there is explained by.
PAGES = {
    "targets": "targets",
    "images": "targets",
    "store": "embeddings",
    "embed": "embeddings",
    "backbones": "embeddings",
    "registered": "embeddings",
    "projection": "embeddings",
    "episodes": "episodes",
    "protocol": "episodes",
    "metrics": "episodes",
    "probes": "probes",
    "presets": "probes",
    "estimators": "probes",
    "choosing": "probes",
    "transforms": "probes",
    "statistics": "statistics",
    "until": "statistics",
    "comparing": "compare",
    "proximity": "proximity",
    "transferability": "proximity",
    "scale": "scale-model",
    "paper": "scale-model",
    "selection": "selection",
    "budgets": "selection",
    "finetune": "finetune",
    "hyperrule": "finetune",
    "study": "study-file",
    "report": "report",
    "plugins": "architecture",
    "pretrain": "pretrain",
}

# What the words of the command line are kept under in click's context.
DEBUG, WORDS = "fastxfer.debug", "fastxfer.words"


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fastxfer.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{args[0]}'.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=COMMANDS[name][1]) for name in COMMANDS if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for heading, names in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), COMMANDS[name][1]) for name in names])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # --debug is understood anywhere on the line, since one remembers it only after the failure.
        ctx.meta[DEBUG] = "--debug" in args
        ctx.meta[WORDS] = [a for a in args if a != "--debug"]
        return super().parse_args(ctx, list(ctx.meta[WORDS]))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BaseException as error:
            failure = _failure(error)
            if failure is None or ctx.meta[DEBUG]:
                raise
            raise failure from error


class _Failure(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def _failure(error: BaseException) -> _Failure | None:
    """What a person is told about an error, or None where click knows better."""
    if isinstance(error, FastxferError):
        page = _page(error)
        return _Failure(f"{error}\nSee docs/{page}.md" if page else str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _Failure("interrupted. What was finished is kept: run the same command again to go on.", 130)
    if isinstance(error, click.exceptions.Abort):
        return _Failure("the question was not answered, so nothing was done; --yes answers it beforehand", 1)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _Failure(
                f"no space left on the disk{where}. What was finished is kept: free some space and run it again.", 1
            )
        if error.errno == errno.EPIPE:
            return None
        return _Failure(f"{error.strerror or error}{where}", 1)
    if isinstance(error, Exception):
        return _Failure(
            f"this should not happen: {type(error).__name__}: {error}. Run again with --debug for the traceback.", 1
        )
    return None


def _page(error: FastxferError) -> str:
    """The page on what an error is about: that of the innermost room which has one; "" where the message has it."""
    if "docs/" in str(error):
        return ""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        first, *rest = str(frame.f_globals.get("__name__")).split(".")
        room = rest[0] if first == "fastxfer" and rest else first
        if room in PAGES:
            return PAGES[room]
    return ""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fastxfer")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; may stand anywhere.")
def main() -> None:
    """Find out which pre-trained backbone transfers best to which target.

    \b
      pretrain -> checkpoint -> embed -> store -> fewshot / probe / knn -> results -> select -> finetune -> report

    \b
    Example:
      fastxfer targets add photos/ --name photos
      fastxfer embed --ckpt resnet50 --target photos
      fastxfer fewshot --ways 5 --shots 1 5 --episodes 5000
      fastxfer report
    """
    # Decoders warn of what stands beside the pixels, once a process and without the file's name, and may quote it: in a
    # DICOM file that is a patient's. What keeps pixels from being read is an error of ours, with the file named.
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom|pylibjpeg|openjpeg|fastxfer\.images)(\.|$)")
