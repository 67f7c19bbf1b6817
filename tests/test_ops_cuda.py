"""The CUDA backend: its path through torch on this machine's own memory, and, where a device is, on the device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastxfer import backend, ops
from fastxfer.errors import UsageError
from fastxfer.ops import cpu, cuda

WAYS, SHOTS, QUERIES, EPISODES = 4, 3, 9, 7


def world(dtype: str, gram: bool, shared: bool, dim: int = 12):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, dim)).astype(np.float32) + 0.5
    support = np.stack([rng.permutation(30)[: WAYS * SHOTS] for _ in range(EPISODES)])
    query = 30 + np.stack([rng.permutation(30)[:QUERIES] for _ in range(1 if shared else EPISODES)])
    labels = (
        rng.permutation(np.repeat(np.arange(WAYS), SHOTS))[None]
        if shared
        else rng.integers(0, WAYS, size=support.shape)
    )
    pool = ops.Pool(x, dtype=dtype, gram=gram, threads=1, backend="cpu")
    return pool, support, labels.astype(np.int32), query, WAYS


OPS = {
    "logistic": lambda engine, call, *place: engine.logistic(call, np.array([0.01, 1.0, 0.1]), 1e-6, 500, *place),
    "ridge": lambda engine, call, *place: engine.ridge(call, np.array([0.5, 0.02]), *place),
    "prototype": lambda engine, call, *place: [engine.prototype(call, False, *place)],
    "cosine": lambda engine, call, *place: [engine.prototype(call, True, *place)],
    "knn": lambda engine, call, *place: [engine.knn(call, np.array([1, 3, 5], np.int32), 0.1, *place)],
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_addresses_of_torch_reach_the_same_op(op, dtype, gram, shared):
    """Pointers, strides, settings and windows are handed over right: the CPU's ops run on what torch holds."""
    call = world(dtype, gram, shared)
    for ours, theirs in zip(OPS[op](cuda, call, "cpu"), OPS[op](cpu, call), strict=True):
        assert ours.dtype == theirs.dtype
        # Inner products come from another BLAS; their last bits may decide whether one more iteration is needed.
        close = {"atol": 3} if ours.dtype == np.int32 else {"atol": 2e-3 if op == "logistic" else 1e-5}
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, **close)


def test_windows_of_episodes_are_joined(monkeypatch):
    call = world("float32", False, False)
    whole = OPS["ridge"](cuda, call, "cpu")[0]
    monkeypatch.setattr("fastxfer.ops.pool.BLOCK_BYTES", 2500)
    np.testing.assert_allclose(OPS["ridge"](cuda, call, "cpu")[0], whole, atol=1e-5)


def test_episodes_that_float_could_not_finish_are_solved_in_double(monkeypatch):
    """The second pass takes the right episodes and puts them back where they belong."""
    call = world("float32", True, False)
    whole = OPS["logistic"](cuda, call, "cpu")
    launch, seen = cuda.launch, []

    def clumsy(params, count, place, wide=False, threads=1):
        seen.append((count, wide))
        launch(params, count, place, wide=wide, threads=threads)

    run = cuda._run

    def forgetful(call, settings, place, solve):
        got = run(call, settings, place, solve)
        if len(seen) == 1:  # the first pass: episodes 2 and 5 did not converge, and what they say is worthless
            got[0][[2, 5]], got[3][[2, 5], 1] = np.nan, False
        return got

    monkeypatch.setattr(cuda, "launch", clumsy)
    monkeypatch.setattr(cuda, "_run", forgetful)
    again = OPS["logistic"](cuda, call, "cpu")
    assert seen == [(EPISODES, False), (2, True)]
    for ours, theirs in zip(again, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_cuda_by_name_says_how_to_get_it(monkeypatch):
    class Build:
        has_cuda = False

        @staticmethod
        def cuda_devices() -> int:
            return 0

    monkeypatch.setattr(backend, "compiled", Build)
    with pytest.raises(UsageError, match="'cuda' is not in this build: install fastxfer again with nvcc on PATH"):
        ops.resolve_backend("cuda")
    assert ops.resolve_backend("auto") == "cpu"
    Build.has_cuda = True
    with pytest.raises(UsageError, match="finds no CUDA device: check nvidia-smi"):
        ops.resolve_backend("cuda")
    assert ops.resolve_backend("auto") == "cpu"
    Build.cuda_devices = staticmethod(lambda: 1)
    assert ops.resolve_backend("auto") == ops.resolve_backend("cuda") == "cuda"


def test_without_the_compiled_module_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(backend, "compiled", None)
    monkeypatch.setattr(backend, "_why_not", "No module named 'fastxfer._C'")
    with pytest.raises(UsageError, match=r"_C can't be imported \(No module named .* C\+\+20 compiler"):
        ops.resolve_backend("auto")
    assert ops.resolve_backend("reference") == "reference"


def test_cpu_needs_no_torch():
    code = (
        "import sys, numpy as np; from fastxfer import ops;"
        "p = ops.Pool(np.eye(6, dtype=np.float32), backend='cpu');"
        "ops.logistic(p, np.array([[0, 1, 2]]), np.arange(3), np.array([[3, 4]]), 3, [0.1]);"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_device_agrees_with_cpu(op, dtype, gram):
    call = world(dtype, gram, False)
    on_cpu = OPS[op](cpu, call)
    pool = ops.Pool(call[0].x, dtype=dtype, gram=gram, backend="cuda")
    once, twice = (OPS[op](cuda, (pool, *call[1:])) for _ in range(2))
    for ours, again, theirs in zip(once, twice, on_cpu, strict=True):
        np.testing.assert_array_equal(ours, again)
        if ours.dtype.kind == "f":  # how many iterations it took may differ
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3 if op == "logistic" else 1e-5)
