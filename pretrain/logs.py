"""Where a run's numbers can go: a CSV, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from fastxfer.errors import UsageError
from fastxfer.files import write_whole
from pretrain.log import Log
from pretrain.recipe import Recipe

SERVICES = ("tensorboard", "wandb")


def open_logs(out: Path, recipe: Recipe, services: Sequence[str] = ()) -> list[Log]:
    """The logs of the run whose checkpoint is `out`: ``NAME.csv`` beside it, and those of `SERVICES` that are named.

    `UsageError` for one whose package isn't installed.
    """
    made: list[Log] = [CsvLog(out.with_suffix(".csv"))]
    if "tensorboard" in services:
        made.append(TensorBoardLog(out.with_name(f"{out.stem}.tensorboard")))
    if "wandb" in services:
        made.append(WandbLog(out, recipe))
    return made


class CsvLog:
    """A line a step and a line a validation; of a run that goes on, the lines of steps that will come again are taken out."""

    COLUMNS = (
        "kind",  # step: the batch's loss; epoch: the mean since the last validation
        "step",
        "epoch",
        "loss",
        "lr",
        "images_per_second",
        "val_loss",
        "val_accuracy",
        "val_balanced_accuracy",
        "val_auc",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def on_begin(self, step: int, steps: int) -> None:
        kept = [row for row in self._rows() if int(row["step"]) <= step] if step else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_whole(self.path, text.getvalue().encode())
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def _rows(self) -> list[dict[str, str]]:
        """What is there, without a last line that a kill cut short."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        rows = [row for row in csv.DictReader(lines) if None not in row.values()]
        return [
            {column: row.get(column, "") for column in self.COLUMNS} for row in rows if row.get("step", "").isdigit()
        ]

    def _write(self, **values: Any) -> None:
        assert self._file is not None
        self._file.write(",".join(str(values.get(column, "")) for column in self.COLUMNS) + "\n")

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        self._write(kind="step", step=step, loss=loss, lr=lr, images_per_second=f"{rate:.1f}")

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        self._write(**{**line, "kind": "epoch", "step": step})

    def on_end(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoardLog:
    """Scalars train/… and val/… over steps, in an event file a start; `tensorboard --logdir` shows them."""

    def __init__(self, folder: Path) -> None:
        _library("tensorboard")
        self.folder = folder
        self._writer: Any = None

    def on_begin(self, step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        for name, value in _of_step(loss, lr, rate).items():
            self._writer.add_scalar(name, value, step)

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        for name, value in _of_validation(line).items():
            self._writer.add_scalar(name, value, step)

    def on_end(self) -> None:
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases with the recipe as its configuration, the same run when it goes on.

    Project, account and place are those of its environment (WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR; WANDB_MODE=offline keeps
    all on this machine).
    """

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self._wandb = _library("wandb")
        self.name = out.stem
        self.id = blake2b(str(out.absolute()).encode(), digest_size=8).hexdigest()
        self.config = recipe.plain()
        self._run: Any = None

    def on_begin(self, step: int, steps: int) -> None:
        self._run = self._wandb.init(
            name=self.name, id=self.id, resume="allow" if step else None, config={**self.config, "steps": steps}
        )
        # Steps that come again are told again: an axis of our own, since W&B's may not go back.
        self._run.define_metric("*", step_metric="step")

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        self._run.log({"step": step, **_of_step(loss, lr, rate)})

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **_of_validation(line)})

    def on_end(self) -> None:
        self._run.finish()


def _of_step(loss: float, lr: float, rate: float) -> dict[str, float]:
    return {"train/loss": loss, "train/lr": lr, "train/images_per_second": rate}


def _of_validation(line: Mapping[str, Any]) -> dict[str, float]:
    """val_accuracy → val/accuracy; the rest of the line has been told, step by step."""
    return {key.replace("_", "/", 1): value for key, value in line.items() if key == "epoch" or key.startswith("val_")}


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"--log {name} needs the package {name}: pip install 'fastxfer[logs]'") from None
