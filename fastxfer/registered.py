"""Checkpoints under names of their own, with all their options: ``<data root>/backbones/NAME.json``.

A code file counts as named by the user when it is added; once it has changed, it doesn't any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastxfer.errors import DataError, UsageError
from fastxfer.files import parsed, write_whole
from fastxfer.store import EmbeddingStore, check_name

if TYPE_CHECKING:
    from fastxfer.backbones import Backbone

FORMAT = 1


@dataclass(frozen=True)
class Registered:
    """What a name stands for: words of `load_backbones`, and what loading it once showed.

    ckpt, arch:   files by their whole path;  code_sha256: of the code file, if `arch` is one
    facts:        identity, weights_sha256, dim, parameters, flops …, see `facts_of`
    """

    name: str
    ckpt: str
    arch: str | None
    arch_args: dict[str, Any]
    source: str | None
    preprocessing: dict[str, Any]
    code_sha256: str | None
    facts: dict[str, Any]

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Words for `load_backbones`; those `given` go before. DataError if the code has changed since it was added."""
        arch = given.get("arch") or self.arch
        if arch == self.arch:
            _check_code(self)
        words = {k: v for k, v in dict(given.get("preprocessing") or {}).items() if v is not None}
        return {
            **given,
            "arch": arch,
            "arch_args": {**(self.arch_args if arch == self.arch else {}), **(given.get("arch_args") or {})},
            "known_as": self.name,
            "source": given.get("source") or self.source,
            "preprocessing": {**self.preprocessing, **words},
        }


def registered_names(data_root: Path) -> list[str]:
    """Names of the registered checkpoints, sorted."""
    return sorted(path.stem for path in (data_root / "backbones").glob("*.json"))


def find_registered(name: str, data_root: Path) -> Registered | None:
    """The checkpoint registered under a name, None if there is none. DataError for a damaged entry."""
    path = data_root / "backbones" / f"{name}.json"
    if "/" in name or "\\" in name or not path.is_file():
        return None
    try:
        content = parsed(json.loads, path.read_text(encoding="utf-8"))
        version = int(content.pop("format"))
        if version <= FORMAT:
            return Registered(**content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: not an entry written by fastxfer, or damaged; add the checkpoint again: fastxfer backbones add"
        ) from None
    raise DataError(f"{path}: written by a newer fastxfer (format {version}, this one knows {FORMAT})")


def load_named(ckpt: str, data_root: Path, **options: Any) -> list[Backbone]:
    """`load_backbones` of a registered name, with its options, or of any other checkpoint.

    DataError if the weights or the code are not those that were added.
    """
    from fastxfer.backbones import load_backbones

    entry = find_registered(ckpt, data_root)
    if entry is None:
        return load_backbones(ckpt, **options)
    loaded = load_backbones(entry.ckpt, **entry.options(options))
    if loaded[0].weights_sha256 != entry.facts["weights_sha256"]:
        raise DataError(
            f"'{ckpt}': the weights in {entry.ckpt} are not those that were added under this name; "
            f"add them again: {_again(entry)}"
        )
    return loaded


def files_of(name: str, data_root: Path, arch: str | None = None) -> tuple[str, str | None]:
    """Checkpoint and architecture that a registered name stands for; any other name is the checkpoint itself.

    DataError if the code of the architecture has changed since it was added.
    """
    entry = find_registered(name, data_root)
    if entry is None:
        return name, arch
    options = entry.options({"arch": arch})
    return entry.ckpt, options["arch"]


def add_backbone(
    ckpt: str,
    name: str | None,
    data_root: Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    source: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Registered:
    """Load a checkpoint once and keep it with its options under a name [the file's].

    Raises what `load_backbones` raises, and UsageError for a name that is taken, or timm's.
    """
    import timm

    from fastxfer.backbones import SUFFIXES, load_backbone

    words = {k: v for k, v in dict(preprocessing or {}).items() if v is not None}
    if Path(ckpt).exists():
        ckpt = str(Path(ckpt).resolve())
    code = None if arch is None else _code_file(arch)
    if code is not None and arch is not None:
        arch = arch.replace(str(code), str(code.resolve()), 1)
    code_sha256 = None if code is None else _digest(code)  # of what is run below
    backbone = load_backbone(
        ckpt, arch=arch, arch_args=arch_args, name=name, source=source, preprocessing=words or None
    )
    name = check_name(backbone.name, "backbone")
    if timm.is_model(name) or name.endswith(SUFFIXES):
        raise UsageError(f"--name {name} would be taken for timm's, or for a file: choose another")
    if find_registered(name, data_root) is not None and not replace:
        raise UsageError(f"'{name}' is registered already: another --name, or --replace")
    entry = Registered(
        name=name,
        ckpt=ckpt,
        arch=arch,
        arch_args=dict(arch_args or {}),
        source=source,
        preprocessing=words,
        code_sha256=code_sha256,
        facts=facts_of(backbone),
    )
    content = {"format": FORMAT, **asdict(entry)}
    path = data_root / "backbones" / f"{name}.json"
    write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return entry


def facts_of(backbone: Backbone) -> dict[str, Any]:
    """What is known of a loaded backbone; parameters without head, flops of one image (2 a multiply-add)."""
    return {
        **backbone.provenance(),
        "dim": backbone.dim,
        "parameters": backbone.parameters,
        "flops": backbone.trial.flops,
        "notes": list(backbone.notes),
    }


def in_store(store_path: str) -> dict[str, dict[str, Any]]:
    """By name, the backbones whose embeddings a store holds: attributes of their last array, dim, and `targets`."""
    if "://" not in store_path and not Path(store_path).exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for entry in EmbeddingStore.open(store_path).entries():
        targets = [*found.get(entry.backbone, {}).get("targets", []), entry.target]
        found[entry.backbone] = {**entry.attrs, "dim": entry.dim, "targets": targets}
    return found


def _code_file(arch: str) -> Path | None:
    file = Path(arch.rpartition(":")[0] if ".py:" in arch else arch)
    return file if file.suffix == ".py" else None


def _check_code(entry: Registered) -> None:
    code = None if entry.arch is None else _code_file(entry.arch)
    if code is None:
        return
    if not code.is_file() or _digest(code) != entry.code_sha256:
        what = "has changed since" if code.is_file() else "is not there any more, where it was when"
        raise DataError(
            f"'{entry.name}': the code file {code} {what} it was added, so it is not run; look at it, and add it again: "
            f"{_again(entry)}"
        )


def _again(entry: Registered) -> str:
    arch = f" --arch {entry.arch}" if entry.arch else ""
    return f"fastxfer backbones add {entry.ckpt}{arch} --name {entry.name} --replace …"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
