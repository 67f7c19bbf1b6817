"""Where the numbers come from: the store's attributes, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastxfer
from fastxfer.errors import DataError
from fastxfer.targets.findings import Findings, load_findings

_IMAGE = re.compile(r"\S+\.(?:png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom)\b", re.IGNORECASE)
_PATH = re.compile(
    r"(?<![\w.…])(?:"
    r"(?:[A-Za-z]:\\|\\\\|~?/|\.{1,2}/|[A-Za-z][\w+.-]*://)[^\s'\"<>,;()]+"  # absolute, or from here: /a/b, ../a, s3://a
    r"|[\w.-]+(?:/[\w.-]+){2,}"  # two folders deep
    r"|[\w.-]+/[\w.-]+\.[A-Za-z]\w{1,4}\b"  # a file in a folder
    r")"
)
_SPLITS = {"train", "val", "test", "validation"}


@dataclass(frozen=True)
class TargetFacts:
    """What the store's table of a target says, without an image's or a patient's name."""

    n_images: int
    splits: dict[str, int]
    class_names: tuple[str, ...]
    multi_label: bool
    patients: bool
    notes: tuple[str, ...]


@dataclass
class Facts:
    """Everything of the report that is no measured value."""

    store: str
    study: str = ""
    digest: str | None = None
    embeddings: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # (backbone, target) -> attributes
    targets: dict[str, TargetFacts] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    findings: dict[str, Findings] = field(default_factory=dict)  # target -> what `targets check --save` found
    leaks: dict[str, list[str]] = field(default_factory=dict)  # the same in sentences, or why it cannot be told


def base_name(path: Any) -> str:
    """The last part of a path or URL; a timm hub name (hf-hub:org/model) is no path and stays."""
    text = str(path)
    if re.match(r"hf[-_]hub:", text):
        return text
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def without_paths(text: str, names: Collection[str] = ()) -> str:
    """Text in which folders, image files and any of `names` (patients, images) no longer appear."""
    text = _IMAGE.sub("[an image]", text)

    def short(match: re.Match[str]) -> str:
        found = match.group()
        return found if set(found.split("/")) <= _SPLITS else f"…/{base_name(found)}"

    text = _PATH.sub(short, text)
    words = [w.strip("'\".,;:()[]") for w in text.split()]
    for word in {w for w in words if len(w) > 4 and w in names}:
        text = text.replace(word, "[a name]")
    return text


def gather(store_path: str | Path, data_root: str | Path | None = None) -> Facts:
    """Read what the store knows, and, with `data_root`, what was found in its targets; a store that is gone, or a part of
    it, becomes a line of `problems`."""
    facts = Facts(store=base_name(store_path), versions=versions())
    from fastxfer.store import EmbeddingStore

    try:
        store = EmbeddingStore.open(store_path)
    except (DataError, OSError) as error:
        facts.problems.append(f"The store could not be read: {without_paths(str(error))}")
        return facts
    for entry in store.entries():
        key = (str(entry.backbone), str(entry.target))
        facts.embeddings[key] = dict(store.attributes(*key))
        if not entry.complete:
            facts.problems.append(
                f"Embeddings of {key[0]} on {key[1]} are incomplete ({entry.n_present:,} of {entry.n_images:,} images)."
            )
        if key[1] not in facts.targets:
            facts.targets[key[1]] = _target_facts(store.target(key[1]))
            if data_root is not None:
                _gather_findings(facts, data_root, key[1], store.fingerprint(key[1]))
            if bad := len(store.bad_images(key[1])):
                facts.problems.append(f"Left out: {bad:,} images of {key[1]} that could not be decoded.")
    facts.digest = str(store.digest())
    return facts


def _gather_findings(facts: Facts, data_root: str | Path, target: str, fingerprint: str) -> None:
    try:
        findings = load_findings(data_root, target, fingerprint)
    except DataError as error:
        facts.leaks[target] = [without_paths(str(error))]
        return
    if findings:
        facts.findings[target], facts.leaks[target] = findings, findings.sentences()


def _target_facts(target: Any) -> TargetFacts:
    names = set(map(str, target.image_id))
    if target.patient is not None:
        names |= set(map(str, target.patient))
    return TargetFacts(
        n_images=target.n_images,
        splits={s: int(np.sum(target.split == s)) for s in ("train", "val", "test") if np.any(target.split == s)},
        class_names=tuple(target.class_names),
        multi_label=target.multi_label,
        patients=target.patient is not None,
        notes=tuple(without_paths(note, names) for note in target.notes),
    )


def versions() -> dict[str, str]:
    """Versions of what made this report; torch is asked for its metadata only, never imported."""
    found = {"fastxfer": fastxfer.__version__, "commit": git_commit(), "Python": platform.python_version()}
    for package in ("numpy", "pandas", "scipy", "torch", "timm", "zarr", "plotly"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of fastxfer's own folder, "+ changes" where files differ from it; why not, where there is none."""
    folder = Path(fastxfer.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository: only a checkout that tracks it counts.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + (" + changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown (not a git checkout)"
