"""Malformed lists (``train.txt`` and the like), made by a seeded generator; see `test_bad_input`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import SAME, WORLDS, Outcome, Refused, Rng, World, judge_all

from fastxfer.targets import Target

SEEDS = 4

LISTS = [(world, file) for world in WORLDS.values() for file in world.lists]
LIST_MUTATIONS: dict[str, Callable[[Rng, list[str], int], tuple[bytes, int | str | None]]] = {
    "byte order mark": lambda rng, lines, row: (("\ufeff" + "\n".join(lines)).encode(), "same"),
    "CRLF": lambda rng, lines, row: ("\r\n".join(lines).encode(), "same"),
    "CR": lambda rng, lines, row: ("\r".join(lines).encode(), "same"),
    "blank lines": lambda rng, lines, row: ("\n".join([*lines[:row], " ", "", *lines[row:]]).encode(), "same"),
    "blanks around lines": lambda rng, lines, row: ("\n".join(f" {line}\t" for line in lines).encode(), "same"),
    "other order": lambda rng, lines, row: ("\n".join(rng.permutation(lines)).encode(), "same"),
    "zero bytes": lambda rng, lines, row: (b"\n" * row, None),
    "UTF-16": lambda rng, lines, row: ("\n".join(lines).encode("utf-16"), None),
    "Latin-1": lambda rng, lines, row: ("\n".join([*lines[:row], "ä" + lines[row], *lines[row + 1 :]]).encode("latin-1"), row),
    "NUL": lambda rng, lines, row: ("\n".join([*lines[:row], lines[row] + "\0", *lines[row + 1 :]]).encode(), row),
    "line twice": lambda rng, lines, row: ("\n".join([*lines, lines[row]]).encode(), len(lines)),
}  # fmt: skip
# kind -> (world, list, how a line is spoiled)
LINE_MUTATIONS: dict[str, tuple[str, str, Callable[[list[str]], list[str]]]] = {
    "COVIDx no label": ("covidx-cxr2", "train.txt", lambda words: words[:3]),
    "COVIDx other label": ("covidx-cxr2", "train.txt", lambda words: [*words[:3], "Positive", *words[4:]]),
    "COVIDx label nan": ("covidx-cxr2", "train.txt", lambda words: [*words[:3], "nan"]),
    "COVIDx columns moved": ("covidx-cxr2", "train.txt", lambda words: [words[0], words[3], words[2]]),
    "COVIDx two lines in one": (
        "covidx-cxr2",
        "train.txt",
        lambda words: [*words[:4], f"{words[4]}9", "img", "b.png", "negative"],
    ),
    "COVIDx only a label": ("covidx-cxr2", "test.txt", lambda words: words[3:4]),
    "COVIDx no image": ("covidx-cxr2", "test.txt", lambda words: [words[0], *words[3:]]),
    "COVIDx absolute path": ("covidx-cxr2", "test.txt", lambda words: ["/etc/x.png", *words[3:]]),
    "COVIDx path with ..": ("covidx-cxr2", "test.txt", lambda words: ["../../x.png", *words[3:]]),
    "Pets no number": ("pets", "annotations/test.txt", lambda words: words[:3]),
    "Pets five words": ("pets", "annotations/test.txt", lambda words: [*words, "1"]),
    "Pets label nan": ("pets", "annotations/trainval.txt", lambda words: [words[0], "nan", *words[2:]]),
    "Pets label 1.0": ("pets", "annotations/trainval.txt", lambda words: [words[0], f"{words[1]}.0", *words[2:]]),
    "Pets other breed": (
        "pets",
        "annotations/test.txt",
        lambda words: [words[0], str(int(words[1]) % 3 + 1), *words[2:]],
    ),
    "Pets new breed": ("pets", "annotations/test.txt", lambda words: [words[0], "38", *words[2:]]),
    "Pets species": ("pets", "annotations/test.txt", lambda words: [*words[:2], str(3 - int(words[2])), words[3]]),
    "Pets species 3": ("pets", "annotations/test.txt", lambda words: [*words[:2], "3", words[3]]),
    "Pets path with ..": ("pets", "annotations/test.txt", lambda words: [f"../{words[0]}", *words[1:]]),
}


@pytest.mark.parametrize("kind", LIST_MUTATIONS)
def test_lists(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    def cases() -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
        for world, file in LISTS:
            for seed in range(SEEDS):
                lines, rng = world.lists[file].splitlines(), np.random.default_rng(seed)
                content, row = LIST_MUTATIONS[kind](rng, lines, int(rng.integers(len(lines))))
                refused = Refused(file, row + 1 if isinstance(row, int) else None)
                yield world, {file: content}, SAME if row == "same" else refused

    judge_all(cases(), tmp_path, good)


@pytest.mark.parametrize("kind", LINE_MUTATIONS)
def test_lines(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    def cases() -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
        name, file, spoil = LINE_MUTATIONS[kind]
        lines = WORLDS[name].lists[file].splitlines()
        for row in range(3 if kind.startswith("Pets") and file.endswith("trainval.txt") else 0, len(lines)):
            spoiled = [*lines[:row], " ".join(spoil(lines[row].split())), *lines[row + 1 :]]
            yield WORLDS[name], {file: "\n".join(spoiled).encode()}, Refused(file, row + 1)

    judge_all(cases(), tmp_path, good)
