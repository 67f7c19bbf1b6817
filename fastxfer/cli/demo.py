"""`fastxfer demo`: the main job on real images, by the commands that a user would type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import emit_json, json_option

# Hyper-parameters that let two cores do it in minutes; `small` serves the tests.
EPOCHS, EPISODES, BUDGET = {False: 30, True: 2}, {False: 5000, True: 60}, {False: 2, True: 1}
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
        click.echo(sentence)
    click.echo(
        f"\nThe report: {learned['report']}  (this run took {learned['seconds']:.0f} s)\n\n"
        "The same on your own images and your own checkpoint:\n"
        "  fastxfer targets add path/to/images --name mine && "
        "fastxfer embed --ckpt path/to/checkpoint.pt --target mine\n"
        "  fastxfer fewshot --episodes 5000 && fastxfer report"
    )


def _learned(store_path: str) -> dict[str, Any]:
    """Three sentences of numbers: what transfers, what it cost, what fine-tuning everything would have cost."""
    from fastxfer.results import ResultStore, results_path
    from fastxfer.statistics import summarise
    from fastxfer.store import EmbeddingStore

    results = ResultStore.open(results_path(store_path))
    rows = results.read()
    cells = summarise(rows)
    logistic = cells[(cells["probe"] == "logistic") & (cells["metric"] == "accuracy") & (cells["split"] == "test")]
    parts = []
    for target, group in logistic[logistic["shots"] == "5"].groupby("target", observed=True):
        ranked = group.sort_values("mean", ascending=False)
        first, second = ranked.iloc[0], ranked.iloc[1]
        parts.append(
            f"{target}: {first['backbone']} {100 * first['mean']:.1f} % "
            f"(± {50 * (first['high'] - first['low']):.1f}), {second['backbone']} {100 * second['mean']:.1f} %"
        )
    episodes = rows[rows["episode"] >= 0]
    solved = len(episodes[episodes["metric"] == "accuracy"])
    unconverged = int((~episodes[episodes["metric"] == "accuracy"]["converged"]).sum())
    missing = sorted({e.target for e in EmbeddingStore.open(store_path).entries()} - set(logistic["target"]))
    runs = results.runs()
    solving = sum(run["seconds"] for run in runs if run.get("stage") == "fewshot")
    embedding = sum(float(entry.attrs.get("seconds", 0.0)) for entry in EmbeddingStore.open(store_path).entries())
    tuned = rows[(rows["probe"] == "finetune") & (rows["metric"] == "seconds")]["value"]
    n_cells = len(logistic)
    everything = float(tuned.mean()) * n_cells
    left_out = f" Left out, with too few images: {', '.join(missing)}." if missing else ""
    return {
        "targets": sorted(set(logistic["target"])),
        "unconverged": unconverged,
        "sentences": [
            f"Learned: at 5 shots (accuracy, 95 % interval over episodes), {'; '.join(parts)}.{left_out}",
            f"Cost: {embedding:.0f} s of forward passes and {solving:.0f} s for {solved:,} few-shot classifiers "
            f"({unconverged:,} did not reach their tolerance); {len(tuned)} fine-tuning(s) that the selection asked for "
            f"took {tuned.sum():.1f} s.",
            f"Otherwise: fine-tuning each of these {n_cells} cells once, at the {tuned.mean():.1f} s of those above, "
            f"would take about {everything / 60:.1f} min; {EPISODES[False]:,} times each, "
            f"{EPISODES[False] * everything / 86400:.1f} days.",
        ],
        "classifiers": solved,
        "embedding_seconds": embedding,
        "solving_seconds": solving,
        "finetuning_seconds": float(tuned.sum()),
        "everything_seconds": everything,
    }


def _quiet(quiet: bool) -> Any:
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext()
