"""Progress: plain lines in a log file, one line that is drawn again on a terminal; always on stderr."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import fastxfer.progress as module
from fastxfer.progress import progress, rate_words, shares


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("embed net on photos", 2000, "images") as advance:
        for _ in range(20):
            clock.now += 4
            advance(100, "forward 93 %, decode 7 %")
    out = capsys.readouterr()
    assert out.out == ""
    lines = out.err.splitlines()
    assert lines[0] == (
        "embed net on photos: 300/2,000 images, 25 images/s, 0:01:08 left; forward 93 %, decode 7 %"
    )  # fmt: skip
    assert len(lines) == 7  # at 12, 24, … 72 seconds, and at the end
    assert lines[-1] == (
        "embed net on photos: 2,000/2,000 images, 25 images/s, took 0:01:20; forward 93 %, decode 7 %"
    )  # fmt: skip
    assert "\x1b" not in out.err
    assert "\r" not in out.err


def test_what_an_earlier_run_did_is_done_and_is_no_part_of_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("pretrain", 1000, "images", before=800) as advance:
        clock.now += 20
        advance(50, "loss 0.3")
        clock.now += 60
        advance(150)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretrain: 850/1,000 images, 2.5 images/s, 0:01:00 left; loss 0.3"
    assert lines[1] == "pretrain: 1,000/1,000 images, 2.5 images/s, took 0:01:20; loss 0.3"


def test_what_an_earlier_run_did_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=150)
    monkeypatch.setattr(module, "console", lambda: screen)
    with progress("pretrain", 1000, "images", before=800) as advance:
        advance(50)
    assert "850/1000" in out.getvalue()


def test_who_is_not_shown_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("pretrain", 1000, "images", shown=False) as advance:
        clock.now += 60
        advance(1000, "loss 0.3")
    assert capsys.readouterr().err == ""


def test_a_log_says_nothing_of_what_took_no_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("quick", 3, "probes") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_note_stays_until_the_next(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("slow", 4, "images") as advance:
        for note in ("decode 60 %", "", "forward 55 %"):
            clock.now += 11
            advance(1, note)
    notes = [line.partition("; ")[2] for line in capsys.readouterr().err.splitlines()]
    assert notes == ["decode 60 %", "decode 60 %", "forward 55 %", "forward 55 %"]


def test_before_the_first_image_nobody_knows_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("slow", 4, "images") as advance:
        clock.now += 11
        advance(0)
    assert capsys.readouterr().err.splitlines()[0] == "slow: 0/4 images, - images/s, time left unknown"


def test_a_terminal_gets_a_bar_with_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=140, color_system=None)
    monkeypatch.setattr(module, "console", lambda: terminal)
    with progress("embed [net] on photos", 10, "images") as advance:
        advance(4)
        advance(6, "forward 90 %, decode 10 %")
    shown = screen.getvalue()
    assert "embed [net] on photos" in shown
    assert "10/10" in shown
    assert "forward 90 %, decode 10 %" in shown


@pytest.mark.parametrize("width", [70, 80, 100, 119])
def test_a_narrow_terminal_keeps_it_to_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(module, "console", lambda: terminal)
    with progress("embed efficientnet-lite0, mobilenetv2 on kermany_pneumonia", 3013, "images") as advance:
        advance(1500, "forward 93 %, decode 6 %, write 1 %")
    shown = screen.getvalue()
    assert "…" in shown
    assert "1500/3013" in shown
    assert "forward 93 %" in shown
    assert "decode" not in shown
    assert "\x1b[1A" not in shown  # never more than one line to go back over


@pytest.mark.parametrize(
    ("spent", "words"),
    [
        ({"decode": 0.0, "forward": 0.0, "write": 0.0}, ""),
        ({"decode": 3.0, "forward": 96.0, "write": 1.0}, "forward 96 %, decode 3 %, write 1 %"),
        ({"decode": 9.0, "forward": 1.0, "write": 0.001}, "decode 90 %, forward 10 %"),
    ],
)
def test_shares(spent: dict[str, float], words: str) -> None:
    assert shares(spent) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (None, "- images/s"),
        (0.0, "- images/s"),
        (0.042, "0.04 images/s"),
        (3.14, "3.1 images/s"),
        (1234, "1,234 images/s"),
    ],
)
def test_rate(rate: float | None, words: str) -> None:
    assert rate_words(rate, "images") == words
