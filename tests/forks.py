"""Forks that find everything loaded: modules, and what numba has compiled, which each would take a second for otherwise.

`server` starts the processes of tests: a server of its own that has imported this and computed nothing by torch, since a fork
of busy threads would hang. There is one in a test process, whatever is preloaded, so all tests share it. A script that forks
itself imports this before.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fastxfer.embed
import fastxfer.finetune  # noqa: F401
import pretrain.loop  # noqa: F401
from fastxfer.cli import main
from fastxfer.metrics import measure
from fastxfer.store.blocks import crc
from fastxfer.store.words import Words

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.forks"])  # found from the root of the repository, where tests are run


def run_command(*words: str, out: Path, err: Path) -> int:
    """The exit code of `fastxfer WORDS` in such a fork; what it prints goes to two files."""
    process = server.Process(target=_command, args=(words, out, err))
    process.start()
    process.join()
    return process.exitcode


def _command(words: Sequence[str], *files: Path) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    main.main(list(words), "fastxfer")


measure("accuracy", np.eye(2, dtype=np.float32)[None], np.arange(2)[None])
one_cell = np.array([1, 0, 0, 0, 1, 0, 0, 0, ord("a")], np.uint8)
words = Words.of_chunks([one_cell.tobytes() + crc(one_cell)], 1)
assert words[np.arange(1)].array.tolist() == ["a"]

# What is imported stays, so that forks neither look through it for garbage nor copy it.
gc.freeze()
