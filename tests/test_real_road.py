"""Every folder of ../shared/real walks the road: one line adds it, then embed, fewshot, probe, knn, select, report.

All images of a folder would take minutes, so some of each, listed in a table of their own, are embedded.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from fastxfer.cli import main

pytestmark = pytest.mark.real

NETWORK = Path(__file__).parent / "architectures" / "cifar_resnet56.py"
# folder -> classes (None: all), images a class of each split
SOME: dict[str, tuple[int | None, dict[str, int]]] = {
    "kermany_pneumonia": (None, {"train": 20, "test": 16}),
    "nih_sample": (None, {"train": 2, "test": 2}),  # of each combination of labels
    "dtd10": (5, {"train": 6, "val": 6, "test": 15}),
    "cifar10_subset": (5, {"train": 10, "test": 15}),
    "omniglot_small": (8, {"train": 15, "test": 5}),
}
CLASSES = {"kermany_pneumonia": 2, "nih_sample": 14, "dtd10": 5, "cifar10_subset": 5, "omniglot_small": 8}


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(w) for w in words], prog_name="fastxfer")
    assert result.exit_code == 0, result.stderr
    return result


def run_json(*words: object) -> Any:
    return json.loads(run(*words, "--json").stdout, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


def write_some(folder: Path, out: Path, classes: int | None, quota: dict[str, int]) -> int:
    """`out` = the folder's labels.csv, cut to some images; returns how many."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        rows, columns = list(table), table.fieldnames
    labels = sorted({row["label"] for row in rows})[:classes]
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        key = (row["label"], row["split"])
        if row["label"] in labels and taken[key] < quota[row["split"]]:
            taken[key] += 1
            kept.append(row)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or [])
        writer.writeheader()
        writer.writerows(kept)
    return len(kept)


