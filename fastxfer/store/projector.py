"""Embeddings for TensorBoard's Embedding Projector: a folder that `tensorboard --logdir` shows as it is.

Format: projector_config.proto and what TensorBoard's projector plugin reads (github.com/tensorflow/tensorboard,
tensorboard/plugins/projector): values and columns as tables with tabs between, the config as a protobuf's text.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastxfer.errors import DataError
from fastxfer.files import whole_file, write_whole
from fastxfer.images import load_image
from fastxfer.progress import progress
from fastxfer.targets.table import Target

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore

MOST_POINTS = 100_000
"""TensorBoard asks for no more rows than this."""
SHEET = 8192
"""Pixels along a side of the largest sprite sheet that the projector takes."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class Projected:
    """What was written: files by name, how many rows of how many, pixels a thumbnail has (0: there are none)."""

    files: tuple[str, ...]
    n_points: int
    n_images: int
    thumbnail: int


def export_projector(
    store: EmbeddingStore,
    backbone: str,
    target: str,
    out: Path,
    *,
    points: int = 10_000,
    seed: int = 0,
    paths: bool = False,
    images: Path | None = None,
    thumbnail: int = 64,
    url: str | None = None,
) -> Projected:
    """Write tensors.tsv, metadata.tsv and projector_config.pbtxt to the folder `out`, the config last.

    points: rows written, drawn at random by `seed` where there are more;  paths: a column of the images' paths, too
    images: the target's root, for a sprite sheet of thumbnails, `thumbnail` pixels wide or as many as fit the sheet
    url:    where the folder will be served: writes projector_config.json with addresses below it, for
            projector.tensorflow.org/?config=URL/projector_config.json

    Patients are never written. DataError if rows are missing or damaged, an image cannot be read, or dim is 1.
    """
    table, rows = store.target(target), store.array(backbone, target)
    n, dim = rows.shape
    if dim < 2:
        raise DataError(f"embeddings of '{target}' by '{backbone}' have one dimension; the projector takes two or more")
    count = min(n, points, MOST_POINTS)
    chosen = np.sort(np.random.default_rng(seed).choice(n, count, replace=False)) if count < n else np.arange(n)
    table = table.take(chosen)

    _write_tensors(out / "tensors.tsv", rows, chosen)
    write_whole(out / "metadata.tsv", _metadata(table, chosen, paths).encode())
    files = ["tensors.tsv", "metadata.tsv"]
    side = 0
    if images is not None:
        side = min(thumbnail, SHEET // _across(count))
        _write_sprites(out / "sprite.png", table, images, side)
        files.append("sprite.png")

    write_whole(out / "projector_config.pbtxt", _pbtxt(f"{backbone} on {target}", count, dim, side).encode())
    files.append("projector_config.pbtxt")
    if url is not None:
        config = _json(f"{backbone} on {target}", count, dim, side, url.rstrip("/"))
        write_whole(out / "projector_config.json", json.dumps(config, indent=2).encode())
        files.append("projector_config.json")
    return Projected(tuple(files), count, n, side)


def _write_tensors(path: Path, rows: Any, chosen: NDArray[np.int64]) -> None:
    """A row a line, tabs between values, shortest decimals that give the same float32."""
    import pyarrow as pa
    from pyarrow import csv

    options = csv.WriteOptions(include_header=False, delimiter="\t")
    with whole_file(path) as file:
        for start in range(0, len(chosen), _AT_ONCE):
            values = np.ascontiguousarray(rows[chosen[start : start + _AT_ONCE]].astype(np.float32).T)
            columns = {str(i): column for i, column in enumerate(values)}
            csv.write_csv(pa.table(columns), file, options)


def _metadata(table: Target, chosen: NDArray[np.int64], paths: bool) -> str:
    """Columns label, split, row, those of ABOUT that say nothing of who it is, and one a label of a multi-label target."""
    columns: dict[str, list[str]] = {"label": _labels(table), "split": table.split.tolist()}
    columns["row"] = [str(row) for row in chosen.tolist()]
    for name in ("view", "source"):
        if getattr(table, name) is not None:
            columns[name] = getattr(table, name).tolist()
    if table.multi_label:
        for i, name in enumerate(table.class_names):
            known = table.labels[:, i].tolist()
            columns[f"label: {name}"] = ["" if math.isnan(value) else f"{value:g}" for value in known]
    if paths:
        columns["path"] = table.image_id.tolist()
    lines = zip(*([_cell(name), *map(_cell, values)] for name, values in columns.items()), strict=True)
    return "".join("\t".join(line) + "\n" for line in lines)


def _labels(table: Target) -> list[str]:
    if not table.multi_label:
        return np.array(table.class_names)[table.labels].tolist()
    positive = table.labels > 0.5
    return [", ".join(table.class_names[i] for i in np.flatnonzero(row)) or "no label" for row in positive]


def _cell(text: str) -> str:
    """What separates cells and lines cannot be written in one: it becomes a blank."""
    return re.sub(r"[\t\r\n]+", " ", text)


def _across(count: int) -> int:
    """Thumbnails along a side of the sheet. It is square: the projector's shader divides by the wrong one if it isn't."""
    return math.isqrt(count - 1) + 1


def _write_sprites(path: Path, table: Target, root: Path, side: int) -> None:
    across = _across(table.n_images)
    sheet = Image.new("RGB", (across * side, across * side), "white")
    with progress(f"thumbnails of {table.name}", table.n_images, "images") as advance:
        for i, name in enumerate(table.image_id.tolist()):
            image = load_image(os.path.join(root, name), pixels=table.pixels)
            image.thumbnail((side, side))
            left, top = i % across * side, i // across * side
            sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
            advance(1)
    with whole_file(path) as file:
        sheet.save(file, "PNG")


def _pbtxt(name: str, count: int, dim: int, side: int) -> str:
    # Names of backbones and targets hold nothing that would need escaping.
    lines = [f'tensor_name: "{name}"', f"tensor_shape: {count}", f"tensor_shape: {dim}"]
    lines += ['tensor_path: "tensors.tsv"', 'metadata_path: "metadata.tsv"']
    if side:
        size = f"single_image_dim: {side} single_image_dim: {side}"
        lines.append(f'sprite {{ image_path: "sprite.png" {size} }}')
    return "embeddings {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _json(name: str, count: int, dim: int, side: int, url: str) -> dict[str, Any]:
    embedding: dict[str, Any] = {
        "tensorName": name,
        "tensorShape": [count, dim],
        "tensorPath": f"{url}/tensors.tsv",
        "metadataPath": f"{url}/metadata.tsv",
    }
    if side:
        embedding["sprite"] = {"imagePath": f"{url}/sprite.png", "singleImageDim": [side, side]}
    return {"embeddings": [embedding]}
