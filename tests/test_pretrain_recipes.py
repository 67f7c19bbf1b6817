"""Recipes: the paper's values, one by one; layers of a file; what is said of a wrong one."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from fastxfer.batches import Batches, Group, Images
from fastxfer.cli import main
from fastxfer.cli.pretrain import option_of
from fastxfer.errors import DataError, UsageError
from fastxfer.training import Normaliser, Trainer
from pretrain.augment import preprocessing, train_transform
from pretrain.catalogue import names, paper, read_recipe, to_toml
from pretrain.mixing import check_pairs, draw_mix
from pretrain.recipe import ARCHITECTURES, Recipe
from pretrain.schedule import schedule_of
from pretrain.state import create_network

DOCS = Path(__file__).parents[1] / "docs" / "pretrain.md"
WORKERS = 64  # 16 nodes x 4 GPUs

# Transcribed from the paper's configurations: local batch, base lr per 256, epochs, warm-up, AGC, heads, steps or cosine, RandAugment.
NATURAL = {
    ("imagenet1k", "R50x1", ""): (32, 0.1, 90, 5, 0.0, 1000, "step", ""),
    ("imagenet1k", "R152x4", ""): (16, 0.03, 90, 15, 0.01, 10_000, "step", ""),
    ("imagenet21k", "R50x1", ""): (32, 0.01, 90, 2, 0.01, 21_842, "step", ""),
    ("imagenet21k", "R152x4", ""): (16, 0.01, 90, 2, 0.01, 21_842, "step", ""),
    ("imagenet1k", "R50x1", "optimized"): (32, 0.03, 120, 15, 0.01, 1000, "cosine", "rand-m9-n2"),
    ("imagenet1k", "R152x4", "optimized"): (16, 0.03, 90, 15, 0.01, 1000, "cosine", "rand-m9-n2"),
}
HEADS = {
    "chexpert": 13,
    "mimic": 13,
    "nih": 14,
    "padchest": 27,
    "chexpert_mimic": 13,
    "chexpert_mimic_nih": 7,
    "chexpert_mimic_nih_padchest": 7,
}
XRAY = {
    (source, size, ""): (16, 0.01, 90, 15, 0.01, heads, "step", "")
    for source, heads in HEADS.items()
    for size in ("R50x1", "R152x4")
}
COMMON = {
    "image_size": 224,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "milestones": (30.0, 60.0, 80.0),
    "decay": 0.1,
    "min_lr": 0.0,
    "warmup_start": 1 / WORKERS,
    "precision": "fp16",
    "seed": 42,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema": 0.0,
    "hflip": 0.5,
}
OF_NATURAL = {
    "augment": "crop",
    "crop_scale": 0.08,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 224 / 256,
}
OF_XRAY = {
    "augment": "xray",
    "shift": 0.25,
    "rotate": 45.0,
    "scale": 0.1,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "box",
    "crop_pct": 1.0,
}


def test_paper_recipes_are_the_papers_value_by_value() -> None:
    models = {(m.source or m.recipe, m.size, m.variant): m for m in paper()}
    assert models.keys() == NATURAL.keys() | XRAY.keys()
    assert len(models) == 20
    assert [m.name for m in paper() if not m.known] == ["padchest_R50x1"]
    for key, values in (NATURAL | XRAY).items():
        recipe = models[key].read().recipe
        local, lr, epochs, warmup, agc, heads, schedule, randaugment = values
        expected = {
            **COMMON,
            **(OF_NATURAL if key in NATURAL else OF_XRAY),
            "batch_size": local * WORKERS,
            "micro_batch": local,
            "lr": lr,
            "epochs": epochs,
            "warmup_epochs": warmup,
            "agc": agc,
            "num_classes": heads,
            "schedule": schedule,
            "randaugment": randaugment,
            "arch": key[1],
        }
        assert {name: getattr(recipe, name) for name in expected} == expected, key


@pytest.mark.parametrize(
    ("model", "start", "peak"),
    [
        ("imagenet1k_R50x1", 0.1 * 32 / 256, 0.8),
        ("imagenet1k_R152x4", 0.03 * 16 / 256, 0.12),
        ("imagenet21k_R50x1", 0.01 * 32 / 256, 0.08),
        ("imagenet21k_R152x4", 0.01 * 16 / 256, 0.04),
        ("chexpert_R50x1", 0.01 * 16 / 256, 0.04),
    ],
)
def test_paper_learning_rates(model: str, start: float, peak: float) -> None:
    """From base · local / 256 to that times the workers, each iteration a little; then x0.1 at absolute epochs."""
    recipe = next(m for m in paper() if m.name == model).read().recipe
    n = 100 * recipe.batch_size
    schedule = schedule_of(recipe, n, 100 * 90)
    warmup = int(100 * recipe.warmup_epochs)
    assert schedule.lr(0) == pytest.approx(start)
    assert schedule.lr(warmup // 2) == pytest.approx((start + peak) / 2)
    at = [warmup, 2999, 3000, 5999, 6000, 7999, 8000, 8999]
    assert [schedule.lr(step) for step in at] == pytest.approx(
        [peak * f for f in (1, 1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3)]
    )


def test_paper_slips_are_offered_as_they_were_and_as_they_were_meant() -> None:
    was, meant = (read_recipe("imagenet1k", size="R152x4", variants=[v]) for v in ("as-was", "as-meant"))
    assert (was.recipe.num_classes, meant.recipe.num_classes) == (10_000, 1000)
    assert "as-meant gives 1,000" in was.note
    assert not meant.note
    assert replace(was.recipe, num_classes=1000) == meant.recipe
    assert read_recipe("imagenet21k", variants=["as-meant"]).recipe.num_classes == 0
    xray = {v: read_recipe("xray", source="chexpert", variants=[v]).recipe for v in ("as-was", "as-meant", "field")}
    assert [(r.shift, r.rotate, r.scale, r.hflip) for r in xray.values()] == [
        (0.25, 45, 0.1, 0.5),
        (0.15, 45, 0.1, 0.0),
        (0.15, 45, 0.15, 0.0),
    ]
    assert [r.source for r in xray.values()] == ["chexpert-paper", "chexpert", "chexpert-paper"]


def test_sizes_are_bits() -> None:
    """Parameters with 1,000 outputs, of the paper's table where it has them."""
    millions = {"R50x1": 25.55, "R50x3": 217.3, "R101x1": 44.5, "R101x3": 387.9, "R152x2": 236.3, "R152x4": 936.53}
    assert {size for size in ARCHITECTURES if size != "bit_tiny"} == millions.keys()
    for size, expected in millions.items():
        with torch.device("meta"):
            network = create_network(Recipe(arch=size), 1000)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(expected, abs=0.06)


