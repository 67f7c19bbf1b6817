"""`fastxfer finetune`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from fastxfer.cli.cluster import slurm_options
from fastxfer.cli.common import (
    Leaks,
    ManyValues,
    NumberOrAll,
    command_line,
    drop_leaks_option,
    emit_json,
    episode_options,
    json_option,
    open_store,
    print_flagged,
    results_option,
    seed_option,
    store_option,
    versions,
)
from fastxfer.errors import UsageError
from fastxfer.hyperrule import AUGMENTATIONS, HEADS

if TYPE_CHECKING:
    from fastxfer.targets import Target


@click.command(cls=ManyValues)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan that `fastxfer select` wrote.")
@click.option(
    "--follow",
    is_flag=True,
    help="When the plan's runs are done, plan again as it was made, until nothing is worth a run.",
)
@click.option("--only", type=click.IntRange(min=1), multiple=True, help="Only these entries of the plan (1, 2, …).")
@click.option("--ckpt", help="Checkpoint, registered name or timm name, instead of a plan.")
@click.option("--arch", help="timm architecture of --ckpt, where it doesn't say.")
@click.option("--arch-arg", "arch_arg", multiple=True, help="Keyword argument of --arch: KEY=VALUE.")
@click.option("--name", help="What the results call the backbone of --ckpt.")
@click.option("--source", help="What --ckpt was trained on, where it doesn't say.")
@click.option("--target", "targets", multiple=True, help="Target(s) for --ckpt.")
@click.option(
    "--preset",
    default="bit",
    show_default=True,
    help="bit (BiT-HyperRule), paper (Cherti & Jitsev 2021) or own (timm's conventions).",
)
@click.option(
    "--shots", type=click.IntRange(min=1), multiple=True, metavar="K…",
    help="Few-shot, on the very episodes of `fewshot`: support images a class [default: the whole train split].",
)  # fmt: skip
@click.option("--ways", type=NumberOrAll(), help="Classes an episode, as for `fewshot` [default: all].")
@click.option("--queries", type=NumberOrAll(), help="Query images a class, as for `fewshot`.")
@click.option("--episodes", type=click.IntRange(min=1), help="Episodes a number of shots [default: 5].")
@episode_options
@click.option("--drop-scarce", is_flag=True, help="Leave out classes with too few images for --shots.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps; the schedule is scaled to them.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a step [bit: 512, paper and own: 128].")
@click.option("--image-size", type=click.IntRange(min=8), help="Pixels a side [small images: 128, others: 480].")
@click.option("--base-lr", type=float, help="Learning rate after the warm-up [bit: 0.003, paper: 0.001, own: 0.0005].")
@click.option(
    "--hflip",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Probability of a mirror image.",
)
@click.option(
    "--augment",
    type=click.Choice(AUGMENTATIONS),
    help="crop; xray, the paper's for PadChest; or timm, RandAugment [default: the preset's].",
)
@click.option(
    "--oversample/--no-oversample",
    default=None,
    help="Draw every class equally often [default: no; paper: for COVIDx and Flowers, full shot].",
)
@click.option(
    "--head",
    type=click.Choice(HEADS),
    help="How the head starts: zero, random, or probe, the linear probe's solution [default: the preset's].",
)
@click.option(
    "--head-l2", type=float, help="Penalty of --head probe [default: what the full probe chose; few-shot 1/m]."
)
@click.option("--frozen-norm", is_flag=True, help="Batch norm keeps the statistics of pre-training.")
@click.option(
    "--eval-every",
    type=click.IntRange(min=0),
    metavar="STEPS",
    help="Score validation (paper: test) on the way, 0 = never [full shot: five times; paper: every 100 steps].",
)
@click.option(
    "--budget",
    "budget_words",
    metavar="AMOUNT",
    help='Stop when it is spent: "2 gpu-hours", "30 minutes", "3 runs", "1e6 images".',
)
@click.option(
    "--halving", is_flag=True, help="Of the runs on a target, stop the worse half by validation, again and again."
)
@click.option("--micro-batch", type=click.IntRange(min=1), help="Images a forward pass; the result stays the same.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="How often the running one is kept, to go on from [default: every five minutes].",
)
@click.option("--curves", type=click.Path(path_type=Path, file_okay=False), help="Folder for a table of every step.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Loader processes.")
@click.option("--device", default="auto", show_default=True, help="auto = cuda if there is one, else cpu.")
@slurm_options()
@store_option
@results_option
@drop_leaks_option
@seed_option
@json_option
@click.pass_context
def finetune(
    ctx: click.Context, plan_file: Path | None, follow: bool, only: tuple[int, ...], ckpt: str | None, arch: str | None,
    arch_arg: tuple[str, ...], name: str | None, source: str | None, targets: tuple[str, ...], preset: str,
    shots: tuple[int, ...], ways: int | Literal["all"] | None, queries: int | Literal["all"] | None, episodes: int | None,
    labels: str, query_prior: str, imbalance: float | None, fewer_queries: bool, drop_scarce: bool, steps: int | None,
    batch_size: int | None, image_size: int | None, base_lr: float | None, hflip: float, augment: str | None,
    oversample: bool | None, head: str | None, head_l2: float | None, eval_every: int | None, frozen_norm: bool, budget_words: str | None,
    halving: bool, micro_batch: int | None, checkpoint_every: int | None, curves: Path | None, workers: int, device: str,
    store_path: str, results: str | None, drop_leaks: str | None, data_root: Path, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Fine-tune what a plan selected, or one checkpoint on the targets named.

    Rows go to the results, each run's as it ends; what is there already is not done again, and what was interrupted goes
    on where it was. The learning rate, number of steps, mixup and resolution follow the target's size; --steps,
    --batch-size and --image-size make small machines do. Several processes (torchrun, SLURM) share the runs out.

    \b
    Example:
      fastxfer finetune --plan plan.json --budget "2 gpu-hours" --halving
      fastxfer finetune --plan plan.json --follow
      fastxfer finetune --plan plan.json --only 1 --steps 100 --batch-size 32 --image-size 32
      fastxfer finetune --ckpt bit.pt --target digits --preset paper --shots 1 5 --episodes 5
    """
    if (plan_file is None) == (ckpt is None):
        raise UsageError("give either --plan plan.json, or --ckpt with --target")
    stray = {"--arch": arch, "--arch-arg": arch_arg, "--name": name, "--source": source, "--target": targets}
    if plan_file is not None and any(stray.values()):
        raise UsageError(f"{next(o for o, v in stray.items() if v)} goes with --ckpt; a plan says it itself")
    if follow and (plan_file is None or only or budget_words or as_json):
        raise UsageError("--follow goes with --plan alone: without --only, --budget (the plan has its own) and --json")
    if ckpt is not None and (only or not targets):
        raise UsageError("--only goes with --plan" if only else "--ckpt needs --target")

    given = [p.opts[0] for p in ctx.command.params if p.name in _FEW_SHOT and _is_given(ctx, p.name or "")]
    few_shot = [option for option in given if option != "--labels"]
    if few_shot and not shots:
        raise UsageError(f"{few_shot[0]} is about episodes: it goes with --shots")

    from fastxfer.budgets import parse_budget
    from fastxfer.results import ResultStore, results_path

    budget = parse_budget(budget_words) if budget_words is not None else None
    protocol = None
    if shots:
        from fastxfer.protocol import Protocol

        protocol = Protocol(
            ways="all" if ways is None and labels == "exactly-one" else ways,
            shots=tuple(dict.fromkeys(shots)),
            queries=queries,
            episodes=episodes or 5,
            seed=seed,
            drop_scarce=drop_scarce,
            labels=labels,
            query_prior=query_prior,
            imbalance=imbalance,
            fewer_queries=fewer_queries,
        )
    overrides: dict[str, Any] = {
        "preset": preset,
        "steps": steps,
        "batch_size": batch_size,
        "image_size": image_size,
        "base_lr": base_lr,
        "hflip": hflip,
        "oversample": oversample,
        "head": head,
        "head_l2": head_l2,
        "augment": augment,
        "eval_every": eval_every,
        "frozen_norm": frozen_norm,
    }
    if plan_file is not None:
        from fastxfer.plans import read_plan

        store_path, entries = read_plan(plan_file, store_path if _is_given(ctx, "store_path") else None)
        if only and max(only) > len(entries):
            raise UsageError(f"--only {max(only)}: the plan has {len(entries)} entries")
        entries = [entry for entry in entries if not only or entry.number in only]
    kept = ResultStore.open(results or results_path(store_path))
    if plan_file is not None and not entries:
        from fastxfer.progress import say

        say(f"the plan in {plan_file} is empty: nothing is worth a fine-tuning")
        if as_json:
            emit_json({"results": str(kept.path), "leaks": {}, "runs": []})
        return

    from fastxfer.finetune import Machine, Study, prepare, prepare_checkpoint, run_all
    from fastxfer.full_splits import chosen_l2
    from fastxfer.ranks import team_of_environment

    if follow and team_of_environment() is not None:
        raise UsageError("--follow is for one process: let several run the plan, then `fastxfer select` again")
    study = Study(
        seed=seed,
        protocol=protocol,
        labels=labels if _is_given(ctx, "labels") else None,
        overrides=overrides,
        l2=chosen_l2(kept) if head == "probe" and head_l2 is None else {},
    )
    if plan_file is not None:
        store, leaks = open_store(store_path, drop_leaks, data_root, [entry.target for entry in entries])
        runs = prepare(entries, store, data_root, study)
    else:
        assert ckpt is not None
        from fastxfer.cli.embed import parse_arch_args
        from fastxfer.registered import find_registered
        from fastxfer.targets import load_target
        from fastxfer.targets.findings import without_leaks

        whole = {name: load_target(name, data_root) for name in targets}
        if shots:  # the probes' episodes are those of the images that could be embedded
            whole = {name: _as_in_store(target, store_path) for name, target in whole.items()}
        tested = [without_leaks(t, data_root, drop_leaks) if drop_leaks else t for t in whole.values()]
        dropped = {target.name: target.dropped for target in tested}
        leaks = Leaks(dropped, data_root, drop_leaks, lambda name: whole[name].fingerprint)
        arch_args = parse_arch_args(arch_arg)
        registered = find_registered(ckpt, data_root)
        if registered is not None:
            known = registered.options({"arch": arch, "arch_args": arch_args, "source": source})
            ckpt, name = registered.ckpt, name or registered.name
            arch, arch_args, source = known["arch"], known["arch_args"], known["source"]
        runs = prepare_checkpoint(ckpt, tested, study, arch=arch, arch_args=arch_args, name=name, source=source)

    machine = Machine(micro_batch=micro_batch, workers=workers, device=device, save_steps=checkpoint_every or 0)
    started = time.perf_counter()
    outcomes = run_all(runs, kept, machine=machine, curves=curves, budget=budget, halving=halving)
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
    team = team_of_environment()
    if team is not None and team.rank > 0:
        return  # one table, one document; of what others have done the results tell
    if as_json:
        emit_json({"results": str(kept.path), "leaks": leaks.said, "runs": outcomes})
        return
    shown = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "auc": "AUC", "average_precision": "AP"}
    measured = [m for m in shown if any(m in o for o in outcomes)]
    episodic = ("ways", "shots", "episode") if any(o["shots"] != "full" for o in outcomes) else ()
    print_flagged(
        ("backbone", "target", *episodic, *(shown[m] for m in measured), "seconds", "state"),
        [
            (
                o["backbone"],
                o["target"],
                *(str(o[word]) for word in episodic),
                *(f"{o[m]:.3f}" if m in o else "" for m in measured),
                f"{o['seconds']:.1f}" if "seconds" in o else "",
                o["state"],
            )
            for o in outcomes
        ],
        [o["flags"] for o in outcomes],
    )
    if follow and plan_file is not None and _plan_again(plan_file, store_path, results, outcomes):
        assert ctx.command.callback is not None
        ctx.command.callback(**ctx.params)  # in this very context, which knows what was given


