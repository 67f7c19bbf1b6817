"""`fastxfer demo`: the main job on real images, by the commands that a user would type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import emit_json, json_option

# Hyper-parameters that let two cores do it in minutes; `small` serves the tests.
EPOCHS, EPISODES, BUDGET = {False: 30, True: 1}, {False: 5000, True: 60}, {False: 2, True: 1}
SHOTS = ("1", "2", "5", "10")
# BiT's rates are made for 500 steps of 512 images. These runs are shorter, so they take the rate of the pre-training
# recipe (0.4 for 256 images, hence 0.1 for 64) and its 32 pixels. Chosen by that rule, not by test scores.
FINETUNE = ("--steps", "200", "--batch-size", "64", "--image-size", "32", "--base-lr", "0.1")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo",
    show_default=True,
    help="Folder for the demo's images, store, results and report.",
)
@click.option("--small", is_flag=True, help="Fewer images, episodes and steps (the tests run this).")
@json_option
def demo(out: Path, small: bool, as_json: bool) -> None:
    """The whole road in a few minutes: real images and weights that packages ship, real training, a real report.

    Run it again and it finds everything done.

    \b
    Example:
      fastxfer demo --out demo
    """
    from fastxfer.demo import SEEN, lite0_weights, render
    from fastxfer.progress import say

    started = time.perf_counter()
    weights = lite0_weights()
    folders = render(out / "images", small=small)
    data_root, store = str(out / "data"), str(out / "store")
    places = ("--store", store)

    def run(*words: str) -> None:
        from fastxfer.cli import main

        say(f"\n$ {shlex.join(['fastxfer', *words])}")
        # Results of single commands are tables on stdout; under --json stdout belongs to the last document alone.
        extra = ("--json",) if as_json else ()
        with _quiet(as_json):
            main.main([*words, *extra], "fastxfer", standalone_mode=False)

    for name, folder in folders.items():
        run("targets", "add", str(folder), "--name", name, "--data-root", data_root)
    source = ("--source", "digits", "--classes", *SEEN, "--data-root", data_root)
    recipe = ("--hflip", "0", "--epochs", str(EPOCHS[small]))
    for backbone, how in (("bit-digits", recipe), ("bit-untrained", ("--untrained",))):
        checkpoint = out / f"{backbone}.pt"
        if not checkpoint.exists():
            run("pretrain", *source, *how, "--resume", "--out", str(checkpoint))
    targets = ("--target", *folders)
    run(
        "embed",
        "--ckpt",
        str(weights),
        "--arch",
        "tf_efficientnet_lite0",
        "--name",
        "efficientnet-lite0",
        "--source",
        "imagenet1k",
        *targets,
        *places,
        "--data-root",
        data_root,
    )
    for backbone in ("bit-digits", "bit-untrained"):
        run(
            "embed",
            "--ckpt",
            str(out / f"{backbone}.pt"),
            "--name",
            backbone,
            *targets,
            *places,
            "--data-root",
            data_root,
        )
    run("fewshot", "--episodes", str(EPISODES[small]), "--shots", *SHOTS, *places)
    run("probe", *places)
    run("knn", *places)
    plan = out / "plan.json"
    run("select", "--budget", str(BUDGET[small]), "--out", str(plan), *places)
    small_steps = ("--steps", "4", "--batch-size", "8", "--image-size", "32")
    run("finetune", "--plan", str(plan), *places, "--data-root", data_root, *(small_steps if small else FINETUNE))
    report = out / "report"
    run("report", "--out", str(report), "--plan", str(plan), *places)

    learned = _learned(store)
    learned["seconds"] = time.perf_counter() - started
    learned["report"] = str(report / "index.html")
    if as_json:
        emit_json(learned)
        return
    click.echo()
    for sentence in learned["sentences"]:
        click.echo(click.wrap_text(sentence, width=100, subsequent_indent="  "))
    click.echo(
        f"\nThe report: {learned['report']}  (this run took {learned['seconds']:.0f} s)\n\n"
        "The same on your own images and your own checkpoint:\n"
        "  fastxfer targets add path/to/images --name mine && "
        "fastxfer embed --ckpt path/to/checkpoint.pt --target mine\n"
        "  fastxfer fewshot --episodes 5000 && fastxfer report"
    )


def _learned(store_path: str) -> dict[str, Any]:
    """Three sentences of numbers: what transfers, what it cost, what fine-tuning everything would have cost.

    The numbers are those of the report.
    """
    from fastxfer.report.answer import stand
    from fastxfer.report.cells import aggregate
    from fastxfer.report.comparisons import compared
    from fastxfer.report.costs import costs
    from fastxfer.report.facts import gather
    from fastxfer.report.flags import flags
    from fastxfer.report.words import bounds, duration, joined, plural, with_unit
    from fastxfer.results import ResultStore, results_path

    results = ResultStore.open(results_path(store_path))
    rows, facts = results.read(), gather(store_path)
    cells = aggregate(rows, results.read_images)
    spent = costs(rows, cells, results.runs(), facts)
    few = stand(cells, compared(rows, results.read_images, cells)).few
    doubts = {flag.target: f", {flag.head.lower()}" for flag in flags(cells, facts)}
    parts = []
    for target, standing in few.items():
        best, second = standing.best, standing.table.iloc[1]
        verdict = f"{standing.gap:.1f} points above" if standing.decided else "not told apart from"
        interval = bounds(best["low"], best["high"])
        parts.append(
            f"{target}{doubts.get(target, '')}: {best['label']} {with_unit(best['mean'])}"
            f"{f' ({interval})' if interval else ''}, {verdict} {second['label']}"
        )
    solved = rows[(rows["episode"] >= 0) & (rows["metric"] == "accuracy")]
    unconverged = int((~solved["converged"]).sum())
    missing = sorted(set(facts.targets) - set(few))
    left_out = f" Left out, with too few images: {joined(missing)}." if missing else ""
    probing = spent.by_stage
    return {
        "targets": sorted(few),
        "unconverged": unconverged,
        "sentences": [
            f"Learned: at 5 shots per class (logistic probe, accuracy, 95 % intervals over episodes), {'; '.join(parts)}."
            + left_out,
            f"Cost: {duration(spent.embedding)} for {plural(len(spent.by_pair), 'embedding')}, "
            f"{duration(probing['fewshot'])} for {plural(spent.fits, 'few-shot classifier')} ({unconverged:,} of them "
            f"short of their tolerance), {duration(probing['probe'] + probing['knn'])} for "
            f"{plural(spent.full_fits, 'full probe')} and {duration(spent.finetuning)} for the "
            f"{plural(spent.finetunings, 'fine-tuning')} that the selection asked for: {duration(spent.total)} together.",
            f"Otherwise: at the {duration(spent.finetuning / spent.finetunings)} that a fine-tuning took on average, "
            f"fine-tuning each of the {spent.pairs} backbone-target pairs on its whole train split would take "
            f"{duration(spent.every_pair)}, and fine-tuning on each of the {spent.episodes:,} episodes of the "
            f"{spent.few_cells} few-shot cells {duration(spent.every_episode)}.",
        ],
        "classifiers": spent.fits,
        "embedding_seconds": spent.embedding,
        "solving_seconds": probing["fewshot"],
        "finetuning_seconds": spent.finetuning,
        "everything_seconds": spent.every_pair + spent.every_episode,
    }


def _quiet(quiet: bool) -> Any:
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
