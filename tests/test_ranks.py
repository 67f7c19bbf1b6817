"""Several processes embed one target together: each its share, none in another's way, a dead one's rows by a rerun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastxfer.backbones import load_backbone
from fastxfer.embed import Embedded, embed, team_of_environment
from fastxfer.errors import DataError, UsageError
from fastxfer.store import EmbeddingStore, Team, verify
from tests.forks import server
from tests.test_embed import make_backbone, make_images, open_store

OPTIONS: Any = {"dtype": "float32", "batch_size": 2, "block_rows": 4, "workers": 1}

PAUSE = 0.03  # seconds a forward pass: long enough to come in between


def run(root: Path, place: str, team: Team | None = None, environment: dict[str, str] | None = None) -> Embedded:
    """Embed the 50 images that the store `alone` was made of, by the same network, into a folder of `root` or a bucket."""
    os.environ.update(environment or {})  # the server of children has that of its own beginning
    target = replace(open_store(root / "alone").target("photos"), root=root / "images")
    backbone = load_backbone(root / "net.pt", arch=f"{root / 'net.py'}:build")
    store = EmbeddingStore.open(place, mode="a") if "://" in place else open_store(root / place)
    return embed(backbone, [target], store, team=team, **OPTIONS)[0]


def start(root: Path, place: str, count: int, environment: dict[str, str] | None = None) -> list[Any]:
    team = [server.Process(target=run, args=(root, place, Team("job", r, count), environment)) for r in range(count)]
    for process in team:
        process.start()
    return team


def join(team: list[Any]) -> list[int]:
    for process in team:
        process.join(120)
    return [process.exitcode for process in team]


@pytest.fixture
def alone(tmp_path: Path) -> EmbeddingStore:
    """The store of an undisturbed run by one process: 50 images, 13 blocks."""
    (tmp_path / "images").mkdir()
    store = open_store(tmp_path / "alone")
    embed(make_backbone(tmp_path, PAUSE), [make_images(tmp_path / "images", 50)], store, **OPTIONS)
    return store


@pytest.mark.parametrize("count", [2, 4])
def test_a_team_fills_the_store_as_one_process_does(tmp_path: Path, alone: EmbeddingStore, count: int) -> None:
    assert join(start(tmp_path, "together", count)) == [0] * count
    together = open_store(tmp_path / "together")
    (entry,) = together.entries()
    assert entry.complete
    assert entry.attrs["complete"]
    assert entry.attrs["n_timed"] == 50  # no member's record overwrote another's
    assert together.digest() == alone.digest()
    assert not verify(tmp_path / "together").problems
    assert not list((tmp_path / "together/.locks").iterdir())


def test_a_dead_members_rows_are_done_by_a_rerun(tmp_path: Path, alone: EmbeddingStore) -> None:
    team = start(tmp_path, "together", 2)
    folder = tmp_path / "together/targets/photos/embeddings/net"
    deadline = time.monotonic() + 180
    while not [f for f in folder.glob("c.*.0") if int(f.name.split(".")[1]) % 2]:  # one of its own is there
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(team[1].pid, signal.SIGKILL)
    assert join(team) == [0, -signal.SIGKILL]
    store = open_store(tmp_path / "together")
    (entry,) = store.entries()
    there = {int(f.name.split(".")[1]) for f in folder.glob("c.*.0")}
    assert {0, 2, 4, 6, 8, 10, 12} < there  # all of the living one's, some of the dead one's
    assert not entry.complete
    assert not verify(tmp_path / "together").problems
    done = run(tmp_path, "together").embedded
    assert done == 50 - entry.n_present
    assert store.digest() == alone.digest()


@pytest.mark.s3
def test_a_dead_members_rows_are_done_by_a_rerun_in_a_bucket(
    tmp_path: Path, alone: EmbeddingStore, bucket: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    team = start(tmp_path, bucket, 2, environment)
    deadline, there = time.monotonic() + 180, 0
    while not there:  # rows of the second one
        assert time.monotonic() < deadline
        time.sleep(0.02)
        with suppress(DataError, UsageError):
            missing = EmbeddingStore.open(bucket).stored("net", "photos").missing()
            there = len(range(4, 8)) - sum(row in block for block in missing for row in range(4, 8))
    os.kill(team[1].pid, signal.SIGKILL)
    assert join(team) == [0, -signal.SIGKILL]
    (entry,) = EmbeddingStore.open(bucket).entries()
    assert not entry.complete
    assert not verify(bucket).problems
    assert run(tmp_path, bucket).embedded == 50 - entry.n_present
    assert EmbeddingStore.open(bucket).digest() == alone.digest()


def test_neither_a_single_process_nor_another_team_comes_in_between(tmp_path: Path, alone: EmbeddingStore) -> None:
    run(tmp_path, "elsewhere")  # what this process has to import would take longer than the team
    team = start(tmp_path, "together", 2)
    locks = tmp_path / "together/.locks"
    deadline = time.monotonic() + 180
    while len(list(locks.glob("photos@net.*-of-2"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    store = open_store(tmp_path / "together")
    with pytest.raises(DataError, match=r"'net' on 'photos' is being written by process \d+ on"):
        run(tmp_path, "together")
    with pytest.raises(DataError, match=r"is being written by process \d+ on"):
        run(tmp_path, "together", Team("other", 0, 3))
    while not (tmp_path / "together/targets/photos/embeddings/net/zarr.json").exists():  # it comes after the locks
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(DataError, match=r"is being written by process \d+ on"):
        store.remove("net", "photos")
    assert join(team) == [0, 0]
    assert store.digest() == alone.digest()


def test_a_team_waits_outside_while_one_process_writes(tmp_path: Path, alone: EmbeddingStore) -> None:
    with (
        alone.writer("net", "photos", dim=6, dtype="float32", attributes=alone.attributes("net", "photos")),
        pytest.raises(DataError, match="is being written by process"),
    ):
        run(tmp_path, "alone", Team("job", 0, 2))


def test_who_is_in_a_team_is_known_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(word, raising=False)
    assert team_of_environment() is None
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert team_of_environment() == Team("77:0", 3, 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    team = team_of_environment()
    assert team is not None
    assert (team.rank, team.count) == (1, 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert team_of_environment() is None
    for wrong in ("x", "-1"):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(UsageError, match=f"RANK={wrong}"):
            team_of_environment()


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """The one line of the README, two processes: one table of the whole, one JSON document."""
    make_images(tmp_path / "photos", 20)
    for i, image in enumerate(sorted((tmp_path / "photos/images").iterdir())):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(exist_ok=True)
        image.rename(tmp_path / "photos" / "ab"[i % 2] / image.name)
    (tmp_path / "photos/images").rmdir()
    make_backbone(tmp_path)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastxfer", "embed"]
    words += ["--ckpt", "net.pt", "--arch", "net.py:build", "--target", "photos", "--block-rows", "4", "--json"]
    add = [sys.executable, "-m", "fastxfer", "targets", "add", "photos", "--name", "photos"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if k not in ("RANK", "WORLD_SIZE")}
    subprocess.run(add, cwd=tmp_path, env=environment, check=True, capture_output=True)
    done = subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["embedded"][0]["embedded"] in (8, 12)
    assert "rank 0 of 2" in done.stderr
    assert "rank 1 of 2" in done.stderr
    (entry,) = EmbeddingStore.open(tmp_path / "fastxfer-store").entries()
    assert entry.complete
