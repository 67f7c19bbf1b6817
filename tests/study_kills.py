"""A study whose workers are killed at any instant: `python tests/study_kills.py WORK TRIALS [WORKERS] [KILLS]`, a line of
JSON a trial.

Everything is imported once; each worker is a fork, so that it takes a fraction of a second, and any instant of it is as
likely to be hit: while it draws, solves, writes, holds a claim or takes one. A worker that was killed is started again at
once, beside the others, until nothing is missing. At the end the rows are those of an undisturbed run.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from helpers import blobs_store, blobs_target

from fastxfer import ops
from fastxfer.episodes import EpisodeSpec, sample_episodes
from fastxfer.metrics import measure
from fastxfer.probes import make_probe
from fastxfer.results import CELL, KEY, ResultStore
from fastxfer.study import open_world, run_study

BACKBONES = {"a": 0.8, "b": 1.2, "c": 1.6, "d": 2.0, "e": 2.4}
TARGETS = ("blobs", "dots")
# 5 backbones x 2 targets x 2 shots x (1 + 5 + 4 settings) = 200 cells, in 60 files.
STUDY = """
name = "kills"
targets = ["blobs", "dots"]
store = "{store}"
backbone = [{backbones}]
[fewshot]
ways = 3
shots = [2, 3]
queries = 4
episodes = 20
probes = ["prototype", {{ name = "ridge", l2 = [0.001, 0.01, 0.1, 1.0, 10.0] }}, {{ name = "knn", k = [1, 2, 3, 4] }}]
"""


def fork(work: Callable[[], Any]) -> int:
    """The id of a child that does the work, in silence, and ends with status 0, or 1 if it failed."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open("/dev/null" if "FASTXFER_LOUD" not in os.environ else "/dev/stderr", os.O_WRONLY)
        os.dup2(log, 2)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended_well(child: int) -> bool:
    """Wait for a child; False if it was killed. A failure is one of the test."""
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a worker failed: run with FASTXFER_LOUD=1"
    return not os.WIFSIGNALED(status)


def warm_up(file: Path) -> None:
    """Compile and load what the children need, Arrow apart, whose threads a fork would lose; Zarr makes its own anew."""
    open_world(file)
    target = blobs_target(n_classes=4)
    rng = np.random.default_rng(0)
    pool = ops.Pool(rng.normal(size=(target.n_images, 4)).astype(np.float32), backend="cpu", gram=True)
    episodes = sample_episodes(target, EpisodeSpec(3, 1, 4), 0, 2)
    for name in ("prototype", "ridge", "knn"):
        for answer in make_probe(name).answer(pool, episodes):
            measure("accuracy", answer.scores, episodes.query_labels)
    gc.freeze()  # or each fork would look through all of torch for garbage


def everything(results: ResultStore) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows, and what test images did to them, in an order of their own."""
    rows, images = results.read(), results.read_images()
    return tuple(  # type: ignore[return-value]
        frame.sort_values([*key], ignore_index=True).astype(str)
        for frame, key in ((rows, KEY), (images, (*CELL, "image")))
    )


def work_on(file: Path, results: Path) -> Callable[[], None]:
    return lambda: [run_study(open_world(file, results=str(results))), None][1]


def trial(number: int, file: Path, results: Path, workers: int, kills: int, seconds: float) -> dict[str, Any]:
    """Run the study by some workers, kill one at random `kills` times, and see it through. seconds: of an undisturbed run"""
    rng, started = Random(number), time.perf_counter()
    alive = [fork(work_on(file, results)) for _ in range(workers)]
    killed = midway = 0
    # As many kills as fit: each worker gets some way in between, and the last come when little is left.
    for _ in range(kills):
        time.sleep(rng.random() * 2 * seconds / kills / workers)
        victim = rng.randrange(workers)
        os.kill(alive[victim], signal.SIGKILL)
        if not ended_well(alive[victim]):
            killed += 1
            midway += 0 < len(list(results.glob("rows-*.parquet"))) < 60
        alive[victim] = fork(work_on(file, results))
    for child in alive:
        assert ended_well(child)
    return {"trial": number, "killed": killed, "midway": midway, "seconds": time.perf_counter() - started}


def main(work: Path, trials: int, workers: int = 2, kills: int = 12) -> None:
    store = work / "store"
    targets = [blobs_target(name, n_classes=4, n_train=8, n_test=8) for name in TARGETS]
    assert ended_well(fork(lambda: [blobs_store(store, *targets, backbones=BACKBONES, dim=8), None][1]))
    file = work / "study.toml"
    backbones = ", ".join(f'{{ name = "{name}" }}' for name in BACKBONES)
    file.write_text(STUDY.format(store=store, backbones=backbones))
    warm_up(file)
    started = time.perf_counter()
    assert ended_well(fork(work_on(file, work / "undisturbed")))
    seconds = time.perf_counter() - started
    told = [trial(i, file, work / f"trial-{i}", workers, kills, seconds) for i in range(trials)]
    # Only now, when no more is forked, may Arrow start its threads.
    undisturbed = ResultStore.open(work / "undisturbed")
    rows, images = everything(undisturbed)
    told_first = {"cells": len(undisturbed.cells()), "rows": len(rows), "images": len(images), "seconds": seconds}
    print(json.dumps(told_first), flush=True)
    for one in told:
        kept = ResultStore.open(work / f"trial-{one['trial']}")
        mine, of_images = everything(kept)
        equal = bool(mine.equals(rows) and of_images.equals(images))
        held = list((kept.path / "running").glob("*.lock"))
        print(
            json.dumps({**one, "rows": len(mine), "equal": equal, "claims_left": len(held)}),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
