"""`fastxfer fewshot`: episodes on cached embeddings."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from fastxfer.cli.common import (
    ManyValues,
    NumberOrAll,
    backend_option,
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
from fastxfer.cli.intervals import interval_words, rows_of, say_reasons
from fastxfer.cli.probes import choice_options, class_weight_option, per_class_option, transform_option, vote_option
from fastxfer.progress import say


@click.command(cls=ManyValues)
@click.option("--backbone", "backbones", multiple=True, metavar="B…", help="Backbones of the store [default: all].")
@click.option("--target", "targets", multiple=True, metavar="T…", help="Targets of the store [default: all].")
@click.option(
    "--ways", type=NumberOrAll(), help="Classes an episode [default: 5, or all where there are fewer or per label]."
)
@click.option(
    "--shots", type=int, multiple=True, metavar="K…", help="Support images a class [default: 1 5, or the preset's]."
)
@click.option(
    "--queries",
    type=NumberOrAll(),
    help="Query images a class [default: 15; with `--ways all`, the whole query split]. Per label: positives, and as "
    "many negatives.",
)
@click.option("--episodes", type=int, help="Episodes a cell, with --until at most [default: 1000, or the preset's].")
@click.option(
    "--until",
    metavar='"ci P"',
    help="Stop where the mean over episodes is known to ± P points, by a 95 % confidence sequence: as many episodes as "
    "that takes, and no more.",
)
@click.option(
    "--probe",
    "probes",
    multiple=True,
    default=("logistic", "ridge", "prototype", "knn"),
    show_default=True,
    metavar="P…",
    help="Probes and presets: see `fastxfer probes ls`.",
)
@click.option(
    "--l2",
    type=float,
    multiple=True,
    metavar="V…",
    help="Penalties of logistic and ridge [default: 1/m, m = support images: scikit-learn's C = 1].",
)
@choice_options
@class_weight_option
@transform_option
@click.option("--k", type=int, multiple=True, metavar="K…", help="Neighbours of knn [default: 20].")
@vote_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="M…",
    help="Metrics: accuracy, balanced_accuracy, auc, average_precision, f1, brier, log_loss, calibration_error (the last "
    "three for logistic and knn), or one that a package brings [default: accuracy; where classes differ in queries also balanced_accuracy and auc; "
    "per label auc and average_precision].",
)
@click.option(
    "--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Where queries come from."
)
@per_class_option
@episode_options
@click.option("--drop-scarce", is_flag=True, help="Leave out classes with too few images instead of failing.")
@click.option(
    "--audit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write N of the episodes, spread over the run, with all that another program needs to redo them.",
)
@click.option(
    "--audit-out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.npz",
    help="Where --audit writes: support, query, labels, l2, objective and scores, an entry an episode (per-label: and "
    "label) and l2; `note` in the file says how to redo them, transforms included.",
)
@drop_leaks_option
@store_option
@results_option
@backend_option
@seed_option
@json_option
def fewshot(
    backbones: tuple[str, ...], targets: tuple[str, ...], ways: int | Literal["all"] | None, shots: tuple[int, ...],
    queries: int | Literal["all"] | None, episodes: int | None, until: str | None, probes: tuple[str, ...], l2: tuple[float, ...],
    l2_by: str, folds: int | None, criterion: str | None, class_weight: str | None, transform: tuple[str, ...], k: tuple[int, ...],
    vote: str | None, metrics: tuple[str, ...], per_class: bool, split: str, labels: str, query_prior: str, imbalance: float | None,
    fewer_queries: bool, drop_scarce: bool, audit: int | None, audit_out: Path | None, drop_leaks: str | None,
    data_root: Path, store_path: str, results: str | None, backend: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Few-shot episodes on the embeddings of a store: thousands a cell, the same ones for every backbone.

    With no option but --episodes, everything that the store holds is run. Rows that are there already are not redone.

    \b
    Examples:
      fastxfer fewshot --episodes 5000
      fastxfer fewshot --episodes 20000 --until "ci 0.5"
      fastxfer fewshot --shots 5 --probe logistic --l2-by cv --transform centre l2
      fastxfer fewshot --backbone r50x1 --target pets --ways all --shots 1 5 10 --probe logistic
    """
    from fastxfer.errors import UsageError
    from fastxfer.evaluation import run_protocol
    from fastxfer.ops import resolve_backend
    from fastxfer.presets import episodes_for, probes_for
    from fastxfer.protocol import Protocol
    from fastxfer.results import CELL, ResultStore, results_path
    from fastxfer.statistics import summarise
    from fastxfer.until import parse_until

    half_width = None if until is None else parse_until(until)
    if (audit is None) != (audit_out is None):
        raise UsageError("--audit N and --audit-out FILE.npz go together")
    usual = episodes_for(probes)
    episodes = usual["episodes"] if episodes is None else episodes
    protocol = Protocol(
        ways=usual["ways"] if ways is None else ways,
        shots=tuple(dict.fromkeys(shots)) or usual["shots"],
        queries=usual["queries"] if queries is None and ways is None else queries,
        query_split=split,
        episodes=episodes,
        seed=seed,
        metrics=metrics,
        drop_scarce=drop_scarce,
        labels=labels,
        query_prior=query_prior,
        imbalance=imbalance,
        fewer_queries=fewer_queries,
        per_class=per_class,
    )
    chosen = probes_for(
        "fewshot",
        probes,
        l2=l2,
        k=k,
        transform=transform,
        l2_by=l2_by,
        folds=folds,
        criterion=criterion,
        class_weight=class_weight,
        vote=vote,
    )
    if drop_leaks and split != "test":
        raise UsageError(
            f"--drop-leaks is about test images, and --split {split} asks for others: leave one of them out"
        )
    store, leaks = open_store(store_path, drop_leaks, data_root, targets)
    resolved = resolve_backend(backend)
    if backend == "auto":
        say(f"backend: {resolved}")
    rows = ResultStore.open(results or results_path(store_path))
    audited: dict[str, Any] | None = None
    if audit is not None and audit_out is not None:
        audited = _audit(store, protocol, chosen, backbones, targets, audit, audit_out, resolved)
    started = time.perf_counter()
    summary = run_protocol(
        store,
        rows,
        protocol,
        chosen,
        backbones=backbones or None,
        targets=targets or None,
        backend=resolved,
        until=half_width,
    )
    rows.log_run(
        {
            "command": command_line(),
            "stage": "fewshot",
            "seconds": time.perf_counter() - started,
            "episodes": summary.episodes,
            "backend": resolved,
            "protocol": protocol.hash,
            "versions": versions(),
        }
    )
    shown = summarise(rows_of(rows.read(), summary.cells), images=rows.read_images(summary.cells))
    sequences = _sequences(summary, shown[list(CELL)].itertuples(index=False, name=None))
    if summary.unconverged:
        say(f"{summary.unconverged:,} values come from solutions that did not reach the tolerance (column `converged`)")
    if summary.undefined:
        say(f"{summary.undefined:,} values are undefined: their rows are there with a NaN, and means leave them out")
    if as_json:
        emit_json(
            {
                "results": str(rows.path),
                "rows_added": summary.rows,
                "episodes_solved": summary.episodes,
                "seconds": summary.seconds,
                "skipped": summary.skipped,
                "eased": summary.eased,
                "leaks": leaks.said,
                "audit": audited,
                "cells": [
                    {**cell, **more, "flags": leaks.flags(cell["target"], cell["source"], cell["split"])}
                    for cell, more in zip(shown.to_dict("records"), sequences, strict=True)
                ],
            }
        )
        return
    shown = shown.sort_values(["target", "ways", "metric", "shots", "probe", "mean"])
    print_flagged(
        [
            "target",
            "ways",
            "shots",
            "backbone",
            "probe",
            "params",
            "metric",
            "mean",
            "95 % over episodes",
            "95 % over episodes and test images",
            "episodes",
        ],
        [
            [
                r.target,
                r.ways,
                r.shots,
                r.backbone,
                r.probe,
                r.params,
                r.metric,
                f"{r.mean:.4f}",
                interval_words(r.low, r.high),
                interval_words(r.low_images, r.high_images),
                int(r.n),
            ]
            for r in shown.itertuples()
        ],
        [leaks.flags(r.target, r.source, r.split) for r in shown.itertuples()],
    )
    say_reasons(shown)
    say(
        f"{summary.rows:,} rows added in {summary.seconds:.1f} s of solving; results lie in {rows.path}. "
        "`fastxfer report` draws them."
    )


