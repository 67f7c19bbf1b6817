"""What packages bring: one of each kind from outside, by the real commands; and what is said where one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from helpers import blobs_store, blobs_target
from PIL import Image

from fastxfer import plugins
from fastxfer.cli import main
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.errors import DataError, UsageError
from fastxfer.evaluation import evaluate
from fastxfer.metrics import METRICS, meaning, measure
from fastxfer.plugins import KINDS
from fastxfer.probes import PROBES, ArrayProbe, PrototypeProbe, make_probe
from fastxfer.results import ResultStore

OUTSIDE = Path(__file__).parent / "outside"


def install(site: Path, name: str, groups: dict[str, dict[str, str]], version: str = "1.0") -> None:
    """What an installer leaves of a package beside its code: metadata and entry points."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items()) for group, of in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


# -- one of each kind, from outside ------------------------------------------------------------------------------------

ROAD = """
import json, sys
from click.testing import CliRunner
from fastxfer.cli import main

for words in json.load(sys.stdin):
    done = CliRunner().invoke(main, words)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three kinds of stripes in the layout of the package's target, and weights for its backbone."""
    import torch

    folder = tmp_path_factory.mktemp("world")
    images, rng = folder / "data/stripes/images", np.random.default_rng(0)
    images.mkdir(parents=True)
    for kind, angle in (("flat", (0, 1)), ("steep", (1, 0)), ("slanting", (1, 1))):
        for number in range(30):
            y, x = np.mgrid[:16, :16]
            wave = np.sin((angle[0] * x + angle[1] * y) * 1.3 + rng.uniform(0, 6)) + rng.normal(0, 1.0, (16, 16))
            grey = np.clip(128 + 50 * wave, 0, 255).astype(np.uint8)
            Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(images / f"{kind}_{number}.png")
    test = [f"{kind}_{number}.png" for kind in ("flat", "steep", "slanting") for number in range(12)]
    (folder / "data/stripes/test.txt").write_text("\n".join(test), encoding="utf-8")
    for name, seed in (("tiny", 0), ("other", 1)):
        weight = torch.randn(24, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) / 5
        torch.save({"conv.weight": weight, "conv.bias": torch.zeros(24)}, folder / f"{name}.pt")
    install(
        folder / "site",
        "fastxfer-example",
        tomllib.loads((OUTSIDE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"],
    )
    return folder


@pytest.fixture(scope="module")
def road(world: Path) -> dict[str, Any]:
    """What each command of a road said that goes over all five, in a process that finds the package on its path."""
    store = ["--store", str(world / "store")]
    commands = {
        "doctor": ["doctor", "--json"],
        "targets": ["targets", "ls", "--data-root", str(world / "data"), "--json"],
        "probes": ["probes", "ls", "--json"],
        **{f"embed {name}": ["embed", "--ckpt", str(world / f"{name}.pt"), "--arch", "tiny-net", "--target", "stripes",
                             "--data-root", str(world / "data"), "--json", *store] for name in ("tiny", "other")},
        "fewshot": ["fewshot", "--probe", "median", "prototype", "--metric", "accuracy", "top2", "--ways", "3", "--shots", "5",
                    "--queries", "5", "--episodes", "200", "--json", *store],
        "probe": ["probe", "--probe", "median", "--json", *store],
        "compare": ["compare", "--metric", "top2", "--probe", "median", "--json", *store],
        "select": ["select", "--policy", "cheapest", "--out", str(world / "plan.json"), "--json", *store],
    }  # fmt: skip
    path = os.pathsep.join([str(world / "site"), str(OUTSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ROAD],
        input=json.dumps(list(commands.values())), capture_output=True, text=True, timeout=120, cwd=world,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))
    for name, (code, out, err) in said.items():
        assert code == 0, (name, out, err)
    return {name: json.loads(out) if out.startswith(("{", "[")) else out for name, (_, out, _) in said.items()}


@pytest.fixture(scope="module")
def rows(world: Path, road: dict[str, Any]) -> pd.DataFrame:
    return ResultStore.open(world / "store-results").read()


def test_lists_show_what_the_package_brings(road: dict[str, Any]):
    found = {line["what"]: line for line in road["doctor"]}
    for what in ("probe median", "target stripes", "architecture tiny-net", "metric top2", "policy cheapest"):
        assert found[what]["state"] == "ok"
        assert "fastxfer-example 1.0" in found[what]["found"]
    (stripes,) = (line for line in road["targets"] if line["name"] == "stripes")
    assert (stripes["kind"], stripes["available"]) == ("package", True)
    (median,) = (line for line in road["probes"] if line["name"] == "median")
    assert median["what"] == "nearest class median"
    assert "fastxfer-example 1.0" in median["source"]


def test_its_target_and_backbone_make_embeddings_that_say_so(world: Path, road: dict[str, Any]):
    from fastxfer.store import EmbeddingStore

    store = EmbeddingStore.open(world / "store")
    for entry, name in zip(store.entries(), ("other", "tiny"), strict=True):
        assert (entry.backbone, entry.target, entry.dim, entry.n_present) == (name, "stripes", 24, 90)
        assert entry.attrs["architecture"] == "tiny-net"
    assert store.target("stripes").class_names == ("flat", "slanting", "steep")
    assert (store.target("stripes").split == "test").sum() == 36


def test_its_probe_answers_episodes_and_a_full_train_split(rows: pd.DataFrame):
    values = rows[rows["metric"] == "accuracy"].groupby(["shots", "probe", "split"], observed=True)["value"].mean()
    few, full = values["5", "median", "test"], values["full", "median", "test"]
    assert few > 0.6
    assert full > 0.7
    assert abs(few - values["5", "prototype", "test"]) < 0.1  # alike, not the same
    assert few != values["5", "prototype", "test"]


def test_its_metric_stands_in_the_rows_and_has_no_interval_it_has_no_right_to(road: dict[str, Any], rows: pd.DataFrame):
    few = rows[rows["shots"] == "5"].pivot_table(
        index=["probe", "episode"], columns="metric", values="value", observed=True
    )
    assert (few["top2"] >= few["accuracy"]).all()
    assert few["top2"].between(0, 1).all()
    cells = {(line["probe"], line["metric"]): line for line in road["fewshot"]["cells"]}
    one = cells["median", "top2"]
    assert one["low"] < one["mean"] < one["high"]  # over episodes, as for every metric
    assert one["low_images"] is None
    assert one["reason"] == "a metric without influences of images"
    assert cells["median", "accuracy"]["low_images"] is not None
    (pair,) = road["compare"]["pairs"]
    assert pair["over"] == "episodes"


def test_its_policy_makes_the_plan(road: dict[str, Any]):
    assert road["select"]["policy"] == "the cheapest run first"
    chosen = [(entry["backbone"], entry["reason"].split(";")[0]) for entry in road["select"]["entries"]]
    assert sorted(chosen) == [("other", "costs 1"), ("tiny", "costs 1")]


@pytest.mark.parametrize("file", sorted(p.name for p in (OUTSIDE / "fastxfer_example").glob("[!_]*.py")))
def test_each_is_one_short_file(file: str):
    lines = (OUTSIDE / "fastxfer_example" / file).read_text(encoding="utf-8").splitlines()
    assert 0 < len(lines) < 40


# -- what can go wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install packages for the length of a test: `site(name, {"probes": {"a": "module:A"}}, module="source")`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def bring(name: str, groups: dict[str, dict[str, str]], **modules: str) -> None:
        install(folder, name, {f"fastxfer.{group}": of for group, of in groups.items()})
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
            monkeypatch.delitem(sys.modules, module, raising=False)
        plugins.installed.cache_clear()

    yield bring
    plugins.installed.cache_clear()


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_a_package_that_does_not_load_is_named_and_stops_nobody_else(site, tmp_path: Path):
    site("wrecked", {group: {"lost": "wrecked:Lost"} for group in KINDS}, wrecked="import no_such_module")
    blobs_store(tmp_path / "store")
    store = ("--store", str(tmp_path / "store"))
    done = run("fewshot", "--probe", "lost", *store)
    assert done.exit_code == 1
    assert "probe 'lost' of package wrecked 1.0 (wrecked:Lost) does not load: ModuleNotFoundError" in done.stderr
    assert "no_such_module" in done.stderr
    assert "Upgrade or uninstall wrecked" in done.stderr
    assert run("fewshot", "--probe", "prototype", "--episodes", "5", *store).exit_code == 0
    for words, sign in ((("probes", "ls"), "lost"), (("targets", "ls", "--data-root", str(tmp_path)), "lost")):
        listed = run(*words)
        assert listed.exit_code == 0
        assert any(sign in line and "does not load" in line for line in listed.stdout.splitlines())
    examined = {line["what"]: line for line in json.loads(run("doctor", "--json", *store).stdout)}
    assert {examined[f"{kind} lost"]["state"] for kind in KINDS.values()} == {"missing"}


def test_names_are_read_without_running_anything(site):
    site("eager", {"probes": {"eager": "eager:P"}, "metrics": {"eager": "eager:M"}}, eager="raise SystemExit(3)")
    assert "eager" in PROBES
    assert "eager" in list(METRICS)
    with pytest.raises(UsageError, match="Did you mean: eager"):
        make_probe("eagr")


def test_a_name_taken_twice_is_an_error_that_names_both(site):
    source = "from fastxfer.metrics import Metric, accuracy\nM = Metric(accuracy)\n"
    site("first", {"metrics": {"both": "twice:M", "first": "twice:M"}}, twice=source)
    site("second", {"metrics": {"both": "twice:M", "auc": "twice:M"}})
    with pytest.raises(UsageError, match=r"metric 'both' is brought by package second 1\.0 .* package first 1\.0"):
        METRICS["both"]
    with pytest.raises(UsageError, match=r"metric 'auc' is brought by fastxfer itself and by package second 1\.0"):
        METRICS["auc"]
    assert METRICS["first"] is not None
    assert meaning("both") is None


def test_a_backbone_may_not_be_called_like_one_of_timms(site, tmp_path: Path):
    import torch

    from fastxfer.backbones import load_backbone

    site(
        "usurper",
        {"backbones": {"resnet18": "usurper:build", "loose": "usurper:build"}},
        usurper="def build(): return 1",
    )
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"'resnet18' is brought by timm and by package usurper"):
        load_backbone(tmp_path / "weights.pt", arch="resnet18")
    with pytest.raises(DataError, match="--arch loose returned int, expected a torch module"):
        load_backbone(tmp_path / "weights.pt", arch="loose")
    with pytest.raises(UsageError, match=r"loose is an architecture without weights: .* --ckpt FILE --arch loose"):
        load_backbone("loose")


@pytest.mark.parametrize(
    ("group", "source", "said"),
    [
        ("probes", "Thing = 3", "it is 3, expected a subclass of fastxfer.probes.Probe"),
        (
            "probes",
            "from fastxfer.probes import PrototypeProbe as Thing",
            "its `name` is 'prototype', expected 'thing'",
        ),
        ("targets", "def Thing(folder, name): ...", "expected a fastxfer.targets.Family"),
        ("metrics", "def Thing(scores, labels): ...", "expected a fastxfer.metrics.Metric"),
        ("policies", "Thing = 'top'", "it is 'top', expected a subclass of fastxfer.selection.Policy"),
        ("backbones", "class Thing: ...", "expected a function that returns a torch module"),
    ],
)
def test_what_is_not_of_its_kind_is_refused(site, group: str, source: str, said: str):
    from fastxfer.doctor import examine

    site("odd", {group: {"thing": "odd:Thing"}}, odd=source)
    (found,) = (f for f in examine("nowhere") if f.what == f"{KINDS[group]} thing")
    assert found.state == "missing"
    assert said in found.found
    assert "docs/architecture.md" in found.found


def test_a_kind_that_does_not_exist_is_told_by_doctor(site):
    from fastxfer.doctor import examine

    site("typist", {"probe": {"x": "typist:X"}})
    (found,) = (f for f in examine("nowhere") if f.what == "plug-in x")
    assert "brings it as 'fastxfer.probe', which is none of fastxfer.probes" in found.found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("np.zeros(3)", r"gives values \(3,\) of scores \(2, 4, 3\): expected \(2,\)"),
        ("np.array([0.5, 7.0])", "0.5 … 7"),
    ],
)
def test_values_that_a_metric_cannot_have_are_refused(site, body: str, said: str):
    source = f"import numpy as np\nfrom fastxfer.metrics import Metric\nM = Metric(lambda s, y: {body})"
    site("wild", {"metrics": {"wild": "wild:M"}}, wild=source)
    with pytest.raises(DataError, match=f"metric 'wild' .*{said}"):
        measure("wild", np.zeros((2, 4, 3)), np.zeros((2, 4), int))


