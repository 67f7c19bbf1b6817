"""`--slurm`: the same command line as a job of many tasks, submitted by submitit."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from fastxfer.cli import WORDS
from fastxfer.cli.common import F, emit_json
from fastxfer.errors import UsageError, nearest

# What `--slurm` understands besides the parameters of submitit's executor.
OURS = {"cluster": "slurm", "folder": "fastxfer-jobs"}
# Which values are numbers; all others are words, an account "0012" too.
NUMBERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("nodes", "tasks_per_node", "ntasks_per_node", "gpus_per_node", "gpus_per_task"), int),
    **dict.fromkeys(("cpus_per_task", "cpus_per_gpu", "time", "timeout_min", "signal_delay_s"), int),
    "mem_gb": float,
}
# submitit's own default are five minutes.
MINUTES = 24 * 60
# How often a job is put back into the queue at its time limit; pre-emption does not count.
REQUEUES = 100


@dataclass(frozen=True)
class CommandLine:
    """What a task of the job does: `fastxfer WORDS`, one of several processes whose ranks the environment says.

    again: further words for a job that is put back into the queue, after pre-emption or at its time limit.
    """

    words: tuple[str, ...]
    again: tuple[str, ...] = ()

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        from fastxfer.cli import main

        # As torchrun would have it. Which GPU is a task's own is for embed and pretrain to say, by LOCAL_RANK.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            main.main(list(self.words), "fastxfer")
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"fastxfer ended with exit status {ended.code}; its words are in the log") from None

    def checkpoint(self) -> Any:
        """What submitit queues again: the same, since finished work is kept."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, words=(*self.words, *(w for w in self.again if w not in self.words))))


def slurm_options(*again: str) -> Callable[[F], F]:
    """Give a command `--slurm` and `--slurm-show`; `again` as in `CommandLine`."""

    def decorate(command: F) -> F:
        @click.option(
            "--slurm",
            multiple=True,
            metavar="KEY=VALUE…",
            help="Submit this command to SLURM by submitit, as a job of nodes=N x tasks_per_node=T tasks that share the "
            "work: partition=, gpus_per_node=, cpus_per_task=, mem_gb=, timeout_min= [24 hours], account=, qos=, … as "
            "submitit calls them; folder= for its logs [fastxfer-jobs]. cluster=local runs the tasks on this machine.",
        )
        @click.option("--slurm-show", is_flag=True, help="Print the sbatch file of --slurm and submit nothing.")
        @functools.wraps(command)
        def or_submit(*args: Any, slurm: tuple[str, ...], slurm_show: bool, **options: Any) -> Any:
            if options.get("dry_run"):  # costs nothing here; the shape of the job is all it wants of SLURM
                return command(*args, **options, tasks=tasks_of(slurm))
            if slurm:
                words = tuple(without_slurm(click.get_current_context().meta[WORDS]))
                return submit(CommandLine(words, again), slurm, show=slurm_show, as_json=options.get("as_json", False))
            if slurm_show:
                raise UsageError("--slurm-show shows the job of --slurm: give --slurm nodes=1, say")
            return command(*args, **options)

        return or_submit  # type: ignore[return-value]

    return decorate


def without_slurm(words: Sequence[str]) -> list[str]:
    """The command line without `--slurm` and its values, and without `--slurm-show`."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("-"):
            skipping = word == "--slurm"
            if skipping or word == "--slurm-show" or word.startswith("--slurm="):
                continue
        elif skipping:
            continue
        kept.append(word)
    return kept


def submit(command: CommandLine, given: Sequence[str], *, show: bool, as_json: bool) -> None:
    """Submit the command, or show its sbatch file; say what became of it."""
    parameters = _parse(given)
    cluster, folder = (str(parameters.pop(key, OURS[key])) for key in OURS)
    executor = _executor(cluster, Path(folder), parameters, show)
    line = shlex.join(["fastxfer", *command.words])
    if show:
        click.echo(executor._make_submission_file_text(executor._submitit_command_str, "show"))
        return
    job = executor.submit(command)
    log = f"{Path(folder) / str(job.job_id)}_0_log.err"
    if as_json:
        emit_json({"job_id": job.job_id, "tasks": job.num_tasks, "command": line, "folder": folder, "log": log})
        return
    click.echo(f"submitted job {job.job_id}, {job.num_tasks} tasks: {line}\nits first task's words: {log}")


def tasks_of(given: Sequence[str]) -> int:
    """How many tasks a job of these `--slurm` words would have; 0 = there are no words."""
    parameters = _parse(given)
    each = parameters.get("tasks_per_node", parameters.get("ntasks_per_node", 1))
    return int(parameters.get("nodes", 1) * each) if given else 0


def _parse(given: Sequence[str]) -> dict[str, Any]:
    """``["nodes=4", "partition=gpu"]`` -> ``{"nodes": 4, "partition": "gpu"}``"""
    parameters: dict[str, Any] = {}
    for word in given:
        key, sign, value = word.partition("=")
        if not sign or not key.isidentifier() or not value:
            raise UsageError(f"--slurm {word}: expected key=value, such as nodes=4")
        try:
            parameters[key] = NUMBERS[key](value) if key in NUMBERS else value
        except ValueError:
            raise UsageError(f"--slurm {word}: expected a number, such as {key}=4") from None
    return parameters


def _executor(cluster: str, folder: Path, parameters: dict[str, Any], show: bool) -> Any:
    try:
        from submitit import LocalExecutor, SlurmExecutor
    except ImportError:
        raise UsageError("--slurm needs submitit: pip install 'fastxfer[cluster]'") from None

    kinds: dict[str, Any] = {"slurm": SlurmExecutor, "local": LocalExecutor}
    if cluster not in kinds:
        raise UsageError(f"--slurm cluster={cluster} is not one of {', '.join(kinds)}.{nearest(cluster, kinds)}")
    general = SlurmExecutor._equivalence_dict()
    known = {*general, *SlurmExecutor._valid_parameters(), *OURS}
    for key in parameters:
        if key not in known:
            raise UsageError(f"--slurm {key}=: submitit knows no such parameter.{nearest(key, known)}")
    kind = kinds[cluster]
    if cluster == "slurm":
        if show:
            # The file can be looked at on a machine without SLURM.
            kind = type("Shown", (SlurmExecutor,), {"affinity": classmethod(lambda cls: 1)})
        elif kind.affinity() <= 0:
            raise UsageError(
                "--slurm: there is no `srun` on this machine: submit from a login node of the cluster, look at the file "
                "by --slurm-show, or try the tasks here by --slurm cluster=local tasks_per_node=2"
            )
    elif show:
        raise UsageError("--slurm-show shows an sbatch file; cluster=local has none")
    executor = kind(folder=folder, max_num_timeout=REQUEUES)
    # submitit would account for all under a key of its own, which few clusters know.
    settings = {"timeout_min": MINUTES, "name": "fastxfer", "wckey": None, **parameters}
    try:
        executor.update_parameters(**executor._convert_parameters(settings))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--slurm {' '.join(f'{k}={v}' for k, v in parameters.items())}: {error}") from error
    return executor
