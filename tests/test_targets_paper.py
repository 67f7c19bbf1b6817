"""The paper's targets, exact to the image: counts from real label tables (inside torchxrayvision) and real file names."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from layouts import (
    flowers_tables,
    mimic_folder,
    touch,
)

from benchmarks.published import OFFICIAL_SPLITS
from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.targets import (
    Target,
    chexpert,
    csvfile,
    describe_target,
    labeltables,
    load_target,
    padchest,
)
from fastxfer.targets.merge import merge_targets
from fastxfer.targets.policies import DEVICES, LABELS

# A folder without data: labels alone come from the wheel of torchxrayvision.
NOWHERE = Path("/nonexistent/fastxfer-data")


def show(*words: str) -> dict[str, Any]:
    """What `targets show … --labels-only --json` prints, without any data folder."""
    line = ["targets", "show", *words, "--labels-only", "--json", "--data-root", str(NOWHERE)]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@functools.cache
def of_the_wheel(name: str) -> Target:
    return load_target(name, NOWHERE, labels_only=True)


@pytest.fixture(scope="module", autouse=True)
def _read_large_tables_once() -> Iterator[None]:
    """The tables of the wheel take seconds each; readers see the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(csvfile.read_csv)
        for module in (chexpert, padchest):
            patch.setattr(module, "read_csv", lambda path, columns: once(path, columns=columns))
        yield
    of_the_wheel.cache_clear()


# ---- the paper's counts, from the label tables inside torchxrayvision ---------------------------------------------

# train and test images with exactly one label, paper.md 2.4
PADCHEST_CL = {
    "Air Trapping": (2376, 279),
    "Aortic Atheromatosis": (304, 36),
    "Aortic Elongation": (2867, 355),
    "Atelectasis": (2359, 273),
    "Bronchiectasis": (693, 89),
    "Cardiomegaly": (3481, 374),
    "Consolidation": (0, 0),
    "Costophrenic Angle Blunting": (1416, 161),
    "Edema": (156, 19),
    "Effusion": (2028, 231),
    "Emphysema": (495, 63),
    "Fibrosis": (207, 20),
    "Flattened Diaphragm": (130, 17),
    "Fracture": (1557, 180),
    "Granuloma": (1289, 132),
    "Hemidiaphragm Elevation": (796, 98),
    "Hernia": (741, 76),
    "Hilar Enlargement": (1943, 228),
    "Infiltration": (4182, 454),
    "Mass": (457, 51),
    "Nodule": (2329, 253),
    "Pleural_Thickening": (1289, 131),
    "Pneumonia": (1215, 120),
    "Pneumothorax": (240, 18),
    "Scoliosis": (3801, 386),
    "Support Devices": (836, 82),
    "Tuberculosis": (200, 27),
}


def test_padchest_cl_is_the_papers_to_the_image() -> None:
    shown = show("padchest-cl")
    assert shown["splits"] == OFFICIAL_SPLITS["padchest-cl"]
    counts = {c: tuple(shown["labels"][s][c]["positive"] for s in ("train", "test")) for c in shown["classes"]}
    assert counts == PADCHEST_CL
    assert shown["labels"]["test"]["Air Trapping"] == {"positive": 279, "negative": 4153 - 279, "unknown": 0}
    assert shown["root"] is None
    assert not any("isn't the 160K table" in note for note in shown["notes"])
    # Every row that isn't in it is listed: of 160,861, 19 of other views, 103 without labels, 30 broken files.
    assert [gone["count"] for gone in shown["left_out"]] == [19, 103, 30, 160_709 - 41_540]
    assert len(set(shown["left_out"][-1]["paths"])) == 160_709 - 41_540


def test_padchest_paper_and_who_is_on_both_sides() -> None:
    paper = of_the_wheel("padchest-paper")
    assert describe_target(paper)["splits"] == OFFICIAL_SPLITS["padchest-paper"]
    test = paper.split == "test"
    assert paper.patient is not None
    assert np.isin(paper.patient[test], paper.patient[~test]).mean() == pytest.approx(0.803, abs=5e-4)
    # `padchest` has the same images, split by patient.
    parts = padchest._patient_split(paper.patient, seed=0)
    assert not np.isin(paper.patient[parts == "test"], paper.patient[parts == "train"]).any()
    assert ((parts == "train").sum(), (parts == "test").sum()) == (144_725, 15_984)  # as the documentation says