def test_rows_of_a_metric_that_nobody_here_knows_are_left_out_and_said(site, tmp_path: Path):
    source = "from fastxfer.metrics import Metric, accuracy\nM = Metric(accuracy)\n"
    site("gone", {"metrics": {"gone": "gone:M"}}, gone=source)
    blobs_store(tmp_path / "store")
    store = ("--store", str(tmp_path / "store"))
    assert (
        run("fewshot", "--probe", "prototype", "--metric", "accuracy", "gone", "--episodes", "20", *store).exit_code
        == 0
    )
    next((tmp_path / "site").glob("gone*.dist-info/entry_points.txt")).write_text("", encoding="utf-8")
    plugins.installed.cache_clear()
    for words in (("compare",), ("report", "--out", str(tmp_path / "report.html"))):
        done = run(*words, *store)
        assert done.exit_code == 0, done.stderr
        assert "left out: values of gone, since no package here says what they mean" in done.stderr
    asked = run("compare", "--metric", "gone", *store)
    assert asked.exit_code == 2


# -- probes of arrays --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean(ArrayProbe):
    """`prototype` once more, in NumPy."""

    name: ClassVar[str] = "mean"
    summary: ClassVar[str] = "nearest class mean"
    power: int = 2

    def score(self, x: Any, y: Any, query: Any, ways: int) -> Any:
        means = np.stack([x[y == label].mean(axis=0) for label in range(ways)])
        return -(np.abs(query[:, None] - means) ** self.power).sum(axis=2)