# -- files ----------------------------------------------------------------------------------------------------------


def test_recipe_in_full_is_a_recipe(tmp_path: Path) -> None:
    for model in paper():
        recipe = replace(model.read().recipe, arch_args={"channels": [32], "name": 'a "b"'}, classes=("1", "x"))
        (tmp_path / "full.toml").write_text(to_toml(recipe))
        assert read_recipe(tmp_path / "full.toml").recipe == recipe


def test_layers_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        lr = 1.0
        epochs = 9
        source = "own"
        num_classes = 7
        images = 100
        [sources.films]
        source = "films-of-2020"
        seed = 3
        [sizes.small]
        arch = "resnet18"
        lr = 2.0
        [variants.fast]
        epochs = 1
        [variants.fast.sizes.small]
        lr = 3.0
        [variants.last]
        epochs = 2
        """
    )
    read = lambda **words: read_recipe(file, **words).recipe  # noqa: E731
    assert (read().lr, read().arch, read().source) == (1.0, "bit_tiny", "own")
    assert (read(size="small").lr, read(size="small").arch) == (2.0, "resnet18")
    fast = read(size="small", variants=["fast"])
    assert (fast.lr, fast.epochs) == (3.0, 1.0)
    assert read(variants=["fast", "last"]).epochs == 2.0
    assert (read(source="films").source, read(source="films").seed) == ("films-of-2020", 3)
    other = read_recipe(file, source="another")  # what the file knows of its own source is not so of another
    assert (other.recipe.source, other.recipe.num_classes, other.images) == ("another", 0, 0)
    assert "no values of its own for R101x1, only for small" in read_recipe(file, size="R101x1").note


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("[sizes.R50x1]\nepoch = 3", {}, r"unknown key 'epoch'\. Did you mean: epochs"),
        ("sizes = 3", {}, r"'sizes' should hold tables"),
        ("images = 'many'", {}, r"images = 'many' should be a whole number"),
        ("[variants.optimized]", {"variants": ["optimised"]}, r"no variant 'optimised'\. Did you mean: optimized\?"),
        ("lr = 1.0", {"variants": ["x"]}, r"no variant 'x'\. It has: none"),
        ("[sizes.R50x1]", {"size": "R50x2"}, r"--size 'R50x2' is neither .* Did you mean: .*R50x1"),
        ("", {"size": "resnet5"}, r"--size 'resnet5' is neither .* Did you mean: resnet"),
        ("randaugment = 'rand-m9-n2'\naugment = 'xray'", {}, "randaugment goes with augment = 'crop'"),
        ("milestones = [60, 30]", {}, "milestones must ascend, not 60, 30"),
        ("mixup = -1.0", {}, r"mixup must not be negative, not -1\.0"),
        ("crop_pct = 1.5", {}, r"crop_pct must lie in \[0, 1\]"),
        ("std = [0.0, 1.0, 1.0]", {}, r"std must be above 0, not 0\.0"),
        ("interpolation = 'bicubik'", {}, "interpolation 'bicubik' is not one of .* Did you mean: bicubic"),
    ],
)
def test_wrong_recipes_are_explained(text: str, words: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises((DataError, UsageError), match=message):
        read_recipe(tmp_path / "r.toml", **words)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"recipe 'imagenet2k' does not exist.* Did you mean: imagenet21k, imagenet1k"):
        read_recipe("imagenet2k")
    with pytest.raises(DataError, match="Recipes: imagenet1k, imagenet21k, xray"):
        read_recipe("zzz")


# -- the command ----------------------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["pretrain", *words], prog_name="fastxfer")


def test_show_prints_recipes_in_full(tmp_path: Path) -> None:
    shown = run("show", "imagenet1k", "--size", "R152x4", "--epochs", "3")
    assert shown.exit_code == 0, shown.stderr
    assert "# 10,000 outputs for 1,000 classes" in shown.stdout
    (tmp_path / "again.toml").write_text(shown.stdout)
    recipe = read_recipe(tmp_path / "again.toml").recipe
    assert (recipe.epochs, recipe.num_classes, recipe.lr) == (3.0, 10_000, 0.03)
    document = json.loads(run("show", "xray", "--source", "nih", "--json").stdout)
    assert document["recipe"]["num_classes"] == 14
    assert document["images"] == 86_524
    listed = json.loads(run("show", "--json").stdout)
    assert [row["recipe"] for row in listed] == names()
    every = json.loads(run("show", "--all", "--json").stdout)
    assert len(every) == 20
    assert set(every[0]["recipe"]) == {f.name for f in fields(Recipe)}
    table = run("show", "--all").stdout
    assert all(model.name in table and " ".join(model.words) in table for model in paper())


def test_command_explains_what_is_missing() -> None:
    for words, message in (
        (["imagenet1k", "xray"], "one RECIPE at a time, not imagenet1k xray"),
        (["xray", "--out", "x.pt"], "--source is missing: .* recipe 'xray' knows chexpert, mimic"),
        (["imagenet1k"], "--out is missing"),
        (["--variant", "optimized", "--source", "a"], "of which RECIPE"),
        (["--all", "--source", "a"], "--all goes with `show`"),
        (["imagenet1k", "--source-arg", "views"], "--source-arg views: expected name=value"),
    ):
        done = run(*words)
        assert done.exit_code == 2, words
        assert re.search(message, done.stderr), done.stderr


def test_docs_have_every_key_with_its_default() -> None:
    """docs/pretrain.md has one table of all keys of a recipe."""
    rows = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            rows[cells[0].strip("`")] = cells[1:]
    assert list(rows) == [f.name for f in fields(Recipe)]
    plain = Recipe().plain()
    for name, (option, default, _) in rows.items():
        assert option == f"`{option_of(name)}`", name
        assert json.loads(default.strip("`") or '""') == plain[name], name


# -- augmentation and mixing ----------------------------------------------------------------------------------------


def test_xray_augmentation_draws_evenly_up_to_the_recipes_limits(tmp_path: Path) -> None:
    """A white square on black, moved: its middle says the shift, its area the scale."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[24:40, 24:40] = 255
    image = Image.fromarray(pixels).convert("RGB")
    recipe = Recipe(augment="xray", shift=0.25, rotate=0.0, scale=0.0, hflip=0.0)
    where = []
    for seed in range(200):
        torch.manual_seed(seed)
        moved = train_transform(recipe, 64, "box")(image)[0].float()
        y, x = np.nonzero(moved.numpy() > 127)
        where.append([y.mean() - 31.5, x.mean() - 31.5])
    assert 14 < np.abs(where).max() <= 16
    assert abs(np.mean(where)) < 1.5
    recipe = replace(recipe, shift=0.0, scale=0.1, rotate=45.0)
    areas = []
    for seed in range(200):
        torch.manual_seed(seed)
        areas.append(float((train_transform(recipe, 64, "box")(image)[0] > 127).sum()) / 256)
    assert 0.76 < min(areas) < 0.88
    assert 1.12 < max(areas) < 1.28
    torch.manual_seed(0)
    still = replace(recipe, rotate=0.0, scale=0.0)
    assert np.array_equal(train_transform(still, 64, "box")(image).numpy(), np.asarray(image).transpose(2, 0, 1))


