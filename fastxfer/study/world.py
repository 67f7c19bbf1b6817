"""A study on this machine: tables of its targets, its store and its results; and whether all of it fits, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastxfer.budgets import Rates, parse_budget
from fastxfer.episodes import Episodes
from fastxfer.errors import DataError, FastxferError
from fastxfer.evaluation import cells_of, draw
from fastxfer.holdings import without_leaks
from fastxfer.hyperrule import settle
from fastxfer.protocol import Protocol
from fastxfer.registered import find_registered
from fastxfer.results import CELL, Cell, ResultStore
from fastxfer.store import EmbeddingStore, Entry
from fastxfer.study.file import Study, parse, raise_problems
from fastxfer.study.keys import BackboneKeys, TargetKeys
from fastxfer.targets import Target, add_target, how_added, load_target
from fastxfer.targets.findings import leaking_images
from fastxfer.until import Until


@dataclass(frozen=True)
class Cells:
    """The cells that one probe fills at one number of shots, and the episodes they may want; they come together."""

    cells: tuple[Cell, ...]
    episodes_hash: str
    episodes: int

    def done(self, results: ResultStore) -> int:
        """Episodes that all of them have."""
        return min(results.episodes_done(cell, self.episodes_hash) for cell in self.cells)


class World:
    """Where a study takes place. `loaded`: its targets' tables from the data root, of those that are there."""

    def __init__(self, study: Study, loaded: dict[str, Target]) -> None:
        self.study, self.loaded = study, loaded
        self.results = ResultStore.open(study.results)
        self._drawn: dict[tuple[str, str, Protocol], list[Episodes]] = {}
        self._read: dict[Cells, int] = {}  # episodes whose values `_until` knows

    @property
    def store(self) -> EmbeddingStore | None:
        """The store as it is now; None while there is none."""
        path = self.study.keys.store
        if "://" not in path and not Path(path).exists():
            return None
        return EmbeddingStore.open(path)

    def entries(self, target: str) -> dict[str, Entry]:
        """What the store has of a target, by backbone."""
        store = self.store
        return {e.backbone: e for e in store.entries(target)} if store and target in store.targets() else {}

    def measuring(self, targets: list[str]) -> EmbeddingStore:
        """The store that probes read: without leaking test images of these targets, if so asked."""
        store = EmbeddingStore.open(self.study.keys.store)
        by = self.study.keys.drop_leaks
        return without_leaks(store, self.study.data_root, by, targets) if by else store

    def table(self, target: str) -> Target | None:
        """A target's table as probes see it, else as it is before it is embedded; None where neither is known."""
        store = self.store
        if store and target in store.targets():
            return self.measuring([target]).target(target)
        return self.loaded.get(target)

    def drawn(self, table: Target, protocol: Protocol) -> list[Episodes]:
        """The first episode of each number of shots, which tells of the others what there is to tell."""
        key = (table.fingerprint, table.dropped, protocol)
        if key not in self._drawn:
            self._drawn[key] = draw(table, replace(protocol, episodes=1), self.study.fewshot_probes())
        return self._drawn[key]

    def cells(self, backbone: str, table: Target, protocol: Protocol, entry: Entry | None) -> list[Cells]:
        """What a few-shot protocol asks of a pair. entry: the pair's embeddings, which say the source."""
        source = str((entry.attrs.get("source") if entry else "") or "unknown")
        found = []
        for episodes in self.drawn(table, protocol):
            metrics = protocol.metrics_of(episodes.spec)
            for probe in self.study.fewshot_probes():
                cells = cells_of(source, backbone, probe, table, episodes, metrics, protocol.per_class)
                found.append(Cells(tuple(cells), episodes.hash, protocol.episodes))
        return found

    @cached_property
    def _until(self) -> Until | None:
        return None if self.study.until is None else Until(self.study.until, ())

    def wanted(self, cells: Cells) -> int:
        """Episodes that cells are to have: those of the protocol, or fewer, where `until` is known to need no more."""
        if self._until is None:
            return cells.episodes
        done = cells.done(self.results)
        if done > self._read.get(cells, 0):
            self._until.add(self.results.read([*CELL, "episode", "value"], cells.cells))
            self._read[cells] = done
        return self._until.needed(cells.cells, cells.episodes) or cells.episodes

    def left(self, cells: Cells) -> int:
        """Episodes that cells lack; with `until` at most."""
        return max(0, self.wanted(cells) - cells.done(self.results))


