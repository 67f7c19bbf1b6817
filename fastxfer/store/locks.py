"""One writer at a time: a lock file that names its holder and cannot outlive it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError

# A holder on another machine touches its lock at every block it writes; one silent for longer is taken for dead.
SILENT_SECONDS = 6 * 3600.0


@contextmanager
def hold(path: Path, what: str, *, wait: float = 0.0) -> Iterator[Path]:
    """Hold the lock file `path` while the block runs; `what` is said to whoever comes second.

    The kernel's flock decides, so a killed holder's lock is free at once. Where flock doesn't reach across machines,
    a lock last touched by another host less than SILENT_SECONDS ago counts as held.

    Raises DataError naming the holder (host, process, since when) if it isn't free within `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _take(descriptor, path)
            if holder is None:
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if holder.get("retry"):
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        if time.monotonic() >= deadline:
            raise DataError(
                f"{what} is being written by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                f"since {holder.get('since', '?')}; wait for it, or stop it (if that machine is gone: delete {path})"
            )
        time.sleep(0.05)
    try:
        mine = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        yield path
    finally:
        path.unlink(
            missing_ok=True
        )  # before the lock is let go: whoever waits on this file finds it unlinked and retries
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> dict[str, Any] | None:
    """None if the lock is ours, else what its holder wrote; ``{"retry": True}`` if the file was replaced meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise DataError(
                f"cannot lock {path} ({error.strerror}): this file system has no flock; keep the store on another"
            ) from None
        return _holder(descriptor) or {"pid": "?"}
    try:
        if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            return {"retry": True}
    except FileNotFoundError:
        return {"retry": True}
    holder = _holder(descriptor)
    silent = time.time() - os.fstat(descriptor).st_mtime
    if holder and holder.get("host") != socket.gethostname() and silent < SILENT_SECONDS:
        return holder
    return None


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock file, as far as can be seen from here."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return _take(descriptor, path) is not None
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Say that the holder still lives."""
    os.utime(path)