def test_chexpert_counts() -> None:
    shown = show("chexpert")
    assert shown["splits"] == OFFICIAL_SPLITS["chexpert"]
    assert shown["views"] == {"AP": 161_590, "PA": 29_420}
    (lateral,) = shown["left_out"]
    assert (lateral["count"], lateral["rows"][0], len(set(lateral["rows"]))) == (
        223_414 - 191_010,
        5,
        223_414 - 191_010,
    )
    # The five views of the paper's four-set source, where lateral films come in.
    five = load_target("chexpert-paper", NOWHERE, labels_only=True, views=padchest.VIEWS)
    assert describe_target(five)["splits"] == {"train": 223_397}
    assert five.view is not None
    frontal = five.labels[np.isin(five.view, ["AP", "PA"])]
    assert np.isfinite(frontal).mean() == pytest.approx(0.307, abs=5e-4)
    # What "No Finding" costs in the paper's loader: 7,420 of 107,167 films with a device.
    kept = shown["labels"]["train"][DEVICES]["positive"]
    assert (kept, kept - int(np.nansum(frontal[:, LABELS.index(DEVICES)]))) == (107_167, 7_420)


def test_nih14_counts() -> None:
    target = of_the_wheel("nih14")
    shown = describe_target(target)
    assert shown["splits"] == OFFICIAL_SPLITS["nih14"]
    assert shown["views"] == {"AP": 44_810, "PA": 67_310}
    assert shown["patients"] == 30_805
    assert (target.exactly_one() >= 0).sum() == 30_963