def open_world(
    path: Path | str, *, store: str | None = None, results: str | None = None, data_root: Path | str | None = None
) -> World:
    """The study of a file, checked whole: its words, and what they speak of. Arguments and error as of `read_study`."""
    study, problems = parse(Path(path), {"store": store, "results": results, "data_root": data_root})
    world, more = check_world(study)
    raise_problems(Path(path), [*problems, *more])
    assert world is not None
    return world


def check_world(study: Study) -> tuple[World | None, list[str]]:
    """The study's world, and what does not fit in it; None where its results cannot be read. A folder is put under its name."""
    problems: list[str] = []
    loaded: dict[str, Target] = {}
    unknown: dict[str, str] = {}
    for i, keys in enumerate(study.keys.targets, start=1):
        try:
            loaded[keys.name] = _load(keys, study.data_root)
        except FastxferError as error:
            unknown[keys.name] = f"targets[{i}]: {error}"
    if study.results.is_file():
        return None, [*unknown.values(), f"results: '{study.results}' is a file, expected a folder"]
    try:
        world = World(study, loaded)
        told = world.results.study()
    except FastxferError as error:
        return None, [*unknown.values(), f"results: {error}"]
    if told and told["name"] != study.name:
        problems.append(
            f"results: '{study.results}' holds the rows of the study '{told['name']}': give this one another folder, or the "
            f"same `name`, if it is the same study gone on"
        )
    try:
        entries = {name: world.entries(name) for name in study.targets}
    except FastxferError as error:
        return world, [*problems, *unknown.values(), f"store: {error}"]
    for name, message in unknown.items():
        # Embeddings are enough to measure on: the images may lie on another machine.
        there = all(b in entries[name] and entries[name][b].complete for b in study.backbones)
        if not there or study.keys.finetune:
            problems.append(message)
    for i, backbone in enumerate(study.keys.backbone, start=1):
        problems += [f"backbone[{i}].{p}" for p in _wrong_with(backbone, study, entries)]
    for name in study.targets:
        problems += list(dict.fromkeys(_wrong_on(world, name, entries[name])))
    problems += _wrong_budget(world)
    return world, problems


def _load(keys: TargetKeys, data_root: Path) -> Target:
    if not keys.folder:
        return load_target(keys.name, data_root)
    folder = Path(keys.folder)
    options: dict[str, Any] = {
        "label_column": keys.label_column,
        "split_seed": keys.split_seed,
        "test_fraction": keys.test_fraction,
        "val_fraction": keys.val,
        "group": keys.group,
        "missing_labels": keys.missing_labels,
        "pattern": keys.pattern,
    }
    added = how_added(keys.name, data_root) or {}
    said = {"source": str(folder.absolute()), **options}
    said |= {k: v for k, v in (("root", keys.root), ("multi_label", keys.multi_label)) if v is not None}
    if said.items() <= added.items():
        return load_target(keys.name, data_root)  # no need to go through the folder again
    if not folder.exists():
        raise DataError(f"folder '{folder}' is not there")
    return add_target(folder, keys.name, data_root, root=keys.root, multi_label=keys.multi_label, **options)


