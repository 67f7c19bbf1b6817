"""Several processes or nodes: each takes its share of the row blocks, and none talks to another about data."""

from __future__ import annotations

import os

from fastxfer.errors import UsageError
from fastxfer.store import Team


def team_of_environment() -> Team | None:
    """This process's place among those that torchrun or SLURM's srun started; None if it is the only one."""
    for rank, count, job in (
        ("RANK", "WORLD_SIZE", ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ):
        if rank in os.environ and count in os.environ:
            numbers = _number(rank), _number(count)
            if numbers[1] < 1 or not 0 <= numbers[0] < numbers[1]:
                raise UsageError(f"{rank}={numbers[0]} with {count}={numbers[1]} in the environment: no such rank")
            name = ":".join(os.environ.get(word, "") for word in job)
            return Team(name, *numbers) if numbers[1] > 1 else None
    return None


def local_rank() -> int:
    """Number of this process on its node: which GPU is its own."""
    return next((_number(word) for word in ("LOCAL_RANK", "SLURM_LOCALID") if word in os.environ), 0)


def cores_here() -> int:
    """Processor cores of this process: those of the node, shared with the team's other processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if team_of_environment() is None:
        return cores
    words = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
    return max(1, cores // max(1, next((_number(word) for word in words if word in os.environ), 1)))


def _number(word: str) -> int:
    try:
        return int(os.environ[word])
    except ValueError:
        raise UsageError(f"{word}={os.environ[word]} in the environment: expected a number") from None
