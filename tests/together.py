"""Processes that train together, for tests."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fastxfer.clipping import AGC_EPS, clip_adaptively
from fastxfer.targets.table import Target
from pretrain.loop import pretrain
from pretrain.ranks import joined, spread
from pretrain.recipe import Recipe
from tests.forks import server


class Losses:
    """A log that a test reads: {"losses": …, "lines": …} in a file, of the steps from `begun` on."""

    def __init__(self, path: Path) -> None:
        self.path, self.told = path, {"losses": [], "lines": []}

    def on_begin(self, step: int, steps: int) -> None:
        self.told |= {"begun": step, "steps": steps}

    def on_step(self, step: int, loss: float, lr: float, rate: float) -> None:
        self.told["losses"].append(loss)

    def on_validation(self, step: int, line: Mapping[str, Any]) -> None:
        self.told["lines"].append(dict(line))

    def on_end(self) -> None:
        self.path.write_text(json.dumps(self.told))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def of_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would have set."""
    words = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{word: str(value) for word, value in words.items()}}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(left: int, true: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kills its process instead of being called once more after so many calls."""

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            die()
        return true(*arguments, **options)

    return call


def dying_in_a_file(left: int) -> Callable[..., Any]:
    """torch.save that writes half of a file and dies, after so many whole ones."""
    true = torch.save

    def save(content: Any, file: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            true(content, file)
            return
        buffer = io.BytesIO()
        true(content, buffer)
        file.write(buffer.getbuffer()[: len(buffer.getbuffer()) // 2])
        file.flush()
        die()

    return save


def sabotage(how: str, when: int) -> dict[str, Any]:
    """Options for `pretrain` under which the process dies: "step", "link", "sync", "rename", "file" after so many; or "term"."""
    if how == "step":
        return {"on_step": dying(when, lambda step: None)}
    if how == "term":
        return {"on_step": lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == when else None}
    if how == "file":
        torch.save = dying_in_a_file(when)
    else:
        name = {"link": "link", "sync": "fsync", "rename": "replace"}[how]
        place: Any = Path if how == "rename" else os
        setattr(place, name, dying(when, getattr(place, name)))
    return {}


def work(words: dict[str, str], recipe: Recipe, target: Target, out: Path, options: dict[str, Any]) -> None:
    """What each process does; the error's message goes to a file."""
    os.environ.update(words)
    torch.set_num_threads(1)
    options = {"workers": 0} | options  # loader processes would outlive one that is killed, by seconds
    rank = words.get("RANK") or words.get("SLURM_PROCID", "0")
    victim, *how = options.pop("dies", (-1, "", 0))
    if victim == int(rank):
        options |= sabotage(*how)
    sys.stderr = open(out.with_suffix(f".{rank}.err"), "w")  # noqa: SIM115
    try:
        pretrain(recipe, target, out, device="cpu", logs=[Losses(out.with_suffix(".json"))], **options)
    except (Exception, KeyboardInterrupt) as error:
        out.with_suffix(f".{rank}.error").write_text(f"{type(error).__name__}: {error}")
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()


def start(
    count: int,
    recipe: Recipe,
    target: Target,
    out: Path,
    words: Callable[[int, int, int], dict[str, str]] = of_torchrun,
    **options: Any,
) -> list[Any]:
    port = free_port()
    environments = [words(rank, count, port) if count > 1 else {} for rank in range(count)]
    team = [server.Process(target=work, args=(e, recipe, target, out, options)) for e in environments]
    for process in team:
        process.start()
    return team


def run(count: int, recipe: Recipe, target: Target, out: Path, **options: Any) -> list[int]:
    """Exit codes of so many processes that pre-train together; where one is killed the others are, as torchrun does."""
    team = start(count, recipe, target, out, **options)
    while any(process.is_alive() for process in team):
        multiprocessing.connection.wait([process.sentinel for process in team if process.is_alive()], 120)
        if any(process.exitcode == -signal.SIGKILL for process in team):
            for process in team:
                process.kill()
    for process in team:
        process.join(10)
    return [process.exitcode for process in team]


def told(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return document


def photos(folder: Path, n: int = 48, multi_label: bool = False) -> Target:
    """Stripes that lie, stand or cross, a class each, in noise: 16 pixels, a quarter for validation."""
    from PIL import Image

    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    folder.mkdir(parents=True, exist_ok=True)
    wave = np.arange(16) // 2 % 2
    kinds = wave[:, None] & np.ones(16, int), wave & np.ones((16, 1), int), wave[:, None] ^ wave
    for i, label in enumerate(labels):
        pixels = rng.integers(0, 160, (16, 16, 3)) + 90 * kinds[label][..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03}.png")
    table = labels
    if multi_label:  # known entries spread as unevenly as can be
        table = np.eye(3, dtype=np.float32)[labels]
        table[::2, 1:] = np.nan
        table[1::8] = np.nan
    return Target(
        name="photos",
        image_id=np.array([f"{i:03}.png" for i in range(n)]),
        class_names=("r", "g", "b"),
        labels=table,
        split=np.where(np.arange(n) % 4 == 3, "val", "train"),
        root=folder,
    )


def come(rank: int, count: int, port: int, out: Path) -> None:
    """Write into a folder when this process had connected to the others, the later its number the slower, and when it went on."""
    os.environ.update(of_torchrun(rank, count, port))
    connect, met = torch.distributed.init_process_group, 0.0

    def slowly(*arguments: Any, **options: Any) -> None:
        nonlocal met
        connect(*arguments, **options)
        time.sleep(0.3 * rank)
        met = time.monotonic()

    torch.distributed.init_process_group = slowly
    with joined("cpu"):
        (out / str(rank)).write_text(f"{met} {time.monotonic()}")


def clip_in_shares(rank: int, count: int, port: int, out: Path) -> None:
    """Clip known gradients of a network in shares, and of a whole copy by timm; the first process writes both."""
    os.environ.update(of_torchrun(rank, count, port))
    with joined("cpu") as (group, device):
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 1)))
        for p in whole.parameters():
            nn.init.normal_(p)
        # Shares of a vector differ in their norms, so that a share's own norm would be the wrong one.
        whole[1].weight.data[:3] *= 50
        shared = spread(copy.deepcopy(whole), "fsdp", group, device)
        for p, q in zip(whole.parameters(), shared.parameters(), strict=True):
            p.grad = torch.randn(p.shape) * 3
            assert isinstance(q, DTensor)
            q.grad = distribute_tensor(p.grad.clone(), q.device_mesh, q.placements)
        clip_adaptively(list(shared.parameters()), 0.1)
        adaptive_clip_grad(whole.parameters(), clip_factor=0.1, eps=AGC_EPS)
        gradients = [q.grad.full_tensor() for q in shared.parameters()]
        if group.rank == 0:
            torch.save({"ours": gradients, "timm": [p.grad for p in whole.parameters()]}, out)
