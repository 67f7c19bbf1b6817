"""`fastxfer targets`: list, show, add and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table, store_option
from fastxfer.errors import UsageError

if TYPE_CHECKING:
    from fastxfer.targets import Target


@click.group()
def targets() -> None:
    """List, show, add and check targets (data sets).

    \b
    Example:
      fastxfer targets add photos/ --name photos        # class folders, or a labels.csv inside
      fastxfer targets show photos
      fastxfer targets check photos
    """


@targets.command()
@data_root_option
@json_option
def ls(data_root: Path, as_json: bool) -> None:
    """List the targets: those that were added, then the built-in ones and where their files belong.

    \b
    Example:
      fastxfer targets ls
    """
    from fastxfer.targets import list_targets

    rows = list_targets(data_root)
    if as_json:
        emit_json(rows)
        return
    print_table(
        ["target", "kind", "here", "images", "classes", "where"],
        [
            [
                row["name"],
                row["kind"],
                "yes" if row["available"] else "no",
                "" if row["n_images"] is None else row["n_images"],
                "" if row["n_classes"] is None else row["n_classes"],
                row["where"],
            ]
            for row in rows
        ],
    )


@targets.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER|CSV")
@click.option("--name", required=True, help="What to call it: letters, digits, '.', '_', '-'.")
@click.option("--label-column", default="label", show_default=True, help="Column of the table that holds the label.")
@click.option(
    "--split-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of a split made here."
)
@click.option(
    "--test-fraction", type=float, default=0.2, show_default=True, help="Share of test images in a split made here."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that the paths of a CSV start from.  [default: the CSV's folder]",
)
@click.option(
    "--multi-label/--single-label",
    default=None,
    help="Whether 'A|B' means two labels.  [default: yes, if any label holds a '|']",
)
@click.option("--replace", is_flag=True, help="Replace what was added under this name.")
@data_root_option
@json_option
def add(
    source: Path,
    name: str,
    label_column: str,
    split_seed: int,
    test_fraction: float,
    root: Path | None,
    multi_label: bool | None,
    replace: bool,
    data_root: Path,
    as_json: bool,
) -> None:
    """Add a data set under a name. No image is copied or changed.

    FOLDER holds a labels.csv, or one folder a class, or train/ and test/ (and val/) with one folder a class each. CSV
    has the columns path, label and, if known, split and patient. Labels like "Mass|Edema" make it multi-label ("No
    Finding": none of them). Without a split one is made: stratified, no patient on both sides.

    \b
    Example:
      fastxfer targets add xrays/ --name xrays --label-column subtype
      fastxfer targets add tables/photos.csv --root /data/photos --name photos
    """
    from fastxfer.targets import add_target, describe_target

    target = add_target(
        source,
        name,
        data_root,
        label_column=label_column,
        split_seed=split_seed,
        test_fraction=test_fraction,
        root=root,
        multi_label=multi_label,
        replace=replace,
    )
    summary = describe_target(target)
    if as_json:
        emit_json(summary)
        return
    splits = ", ".join(f"{count:,} {split}" for split, count in summary["splits"].items())
    kind = "labels (several an image)" if target.multi_label else "classes"
    click.echo(f"{name}: {target.n_images:,} images ({splits}), {len(target.class_names):,} {kind}")


@targets.command(cls=ManyValues)
@click.argument("name")
@click.option("--policy", help="How a built-in target reads uncertain labels, e.g. ignore, ones, zeros, blank-zeros.")
@click.option("--view", "views", multiple=True, help="Views of a built-in X-ray target, e.g. AP PA.")
@click.option("--labels-only", is_flag=True, help="Built-in targets: read the label tables, don't look for the images.")
@data_root_option
@json_option
def show(
    name: str, policy: str | None, views: tuple[str, ...], labels_only: bool, data_root: Path, as_json: bool
) -> None:
    """Show what a target holds: splits, labels, patients, and what was decided on the way.

    \b
    Example:
      fastxfer targets show nih14 --labels-only --json
      fastxfer targets show chexpert --policy ones --view AP PA L
    """
    from fastxfer.targets import describe_target, load_target

    options: dict[str, Any] = {}
    if policy:
        options["policy"] = policy
    if views:
        options["views"] = views
    if labels_only:
        options["labels_only"] = True
    summary = describe_target(load_target(name, data_root, **options))
    if as_json:
        emit_json(summary)
        return
    splits = ", ".join(f"{count:,} {split}" for split, count in summary["splits"].items())
    click.echo(f"{name}: {summary['n_images']:,} images ({splits})")
    click.echo(f"root: {summary['root']}")
    patients = summary["patients"]
    click.echo(f"patients: {'unknown' if patients is None else format(patients, ',')}")
    click.echo(f"fingerprint: {summary['fingerprint']}")
    for note in summary["notes"]:
        click.echo(f"note: {note}")
    counts = summary["labels"]
    any_unknown = any(c["unknown"] for labels in counts.values() for c in labels.values())
    columns = [f"{split}{' +/-/?' if any_unknown else ''}" for split in counts]

    def cell(count: dict[str, int]) -> Any:
        if any_unknown:
            return " / ".join(f"{count[key]:,}" for key in ("positive", "negative", "unknown"))
        return count["positive"]

    print_table(
        ["label", *columns],
        [[label, *(cell(labels[label]) for labels in counts.values())] for label in summary["classes"]],
    )


@targets.command(cls=ManyValues)
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
@store_option
@data_root_option
@json_option
def check(
    names: tuple[str, ...], source: str | None, backbones: tuple[str, ...], cosine: float | None, save: bool,
    store_path: str, data_root: Path, as_json: bool,
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

    named = [*names, source] if source else [*names]
    if len(set(named)) < len(named):
        raise UsageError(f"a target is named twice: {' '.join(named)}")
    if cosine is not None and not backbones:
        raise UsageError("--cosine goes with --backbone, whose embeddings it is about")
    loaded = [load_target(name, data_root) for name in names]
    neighbours = _neighbours(loaded, backbones, cosine, store_path) if backbones else None
    report = check_targets(loaded, source=load_target(source, data_root) if source else None)
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
    from fastxfer.evaluation import backbones_of
    from fastxfer.store import EmbeddingStore
    from fastxfer.targets.check import NEIGHBOUR, find_neighbours

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
    def list_some(lines: list[str], limit: int = 10) -> None:
        for line in lines[:limit]:
            click.echo(f"  {line}")
        if len(lines) > limit:
            click.echo(f"  … and {len(lines) - limit:,} more (--json lists all)")

    click.echo(f"undecodable images: {report['n_undecodable']:,}")
    list_some([entry["error"] for entry in report["undecodable"]])

    groups = report["duplicate_groups"]
    crossing = sum(group["across_splits"] for group in groups)
    click.echo(
        f"duplicates: {report['duplicate_images']:,} images in {len(groups):,} groups of identical images; "
        f"{crossing:,} groups across splits, {sum(g['across_targets'] for g in groups):,} across targets, "
        f"{sum(g['labels_differ'] for g in groups):,} with different labels"
    )
    list_some(
        [
            f"same {group['same']}{', ACROSS SPLITS' if group['across_splits'] else ''}: "
            + " = ".join(f"{i['target']}:{i['image']} ({i['split']})" for i in group["images"])
            for group in sorted(groups, key=lambda group: not group["across_splits"])
        ]
    )

    near = report["near_duplicates"]
    click.echo(
        f"near duplicates: {report['n_near_duplicates']:,} pairs of images that look alike; "
        f"{sum(pair['across_splits'] for pair in near):,} across splits, "
        f"{sum(pair['across_targets'] for pair in near):,} across targets, "
        f"{sum(pair['labels_differ'] for pair in near):,} with different labels"
    )
    list_some(
        [
            f"distance {pair['distance']:.3f}{', ACROSS SPLITS' if pair['across_splits'] else ''}: "
            + " ~ ".join(f"{i['target']}:{i['image']} ({i['split']})" for i in pair["images"])
            for pair in sorted(near, key=lambda pair: not pair["across_splits"])
        ]
    )

    for what in ("patients", "studies"):
        click.echo(f"{what} in more than one split: {report[f'{what}_in_both']:,}")
        list_some(
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
        click.echo(f"  {leak['target']}, of {leak['test_images']:,}: {', '.join(words)}")

    if "source" in report:
        click.echo(f"images that {report['source']} contains: {report['n_source_images']:,}")
        list_some(
            [
                f"distance {i['distance']:.3f}: {i['target']}:{i['image']} ({i['split']}) ~ {i['source_image']}"
                for i in sorted(report["source_images"], key=lambda i: i["distance"])
            ]
        )

    for found in report.get("embedding_neighbours", []):
        click.echo(
            f"neighbours across splits, {found['target']} by {found['backbone']}: {found['n_pairs']:,} pairs with a "
            f"cosine of at least {found['threshold']}; {found['test_images']:,} test images have one in train or val"
        )
        list_some(
            [
                f"cosine {pair['cosine']:.3f}: " + " ~ ".join(f"{i['image']} ({i['split']})" for i in pair["images"])
                for pair in found["pairs"]
            ]
        )

    click.echo("shortcuts: mean AUC at which the label is told from what the image is not about (0.5: chance)")
    for target in report["shortcut_auc"]:
        words = [f"{trait} {found['auc']:.2f}" for trait, found in target["auc"].items()]
        click.echo(f"  {target['target']}: {', '.join(words) or 'too few images to say'}")
        list_some(
            [
                f"WARNING, {'traits together' if flag['trait'] == 'all' else flag['trait'] + ' alone'} predict "
                f"{'the label' if flag['label'] is None else flag['label']}: "
                f"AUC {flag['auc']:.2f} ± {flag['error']:.2f}, far above chance"
                for flag in target["flagged"]
            ]
        )

    empty = report["empty_classes"]
    click.echo(f"labels without an image in a split: {sum(len(entry['labels']) for entry in empty):,}")
    list_some([f"{entry['target']}, {entry['split']}: {', '.join(entry['labels'])}" for entry in empty])
