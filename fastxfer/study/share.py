"""How several processes do one study: each claims what nobody is doing, and comes back to what others hold until all is done."""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastxfer.errors import UsageError, nearest
from fastxfer.progress import Advance
from fastxfer.store.locks import HeldError, beating, hold, touch
from fastxfer.study.file import Study

RUNNING = "running"  # folder of the results: what is under way
# A claim of another host is touched while its holder lives; one that is silent for longer is taken over. On one host the
# kernel frees a dead process's claim at once.
BEAT_SECONDS, SILENT_SECONDS = 20.0, 300.0
PAUSE_SECONDS = (0.05, 2.0)  # between two looks at what others hold: at first, and at most


class Unit(Protocol):
    """Work that one process does at a time. key: names it;  title: for people"""

    @property
    def key(self) -> tuple[str, ...]: ...
    @property
    def title(self) -> str: ...
    def left(self) -> int:
        """How much of it is not done yet, by anybody; 0 = done."""

    def do(self, advance: Advance) -> None:
        """Do what is left, telling `advance` of it."""


@contextmanager
def claim(folder: Path, unit: Unit) -> Iterator[None]:
    """Hold a unit while the block runs; `HeldError` if another process has it."""
    with hold(_place(folder, unit), unit.title, silent=SILENT_SECONDS) as path:

        def beat() -> bool:
            try:
                touch(path)
            except FileNotFoundError:  # taken over: this process was silent for too long
                return False
            return True

        with beating(beat, BEAT_SECONDS):
            yield


def _place(folder: Path, unit: Unit) -> Path:
    digest = hashlib.sha256("\0".join(unit.key).encode()).hexdigest()[:16]
    return folder / f"{unit.key[0]}-{digest}.lock"


def share(units: Sequence[Unit], folder: Path, advance: Advance) -> None:
    """See to it that all units are done, by this process or by others. `advance` is told of all, whoever does it."""
    # A claim on what is done is that of a process that was killed before it could let go.
    waiting = [(unit, left) for unit in units if (left := unit.left()) or _place(folder, unit).exists()]
    pause = PAUSE_SECONDS[0]
    while waiting:
        held = []
        for unit, known in waiting:
            try:
                with claim(folder, unit):
                    left = unit.left()
                    advance(known - left)
                    if left:
                        unit.do(advance)
                        pause = PAUSE_SECONDS[0]
            except HeldError:
                if known:
                    held.append((unit, known))
        if held:
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])
        waiting = held


@dataclass(frozen=True)
class Part:
    """Some of a study's pairs: those that fit one of `only`, and of these every `of`-th, beginning with `number`.

    only: conditions, each "backbone", "target" or "source" -> pattern, all of which must fit
    """

    only: tuple[dict[str, str], ...] = ()
    number: int = 1
    of: int = 1

    @property
    def is_whole(self) -> bool:
        return not self.only and self.of == 1

    def pairs(self, study: Study) -> list[tuple[str, str]]:
        """(backbone, target) of this part."""
        source = {b.name: b.source or "" for b in study.keys.backbone}
        fitting = [
            (b, t)
            for b, t in study.pairs
            if not self.only
            or any(
                all(
                    fnmatch.fnmatchcase({"backbone": b, "target": t, "source": source[b]}[k], v) for k, v in one.items()
                )
                for one in self.only
            )
        ]
        return fitting[self.number - 1 :: self.of]


def read_part(study: Study, only: Sequence[str], part: str | None) -> Part:
    """Of ``["target=pets,backbone=r50*"]`` and ``"1/3"``; `UsageError` for words that fit nothing of the study."""
    number, of = 1, 1
    if part is not None:
        words = part.split("/")
        if len(words) != 2 or not all(w.isdigit() for w in words) or not 1 <= int(words[0]) <= int(words[1]):
            raise UsageError(f"--part {part}: expected I/N with I from 1 to N, such as 1/3")
        number, of = map(int, words)
    known = {
        "backbone": study.backbones,
        "target": study.targets,
        "source": sorted({b.source for b in study.keys.backbone if b.source}),
    }
    conditions = []
    for text in only:
        one = {}
        for word in text.split(","):
            what, sign, pattern = word.strip().partition("=")
            if not sign or what not in known:
                raise UsageError(
                    f"--only {text}: expected backbone=, target= or source= and a name or pattern, with commas between, such "
                    f"as target=pets,backbone=r50*.{nearest(what, known)}"
                )
            if not fnmatch.filter(known[what], pattern):
                raise UsageError(
                    f"--only {text}: the study has no {what} '{pattern}'.{nearest(pattern, known[what])} "
                    f"It has {', '.join(known[what]) or 'none'}."
                )
            one[what] = pattern
        conditions.append(one)
    chosen = Part(tuple(conditions), number, of)
    if not chosen.pairs(study):
        raise UsageError(f"--only and --part leave nothing of the {len(study.pairs)} pairs of '{study.name}'")
    return chosen