@pytest.fixture(scope="module")
def road(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data root (each real target whole as `all-NAME`, some of it as `NAME`) and a store."""
    root = tmp_path_factory.mktemp("road")
    sizes = {}
    for name, (classes, quota) in SOME.items():
        run("targets", "add", real / name, "--name", f"all-{name}", "--data-root", root / "data")
        sizes[name] = write_some(real / name, root / f"{name}.csv", classes, quota)
        run(
            "targets", "add", root / f"{name}.csv", "--root", real / name, "--name", name, "--data-root", root / "data"
        )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = real / "weights" / "natural_cifar10_resnet56.safetensors"
    embedded = run_json(
        "embed", "--ckpt", weights, "--arch", f"{NETWORK}:build", "--name", "resnet56", "--source", "cifar10",
        "--target", *SOME, "--data-root", root / "data", "--store", root / "store",
    )["embedded"]  # fmt: skip
    torch.set_num_threads(threads)
    assert {e["target"]: e["n_images"] for e in embedded} == sizes
    return root


def test_every_folder_is_added_by_one_line_and_listed(road: Path) -> None:
    listed = {t["name"]: t for t in run_json("targets", "ls", "--data-root", road / "data")}
    assert {f"all-{name}" for name in SOME} | set(SOME) < set(listed)
    assert listed["all-omniglot_small"]["n_classes"] == 242
    assert {name: listed[name]["n_classes"] for name in SOME} == CLASSES
    nih = run_json("targets", "show", "all-nih_sample", "--data-root", road / "data")
    assert (nih["multi_label"], nih["n_images"], nih["splits"]) == (True, 621, {"train": 435, "test": 186})
    stored = run_json("store", "ls", "--store", road / "store")
    assert [(e["target"], e["dim"], e["complete"], e["source"]) for e in stored] == [
        (name, 64, True, "cifar10") for name in sorted(SOME)
    ]


def test_fewshot_on_all_and_what_it_leaves_out(road: Path) -> None:
    document = run_json("fewshot", "--episodes", "200", "--store", road / "store", "--results", road / "few")
    ways = {c["target"]: c["ways"] for c in document["cells"]}
    assert ways == {"kermany_pneumonia": "2", "dtd10": "5", "cifar10_subset": "5", "omniglot_small": "5"}
    # 5 test images a character: fewer queries are taken, which the rows tell.
    (eased,) = document["eased"]
    assert (eased["target"], eased["options"]) == ("omniglot_small", "--fewer-queries")
    assert (
        "class 'Balinese/character01' has 15 train and 5 test images to draw from, but 1 shots and 15 queries are "
        "asked for (and 7 more such classes). Lower --shots or --queries" in eased["reason"]
    )
    assert all("fewer_queries" in c["params"] for c in document["cells"] if c["target"] == "omniglot_small")
    # X-rays with one finding alone are rarer still.
    reasons = {s["target"]: s["reason"] for s in document["skipped"]}
    assert set(reasons) == {"nih_sample"}
    assert "class 'Atelectasis' has 2 train and 2 test images to draw from, but 1 shots" in reasons["nih_sample"]

    def mean(of: Any, target: str, shots: str) -> float:
        (cell,) = [
            c for c in of["cells"] if (c["target"], c["shots"], c["probe"]) == (target, shots, "logistic")
        ]  # fmt: skip
        assert cell["low"] < cell["mean"] < cell["high"]
        assert cell["converged"] == 1
        return float(cell["mean"])

    assert mean(document, "cifar10_subset", "5") > 0.75  # its own classes; README: 0.85 by the full probe
    assert mean(document, "dtd10", "5") > 0.3  # chance: 0.2
    drawn = run_json(
        "fewshot", "--target", "omniglot_small", "--queries", "5", "--episodes", "200", "--store", road / "store",
        "--results", road / "few",
    )  # fmt: skip
    assert mean(drawn, "omniglot_small", "5") > mean(drawn, "omniglot_small", "1") > 0.4
    # Multi-label: the images with exactly one label serve, as in Cherti & Jitsev (2021).
    single = run_json(
        "fewshot", "--target", "nih_sample", "--ways", "5", "--shots", "1", "--queries", "2", "--drop-scarce",
        "--episodes", "200", "--probe", "logistic", "--store", road / "store", "--results", road / "few",
    )  # fmt: skip
    assert [c["n"] for c in single["cells"]] == [200]
    assert 0.1 < mean(single, "nih_sample", "1") < 0.5


def test_full_probes_selection_and_report(road: Path) -> None:
    places = ("--store", road / "store", "--results", road / "full")
    probed = run_json("probe", "--l2", "0.1", "0.01", "0.001", *places)["rows"]
    near = run_json("knn", "--target", "nih_sample", *places)["rows"]
    metrics: dict[tuple[str, str], set[str]] = {(r["target"], r["probe"]): set() for r in [*probed, *near]}
    for r in [*probed, *near]:
        metrics[r["target"], r["probe"]].add(r["metric"])
        assert 0 <= r["value"] <= 1
    assert set(metrics) == {*((name, "logistic") for name in SOME), ("nih_sample", "knn")}
    for (name, _), found in metrics.items():
        multi_label = name == "nih_sample"
        assert found == ({"auc", "average_precision"} if multi_label else {"accuracy", "balanced_accuracy", "auc"})
    test = {(r["target"], r["metric"]): r["value"] for r in probed if r["split"] == "test"}
    assert test["cifar10_subset", "balanced_accuracy"] > 0.75
    assert test["omniglot_small", "balanced_accuracy"] > 0.6

    plan = run_json("select", "--budget", "5", "--out", road / "plan.json", *places)
    assert {e["target"]: e["expected"]["metric"] for e in plan["entries"]} == {
        name: "auc" if name == "nih_sample" else "balanced_accuracy" for name in SOME
    }
    run_json("fewshot", "--episodes", "20", *places)
    report = run_json("report", "--out", road / "report", "--plan", road / "plan.json", *places)
    page = Path(report["report"]).read_text(encoding="utf-8")
    for name in SOME:
        assert name in page