def test_the_papers_four_merges_have_13_13_7_and_7_labels(tmp_path: Path) -> None:
    """CheXpert, with MIMIC-CXR, with NIH, with PadChest (paper.md 1.4); of MIMIC-CXR, which nobody may pass on, a miniature."""
    words = ["targets", "show", "mimic-cxr-paper+chexpert-paper", "--labels-only", "--data-root", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "target 'mimic-cxr-paper': there is no folder" in result.output
    mimic_folder(tmp_path / "mimic-cxr")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "sources: chexpert-paper 191,010, mimic-cxr-paper 3" in result.output
    assert "intersection of labels: 13 of 13; 1,984 images have none known" in result.output

    names = ("chexpert-paper", "mimic-cxr-paper", "nih14", "padchest-paper")
    sets = [load_target(names[1], tmp_path, labels_only=True) if n == names[1] else of_the_wheel(n) for n in names]
    three, four = (merge_targets(sets[:n], "+".join(names[:n])) for n in (3, 4))
    seven = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Pneumonia", "Pneumothorax")
    assert sets[0].class_names == sets[1].class_names == LABELS
    assert three.class_names == four.class_names == seven
    assert (len(LABELS), three.n_images, four.n_images) == (13, 303_133, 463_842)
    # Films of CheXpert of which no label is known: the intersection costs more of them.
    masked = [np.isnan(m.labels[:191_010]).all(axis=1).sum() for m in (sets[0], three, four)]
    assert masked == [1_984, 14_774, 14_774]


def test_labels_only_imports_no_torch_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from fastxfer.targets import load_target;"
        f"print(load_target('nih14', {str(NOWHERE)!r}, labels_only=True).n_images,"
        " {'torch', 'torchxrayvision'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "112120 set()\n"
    monkeypatch.setattr(labeltables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"nih14': no label table in its folder, .*pip install 'fastxfer\[xray\]'"):
        load_target("nih14", NOWHERE, labels_only=True)
    with pytest.raises(DataError, match=r"no folder .*/padchest; expected there: PADCHEST_chest.*BIMCV"):
        load_target("padchest-cl", NOWHERE)


# ---- tuberculosis -------------------------------------------------------------------------------------------------

# Numbers of the Montgomery set's images, as published with it.
MONTGOMERY_NORMAL = (
    "1 2 3 4 5 6 8 11 13 15 16 17 19 20 21 22 23 24 26 27 28 29 30 31 35 38 40 41 42 43 44 45 46 47 48 49 51 52 53 54 "
    "55 56 57 58 59 60 61 62 63 64 68 69 70 71 72 74 75 77 79 80 81 82 83 84 85 86 87 89 90 91 92 94 95 96 97 99 100 "
    "101 102 103"
)
MONTGOMERY_TB = (
    "104 108 113 117 126 140 141 142 144 150 162 166 170 173 182 188 194 195 196 203 213 218 223 228 243 251 253 254 "
    "255 258 264 266 275 282 289 294 301 309 311 313 316 331 334 338 348 350 352 354 362 367 369 372 375 383 387 390 "
    "393 399"
)


@pytest.fixture(scope="module")
def tuberculosis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 662 + 138 files by their real names, empty; Montgomery's masks bear the names of its images."""
    root = tmp_path_factory.mktemp("tb")
    china = [f"CHNCXR_{i:04}_{int(i > 326)}.png" for i in range(1, 663)]
    usa = [f"MCUCXR_{int(i):04}_0.png" for i in MONTGOMERY_NORMAL.split()]
    usa += [f"MCUCXR_{int(i):04}_1.png" for i in MONTGOMERY_TB.split()]
    touch(root / "tuberculosis", *(f"ChinaSet_AllFiles/CXR_png/{file}" for file in china))
    touch(
        root / "tuberculosis/MontgomerySet",
        *(f"{f}/{file}" for file in usa for f in ("CXR_png", "ManualMask/leftMask")),
    )
    return root


def test_tuberculosis_paper_is_the_papers_to_the_image(tuberculosis: Path) -> None:
    target = load_target("tuberculosis-paper", tuberculosis)
    shown = describe_target(target)
    assert shown["splits"] == {"train": 679, "test": 121}
    counts = {name: count["positive"] for name, count in shown["labels"]["test"].items()}
    assert counts == {"normal": 58, "tuberculosis": 63}
    assert shown["sources"] == {"montgomery": 138, "shenzhen": 662}
    assert not any("where the data set has" in note for note in target.notes)


def test_tuberculosis_stratified(tuberculosis: Path) -> None:
    target = load_target("tuberculosis", tuberculosis)
    assert target.source is not None
    for source, label, total in (
        ("shenzhen", 0, 326),
        ("shenzhen", 1, 336),
        ("montgomery", 0, 80),
        ("montgomery", 1, 58),
    ):
        rows = (target.source == source) & (target.labels == label)
        assert rows.sum() == total
        assert abs((target.split[rows] == "test").sum() - 0.15 * total) < 1
    again = load_target("tuberculosis", tuberculosis, split_seed=1)
    assert not np.array_equal(again.split, target.split)


def test_tuberculosis_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no folder .*/tuberculosis; expected there: .*MontgomerySet/CXR_png.*nlm\.nih"
    ):
        load_target("tuberculosis-paper", tmp_path)
    touch(tmp_path / "tuberculosis", "a/CHNCXR_0001_0.png")
    with pytest.raises(DataError, match=r"no MCUCXR_\*\.png below .*tuberculosis; expected the 138 of montgomery"):
        load_target("tuberculosis", tmp_path)
    touch(tmp_path / "tuberculosis", "b/MCUCXR_0001_0.png")
    assert load_target("tuberculosis", tmp_path).notes[0] == "1 images of shenzhen where the data set has 662"
    with pytest.raises(UsageError, match="split 'random' is not one of stratified, paper"):
        load_target("tuberculosis", tmp_path, split="random")
    touch(tmp_path / "tuberculosis", "b/CHNCXR_0001_0.png")
    with pytest.raises(DataError, match=r"'CHNCXR_0001_0\.png' lies in two folders, a/CHNCXR_0001_0\.png and b/"):
        load_target("tuberculosis", tmp_path)
    (tmp_path / "tuberculosis/b/CHNCXR_0001_0.png").rename(tmp_path / "tuberculosis/b/CHNCXR_0002_7.png")
    with pytest.raises(DataError, match=r"CHNCXR_0002_7\.png: no label; expected a name like CHNCXR_0001_0\.png"):
        load_target("tuberculosis", tmp_path)


def test_flowers_and_the_papers_swapped_split(tmp_path: Path) -> None:
    flowers_tables(tmp_path / "flowers102", 1020, 1020, 6149)
    official = load_target("flowers102", tmp_path, labels_only=True)
    assert describe_target(official)["splits"] == {"train": 1020, "val": 1020, "test": 6149}
    paper = load_target("flowers102-paper", tmp_path, labels_only=True)
    assert describe_target(paper)["splits"] == {"train": 6149, "test": 2040}
    assert len(paper.class_names) == 102
    number = int(str(official.image_id[7])[-9:-4])
    assert official.labels[7] == (number - 1) % 102
    where = dict(zip(official.image_id, official.split, strict=True))
    assert {(where[i], s) for i, s in zip(paper.image_id, paper.split, strict=True)} == {
        ("train", "test"),
        ("val", "test"),
        ("test", "train"),
    }
