"""Targets by name: data sets whose official layout is known. One module a family; this is the list of them.

A family's module has ``read(folder, name, **options) -> Target``. To add one, write the module and a line here.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.targets.table import Target


@dataclass(frozen=True)
class Family:
    """A built-in target.

    name: of the target. module: of ``fastxfer.targets``, with the reader. expects: what has to lie in its folder.
    source: where one gets the data, and what has to be signed.
    """

    name: str
    module: str
    expects: str
    source: str

    def read(self, folder: Path, options: dict[str, Any]) -> Target:
        """Read the files below `folder`; `options` go to the reader. `DataError` says what was expected where."""
        reader = importlib.import_module(f"fastxfer.targets.{self.module}").read
        known = [p for p in inspect.signature(reader).parameters if p not in ("folder", "name")]
        for option in options:
            if option not in known:
                raise UsageError(
                    f"target '{self.name}' has no option '{option}'; its options: {', '.join(known)}."
                    f"{nearest(option, known)}"
                )
        if not folder.is_dir():
            raise DataError(
                f"target '{self.name}': there is no folder {folder}; expected there: {self.expects}. "
                f"The data: {self.source}"
            )
        target: Target = reader(folder, self.name, **options)
        return target


FAMILIES: dict[str, Family] = {}
