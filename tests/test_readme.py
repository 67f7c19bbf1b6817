"""What the README shows works as it stands: its Python runs, its commands parse, its links lead somewhere. So do docstrings."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from helpers import blobs_store, blobs_target

import fastxfer
from fastxfer.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    blobs_store(tmp_path / "fastxfer-store", blobs_target("mine"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"good\s+knn\s+[01]\.\d+", done.stdout)


def test_the_examples_of_docstrings_are_so() -> None:
    files = [f for package in ("fastxfer", "pretrain") for f in sorted((ROOT / package).rglob("*.py"))]
    shown = [f.relative_to(ROOT).with_suffix("") for f in files if ">>> " in f.read_text(encoding="utf-8")]
    done = {str(f): doctest.testmod(importlib.import_module(".".join(f.parts))) for f in shown}
    assert all(some.attempted and not some.failed for some in done.values()), done
    assert "fastxfer/errors" in done


@pytest.mark.parametrize("name", fastxfer.__all__)
def test_no_public_name_is_a_modules_too(name: str) -> None:
    """Importing the module would put it in the place of the function: `from fastxfer import evaluate` once gave that."""
    assert not isinstance(getattr(fastxfer, name), types.ModuleType)
    assert importlib.util.find_spec(f"fastxfer.{name}") is None


def commands(page: Path) -> list[str]:
    """Every `fastxfer …` line in a page's blocks of code, `&&` taken apart, `…` and `[…]` left out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    return [line.split("#")[0].strip() for line in lines if line.startswith("fastxfer ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_are_there(page: Path) -> None:
    shown = commands(page)
    assert len(shown) >= (5 if page.name == "README.md" else 0)
    for line in shown:
        words = shlex.split(line)[1:]
        command: click.Command = main
        context = click.Context(main, info_name="fastxfer")
        while isinstance(command, click.Group) and words:
            found = command.get_command(context, words[0])
            assert found is not None, f"{page.name}: no such command: {line}"
            command, words = found, words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known | {"--help", "--debug"}, (
                    f"{page.name}: no such option {word}: {line}"
                )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link).exists(), f"{page.name}: {link} is not there"