def _plan_again(plan_file: Path, store_path: str, results: str | None, outcomes: list[dict[str, Any]]) -> bool:
    """Write the plan anew from what the results hold now, with what is left of its budget; whether it has runs to make."""
    import json

    from fastxfer.budgets import parse_budget
    from fastxfer.cli.select import make_plan, show_plan
    from fastxfer.progress import say

    again = json.loads(plan_file.read_text(encoding="utf-8")).get("again")
    if not again:
        raise UsageError(f"plan '{plan_file}' does not say how it was made: run `fastxfer select` again for --follow")
    done = [outcome for outcome in outcomes if outcome["state"] == "done"]
    if not done:
        say("no run was finished: the plan stays as it is")
        return False
    budget = parse_budget(again["budget"], gpu_hour=again["gpu_hour"])
    in_runs = budget.kind == "runs"
    left = budget.amount - (len(done) if in_runs else sum(outcome["seconds"] for outcome in done))
    if left < (1 if in_runs else 1e-9):
        say(f"the budget of {budget.text} is spent")
        return False
    plan = make_plan(store_path, results, again | {"budget": f"{left:.6g} {'runs' if in_runs else 'gpu-seconds'}"})
    plan.write(plan_file)
    show_plan(plan)
    if plan.is_done:
        say(f"nothing more is worth a fine-tuning; the plan in {plan_file} says what is chosen")
    return not plan.is_done


_FEW_SHOT = (
    "ways", "queries", "episodes", "labels", "query_prior", "imbalance", "fewer_queries", "drop_scarce"
)  # fmt: skip


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT


def _as_in_store(target: Target, store_path: str) -> Target:
    """The target with the images that the store has of it, if it has the target at all."""
    from fastxfer.errors import DataError
    from fastxfer.finetune.runs import as_embedded
    from fastxfer.store import EmbeddingStore

    try:
        store = EmbeddingStore.open(store_path)
    except DataError:  # no store there
        return target
    return as_embedded(store.target(target.name), target, store) if target.name in store.targets() else target
