"""Which backends this installation has, and memory as the compiled one likes it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError

CACHE_LINE = 64
BACKENDS = ("cuda", "cpu", "reference")

compiled: Any = None
_why_not = ""
try:
    compiled = importlib.import_module("fastxfer._C")
except ImportError as error:  # said when the backend is asked for
    _why_not = str(error)


def resolve_backend(backend: str) -> str:
    """The backend that will run: "auto" is cuda if it is built and a device is there, else cpu.

    `UsageError` for an unknown name, and for one that is not to be had here, with how to get it: nothing falls back in
    silence.
    """
    if backend not in ("auto", *BACKENDS):
        raise UsageError(f"unknown backend '{backend}': choose among auto, {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    if compiled is None:
        raise UsageError(
            f"the compiled module fastxfer._C can't be imported ({_why_not}): install fastxfer again with a C++20 "
            "compiler at hand (`pip install -e .` in a checkout), or use --backend reference"
        )
    if backend == "auto":
        return "cuda" if compiled.has_cuda and compiled.cuda_devices() > 0 else "cpu"
    if backend == "cuda" and not compiled.has_cuda:
        raise UsageError(
            "backend 'cuda' is not in this build: install fastxfer again with nvcc on PATH (or CUDA_HOME set) and "
            "FASTXFER_CUDA=1, or use --backend cpu"
        )
    if backend == "cuda" and compiled.cuda_devices() == 0:
        raise UsageError("backend 'cuda' finds no CUDA device: check nvidia-smi and the driver, or use --backend cpu")
    return backend


def instruction_set() -> str:
    """Which of the processor's vector instructions the cpu backend uses: baseline, avx2 or avx512."""
    resolve_backend("cpu")
    return str(compiled.instruction_set())


def spread_rows(n: int, dim: int, dtype: Any) -> NDArray[Any]:
    """An empty (n, dim) whose rows begin at a cache line each, an odd number of lines apart.

    Were they a power of two apart, as embeddings often are, the same numbers of all rows would share one set of the cache.
    """
    made = np.dtype(dtype)
    row = (-(-dim * made.itemsize // CACHE_LINE) | 1) * CACHE_LINE
    memory = np.empty(n * row + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + n * row].view(made).reshape(n, -1)[:, :dim]
