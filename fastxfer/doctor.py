"""What this machine and installation can do, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from fastxfer import backend
from fastxfer.errors import FastxferError
from fastxfer.files import available_memory
from fastxfer.metrics import METRICS
from fastxfer.plugins import KINDS, installed
from fastxfer.probes import PROBES
from fastxfer.selection import POLICIES
from fastxfer.targets.families import FAMILIES

OK, MISSING, BROKEN = "ok", "missing", "broken"

# What an extra is for, in the words of the commands that need it.
PURPOSES = {
    "gpu": "neighbours on a GPU by FAISS (else a kernel of our own)",
    "xray": "DICOM files, label tables of chest X-ray data sets, torchxrayvision's models",
    "cluster": "--slurm",
    "s3": "stores on s3:// and other object storage",
    "xarray": "store export and results export as xarray",
    "umap": "plot embeddings --method umap",
    "images": "plot and report figures as .svg, .png, .pdf",
    "logs": "TensorBoard and Weights & Biases",
    "energy": "energy of a GPU as a column of the results",
    "demo": "fastxfer demo",
}
NOT_FOR_USERS = {"dev", "docs"}


@dataclass(frozen=True)
class Finding:
    """what: part of the machine or installation; state: OK, MISSING (an option less) or BROKEN (needed); found: what is
    there, or what would be possible; how: to get it, "" where nothing is to be done."""

    what: str
    state: str
    found: str
    how: str = ""


def examine(store: str | Path) -> list[Finding]:
    """All findings, in the order in which a person would ask. store: where embeddings would be written."""
    return [*_machine(str(store)), *_compiled(), *_packages(), *_plugins(), *_programs()]


def _machine(store: str) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", OK, f"{platform.machine()}, {cores} cores, {available_memory() / 2**30:.1f} GiB free")
    yield Finding("python", OK, platform.python_version())
    if "://" in store:
        yield Finding("store", OK, f"{store} (not looked at)")
        return
    place = Path(store).absolute()
    while not place.exists():
        place = place.parent
    free = f"{store}: {shutil.disk_usage(place).free / 2**30:.1f} GiB free"
    if os.access(place, os.W_OK):
        yield Finding("store", OK, free)
    else:
        yield Finding("store", BROKEN, f"{free}, not writable by you", "--store or FASTXFER_STORE names another folder")


def _compiled() -> Iterator[Finding]:
    try:
        yield Finding("episodes on the CPU", OK, f"compiled, {backend.instruction_set()}")
    except FastxferError as error:
        yield Finding("episodes on the CPU", BROKEN, "no compiled module", str(error))
        return
    try:
        backend.resolve_backend("cuda")
        yield Finding("episodes on a GPU", OK, f"compiled, {backend.compiled.cuda_devices()} device(s)")
    except FastxferError as error:
        yield Finding("episodes on a GPU", MISSING, "no cuda backend", str(error))
    yield _torch()


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("embed and finetune", OK, f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
    if torch.version.cuda:
        return Finding(
            "embed and finetune", OK, f"torch {torch.__version__} on the CPU", "no CUDA device: see nvidia-smi"
        )
    return Finding("embed and finetune", OK, f"torch {torch.__version__} on the CPU")


def _packages() -> Iterator[Finding]:
    """By what the installed package says that it requires, so that there is no second list."""
    asked = [Requirement(text) for text in metadata.requires("fastxfer") or []]
    bad = [problem for r in asked if _applies(r, "") and (problem := _problem(r))]
    how = "pip install --upgrade fastxfer"
    yield Finding("packages", BROKEN, "; ".join(bad), how) if bad else Finding("packages", OK, "all there")
    extras = metadata.metadata("fastxfer").get_all("Provides-Extra") or []
    for extra in (e for e in extras if e not in NOT_FOR_USERS):
        own = [r for r in asked if _applies(r, extra) and not _applies(r, "")]
        lacking = [problem for r in own if (problem := _problem(r))]
        purpose = PURPOSES.get(extra, "")
        if lacking:
            yield Finding(
                f"extra {extra}", MISSING, f"{purpose}: {'; '.join(lacking)}", f"pip install 'fastxfer[{extra}]'"
            )
        elif own:
            yield Finding(f"extra {extra}", OK, purpose)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _problem(requirement: Requirement) -> str:
    """Why a requirement is not met; "" where it is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, wanted {requirement.specifier}"
    return ""


def _plugins() -> Iterator[Finding]:
    """What other packages bring, each loaded, so that one that fails is found here and not in the middle of a study."""
    from fastxfer.backbones.architecture import ARCHITECTURES

    for catalogue in (PROBES, FAMILIES, ARCHITECTURES, METRICS, POLICIES):
        for plugin, _, problem in catalogue.tried():
            yield Finding(
                f"{KINDS[plugin.group]} {plugin.name}", MISSING if problem else OK, problem or f"from {plugin}"
            )
    for plugin in installed():
        if plugin.group not in KINDS:
            groups = ", ".join(f"fastxfer.{group}" for group in KINDS)
            found = f"{plugin} brings it as 'fastxfer.{plugin.group}', which is none of {groups}"
            yield Finding(f"plug-in {plugin.name}", MISSING, found)


def _programs() -> Iterator[Finding]:
    """Programs that some options call."""
    for names, purpose, how in (
        (("g++", "clang++"), "embed --compile, building from source", "apt-get install g++"),
        (("chromium", "google-chrome", "chrome"), "pictures of figures (extra images)", "apt-get install chromium"),
        (("sbatch",), "--slurm", "a machine of the cluster that submits jobs"),
    ):
        there = next((name for name in names if shutil.which(name)), None)
        if there:
            yield Finding(there, OK, purpose)
        else:
            yield Finding(names[0], MISSING, purpose, how)
