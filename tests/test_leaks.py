"""Near copies, shared patients, shortcuts: what `targets check` finds beyond equal files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fastxfer.cli import main
from fastxfer.images import load_image
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target, add_target, check_target, check_targets, list_targets
from fastxfer.targets.copies import find_neighbours
from fastxfer.targets.findings import load_findings
from fastxfer.targets.leaks import in_both
from fastxfer.targets.leaks import test_leaks as find_test_leaks
from fastxfer.targets.likeness import ALIKE, LENGTH, alike, likeness
from fastxfer.targets.looks import look_at
from fastxfer.targets.shortcuts import find_shortcuts


def cloud(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture with structure, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="fastxfer")


def write_table(root: Path, rows: list[str], columns: str = "path,label,split") -> Path:
    (root / "labels.csv").write_text("\n".join([columns, *rows]) + "\n")
    return root


# ---- the perceptual hash -------------------------------------------------------------------------------------------


def jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return Image.open(stream).convert("RGB")


CHANGES = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "three quarters": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "another aspect": lambda image: image.resize((100, 50)),
    "jpeg": jpeg,
    "1024 to 224": lambda image: image.resize((1024, 1024)).resize((224, 224)),
    "darker": lambda image: image.point(lambda v: v // 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_alike_and_another_picture_is_not(change: str) -> None:
    hashes = np.stack([likeness(cloud(seed)) for seed in range(20)])
    copies = np.stack([likeness(CHANGES[change](cloud(seed))) for seed in range(20)])
    assert hashes.shape == (20, LENGTH)
    np.testing.assert_allclose(np.linalg.norm(hashes, axis=1), 1, atol=1e-6)
    products = hashes @ copies.T
    assert np.diag(products).min() >= ALIKE
    assert products[~np.eye(20, dtype=bool)].max() < 0.7


def test_a_picture_without_structure_is_like_none() -> None:
    assert not likeness(Image.new("RGB", (40, 30), (90, 90, 90))).any()
    assert not likeness(Image.new("RGB", (1, 1), "white")).any()


def test_alike_finds_the_pairs_that_all_products_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastxfer.targets.likeness._TILE", 7)  # several tiles, the last ones cut
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 5)).astype(np.float32) for n in (30, 20))
    for rows in (x, y):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def pairs(*given: np.ndarray) -> set[tuple[int, int]]:
        return {(int(i), int(j)) for a, b, _ in alike(*given, threshold=0.6) for i, j in zip(a, b, strict=True)}

    assert pairs(x) == {(i, j) for i, j in zip(*np.nonzero(x @ x.T >= 0.6), strict=True) if i < j}
    assert pairs(x, y) == set(zip(*np.nonzero(x @ y.T >= 0.6), strict=True))
    assert not list(alike(x[:0]))


@pytest.mark.real
def test_real_xrays_are_told_apart_and_their_copies_found(real: Path) -> None:
    files = sorted((real / "kermany_pneumonia/train/NORMAL").iterdir())[:150]
    hashes = np.stack([likeness(load_image(file)) for file in files])
    found = {(int(i), int(j)) for a, b, _ in alike(hashes) for i, j in zip(a, b, strict=True)}
    assert all(files[i].read_bytes() == files[j].read_bytes() for i, j in found)
    for change in ("half", "three quarters", "jpeg", "1024 to 224"):
        copies = np.stack([likeness(CHANGES[change](load_image(file))) for file in files[:25]])
        assert (np.einsum("id,id->i", hashes[:25], copies) >= ALIKE).all(), change


def test_check_lists_near_copies_and_no_exact_ones_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = tmp_path / "one", tmp_path / "two"
    for seed in range(4):
        cloud(seed).save(one / f"{seed}.png")
    cloud(0).save(one / "same.bmp")
    cloud(1).resize((48, 40)).save(one / "small.png")
    cloud(2).save(two / "recompressed.jpg", quality=75)
    Image.new("RGB", (9, 9)).save(two / "black.png")
    names = ["0.png", "1.png", "2.png", "3.png", "same.bmp", "small.png"]
    splits = ["train", "train", "train", "test", "test", "test"]
    write_table(
        one, [f"{n},{'b' if n in ('small.png', '2.png') else 'a'},{s}" for n, s in zip(names, splits, strict=True)]
    )
    write_table(two, ["recompressed.jpg,a,train", "black.png,b,test"])
    targets = [add_target(folder, folder.name, tmp_path / "data") for folder in (one, two)]
    report = check_targets(targets)
    assert [[i["image"] for i in g["images"]] for g in report["duplicate_groups"]] == [["0.png", "same.bmp"]]
    found = {tuple(i["image"] for i in pair["images"]): pair for pair in report["near_duplicates"]}
    assert set(found) == {("1.png", "small.png"), ("2.png", "recompressed.jpg")}
    assert report["n_near_duplicates"] == 2
    inside, between = found["1.png", "small.png"], found["2.png", "recompressed.jpg"]
    assert (inside["across_splits"], inside["across_targets"], inside["labels_differ"]) == (True, False, True)
    assert (between["across_splits"], between["across_targets"], between["labels_differ"]) == (False, True, False)
    distances = [pair["distance"] for pair in report["near_duplicates"]]
    assert distances == sorted(distances)
    assert all(0 <= d <= 1 - ALIKE for d in distances)
    monkeypatch.setattr("fastxfer.targets.copies.MOST_PAIRS", 1)
    cut = check_targets(targets)
    assert cut["n_near_duplicates"] == 2
    assert cut["near_duplicates"] == report["near_duplicates"][:1]
    assert [(leak["target"], leak["copy"]) for leak in report["leaks"]] == [
        ("one", {"images": ["same.bmp", "small.png"], "share": 2 / 3}),
        ("two", {"images": [], "share": 0.0}),  # its copy is in another target
    ]
    assert check_target(targets[1])["near_duplicates"] == []


# ---- both sides of a split ------------------------------------------------------------------------------------------


def visits() -> Target:
    """Eight images of four patients: p's and q's visits go on into test, q's within one study; one patient is unknown."""
    return Target(
        "visits",
        np.array([f"{i}.png" for i in range(8)]),
        ("a", "b"),
        np.array([0, 1] * 4),
        np.array(["train", "train", "train", "val", "test", "test", "test", "test"]),
        patient=np.array(["p", "q", "", "r", "p", "q", "", "s"]),
        study=np.array(["1", "1", "2", "1", "2", "1", "2", "1"]),
    )


