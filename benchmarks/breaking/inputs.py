"""Malformed inputs of every kind, by a seeded generator or by hypothesis: each ends well, or in a sentence, and soon."""

from __future__ import annotations

import json
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breaking import line
from benchmarks.breaking.disk import Roads, Row, row
from benchmarks.breaking.road import Road
from benchmarks.machine import ROOT

SECONDS = 60
ENDS = "done, or a sentence and exit code 1 or 2"
STUDY = """
name = "broken"
targets = ["photos"]
store = "{store}"
results = "{results}"
data_root = "{data}"
backbone = [{{ name = "net", ckpt = "{weights}", arch = "{network}:build" }}]
[fewshot]
ways = 2
shots = [1, 3]
queries = 3
episodes = 20
probes = ["prototype", {{ name = "ridge", l2 = [0.1, 1.0] }}]
"""
# What parsers trip over, to be put in anywhere.
PIECES = [
    piece.encode()
    for piece in (
        *('"', "'", ",", ";", "\n", "\r", "\0", "|", "/", "..", "nan", "-1", "²", "٣", "\u2028", "\x85", "\ufeff", "9" * 400),
        *("{", "}", "[", "]", "null", "true", "1e999", "-0", "[[", "=", "#", "\\u0000", "0x", "[" * 2000, " " * 1000),
    )
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A file that is damaged, and the line that reads it."""

    name: str
    file: Path
    words: list[Any]


@cache
def world_of(roads: Roads) -> World:
    """The one of these roads' folder."""
    return World(roads.work)


class World:
    """A road that was walked as far as the plan, and an input of every kind."""

    def __init__(self, work: Path) -> None:
        self.road, self.log = Road(work / "inputs"), work / "log"
        self.road.make()
        for name, words in self.road.lines().items():
            if name != "report":
                ended = line.run(words, self.log)
                assert ended.code == 0, ended.words
        self.kinds = list(self._make())

    def _make(self) -> Iterator[Kind]:
        road = self.road
        rows, data = ["--store", road.store, "--results", road.results], ["--data-root", road.data]
        show = ["--arch", f"{road.network}:build", "--store", road.store, *data]
        yield Kind("checkpoints, .pt", road.weights, ["backbones", "show", road.weights, *show])
        safe = road.folder / "net.safetensors"
        line.in_a_fork(lambda: _as_safetensors(road.weights, safe))
        yield Kind("checkpoints, .safetensors", safe, ["backbones", "show", safe, *show])
        yield from self._pictures()
        yield Kind("tables, labels.csv", road.images / "labels.csv",
                   ["targets", "add", road.images, "--name", "mine", "--data-root", road.folder / "other"])  # fmt: skip
        register = next(road.data.rglob("photos.csv"))
        yield Kind("tables, registered target", register, ["targets", "show", "photos", *data])
        study = road.folder / "study.toml"
        study.write_text(STUDY.format(**vars(road)), encoding="utf-8")
        yield Kind("studies, recipes and plans, study.toml", study, ["study", "run", study, "--dry-run"])
        recipe = road.folder / "recipe.toml"
        recipe.write_bytes((ROOT / "pretrain" / "recipes" / "imagenet1k.toml").read_bytes())
        yield Kind(
            "studies, recipes and plans, recipe.toml", recipe, ["pretrain", recipe, "--dry-run", "--images", 1000]
        )
        yield Kind(
            "studies, recipes and plans, plan.json", road.plan, ["finetune", "--plan", road.plan, "--only", 99, *rows]
        )
        part = max(road.results.glob("rows-*.parquet"), key=lambda p: p.stat().st_size)
        yield Kind("results parts", part, ["results", "export", "--raw", "--out", road.folder / "rows.csv", *rows])
        array = road.store / "targets" / "photos" / "embeddings" / "net"
        yield Kind(
            "files of a store, metadata", array / "zarr.json", ["store", "show", "net", "photos", "--store", road.store]
        )
        yield Kind(
            "files of a store, block",
            next(array.glob("c.*")),
            ["store", "export", "net", "photos", "--out", road.folder / "net.npz", "--store", road.store],
        )
        column = road.store / "targets" / "photos" / "labels" / "zarr.json"
        yield Kind(
            "files of a store, table",
            column,
            ["fewshot", *rows, "--ways", 2, "--shots", 2, "--episodes", 2, "--queries", 2],
        )

    def _pictures(self) -> Iterator[Kind]:
        from tests.pictures import FORMATS, dicom, encode, picture

        rng = np.random.default_rng(0)
        contents = {kind: encode(picture(rng), kind) for kind in FORMATS} | {"DICOM": dicom(rng)}
        for kind, content in contents.items():
            folder = self.road.folder / f"pictures {kind}"
            for i in range(4):
                path = (
                    folder
                    / "ab"[i % 2]
                    / f"{i}.{'dcm' if kind == 'DICOM' else kind.lower().replace('jpeg2000', 'jp2')}"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            name, data = kind.lower(), self.road.folder / "pictures"
            ended = line.run(["targets", "add", folder, "--name", name, "--data-root", data], self.log)
            assert ended.code == 0, ended.words
            yield Kind(f"images, {kind}", path, ["targets", "check", name, "--data-root", data])


def _as_safetensors(weights: Path, to: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(torch.load(weights, weights_only=True), to)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, bytes turned, pieces put in or taken out, a number made huge, something else altogether."""
    n, how = len(content), int(rng.integers(8))
    at = int(rng.integers(n))
    if how == 0:
        return content[:at]
    if how == 1:
        return [b"", b"\0" * 100, rng.bytes(300), b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", content[:12]][
            int(rng.integers(6))
        ]
    if how == 2:
        return content[:at] + struct.pack("<Q", int(rng.integers(2**63))) + content[at + 8 :]
    if how == 3:
        to = int(rng.integers(n))
        return content[: min(at, to)] + content[max(at, to) :]
    spoiled = bytearray(content)
    for place in rng.integers(n, size=1 + int(rng.integers(6))):
        if how < 6:
            piece = PIECES[int(rng.integers(len(PIECES)))]
            spoiled[place : place + int(rng.integers(8))] = piece
        else:
            place = min(place, len(spoiled) - 1)
            spoiled[place] ^= int(rng.integers(1, 256))
    return bytes(spoiled)


class _Hang(BaseException):
    """It took too long."""


def _ring(*_: object) -> None:
    raise _Hang


def fault_of(kind: Kind, content: bytes, ended: line.Ended | None = None) -> str:
    """What is wrong with how its line takes this content, "" if nothing. In this process: call it in a fork."""
    from click.testing import CliRunner

    from fastxfer.cli import main

    whole = kind.file.read_bytes()
    kind.file.write_bytes(content)
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    started = time.monotonic()
    try:
        result = CliRunner().invoke(main, [str(word) for word in kind.words], prog_name="fastxfer")
        code: int | None = result.exit_code
        words = result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            words += f"\nTraceback (most recent call last)\n{type(result.exception).__name__}: {result.exception}"
    except _Hang:
        code, words = None, ""
    finally:
        signal.alarm(0)
        kind.file.write_bytes(whole)
    fault = line.Ended(code, words, time.monotonic() - started).fault
    return fault or (f"exit code {code} for a whole file: {words[-200:]}" if content == whole and code == 2 else "")


def malformed(roads: Roads, tiny: bool) -> Iterator[Row]:
    """A seeded sample of each kind, a thousand in all."""
    world = world_of(roads)
    each = 2 if tiny else -(-1000 // len(world.kinds))
    for family, kinds in _families(world.kinds):
        found = [fault for kind in kinds for fault in _in_a_fork(kind, lambda kind=kind: _sample(kind, each))]  # type: ignore[misc]
        yield row(f"malformed/{family}", f"malformed {family}", each * len(kinds), found, ENDS)


def _families(kinds: list[Kind]) -> Iterator[tuple[str, list[Kind]]]:
    for family, members in groupby(kinds, key=lambda kind: kind.name.split(", ")[0]):
        yield family, list(members)


def _sample(kind: Kind, each: int) -> list[str]:
    content, found = kind.file.read_bytes(), []
    for seed in range(each):
        print(f"{kind.name}: seed {seed}", file=sys.stderr, flush=True)
        if fault := fault_of(kind, damaged(content, np.random.default_rng(seed))):
            found.append(f"seed {seed}: {fault}")
    return found


def _in_a_fork(kind: Kind, work: Callable[[], list[str]]) -> list[str]:
    """The faults that it finds; one more if the process dies of it."""
    whole = kind.file.read_bytes()
    try:
        return list(line.in_a_fork(work))
    except AssertionError as died:
        return [str(died).strip().splitlines()[-1]]
    finally:
        kind.file.write_bytes(whole)


def fuzz(roads: Roads, tiny: bool, minutes: float = 2.0) -> Iterator[Row]:
    """Hypothesis makes the damage, and makes what it finds small; `minutes` for all kinds together."""
    world = world_of(roads)
    chosen = world.kinds[:2] if tiny else world.kinds
    seconds = 1.0 if tiny else 60 * minutes / len(chosen)
    for family, kinds in _families(chosen):
        told = [line.in_a_fork(lambda kind=kind: _search(kind, seconds)) for kind in kinds]  # type: ignore[misc]
        found = [fault for one in told for fault in one["faults"]]
        yield row(f"fuzz/{family}", f"{family} under hypothesis, {seconds * len(kinds):.0f} s",
                  sum(one["examples"] for one in told), found, ENDS)  # fmt: skip


def _search(kind: Kind, seconds: float) -> dict[str, Any]:
    """Examples until the time is up or one is found that is taken badly."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    content, examples, found = kind.file.read_bytes(), 0, []
    fault_of(kind, content)  # what is imported only now is not of the time
    until = time.monotonic() + seconds
    place = st.integers(0, len(content))
    edit = st.tuples(place, st.integers(0, 16), st.one_of(st.sampled_from(PIECES), st.binary(max_size=16)))
    edits = st.one_of(st.lists(edit, min_size=1, max_size=6), place, st.binary(max_size=400))

    def apply(what: Any) -> bytes:
        if isinstance(what, bytes):
            return what
        if isinstance(what, int):
            return content[:what]
        spoiled = bytearray(content)
        for at, gone, piece in what:
            spoiled[at : at + gone] = piece
        return bytes(spoiled)

    rounds = 0
    while time.monotonic() < until and not found:
        rounds += 1

        @seed(rounds)
        @settings(
            max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        @given(edits)
        def taken(what: Any) -> None:
            nonlocal examples
            spoiled = apply(what)
            if time.monotonic() > until or spoiled == content:
                return
            examples += 1
            fault = fault_of(kind, spoiled)
            assert not fault, json.dumps({"edits": repr(what)[:300], "fault": fault})

        try:
            taken()
        except AssertionError as error:
            found.append(str(error).splitlines()[0][:600])
    return {"examples": examples, "faults": found}
