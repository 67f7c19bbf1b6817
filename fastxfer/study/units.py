"""What a study's stages are made of: each unit knows what is left of it, and does it by the functions of the commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastxfer.errors import FastxferError
from fastxfer.evaluation import run_protocol
from fastxfer.full_splits import full_done, run_full
from fastxfer.ops import resolve_backend
from fastxfer.probes import Probe
from fastxfer.progress import Advance
from fastxfer.protocol import Protocol
from fastxfer.study.keys import BackboneKeys
from fastxfer.study.world import Cells, World

# Backbones that go over a target's images together. More would share the decoding, and need the memory for all of them.
AT_ONCE = 4


@dataclass
class Tally:
    """What this process has done in a stage: units and their seconds, rows added, episodes solved."""

    units: int = 0
    seconds: float = 0.0
    rows: int = 0
    episodes: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the block does as a unit."""
        started = time.perf_counter()
        try:
            yield
            self.units += 1
        finally:
            self.seconds += time.perf_counter() - started


@dataclass
class EmbedUnit:
    """Some backbones on one target. `left` counts images."""

    world: World
    backbones: tuple[BackboneKeys, ...]
    target: str
    load: Callable[[tuple[BackboneKeys, ...]], list[Any]]
    tally: Tally

    @property
    def key(self) -> tuple[str, ...]:
        return ("embed", self.target, *(b.name for b in self.backbones))

    @property
    def title(self) -> str:
        return f"embedding {', '.join(b.name for b in self.backbones)} on {self.target}"

    def lacking(self) -> list[BackboneKeys]:
        """Backbones whose embeddings are not complete."""
        there = self.world.entries(self.target)
        return [b for b in self.backbones if b.name not in there or not there[b.name].complete]

    def left(self) -> int:
        there, whole = self.world.entries(self.target), self.world.loaded.get(self.target)
        images = whole.n_images if whole else 1
        return sum(
            max(1, there[b.name].n_images - there[b.name].n_present) if b.name in there else images
            for b in self.lacking()
        )

    def do(self, advance: Advance, team: Any = None) -> None:
        from fastxfer.embed import embed
        from fastxfer.store import EmbeddingStore

        k = self.world.study.keys
        lacking = {b.name for b in self.lacking()}
        left = self.left()
        with self.tally.counting():
            embed(
                [b for b in self.load(self.backbones) if b.name in lacking],
                [self.world.loaded[self.target]],
                EmbeddingStore.open(k.store, mode="a"),
                batch_size=k.embed.batch_size,
                workers=k.embed.workers,
                skip_bad=k.embed.skip_bad,
                dtype=k.embed.dtype,
                device=k.embed.device,
                block_rows=k.embed.block_rows,
                cache=k.embed.cache,
                compiled=k.embed.compile,
                team=team,
            )
        advance(left)


@dataclass
class FewshotUnit:
    """One protocol on a pair. `left` counts episodes, once a number of shots and a probe; with `until` those at most."""

    world: World
    backbone: str
    target: str
    protocol: Protocol
    cells: list[Cells]
    tally: Tally

    @property
    def key(self) -> tuple[str, ...]:
        return ("fewshot", self.backbone, self.target, self.protocol.hash)

    @property
    def title(self) -> str:
        return f"few-shot probes of {self.backbone} on {self.target}, seed {self.protocol.seed}"

    def left(self) -> int:
        self.world.results.refresh()
        return sum(map(self.world.left, self.cells))

    def do(self, advance: Advance) -> None:
        study = self.world.study
        assert study.keys.fewshot is not None
        with self.tally.counting():
            summary = run_protocol(
                self.world.measuring([self.target]),
                self.world.results,
                self.protocol,
                study.fewshot_probes(),
                backbones=[self.backbone],
                targets=[self.target],
                backend=resolve_backend(study.keys.fewshot.backend),
                until=study.until,
                advance=advance,
            )
        self.tally.rows += summary.rows
        self.tally.episodes += summary.episodes


@dataclass
class FullUnit:
    """One probe of the full train split on a pair. `left`: 1 or 0."""

    world: World
    stage: str
    backbone: str
    target: str
    dropped: str
    probe: Probe
    seed: int
    per_class: bool
    tally: Tally

    @property
    def key(self) -> tuple[str, ...]:
        return (self.stage, self.backbone, self.target, self.probe.name, self.probe.variant, str(self.seed))

    @property
    def title(self) -> str:
        return f"full {self.probe.name} probe of {self.backbone} on {self.target}, seed {self.seed}"

    def left(self) -> int:
        done = full_done(self.world.results, self.probe, self.seed, self.per_class)
        return int((self.backbone, self.target, self.dropped) not in done)

    def do(self, advance: Advance) -> None:
        with self.tally.counting():
            self.tally.rows += run_full(
                self.world.measuring([self.target]),
                self.world.results,
                self.probe,
                backbones=[self.backbone],
                targets=[self.target],
                seed=self.seed,
                per_class=self.per_class,
                advance=advance,
            )


def embed_units(
    world: World,
    pairs: Sequence[tuple[str, str]],
    load: Callable[[tuple[BackboneKeys, ...]], list[Any]],
    tally: Tally | None = None,
) -> list[EmbedUnit]:
    """By backbones first, so that few are loaded at a time. Backbones without checkpoint are in the store already."""
    wanted: dict[str, list[str]] = {}
    for backbone, target in pairs:
        wanted.setdefault(backbone, []).append(target)
    known = {b.name: b for b in world.study.keys.backbone}
    groups: dict[tuple[str, ...], list[BackboneKeys]] = {}
    for name, targets in wanted.items():
        if known[name].checkpoint:
            groups.setdefault(tuple(targets), []).append(known[name])
    return [
        EmbedUnit(world, tuple(some[i : i + AT_ONCE]), target, load, tally or Tally())
        for targets, some in groups.items()
        for i in range(0, len(some), AT_ONCE)
        for target in targets
    ]


def fewshot_units(world: World, pairs: Sequence[tuple[str, str]], tally: Tally | None = None) -> list[FewshotUnit]:
    """Backbone by backbone, target by target; of pairs that are not embedded yet what their tables tell."""
    protocols, found = world.study.protocols(), []
    tables = {t: (world.table(t), world.entries(t)) for t in dict.fromkeys(t for _, t in pairs)} if protocols else {}
    for backbone, target in pairs if protocols else ():
        table, entries = tables[target]
        for protocol in protocols if table else ():
            assert table is not None
            cells = world.cells(backbone, table, protocol, entries.get(backbone))
            found.append(FewshotUnit(world, backbone, target, protocol, cells, tally or Tally()))
    return found


def full_units(
    world: World, stage: str, pairs: Sequence[tuple[str, str]], tally: Tally | None = None
) -> list[FullUnit]:
    """The probes of stage "probe" or "knn"."""
    asked = world.study.full_probes(stage)
    keys = getattr(world.study.keys, stage)
    dropped: dict[str, str] = {}
    for _, target in pairs if asked else ():
        if target not in dropped:
            try:
                table = world.table(target)
            except FastxferError:  # leaks are not known yet
                table = None
            dropped[target] = table.dropped if table else ""
    return [
        FullUnit(world, stage, backbone, target, dropped[target], probe, seed, keys.per_class, tally or Tally())
        for probe, seed in asked
        for backbone, target in pairs
    ]
