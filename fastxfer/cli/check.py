"""`fastxfer targets check`: what would spoil an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table, store_option
from fastxfer.errors import UsageError

if TYPE_CHECKING:
    from fastxfer.targets import Target


@click.command(cls=ManyValues)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--with-source",
    "source",
    metavar="NAME",
    help="A data set that a backbone was trained on: find its images in these.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="B…",
    help="Find neighbours across splits among the embeddings that --store holds by these backbones.",
)
@click.option(
    "--cosine",
    type=click.FloatRange(-1, 1),
    help="Least cosine of embeddings that are called neighbours [default: 0.95].",
)
@click.option("--save", is_flag=True, help="Keep what was found beside the register, for `report` and `--drop-leaks`.")
@click.option("--labels-only", is_flag=True, help="Look at the tables alone: patients, studies, empty classes.")
@store_option
@data_root_option
@json_option
def check(
    names: tuple[str, ...], source: str | None, backbones: tuple[str, ...], cosine: float | None, save: bool,
    labels_only: bool, store_path: str, data_root: Path, as_json: bool,
) -> None:  # fmt: skip
    """Check targets: undecodable images, copies and near copies (also between targets), patients in two splits,
    empty classes.

    Decodes every image. Exits with 0 whatever it finds; the findings are the result.

    \b
    Example:
      fastxfer targets check kermany nih14 --json
      fastxfer targets check photos --with-source imagenet1k --backbone r50x1
    """
    from fastxfer.progress import say
    from fastxfer.targets import check_targets, load_target
    from fastxfer.targets.findings import save_findings
    from fastxfer.targets.register import registered_names

    named = [*names, source] if source else [*names]
    if len(set(named)) < len(named):
        raise UsageError(f"a target is named twice: {' '.join(named)}")
    if cosine is not None and not backbones:
        raise UsageError("--cosine goes with --backbone, whose embeddings it is about")
    if labels_only and (source or backbones or save):
        raise UsageError("--labels-only looks at no image: leave --with-source, --backbone and --save out")
    # An added target is its table; only a reader of files on disk has to be told not to look for the images.
    tables = names if not labels_only else registered_names(data_root)
    loaded = [load_target(name, data_root, **({} if name in tables else {"labels_only": True})) for name in names]
    neighbours = _neighbours(loaded, backbones, cosine, store_path) if backbones else None
    report = check_targets(loaded, source=load_target(source, data_root) if source else None, labels_only=labels_only)
    if neighbours is not None:
        report["embedding_neighbours"] = neighbours
    if save:
        for file in save_findings(data_root, loaded, report):
            say(f"findings kept in {file}")
    if as_json:
        emit_json(report)
        return
    print_table(
        ["target", "images", "splits"],
        [
            [t["name"], t["n_images"], ", ".join(f"{count:,} {s}" for s, count in t["splits"].items())]
            for t in report["targets"]
        ],
    )
    _say_findings(report)


def _neighbours(
    targets: list[Target], backbones: tuple[str, ...], cosine: float | None, store_path: str
) -> list[dict[str, Any]]:
    from fastxfer.holdings import backbones_of
    from fastxfer.store import EmbeddingStore
    from fastxfer.targets.copies import NEIGHBOUR, find_neighbours

    store = EmbeddingStore.open(store_path)
    plan = backbones_of(store, [target.name for target in targets], backbones)
    return [
        {"backbone": backbone}
        | find_neighbours(
            target,
            store.target(target.name).image_id,
            store.embeddings(backbone, target.name),
            NEIGHBOUR if cosine is None else cosine,
        )
        for target in targets
        for backbone in plan[target.name]
    ]


def _say_findings(report: dict[str, Any]) -> None:
    if "undecodable" in report:
        _say_copies(report)
    for what in ("patients", "studies"):
        click.echo(f"{what} in more than one split: {report[f'{what}_in_both']:,}")
        _list(
            [
                f"{entry['target']}: {entry[what]:,} {what}, "
                + " and ".join(
                    f"{len(ids):,} images in {s} ({entry['share'][s]:.1%}; {ids[0]} …)"
                    for s, ids in entry["images"].items()
                )
                for entry in report[f"{what}_in_both_images"]
            ]
        )

    click.echo("test images that training (train or val) has seen:")
    for leak in report["leaks"]:
        words = [
            f"{word} {len(found['images']):,} ({found['share']:.1%})"
            for what, word in (("copy", "copies"), ("patient", "the same patient"), ("study", "the same study"))
            if (found := leak[what]) is not None
        ]
        click.echo(f"  {leak['target']}, of {leak['test_images']:,}: {', '.join(words) or 'nobody looked'}")

    if "source" in report:
        _say_contained(report)
    _say_neighbours(report.get("embedding_neighbours", []))
    _say_shortcuts(report.get("shortcut_auc", []))

    empty = report["empty_classes"]
    click.echo(f"labels without an image in a split: {sum(len(entry['labels']) for entry in empty):,}")
    _list([f"{entry['target']}, {entry['split']}: {', '.join(entry['labels'])}" for entry in empty])


def _say_copies(report: dict[str, Any]) -> None:
    click.echo(f"undecodable images: {report['n_undecodable']:,}")
    _list([entry["error"] for entry in report["undecodable"]])

    groups = report["duplicate_groups"]
    _say_same(
        f"duplicates: {report['duplicate_images']:,} images in {len(groups):,} groups of identical images",
        [(f"same {group['same']}", " = ", group) for group in groups],
    )
    _say_same(
        f"near duplicates: {report['n_near_duplicates']:,} pairs of images that look alike",
        [(f"distance {pair['distance']:.3f}", " ~ ", pair) for pair in report["near_duplicates"]],
    )


def _say_same(head: str, found: list[tuple[str, str, dict[str, Any]]]) -> None:
    """How many of these groups of images cross what they should not, and the groups: their head, their sign, they."""

    def count(what: str) -> str:
        return f"{sum(group[what] for _, _, group in found):,}"

    click.echo(
        f"{head}; {count('across_splits')} across splits, {count('across_targets')} across targets, "
        f"{count('labels_differ')} with different labels"
    )
    _list(
        [
            f"{kind}{', ACROSS SPLITS' if group['across_splits'] else ''}: "
            + sign.join(f"{i['target']}:{i['image']} ({i['split']})" for i in group["images"])
            for kind, sign, group in sorted(found, key=lambda entry: not entry[2]["across_splits"])
        ]
    )


def _say_contained(report: dict[str, Any]) -> None:
    click.echo(f"images that {report['source']} contains: {report['n_source_images']:,}")
    _list(
        [
            f"distance {i['distance']:.3f}: {i['target']}:{i['image']} ({i['split']}) ~ {i['source_image']}"
            for i in sorted(report["source_images"], key=lambda i: i["distance"])
        ]
    )


def _say_neighbours(neighbours: list[dict[str, Any]]) -> None:
    for found in neighbours:
        click.echo(
            f"neighbours across splits, {found['target']} by {found['backbone']}: {found['n_pairs']:,} pairs with a "
            f"cosine of at least {found['threshold']}; {found['test_images']:,} test images have one in train or val"
        )
        _list(
            [
                f"cosine {pair['cosine']:.3f}: " + " ~ ".join(f"{i['image']} ({i['split']})" for i in pair["images"])
                for pair in found["pairs"]
            ]
        )


def _say_shortcuts(shortcuts: list[dict[str, Any]]) -> None:
    if shortcuts:
        click.echo("shortcuts: mean AUC at which the label is told from what the image is not about (0.5: chance)")
    for target in shortcuts:
        words = [f"{trait} {found['auc']:.2f}" for trait, found in target["auc"].items()]
        click.echo(f"  {target['target']}: {', '.join(words) or 'too few images to say'}")
        _list(
            [
                f"WARNING, {'traits together' if flag['trait'] == 'all' else flag['trait'] + ' alone'} predict "
                f"{'the label' if flag['label'] is None else flag['label']}: "
                f"AUC {flag['auc']:.2f} ± {flag['error']:.2f}, far above chance"
                for flag in target["flagged"]
            ]
        )


def _list(lines: list[str], limit: int = 10) -> None:
    for line in lines[:limit]:
        click.echo(f"  {line}")
    if len(lines) > limit:
        click.echo(f"  … and {len(lines) - limit:,} more (--json lists all)")
