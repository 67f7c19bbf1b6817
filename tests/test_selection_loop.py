"""The loop select → finetune → select by the command line: it ends by itself, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from digits import write_digits
from tuning import SIZE, TINY, one_thread

from fastxfer.cli import main
from fastxfer.plans import read_plan
from fastxfer.results import ResultStore
from fastxfer.targets import load_target
from pretrain.loop import pretrain
from pretrain.recipe import Recipe

QUICK = ("--steps", "2", "--batch-size", "8", "--image-size", "16")


def embed_untrained(root: Path, names: Sequence[str]) -> None:
    """Untrained backbones of these names, embedded on digits with a validation split; the caller holds `one_thread`."""
    images = write_digits(root / "images", n_train=120, n_test=40, size=SIZE)
    command(root, "targets", "add", str(images), "--name", "digits", "--val", "0.25", store=False)
    recipe = Recipe(arch="resnetv2_50x1_bit", arch_args=TINY, image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    for seed, name in enumerate(names):
        pretrain(replace(recipe, seed=seed), load_target("digits", root), root / f"{name}.pt", untrained=True)
        command(root, "embed", "--ckpt", str(root / f"{name}.pt"), "--name", name, "--target", "digits")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained backbones, embedded and probed on digits with a validation split."""
    root = tmp_path_factory.mktemp("loop")
    with one_thread():
        embed_untrained(root, ("one", "two"))
        command(root, "probe", "--store", str(root / "store"), store=False, data=False)
    return root


def command(root: Path, *words: str, store: bool = True, data: bool = True) -> Result:
    places = [*(["--store", str(root / "store")] if store else []), *(["--data-root", str(root)] if data else [])]
    result = CliRunner().invoke(main, [*words, *places], prog_name="fastxfer")
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def run(studied: Path) -> Callable[..., Result]:
    def do(*words: str) -> Result:
        with one_thread():
            return command(studied, *words, data=words[0] == "finetune")

    return do


def test_the_loop_ends_by_itself(run: Callable[..., Result], studied: Path) -> None:
    plan = studied / "plan.json"
    words = (
        "select",
        "--policy",
        "ei",
        "--budget",
        "6 runs",
        "--batch",
        "1",
        "--stop-gain",
        "0.01",
        "--out",
        str(plan),
    )
    run(*words)
    first = json.loads(plan.read_text())
    assert len(first["entries"]) == 1
    assert any("left to a later batch" in e["reason"] for e in first["rejected"])
    followed = run("finetune", "--plan", str(plan), "--follow", *QUICK)
    assert "nothing more is worth a fine-tuning" in followed.output
    rows = ResultStore.open(studied / "store-results").read()
    assert set(rows.loc[rows["probe"] == "finetune", "backbone"]) == {
        "one",
        "two",
    }  # both runs were of use, then no more
    last = json.loads(plan.read_text())
    assert last["entries"] == []
    assert read_plan(plan)[1] == []
    assert last["again"]["budget"] == "4 runs"
    assert last["chosen"]["digits"]["finetuned"] is not None
    # And from the command line, one step after another.
    assert "nothing more is worth a fine-tuning" in run(*words).output
    empty = run("finetune", "--plan", str(plan), *QUICK)
    assert "is empty: nothing is worth a fine-tuning" in empty.output
    assert json.loads(run("finetune", "--plan", str(plan), "--json", *QUICK).stdout)["runs"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "eii"), "unknown policy 'eii'. Did you mean: ei"),
        (("--budget", "50 usd"), "what a GPU-hour costs is not known here"),
        (("--budget", "3 rnus"), "unknown unit 'rnus'. Did you mean: runs"),
        (("--budget", "1e6 images"), "a plan's budget is in runs, gpu-hours or money"),
    ],
)
def test_select_says_what_is_wrong(studied: Path, words: tuple[str, ...], message: str) -> None:
    given = ["select", "--out", str(studied / "x.json"), "--store", str(studied / "store"), *words]
    result = CliRunner().invoke(main, given, prog_name="fastxfer")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (studied / "x.json").exists()
