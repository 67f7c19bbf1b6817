"""`--slurm`: the sbatch file, wrong words, and a job of two tasks, run on this machine by submitit's local executor."""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

import pytest

from fastxfer.cli.cluster import CommandLine, without_slurm
from fastxfer.store import EmbeddingStore
from tests.test_cli_embed import OWN, run, run_json, world

__all__ = ["world"]

EMBED = ("embed", *OWN, "--target", "big", "--dtype", "float32", "--batch-size", "2")


def wait_for(job: dict[str, object], what: str = "_result.pkl") -> list[Path]:
    folder, deadline = Path(str(job["folder"])), time.monotonic() + 120
    while True:
        there = sorted(folder.glob(f"{job['job_id']}_*{what}"))
        if len(there) == job["tasks"]:
            return there
        assert time.monotonic() < deadline, [log.read_text() for log in folder.glob("*.err")]
        time.sleep(0.05)


def test_the_sbatch_file_can_be_read_anywhere(world: Path) -> None:
    shown = run(*EMBED, "--slurm", "nodes=16", "tasks_per_node=4", "gpus_per_node=4", "account=0012", "--slurm-show")
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in ("nodes=16", "ntasks-per-node=4", "gpus-per-node=4", "account=0012", "time=1440", "signal=USR2@90"):
        assert f"#SBATCH --{line}" in lines
    assert "wckey" not in shown.stdout
    assert any(line.startswith("srun ") and "submitit" in line for line in lines)
    assert not Path("fastxfer-jobs").exists() or not list(Path("fastxfer-jobs").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slurm", "nods=4"), "no such parameter. Did you mean: nodes"),
        (("--slurm", "nodes"), "expected key=value, such as nodes=4"),
        (("--slurm", "nodes=many"), "--slurm nodes=many: expected a number"),
        (("--slurm", "cluster=locl"), "cluster=locl is not one of slurm, local. Did you mean: local"),
        (("--slurm", "cluster=local", "nodes=2"), "LocalExecutor can use only one node"),
        (("--slurm", "nodes=2"), "there is no `srun` on this machine"),
        (("--slurm-show",), "give --slurm nodes=1"),
        (("--slurm", "cluster=local", "--slurm-show"), "cluster=local has none"),
    ],
)
def test_wrong_words(world: Path, words: tuple[str, ...], message: str) -> None:
    result = run(*EMBED, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_submitit(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    result = run(*EMBED, "--slurm", "nodes=2")
    assert result.exit_code == 2
    assert "pip install 'fastxfer[cluster]'" in result.stderr


def test_two_tasks_share_a_target_and_fill_the_store_as_one_does(world: Path) -> None:
    assert run(*EMBED, "--store", "alone").exit_code == 0
    job = run_json(*EMBED, "--store", "together", "--slurm", "cluster=local", "tasks_per_node=2", "folder=logs")
    assert job["tasks"] == 2
    assert job["command"].endswith("--store together --json")
    for result in wait_for(job):
        assert pickle.loads(result.read_bytes())[0] == "success"  # noqa: S301
    together = EmbeddingStore.open("together")
    assert together.digest() == EmbeddingStore.open("alone").digest()
    assert not list(Path("together/.locks").iterdir())
    assert Path(job["log"]).exists()


def test_a_failure_in_a_task_is_in_its_log(world: Path) -> None:
    job = run_json("embed", "--ckpt", "no.pt", "--target", "big", "--slurm", "cluster=local", "folder=logs")
    (result,) = wait_for(job)
    assert pickle.loads(result.read_bytes())[0] == "error"  # noqa: S301
    assert "no.pt" in Path(job["log"]).read_text()


def test_a_job_put_back_into_the_queue_goes_on() -> None:
    first = CommandLine(("pretrain", "--out", "net.pt"), ("--resume",))
    second = first.checkpoint().function
    assert second.words == ("pretrain", "--out", "net.pt", "--resume")
    assert second.checkpoint().function == second


def test_the_jobs_own_words_are_left_out() -> None:
    words = ["embed", "--slurm", "nodes=2", "time=3", "--target", "a", "b", "--slurm=qos=x", "--slurm-show", "--json"]
    assert without_slurm(words) == ["embed", "--target", "a", "b", "--json"]
