"""The command line as a whole: every command explains itself, and no traceback is shown unless asked for."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from test_layers import FLOOR

from fastxfer.cli import COMMANDS, PAGES, SECTIONS, main
from fastxfer.store import EmbeddingStore


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words, prog_name="fastxfer")


def find(words: list[str]) -> click.Command | None:
    """The command that a line's first words name."""
    command: click.Command | None = main
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), word)
    return command


def commands() -> Iterator[tuple[str, ...]]:
    yield ()
    for name in COMMANDS:
        yield (name,)
        command = find([name])
        if isinstance(command, click.Group):
            yield from ((name, inner) for inner in command.commands)


def in_a_process(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


# -- help --------------------------------------------------------------------------------------------------------------


def test_every_command_is_on_the_map_once():
    named = [name for names in SECTIONS.values() for name in names]
    assert sorted(named) == sorted(COMMANDS)
    shown = run("--help").output
    assert all(f"{heading}:" in shown for heading in SECTIONS)


SPELLINGS = """
embed --ckpt --arch --arch-arg --target --skip-bad --store --data-root --json
embed --pool --layer --input-size --mean --std --crop-pct --interpolation --crop-mode --dtype --precision
backbones ls --store --data-root --json
backbones show --arch --arch-arg --store --data-root --json
backbones add --name --arch --arch-arg --source --input-size --replace --data-root --json
targets ls --data-root --json
targets show --data-root --json
targets add --name --data-root --json
targets check --data-root --json
fewshot --backbone --target --ways --shots --episodes --probe --l2 --audit --audit-out --store --data-root --backend --seed --json
probe --backbone --target --store --data-root --seed --json
knn --backbone --target --store --data-root --seed --json
compare --target --backbone --ways --shots --probe --params --metric --split --between --over --margin --level --ranks --crossings --out
compare --store --data-root --results --json
select --out --store --data-root --json
finetune --plan --ckpt --target --store --data-root --seed --json
store ls --store --json
store digest --store --json
store export --out --format --points --seed --thumbnails --paths --url --store --data-root --json
store verify --all --store --json
store repair --all --ckpt --arch --no-embed --yes --store --data-root --json
store gc --yes --store --json
store cp --to --store --json
store merge --store --json
store du --store --json
store migrate --store --json
store show --store --json
report --out --store --data-root --json
plot embeddings --beside --by --label --method --points --out --seed --store --json
pretrain --out --resume --data-root --seed --json
demo --json
"""


@pytest.mark.parametrize("line", SPELLINGS.split("\n")[1:-1])
def test_spellings_that_stay(line: str) -> None:
    """Commands and options that people have in scripts: later versions only add to them."""
    typed = line.split()
    command = find(typed)
    assert isinstance(command, click.Command)
    assert not isinstance(command, click.Group)
    assert {w for w in typed if w.startswith("--")} <= {o for p in command.params for o in p.opts}


@pytest.mark.parametrize("words", list(commands()), ids=lambda words: " ".join(words) or "fastxfer")
def test_help_has_an_example_that_would_run(words: tuple[str, ...]) -> None:
    """Each example's command and options exist, and each option is explained."""
    result = run(*words, "--help")
    assert result.exit_code == 0
    lines = [part for line in result.stdout.splitlines() for part in line.strip().split(" && ")]
    examples = [line.split("#")[0] for line in lines if line.startswith("fastxfer ")]
    assert re.search("^  Examples?:$", result.stdout, re.MULTILINE)
    assert any(line.startswith(" ".join(["fastxfer", *words])) for line in examples)
    for line in examples:
        typed = shlex.split(line)[1:]
        command = find(typed)
        assert isinstance(command, click.Command), line
        assert not isinstance(command, click.Group), line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in typed if word.startswith("--")} <= known, line
    command = find(list(words))
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} is not explained"


@pytest.mark.parametrize(
    ("module", "example"),
    [
        ("pretrain", "fastxfer pretrain --source digits"),
        ("benchmarks", "python -m benchmarks fewshot"),
        ("fastxfer", "fastxfer targets add"),
    ],
)
def test_help_of_the_modules_has_an_example(module: str, example: str) -> None:
    done = in_a_process("-m", module, "--help", cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert example in done.stdout
    assert re.match(rf"(?i)usage: (python -m {module}|fastxfer {module}) \[", done.stdout)  # not "pretrain pretrain"


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert f"_FASTXFER_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["fews"], ["fewshot"]),
        (["targets", "a"], ["add"]),
        (["fewshot", "--sh"], ["--shots"]),
        (["fewshot", "--backend", "c"], ["cuda", "cpu"]),
        (["fewshott", "--sh"], []),
    ],
    ids=" ".join,
)
def test_bash_completes_the_installed_command(words: list[str], found: list[str], tmp_path: Path) -> None:
    script = tmp_path / "fastxfer"  # as an installer writes it
    script.write_text(f"#!{sys.executable}\nfrom fastxfer.cli import main\nmain()\n", encoding="utf-8")
    script.chmod(0o755)
    typed = f"COMP_WORDS=(fastxfer {' '.join(words)}); COMP_CWORD={len(words)}; _fastxfer_completion fastxfer"
    done = subprocess.run(
        ["bash", "-c", f'eval "$(fastxfer completion bash)"; {typed}; echo "${{COMPREPLY[@]}}"'],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (found, "")


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"), [(("targets", "add", "nowhere", "--name", "x"), 1), (("finetune",), 2)], ids=["data", "usage"]
)
def test_a_traceback_only_with_debug(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    plain = in_a_process("-m", "fastxfer", *words, cwd=tmp_path)
    assert plain.returncode == code
    assert plain.stdout == ""
    assert "Traceback" not in plain.stderr
    assert plain.stderr.startswith("Error: ")
    for asked in (("--debug", *words), (*words, "--debug")):
        shown = in_a_process("-m", "fastxfer", *asked, cwd=tmp_path)
        assert shown.returncode == 1
        assert "Traceback (most recent call last)" in shown.stderr
        assert plain.stderr.removeprefix("Error: ").split("\nSee docs/")[0].strip() in shown.stderr


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (("targets", "add", "nowhere", "--name", "x"), "targets"),
        (("fewshot", "--store", "nowhere"), "embeddings"),  # of what the error is about, not of the command
        (("fewshot", "--probe", "ridgee"), "probes"),
        (("compare", "--store", "nowhere"), "compare"),
    ],
    ids=" ".join,
)
def test_an_error_names_the_page_on_what_it_is_about(
    words: tuple[str, ...], page: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words).stderr.splitlines()[-1] == f"See docs/{page}.md"


def test_every_page_that_errors_name_is_there() -> None:
    docs = Path(__file__).parents[1] / "docs"
    assert all((docs / f"{page}.md").is_file() for page in PAGES.values())
    assert set(PAGES) <= set(FLOOR)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            RuntimeError("boom"),
            1,
            "this should not happen: RuntimeError: boom. Run again with --debug for the traceback",
        ),
        (KeyboardInterrupt(), 130, "interrupted. What was finished is kept: run the same command again to go on"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.npz"), 1, "no space left on the disk (x.npz)"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x.npz"), 1, "Permission denied (x.npz)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_nobody_foresaw_is_one_line(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(EmbeddingStore, "open", broken)
    result = run("store", "ls")
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    if not isinstance(error, KeyboardInterrupt):
        assert run("store", "ls", "--debug").exception is error
