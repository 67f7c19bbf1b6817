"""Many processes: torchrun or SLURM started them, torch.distributed brings them together, DDP or FSDP2 spreads the network.

Nothing here finds peers by itself: it is torch.distributed's env:// (MASTER_ADDR, MASTER_PORT), which torchrun sets. Under
SLURM's srun without torchrun the same words are made of SLURM's own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastxfer.batches import ALONE, Group
from fastxfer.embed.forward import device_of
from fastxfer.errors import FastxferError, UsageError
from fastxfer.ranks import local_rank, team_of_environment

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[tuple[Group, torch.device]]:
    """This process's place in the group that torchrun or srun started, and its device; alone where nobody did.

    `UsageError` if the environment names no master, or more processes than GPUs on this machine.
    """
    team, on = team_of_environment(), device_of(device)
    if team is None:
        yield ALONE, on
        return
    if on.type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank()} of this machine has no GPU of its own: PyTorch sees {torch.cuda.device_count()}. "
                "Start one process a GPU"
            )
        on = torch.device("cuda", local_rank())
        torch.cuda.set_device(on)
    master = _master()
    for word, value in (*master.items(), ("RANK", team.rank), ("WORLD_SIZE", team.count)):
        os.environ.setdefault(word, str(value))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo", init_method="env://")
    # Nobody goes on, and perhaps leaves with an error, before all have found each other.
    dist.all_reduce(torch.zeros(1))
    try:
        yield Group(team.rank, team.count), on
    except (FastxferError, KeyboardInterrupt):
        raise  # perhaps one process's alone: the others may be waiting for it, and would let nobody leave
    else:
        dist.destroy_process_group()


def _master() -> dict[str, str]:
    """Where the processes meet: as told, else the first node of SLURM's step, at a port that the job's number gives."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return {}
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is None:
        raise UsageError("MASTER_ADDR and MASTER_PORT are not set: start the processes by torchrun, or by SLURM's srun")
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"the first node of {nodes} is not known ({error}): set MASTER_ADDR to its name and MASTER_PORT to a free port"
        ) from None
    return {
        "MASTER_ADDR": names[0],
        "MASTER_PORT": str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 40_000),
    }


def check_shares(group: Group, batch_size: int, paths: Sequence[Path] = ()) -> None:
    """`UsageError` if a process would have no image of a batch, or no tar shard of the source to itself.

    paths: of the train images
    """
    if group.count > batch_size:
        raise UsageError(
            f"{group.count} processes for a batch of {batch_size} images: each needs one at least. "
            f"Start {batch_size} processes at most, or give a larger --batch-size"
        )
    shards: set[str] = set()
    for path in paths if group.count > 1 else ():
        shard, tar, _ = str(path).partition(".tar/")
        shards.add(shard)
        if not tar or len(shards) == group.count:
            return
    if shards:
        raise UsageError(
            f"{group.count} processes for a source of {len(shards)} tar shards: they would wait for each other's reading. "
            f"Start {len(shards)} processes at most, or write the source as more shards"
        )


def spread(network: nn.Module, parallel: str, group: Group, device: torch.device) -> nn.Module:
    """The network over the group: a copy in each process ("ddp"), or weights, gradients and momenta in shares ("fsdp")."""
    if group.count == 1:
        return network
    if parallel == "ddp":
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    mesh = dist.init_device_mesh(device.type, (group.count,))
    for block in reversed(list(_blocks(network))):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at once: members of lists of layers that are made of layers themselves, such as residual blocks."""
    for module in network.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from (m for m in module if any(True for _ in m.children()) and any(True for _ in m.parameters()))


def agreed(group: Group, decide: Callable[[], T]) -> T:
    """What the first process decides, or the error that it meets, in all of them."""
    if group.count == 1:
        return decide()
    said: list[Any] = [None]
    if group.rank == 0:
        try:
            said = [decide()]
        except FastxferError as error:
            said = [error]
    dist.broadcast_object_list(said, src=0)
    if isinstance(said[0], FastxferError):
        raise said[0]
    answer: T = said[0]
    return answer


def gathered(group: Group, value: Any) -> list[Any]:
    """What every process says, in the order of their numbers."""
    if group.count == 1:
        return [value]
    everyone = [None] * group.count
    dist.all_gather_object(everyone, value)
    return everyone
