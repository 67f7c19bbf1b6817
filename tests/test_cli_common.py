"""Tables for people: whole lines in a pipe, whole words in a terminal."""

from __future__ import annotations

import os
import shutil
import sys

import click
import pytest

from fastxfer.cli.common import print_table

COLUMNS = ["backbone", "images", "why"]
ROWS = [
    ["efficientnet-lite0", 1797, "best of three backbones on the validation split"],
    ["bit", 40, "12.7 points behind the best"],
]


def test_in_a_pipe_every_row_is_one_line(capsys):
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "backbone            images  why",
        "───────────────────────────────────────────────────────────────────────────",
        "efficientnet-lite0   1,797  best of three backbones on the validation split",
        "bit                     40  12.7 points behind the best",
    ]


@pytest.mark.parametrize("width", [50, 20])
def test_a_narrow_terminal_gets_whole_words(width, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
    print_table(COLUMNS, ROWS)
    out = click.unstyle(capsys.readouterr().out)
    words = out.split()
    for word in ("efficientnet-lite0", "1,797", *ROWS[0][2].split(), *ROWS[1][2].split()):
        assert word in words
    # Below the longest words' width the line is as wide as these need, not narrower.
    assert max(map(len, out.splitlines())) == max(width, 18 + 2 + 6 + 2 + len("validation"))


def test_no_rows_are_a_head_alone(capsys):
    print_table(COLUMNS, [])
    assert capsys.readouterr().out.splitlines() == ["backbone  images  why", "─────────────────────"]


def test_a_pipe_gets_all_of_it_without_colours_or_blanks_at_the_end(capsys):
    rows = [["x" * 300, 0.5, "two\nlines", "[red]ü[/red] 漢字"]] * 3
    print_table(["name", "share", "why", "more"], rows, right=("why",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"{'x' * 300}    0.5  two lines  [red]ü[/red] 漢字"] * 3
    assert lines[0] == f"name{' ' * 296}  share        why  more"


def test_a_narrow_terminal_goes_without_what_it_can_spare(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width, head in ((60, "backbone images why"), (30, "backbone images"), (20, "backbone")):
        monkeypatch.setattr(shutil, "get_terminal_size", lambda width=width: os.terminal_size((width, 24)))
        print_table(COLUMNS, ROWS, spare=["why", "images"])
        assert click.unstyle(capsys.readouterr().out).splitlines()[0].split() == head.split()
