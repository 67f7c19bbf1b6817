"""Claims: short locks in an object store, by writes that succeed only if nobody was faster.

A claim is an object that its holder writes anew every few seconds; whoever waits takes it over when it has stopped
changing. Nothing depends on clocks that agree.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastxfer.store import files, locks

BEAT_SECONDS, SILENT_SECONDS, PAUSE_SECONDS = 2.0, 12.0, 0.05


@contextmanager
def claim(backing: Any, key: str, what: str, wait: float) -> Iterator[None]:
    """Hold the object `key` while the block runs; DataError naming the holder if it isn't free within `wait` seconds."""
    mine = {**locks.mine(), "claim": uuid.uuid4().hex, "beat": 0}
    _take(backing, key, mine, what, time.monotonic() + wait)
    try:
        with locks.beating(lambda: _beat(backing, key, mine), BEAT_SECONDS):
            yield
    finally:
        if _holder(backing, key)[0].get("claim") == mine["claim"]:
            files.run(backing.delete(key))


def _take(backing: Any, key: str, mine: dict[str, Any], what: str, deadline: float) -> None:
    seen, since = "", time.monotonic()
    while not files.run(backing.create(key, json.dumps(mine).encode())):
        holder, version = _holder(backing, key)
        if version is None:
            continue  # it has just been let go
        now = time.monotonic()
        if (state := json.dumps(holder)) != seen:
            seen, since = state, now
        gone = holder.get("host") == mine["host"] and not _lives(holder.get("pid"))
        if (gone or now - since > SILENT_SECONDS) and files.run(backing.swap(key, json.dumps(mine).encode(), version)):
            return
        if now >= deadline:
            raise locks.held(what, holder, "stop it")
        time.sleep(PAUSE_SECONDS)


def _beat(backing: Any, key: str, mine: dict[str, Any]) -> bool:
    holder, version = _holder(backing, key)
    if holder.get("claim") != mine["claim"]:
        return False  # it was taken over: this process was silent for too long
    mine["beat"] += 1
    files.run(backing.swap(key, json.dumps(mine).encode(), version))
    return True


def _holder(backing: Any, key: str) -> tuple[dict[str, Any], Any]:
    """What the holder wrote, {} if that is unreadable; and the version, None if nobody holds it."""
    content, version = files.run(backing.get_version(key))
    try:
        holder = json.loads(content or b"{}")
    except ValueError:
        holder = {}
    return holder if isinstance(holder, dict) else {}, version


def _lives(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True
