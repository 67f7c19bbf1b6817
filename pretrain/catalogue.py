"""Recipes as files: the keys of `Recipe`, and what is another value for some source, size or variant.

    lr = 0.1                     # of all
    [sizes.R152x4]               # laid over it by --size R152x4
    lr = 0.03
    [variants.optimized]         # by --variant optimized, over sizes and sources; may itself hold sizes and sources
    schedule = "cosine"
    [sources.chexpert_mimic]     # by --source chexpert_mimic
    source = "chexpert-paper+mimic-cxr-paper"

Besides the keys of `Recipe`: `about` (what it is), `note` (what one should know of it), `images` (of the source, so that a dry
run needs no data).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.files import parsed
from pretrain.recipe import ARCHITECTURES, KINDS, Recipe

FOLDER = Path(__file__).parent / "recipes"
_LAYERS = ("sources", "sizes", "variants")
_BESIDE: dict[str, Any] = {"about": "", "note": "", "images": 0}


@dataclass(frozen=True)
class Written:
    """A recipe as it was read. images: of its source by hearsay, 0 = unknown; note: what one should know, or "" """

    recipe: Recipe
    about: str = ""
    note: str = ""
    images: int = 0


@dataclass(frozen=True)
class Configuration:
    """One of the paper's pre-trained models: words for `read_recipe`. known: whether its file is in their repository."""

    recipe: str
    source: str
    size: str
    variant: str = ""
    known: bool = True

    @property
    def name(self) -> str:
        return "_".join(part for part in (self.source or self.recipe, self.size, self.variant) if part)

    @property
    def words(self) -> list[str]:
        """What `fastxfer pretrain` is told."""
        options = {"--source": self.source, "--size": self.size, "--variant": self.variant}
        return [self.recipe, *(word for pair in options.items() if pair[1] for word in pair)]

    def read(self, *variants: str) -> Written:
        return read_recipe(
            self.recipe, source=self.source, size=self.size, variants=[*filter(None, [self.variant]), *variants]
        )


def names() -> list[str]:
    """Recipes of this package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def layers(name: str | Path) -> dict[str, list[str]]:
    """Names of the sources, sizes and variants that a recipe knows."""
    tables = _tables(name)
    return {layer: list(tables.get(layer, {})) for layer in _LAYERS}


def paper() -> list[Configuration]:
    """The models of Cherti & Jitsev (2021): sources x sizes, and ImageNet-1k with the better recipe."""
    sizes = ("R50x1", "R152x4")
    sources: list[tuple[str, str]] = [("imagenet1k", ""), ("imagenet21k", "")]
    sources += [("xray", source) for source in _tables("xray")["sources"]]
    found = [Configuration(recipe, source, size) for recipe, source in sources for size in sizes]
    found = [replace(c, known=(c.source, c.size) != ("padchest", "R50x1")) for c in found]
    return found + [Configuration("imagenet1k", "", size, "optimized") for size in sizes]


def read_recipe(name: str | Path, *, source: str = "", size: str = "", variants: Sequence[str] = ()) -> Written:
    """A recipe by name, or from a TOML file, laid out for a source, a size and variants.

    source: one of the recipe's, or any target; size: one of the recipe's, or any architecture, for which the recipe's
    general values then hold. `UsageError` for an unknown name (nearest named); `DataError` names the file and the key.
    """
    where = f"recipe '{name}'"
    tables = _tables(name)
    sizes, sources, known = (tables.get(layer, {}) for layer in ("sizes", "sources", "variants"))
    for variant in variants:
        if variant not in known:
            raise UsageError(
                f"{where} has no variant '{variant}'.{nearest(variant, known)} It has: {', '.join(known) or 'none'}"
            )
    if size and size not in sizes and size not in ARCHITECTURES:
        _check_architecture(size, [*{**sizes, **ARCHITECTURES}], where)
    asked = {"sources": [source], "sizes": [size], "variants": variants}
    values = _laid_out(tables, asked)
    if size:
        values["arch"] = sizes.get(size, {}).get("arch", size)
    if source not in ("", values.get("source"), *sources):
        # What the file knows of its own source is not so of this one.
        values = {key: value for key, value in values.items() if key not in ("num_classes", "images", "note")}
        values["source"] = source
    beside = {key: values.pop(key, default) for key, default in _BESIDE.items()}
    if size and sizes and size not in sizes and not beside["note"]:
        beside["note"] = (
            f"{where} has no values of its own for {size}, only for {', '.join(sizes)}: its general ones hold"
        )
    return Written(Recipe.from_plain(values, where), **beside)


def _check_architecture(name: str, known: list[str], where: str) -> None:
    import timm

    if not timm.is_model(name):
        hint = nearest(name, known) or nearest(name, timm.list_models())
        raise UsageError(f"--size '{name}' is neither a size of {where} nor an architecture.{hint}")


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as a TOML file that `read_recipe` takes; a line a key."""

    def literal(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {literal(v)}" for key, v in value.items()) + " }" if value else "{}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(literal, value))}]"
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)

    return "".join(f"{key} = {literal(value)}\n" for key, value in recipe.plain().items())


def _tables(name: str | Path) -> dict[str, Any]:
    """What the file holds, its layers checked to be tables of tables."""
    path = Path(name)
    if not path.is_file():
        known = FOLDER / f"{name}.toml"
        if not known.is_file():
            hint = nearest(str(name), names()) or f" Recipes: {', '.join(names())}"
            raise DataError(f"recipe '{name}' does not exist, neither as a file nor by name.{hint}")
        path = known
    try:
        tables: dict[str, Any] = parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"recipe '{path}' is no TOML: {error}") from error
    for table in _walk(tables):
        for layer in _LAYERS:
            inner = table.get(layer, {})
            if not isinstance(inner, dict) or not all(isinstance(values, dict) for values in inner.values()):
                raise DataError(f"recipe '{path}': '{layer}' should hold tables, such as [{layer}.NAME]")
        for key, default in _BESIDE.items():
            if type(table.get(key, default)) is not type(default):
                raise DataError(f"recipe '{path}': {key} = {table[key]!r} should be {KINDS[type(default)]}")
        # A misspelt key of a size that nobody asked for is found now, not when somebody does.
        Recipe.checked({k: v for k, v in table.items() if k not in (*_LAYERS, *_BESIDE)}, f"recipe '{path}'")
    return tables


def _walk(table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The table and all that lie in its layers."""
    yield table
    for layer in _LAYERS:
        inner = table.get(layer, {})
        for values in inner.values() if isinstance(inner, dict) else ():
            if isinstance(values, dict):
                yield from _walk(values)


def _laid_out(table: Mapping[str, Any], asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    values = {key: value for key, value in table.items() if key not in _LAYERS}
    for layer in _LAYERS:
        for name in asked[layer]:
            if name in table.get(layer, {}):
                values |= _laid_out(table[layer][name], asked)
    return values
