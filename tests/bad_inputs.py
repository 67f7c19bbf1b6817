"""Good inputs of every layout, to be spoiled, and the judge of what came out of the spoiled ones."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from layouts import touch

from fastxfer.errors import DataError, UsageError
from fastxfer.targets import Target, add_target, load_target, padchest
from fastxfer.targets.policies import COLUMNS

Rng = np.random.Generator


@dataclass(frozen=True)
class Refused:
    """A `DataError` or `UsageError` that names the file and, where there is one, the row."""

    file: str
    row: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """The good input's rows but these images, each named in a note that counts them; () for the same rows."""

    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anything:
    """Any labels, or an error that names the file; and where there are fewer images, a note."""

    file: str


Outcome = Refused | LeftOut | Anything
SAME = LeftOut()


@dataclass
class Sheet:
    """A CSV table of a good input. needed: columns without which nothing goes; key: one whose cells must not be empty,
    a path where `paths`."""

    file: str
    columns: list[str]
    rows: list[list[str]]
    needed: list[str]
    key: str
    paths: bool = True

    def text(self, rows: list[list[str]] | None = None, **style: Any) -> str:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n", **style).writerows([self.columns, *(rows or self.rows)])
        return stream.getvalue()

    def put(self, row: int, column: str, cell: str) -> str:
        rows = [list(cells) for cells in self.rows]
        rows[row][self.columns.index(column)] = cell
        return self.text(rows)


@dataclass
class World:
    """A good input: tables, lists and images of one target. secrets: what no message may hold outside of a path."""

    name: str
    sheets: list[Sheet] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)

    def write(self, root: Path, changed: dict[str, bytes]) -> Path:
        folder = root / self.name
        texts = {sheet.file: sheet.text() for sheet in self.sheets} | self.lists
        for file, content in ({file: text.encode() for file, text in texts.items()} | changed).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        touch(folder, *self.images)
        return folder

    def read(self, root: Path) -> Target:
        if self.name.startswith("own"):
            return add_target(root / self.name, "mine", root / "data", replace=True)
        return load_target(self.name, root, **self.options)


def rows_of(target: Target) -> list[tuple[Any, ...]]:
    labels = target.labels.tolist() if target.multi_label else [target.class_names[k] for k in target.labels]
    columns = [target.image_id, map(str, labels), target.split]
    columns += [c for c in (target.patient, target.study, target.view, target.source) if c is not None]
    return sorted(zip(*columns, strict=True))