def test_preprocessing_is_the_recipes_or_else_the_architectures() -> None:
    config = timm.get_pretrained_cfg("resnetv2_50x1_bit").to_dict()
    own = preprocessing(Recipe(arch="R50x1"), config)
    assert own["input_size"][1] == config["input_size"][1]
    assert preprocessing(Recipe(), config)["input_size"] == [3, 32, 32]
    paper = preprocessing(read_recipe("xray", size="R50x1").recipe, config)
    assert paper == {
        "input_size": [3, 224, 224],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "box",
        "crop_pct": 1.0,
    }


def test_mixing_depends_on_seed_and_step_alone() -> None:
    recipe = Recipe(mixup=0.4, cutmix=1.0)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    drawn = [draw_mix(recipe, step, 8, 32) for step in range(60)]
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]
    for step in (3, 50):
        again, first = draw_mix(recipe, step, 8, 32), drawn[step]
        assert (again.share, again.box) == (first.share, first.box)  # type: ignore[union-attr]
    assert drawn[0].partner.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]  # type: ignore[union-attr]
    boxes = [mix.box for mix in drawn if mix is not None and mix.box is not None]
    assert 15 < len(boxes) < 45
    for mix in drawn:
        if mix is not None and mix.box is not None:
            rows, columns = mix.box
            pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / 32**2
            assert mix.share == pytest.approx(1 - pasted)
    assert len({mix.share for mix in drawn if mix is not None}) > 50
    assert draw_mix(Recipe(), 0, 8, 32) is None
    assert draw_mix(recipe, 0, 5, 32).partner.tolist() == [1, 0, 3, 2, 4]  # type: ignore[union-attr]
    check_pairs(replace(recipe, batch_size=12), Group(0, 3))
    with pytest.raises(UsageError, match="batch_size 12 is no multiple of twice the 4 processes"):
        check_pairs(replace(recipe, batch_size=12), Group(0, 4))


