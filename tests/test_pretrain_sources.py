"""Every target as a source: families in miniature, merges, archives; and of how little memory a list of images is."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from PIL import Image

from fastxfer.errors import DataError, UsageError
from fastxfer.images import EXTENSIONS, load_image, tar_index
from fastxfer.targets import Target, families, load_target
from pretrain.catalogue import read_recipe
from pretrain.checkpoint import read_checkpoint
from pretrain.loop import pretrain
from pretrain.recipe import Recipe
from pretrain.source import Paths, head_size, open_source, read_archives

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Recipe(
    arch="resnetv2_50x1_bit",
    arch_args={"channels": [32], "stem_chs": 32, "bottle_ratio": 1.0},
    image_size=16,
    epochs=1.0,
    batch_size=4,
    val_fraction=0.0,
    warmup_epochs=0.0,
)
XRAY = {"augment": "xray", "interpolation": "box"}


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def paint(root: Path) -> None:
    """Give every file of a miniature that is named as an image a picture."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            path.write_bytes(picture(number))


FAMILIES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "chexpert": (layouts.chexpert_folder, XRAY),
    "mimic-cxr": (layouts.mimic_folder, XRAY),
    "nih14": (layouts.nih_folder, XRAY),
    "padchest": (layouts.padchest_folder, XRAY),
    "covidx-cxr2": (layouts.covidx_folder, XRAY),
    "tuberculosis": (layouts.tuberculosis_folder, XRAY),
    "cifar10": (layouts.cifar_folder, {}),
    "flowers102": (layouts.flowers_folder, {"batch_size": 64}),
    "pets": (layouts.pets_folder, {}),
    "imagenet1k": (layouts.imagenet_folder, {"num_classes": 5}),
    "imagenet21k": (layouts.imagenet_folder, {"num_classes": 5}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_source_of_each_family(name: str, tmp_path: Path) -> None:
    make, changes = FAMILIES[name]
    make(tmp_path / load_folder(name))
    paint(tmp_path)
    target = load_target(name, tmp_path)
    train = set(target.image_id[target.rows("train")])
    recipe = replace(TINY, **changes)
    opened = open_source(target, val_fraction=0)
    assert {str(p.relative_to(target.root)) for p in opened.train.paths} <= train  # type: ignore[arg-type]
    summary = pretrain(recipe, target, tmp_path / "net.pt")
    assert np.isfinite(summary["loss"])
    assert read_checkpoint(tmp_path / "net.pt")["meta"]["num_classes"] == (
        recipe.num_classes or len(target.class_names)
    )


def load_folder(name: str) -> str:
    return families.FAMILIES[name].shares or name


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chests")
    layouts.chexpert_folder(root / "chexpert")
    layouts.mimic_folder(root / "mimic-cxr")
    layouts.nih_folder(root / "nih14")
    layouts.padchest_folder(root / "padchest")
    paint(root)
    return root


@pytest.mark.parametrize(
    ("source", "outputs"),
    [
        ("chexpert", 13),
        ("mimic", 13),
        ("nih", 14),
        ("padchest", 27),
        ("chexpert_mimic", 13),
        ("chexpert_mimic_nih", 7),
        ("chexpert_mimic_nih_padchest", 7),
    ],
)
@pytest.mark.parametrize("variant", ["as-was", "as-meant"])
def test_source_of_the_papers_xray_recipes(source: str, outputs: int, variant: str, chests: Path) -> None:
    """The sources that the recipe names are there, with as many labels as the recipe says."""
    recipe = read_recipe("xray", source=source, variants=[variant]).recipe
    opened = open_source(load_target(recipe.source, chests, **recipe.source_args), val_fraction=recipe.val_fraction)
    assert head_size(recipe, opened) == outputs == len(opened.class_names)


@pytest.mark.parametrize("name", ["chexpert+mimic-cxr+nih14+padchest", "union=chexpert+mimic-cxr+nih14+padchest"])
def test_source_merged_trains_on_what_is_known(name: str, chests: Path, tmp_path: Path) -> None:
    target = load_target(name, chests)
    assert np.isnan(target.labels).any()
    for changes in ({}, {"mixup": 0.4, "cutmix": 1.0}):
        summary = pretrain(replace(TINY, **XRAY, **changes), target, tmp_path / f"{len(changes)}.pt")
        assert np.isfinite(summary["loss"])
    # An image of which nothing is known is none of the source's.
    blank = target.labels.copy()
    blank[target.rows("train")[0]] = np.nan
    assert len(open_source(replace(target, labels=blank), val_fraction=0).train) == len(
        open_source(target, val_fraction=0).train
    ) - (not np.isnan(target.labels[target.rows("train")[0]]).all())


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["classes", "shards"])
def test_source_in_tar_archives(kind: str, tmp_path: Path) -> None:
    """ImageNet-21k as it is handed out, and as webdataset shards: the same pixels as from files, read where they lie."""
    root = tmp_path / "imagenet21k"
    pictures = {f"n{c:08}_{i}": picture(10 * c + i) for c in range(3) for i in range(4)}
    if kind == "classes":
        for c in range(3):
            own = {f"{k}.JPEG": v for k, v in pictures.items() if k.startswith(f"n{c:08}")}
            write_tar(root / f"n{c:08}.tar", own)
    else:
        for shard in range(2):
            keys = sorted(pictures)[shard::2]
            files = {f"{k}.JPEG": pictures[k] for k in keys} | {f"{k}.cls": str(int(k[1:9])).encode() for k in keys}
            write_tar(root / f"train-{shard:04}.tar", files)
    target = load_target("imagenet21k", tmp_path)
    source = open_source(target, val_fraction=0)
    read_archives(source)
    for path, label in zip(source.train.paths, source.train.labels, strict=True):
        assert np.array_equal(
            np.asarray(load_image(path)), np.asarray(Image.open(io.BytesIO(pictures[path.stem])).convert("RGB"))
        )
        assert int(path.stem[1:9]) == label
    recipe = replace(TINY, num_classes=5)
    pretrain(recipe, target, tmp_path / "none.pt", workers=0)
    pretrain(recipe, target, tmp_path / "two.pt", workers=2, cache_bytes=1)
    models = [read_checkpoint(tmp_path / f"{n}.pt")["model"] for n in ("none", "two")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_source_index_of_an_archive_is_small_and_tar_like(tmp_path: Path) -> None:
    files = {f"n01440764_{i:05}.JPEG": b"x" * (i % 7) for i in range(3000)}
    write_tar(tmp_path / "a.tar", files)
    with tarfile.open(tmp_path / "a.tar", "a") as archive:  # a file that comes again is the later one
        entry = tarfile.TarInfo("n01440764_00006.JPEG")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"new"))
    index = tar_index(tmp_path / "a.tar")
    assert list(index) == sorted(files)
    assert index["n01440764_00006.JPEG"][1] == 3
    assert "n01440764_0000" not in index
    assert "zzz" not in index
    assert index.nbytes < 40 * len(files)


