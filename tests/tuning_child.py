"""Processes that fine-tune: `main([ROOT, RESULTS])` says "step 2" and waits there for a signal; `share` is one of a job's."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tuning import full_run, with_val

from fastxfer.budgets import parse_budget
from fastxfer.finetune import run as module
from fastxfer.finetune import run_all
from fastxfer.results import ResultStore
from fastxfer.targets import load_target


def main(words: list[str]) -> None:
    root, results = map(Path, words)
    torch.set_num_threads(1)
    step = module.Trainer.step
    steps = 0

    def slow(self: Any, *args: Any) -> float:
        nonlocal steps
        steps += 1
        loss = step(self, *args)
        if steps == 2:
            print("step 2", flush=True)
            time.sleep(0.5)  # a signal is noted meanwhile, and the step ends
        return loss

    module.Trainer.step = slow  # type: ignore[method-assign]
    run_all([full_run(root, with_val(load_target("digits", root)))], ResultStore.open(results))


def share(root: str, results: str, budget: str) -> None:
    """Do what of four runs this process of a job gets; print {backbone: state}."""
    torch.set_num_threads(1)
    target = with_val(load_target("digits", Path(root)))
    runs = [full_run(Path(root), target, name) for name in ("bit", "other", "third")]
    runs.append(replace(runs[0], entry=replace(runs[0].entry, backbone="fourth")))
    outcomes = run_all(runs, ResultStore.open(results), budget=parse_budget(budget))
    print(json.dumps({outcome["backbone"]: outcome["state"] for outcome in outcomes}))
