"""Malformed inputs, made by a seeded generator: each ends in the right answer, or in an error that names file and row.

Every mutation knows what must come out: `Same` rows as of the good input, `LeftOut` images (counted and named in the
notes), or `Refused` with the file and, in tables, the row.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import SAME, WORLDS, Anything, LeftOut, Outcome, Refused, Rng, Sheet, World, judge, judge_all

from fastxfer.errors import DataError
from fastxfer.targets import Target, add_target, load_target, padchest

SEEDS = 4


# ---- mutations of any table ----------------------------------------------------------------------------------------

TableMutation = Callable[[Rng, Sheet], tuple[bytes, Outcome]]


def spelling(change: Callable[[Rng, Sheet], str]) -> TableMutation:
    return lambda rng, sheet: (change(rng, sheet).encode(), SAME)


def shuffled_columns(rng: Rng, sheet: Sheet) -> str:
    order = rng.permutation(len(sheet.columns))
    moved = Sheet(
        sheet.file, [sheet.columns[j] for j in order], [[row[j] for j in order] for row in sheet.rows], [], ""
    )
    return moved.text()


def blank_lines(rng: Rng, sheet: Sheet) -> str:
    lines = sheet.text().splitlines()
    lines.insert(int(rng.integers(len(lines) + 1)), rng.choice(["", "  ", "," * (len(sheet.columns) - 1)]))
    return "\n".join(lines) + "\n"


def bad_bytes(bad: bytes) -> TableMutation:
    def mutate(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
        lines = sheet.text().encode().split(b"\n")
        row = int(rng.integers(1, len(lines) - 1))
        at = int(rng.integers(len(lines[row]) + 1))
        lines[row] = lines[row][:at] + bad + lines[row][at:]
        return b"\n".join(lines), Refused(sheet.file, row + 1)

    return mutate


def bad_row(change: Callable[[Rng, Sheet, list[str]], list[str] | None]) -> TableMutation:
    """Change the cells of one row, which is then refused by its number."""

    def mutate(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
        row = int(rng.integers(len(sheet.rows)))
        rows = [list(cells) for cells in sheet.rows]
        rows[row] = change(rng, sheet, rows[row])
        return sheet.text(rows).encode(), Refused(sheet.file, row + 2)

    return mutate


def inserted(rng: Rng, sheet: Sheet, cells: list[str]) -> list[str]:
    at = int(rng.integers(len(cells)))
    return [*cells[:at], str(rng.choice(["", "x"])), *cells[at:]]


def removed(rng: Rng, sheet: Sheet, cells: list[str]) -> list[str]:
    at = int(rng.integers(len(cells)))
    return cells[:at] + cells[at + 1 :]


def with_key(make: Callable[[str], str]) -> TableMutation:
    def change(rng: Rng, sheet: Sheet, cells: list[str]) -> list[str]:
        j = sheet.columns.index(sheet.key)
        return [*cells[:j], make(cells[j]), *cells[j + 1 :]]

    return bad_row(change)


def cut_short(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
    lines = sheet.text().splitlines()
    row = int(rng.integers(1, len(lines)))
    whole = lines[row]
    at = int(rng.integers(1, max(2, whole.split('"')[0].rfind(","))))
    return "\n".join([*lines[:row], whole[:at]]).encode(), Refused(sheet.file, row + 1)


def twice(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
    row = sheet.rows[int(rng.integers(len(sheet.rows)))]
    return sheet.text([*sheet.rows, row]).encode(), Refused(sheet.file, len(sheet.rows) + 2)


def header(change: Callable[[list[str], int], list[str]]) -> TableMutation:
    def mutate(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
        columns = change(list(sheet.columns), sheet.columns.index(str(rng.choice(sheet.needed))))
        return Sheet(sheet.file, columns, sheet.rows, [], "").text().encode(), Refused(sheet.file)

    return mutate


def open_quote(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
    lines = sheet.text().splitlines()
    row = len(lines) - 1 - int(rng.integers(2))
    lines[row] = '"' + lines[row].replace('"', "")
    return "\n".join(lines).encode(), Refused(sheet.file, row + 1)


def inner_quote(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
    lines = sheet.text().splitlines()
    row = int(rng.integers(1, len(lines)))
    lines[row] = '"x"y' + lines[row]
    return "\n".join(lines).encode(), Refused(sheet.file, row + 1)


def swallowed_rows(rng: Rng, sheet: Sheet) -> tuple[bytes, Outcome]:
    """A quote opens a cell in one row and closes one of the same column some rows below: all between are one cell."""
    rows = [[cell.replace(",", "").replace("'", "") for cell in cells] for cells in sheet.rows]
    first = int(rng.integers(len(rows) - 4))
    last, j = first + int(rng.integers(1, 4)), int(rng.integers(len(sheet.columns)))
    rows[first][j], rows[last][j] = '"' + rows[first][j], rows[last][j] + '"'
    return "\n".join(",".join(cells) for cells in [sheet.columns, *rows]).encode(), Refused(sheet.file, first + 2)


TABLE_MUTATIONS: dict[str, TableMutation] = {
    "byte order mark": spelling(lambda rng, sheet: "\ufeff" + sheet.text()),
    "CRLF": spelling(lambda rng, sheet: sheet.text().replace("\n", "\r\n")),
    "CR": spelling(lambda rng, sheet: sheet.text().replace("\n", "\r")),
    "no last line end": spelling(lambda rng, sheet: sheet.text().rstrip("\n")),
    "all quoted": spelling(lambda rng, sheet: sheet.text(quoting=csv.QUOTE_ALL)),
    "semicolons": spelling(lambda rng, sheet: sheet.text(delimiter=";")),
    "tabs": spelling(lambda rng, sheet: "\n" * int(rng.integers(2)) + sheet.text(delimiter="\t")),
    "blank lines": spelling(blank_lines),
    "blanks around cells": spelling(lambda rng, sheet: sheet.text([[f" {c}\t" for c in row] for row in sheet.rows])),
    "columns moved with their names": spelling(shuffled_columns),
    "rows in another order": spelling(lambda rng, sheet: sheet.text([sheet.rows[i] for i in rng.permutation(len(sheet.rows))])),
    "all rows end in an empty cell": spelling(lambda rng, sheet: sheet.text([[*row, ""] for row in sheet.rows])),
    "Latin-1": bad_bytes(b"\xe4"),
    "NUL": bad_bytes(b"\0"),
    "UTF-16": lambda rng, sheet: (sheet.text().encode("utf-16"), Refused(sheet.file)),
    "UTF-16 without mark": lambda rng, sheet: (sheet.text().encode("utf-16-le"), Refused(sheet.file, 1)),
    "zero bytes": lambda rng, sheet: (b"\n" * int(rng.integers(2)), Refused(sheet.file)),
    "header only": lambda rng, sheet: (sheet.text().split("\n")[0].encode(), Refused(sheet.file)),
    "other bytes": lambda rng, sheet: (b"\x89" + rng.bytes(300), Refused(sheet.file, 1)),
    "cut short": cut_short,
    "row twice": twice,
    "cell too many": bad_row(inserted),
    "cell too few": bad_row(removed),
    "column missing": header(lambda columns, j: [*columns[:j], f"old {columns[j]}", *columns[j + 1 :]]),
    "column twice": header(lambda columns, j: [*columns[:j], columns[j - 1], *columns[j + 1 :]]),
    "no header": lambda rng, sheet: (sheet.text().split("\n", 1)[1].encode(), Refused(sheet.file)),
    "quote left open": open_quote,
    "quote inside": inner_quote,
    "quotes over rows": swallowed_rows,
    "empty key": with_key(lambda cell: ""),
}  # fmt: skip
PATH_MUTATIONS: dict[str, TableMutation] = {
    "absolute path": with_key(lambda cell: f"/etc/{cell}"),
    "path with ..": with_key(lambda cell: f"../../../{cell}"),
    "path with hidden ..": with_key(lambda cell: f"{cell}/../../../../../../{cell}"),
}


def table_cases(kind: str) -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
    mutate = (TABLE_MUTATIONS | PATH_MUTATIONS)[kind]
    for world in WORLDS.values():
        for sheet in world.sheets:
            for seed in range(SEEDS if sheet.paths or kind in TABLE_MUTATIONS else 0):
                content, wanted = mutate(np.random.default_rng([seed, len(sheet.file)]), sheet)
                yield world, {sheet.file: content}, wanted


@pytest.mark.parametrize("kind", [*TABLE_MUTATIONS, *PATH_MUTATIONS])
def test_tables(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    judge_all(table_cases(kind), tmp_path, good)


# ---- cells ---------------------------------------------------------------------------------------------------------

MISSING = ["nan", "NaN", "", " ", "None", "null", "#N/A"]
REPORTS = ["mimic-cxr-2.0.0-chexpert.csv", "train.csv", "valid.csv"]
ABSENT = [*MISSING[:4], "x", "1.5"]
# kind -> (world, tables, column, cells that are refused by their row)
BAD_CELLS: dict[str, tuple[str, list[str], str, list[str]]] = {
    "own label": ("own", ["labels.csv"], "label", MISSING),
    "own label, a number": ("own-numbers", ["labels.csv"], "label", ["1.0", "2.00", "3.", *MISSING]),
    "own labels": ("own-several", ["labels.csv"], "label", ["Mass|", "|Mass", "Mass||Edema", "nan|Mass", "No Finding|Mass"]),
    "own split": ("own", ["labels.csv"], "split", [*MISSING, "holdout", "1", "Doe Jane 501"]),
    "own path": ("own", ["labels.csv"], "path", ["nan", "a", ".", "a/", "a/img_00.PNG", "a\\img_00.png", "x" * 300, "~", "a/é.png", "a/x\ny.png", "../\n.png", "\x1b[2J.png"]),
    "CheXpert label": ("chexpert", REPORTS[1:], "Edema", ["nan", "2", "yes", "+1", "1\n0", "0.5", "--1", "1.0.0"]),
    "CheXpert path": ("chexpert", REPORTS[1:], "Path", ["nan", "x.jpg", "train/study1/x.jpg", "patient00001/x.jpg", "//a"]),
    "MIMIC-CXR label": ("mimic-cxr", REPORTS[:1], "Edema", ["nan", "2", "yes", "+1", "1,0", "0.5"]),
    "MIMIC-CXR split": ("mimic-cxr", ["mimic-cxr-2.0.0-split.csv"], "split", ["nan", "", "val", "Train", "1", "10000033"]),
    "MIMIC-CXR subject": ("mimic-cxr", [f"mimic-cxr-2.0.0-{t}.csv" for t in ("metadata", "split", "chexpert")], "subject_id",
                          [*ABSENT, "p10000032", "10000032.0"]),
    "NIH finding": ("nih14", ["Data_Entry_2017_v2020.csv"], "Finding Labels", [*ABSENT, "Mass|", "Mass|mass", "Effusion Mass", "7"]),
    "NIH patient": ("nih14", ["Data_Entry_2017_v2020.csv"], "Patient ID", [*ABSENT, "1.0", "-1", "99"]),
    "PadChest patient": ("padchest", [padchest.TABLE], "PatientID", ["", "nan", " "]),
}  # fmt: skip
# kind -> (world, table, column, how all cells are spelled): the same rows
SPELLINGS: dict[str, tuple[str, str, str, Callable[[str], str]]] = {
    "1 for 1.0": ("chexpert", "train.csv", "Edema", lambda cell: cell.removesuffix(".0")),
    " 1 for 1.0": ("mimic-cxr", REPORTS[0], "Edema", lambda cell: f" {cell.removesuffix('.0')} "),
    "ages with fractions": ("chexpert", "train.csv", "Age", lambda cell: f"{cell}.0"),
    "ages with years": ("nih14", "Data_Entry_2017_v2020.csv", "Patient Age", lambda cell: f"{int(cell):03}Y"),
    "ages with a fraction": ("nih14", "Data_Entry_2017_v2020.csv", "Patient Age", lambda cell: f"{cell}.0"),
    "labels with blanks": ("own-numbers", "labels.csv", "label", lambda cell: f" {cell}"),
    "words for splits": ("own", "labels.csv", "split", lambda cell: {"train": "Training", "test": "TEST"}[cell]),
    "paths with dots": ("own", "labels.csv", "path", lambda cell: f"./x/../{cell}"),
    "a renamed release": ("chexpert", "train.csv", "Path", lambda cell: cell.replace("v1.0", "v1.0-small")),
    "birth without a fraction": ("padchest", padchest.TABLE, "PatientBirth", lambda cell: cell.removesuffix(".0")),
}


# Names of columns that changed places while their cells stayed: (world, table, one, the other)
SWAPS = [
    *(("own", "labels.csv", "path", other) for other in ("label", "split", "patient")),
    *(("own", "labels.csv", "split", other) for other in ("label", "patient")),
    *(("chexpert", "train.csv", "Path", other) for other in ("Sex", "Age", "AP/PA", "Edema")),
    *(("chexpert", "valid.csv", "Edema", other) for other in ("Sex", "Age", "Frontal/Lateral", "AP/PA")),
    *(("nih14", "Data_Entry_2017_v2020.csv", "Image Index", c) for c in ("Finding Labels", "Patient ID", "Patient Age")),
    *(("nih14", "Data_Entry_2017_v2020.csv", "Patient ID", c) for c in ("Finding Labels", "Follow-up #", "Patient Age")),
    *(("padchest", padchest.TABLE, "ImageID", other) for other in ("PatientID", "StudyID", "Projection", "Labels")),
    *(("padchest", padchest.TABLE, "Projection", other) for other in ("PatientID", "ImageDir", "Labels")),
    *(("mimic-cxr", f"mimic-cxr-2.0.0-{t}.csv", "subject_id", "study_id") for t in ("metadata", "split", "chexpert")),
    *(("mimic-cxr", f"mimic-cxr-2.0.0-{t}.csv", "subject_id", "dicom_id") for t in ("metadata", "split")),
    ("mimic-cxr", "mimic-cxr-2.0.0-metadata.csv", "ViewPosition", "subject_id"),
    ("mimic-cxr", "mimic-cxr-2.0.0-split.csv", "split", "subject_id"),
    ("mimic-cxr", "mimic-cxr-2.0.0-chexpert.csv", "Edema", "subject_id"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "one", "other"), SWAPS)
def test_columns_that_changed_places(
    name: str, file: str, one: str, other: str, tmp_path: Path, good: dict[str, Target]
) -> None:
    sheet = next(sheet for sheet in WORLDS[name].sheets if sheet.file == file)
    swapped = [{one: other, other: one}.get(column, column) for column in sheet.columns]
    content = Sheet(file, swapped, sheet.rows, [], "").text().encode()
    judge_all(iter([(WORLDS[name], {file: content}, Refused(file))]), tmp_path, good)


@pytest.mark.parametrize("kind", BAD_CELLS)
def test_cells_are_refused_by_row(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    name, files, column, cells = BAD_CELLS[kind]
    rng = np.random.default_rng(0)

    def cases() -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
        for sheet in (sheet for sheet in WORLDS[name].sheets if sheet.file in files):
            for cell in cells:
                for row in rng.choice(len(sheet.rows) - 4, 2, replace=False) + 4:
                    yield (
                        WORLDS[name],
                        {sheet.file: sheet.put(row, column, cell).encode()},
                        Refused(sheet.file, int(row) + 2),
                    )

    judge_all(cases(), tmp_path, good)


@pytest.mark.parametrize("kind", SPELLINGS)
def test_cells_in_another_spelling(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    name, file, column, spell = SPELLINGS[kind]
    sheet = next(sheet for sheet in WORLDS[name].sheets if sheet.file == file)
    j = sheet.columns.index(column)
    rows = [[*row[:j], spell(row[j]), *row[j + 1 :]] for row in sheet.rows]
    judge_all(iter([(WORLDS[name], {file: sheet.text(rows).encode()}, SAME)]), tmp_path, good)


def test_what_is_left_out_is_counted_and_listed(tmp_path: Path, good: dict[str, Target]) -> None:
    def cases() -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
        meta, split, labels = WORLDS["mimic-cxr"].sheets
        ids = {row[0]: f"files/p{row[1][:2]}/p{row[1]}/s{row[2]}/{row[0]}.jpg" for row in meta.rows}
        for i, row in enumerate(meta.rows):
            for table in (split, labels):
                rest = table.text(table.rows[:i] + table.rows[i + 1 :])
                yield WORLDS["mimic-cxr"], {table.file: rest.encode()}, LeftOut((ids[row[0]],))
        (nih_table,), nih_lists = WORLDS["nih14"].sheets, WORLDS["nih14"].lists
        for row in nih_table.rows:
            lists = {file: text.replace(f"{row[0]}\n", "").encode() for file, text in nih_lists.items()}
            yield WORLDS["nih14"], lists, LeftOut((f"images/{row[0]}",))
        for i, row in enumerate(nih_table.rows):
            rest = nih_table.text(nih_table.rows[:i] + nih_table.rows[i + 1 :])
            yield WORLDS["nih14"], {nih_table.file: rest.encode()}, LeftOut((f"images/{row[0]}",))

    judge_all(cases(), tmp_path, good)


@pytest.mark.parametrize(
    ("column", "cell"), [("Projection", "UNK"), ("Projection", ""), ("Labels", ""), ("Labels", "nan")]
)
def test_padchest_rows_without_a_use_are_listed(column: str, cell: str, tmp_path: Path) -> None:
    world = WORLDS["padchest"]
    (sheet,) = world.sheets
    for row, cells in enumerate(sheet.rows):
        world.write(tmp_path, {sheet.file: sheet.put(row, column, cell).encode()})
        target = world.read(tmp_path)  # its patients are drawn anew, so splits may differ
        assert target.n_images == len(sheet.rows) - 1
        assert f"1 rows {'of views' if column == 'Projection' else 'without labels'}" in target.notes[0]
        assert f"({cells[0]})" in target.notes[0]


@pytest.mark.parametrize("kind", ["cut short", "bits turned", "no gzip", "zero bytes"])
def test_packed_tables(kind: str, tmp_path: Path, good: dict[str, Target]) -> None:
    def cases() -> Iterator[tuple[World, dict[str, bytes], Outcome]]:
        for sheet in WORLDS["mimic-cxr"].sheets:
            packed = gzip.compress(sheet.text().encode(), mtime=0)
            for seed in range(5):
                at = int(np.random.default_rng(seed).integers(20, len(packed) - 10))
                turned = packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :]
                content = {"cut short": packed[:at], "bits turned": turned, "no gzip": sheet.text().encode()}.get(
                    kind, b""
                )
                yield WORLDS["mimic-cxr"], {f"{sheet.file}.gz": content}, Refused(f"{sheet.file}.gz")
            (tmp_path / "mimic-cxr" / f"{sheet.file}.gz").unlink()

    judge_all(cases(), tmp_path, good)


def test_images_of_a_table_that_are_none(tmp_path: Path, good: dict[str, Target]) -> None:
    world = WORLDS["own"]
    for row, (path, *_) in enumerate(world.sheets[0].rows):
        folder = world.write(tmp_path, {})
        (folder / path).unlink()
        if row % 3 == 1:
            (folder / path).mkdir()
        elif row % 3 == 2:
            (folder / path).symlink_to(tmp_path / "outside.png")
        with pytest.raises(DataError, match=rf"labels\.csv, row {row + 2}: '{path}'"):
            world.read(tmp_path)
        (folder / path).rmdir() if row % 3 == 1 else (folder / path).unlink(missing_ok=True)


def test_what_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for source in ("/dev/null", tmp_path / "pipe.csv"):
        with pytest.raises(DataError, match=f"{source}: neither a folder nor a CSV file"):
            add_target(source, "mine", tmp_path)


def test_soft_labels_of_one_image_in_two_rows(tmp_path: Path) -> None:
    WORLDS["chexpert"].write(tmp_path, {})
    path = "train/patient00001/study1/view1_frontal.jpg"
    (tmp_path / "soft.csv").write_text(f"path,Edema\n{path},0.5\nx,1\n{path},0.6\n")
    with pytest.raises(DataError, match=rf"soft\.csv, row 4: '{path}' is listed twice, first in row 2"):
        load_target("chexpert", tmp_path, labels_only=True, policy="self-trained", soft_labels=tmp_path / "soft.csv")


def test_patients_called_nan_are_unknown(tmp_path: Path) -> None:
    (sheet,), world = WORLDS["own"].sheets, WORLDS["own"]
    for word in ("nan", "None", "#N/A", ""):
        rows = [[*row[:3], word if i < 6 else row[3]] for i, row in enumerate(sheet.rows)]
        world.write(tmp_path, {sheet.file: sheet.text(rows).encode()})
        target = world.read(tmp_path)
        assert target.patient is not None
        assert len(np.unique(target.patient)) == 6 + 5
        assert "6 images without a patient: each counts as a patient of its own" in target.notes


# ---- anything ------------------------------------------------------------------------------------------------------

PIECES = [
    p.encode()
    for p in (
        '"',
        ",",
        ";",
        "\n",
        "\r",
        "\0",
        "|",
        "/",
        "..",
        "nan",
        "-1",
        "²",
        "٣",
        "\u2028",
        "\x85",
        "\ufeff",
        "9" * 400,
    )
]


@pytest.mark.parametrize("name", WORLDS)
def test_pieces_put_in_and_taken_out_anywhere(name: str, tmp_path: Path, good: dict[str, Target]) -> None:
    world, faults = WORLDS[name], []
    files = {sheet.file: sheet.text() for sheet in world.sheets} | world.lists
    for seed in range(40):
        rng = np.random.default_rng(seed)
        file = str(rng.choice(list(files)))
        content = bytearray(files[file].encode())
        for at in rng.integers(len(content), size=2):
            content[at : at + int(rng.integers(8))] = rng.choice([b"", b"\xff", *PIECES])
        if fault := judge(world, tmp_path, {file: bytes(content)}, Anything(file), good[name]):
            faults.append(f"seed {seed}, {file}: {fault}")
    assert not faults, "\n".join(faults)


def test_there_are_a_thousand_cases() -> None:
    assert sum(len(list(table_cases(kind))) for kind in [*TABLE_MUTATIONS, *PATH_MUTATIONS]) >= 1000
