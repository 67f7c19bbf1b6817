"""The pages as a site, with a reference made of docstrings and of --help: `python scripts/make_site.py [FOLDER]`, or `make site`.

Sphinx reads a copy of docs/ with the pages of the root, and two that are made here, beside it; a link that leads nowhere is
an error. Nothing that is made is kept in the repository.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
OF_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ROADS = {
    "The road": [
        "targets",
        "embeddings",
        "episodes",
        "probes",
        "compare",
        "selection",
        "finetune",
        "report",
        "study-file",
    ],
    "What to expect": ["proximity", "scale-model"],
    "Before": ["pretrain", "scale"],
    "Why to believe it": ["statistics", "benchmarks", "proof", "study"],
    "Inside": ["architecture", "contributing", "stability", "changelog"],
    "Reference": ["cli", "api"],
}
SETTINGS = {
    "project": "fastxfer",
    "html_theme": "furo",
    "html_title": "fastxfer",
    "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"],
    "myst_heading_anchors": 4,
    "myst_fence_as_directive": ["mermaid"],
    "default_role": "code",
    "autodoc_typehints": "signature",
    "autodoc_member_order": "bysource",
    "python_maximum_signature_line_length": 100,
    "source_suffix": {".md": "markdown", ".rst": "restructuredtext"},
}


def build(folder: Path) -> None:
    """Write the site; SystemExit with what is wrong with a page."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        shutil.copytree(ROOT / "docs", source)
        for name, page in OF_THE_ROOT.items():
            (source / page).write_text(_of_the_root(name), encoding="utf-8")
        (source / "cli.md").write_text(_commands(), encoding="utf-8")
        (source / "api.rst").write_text(_names(), encoding="utf-8")
        pages = {page.stem for page in source.iterdir() if page.suffix in (".md", ".rst")}
        for page in source.glob("*.md"):
            page.write_text(_on_the_site(page.read_text(encoding="utf-8")), encoding="utf-8")
        with (source / "index.md").open("a", encoding="utf-8") as index:
            for caption, names in ROADS.items():
                there = "\n".join(name for name in names if name in pages)
                index.write(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{there}\n```\n")
        app = Sphinx(
            str(source),
            None,
            str(folder),
            str(Path(work) / "trees"),
            "html",
            SETTINGS,
            status=None,
            warningiserror=True,
        )
        app.connect("autodoc-process-docstring", _as_written)
        app.build()
    if app.statuscode:
        raise SystemExit(app.statuscode)


def _of_the_root(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"\]\((?!https?:|#)([A-Z]+\.md)", lambda link: f"](../{link[1]}", text)


def _on_the_site(text: str) -> str:
    """Pages of the root have their names here; what has no page (code, results) loses the link."""
    for name, page in OF_THE_ROOT.items():
        text = text.replace(f"](../{name}", f"]({page}")
    text = text.replace("```mermaid", "```{mermaid}")
    return re.sub(
        r"(?<!!)\[([^\]]+)\]\((?!https?:|#)(?:\.\./[^)]*|[\w-]+/?|(?:benchmarks|tests|scripts|fastxfer|examples)/[^)]*)\)",
        r"\1",
        text,
    )


def _commands() -> str:
    from fastxfer.cli import main

    parts = ["# Command line", "What `--help` says, command by command."]
    for path, command in _walk(main, ["fastxfer"]):
        context = click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100)
        parts.append(f"{'#' * min(len(path) + 1, 4)} {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def _walk(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _walk(found, [*path, name])


def _names() -> str:
    """The names that docs/stability.md promises, module by module, by autodoc."""
    import fastxfer

    promised = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    modules = {
        "fastxfer": sorted(name for name in fastxfer.__all__ if not name.startswith("__")),
        "fastxfer.estimators": ["FittedEpisodes", "episodes_of"],
    }
    for module, names in re.findall(r"^\| `(fastxfer\.\w+)` \| (.+) \|$", promised, re.MULTILINE):
        modules[module] = re.findall(r"`(\w+)`", names)
    parts = [_title("Python names", "="), "All that is promised from version 1.0 on (:doc:`stability`)."]
    documented: set[object] = set()
    for module, names in modules.items():
        parts.append(_title(module, "-"))
        for name in names:
            thing = getattr(__import__(module, fromlist=[name]), name)
            again = "\n   :no-index:" if thing in documented else ""
            documented.add(thing)
            kind = "autoclass" if isinstance(thing, type) else "autofunction"
            members = "\n   :members:" if kind == "autoclass" else ""
            parts.append(f".. {kind}:: {module}.{name}{members}{again}")
    return "\n\n".join(parts) + "\n"


def _as_written(_app: object, _kind: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Paragraphs in columns (a name, what it is) stay as they were written; others are prose."""
    paragraphs = [p.strip("\n") for p in re.split(r"\n\s*\n", "\n".join(lines)) if p.strip()]
    lines[:] = []
    for paragraph in paragraphs:
        columns = re.search(r"\S {2,}\S|^ ", paragraph, re.MULTILINE)
        lines += ["::", "", *("   " + line for line in paragraph.split("\n"))] if columns else paragraph.split("\n")
        lines += [""]


def _title(words: str, line: str) -> str:
    return f"{words}\n{line * len(words)}"


if __name__ == "__main__":
    build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "site")
