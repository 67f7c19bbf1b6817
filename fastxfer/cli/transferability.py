"""`fastxfer transferability`: cheap scores of how backbones will transfer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.common import (
    ManyValues,
    command_line,
    data_root_option,
    emit_json,
    json_option,
    print_table,
    results_option,
    seed_option,
    store_option,
    versions,
)
from fastxfer.cli.probe import backbone_option, target_option


@click.command(cls=ManyValues)
@backbone_option
@target_option
@click.option(
    "--score",
    "names",
    multiple=True,
    metavar="S…",
    help="leep nleep logme h-score h-score-shrunk transrate gbc knn-loo fewshot [default: all].",
)
@click.option(
    "--images", type=click.IntRange(min=20), default=10_000, show_default=True, help="Train images of a target at most."
)
@click.option(
    "--agreement",
    is_flag=True,
    help="Compute nothing: how well the scores in the results rank backbones as fine-tuning does.",
)
@data_root_option
@store_option
@results_option
@seed_option
@json_option
def transferability(
    backbones: tuple[str, ...], targets: tuple[str, ...], names: tuple[str, ...], images: int, agreement: bool,
    data_root: Path, store_path: str, results: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Score how well backbones should transfer, from train embeddings and labels alone. Larger is better, within a score.

    Rows have the score's name as probe, metric "transferability" and split "train". leep reads the head of the backbone's
    weight file.

    \b
    Example:
      fastxfer transferability --target pets --score logme leep
      fastxfer transferability --agreement
    """
    from fastxfer.progress import say
    from fastxfer.results import ResultStore, results_path
    from fastxfer.store import EmbeddingStore
    from fastxfer.transferability import METRIC, SCORES, rank_agreement, run_transferability

    done = ResultStore.open(results or results_path(store_path))
    if agreement:
        table = rank_agreement(done.read())
        if as_json:
            emit_json(table.to_dict("records"))
            return
        print_table(
            ["target", "score", "fine-tuned on", "backbones", "weighted tau", "spearman", "p"],
            [
                [r.target or "mean of targets", r.score, r.metric, r.n_backbones, f"{r.weighted_tau:+.2f}",
                 f"{r.spearman:+.2f}", "" if r.p != r.p else f"{r.p:.2f}"]
                for r in table.itertuples()
            ],
            right=("weighted tau", "spearman", "p"),
        )  # fmt: skip
        return
    store = EmbeddingStore.open(store_path)
    started = time.perf_counter()
    added, missing = run_transferability(
        store, done, names or tuple(SCORES), backbones=backbones or None, targets=targets or None, images=images,
        seed=seed, head_of=lambda backbone, target: _head_of(store, backbone, target, data_root),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    done.log_run({"command": command_line(), "stage": "transferability", "seconds": seconds, "versions": versions()})
    rows = done.read()
    shown = rows[(rows["metric"] == METRIC) & (rows["seed"] == seed)]
    for column, chosen in (("backbone", backbones), ("target", targets), ("probe", names)):
        shown = shown[shown[column].isin(chosen)] if chosen else shown
    if as_json:
        emit_json(
            {
                "results": str(done.path),
                "rows_added": added,
                "seconds": seconds,
                "missing": missing,
                "rows": shown.to_dict("records"),
            }
        )
        return
    shown = shown.sort_values(["target", "probe", "value"], ascending=[True, True, False])
    print_table(
        ["target", "score", "backbone", "value", "95 %", "images"],
        [
            [r.target, r.probe, r.backbone, f"{r.value:.4f}", "" if r.low != r.low else f"{r.low:.4f} … {r.high:.4f}", r.n_queries]
            for r in shown.itertuples()
        ],
        right=("value", "95 %"),
    )  # fmt: skip
    for reason in dict.fromkeys(f"{m['score']} of {m['backbone']} on {m['target']}: {m['reason']}" for m in missing):
        say(reason)
    say(f"{added} rows added in {seconds:.1f} s; results lie in {done.path}")


def _head_of(store: Any, backbone: str, target: str, data_root: Path) -> Callable[[], Any]:
    """What reads the head that a backbone came with, when it is asked for."""

    def read() -> Any:
        from fastxfer.backbones.heads import source_head
        from fastxfer.registered import files_of

        array = store.stored(backbone, target)
        ckpt, _ = files_of(str(array.attributes.get("checkpoint", "")), data_root)
        return source_head(ckpt, array.attributes, array.shape[1])

    return read
