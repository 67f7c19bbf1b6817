"""Runs that are killed at any instant, and finished.

All is loaded once (forks.py). Each run of `embed` is a fork of that, so that it takes a fraction of a second,
and nearly any instant of it is one of embedding and writing. SIGKILL comes from outside, a random moment after a random number of
blocks, so that the kills lie all over the run on a busy machine too; or from inside, where an instant is too short to be
hit by chance: in the middle of a file, before its rename, after it, while an object is sent.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from fastxfer.backbones import Backbone, load_backbone
from fastxfer.embed import embed
from fastxfer.files import whole_file
from fastxfer.store import EmbeddingStore, Writer, files, verify
from fastxfer.targets.table import Target
from tests.forks import server

BATCH, BLOCK_ROWS = 4, 4
N_IMAGES = 128
NETWORK = """
import torch
def build():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    net.input_size, net.mean, net.std = (3, 8, 8), 0.5, 0.25
    return net
"""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(
    work: Callable[[Callable[[], None]], dict[str, Any]], kill_after: tuple[int, float] | None = None
) -> dict[str, Any] | None:
    """Do `work` in a fork; what it returned, or None if it was killed.

    kill_after: (n, seconds): kill it so long after its n-th call of what it is given
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(work(lambda: print(file=out, flush=True)), out)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as back:
        told = "".join(back.readline() for _ in range(kill_after[0])) if kill_after is not None else ""
        if kill_after is not None and told.count("\n") == kill_after[0]:
            time.sleep(kill_after[1])
            os.kill(child, signal.SIGKILL)
        told += back.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the run failed"
    return None if os.WIFSIGNALED(status) else json.loads(told.splitlines()[-1])


@dataclass
class Case:
    """One backbone and one target, embedded into a store that is looked at before and after."""

    backbone: Backbone
    target: Target
    store: str
    sabotage: Callable[[], None] = field(default=lambda: None)

    def __call__(self, tick: Callable[[], None]) -> dict[str, Any]:
        """`tick` is called when all is ready, and before each block of embeddings is written."""
        torch.set_num_threads(1)
        store, written, true = EmbeddingStore.open(self.store, mode="a"), 0, Writer.write
        begun = self.target.name in store.targets() and store.backbones(self.target.name)
        missing = (
            store.stored(self.backbone.name, self.target.name).missing() if begun else [range(self.target.n_images)]
        )
        before = verify(self.store).problems

        def count(writer: Writer, block: range, *values: Any, **more: Any) -> None:
            nonlocal written
            if writer.attributes.get("identity") == self.backbone.identity:  # digests of images are written, too
                written += len(block)
                tick()
            true(writer, block, *values, **more)

        Writer.write = count  # type: ignore[method-assign]
        self.sabotage()
        tick()
        started = time.perf_counter()
        (done,) = embed(self.backbone, [self.target], store, batch_size=BATCH, block_rows=BLOCK_ROWS, workers=1)
        seconds = time.perf_counter() - started
        return {
            "missing": sum(map(len, missing)),
            "embedded": done.embedded,
            "written": written,
            "seconds": seconds,
            "problems": [str(p) for p in before + verify(self.store).problems],
            "digest": store.digest(),
        }


# -- ways to die from inside -------------------------------------------------------------------------------------------


def in_a_file(rng: Random) -> None:
    """At a random byte of a random file."""
    left, part = rng.randrange(60), rng.random()

    def write(path: Path, content: bytes | memoryview) -> None:
        nonlocal left
        left -= 1
        with whole_file(path) as file:
            file.write(content if left >= 0 else content[: int(part * len(content))])
            if left < 0:
                file.flush()
                die()

    files.write_whole = write  # type: ignore[attr-defined]


def at_an_fsync(rng: Random) -> None:
    """When a file is complete under its temporary name, or has just got its own."""
    left, true = rng.randrange(120), os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            die()
        true(descriptor)

    os.fsync = fsync


def in_a_request(rng: Random) -> None:
    """A moment after a random PUT has begun."""
    import asyncio

    import obstore

    left, true, moment = rng.randrange(45), obstore.put_async, rng.random() * 0.004

    async def put(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            asyncio.get_running_loop().call_later(moment, die)
        return await true(*arguments, **options)

    obstore.put_async = put


def killed(work: Path, place: str, trials: int, real: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(undisturbed run, trials), as a process of its own tells them; real: the folder of real images."""
    root = real / "cifar10_subset"
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))[:N_IMAGES]
    assert len(names) == N_IMAGES
    target = Target(
        name="photos",
        image_id=np.array(names),
        class_names=("a", "b"),
        labels=np.arange(N_IMAGES) % 2,
        split=np.array(["train", "test"])[np.arange(N_IMAGES) % 2],
        root=root,
    )
    (work / "net.py").write_text(NETWORK)
    torch.manual_seed(1)
    shapes = {"1.weight": (32, 192), "1.bias": (32,), "3.weight": (16, 32), "3.bias": (16,)}
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, work / "net.pt")
    told = work / "told"
    process = server.Process(target=tell, args=(work, target, place, trials, dict(os.environ), told))
    process.start()
    process.join(3600)
    assert process.exitcode == 0
    first, *rest = json.loads(told.read_text())
    return first, rest


def tell(work: Path, target: Target, place: str, trials: int, environment: dict[str, str], told: Path) -> None:
    """Write what came of the undisturbed run, and of each trial."""
    os.environ.update(environment)  # the server of children has that of its own beginning
    torch.set_num_threads(1)
    backbone = load_backbone(work / "net.pt", arch=f"{work / 'net.py'}:build", name="net")
    undisturbed = run(Case(backbone, target, f"{place}/undisturbed"))
    assert undisturbed is not None
    lines: list[dict[str, Any]] = [undisturbed]
    n_blocks = -(-target.n_images // BLOCK_ROWS)
    inside = [in_a_request] if place.startswith("s3://") else [in_a_file, at_an_fsync]
    for trial in range(trials):
        rng = Random(trial)
        store, kills, how = f"{place}/{trial}", 0, []
        while True:
            sabotage = rng.choice(inside) if trial % 5 >= 3 and kills == 0 else None
            if kills == 2 or (kills == 1 and rng.random() < 0.7):
                done = run(Case(backbone, target, store))
                assert done is not None
                break
            if sabotage is not None:
                done = run(Case(backbone, target, store, partial(sabotage, rng)))
                how.append(sabotage.__name__)
            else:
                # The second run has less to do, and fewer blocks.
                ticks = 1 + int(rng.random() * n_blocks * (1.0 if kills == 0 else 0.4))
                moment = rng.random() * 2 * undisturbed["seconds"] / n_blocks
                done = run(Case(backbone, target, store), (ticks, moment))
                how.append(f"{moment * 1e3:.1f} ms after tick {ticks}")
            kills += done is None
            if done is not None:  # it was done before it could be killed: not a trial
                store, kills, how = f"{store}-", 0, []
        lines.append({"trial": trial, "how": how, "kills": kills, **done})
    told.write_text(json.dumps(lines))
