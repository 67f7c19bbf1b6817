"""`fastxfer targets`: list, show, add and check data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastxfer.cli.check import check
from fastxfer.cli.common import ManyValues, data_root_option, emit_json, json_option, print_table
from fastxfer.cli.reading import given, pixel_options, reading_options


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
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER|FILE")
@click.option("--name", required=True, help="What to call it: letters, digits, '.', '_', '-'.")
@click.option(
    "--label-column",
    default="label",
    show_default=True,
    help="Column of the table that holds the label; or several, A,B,C: a column a label, with 0 to 1 or nothing.",
)
@click.option(
    "--missing-labels",
    type=click.Choice(["unknown", "drop", "error"]),
    help="What a blank label means.  [default: error; unknown in a column a label]",
)
@click.option(
    "--group", help="Column of what must not be torn apart: a patient, a drawer, a video.  [default: patient]"
)
@click.option(
    "--pattern",
    help="What the paths in FOLDER say, as in '{split}/{label}/{patient}_*.jpg'; '**' spans folders.",
)
@click.option(
    "--split-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of a split made here."
)
@click.option(
    "--test-fraction", type=float, default=0.2, show_default=True, help="Share of test images in a split made here."
)
@click.option("--val", "val_fraction", type=float, help="Share of the train images that becomes val.  [default: none]")
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
@pixel_options
@data_root_option
@json_option
def add(
    source: Path,
    name: str,
    label_column: str,
    missing_labels: str | None,
    group: str | None,
    pattern: str | None,
    split_seed: int,
    test_fraction: float,
    val_fraction: float | None,
    root: Path | None,
    multi_label: bool | None,
    replace: bool,
    data_root: Path,
    as_json: bool,
    **meaning: str | None,
) -> None:
    """Add a data set under a name. No image is copied or changed.

    FOLDER holds a labels.csv, or one folder a class, or train/ and test/ (and val/) with one folder a class each, or
    Parquet or Arrow shards; or --pattern says what its paths mean. FILE is a CSV with the columns path, label and, if known,
    split, patient, study, view and source; an .npz in MedMNIST's layout; a .parquet or .arrow with an image column; or a .tar. Labels like
    "Mass|Edema" make it multi-label ("No Finding": none of them), so does a column a label. Without a split one is made:
    stratified, no patient on both sides.

    \b
    Example:
      fastxfer targets add xrays/ --name xrays --label-column subtype
      fastxfer targets add tables/photos.csv --root /data/photos --name photos
      fastxfer targets add cxr.csv --name cxr --label-column Mass,Edema --missing-labels drop --group film_drawer
      fastxfer targets add photos/ --name photos --pattern '{split}/{label}/{patient}_*.jpg' --val 0.1
      fastxfer targets add bloodmnist.npz --name blood
      fastxfer targets add beans/ --name beans --label-column labels   # train-00000-of-00001.parquet …
    """
    from fastxfer.images import Pixels
    from fastxfer.targets import add_target, describe_target

    target = add_target(
        source,
        name,
        data_root,
        label_column=label_column,
        missing_labels=missing_labels,
        group=group,
        pattern=pattern,
        split_seed=split_seed,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        root=root,
        multi_label=multi_label,
        pixels=Pixels(**given(meaning)),
        replace=replace,
    )
    summary = describe_target(target)
    if as_json:
        emit_json(summary)
        return
    splits = ", ".join(f"{count:,} {split}" for split, count in summary["splits"].items())
    kind = "labels (several an image)" if target.multi_label else "classes"
    click.echo(f"{name}: {target.n_images:,} images ({splits}), {len(target.class_names):,} {kind}")
    if summary["n_left_out"]:
        click.echo(f"left out: {summary['n_left_out']:,}; `fastxfer targets show {name} --json` lists all of it")


@targets.command(cls=ManyValues)
@click.argument("name")
@click.argument("base")
@reading_options
@click.option("--replace", is_flag=True, help="Replace what was defined under this name.")
@data_root_option
def define(name: str, base: str, replace: bool, data_root: Path, **options: Any) -> None:
    """Name a built-in target, or a merge, as read with options: NAME then works in all commands.

    \b
    Example:
      fastxfer targets define chexpert-ones chexpert --policy ones --view AP PA L
      fastxfer targets define cxr3 chexpert+mimic-cxr+nih14 --labels union
    """
    from fastxfer.targets import define_target

    target = define_target(name, base, data_root, replace=replace, **given(options))
    click.echo(f"{name}: {target.n_images:,} images, {target.notes[0]}")


@targets.command()
@click.argument("name", type=click.Choice(["cifar10", "cifar100"]))
@data_root_option
def export(name: str, data_root: Path) -> None:
    """Write CIFAR's images as PNG files, once, from the pickles of the release in <data root>/NAME.

    Pickles can run code: they are opened (by torchvision) only if their MD5 is the release's.

    \b
    Example:
      fastxfer targets export cifar10
    """
    from fastxfer.targets.cifar import export as export_cifar

    click.echo(f"{name}: {export_cifar(data_root / name, name):,} images written to {data_root / name}")


@targets.command(cls=ManyValues)
@click.argument("name")
@reading_options
@click.option("--labels-only", is_flag=True, help="Built-in targets: read the label tables, don't look for the images.")
@data_root_option
@json_option
def show(name: str, data_root: Path, as_json: bool, **options: Any) -> None:
    """Show what a target holds: splits, labels, patients, and what was decided on the way.

    \b
    Example:
      fastxfer targets show padchest-cl --labels-only --json
      fastxfer targets show chexpert --policy ones --view AP PA L
      fastxfer targets show chexpert+nih14+padchest --labels union --labels-only
    """
    from fastxfer.targets import describe_target, load_target

    summary = describe_target(load_target(name, data_root, **given(options)))
    if as_json:
        emit_json(summary)
        return
    splits = ", ".join(f"{count:,} {split}" for split, count in summary["splits"].items())
    click.echo(f"{name}: {summary['n_images']:,} images ({splits})")
    click.echo(f"root: {summary['root']}")
    patients = summary["patients"]
    click.echo(f"patients: {'unknown' if patients is None else format(patients, ',')}")
    for what in ("views", "sources"):
        if summary[what]:
            click.echo(f"{what}: {', '.join(f'{value} {count:,}' for value, count in summary[what].items())}")
    click.echo(f"fingerprint: {summary['fingerprint']}")
    for note in summary["notes"]:
        click.echo(f"note: {note}")
    if summary["n_left_out"]:
        click.echo(f"left out: {summary['n_left_out']:,}; --json lists all of it, by reason, as `left_out`")
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


targets.add_command(check)
