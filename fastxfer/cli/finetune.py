"""`fastxfer finetune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import (
    Leaks,
    ManyValues,
    command_line,
    drop_leaks_option,
    emit_json,
    json_option,
    open_store,
    print_flagged,
    results_option,
    seed_option,
    store_option,
    versions,
)
from fastxfer.errors import UsageError


@click.command(cls=ManyValues)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan that `fastxfer select` wrote.")
@click.option("--only", type=click.IntRange(min=1), multiple=True, help="Only these entries of the plan (1, 2, …).")
@click.option("--ckpt", help="Checkpoint or timm name, instead of a plan.")
@click.option("--arch", help="timm architecture of --ckpt, where it doesn't say.")
@click.option("--arch-arg", "arch_arg", multiple=True, help="Keyword argument of --arch: KEY=VALUE.")
@click.option("--name", help="What the results call the backbone of --ckpt.")
@click.option("--source", help="What --ckpt was trained on, where it doesn't say.")
@click.option("--target", "targets", multiple=True, help="Target(s) for --ckpt.")
@click.option("--preset", default="bit", show_default=True, help="bit (BiT-HyperRule) or paper (Cherti & Jitsev 2021).")
@click.option("--steps", type=click.IntRange(min=1), help="Steps; the schedule is scaled to them.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a step [bit: 512, paper: 128].")
@click.option("--image-size", type=click.IntRange(min=8), help="Pixels a side [small images: 128, others: 480].")
@click.option("--base-lr", type=float, help="Learning rate after the warm-up [bit: 0.003, paper: 0.001].")
@click.option(
    "--hflip",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Probability of a mirror image.",
)
@click.option("--oversample", is_flag=True, help="Draw every class equally often.")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Images a forward pass; the result stays the same.")
@click.option("--curves", type=click.Path(path_type=Path, file_okay=False), help="Folder for the loss of every step.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Loader processes.")
@click.option("--device", default="auto", show_default=True, help="auto = cuda if there is one, else cpu.")
@store_option
@results_option
@drop_leaks_option
@seed_option
@json_option
@click.pass_context
def finetune(
    ctx: click.Context,
    plan_file: Path | None,
    only: tuple[int, ...],
    ckpt: str | None,
    arch: str | None,
    arch_arg: tuple[str, ...],
    name: str | None,
    source: str | None,
    targets: tuple[str, ...],
    preset: str,
    steps: int | None,
    batch_size: int | None,
    image_size: int | None,
    base_lr: float | None,
    hflip: float,
    oversample: bool,
    micro_batch: int | None,
    curves: Path | None,
    workers: int,
    device: str,
    store_path: str,
    results: str | None,
    drop_leaks: str | None,
    data_root: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Fine-tune what a plan selected, or one checkpoint on the targets named.

    Rows go to the results, each run's as it ends; what is there already is not done again. The learning rate, number of
    steps, mixup and resolution follow the target's size; --steps, --batch-size and --image-size make small machines do.

    \b
    Example:
      fastxfer finetune --plan plan.json
      fastxfer finetune --plan plan.json --only 1 --steps 100 --batch-size 32 --image-size 32
      fastxfer finetune --ckpt bit.pt --target digits --preset paper
    """
    if (plan_file is None) == (ckpt is None):
        raise UsageError("give either --plan plan.json, or --ckpt with --target")
    stray = {"--arch": arch, "--arch-arg": arch_arg, "--name": name, "--source": source, "--target": targets}
    if plan_file is not None and any(stray.values()):
        raise UsageError(f"{next(o for o, v in stray.items() if v)} goes with --ckpt; a plan says it itself")
    if ckpt is not None and (only or not targets):
        raise UsageError("--only goes with --plan" if only else "--ckpt needs --target")

    from fastxfer.results import ResultStore, results_path

    overrides: dict[str, Any] = {
        "preset": preset,
        "steps": steps,
        "batch_size": batch_size,
        "image_size": image_size,
        "base_lr": base_lr,
        "hflip": hflip,
        "oversample": oversample,
    }
    if plan_file is not None:
        from fastxfer.plans import read_plan

        chosen_store = ctx.get_parameter_source("store_path") != click.core.ParameterSource.DEFAULT
        store_path, entries = read_plan(plan_file, store_path if chosen_store else None)
        if only and max(only) > len(entries):
            raise UsageError(f"--only {max(only)}: the plan has {len(entries)} entries")
        entries = [entry for entry in entries if not only or entry.number in only]

        from fastxfer.finetune import prepare

        store, leaks = open_store(store_path, drop_leaks, data_root, [entry.target for entry in entries])
        runs = prepare(entries, store, data_root, **overrides)
    else:
        assert ckpt is not None
        from fastxfer.cli.embed import parse_arch_args
        from fastxfer.finetune import prepare_checkpoint
        from fastxfer.targets import load_target
        from fastxfer.targets.findings import without_leaks

        whole = {name: load_target(name, data_root) for name in targets}
        tested = [without_leaks(t, data_root, drop_leaks) if drop_leaks else t for t in whole.values()]
        dropped = {target.name: target.dropped for target in tested}
        leaks = Leaks(dropped, data_root, drop_leaks, lambda name: whole[name].fingerprint)
        runs = prepare_checkpoint(
            ckpt,
            tested,
            arch=arch,
            arch_args=parse_arch_args(arch_arg),
            name=name,
            source=source,
            **overrides,
        )

    from fastxfer.finetune import run_all

    kept = ResultStore.open(results or results_path(store_path))
    started = time.perf_counter()
    outcomes = run_all(runs, kept, seed=seed, curves=curves, micro_batch=micro_batch, workers=workers, device=device)
    for outcome in outcomes:
        outcome["flags"] = leaks.flags(outcome["target"], outcome["source"], "test")
    kept.log_run(
        {
            "command": command_line(),
            "stage": "finetune",
            "seconds": time.perf_counter() - started,
            "runs": sum(o["state"] == "done" for o in outcomes),
            "versions": versions(),
        }
    )
    if as_json:
        emit_json({"results": str(kept.path), "leaks": leaks.said, "runs": outcomes})
        return
    shown = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auc": "AUC", "average_precision": "AP"}
    measured = [m for m in shown if any(m in o for o in outcomes)]
    print_flagged(
        ("backbone", "target", *(shown[m] for m in measured), "seconds", "state"),
        [
            (
                o["backbone"],
                o["target"],
                *(f"{o[m]:.3f}" if m in o else "" for m in measured),
                f"{o['seconds']:.1f}" if "seconds" in o else "",
                o["state"],
            )
            for o in outcomes
        ],
        [o["flags"] for o in outcomes],
    )
