"""One writer at a time: a lock file that names its holder and cannot outlive it."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError

# A holder on another machine touches its lock at every block it writes; one silent for longer is taken for dead.
SILENT_SECONDS = 6 * 3600.0
GATE_SECONDS = 60.0
_GATE = ".gate"


class HeldError(DataError):
    """Somebody else holds a lock."""


@dataclass(frozen=True)
class Team:
    """One of `count` processes of a job that write one array together; `rank` counts from 0."""

    job: str
    rank: int
    count: int


@contextmanager
def hold(
    path: Path, what: str, *, wait: float = 0.0, team: Team | None = None, silent: float = SILENT_SECONDS
) -> Iterator[Path]:
    """Hold the lock file `path` while the block runs, alone or with a team; `what` is said to whoever comes second.

    The kernel's flock decides, so a killed holder's lock is free at once. Where flock doesn't reach across machines,
    a lock last touched by another host less than `silent` seconds ago counts as held. Each of a team holds a file of its
    own beside `path`, so that nobody else may come, and a second team neither.

    Raises HeldError naming the holder (host, process, since when) if it isn't free within `wait` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path if team is None else path.with_name(f"{path.name}.{team.rank}-of-{team.count}")
    deadline = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            # Who looks whether others hold their locks, and then takes his, does both before the next one looks.
            gate = path.with_name(f"{path.name}{_GATE}")
            with _file(gate, mine(), time.monotonic() + GATE_SECONDS, silent) as holder:
                holder = holder or _others(path, own, team, silent)
                if holder is None:
                    holder = stack.enter_context(_file(own, mine(team) | {"what": what}, time.monotonic(), silent))
            if holder is None:
                break
            if time.monotonic() >= deadline:
                raise held(what, holder, f"stop it (if that machine is gone: delete {path}*)")
            time.sleep(0.05)
        yield own


def _others(path: Path, own: Path, team: Team | None, silent: float) -> dict[str, Any] | None:
    """Who holds a lock that excludes ours."""
    for other in [path, *path.parent.glob(f"{glob.escape(path.name)}.*-of-*")]:
        if other == own:
            continue
        holder = holder_of(other, silent)
        if holder and (team is None or holder.get("job") != team.job):
            return holder
    return None


def mine(team: Team | None = None) -> dict[str, Any]:
    """What a holder writes of itself."""
    told: dict[str, Any] = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return told if team is None else told | {"job": team.job}


def held(what: str, holder: dict[str, Any], otherwise: str) -> HeldError:
    """What is said to whoever comes second."""
    return HeldError(
        f"{what} is being written by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
        f"since {holder.get('since', '?')}; wait for it, or {otherwise}"
    )


@contextmanager
def _file(path: Path, told: dict[str, Any], deadline: float, silent: float) -> Iterator[dict[str, Any] | None]:
    """Hold one lock file and yield None, or what its holder wrote if it isn't free by the deadline."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _take(descriptor, path, silent)
        except BaseException:
            os.close(descriptor)
            raise
        if holder is None:
            break
        os.close(descriptor)
        if holder.get("retry"):
            path.parent.mkdir(parents=True, exist_ok=True)
        elif time.monotonic() >= deadline:
            yield holder
            return
        else:
            time.sleep(0.01)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)
        yield None
    finally:
        # before the lock is let go: whoever waits on this file finds it unlinked and retries
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(descriptor: int, path: Path, silent: float) -> dict[str, Any] | None:
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
    untouched = time.time() - os.fstat(descriptor).st_mtime
    if holder and holder.get("host") != socket.gethostname() and untouched < silent:
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
    return holder_of(path) is not None


def holder_of(path: Path, silent: float = SILENT_SECONDS) -> dict[str, Any] | None:
    """What the holder of a lock file wrote of itself; None if nobody holds it, as far as can be seen from here."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        holder = _take(descriptor, path, silent)
        return None if holder and holder.get("retry") else holder
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Say that the holder still lives."""
    os.utime(path)


@contextmanager
def beating(beat: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Call `beat` every so many seconds, in a thread, while the block runs or until it returns False: somebody took over."""
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(seconds) and beat():
            pass

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
