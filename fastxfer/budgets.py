"""What may be spent on fine-tuning, and what it will cost by what earlier ones did. Nothing here needs torch."""

from __future__ import annotations

import fcntl
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastxfer.errors import UsageError, nearest

FINETUNE = "finetune"
_STOPPED = "stopped="  # in the params of a run that was not finished, and the step
COSTS = ("seconds", "images", "images_scored", "flops", "joules")
"""Metrics of rows that say what a fine-tuning cost, split "train"."""

_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_EXAMPLES = '"2 gpu-hours", "30 minutes", "3 runs" or "1e6 images"'
_MONEY = ("usd", "eur")


@dataclass(frozen=True)
class Budget:
    """An amount of one kind.

    kind: "device-seconds" (of all processes of a job together), "seconds" (of the clock), "runs" or "images" (forward
          and backward, of all processes together)
    text: as it was given
    """

    amount: float
    kind: str
    text: str


def parse_budget(text: str, *, gpu_hour: float | None = None) -> Budget:
    """ "2 gpu-hours", "30 minutes", "3 runs", or just "3", "1e6 images"; `UsageError` for anything else.

    gpu_hour: what an hour of a device costs; with it "50 usd" (or eur) is so many hours of a device
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,.]*(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z-]*)\s*", text)
    if match is None:
        raise UsageError(f"--budget '{text}' is no number and unit: for example {_EXAMPLES}")
    try:
        amount = float(match[1].replace(",", "").replace("_", ""))
    except ValueError:
        raise UsageError(f"--budget '{text}': '{match[1]}' is no number: for example {_EXAMPLES}") from None
    unit = match[2].lower() or "runs"
    unit = unit.removesuffix("s") if len(unit) > 1 else unit
    of_device, _, span = unit.rpartition("-")
    if not (math.isfinite(amount) and amount > 0):
        raise UsageError(f"--budget '{text}' is not above 0")
    if unit in ("run", "image"):
        return Budget(amount, f"{unit}s", text)
    if span in _SECONDS and of_device in ("", "gpu", "device", "cpu"):
        return Budget(amount * _SECONDS[span], "device-seconds" if of_device else "seconds", text)
    if unit in _MONEY:
        if gpu_hour is None:
            raise UsageError(
                f"--budget '{text}': what a GPU-hour costs is not known here. Give the budget in gpu-hours, or, to "
                "`fastxfer select`, --gpu-hour PRICE"
            )
        return Budget(3600.0 * amount / gpu_hour, "device-seconds", text)
    known = ["runs", "images", *_MONEY, *(f"{span}s" for span in _SECONDS), *(f"gpu-{span}s" for span in _SECONDS)]
    raise UsageError(f"--budget '{text}': unknown unit '{match[2]}'.{nearest(match[2], known)} For example {_EXAMPLES}")


class Ledger:
    """What the processes of a job have spent together; in a file where they are several (path), else in memory.

    A job may have the name of an earlier one (torchrun's usually has): who comes while no other lives opens new books.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._own: dict[str, float] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._alive = open(path.with_name(f"{path.name}.alive"), "a")  # noqa: SIM115  locked as long as this process lives
            try:
                fcntl.flock(self._alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.write_text("")
            except BlockingIOError:
                pass
            fcntl.flock(self._alive, fcntl.LOCK_SH)

    def add(self, **amounts: float) -> dict[str, float]:
        """Add to each kind; return all sums. The processes do so one after another."""
        if self.path is None:
            for kind, amount in amounts.items():
                self._own[kind] = self._own.get(kind, 0.0) + amount
            return dict(self._own)
        with open(self.path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if amounts:
                file.write(json.dumps(amounts) + "\n")
                file.flush()
            file.seek(0)
            sums: dict[str, float] = {}
            for line in file:
                for kind, amount in json.loads(line).items():
                    sums[kind] = sums.get(kind, 0.0) + amount
            return sums


def finished(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of fine-tunings, those that were stopped on the way left out; text columns as plain text."""
    tuned = rows[rows["probe"] == FINETUNE].astype({"backbone": str, "target": str, "params": str, "metric": str})
    return tuned[~is_stopped(tuned)]


def stopped_params(params: str, step: int) -> str:
    """What a fine-tuning's rows say that was stopped at a step, since it could not win."""
    return f"{params};{_STOPPED}{step}"


def is_stopped(rows: pd.DataFrame) -> pd.Series:
    """(n_rows,) bool: whether they are of a fine-tuning that was stopped."""
    return rows["params"].astype(str).str.contains(_STOPPED, regex=False)


@dataclass(frozen=True)
class Rates:
    """What fine-tunings have cost so far, a line a run: backbone, target, params and COSTS."""

    runs: pd.DataFrame

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Rates:
        """From results; stopped runs tell their rates, too."""
        spent = rows[(rows["probe"] == FINETUNE) & rows["metric"].isin(COSTS)]
        keys = ["backbone", "target", "shots", "seed", "episode", "params"]
        spent = spent.astype(dict.fromkeys(("backbone", "target", "shots", "params", "metric"), str))
        runs = spent.pivot_table("value", keys, "metric", observed=True).reset_index() if len(spent) else spent[keys]
        return cls(runs.reindex(columns=[*keys, *COSTS]))

    def images_per_second(self, backbone: str, size: str | int) -> float | None:
        """Measured at this image size; else, of this backbone, at another, scaled by area; None where nothing is known."""
        runs = self.runs[(self.runs["backbone"] == backbone) & (self.runs["seconds"] > 0)]
        sizes = runs["params"].map(_size)
        same = runs[sizes == str(size)]
        if len(same):
            return float(same["images"].sum() / same["seconds"].sum())
        known = sizes.str.fullmatch(r"\d+")
        if not str(size).isdigit() or not known.any():
            return None
        runs, area = runs[known], sizes[known].astype(float) ** 2
        return float((runs["images"] * area).sum() / runs["seconds"].sum() / int(size) ** 2)

    def seconds_of(self, backbone: str, target: str) -> float | None:
        """What a whole fine-tuning of this pair took, or would by what others took; None where none was measured.

        Of the pair itself; else by the images and operations that runs on the target, or of the backbone, had; else the
        mean of the target's, of the backbone's.
        """
        runs = self.runs[(self.runs["shots"] == "full") & ~is_stopped(self.runs)]
        runs = runs[runs["seconds"].notna()]
        on_target, of_backbone = runs[runs["target"] == target], runs[runs["backbone"] == backbone]
        both = on_target[on_target["backbone"] == backbone]
        if len(both):
            return float(both["seconds"].mean())
        if len(on_target) and len(of_backbone):
            rate = self.images_per_second(backbone, _size(str(on_target["params"].iloc[-1])))
            if rate:
                return float(on_target["images"].iloc[-1] / rate)
        for group in (on_target, of_backbone):
            if len(group):
                return float(group["seconds"].mean())
        return None


def _size(params: str) -> str:
    words: Mapping[str, Any] = dict(word.partition("=")[::2] for word in params.split(";"))
    return str(words.get("size", ""))