def test_source_of_many_images_costs_few_bytes_an_image() -> None:
    """Beside the table, rows and labels; no object an image."""
    n = 200_000
    ids = np.array([f"n{i % 1000:08}.tar/n{i % 1000:08}_{i:06}.JPEG" for i in range(n)])
    split = np.full(n, "train")
    target = Target("many", ids, tuple(map(str, range(1000))), np.arange(n) % 1000, split, root=Path("/nowhere"))
    tracemalloc.start()
    source = open_source(target, val_fraction=0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 18 * n
    assert peak < 80 * n
    assert isinstance(source.train.paths, Paths)
    assert str(source.train.paths[123_456]) == f"/nowhere/{ids[123_456]}"
    assert [str(p) for p in source.train.paths[5:7]] == [f"/nowhere/{i}" for i in ids[5:7]]


def test_source_with_labels_out_of_range_is_refused(chests: Path) -> None:
    target = load_target("nih14", chests)
    row = int(target.rows("train")[0])
    wrong = target.labels.copy()
    wrong[row, 2] = 7
    with pytest.raises(DataError, match=rf"label of image '{target.image_id[row]}' is .*expected 0 … 1 or NaN"):
        open_source(replace(target, labels=wrong), val_fraction=0)
    single = Target("s", target.image_id, ("a", "b"), np.array([0, 1, 2]), np.full(3, "train"), root=chests)
    with pytest.raises(DataError, match=r"is 2; expected 0 … 1"):
        open_source(single, val_fraction=0)


def test_source_and_number_of_outputs_must_agree(chests: Path, tmp_path: Path) -> None:
    target = load_target("nih14", chests)
    with pytest.raises(UsageError, match=r"num_classes = 20, but source 'nih14' has 14 labels"):
        pretrain(replace(TINY, num_classes=20), target, tmp_path / "n.pt")
    single = replace(target, labels=np.array([0, 1, 1]), class_names=("a", "b"))
    with pytest.raises(UsageError, match=r"num_classes = 1 is too few for the 2 classes"):
        pretrain(replace(TINY, num_classes=1), single, tmp_path / "n.pt")
    with pytest.raises(DataError, match=r"no train images with a known label \(its images: 0 train, 0 val, 3 test\)"):
        pretrain(TINY, replace(single, split=np.full(3, "test")), tmp_path / "n.pt")
    assert not list(tmp_path.iterdir())
