"""The road in small: forty images, a tiny network, and the lines that lead from them to a report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NETWORK = """
import torch
def build():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 24), torch.nn.ReLU(), torch.nn.Linear(24, 16))
    net.input_size, net.mean, net.std = (3, 8, 8), 0.5, 0.25
    return net
"""


class Road:
    """The world below `folder`, which may be put away and brought back, always to the same place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.results, self.data = folder / "store", folder / "results", folder / "data"
        self.plan, self.page = folder / "plan.json", folder / "report"
        self.images, self.weights, self.network = folder / "images", folder / "net.pt", folder / "net.py"

    def make(self) -> None:
        """Images, labels.csv and a checkpoint."""
        import torch

        self.images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        with (self.images / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "split"])
            for i in range(40):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 100 * (i % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(self.images / f"{i:02}.png")
                table.writerow([f"{i:02}.png", "ab"[i % 2], ("train", "train", "train", "val", "test")[i // 2 % 5]])
        self.network.write_text(NETWORK, encoding="utf-8")
        torch.manual_seed(1)
        shapes = {"1.weight": (24, 192), "1.bias": (24,), "3.weight": (16, 24), "3.bias": (16,)}
        torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, self.weights)

    def lines(self) -> dict[str, list[Any]]:
        """The lines of the road by what they do, in its order."""
        rows = ["--store", self.store, "--results", self.results]
        return {
            "targets add": ["targets", "add", self.images, "--name", "photos", "--data-root", self.data],
            "embed": [
                *(
                    "embed",
                    "--ckpt",
                    self.weights,
                    "--arch",
                    f"{self.network}:build",
                    "--name",
                    "net",
                    "--target",
                    "photos",
                ),
                *(
                    "--store",
                    self.store,
                    "--data-root",
                    self.data,
                    "--batch-size",
                    8,
                    "--block-rows",
                    8,
                    "--workers",
                    1,
                ),
            ],
            "fewshot": ["fewshot", *rows, "--ways", 2, "--shots", 1, 3, "--queries", 3, "--episodes", 20],
            "probe": ["probe", *rows],
            "select": ["select", *rows, "--budget", 1, "--out", self.plan],
            "report": ["report", *rows, "--out", self.page],
        }

    def state(self) -> dict[str, Any]:
        """What is there, by digests that depend on content alone; and what `store verify` says. To be called in a fork."""
        from fastxfer.results import ResultStore
        from fastxfer.store import EmbeddingStore, verify

        told: dict[str, Any] = {"problems": []}
        if (self.store / "zarr.json").exists():
            told["store"] = EmbeddingStore.open(self.store).digest()
            told["problems"] = [str(problem) for problem in verify(self.store).problems]
        if self.results.exists():
            results = ResultStore.open(self.results)
            told["rows"] = len(results.read())
            told["results"] = results.digest
        if self.plan.exists():
            plan = json.loads(self.plan.read_text(encoding="utf-8"))
            told["plan"] = [entry["backbone"] for entry in plan["entries"]]
        told["pages"] = sum(
            page.read_text(encoding="utf-8").rstrip().endswith("</html>") for page in self.page.glob("*.html")
        )
        return told

    def put_away(self, folder: Path) -> None:
        """Keep a copy of all this."""
        shutil.copytree(self.folder, folder)

    def bring_back(self, folder: Path) -> None:
        """Be as the copy is."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(folder, self.folder)
