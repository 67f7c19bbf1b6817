"""The register of targets that people added: ``<data root>/targets/NAME.csv`` with ``NAME.json`` beside it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.files import parsed
from fastxfer.images import CHOICES, DEFAULT, Pixels
from fastxfer.progress import say
from fastxfer.targets.changes import COPIED, find_changes, record_files
from fastxfer.targets.csvfile import read_bytes, read_csv
from fastxfer.targets.families import FAMILIES, Family
from fastxfer.targets.filters import keep_exactly_one
from fastxfer.targets.labels import write_labels
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.listing import build_target, read_table
from fastxfer.targets.merge import merge_targets
from fastxfer.targets.sources import read_source
from fastxfer.targets.table import ABOUT, Target
from fastxfer.targets.variants import Variant, read_variant, variant_names, write_variant

FORMAT = 1
_UNION = "union="
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def add_target(
    source: Path | str,
    name: str,
    data_root: Path | str,
    *,
    label_column: str = "label",
    split_seed: int = 0,
    test_fraction: float = 0.2,
    val_fraction: float | None = None,
    group: str | None = None,
    missing_labels: str | None = None,
    root: Path | str | None = None,
    pattern: str | None = None,
    multi_label: bool | None = None,
    pixels: Pixels = DEFAULT,
    replace: bool = False,
) -> Target:
    """Put a data set of one's own under a name.

    source: a folder with a ``labels.csv`` (which then decides alone), an ImageFolder with or without train/ and
    test/, a CSV with ``path,label[,split][,patient]`` whose paths start at `root` (default: the CSV's folder), an
    ``.npz`` in MedMNIST's layout, a ``.parquet`` or ``.arrow`` with an image column or a folder of such shards. Labels "A|B" make it
    multi-label; "No Finding" then stands for none of them. No pixel is read or copied; `pixels` says what
    they mean, where files leave a choice.
    pattern: what a folder's paths say, see `read_pattern`. label_column, group, missing_labels: see `read_table`.
    split_seed, test_fraction, val_fraction, multi_label: see `build_target`.

    Writes the register entry under `data_root` and returns the table. Adding the same again changes nothing;
    other content under a name in use is a `DataError` unless `replace`.
    """
    check_name(name)
    source, data_root = Path(source), Path(data_root)
    if name in FAMILIES:
        raise UsageError(
            f"'{name}' is the name of a built-in target (its files belong to {FAMILIES[name].folder(data_root)}); choose another"
        )
    if variant := read_variant(name, data_root):
        raise UsageError(f"'{name}' is defined in {data_root} as {variant}; choose another name")
    kind, listing = read_source(
        source,
        root=None if root is None else Path(root),
        pattern=pattern,
        label_column=label_column,
        group=group,
        missing_labels=missing_labels,
    )
    target = build_target(
        listing,
        name,
        multi_label=multi_label,
        split_seed=split_seed,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
    )
    target = dataclasses.replace(target, pixels=pixels)
    meta = {
        "format": FORMAT,
        "name": name,
        "kind": kind,
        "source": str(source.absolute()),
        "root": str(target.root),
        "label_column": label_column,
        "group": group,
        "pattern": pattern,
        "missing_labels": missing_labels,
        "split_seed": split_seed,
        "test_fraction": test_fraction,
        "val_fraction": val_fraction,
        "multi_label": target.multi_label,
        "class_names": list(target.class_names),
        "n_images": target.n_images,
        "fingerprint": target.fingerprint,
        "files": record_files(listing.root, listing.image_id),
        "notes": list(target.notes),
        "pixels": pixels.as_dict(),
        "left_out": [gone.as_dict() for gone in target.left_out],
    }
    _write_entry(register_folder(data_root), name, target, meta, replace)
    for note in target.notes:
        say(f"{name}: {note}")
    return target


def define_target(name: str, base: str, data_root: Path | str, *, replace: bool = False, **options: Any) -> Target:
    """Give a built-in target or a merge, read with these options, a name that all commands take.

    Returns the target, read once. Defining the same again changes nothing; something else under a name in use is a
    `UsageError` unless `replace`.
    """
    check_name(name)
    data_root = Path(data_root)
    if name in FAMILIES or name in registered_names(data_root):
        raise UsageError(f"'{name}' is the name of another target; choose one of your own")
    if "+" not in base and base not in FAMILIES:
        raise UsageError(f"'{base}' is neither a built-in target nor a merge of targets.{nearest(base, FAMILIES)}")
    if "soft_labels" in options:
        options["soft_labels"] = str(Path(options["soft_labels"]).absolute())
    variant, old = Variant(base, options), read_variant(name, data_root)
    if old not in (None, variant) and not replace:
        raise UsageError(f"'{name}' is defined as {old}; choose another name, or replace it with --replace")
    target = _load_variant(name, variant, data_root, {})
    write_variant(name, variant, data_root)
    return target


def load_target(name: str, data_root: Path | str, **options: Any) -> Target:
    """The target of that name: one that was added or defined, or a built-in one whose files lie under `data_root`.

    "a+b" is a merge of targets, with the labels that all have; "union=a+b" (or the option ``labels="union"``) with all.

    options: for built-in families only, see their readers (`policy`, `views`, `labels_only` …); those of a merge go
    to all members that have them, `exactly_one` to the result. `grey16` and `dicom`, for all, are those of `Pixels`.
    Raises `UsageError` for an unknown name (nearest names offered) or option, `DataError` for missing files.
    """
    meaning = {option: options.pop(option) for option in CHOICES if option in options}
    target = _load(name, Path(data_root), options)
    return dataclasses.replace(target, pixels=dataclasses.replace(target.pixels, **meaning)) if meaning else target


def _load(name: str, data_root: Path, options: dict[str, Any]) -> Target:
    if "+" in name:
        return _load_merge(name, data_root, options)
    check_name(name)
    # What was added under a name before the name became a built-in one's is still what it means here.
    added = (register_folder(data_root) / f"{name}.json").is_file()
    if name in FAMILIES and not added:
        return FAMILIES[name].read(data_root, options)
    if not added and (variant := read_variant(name, data_root)):
        return _load_variant(name, variant, data_root, options)
    if not added:
        lying = data_root / name
        hint = f" The folder {lying} is there: fastxfer targets add {lying} --name {name}" if lying.is_dir() else ""
        known = [*registered_names(data_root), *variant_names(data_root), *FAMILIES]
        hint = hint or " `fastxfer targets ls` lists all."
        raise UsageError(f"unknown target '{name}' in {data_root}.{nearest(name, known)}{hint}")
    if options:
        raise UsageError(f"target '{name}' was added by hand and takes no option '{next(iter(options))}'")
    return _read_entry(register_folder(data_root), name)


def _load_variant(name: str, variant: Variant, data_root: Path, options: dict[str, Any]) -> Target:
    target = load_target(variant.base, data_root, **{**variant.options, **options})
    return dataclasses.replace(target, name=name, notes=(str(variant), *target.notes))


def _load_merge(name: str, data_root: Path, options: dict[str, Any]) -> Target:
    plain = name.removeprefix(_UNION)
    labels = options.pop("labels", "intersection" if plain == name else "union")
    exactly_one = options.pop("exactly_one", False)
    members = plain.split("+")
    takes = {m: FAMILIES[m].options() if m in FAMILIES else [] for m in members}
    for option in options:
        if not any(option in known for known in takes.values()):
            raise UsageError(f"target '{name}': none of its members has an option '{option}'")
    targets = [load_target(m, data_root, **{o: v for o, v in options.items() if o in takes[m]}) for m in members]
    merged = merge_targets(targets, f"{_UNION}{plain}" if labels == "union" else plain, labels=labels)
    return keep_exactly_one(merged) if exactly_one else merged


def list_targets(data_root: Path | str) -> list[dict[str, Any]]:
    """What there is: added targets, defined ones, then families, built-in and of packages, whether or not their files are there.

    Keys: name, kind ("folder", "table", "packed", "variant", "built-in", "package"), available, n_images and n_classes (None
    where only reading the files would tell), where (the root folder, or where the files belong; of a variant, what it stands
    for; of a package that fails, why), source (where a family's files are got from).
    """
    data_root = Path(data_root)
    rows = []
    added = registered_names(data_root)
    for name in added:
        meta = _read_meta(register_folder(data_root), name)
        counts = {"n_images": meta["n_images"], "n_classes": len(meta["class_names"])}
        rows.append(_line(name, meta["kind"], meta["root"], Path(meta["root"]).is_dir(), **counts))
    for name in variant_names(data_root):
        variant = read_variant(name, data_root)
        members = variant.base.removeprefix(_UNION).split("+") if variant else []
        folders = [family.folder(data_root) for m in members if (family := FAMILIES.find(m))]
        rows.append(_line(name, "variant", str(variant), all(folder.is_dir() for folder in folders)))
    brought = {plugin.name: (family, problem) for plugin, family, problem in FAMILIES.tried()}
    for name in (name for name in FAMILIES if name not in added):
        family, problem = brought.get(name) or (FAMILIES.own[name], "")
        kind = "package" if name in brought else "built-in"
        if family is None:
            rows.append(_line(name, kind, problem, False))
        else:
            folder = family.folder(data_root)
            rows.append(_line(name, kind, str(folder), folder.is_dir(), source=family.source))
    return rows


def _line(
    name: str, kind: str, where: str, available: bool, *, n_images: int | None = None, n_classes: int | None = None,
    source: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": name,
        "kind": kind,
        "available": available,
        "n_images": n_images,
        "n_classes": n_classes,
        "where": where,
        "source": source,
    }


def how_added(name: str, data_root: Path | str) -> dict[str, Any] | None:
    """What was noted when a target was added: `source`, `root`, the arguments of `add_target`; None if none was."""
    folder = register_folder(data_root)
    return _read_meta(folder, name) if (folder / f"{name}.json").is_file() else None


def register_folder(data_root: Path | str) -> Path:
    return Path(data_root) / "targets"


def registered_names(data_root: Path | str) -> list[str]:
    """Names of the added targets, sorted."""
    folder = register_folder(data_root)
    return sorted(p.stem for p in folder.glob("*.json") if _NAME.fullmatch(p.stem)) if folder.is_dir() else []


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a target; use letters, digits, '.', '_' and '-', at most 100, "
            "starting with a letter or digit"
        )


def _write_entry(folder: Path, name: str, target: Target, meta: dict[str, Any], replace: bool) -> None:
    """Both files are written in full beside their places before either is renamed: a full disk changes nothing."""
    if (folder / f"{name}.json").is_file() and not replace:
        old = _read_meta(folder, name)
        same_table = old["fingerprint"] == meta["fingerprint"] and old["root"] == meta["root"]
        changes = ""
        if same_table and "files" in old:
            changes = find_changes(Path(meta["root"]), target.image_id, old["files"])
        if same_table and not changes:
            say(f"{name}: already added, with the same content")
            return
        if changes == COPIED:
            raise DataError(
                f"target '{name}' exists with the same table and files of the same sizes, but other times. If they were only "
                "copied or checked out anew, take them over with --replace: what was embedded of them stays good"
            )
        if same_table:
            raise DataError(
                f"target '{name}' exists with the same table, but its files have changed since; take them over with "
                f"--replace, and remove what was embedded of the old ones: fastxfer store rm --target {name}"
            )
        raise DataError(
            f"target '{name}' exists with other content ({old['n_images']:,} images in {old['root']}); "
            "choose another name, or replace it with --replace"
        )
    folder.mkdir(parents=True, exist_ok=True)
    table = _table_bytes(target)
    meta = {**meta, "table_sha256": hashlib.sha256(table).hexdigest()}
    contents = {
        f"{name}.csv": table,
        f"{name}.json": (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    temporary = {final: folder / f".{final}.{os.getpid()}.tmp" for final in contents}
    try:
        for final, content in contents.items():
            with open(temporary[final], "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for final, path in temporary.items():
            os.replace(path, folder / final)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _table_bytes(target: Target) -> bytes:
    """The table in the format that `targets add` reads, so that it can be edited and added again."""
    columns: dict[str, list[str]] = {
        "path": target.image_id.tolist(),
        **write_labels(target.labels, target.class_names),
        "split": target.split.tolist(),
        **{column: values.tolist() for column in ABOUT if (values := getattr(target, column)) is not None},
    }

    def write(quoting: Literal[0, 1]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=quoting)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    text = write(csv.QUOTE_MINIMAL)
    # csv quotes the line ends and delimiters that it writes itself; a lone "\r", and a ";" or tab in the name of a label,
    # would be left bare, and mean something to a reader.
    odd = "\r" in text or any(mark in title for title in columns for mark in ";\t")
    return (write(csv.QUOTE_ALL) if odd else text).encode()


def _read_meta(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    try:
        meta: dict[str, Any] = parsed(json.loads, read_bytes(path))
        newer = meta["format"] > FORMAT
        complete = {
            "kind",
            "root",
            "multi_label",
            "class_names",
            "n_images",
            "fingerprint",
            "table_sha256",
        } <= meta.keys()
        complete = complete and {"digest", "latest"} <= meta.get("files", {"digest": "", "latest": 0}).keys()
        meta["left_out"] = [LeftOut(**gone) for gone in meta.get("left_out", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        newer = complete = False
    if newer:
        raise DataError(f"{path}: written by a newer fastxfer (format {meta['format']}, this one knows {FORMAT})")
    if not complete:
        raise DataError(f"{path}: not a register entry of fastxfer, or damaged; add the target again with --replace")
    return meta


def _read_entry(folder: Path, name: str) -> Target:
    meta = _read_meta(folder, name)
    path, root = folder / f"{name}.csv", Path(meta["root"])
    if hashlib.sha256(read_bytes(path)).hexdigest() != meta["table_sha256"]:
        raise DataError(
            f"{path}: changed since it was added; to use it as it is: fastxfer targets add {path} --root {root} "
            f"--name {name} --replace"
        )
    if not root.is_dir():
        raise DataError(
            f"target '{name}': its images were in {root}, which isn't there any more; add it again with --replace"
        )
    listing = read_table(read_csv(path, strip=False), root, trusted=True)
    target = build_target(listing, name, multi_label=meta["multi_label"], class_names=meta["class_names"])
    notes = list(meta["notes"])
    changes = find_changes(root, listing.image_id, meta["files"]) if "files" in meta else ""
    if changes:
        say(f"{name}: {changes}")
        notes.append(changes)
    pixels = Pixels(**meta.get("pixels", {}))
    return dataclasses.replace(target, root=root, notes=tuple(notes), pixels=pixels, left_out=tuple(meta["left_out"]))


__all__ = [
    "FAMILIES",
    "Family",
    "add_target",
    "check_name",
    "define_target",
    "list_targets",
    "load_target",
    "registered_names",
]
