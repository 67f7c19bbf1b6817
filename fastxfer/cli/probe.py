"""`fastxfer probe` and `fastxfer knn`: the full train split."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastxfer.cli.common import (
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
from fastxfer.cli.intervals import interval_words, say_reasons
from fastxfer.cli.probes import class_weight_option, per_class_option, transform_option, vote_option

if TYPE_CHECKING:
    from fastxfer.probes import Probe

backbone_option = click.option("--backbone", "backbones", multiple=True, metavar="B…", help="Backbones [default: all].")
target_option = click.option("--target", "targets", multiple=True, metavar="T…", help="Targets [default: all].")


@click.command(cls=ManyValues)
@backbone_option
@target_option
@click.option(
    "--l2",
    type=float,
    multiple=True,
    metavar="V…",
    help="Penalties to choose from on validation [default: 10^-6 … 10^2, 17 of them].",
)
@class_weight_option
@transform_option
@click.option(
    "--probe",
    "name",
    default="logistic",
    show_default=True,
    metavar="P",
    help="logistic or a preset: `fastxfer probes ls`.",
)
@per_class_option
@drop_leaks_option
@store_option
@results_option
@seed_option
@json_option
def probe(
    backbones: tuple[str, ...], targets: tuple[str, ...], l2: tuple[float, ...], class_weight: str | None,
    transform: tuple[str, ...], name: str, per_class: bool, drop_leaks: str | None, data_root: Path, store_path: str, results: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Linear probe on the full train split: l2 chosen on validation, refitted, scored on test.

    \b
    Example:
      fastxfer probe --target pets
    """
    from fastxfer.presets import full_probe_for

    chosen = full_probe_for("probe", name, l2=l2, transform=transform, class_weight=class_weight)
    _run("probe", chosen, backbones, targets, per_class, drop_leaks, data_root, store_path, results, seed, as_json)


@click.command(cls=ManyValues)
@backbone_option
@target_option
@click.option(
    "--k",
    type=int,
    multiple=True,
    metavar="K…",
    help="Neighbours to choose from on validation [default: 1 5 20 100].",
)
@click.option(
    "--temperature",
    type=float,
    help="Votes weigh exp(similarity / temperature); 0: plain vote [default: 0.07].",
)
@vote_option
@transform_option
@click.option(
    "--probe", "name", default="knn", show_default=True, metavar="P", help="knn or a preset: `fastxfer probes ls`."
)
@click.option(
    "--index",
    type=click.Choice(["flat", "ivf", "hnsw"]),
    default="flat",
    show_default=True,
    help="flat: exact; ivf, hnsw: approximate, for millions of images, and their recall is said.",
)
@per_class_option
@drop_leaks_option
@store_option
@results_option
@seed_option
@json_option
def knn(
    backbones: tuple[str, ...], targets: tuple[str, ...], k: tuple[int, ...], temperature: float | None,
    vote: str | None, transform: tuple[str, ...], name: str, index: str, per_class: bool, drop_leaks: str | None, data_root: Path, store_path: str, results: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Nearest neighbours from the full train split: k chosen on validation, scored on test.

    \b
    Example:
      fastxfer knn --target pets --k 1 20
    """
    from fastxfer.presets import full_probe_for

    chosen = full_probe_for("knn", name, k=k, temperature=temperature, vote=vote, transform=transform, index=index)
    _run("knn", chosen, backbones, targets, per_class, drop_leaks, data_root, store_path, results, seed, as_json)


def _run(
    stage: str, chosen: Probe, backbones: tuple[str, ...], targets: tuple[str, ...], per_class: bool,
    drop_leaks: str | None, data_root: Path, store_path: str, results: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    import numpy as np
    import pandas as pd

    from fastxfer.full_splits import run_full
    from fastxfer.probes import variant_of
    from fastxfer.progress import say
    from fastxfer.protocol import dropped_of
    from fastxfer.results import CELL, ResultStore, results_path
    from fastxfer.statistics import TEST_IMAGES, summarise

    store, leaks = open_store(store_path, drop_leaks, data_root, targets)
    done = ResultStore.open(results or results_path(store_path))
    started = time.perf_counter()
    added = run_full(
        store, done, chosen, backbones=backbones or None, targets=targets or None, seed=seed, per_class=per_class
    )
    seconds = time.perf_counter() - started
    done.log_run({"command": command_line(), "stage": stage, "seconds": seconds, "versions": versions()})
    rows = done.read()
    dropped = {name: store.target(name).dropped for name in store.targets()} if drop_leaks else {}
    of_these = [dropped_of(p) == dropped.get(t, "") for p, t in zip(rows["params"], rows["target"], strict=True)]
    shown: pd.DataFrame = rows[
        (rows["shots"] == "full")
        & (rows["probe"] == chosen.name)
        & (rows["params"].map(variant_of) == chosen.variant)
        & (rows["seed"] == seed)
        & np.array(of_these, bool)
        & (rows["target"].isin(targets) if targets else True)
        & (rows["backbone"].isin(backbones) if backbones else True)
    ]
    cells = list(shown[list(CELL)].itertuples(index=False, name=None))
    table = summarise(shown, images=done.read_images(cells))
    reasons = dict(zip(table[list(CELL)].itertuples(index=False, name=None), table["reason"], strict=True))
    say_reasons(table)
    if as_json:
        emit_json(
            {
                "results": str(done.path),
                "rows_added": added,
                "seconds": seconds,
                "leaks": leaks.said,
                "rows": [
                    {
                        **r,
                        "interval": TEST_IMAGES,
                        "reason": reasons[cell],
                        "flags": leaks.flags(r["target"], r["source"], r["split"]),
                    }
                    for cell, r in zip(cells, shown.to_dict("records"), strict=True)
                ],
            }
        )
        return
    shown = shown.sort_values(["target", "split", "metric", "value"])
    print_flagged(
        ["target", "backbone", "split", "metric", "value", "95 % over test images", "params"],
        [
            [r.target, r.backbone, r.split, r.metric, f"{r.value:.4f}", interval_words(r.low, r.high), r.params]
            for r in shown.itertuples()
        ],
        [leaks.flags(r.target, r.source, r.split) for r in shown.itertuples()],
    )
    say(f"{added} rows added in {seconds:.1f} s; results lie in {done.path}")
