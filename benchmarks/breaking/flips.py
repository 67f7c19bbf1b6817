"""Bytes that turn: in a store, and in a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breaking import line
from benchmarks.breaking.disk import Roads, Row, row
from benchmarks.breaking.inputs import World, world_of


def flips(roads: Roads, tiny: bool) -> Iterator[Row]:
    """One byte of a store at a time: `store verify` names the file."""
    world = world_of(roads)
    cases = 5 if tiny else 100
    found = line.in_a_fork(lambda: _flips(world.road.store, cases))
    yield row(
        "byte flips", "a byte of a store turned, any byte or any file", cases, found, "`store verify` names the file"
    )


def turned(file: Path, rng: np.random.Generator) -> bytes:
    """Turn a byte of a file; returns what it was."""
    content = file.read_bytes()
    at = int(rng.integers(len(content)))
    file.write_bytes(content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :])
    return content


def _flips(store: Path, cases: int) -> list[str]:
    from fastxfer.store import verify

    os.fsync = lambda _: None  # no waiting for the disk
    files = sorted(p for p in store.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = np.array([p.stat().st_size for p in files])
    found = []
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        file = files[int(rng.choice(len(files), p=None if seed % 3 == 0 else sizes / sizes.sum()))]
        whole = turned(file, rng)
        key = file.relative_to(store).as_posix()
        named = [problem.path for problem in verify(store).problems]
        if len(named) != 1 or not key.startswith(named[0]):
            found.append(f"{key}: verify names {named}")
        file.write_bytes(whole)
    return found


def checkpoint(roads: Roads, tiny: bool) -> Iterator[Row]:
    """A damaged checkpoint is refused, or has another identity, so that its embeddings mix with no others."""
    world = world_of(roads)
    for ending in ("pt", "safetensors"):
        cases = 5 if tiny else 100
        file = world.road.folder / f"net.{ending}"
        told = line.in_a_fork(lambda file=file, cases=cases: _checkpoints(world, file, cases))  # type: ignore[misc]
        worst = f"{told['refused']} refused, {told['other']} another identity, {told['same']} the same weights"
        yield row(f"checkpoint/{ending}", f"a byte of a .{ending} checkpoint turned", cases, told["faults"], worst)


def _checkpoints(world: World, file: Path, cases: int) -> dict[str, Any]:
    from fastxfer.backbones import load_backbone
    from fastxfer.errors import FastxferError

    def load() -> Any:
        return load_backbone(file, arch=f"{world.road.network}:build", name="net")

    def weights() -> list[bytes]:
        return [value.numpy().tobytes() for value in load().network.state_dict().values()]

    identity, own = load().identity, weights()
    told: dict[str, Any] = {"refused": 0, "other": 0, "same": 0, "faults": []}
    for seed in range(cases):
        whole = turned(file, np.random.default_rng(seed))
        try:
            if load().identity != identity:
                told["other"] += 1
            elif weights() == own:
                told["same"] += 1
            else:
                told["faults"].append(f"seed {seed}: other weights under the same identity")
        except FastxferError:
            told["refused"] += 1
        except Exception as error:
            told["faults"].append(f"seed {seed}: {type(error).__name__}: {error}")
        file.write_bytes(whole)
    return told