def test_patients_and_studies_on_both_sides_and_their_share_of_test() -> None:
    target = visits()
    count, (entry,) = in_both(target, "patient")
    assert (count, entry["splits"], entry["patients"]) == (2, ["train", "test"], 2)
    assert entry["images"] == {"train": ["0.png", "1.png"], "test": ["4.png", "5.png"]}
    assert entry["share"] == {"train": 2 / 3, "test": 0.5}
    count, entries = in_both(target, "study")  # "1" of p, q, r and s are four; nobody's "2" may be two
    assert (count, [e["studies"] for e in entries]) == (1, [1])
    leaks = find_test_leaks(target, np.zeros(8, bool))
    assert leaks["patient"] == {"images": ["4.png", "5.png"], "share": 0.5}
    assert leaks["study"] == {"images": ["5.png"], "share": 0.25}
    assert leaks["copy"] == {"images": [], "share": 0.0}


def test_what_nobody_knows_is_not_counted() -> None:
    whole = visits()
    target = Target("t", whole.image_id, whole.class_names, whole.labels, whole.split)
    assert in_both(target, "patient") == (0, [])
    leaks = find_test_leaks(target, np.zeros(8, bool))
    assert (leaks["patient"], leaks["study"], leaks["test_images"]) == (None, None, 4)


