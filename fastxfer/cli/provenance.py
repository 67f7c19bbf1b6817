"""`fastxfer store show`: all that is known of one array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import emit_json, json_option, percent_done, size_words, store_option

if TYPE_CHECKING:
    from fastxfer.store import EmbeddingStore

_SHOWN = 10  # rows or ranges that are named before it says how many more there are


@click.command()
@click.argument("backbone")
@click.argument("target")
@store_option
@json_option
def show(backbone: str, target: str, store_path: str, as_json: bool) -> None:
    """Tell all that is known of one array: which weights, which pixels, which images, which code, when, how complete.

    \b
    Example:
      fastxfer store show resnet50 photos
    """
    from fastxfer.store import EmbeddingStore

    told = provenance(EmbeddingStore.open(store_path), backbone, target)
    if as_json:
        emit_json(told)
        return
    click.secho(f"{backbone} on {target}", bold=True)
    for title, lines in sections(told):
        click.echo("")
        click.secho(title, bold=True)
        width = max(len(what) for what, _ in lines)
        for what, value in lines:
            click.echo(f"  {what:{width}}  {value}".rstrip())


def provenance(store: EmbeddingStore, backbone: str, target: str) -> dict[str, Any]:
    """Everything that the store knows of an array, the attributes that its run left included."""
    array = store.stored(backbone, target)  # says what there is instead
    (entry,) = (e for e in store.entries(target) if e.backbone == backbone)
    missing = array.missing()
    undecodable = store.bad_images(target)
    return {
        "store": store.path,
        "format": store.version,
        "path": array.path,
        "backbone": backbone,
        "target": target,
        "n_images": entry.n_images,
        "n_present": entry.n_present,
        "left_out": len(undecodable),
        "dim": entry.dim,
        "bytes": entry.bytes,
        "target_fingerprint": store.fingerprint(target),
        "files_digest": store.files_digest(target),
        "block_rows": array.block_rows,
        "blocks": len(array.blocks),
        "blocks_present": len(array.blocks) - len(missing),
        "missing_rows": [[rows.start, rows.stop] for rows in missing],
        "undecodable": undecodable,
        **entry.attrs,
        "dtype": entry.dtype,
        "complete": entry.complete,
    }


def sections(told: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """`provenance` for people: titles, each with lines of what and value; what nobody recorded is "unknown"."""
    seen = {"backbone", "target", "complete", "n_timed", "left_out", "store"}

    def of(key: str) -> Any:
        seen.add(key)
        value = told.get(key)
        return "unknown" if value in (None, "") else value

    def number(key: str, unit: str) -> str:
        value = of(key)
        return f"{value:,.{0 if value >= 100 else 1}f} {unit}" if isinstance(value, int | float) else str(value)

    missing = [f"{start:,} to {stop - 1:,}" for start, stop in of("missing_rows")]
    undecodable = [f"{row}: {why}" for row, why in of("undecodable").items()]
    n, there = of("n_images"), of("n_present")
    arguments = of("arch_args")
    found = [
        (
            "Backbone",
            [
                ("identity", of("identity")),
                ("checkpoint", of("checkpoint")),
                ("weights SHA-256", of("weights_sha256")),
                ("trained on", of("source")),
                ("architecture", of("architecture")),
                ("arguments", _pairs(arguments) if isinstance(arguments, Mapping) else arguments),
                ("weights", number("parameters", "parameters")),
                ("operations", number("flops", "FLOPs an image")),
                ("pooling", of("pooling")),
                *_preprocessing(of("preprocessing")),
            ],
        ),
        (
            "Run",
            [
                ("begun (UTC)", str(of("date"))[:19].replace("T", " ")),
                ("forward passes", number("seconds", "s")),
                ("rate", number("images_per_second", "images/s")),
                ("computed in", of("precision")),
                ("device", of("device")),
                ("threads an image", of("threads")),
                ("batch", of("batch_size")),
                ("fastxfer", of("code_version")),
                ("torch", of("torch_version")),
                ("timm", of("timm_version")),
            ],
        ),
        (
            "Array",
            [
                ("rows", f"{there:,} of {n:,} ({percent_done(there, n)})"),
                ("missing rows", _some(missing)),
                ("undecodable", _some(undecodable)),
                ("dim", f"{of('dim'):,}"),
                ("dtype", of("dtype")),
                ("blocks", f"{of('blocks_present'):,} of {of('blocks'):,}, of {of('block_rows'):,} rows"),
                ("size", f"{size_words(of('bytes'))} ({of('bytes'):,} bytes)"),
                ("path", f"{told['store']}/{of('path')}"),
                ("format", of("format")),
            ],
        ),
        (
            "Target",
            [("fingerprint", of("target_fingerprint")), ("files", of("files_digest"))],
        ),
    ]
    more = [(key, value) for key, value in told.items() if key not in seen]
    found += [("More", more)] if more else []
    return [(title, [(what, str(value)) for what, value in lines]) for title, lines in found]


def _preprocessing(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [("preprocessing", value)]
    return [(str(key).replace("_", " "), _words(v)) for key, v in value.items()]


def _pairs(some: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in some.items()) or "none"


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _some(items: Iterable[str]) -> str:
    items = list(items)
    more = f"; and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more if items else "none"
