"""Photographs by name, merges, and every built-in target on real images."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner
from layouts import (
    chexpert_folder,
    cifar_folder,
    covidx_folder,
    flowers_folder,
    flowers_tables,
    imagenet_folder,
    label_names,
    mimic_folder,
    nih_folder,
    padchest_folder,
    pets_folder,
    touch,
    tuberculosis_folder,
    write,
)
from PIL import Image

from fastxfer.cli import main
from fastxfer.errors import DataError, UsageError
from fastxfer.images import EXTENSIONS, load_image
from fastxfer.targets import (
    add_target,
    define_target,
    describe_target,
    list_targets,
    load_target,
)
from fastxfer.targets.families import FAMILIES
from fastxfer.targets.policies import LABELS

# ---- natural images -----------------------------------------------------------------------------------------------


def cifar_pickles(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's layout with twelve images, known to torchvision as the release."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird"]

    def pickled(file: str, content: dict[str, Any]) -> list[str]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(pickle.dumps(content))
        return [Path(file).name, hashlib.md5((root / file).read_bytes()).hexdigest()]

    def batch(file: str, labels: list[int]) -> list[str]:
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        return pickled(f"cifar-10-batches-py/{file}", {"data": data, "labels": labels})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", [0, 1, 2]), batch("data_batch_2", [2, 1, 0])])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", [0, 0, 1, 1, 2, 2])])
    meta = pickled("cifar-10-batches-py/batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "md5": meta[1], "key": "label_names"})
    return root


def test_cifar_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["targets", "export", "cifar10", "--data-root", str(tmp_path)]
    assert "no folder" in CliRunner().invoke(main, words).output
    root = cifar_pickles(tmp_path / "cifar10", monkeypatch)
    with pytest.raises(
        DataError, match=r"no folder .*cifar10/train with class folders; write it once from cifar-10-bat"
    ):
        load_target("cifar10", tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.output == f"cifar10: 12 images written to {root}\n"
    target = load_target("cifar10", tmp_path)
    assert target.class_names == ("airplane", "automobile", "bird")
    assert describe_target(target)["splits"] == {"train": 6, "test": 6}
    assert target.notes[1:] == (
        "3 classes where cifar10 has 10",
        "6 train images where cifar10 has 50,000",
        "6 test images where cifar10 has 10,000",
    )
    data = pickle.loads((root / "cifar-10-batches-py/data_batch_2").read_bytes())["data"]  # noqa: S301 (written above)
    with Image.open(root / "train/bird/00003.png") as image:
        assert np.array_equal(np.asarray(image), data[0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert sorted(p.name for p in root.iterdir()) == ["cifar-10-batches-py", "test", "train"]
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2
    assert "train exists; move it away to export again" in again.output


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_foreign_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cifar_pickles(tmp_path / "cifar10", monkeypatch)
    (root / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    result = CliRunner().invoke(main, ["targets", "export", "cifar10", "--data-root", str(tmp_path)])
    assert result.exit_code == 1
    assert "not the release's files by their MD5, so they are not opened" in result.output
    assert [p.name for p in root.iterdir()] == ["cifar-10-batches-py"]
    assert not (tmp_path / "went off").exists()


def test_flowers_layout_and_bad_files(tmp_path: Path) -> None:
    root = flowers_tables(tmp_path / "flowers102/flowers-102", 102, 102, 204)
    touch(root, *(f"jpg/image_{i:05}.jpg" for i in range(1, 409)))
    assert load_target("flowers102", tmp_path).root == root
    with pytest.raises(UsageError, match="split 'swapped' is not one of official, paper"):
        load_target("flowers102", tmp_path, split="swapped")
    (root / "jpg/image_00009.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 408 listed images .*setid\.mat, \w+\[\d+\]: 'jpg/image_00009\.jpg'"):
        load_target("flowers102", tmp_path)
    for content, message in (
        ({"labels": [1, 103]}, "array 'labels' holds other than whole numbers from 1 to 102"),
        ({"labels": [1, 1.5]}, "array 'labels' holds other than whole numbers"),
        ({"names": [1]}, "no array 'labels' of numbers can be read from it"),
        ({"labels": np.array(["rose", "lily"], dtype=object)}, "no array 'labels' of numbers can be read from it"),
    ):
        scipy.io.savemat(root / "imagelabels.mat", content)
        with pytest.raises(DataError, match=rf"imagelabels\.mat: {message}"):
            load_target("flowers102", tmp_path)
    (root / "imagelabels.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(60))
    with pytest.raises(DataError, match=r"imagelabels\.mat: no array 'labels' of numbers can be read"):
        load_target("flowers102", tmp_path)
    (root / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"imagelabels\.mat: there is no such file; it comes with the data set, beside"):
        load_target("flowers102", tmp_path)


def test_pets(tmp_path: Path) -> None:
    root = pets_folder(tmp_path / "pets/oxford-iiit-pet")
    target = load_target("pets", tmp_path)
    assert target.root == root
    assert target.class_names == ("Abyssinian", "american_bulldog", "Bengal")
    assert target.labels.tolist() == [0, 1, 2, 1, 0, 2]
    assert target.split.tolist() == ["train"] * 3 + ["test"] * 3
    assert target.notes == ("3 breeds where the data set has 37",)
    species = load_target("pets", tmp_path, species=True)
    assert species.class_names == ("cat", "dog")
    assert species.labels.tolist() == [0, 1, 0, 1, 0, 0]
    shown = CliRunner().invoke(main, ["targets", "show", "pets", "--species", "--data-root", str(tmp_path)])
    assert "pets: 6 images (3 train, 3 test)" in shown.stdout
    lines = root / "annotations/test.txt"
    text = lines.read_text()
    for old, new, message in (
        ("2 2 1", "2 3 1", r"test\.txt, row 2: 'american_bulldog_11 2 3 1'; expected such as 'Abyssinian_100 1 1 1'"),
        ("Bengal_8 6", "Birman_8 6", r"test\.txt, row 4: breed 6 is 'Birman' here, 'Bengal' before"),
        ("Bengal_8 6", "Bengal_9 6", r"1 of 6 listed images are not below .*test\.txt, row 4: 'images/Bengal_9\.jpg'"),
    ):
        lines.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=message):
            load_target("pets", tmp_path)
    lines.unlink()
    with pytest.raises(DataError, match=r"no .*annotations/test\.txt; expected the lists trainval\.txt and test\.txt"):
        load_target("pets", tmp_path)


def test_a_name_that_was_added_before_it_was_built_in_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "mine", *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    with monkeypatch.context() as before:
        before.delitem(FAMILIES.own, "pets")
        added = add_target(tmp_path / "mine", "pets", tmp_path / "data")
    assert load_target("pets", tmp_path / "data").fingerprint == added.fingerprint
    assert [t["kind"] for t in list_targets(tmp_path / "data") if t["name"] == "pets"] == ["folder"]


def test_imagenet21k(tmp_path: Path) -> None:
    root = tmp_path / "imagenet21k"
    touch(root, *(f"{c}/{c}_{i}.JPEG" for c in ("n00004475", "n00005787") for i in range(10)))
    target = load_target("imagenet21k", tmp_path)
    assert describe_target(target)["splits"] == {"train": 18, "test": 2}  # at least one of each class
    assert target.notes[0] == "2 classes where imagenet21k has 21,841: a part of it, or another release"
    (root / "n00004475").rename(root / "n1")
    touch(root, "train/n00004475/a.JPEG", "train/n00005787/b.JPEG")
    with pytest.raises(DataError, match=r"no folder .*imagenet21k/val; expected class folders n01440764"):
        load_target("imagenet21k", tmp_path)


def pack(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_imagenet_in_class_archives(tmp_path: Path) -> None:
    root = tmp_path / "imagenet21k"
    for c in ("n00004475", "n00005787"):
        pack(root / f"{c}.tar", {f"{c}_{i}.JPEG": png(i) for i in range(5)} | {"readme.txt": b"x"})
    target = load_target("imagenet21k", tmp_path)
    assert target.class_names == ("n00004475", "n00005787")
    assert describe_target(target)["splits"] == {"train": 8, "test": 2}
    others = "n00004475.tar/readme.txt, n00005787.tar/readme.txt"
    assert f"left out 2 files in archives that are no images by their name: {others}" in target.notes
    assert load_image(root / str(target.image_id[0])).size == (5, 6)
    for split in ("train", "val"):
        for c in ("n01440764", "n01443537"):
            pack(tmp_path / "imagenet1k" / split / f"{c}.tar", {f"{split}_{c}.JPEG": png(1)})
    target = load_target("imagenet1k", tmp_path)
    assert describe_target(target)["splits"] == {"train": 2, "test": 2}
    assert target.image_id[0] == "train/n01440764.tar/train_n01440764.JPEG"


def test_imagenet_in_shards(tmp_path: Path) -> None:
    root = tmp_path / "imagenet1k"
    for split, count in (("train", 12), ("validation", 4)):
        files = {}
        for i in range(count):
            files |= {f"k{i}.jpg": png(i), f"k{i}.cls": str(i % 11).encode(), f"k{i}.json": b"{}"}
        pack(root / f"imagenet1k-{split}-0000.tar", files)
    target = load_target("imagenet1k", tmp_path)
    assert describe_target(target)["splits"] == {"train": 12, "test": 4}
    assert target.class_names[:3] == ("00000", "00001", "00002")
    assert (
        target.class_names[target.labels[list(target.image_id).index("imagenet1k-train-0000.tar/k10.jpg")]] == "00010"
    )
    pack(root / "imagenet1k-train-0001.tar", {"a.jpg": png(0), "b.cls": b"1"})
    with pytest.raises(
        DataError, match=r"imagenet1k-train-0001\.tar: 'a' has no class, 'a\.cls' isn't in this archive"
    ):
        load_target("imagenet1k", tmp_path)
    pack(root / "imagenet1k-train-0001.tar", {"a.jpg": png(0), "a.cls": b"cat"})
    with pytest.raises(DataError, match=r"'a\.cls' holds b'cat'; expected the number of a class"):
        load_target("imagenet1k", tmp_path)
    (root / "imagenet1k-train-0001.tar").rename(root / "imagenet1k-0001.tar")
    with pytest.raises(DataError, match=r"imagenet1k-0001\.tar: in which split\?"):
        load_target("imagenet1k", tmp_path)
    for file in root.glob("*.tar"):
        file.unlink()
    pack(root / "n01440764.tar", {"a.jpg": png(0)})
    with pytest.raises(DataError, match="holds 1 archives; expected some of train and of val"):
        load_target("imagenet1k", tmp_path)


# ---- merges -------------------------------------------------------------------------------------------------------


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    chexpert_folder(tmp_path / "chexpert")
    mimic_folder(tmp_path / "mimic-cxr")
    padchest_folder(tmp_path / "padchest")
    nih_folder(tmp_path / "nih14")
    return tmp_path


def test_the_papers_merges_have_13_7_and_7_labels(chest: Path) -> None:
    two = load_target("chexpert+mimic-cxr", chest)
    assert two.class_names == LABELS
    three = load_target("chexpert+mimic-cxr+nih14", chest)
    four = load_target("chexpert+mimic-cxr+nih14+padchest", chest)
    seven = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Pneumonia", "Pneumothorax")
    assert three.class_names == four.class_names == seven
    assert four.root == chest
    assert all((chest / str(i)).is_file() for i in four.image_id)
    assert describe_target(four)["sources"] == {"chexpert": 4, "mimic-cxr": 3, "nih14": 3, "padchest": 12}
    assert describe_target(four)["splits"]["val"] == 1  # MIMIC's
    assert four.notes[0] == "intersection of labels: 7 of 31; 1 images have none known"
    assert label_names(four, 7) == ["Effusion"]  # NIH's Mass is no label of all
    assert four.patient is not None
    assert four.patient[7] == "nih14:1"
    laterals = load_target("chexpert+padchest", chest, views=("PA", "L", "COSTAL"))  # for all members
    assert laterals.view is not None
    assert set(laterals.view) == {"PA", "L", "COSTAL"}


def test_union_of_labels_leaves_the_others_unknown(chest: Path) -> None:
    union = load_target("chexpert+nih14", chest, labels="union", policy="blank-zeros")
    assert union.name == "union=chexpert+nih14"
    assert load_target("union=chexpert+nih14", chest, policy="blank-zeros").fingerprint == union.fingerprint
    assert len(union.class_names) == 13 + 14 - 7
    nih = {n: v for n, v in zip(union.class_names, union.labels[4], strict=True) if not np.isnan(v)}
    assert len(nih) == 14
    assert (nih["Mass"], nih["Effusion"], nih["Hernia"]) == (1, 1, 0)
    assert load_target("chexpert+nih14", chest, exactly_one=True).labels.tolist() == [4, 4]  # Effusion, twice
    words = ["targets", "show", "chexpert+nih14", "--labels", "union", "--json", "--data-root", str(chest)]
    assert json.loads(CliRunner().invoke(main, words).stdout)["n_classes"] == 20
    only = load_target("chexpert+nih14", chest, labels_only=True)
    assert only.root is None
    assert only.image_id[4] == "nih14/images/00000001_000.png"


def test_own_tables_are_merged_by_synonyms(chest: Path) -> None:
    rows = "path,label,split\na.png,pleural effusion|Dust,train\nb.png,edema,test\n"
    write(chest / "own/labels.csv", rows)
    touch(chest / "own", "a.png", "b.png")
    add_target(chest / "own", "own", chest)
    merged = load_target("own+nih14", chest)
    assert merged.class_names == ("Edema", "Effusion")
    assert merged.labels[:2].tolist() == [[0, 1], [1, 0]]
    assert merged.image_id[0] == "own/a.png"
    write(chest / "own/labels.csv", rows.replace("Dust", "Effusion"))
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(DataError, match="labels 'Effusion' and 'pleural effusion' are both 'Effusion'"):
        load_target("own+nih14", chest)
    write(chest / "own/labels.csv", rows.replace("pleural effusion", "Rust").replace("edema", "Rust"))
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(UsageError, match="no label is in all of own, nih14; labels 'union' keeps them all"):
        load_target("own+nih14", chest)
    write(chest / "own/labels.csv", "path,label,split\na.png,x,train\nb.png,y,test\n")
    add_target(chest / "own", "own", chest, replace=True)
    with pytest.raises(UsageError, match="'own' has one label an image; only multi-label targets can be merged"):
        load_target("own+nih14", chest)
    for name, options, message in (
        ("nih14+nih14", {}, "expected at least two targets, each once, not nih14 nih14"),
        ("nih14+chexpert", {"labels": "both"}, "labels 'both' is not one of intersection, union"),
        ("nih14+chexpert", {"labeler": "negbio"}, "none of its members has an option 'labeler'"),
        ("nih14+chexprt", {}, "unknown target 'chexprt'"),
        ("nih14+", {}, "'' cannot name a target"),
    ):
        with pytest.raises(UsageError, match=message):
            load_target(name, chest, **options)


# ---- variants -----------------------------------------------------------------------------------------------------


def test_a_target_read_with_options_gets_a_name(chest: Path) -> None:
    root = ["--data-root", str(chest)]
    words = ["targets", "define", "ones", "chexpert", "--policy", "ones", "--view", "AP", "PA"]
    result = CliRunner().invoke(main, [*words, *root])
    assert result.output == "ones: 4 images, chexpert with policy ones, views AP PA\n"
    target, plain = load_target("ones", chest), load_target("chexpert", chest, policy="ones")
    assert target.name == "ones"
    assert target.fingerprint == plain.fingerprint
    assert target.notes == ("chexpert with policy ones, views AP PA", *plain.notes)
    assert load_target("ones", chest, policy="zeros").fingerprint != plain.fingerprint  # what a caller says wins
    union = define_target("cxr", "chexpert+nih14", chest, labels="union", ages=(0, 60))
    assert load_target("cxr", chest).fingerprint == union.fingerprint
    assert len(union.class_names) == 20
    rows = {t["name"]: t for t in list_targets(chest)}
    assert (rows["cxr"]["kind"], rows["cxr"]["available"]) == ("variant", True)
    assert rows["ones"]["where"] == "chexpert with policy ones, views AP PA"
    shown = CliRunner().invoke(main, ["targets", "show", "ones", *root])
    assert "note: chexpert with policy ones, views AP PA" in shown.stdout

    assert CliRunner().invoke(main, [*words, *root]).exit_code == 0  # the same again
    other = CliRunner().invoke(main, [*words[:-1], *root])
    assert other.exit_code == 2
    assert (
        "'ones' is defined as chexpert with policy ones, views AP PA; choose another name, or replace" in other.output
    )
    assert CliRunner().invoke(main, [*words[:-1], *root, "--replace"]).exit_code == 0
    assert load_target("ones", chest).n_images == 2


def test_definitions_that_cannot_be(chest: Path) -> None:
    for name, base, options, message in (
        ("nih14", "chexpert", {}, "'nih14' is the name of another target"),
        ("mine", "ches", {}, r"'ches' is neither a built-in target nor a merge of targets\. Did you mean"),
        ("mine", "nih14", {"policy": "ones"}, "'nih14' has no option 'policy'"),
        ("a/b", "nih14", {}, "'a/b' cannot name a target"),
    ):
        with pytest.raises(UsageError, match=message):
            define_target(name, base, chest, **options)
    assert not (chest / "variants").exists()
    define_target("mine", "nih14", chest)
    with pytest.raises(UsageError, match=r"'mine' is defined in .* as nih14 with no options; choose another name"):
        add_target(chest / "padchest", "mine", chest)
    file = chest / "variants/mine.json"
    for broken in ("[]", '{"base": "nih14"}', "{"):
        file.write_text(broken)
        with pytest.raises(DataError, match=r"variants/mine\.json: not a variant written by fastxfer, or damaged"):
            load_target("mine", chest)
    file.write_text('{"format": 2, "base": "nih14", "options": {}}')
    with pytest.raises(DataError, match=r"mine\.json: written by a newer fastxfer \(format 2, this one knows 1\)"):
        load_target("mine", chest)


# ---- every reader, on its layout made of real images --------------------------------------------------------------


XRAYS = "kermany_pneumonia/train/NORMAL"
PHOTOS = "cifar10_subset/train/cat"
LAYOUTS = {
    "chexpert": (chexpert_folder, XRAYS),
    "mimic-cxr": (mimic_folder, XRAYS),
    "nih14": (nih_folder, XRAYS),
    "padchest": (padchest_folder, XRAYS),
    "covidx-cxr2": (covidx_folder, XRAYS),
    "tuberculosis": (tuberculosis_folder, XRAYS),
    "cifar10": (cifar_folder, PHOTOS),
    "flowers102": (flowers_folder, PHOTOS),
    "pets": (pets_folder, PHOTOS),
    "imagenet1k": (imagenet_folder, PHOTOS),
    "imagenet21k": (imagenet_folder, PHOTOS),
}


@pytest.mark.real
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_reader_on_real_images(name: str, real: Path, tmp_path: Path) -> None:
    build, folder = LAYOUTS[name]
    build(tmp_path / name)
    images = itertools.cycle(path.read_bytes() for path in sorted((real / folder).iterdir())[:40])
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.suffix in EXTENSIONS | {".JPEG"}:
            path.write_bytes(next(images))
    variants = [n for n, family in FAMILIES.items() if name in (n, family.shares)]
    for variant in variants:
        target = load_target(variant, tmp_path)
        assert target.root is not None
        sizes = {load_image(target.root / str(image_id)).size for image_id in target.image_id[:50]}
        assert sizes == {(224, 224) if folder == XRAYS else (32, 32)}


@pytest.mark.real
def test_real_cifar10_in_class_folders(real: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10").symlink_to(real / "cifar10_subset")
    target = load_target("cifar10", tmp_path)
    assert describe_target(target)["splits"] == {"train": 4000, "test": 1000}
    assert len(target.class_names) == 10
    assert "4,000 train images where cifar10 has 50,000" in target.notes


def test_every_built_in_target_has_a_row_in_the_docs_and_says_what_it_expects(tmp_path: Path) -> None:
    table = (Path(__file__).parents[1] / "docs/targets.md").read_text(encoding="utf-8")
    for name, family in FAMILIES.items():
        assert f"`{name}`" in table
        with pytest.raises(DataError) as error:
            load_target(name, tmp_path)
        assert f"'{name}': there is no folder {family.folder(tmp_path)}; expected there: " in str(error.value)
        assert family.source in str(error.value)