@pytest.mark.parametrize("labels", ["exactly-one", "per-label"])
@pytest.mark.parametrize("transform", [(), ("standardise",)])
def test_a_probe_of_arrays_says_what_the_compiled_one_says(tmp_path: Path, labels: str, transform: tuple[str, ...]):
    store = blobs_store(tmp_path / "store", blobs_target(multi_label=labels == "per-label"))
    spec = EpisodeSpec(4, 3, 5, labels=labels)
    episodes = sample_episodes(store.target("blobs"), spec, seed=0, episodes=20)
    probes = [Mean(transform=transform), PrototypeProbe(transform=transform)]
    rows = evaluate(store, episodes, probes, backbones=["bad"], metrics=["auc"])
    own, compiled = (rows[rows["probe"] == probe.name]["value"].to_numpy() for probe in probes)
    np.testing.assert_allclose(own, compiled, atol=0.02)  # a pair of scores that all but tie
    assert set(rows["params"][rows["probe"] == "mean"].str.split(";").str[0]) == {"power=2"}


def test_a_probe_of_arrays_takes_the_labels_of_an_image_one_by_one():
    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(40, 5)), rng.normal(size=(7, 5))
    y = (rng.random((40, 3)) < 0.5).astype(np.float32)
    y[rng.random(y.shape) < 0.2] = np.nan
    (found,) = Mean().solve_full(x, y, query, 3)
    for label in range(3):
        known = ~np.isnan(y[:, label])
        no, yes = Mean().score(x[known], y[known, label], query, 2).T
        np.testing.assert_allclose(found.scores[:, label], yes - no)


def test_scores_of_a_wrong_shape_are_refused():
    class Flat(Mean):
        def score(self, x: Any, y: Any, query: Any, ways: int) -> Any:
            return np.zeros(len(query))

    with pytest.raises(DataError, match=r"probe 'mean' gives scores \(7,\) of 7 queries in 2 ways: expected \(7, 2\)"):
        list(Flat().solve_full(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.zeros((7, 2)), 2))