def _sequences(summary: Any, cells: Iterable[Any]) -> list[dict[str, Any]]:
    """With --until, what it knows of each cell: {"until": {"low", "high", "known"}}; said, if some are not known so well."""
    if summary.until is None:
        return [{} for _ in cells]
    found = []
    for cell in cells:
        low, high = summary.until.interval(cell)
        found.append({"until": {"low": low, "high": high, "known": high - low <= 2 * summary.until.half_width}})
    short = sum(not f["until"]["known"] for f in found)
    if short:
        say(f"{short:,} of {len(found):,} means are not known so well yet: give more --episodes to go on from here")
    return found


def _audit(
    store: Any, protocol: Any, probes: list[Any], backbones: tuple[str, ...], targets: tuple[str, ...], count: int,
    out: Path, backend: str,
) -> dict[str, Any]:  # fmt: skip
    from fastxfer.audit import audit
    from fastxfer.episodes import sample_episodes
    from fastxfer.errors import UsageError
    from fastxfer.files import write_npz
    from fastxfer.holdings import backbones_of

    pairs = [(b, t) for t, some in backbones_of(store, targets or None, backbones or None).items() for b in some]
    logistic = [p for p in probes if p.name == "logistic"]
    if len(pairs) != 1 or len(protocol.shots) != 1 or not logistic:
        raise UsageError(
            "--audit is about one backbone, one target and one number of shots with the logistic probe: "
            f"this run has {len(pairs)} (backbone, target) pairs, {len(protocol.shots)} numbers of shots and "
            f"probes {', '.join(p.name for p in probes)}. Name one each with --backbone, --target, --shots, --probe."
        )
    (backbone, name) = pairs[0]
    target = store.target(name)
    episodes = sample_episodes(target, protocol.spec(target, protocol.shots[0]), protocol.seed, protocol.episodes)
    count = min(count, episodes.n_episodes)
    which = np.unique(np.linspace(0, episodes.n_episodes - 1, count).round().astype(int)).tolist()
    found = audit(store, backbone, episodes, logistic[0], which, backend=backend)
    write_npz(out, {**found, "backbone": np.array(backbone), "target": np.array(name), "hash": np.array(episodes.hash)})
    print(f"{len(found['episode'])} audited episodes written to {out}", file=sys.stderr)
    return {"file": str(out), "entries": len(found["episode"])}
