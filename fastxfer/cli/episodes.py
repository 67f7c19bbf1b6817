"""`fastxfer episodes`: which images an episode is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np

from fastxfer.cli.common import (
    NumberOrAll,
    emit_json,
    episode_options,
    json_option,
    print_table,
    same_options,
    seed_option,
    store_option,
)

if TYPE_CHECKING:
    from fastxfer.episodes import Episodes
    from fastxfer.targets import Target


@click.group()
def episodes() -> None:
    """Show which images an episode is made of.

    \b
    Example:
      fastxfer episodes show --target pets --ways 5 --shots 5 --seed 0 --episode 4711
    """


@episodes.command()
@click.option("--target", "target_name", required=True, metavar="T", help="Target of the store.")
@click.option("--episode", type=click.IntRange(min=0), required=True, metavar="E", help="Its number, from 0.")
@click.option("--ways", type=NumberOrAll(), help="As for `fewshot`.")
@click.option("--shots", type=int, required=True, metavar="K", help="Support images a class.")
@click.option("--queries", type=NumberOrAll(), help="As for `fewshot`.")
@click.option(
    "--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="Where queries come from."
)
@episode_options
@click.option(
    "--at-least",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Leave out classes with fewer train images; after `fewshot --drop-scarce`, the at_least=N of its rows' params.",
)
@store_option
@same_options
@seed_option
@json_option
def show(
    target_name: str, episode: int, ways: int | Literal["all"] | None, shots: int, queries: int | Literal["all"] | None,
    split: str, labels: str, query_prior: str, imbalance: float | None, fewer_queries: bool, at_least: int,
    store_path: str, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Print support and queries of one episode: rows of the store's target, image paths, labels.

    The options are those of `fewshot`; the hash printed is the `episodes_hash` of the rows that were made from it.

    \b
    Example:
      fastxfer episodes show --target pets --ways 5 --shots 5 --seed 0 --episode 4711
    """
    from fastxfer.episodes import sample_episodes
    from fastxfer.protocol import Protocol
    from fastxfer.store import EmbeddingStore

    target = EmbeddingStore.open(store_path).target(target_name)
    protocol = Protocol(
        ways=ways,
        shots=(shots,),
        queries=queries,
        query_split=split,
        labels=labels,
        query_prior=query_prior,
        imbalance=imbalance,
        fewer_queries=fewer_queries,
    )
    spec = replace(protocol.spec(target, shots), at_least=at_least)
    one = sample_episodes(target, spec, seed, 1, first=episode)
    parts = {
        "support": _images(target, one, one.support[0], one.support_labels),
        "query": _images(target, one, one.query[0], one.query_labels),
    }
    if as_json:
        emit_json(
            {
                "target": target.name,
                "ways": spec.ways,
                "shots": spec.shots,
                "queries": spec.queries,
                "split": spec.query_split,
                "at_least": spec.at_least,
                "labels": spec.labels,
                "query_prior": spec.query_prior,
                "imbalance": spec.imbalance,
                "fewer_queries": spec.fewer_queries,
                "seed": seed,
                "episode": episode,
                "episodes_hash": one.hash,
                "classes": [target.class_names[c] for c in one.classes[0]],
                **parts,
            }
        )
        return
    click.echo(f"episode {episode} of {target.name}, seed {seed}, hash {one.hash}\n")
    print_table(
        ["part", "row", "label", "image"],
        [
            [part, str(entry["row"]), _words(entry["label"]), entry["image"]]
            for part, entries in parts.items()
            for entry in entries
        ],
    )


def _images(target: Target, one: Episodes, rows: Any, labels: Any) -> list[dict[str, Any]]:
    """Row, image and label of each image; per label {name: positive or not} of the labels that it is known for."""
    names = [target.class_names[c] for c in one.classes[0]]
    of_row = labels.reshape(len(rows), *labels.shape[-1:] if one.spec.per_label else ())
    return [
        {
            "row": int(row),
            "image": str(target.image_id[row]),
            "label": {n: bool(v) for n, v in zip(names, label, strict=True) if not np.isnan(v)}
            if one.spec.per_label
            else names[label],
        }
        for row, label in zip(rows, of_row, strict=True)
    ]


def _words(label: str | dict[str, bool]) -> str:
    if isinstance(label, str):
        return label
    return ", ".join(f"{name}: {'yes' if positive else 'no'}" for name, positive in label.items())
