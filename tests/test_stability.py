"""docs/stability.md promises what is there, and what it promises is not taken away."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import fastxfer
from fastxfer import plans, registered, results
from fastxfer.cli import main
from fastxfer.plugins import KINDS, PREFIX
from fastxfer.results import images
from fastxfer.store import layout
from fastxfer.targets import register

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs/stability.md").read_text(encoding="utf-8")
PROMISED = HERE / "promised.txt"


def part(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """What stands in backticks in the first column of the tables of a part."""
    return [name for line in text.splitlines() if line.startswith("| `") for name in _quoted(line.split("|")[1])]


def _quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def options(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[str]:
    """ "fewshot --ways" of every option that a command and those below it show."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield from (
                " ".join([*words, name]) for name in (*parameter.opts, *parameter.secondary_opts) if name[:2] == "--"
            )
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield " ".join([*words, name])
            yield from options(below, (*words, name))


def test_no_command_and_no_option_that_was_promised_is_gone():
    promised = set(PROMISED.read_text(encoding="utf-8").split("\n")) - {""}
    assert len(promised) > 200
    assert sorted(promised - set(options(main))) == []


def test_the_public_names_are_those_of_the_page():
    text = part("Python").split("For probes on")[0]
    assert sorted(first_cells(text)) == sorted(fastxfer.__all__)
    for name in fastxfer.__all__:
        assert getattr(fastxfer, name) is not None
    for module, methods in (("EmbeddingStore", 0), ("ResultStore", 0)):
        line = next(line for line in text.splitlines() if line.startswith(f"| `{module}`"))
        for method in _quoted(line.split("|")[2])[methods:]:
            assert callable(getattr(getattr(fastxfer, module), method)), (module, method)


def test_what_packages_build_on_is_there():
    text = part("Python").split("For packages")[1]
    assert [group for group in _quoted(text.split("| module")[0]) if group.startswith(PREFIX)] == [
        PREFIX + group for group in KINDS
    ]
    for line in text.splitlines():
        if line.startswith("| `"):
            module, *names = _quoted(line)
            assert set(names) <= set(dir(importlib.import_module(module)))
    (line,) = (line for line in part("Python").splitlines() if line.startswith("For probes on"))
    module, *names = _quoted(line)
    assert set(names) <= set(dir(importlib.import_module(module)))


def test_the_columns_are_those_of_the_page():
    assert first_cells(part("The columns of rows")) == results.SCHEMA.names
    assert set(results.SCHEMA.names[: len(results.KEY)]) == {*results.KEY}


def test_the_formats_are_those_of_the_page():
    told = dict(re.findall(r"^\| ([a-z ]+?) \([^|]*\) \| (\d+) \|", part("On disk"), re.MULTILINE))
    assert told == {
        "embedding store": str(layout.FORMAT),
        "rows of results": str(results.FORMAT),
        "influences of test images": str(images.FORMAT),
        "plan": str(plans.PLAN_VERSION),
        "added target": str(register.FORMAT),
        "added backbone": str(registered.FORMAT),
    }


def test_the_environment_is_that_of_the_page():
    def variables(command: click.Command) -> Iterator[str]:
        yield from (str(p.envvar) for p in command.params if p.envvar)
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                yield from variables(command.get_command(click.Context(command), name) or command)

    told = {name for name in _quoted(part("The command line")) if name.startswith("FASTXFER_")}
    assert told == {*variables(main), "FASTXFER_CUDA", "FASTXFER_CUDA_ARCHS"}


if __name__ == "__main__":  # at a release: promise what has come since
    PROMISED.write_text("".join(f"{line}\n" for line in sorted(set(options(main)))), encoding="utf-8")
    sys.exit()
