"""The command line: parse, call the library, print. Exit code 0 = done, 1 = data, 2 = usage, 130 = interrupted."""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from typing import Any

import click

from fastxfer import __version__
from fastxfer.errors import FastxferError

# command -> (module of fastxfer.cli, one line of help); a module is imported only when its command runs.
COMMANDS = {
    "embed": ("embed", "Turn a target's images into embeddings, one forward pass an image."),
    "targets": ("targets", "List, show, add and check targets (data sets)."),
    "fewshot": ("fewshot", "Thousands of few-shot episodes on cached embeddings."),
    "probe": ("probe", "Linear probe on the full train split."),
    "knn": ("probe", "Nearest neighbours from the full train split."),
    "select": ("select", "Choose what deserves a fine-tuning, from validation rows only."),
    "finetune": ("finetune", "Fine-tune what a plan selected, or one checkpoint on one target."),
    "store": ("store", "List, digest, export and remove embeddings."),
    "report": ("report", "Write the HTML report."),
    "pretrain": ("pretrain", "Pre-train a backbone."),
    "demo": ("demo", "The whole road on real images that packages ship."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fastxfer.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Any = None, prog_name: str | None = "fastxfer", **extra: Any) -> Any:
        argv = list(sys.argv[1:] if args is None else args)
        # --debug is understood anywhere on the line, since one remembers it only after the failure.
        debug = "--debug" in argv
        argv = [a for a in argv if a != "--debug"]
        try:
            return super().main(argv, prog_name, **{**extra, "standalone_mode": True})
        except (KeyboardInterrupt, SystemExit):
            raise
        except FastxferError as error:
            if debug:
                traceback.print_exc()
            _fail(str(error), error.exit_code)
        except OSError as error:
            if debug:
                traceback.print_exc()
            where = f" ({error.filename})" if error.filename else ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _fail(
                    f"no space left on the disk{where}; what was finished before is kept: free some and run it again",
                    1,
                )
            _fail(f"{error.strerror or error}{where}", 1)
        except Exception as error:
            if debug:
                raise
            _fail(
                f"this should not happen: {type(error).__name__}: {error}. Run again with --debug for the traceback.",
                1,
            )


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="fastxfer")
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
