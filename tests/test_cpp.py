"""The C++ core under sanitizers: a team of threads solves what a lone thread does, without a race, and rightly.

Compiled here from `tests/cpp/`, without the extension module: ThreadSanitizer, AddressSanitizer and
UndefinedBehaviorSanitizer want a program of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "cpp" / "core_test.cpp"
RACE = 66  # what ThreadSanitizer is told to exit with


def fixed_addresses() -> list[str]:
    """ThreadSanitizer of older compilers can't place its shadow where the kernel scatters addresses widely; not every
    container lets a program ask for fixed ones."""
    prefix = ["setarch", "--addr-no-randomize"]
    if shutil.which("setarch") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    return []


Program = Callable[..., subprocess.CompletedProcess[str]]


def build(folder: Path, *flags: str) -> Program:
    """Compile the test program; returns a function that runs it with arguments."""
    compiler = os.environ.get("CXX", "g++")
    program = folder / "core_test"
    command = [compiler, "-std=c++20", "-O0", "-g1", "-pthread", *flags, str(SOURCE), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = {"TSAN_OPTIONS": f"halt_on_error=1 exitcode={RACE}", "UBSAN_OPTIONS": "print_stacktrace=1"}
        return subprocess.run(
            [*fixed_addresses(), str(program), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **options},
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return build(tmp_path_factory.mktemp("tsan"), "-fsanitize=thread")


@pytest.mark.slow
def test_addresses_and_undefined_behaviour(tmp_path: Path):
    run = build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    done = run()
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr[-4000:]


@pytest.mark.slow
def test_a_team_of_threads_has_no_race(threads: Program):
    done = threads()
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr[-4000:]


@pytest.mark.parametrize("op", ["logistic", "ridge", "prototype", "knn", "neighbours"])
def test_a_missing_barrier_is_noticed(threads: Program, op: str):
    whole = threads("count", op)
    assert whole.returncode == 0, whole.stderr[-4000:]
    # Not every barrier is needed alone (another may follow at once), but the first few of every op hold one that is.
    noticed = []
    for number in range(min(int(whole.stdout), 12)):
        done = threads("drop", op, str(number))
        assert done.returncode in (0, RACE), done.stderr[-4000:]
        if done.returncode == RACE:
            assert "data race" in done.stderr
            noticed.append(number)
            break
    assert noticed, f"{op}: none of the first barriers was missed"
