"""Built-in targets and merges read with options, under names of their own: ``<data root>/variants/NAME.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError
from fastxfer.files import parsed, write_whole
from fastxfer.targets.csvfile import read_bytes

FORMAT = 1


@dataclass(frozen=True)
class Variant:
    """What a name stands for. base: a built-in target or a merge; options: of its reader."""

    base: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        said = (f"{o} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for o, v in self.options.items())
        return f"{self.base} with {', '.join(said) or 'no options'}"


def variant_names(data_root: Path) -> list[str]:
    """Names of the variants, sorted."""
    return sorted(path.stem for path in (data_root / "variants").glob("*.json"))


def read_variant(name: str, data_root: Path) -> Variant | None:
    """The variant of that name, None if there is none. `DataError` for a damaged file."""
    path = data_root / "variants" / f"{name}.json"
    if not path.is_file():
        return None
    try:
        content = parsed(json.loads, read_bytes(path))
        options = {str(o): tuple(v) if isinstance(v, list) else v for o, v in content["options"].items()}
        variant, version = Variant(str(content["base"]), options), int(content["format"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a variant written by fastxfer, or damaged; define it again") from None
    if version > FORMAT:
        raise DataError(f"{path}: written by a newer fastxfer (format {version}, this one knows {FORMAT})")
    return variant


def write_variant(name: str, variant: Variant, data_root: Path) -> None:
    """Write it whole or not at all."""
    content = {"format": FORMAT, "base": variant.base, "options": dict(variant.options)}
    write_whole(data_root / "variants" / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
