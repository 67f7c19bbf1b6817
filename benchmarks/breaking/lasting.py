"""What shows only after a long time, or from outside: memory that grows, dependencies with known holes."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breaking.disk import Roads, Row, row
from benchmarks.machine import ROOT

SOLVES, MOST_GROWTH = 10_000, 1 << 20
# What extras bring under another name, for machines without them.
BRING = {"nvidia-ml-py": "pynvml", "umap-learn": "umap"}


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def soak(roads: Roads, tiny: bool) -> Iterator[Row]:
    """Ten thousand calls of each op: the slope of resident memory over them."""
    from fastxfer import ops

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 64)).astype(np.float32)
    label = np.arange(400) % 5
    support = np.concatenate([np.flatnonzero(label == c)[:5] for c in range(5)])[None]
    y, query = np.repeat(np.arange(5), 5), np.arange(200, 275)[None]
    pool = ops.Pool(x, backend="cpu")
    solves = {
        "logistic": lambda: ops.logistic(pool, support, y, query, 5, [0.04]),
        "logistic, own pool": lambda: ops.logistic(ops.Pool(x, backend="cpu"), support, y, query, 5, [0.04]),
        "ridge": lambda: ops.ridge(pool, support, y, query, 5, [0.04]),
        "prototype": lambda: ops.prototype(pool, support, y, query, 5),
        "full logistic": lambda: ops.logistic_full(x[:50], label[:50], x[:5], 5, [0.04]),
    }
    n = 100 if tiny else SOLVES
    for name, solve in solves.items():
        for _ in range(max(5, n // 10)):
            solve()
        seen = []
        for i in range(n):
            solve()
            if i % (n // 10) == 0:
                seen.append(resident())
        slope = float(np.polyfit(np.arange(10), seen, 1)[0]) * 10
        growth = [] if slope <= MOST_GROWTH else [f"{slope / 1024:,.0f} KiB more after {n:,} solves"]
        yield row(
            f"soak/{name}", f"memory over {n:,} solves ({name})", 1, growth, f"{slope / 1024:+,.0f} KiB by its slope"
        )


def dependencies(roads: Roads, tiny: bool) -> Iterator[Row]:
    """Known holes by pip-audit where it is installed and reaches its list; and what can be said without a network."""
    program = None if tiny else shutil.which("pip-audit")
    told = None
    if program:
        paths = [p for p in sys.path if p.endswith("site-packages")]
        command = [program, "--format", "json", "--progress-spinner", "off", *(w for p in paths for w in ("--path", p))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        told = json.loads(done.stdout) if done.stdout.startswith("{") else None
    if told:
        packages = told["dependencies"]
        holes = [f"{p['name']} {p['version']}: {v['id']}" for p in packages for v in p.get("vulns", [])]
        yield row(
            "dependencies/holes", "installed packages, by pip-audit", len(packages), holes, "none has a known hole"
        )
    else:
        why = "pip-audit reached no list of holes" if program else "pip-audit is not installed"
        yield row("dependencies/holes", f"installed packages: not looked at, {why}", 0, [])
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    unmet = [line for line in done.stdout.splitlines() if done.returncode and line]
    yield row(
        "dependencies/versions", "declared versions of what is installed (`pip check`)", 1, unmet[:1], "all are met"
    )
    names = imported()
    strange = sorted(names - declared())
    yield row("dependencies/declared", "libraries that fastxfer and pretrain import are in pyproject.toml", len(names), strange,
              "all are")  # fmt: skip


def imported() -> set[str]:
    """Top-level names of libraries that the code imports."""
    found = set()
    for file in [*ROOT.glob("fastxfer/**/*.py"), *ROOT.glob("pretrain/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[Any] = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {str(name).split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"fastxfer", "pretrain"}


def declared() -> set[str]:
    """Names that the distributions of pyproject.toml bring, extras too."""
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
    brought = packages_distributions()
    wanted |= {BRING[name] for name in wanted & set(BRING)}
    return {name for name, of in brought.items() if wanted & {d.lower().replace("_", "-") for d in of}} | wanted