def test_mixing_of_partly_known_labels_counts_known_entries_alone() -> None:
    """The loss of a mixed batch against its definition, entry by entry, for a blend and for a pasted box."""
    torch.manual_seed(0)
    network = timm.create_model("resnetv2_50x1_bit", num_classes=3, channels=[32], stem_chs=32, bottle_ratio=1.0)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    nan = float("nan")
    labels = torch.tensor([[1, nan, 0], [0, 1, nan], [nan, nan, nan], [1, 0, 1.0]])
    partner = torch.tensor([1, 0, 3, 2])
    box = (slice(2, 9), slice(0, 5))
    normalise = Normaliser((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    for where in (None, box):
        images = normalise(pixels)
        mixed = 0.7 * images + 0.3 * images[partner]
        if where is not None:
            mixed = images.clone()
            mixed[:, :, 2:9, 0:5] = images[partner][:, :, 2:9, 0:5]
        with torch.no_grad():
            logits = network(mixed).double().numpy()
        expected = 0.0
        for share, y in ((0.7, labels), (0.3, labels[partner])):
            known = ~torch.isnan(y).numpy()
            each = np.log1p(np.exp(-np.where(y.numpy() > 0.5, logits, -logits)))
            expected += share * each[known].mean()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        for micro in (4, 3):
            loss = Trainer(network, optimizer, normalise, micro).step(pixels, labels, 0.0, (0.7, partner), where)
            assert loss == pytest.approx(expected, rel=1e-5)


def test_batches_with_mixing_are_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(paths[-1])
    recipe = Recipe(mixup=1.0, batch_size=12, augment="none")
    mixes = []
    for count in (1, 2, 3):
        parts = []
        for rank in range(count):
            batches = Batches(Images(paths), train_transform(recipe, 8, "bilinear"), 12, 0, group=Group(rank, count))
            pixels, rows = batches[5]
            mix = draw_mix(recipe, 5, len(rows), 8)
            assert mix is not None
            parts.append(mix.share * pixels.float() + (1 - mix.share) * pixels[mix.partner].float())
        mixes.append(torch.cat(parts))
    assert torch.equal(mixes[0], mixes[1])
    assert torch.equal(mixes[0], mixes[2])