def _wrong_with(b: BackboneKeys, study: Study, entries: dict[str, dict[str, Entry]]) -> Iterator[str]:
    there = {target: some[b.name] for target, some in entries.items() if b.name in some}
    lacking = [t for t in study.targets if t not in there or not there[t].complete]
    if not b.checkpoint:
        if lacking:
            yield f"checkpoint: none given for '{b.name}', and the store lacks its embeddings of {', '.join(lacking)}"
        return
    try:
        registered = find_registered(b.checkpoint, study.data_root)
    except FastxferError as error:
        yield f"checkpoint: {error}"
        return
    file = registered.ckpt if registered else b.checkpoint
    if (lacking or study.keys.finetune) and "/" in file and not file.startswith("hf-hub:") and not Path(file).exists():
        yield f"checkpoint: '{file}' is not there"
    if b.arch and ".py" in b.arch and not Path(b.arch.rpartition(":")[0]).is_file():
        yield f"arch: '{b.arch}' names a file that is not there"
    for target, entry in there.items():
        told = entry.attrs
        for key, said, has in (
            ("checkpoint", Path(file).name, Path(str(told.get("checkpoint") or file)).name),
            ("source", b.source, told.get("source")),
            ("pool", b.pool, told.get("pooling")),
            ("precision", b.precision, told.get("precision")),
        ):
            if said is not None and has is not None and said != has:
                yield (
                    f"{key} = {said!r}: the store has embeddings of '{target}' under the name '{b.name}' that say {has!r}: "
                    "give this one another name, or remove those (fastxfer store rm)"
                )


def _wrong_on(world: World, name: str, entries: dict[str, Entry]) -> Iterator[str]:
    """What a target cannot serve with."""
    study = world.study
    try:
        if study.keys.drop_leaks and name in world.loaded:
            leaking_images(study.data_root, name, world.loaded[name].fingerprint, study.keys.drop_leaks)
        table = world.table(name)
    except FastxferError as error:
        yield f"drop_leaks: {error}"
        return
    if table is None:
        return
    for protocol in _protocols(study):
        try:
            world.drawn(table, protocol)
            for backbone in study.backbones:
                for cells in world.cells(backbone, table, protocol, entries.get(backbone)):
                    cells.done(world.results)
        except FastxferError as error:
            yield f"fewshot: {error}"
    for split in ("train", "test") if study.keys.probe or study.keys.knn else ():
        if not len(table.rows(split)):
            yield f"{'probe' if study.keys.probe else 'knn'}: target '{name}' has no {split} images"
    f = study.keys.finetune
    if f is None:
        return
    if study.keys.select and study.keys.select.batch and not len(table.rows("val")):
        yield f"select.batch: target '{name}' has no val images to plan again by: leave it out, or give `val` to the target"
    if f.halving and not len(table.rows("val")):
        yield f"finetune.halving: target '{name}' has no val images to stop runs by: leave it out, or give `val` to the target"
    try:
        if few := study.finetune_protocol(0):
            draw(table, replace(few, episodes=1), [])
    except FastxferError as error:
        yield f"finetune: {error}"


def _protocols(study: Study) -> list[Protocol]:
    """Those of [fewshot], none where its words are wrong, which is told apart."""
    try:
        study.fewshot_probes()
        return study.protocols()
    except FastxferError:
        return []


def _wrong_budget(world: World) -> Iterator[str]:
    """A budget of [finetune] that does not suffice for one run, as far as that can be told."""
    study, f = world.study, world.study.keys.finetune
    try:
        budget = parse_budget(f.budget) if f and f.budget and not f.shots else None
    except FastxferError:
        return
    if budget is None:
        return
    least: float | None = 1.0
    if budget.kind == "images":
        loaded = [t for t in world.loaded.values() if t.root is not None]
        least = min((settle(t, **study.overrides()).images for t in loaded), default=None)
    elif budget.kind != "runs":
        rates = Rates.of(world.results.read())
        seconds = [rates.seconds_of(*pair) for pair in study.pairs]
        least = min((s for s in seconds if s is not None), default=None) if None not in seconds else None
    if least is not None and budget.amount < least:
        unit = budget.kind.replace("device-", "")
        yield f"finetune.budget = {budget.text!r}: too small for anything: the smallest run takes {least:,.0f} {unit}"
