"""What other packages bring: probes, targets, backbones, metrics and policies, found by the entry points of their packages.

A package says what it brings in its ``pyproject.toml``, one group a kind, ``[project.entry-points."fastxfer.probes"]``.
Installed is all that it has to be. Names are read from the packages' metadata; the code behind a name runs when the
name is used, so one package that fails is no business of commands that don't ask for it. See docs/architecture.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Generic, TypeVar

from fastxfer.errors import DataError, FastxferError, UsageError

T = TypeVar("T")

PREFIX = "fastxfer."
KINDS = {
    "probes": "probe",
    "targets": "target",
    "backbones": "architecture",
    "metrics": "metric",
    "policies": "policy",
}


@dataclass(frozen=True)
class Plugin:
    """One line of an installed package's metadata: what it brings under which name, "module:object"."""

    group: str
    name: str
    package: str
    entry: metadata.EntryPoint

    def __str__(self) -> str:
        return f"package {self.package} ({self.entry.value})"


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """All that installed packages bring, group by group and name by name; nothing of it is imported."""
    found = [
        Plugin(entry.group.removeprefix(PREFIX), entry.name, f"{entry.dist.name} {entry.dist.version}", entry)
        for group in metadata.entry_points().groups
        if group.startswith(PREFIX)
        for entry in metadata.entry_points(group=group)
        if entry.dist is not None
    ]
    return tuple(sorted(found, key=lambda plugin: (plugin.group, plugin.name, plugin.package)))


class Catalogue(Mapping[str, T], Generic[T]):
    """The things of one kind by name: the house's own, and those that packages bring, which are imported when asked for.

    group  of `KINDS`
    own    name -> thing
    check  what is wrong with a thing that a package brings under a name, "" for nothing
    taken  whose a name is already, "" for nobody's; by default the house's, if it is in `own`

    Asking for a name raises `KeyError` if nobody has it, `UsageError` if two have it, and `DataError` if its package fails.
    """

    def __init__(
        self,
        group: str,
        own: Mapping[str, T],
        check: Callable[[str, object], str],
        taken: Callable[[str], str] | None = None,
    ) -> None:
        self.group = group
        self.own = dict(own)
        self._check = check
        self._taken = taken or (lambda name: "fastxfer itself" if name in self.own else "")

    def brought(self, name: str | None = None) -> list[Plugin]:
        """What packages bring (under a name)."""
        return [p for p in installed() if p.group == self.group and name in (None, p.name)]

    def __getitem__(self, name: str) -> T:
        plugins = self.brought(name)
        if not plugins:
            return self.own[name]
        return self.load(plugins[0])

    def __contains__(self, name: object) -> bool:
        return name in self.own or any(plugin.name == name for plugin in self.brought())

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *(plugin.name for plugin in self.brought())]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def find(self, name: str) -> T | None:
        """The thing of that name; None where it can't be had, whatever the reason: for those who can do without."""
        try:
            return self.get(name)
        except FastxferError:
            return None

    def tried(self) -> list[tuple[Plugin, T | None, str]]:
        """All that packages bring, each with why it can't be had ("" where it can): for lists."""
        found: list[tuple[Plugin, T | None, str]] = []
        for plugin in self.brought():
            try:
                found.append((plugin, self.load(plugin), ""))
            except FastxferError as error:
                found.append((plugin, None, str(error)))
        return found

    def load(self, plugin: Plugin) -> T:
        """Import what a package brings. `UsageError` if its name is somebody else's, too, `DataError` if it fails."""
        kind, name = KINDS[self.group], plugin.name
        others = [str(p) for p in self.brought(name) if p != plugin]
        if owner := self._taken(name):
            others.insert(0, owner)
        if others:
            raise UsageError(
                f"{kind} '{name}' is brought by {' and by '.join([*others, str(plugin)])}: "
                "which one is meant cannot be told; uninstall one, or have its authors rename it"
            )
        try:
            thing: T = plugin.entry.load()
        except Exception as error:
            raise DataError(
                f"{kind} '{name}' of {plugin} does not load: {type(error).__name__}: {error}. "
                f"Upgrade or uninstall {plugin.package.split()[0]}"
            ) from error
        if problem := self._check(name, thing):
            raise DataError(f"{kind} '{name}' of {plugin} cannot be used: {problem}. See docs/architecture.md")
        return thing
