"""An object store that is slow and fails: a proxy before a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from random import Random

from benchmarks.breaking import line
from benchmarks.breaking.disk import Roads, Row, row
from benchmarks.machine import ROOT
from tests.s3 import BUCKET, CREDENTIALS, FAULTS, Fault, Proxy, weed


def objects(roads: Roads, tiny: bool) -> Iterator[Row]:
    """`embed` into a bucket where a fifth of the requests fail and a fifth are late: the same digest as on a disk."""
    if weed() is None or find_spec("obstore") is None:
        yield row("object store", "not run: no S3 server or client is installed", 0, [])
        return
    found, faults, requests = [], 0, 0
    roads.before("embed")
    trials = 1 if tiny else 10
    with _server(roads.work / "s3") as server:
        for trial in range(trials):
            rng = Random(trial)

            def fault(_: int, rng: Random = rng) -> Fault | None:
                if rng.random() < 0.2:
                    time.sleep(rng.random() * 0.3)
                return rng.choice(FAULTS) if rng.random() < 0.2 else None

            with Proxy(server, fault) as proxy:
                os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}
                url = f"s3://{BUCKET}/{trial}"
                words = [url if word == roads.road.store else word for word in roads.road.lines()["embed"]]
                ended = line.run(words, roads.log, seconds=600)
                state = line.in_a_fork(lambda url=url: _state(url)) if ended.code == 0 else {}  # type: ignore[misc]
                wrong = ended.fault or ("" if ended.code == 0 else ended.words[-300:])
                if not wrong and state != {"digest": roads.states["embed"]["store"], "problems": []}:
                    wrong = f"{state}"
                if wrong:
                    found.append(f"trial {trial}: {wrong}")
                faults += proxy.faults.total()
                requests += proxy.methods.total()
    yield row("object store", "`embed` into a bucket that is slow and fails", trials, found,
              f"{faults:,} of {requests:,} requests failed; valid, and the digest of a store on a disk")  # fmt: skip


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Its URL. Its client's threads, with which it waits for the server, are another process's: a fork would lose them."""
    command = [sys.executable, "-m", "tests.s3", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def _state(url: str) -> dict[str, object]:
    from fastxfer.store import EmbeddingStore, verify

    return {"digest": EmbeddingStore.open(url).digest(), "problems": [str(p) for p in verify(url).problems]}