def test_the_share_of_a_split_drawn_by_image_is_what_chance_gives() -> None:
    """PadChest-Cl's fault in small: a split by image, 73.1 % of whose test images share a patient with train."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(2000), rng.integers(1, 5, 2000))
    n = len(patient)
    split = np.where(rng.random(n) < 0.1, "test", "train")
    target = Target(
        "cl",
        np.array([f"{i}.png" for i in range(n)]),
        ("a", "b"),
        np.arange(n) % 2,
        split,
        patient=patient.astype(str),
    )
    in_train = set(patient[split == "train"])
    expected = np.mean([p in in_train for p in patient[split == "test"]])
    assert find_test_leaks(target, np.zeros(n, bool))["patient"]["share"] == pytest.approx(expected)
    assert 0.5 < expected < 0.9


def test_tables_alone_are_checked_without_images(tmp_path: Path) -> None:
    labels = (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    )
    folder = tmp_path / "data/chexpert"
    folder.mkdir(parents=True)
    for file, name in (("train.csv", "train"), ("valid.csv", "valid")):
        row = f"CheXpert-v1.0/{name}/patient00001/study1/view1_frontal.jpg,Male,50,Frontal,AP,1.0" + "," * 13
        (folder / file).write_text(f"Path,Sex,Age,Frontal/Lateral,AP/PA,{labels}\n{row}\n")
    two_sources(tmp_path / "mixed", lambda source, _: "ab"[source], n=12)
    (tmp_path / "mixed/3.jpg").write_bytes(b"no image")
    words = ("targets", "check", "chexpert", "mixed", "--labels-only", "--data-root", tmp_path / "data")
    report = json.loads(run(*words, "--json").stdout)
    assert report["patients_in_both"] == 1
    assert [leak["patient"]["share"] for leak in report["leaks"]] == [1.0, 0.0]
    assert [leak["copy"] for leak in report["leaks"]] == [None, None]
    assert not {"undecodable", "near_duplicates", "shortcut_auc"} & set(report)
    assert "chexpert, of 1: the same patient 1 (100.0%)" in run(*words).stdout
    assert "--labels-only looks at no image" in run(*words, "--save").stderr


# ---- shortcuts ------------------------------------------------------------------------------------------------------


def two_sources(root: Path, label: Callable[[int, int], str], n: int = 60) -> Target:
    """Clouds from two sources: one's files are JPEGs and large, the other's PNGs and small. label(source, number)."""
    root.mkdir()
    rows = []
    for i in range(n):
        source = i % 2
        name = f"{i}.{('png', 'jpg')[source]}"
        cloud(i, (40, 40) if source else (24, 24)).save(root / name, **({"quality": 95} if source else {}))
        rows.append(f"{name},{label(source, i)},{'test' if i % 5 == 0 else 'train'},p{i}")
    return add_target(write_table(root, rows, "path,label,split,patient"), root.name, root.parent / "data")


def test_a_label_that_is_the_source_is_flagged(tmp_path: Path) -> None:
    report = check_target(two_sources(tmp_path / "mixed", lambda source, _: ("healthy", "ill")[source]))
    (found,) = report["shortcut_auc"]
    assert (found["target"], found["n_images"]) == ("mixed", 60)
    for trait in ("format", "size", "bytes", "all"):
        assert found["auc"][trait]["auc"] > 0.98, trait
        assert found["auc"][trait]["labels"]["ill"]["auc"] > 0.98
    assert found["auc"]["aspect"]["auc"] == 0.5  # all are square
    flagged = {(flag["trait"], flag["label"]) for flag in found["flagged"]}
    assert {("format", None), ("bytes", None), ("size", None), ("all", None)} <= flagged
    assert not {trait for trait, _ in flagged} & {"aspect", "brightness"}


def test_a_shuffled_label_is_not_flagged(tmp_path: Path) -> None:
    drawn = np.random.default_rng(5).permutation(60) % 2
    report = check_target(two_sources(tmp_path / "shuffled", lambda _, i: "ab"[drawn[i]]))
    (found,) = report["shortcut_auc"]
    assert found["flagged"] == []
    assert all(abs(result["auc"] - 0.5) < 0.25 for result in found["auc"].values())


def test_few_images_flag_nothing_however_well_they_are_told_apart(tmp_path: Path) -> None:
    few = check_target(two_sources(tmp_path / "few", lambda source, _: "ab"[source], n=12))["shortcut_auc"][0]
    assert few["flagged"] == []
    fewer = check_target(two_sources(tmp_path / "fewer", lambda source, _: "ab"[source], n=8))["shortcut_auc"][0]
    assert fewer["auc"] == {}


def test_images_of_one_patient_count_once(tmp_path: Path) -> None:
    """Sixty images of six patients, each of one source: as good as six images."""
    target = two_sources(tmp_path / "mixed", lambda source, _: "ab"[source])
    looks = look_at(target)
    one = replace(target, patient=np.array([f"{i % 2}-{i % 6 // 2}" for i in range(60)]))
    assert find_shortcuts(target, looks)["flagged"]
    assert find_shortcuts(one, looks)["auc"] == {}


def test_shortcuts_of_single_labels_and_unknown_ones(tmp_path: Path) -> None:
    target = two_sources(tmp_path / "mixed", lambda source, _: "ab"[source])
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (60, 4)).astype(np.float32)
    labels[:, 1] = np.arange(60) % 2  # the source
    labels[:20, 2] = np.nan
    labels[:, 3] = np.nan
    many = replace(target, class_names=("chance", "source", "partly", "unknown"), labels=labels)
    found = find_shortcuts(many, look_at(target))
    assert set(found["auc"]["format"]["labels"]) == {"chance", "source", "partly"}
    assert [flag["label"] for flag in found["flagged"] if flag["trait"] == "format"] == ["source"]
    assert found["auc"]["format"]["labels"]["source"]["auc"] == 1


@pytest.mark.real
def test_traits_say_nothing_of_nih_labels(real: Path, tmp_path: Path) -> None:
    nih = add_target(real / "nih_sample", "nih", tmp_path)
    found = find_shortcuts(nih, look_at(nih))
    assert found["flagged"] == []
    assert 0.4 < found["auc"]["all"]["auc"] < 0.6


# ---- a backbone's source, and neighbours among embeddings -----------------------------------------------------------


def some_clouds(root: Path, seeds: range) -> Target:
    root.mkdir()
    for seed in seeds:
        cloud(seed).save(root / f"{seed}.png")
    rows = [f"{seed}.png,{'ab'[seed % 2]},{'test' if seed % 4 > 1 else 'train'}" for seed in seeds]
    return add_target(write_table(root, rows), root.name, root.parent / "data")


def test_the_images_that_a_source_contains(tmp_path: Path) -> None:
    target, source = some_clouds(tmp_path / "target", range(6)), some_clouds(tmp_path / "source", range(4, 9))
    cloud(0).resize((50, 40)).save(tmp_path / "source/6.png")  # a smaller copy of the target's 0
    cloud(0).resize((90, 80)).save(tmp_path / "source/7.png")  # a better one
    (tmp_path / "target/5.png").write_bytes(b"no image")
    report = check_targets([target], source=source)
    found = [(i["target"], i["image"], i["split"], i["source_image"]) for i in report["source_images"]]
    assert found == [("target", "0.png", "train", "7.png"), ("target", "4.png", "train", "4.png")]
    near, equal = (i["distance"] for i in report["source_images"])
    assert 0 <= near < 0.07
    assert equal == 0
    assert (report["source"], report["n_source_images"]) == ("source", 2)
    assert report["duplicate_groups"] == report["near_duplicates"] == []  # the source's own are not the question
    assert "source_images" not in check_targets([target])


def test_neighbours_across_splits_among_embeddings() -> None:
    target = visits()
    x = np.eye(8, dtype=np.float16)
    x[4] = 3 * x[0]  # test like train
    x[3] = x[1] + np.float16(0.1) * x[2]  # val like train
    x[7] = x[6]  # both of test: no matter
    which = np.array([7, 6, 4, 3, 2, 1, 0])  # 5 could not be decoded; a store's order is its own
    found = find_neighbours(target, target.image_id[which], x[which])
    assert [[i["image"] for i in pair["images"]] for pair in found["pairs"]] == [["0.png", "4.png"], ["1.png", "3.png"]]
    assert [pair["cosine"] for pair in found["pairs"]] == [1.0, 0.995]
    assert (found["n_pairs"], found["test_images"], found["threshold"]) == (2, 1, 0.95)
    assert find_neighbours(target, target.image_id[which], x[which], 0.999)["n_pairs"] == 1


def test_check_asks_a_source_and_a_store_by_name(tmp_path: Path) -> None:
    target = some_clouds(tmp_path / "target", range(8))
    some_clouds(tmp_path / "source", range(7, 10))
    x = np.eye(8, dtype=np.float32)
    x[2] = x[0]
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    store.add_target(target)
    with store.writer("r50", "target", dim=8, dtype="float32", attributes={"identity": "r50"}) as writer:
        writer.write(range(8), x, seconds=0.1)
    words = ["targets", "check", "target", "--data-root", tmp_path / "data"]
    asked = [*words, "--with-source", "source", "--backbone", "r50", "--store", tmp_path / "store"]
    report = json.loads(run(*asked, "--json").stdout)
    assert [(i["image"], i["source_image"]) for i in report["source_images"]] == [("7.png", "7.png")]
    assert not (tmp_path / "data/targets/leaks").exists()
    saved = run(*words, "--save")
    assert f"findings kept in {tmp_path / 'data/targets/leaks/target.json'}" in saved.stderr
    findings = load_findings(tmp_path / "data", "target", target.fingerprint)
    assert (findings.copies, findings.patients, findings.test_images) == ([], None, 4)
    assert [row["name"] for row in list_targets(tmp_path / "data") if row["kind"] == "table"] == ["source", "target"]
    (found,) = report["embedding_neighbours"]
    assert (found["backbone"], found["n_pairs"], found["test_images"]) == ("r50", 1, 1)
    text = run(*asked).stdout
    assert "images that source contains: 1" in text
    assert "distance 0.000: target:7.png (test) ~ 7.png" in text
    assert "neighbours across splits, target by r50: 1 pairs with a cosine of at least 0.95; 1 test images" in text
    assert "cosine 1.000: 0.png (train) ~ 2.png (test)" in text
    for wrong, message in [
        (["--with-source", "target"], "a target is named twice"),
        (["--cosine", "0.9"], "--cosine goes with --backbone"),
        (["--backbone", "r51", "--store", tmp_path / "store"], "no embeddings of backbone 'r51'"),
    ]:
        result = run(*words, *wrong)
        assert result.exit_code == 2
        assert message in result.stderr
