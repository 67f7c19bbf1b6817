"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

PARTIAL = ".partial"
# What files of weights are called.
WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".npz", ".bin", ".ckpt")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, so that under `path` there is either the old content or the whole new one, whatever happens.

    Any exception (a full disk, a vanished mount, Ctrl-C) leaves the old content and no temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file by `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to one .npz file, whole or not at all; never pickles."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getbuffer())


def parsed(parse: Callable[[Any], Any], content: str | bytes) -> Any:
    """`parse(content)`, of JSON or TOML. ValueError for what is neither; also where brackets lie deeper in brackets than
    Python can count, of which the standard library makes a RecursionError that nobody expects."""
    try:
        return parse(content)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def available_memory() -> int:
    """Bytes of memory that a process could take now; where the system doesn't say, half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