def judge(world: World, root: Path, changed: dict[str, bytes], wanted: Outcome, good: Target) -> str | None:
    """What is wrong with the way an input ended, or None."""
    world.write(root, changed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target = world.read(root)
    except (DataError, UsageError) as error:
        message = str(error)
        if isinstance(wanted, LeftOut):
            return f"refused: {message}"
        if Path(wanted.file).name not in message:
            return f"doesn't name {wanted.file}: {message}"
        if isinstance(wanted, Refused) and wanted.row is not None and not re.search(rf"\brow {wanted.row}\b", message):
            return f"doesn't name row {wanted.row}: {message}"
        if not message.isprintable():
            return f"not in one line: {message}"
        words = [word for word in message.split() if "/" not in word]
        told = [secret for secret in world.secrets if secret in " ".join(words)]
        return f"tells {told}: {message}" if told else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(wanted, Refused):
        return "was read, though it should have been refused"
    if isinstance(wanted, Anything):
        counted = any(re.search(r"left out [1-9]|[;d] [1-9]\d* (rows|images)", note) for note in target.notes)
        return "fewer images, and no note" if target.n_images < good.n_images and not counted else None
    if rows_of(target) != [row for row in rows_of(good) if row[0] not in wanted.images]:
        return f"other rows: {rows_of(target)}"
    named = [image for image in wanted.images if not any(Path(image).stem in note for note in target.notes)]
    return f"dropped without a word: {named}" if named else None


def judge_all(cases: Iterator[tuple[World, dict[str, bytes], Outcome]], root: Path, good: dict[str, Target]) -> None:
    """Fail with all faults of (good input, changed files, what must come out)."""
    faults = [
        f"{world.name} {[*changed]}: {fault}"
        for world, changed, wanted in cases
        if (fault := judge(world, root, changed, wanted, good[world.name]))
    ]
    assert not faults, "\n".join(faults)


# ---- good inputs ---------------------------------------------------------------------------------------------------


def own(name: str, labels: list[str]) -> World:
    rows = [
        [
            f"{'abc'[i % 3]}/img_{i:02}.png",
            labels[i % len(labels)],
            ("train", "test")[i // 4 % 2],
            f"Doe Jane {500 + i // 2}",
        ]
        for i in range(16)
    ]
    sheet = Sheet("labels.csv", ["path", "label", "split", "patient"], rows, ["path", "label"], "path")
    return World(name, [sheet], images=[row[0] for row in rows], secrets=[f"Doe Jane {500 + i}" for i in range(8)])


def chexpert() -> World:
    cells = ["", "1.0", "0.0", "-1.0"]
    sheets = []
    for file, folder, first in (("train.csv", "train", 1), ("valid.csv", "valid", 40)):
        rows = [
            [
                f"CheXpert-v1.0/{folder}/patient{first + i:05}/study{1 + i % 2}/view1_frontal.jpg",
                "Male",
                str(30 + i),
                "Frontal",
                ("AP", "PA")[i % 2],
                *(cells[(i + 3 * j) % 4] for j in range(13)),
                "",
            ]
            for i in range(8)
        ]
        columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *COLUMNS]
        sheets.append(Sheet(file, columns, rows, ["Path", "AP/PA", "Frontal/Lateral", "Edema", "No Finding"], "Path"))
    return World("chexpert", sheets, options={"labels_only": True, "ages": (0, 120)})


def nih() -> World:
    findings = ["Effusion|Mass", "No Finding", "Hernia", "Pleural_Thickening", "Edema|Pneumonia"]
    rows = [
        [
            f"{1 + i // 2:08}_{i % 2:03}.png",
            findings[i % 5],
            str(i % 2),
            str(1 + i // 2),
            str(40 + i),
            ("PA", "AP")[i % 2],
        ]
        for i in range(12)
    ]
    columns = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "View Position"]
    sheet = Sheet("Data_Entry_2017_v2020.csv", columns, rows, [*columns[:2], "Patient ID"], "Image Index")
    lists = {"train_val_list.txt": "".join(f"{row[0]}\n" for row in rows[:8])}
    lists["test_list.txt"] = "".join(f"{row[0]}\n" for row in rows[8:])
    return World("nih14", [sheet], lists, options={"labels_only": True, "ages": (0, 120)})


def pad() -> World:
    texts = ["['normal']", "['hilar enlargement', 'Pacemaker']", "['consolidation']", "['air trapping']"]
    rows = [
        [
            f"f{i}.png",
            str(i % 2),
            "20140101",
            f"8{i}",
            f"98765{i // 2:03}",
            f"{1940 + i}.0",
            ("PA", "L", "AP")[i % 3],
            texts[i % 4],
        ]
        for i in range(16)
    ]
    columns = list(padchest._COLUMNS)
    secrets = [f"98765{i:03}" for i in range(8)]
    return World(
        "padchest",
        [Sheet(padchest.TABLE, columns, rows, columns, "ImageID")],
        options={"labels_only": True},
        secrets=secrets,
    )


def mimic() -> World:
    keys = [(str(10000032 + i // 2), str(50000000 + i), f"{i:04}-abc") for i in range(12)]
    meta = [[d, p, s, ("AP", "PA")[i % 2]] for i, (p, s, d) in enumerate(keys)]
    split = [[d, s, p, ("train", "validate", "test")[i % 3]] for i, (p, s, d) in enumerate(keys)]
    labels = [
        [p, s, *(["", "1.0", "0.0", "-1.0"][(i + 3 * j) % 4] for j in range(13)), ""]
        for i, (p, s, _) in enumerate(keys)
    ]
    stem = "mimic-cxr-2.0.0-"
    sheets = [
        Sheet(f"{stem}metadata.csv", ["dicom_id", "subject_id", "study_id", "ViewPosition"], meta,
              ["dicom_id", "subject_id", "study_id", "ViewPosition"], "dicom_id", paths=False),
        Sheet(f"{stem}split.csv", ["dicom_id", "study_id", "subject_id", "split"], split,
              ["dicom_id", "study_id", "subject_id", "split"], "study_id", paths=False),
        Sheet(f"{stem}chexpert.csv", ["subject_id", "study_id", *COLUMNS], labels,
              ["subject_id", "study_id", "Edema"], "subject_id", paths=False),
    ]  # fmt: skip
    return World("mimic-cxr", sheets, options={"labels_only": True}, secrets=[key[0] for key in keys])


def covidx() -> World:
    lines = [f"{i} img {i}.png {('negative', 'positive')[i % 2]} {('rsna', 'sirm')[i % 2]}\n" for i in range(12)]
    lists = {"train.txt": "".join(lines[:8]), "test.txt": "".join(lines[8:])}
    return World("covidx-cxr2", lists=lists, options={"labels_only": True})


def pets() -> World:
    lines = [f"{('Abyssinian', 'beagle', 'Bengal')[i % 3]}_{i} {1 + i % 3} {(1, 2, 1)[i % 3]} 1\n" for i in range(18)]
    lists = {"annotations/trainval.txt": "".join(lines[:9]), "annotations/test.txt": "".join(lines[9:])}
    return World("pets", lists=lists, options={"labels_only": True})


WORLDS = {
    world.name: world
    for world in (
        own("own", ["cat", "dog", "two words"]),
        own("own-numbers", ["1", "2", "3"]),
        own("own-several", ["Mass|Edema", "No Finding", "Edema"]),
        chexpert(),
        nih(),
        pad(),
        mimic(),
        covidx(),
        pets(),
    )
}
