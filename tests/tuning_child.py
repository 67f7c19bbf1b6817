"""Processes that fine-tune, for tests to stop, and to count: started from a server that has imported this and computed nothing."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tuning import full_run, with_val

from fastxfer.budgets import parse_budget
from fastxfer.finetune import run_all, training
from fastxfer.results import ResultStore
from fastxfer.targets import load_target


def wait_in_step_two(root: Path, results: Path, tell: Connection) -> None:
    """Fine-tune; in the second step say so, and give a signal time to come."""
    torch.set_num_threads(1)
    step = training.Trainer.step
    steps = 0

    def slow(self: Any, *args: Any) -> float:
        nonlocal steps
        steps += 1
        loss = step(self, *args)
        if steps == 2:
            tell.send(steps)
            time.sleep(0.5)  # a signal is noted meanwhile, and the step ends
        return loss

    training.Trainer.step = slow  # type: ignore[method-assign]
    try:
        run_all([full_run(root, with_val(load_target("digits", root)))], ResultStore.open(results))
    except KeyboardInterrupt:
        tell.send("interrupted")


def share(root: Path, results: Path, budget: str, rank: int, tell: Connection) -> None:
    """Do what of four runs this one of two processes gets; tell {backbone: state}."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_PORT="1")
    target = with_val(load_target("digits", root))
    runs = [full_run(root, target, name) for name in ("bit", "other", "third")]
    runs.append(replace(runs[0], entry=replace(runs[0].entry, backbone="fourth")))
    outcomes = run_all(runs, ResultStore.open(results), budget=parse_budget(budget))
    tell.send({outcome["backbone"]: outcome["state"] for outcome in outcomes})
