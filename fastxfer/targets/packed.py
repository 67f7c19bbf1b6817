"""Data sets that are a file or a few: ``.npz`` in MedMNIST's layout, Parquet and Arrow tables with an image column.

Both become a table whose paths lead into the file (``bloodmnist.npz/train_images/12``), read on as any other table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastxfer.errors import DataError
from fastxfer.images import count_rows, members, tables
from fastxfer.targets.csvfile import Table
from fastxfer.targets.labels import NO_FINDING, PREFIX, SEPARATOR
from fastxfer.targets.leftout import LeftOut
from fastxfer.targets.listing import SPLIT_WORDS
from fastxfer.targets.table import ABOUT, SPLITS

_IMAGE_NAMES = ("image", "img")
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")  # number of a shard, at the end of a file's name


@dataclass(frozen=True)
class PackedTable(Table):
    """A table of images inside files; messages call a row by its image's address, which is its first cell."""

    def where(self, i: int) -> str:
        """``"data/bloodmnist.npz/train_images/12"`` for the i-th row."""
        return f"{self.file}/{self.rows[i][0]}"

    def left_out(self, rows: Sequence[int], reason: str) -> LeftOut:
        """That these images were left out, by their addresses."""
        return LeftOut(reason, str(self.file), paths=[self.rows[i][0] for i in rows])


def read_npz(file: Path) -> PackedTable:
    """Images and labels of an ``.npz`` in MedMNIST's layout (Yang et al., Scientific Data 2023).

    Arrays ``train_images`` (n, h, w) or (n, h, w, 3) and ``train_labels``, and the same of val and test. Labels (n, 1)
    or (n,) are the numbers of classes, which become names ("0", or "00" where there are more than ten); labels
    (n, c) are 0 or 1, a column a label. `DataError` for anything else, pickles above all.
    """
    shapes = members(file)
    paths: list[str] = []
    split: list[str] = []
    labels = []
    for part in SPLITS:
        images, marks = f"{part}_images", f"{part}_labels"
        if images not in shapes and marks not in shapes:
            continue
        n, *size = shapes.get(images, (0,))
        if len(size) != 2 and not (len(size) == 3 and size[2] in (1, 3)):
            raise DataError(f"{file}: '{images}' is {shapes.get(images)}; expected images (n, h, w) or (n, h, w, 3)")
        shape = shapes.get(marks)
        if shape is None or len(shape) not in (1, 2) or shape[0] != n or 0 in shape:
            raise DataError(f"{file}: '{marks}' is {shape}; expected ({n}, 1), or ({n}, c) of 0 and 1")
        paths += [f"{file.name}/{images}/{i}" for i in range(n)]
        split += [part] * n
        labels.append(_array(file, marks).reshape(n, -1))
    if not paths:
        raise DataError(
            f"{file}: holds {', '.join(sorted(shapes)) or 'nothing'}; expected train_images and train_labels, and the "
            "same of val and test, as in MedMNIST"
        )
    return _table(file.parent, {"path": paths, **_number_columns(file, labels), "split": split})


def read_shards(files: Sequence[Path], root: Path, columns: Sequence[str]) -> PackedTable:
    """Images and labels of Parquet or Arrow tables, as Hugging Face writes them: one file, or shards below `root`.

    The image column holds bytes, or a struct with `bytes`. columns: which others are wanted (labels, a group), besides
    split, patient, study, view and source, which are taken where they are. Names of classes come from the
    ``huggingface`` entry of the schema; lists of labels become "A|B". Where every file's name begins or ends with a split, as in
    ``train-00000-of-00002.parquet`` or ``beans-train.arrow``, or its folder is called so, that is the split.
    """
    content: dict[str, list[str]] = {}
    words = [_split_of(file.relative_to(root)) for file in files]
    if any(words) and not all(words):
        raise DataError(
            f"{files[words.index('')]}: other files say their split by their name, this one doesn't; rename or move it"
        )
    image = ""
    for file, word in zip(files, words, strict=True):
        part, image = _read_shard(file, root, columns, image)
        if word:
            part["split"] = [word] * len(part["path"])
        if content and content.keys() != part.keys():
            odd = ", ".join(sorted(content.keys() ^ part.keys()))
            raise DataError(f"{file}: its columns differ from those of {files[0]} ({odd})")
        for column, cells in part.items():
            content.setdefault(column, []).extend(cells)
    return _table(root, content)


def _array(file: Path, member: str) -> Any:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[member]
    except Exception as error:  # zip, zlib and NumPy raise what they trip over
        raise DataError(f"{file}: '{member}' cannot be read ({error})") from error


def _number_columns(file: Path, parts: list[Any]) -> dict[str, list[str]]:
    """Title -> cells of the label columns of MedMNIST's numbers, (n, 1) or (n, c) a split."""
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"{file}: the labels of its splits have different numbers of columns")
    values = np.concatenate(parts)
    if values.dtype.kind not in "iub" or values.min() < 0:
        raise DataError(f"{file}: its labels are {values.dtype}, from {values.min()}; expected whole numbers from 0 up")
    several = values.shape[1] > 1
    if several and values.max() > 1:
        raise DataError(f"{file}: labels in {values.shape[1]} columns go up to {values.max()}; expected 0 and 1")
    largest = values.shape[1] - 1 if several else int(values.max())
    digits = len(str(largest))  # names of equal length are sorted as the numbers are
    if not several:
        return {"label": [f"{k:0{digits}}" for k in values[:, 0].tolist()]}
    return {f"{PREFIX}{k:0{digits}}": [str(int(v)) for v in values[:, k]] for k in range(values.shape[1])}


def _split_of(path: Path) -> str:
    """The split that a file's name begins or ends with, or its folder's name is; "" for none."""
    first, *rest = re.split(r"[-_.]", _SHARD.sub("", path.stem.lower()))
    words = (first, *rest[-1:], path.parent.name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def _read_shard(file: Path, root: Path, columns: Sequence[str], image: str) -> tuple[dict[str, list[str]], str]:
    """Title -> cells, and the name of the image column (`image`, where another file has told)."""
    schema = tables.read_schema(str(file))
    image = image or _image_column(file, schema, columns)
    there = [c for c in dict.fromkeys([*columns, *ABOUT, "split"]) if c in schema.names]
    there += [c for c in schema.names if c.startswith(PREFIX)]
    table = tables.read_columns(str(file), there)
    if image not in schema.names:
        raise DataError(f"{file}: no column '{image}'; the columns are: {', '.join(schema.names)}")
    if columns == ["label"] and "label" not in there and not any(c.startswith(PREFIX) for c in there):
        raise DataError(
            f"{file}: no column 'label'; say which with --label-column; the columns are: {', '.join(schema.names)}"
        )
    names = _class_names(file, schema)
    start = f"{file.relative_to(root).as_posix()}/{image}"
    part = {"path": [f"{start}/{i}" for i in range(count_rows(file))]}
    for column in there:
        write = _writer(names.get(column))
        try:
            part[column] = [write(value) for value in table.column(column).to_pylist()]
        except (IndexError, TypeError, ValueError) as error:
            raise DataError(f"{file}: column '{column}' holds other values than its type says ({error})") from error
    return part, image


def _image_column(file: Path, schema: Any, columns: Sequence[str]) -> str:
    import pyarrow.types as types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in schema if holds_images(field.type) and field.name not in columns]
    usual = [name for name in found if name in _IMAGE_NAMES] or found
    if len(usual) != 1:
        what = (
            f"several image columns: {', '.join(found)}"
            if found
            else f"no image column among {', '.join(schema.names)}"
        )
        raise DataError(
            f"{file}: {what}; expected one with bytes, or a struct with bytes, called 'image' if there are several"
        )
    return usual[0]


def _class_names(file: Path, schema: Any) -> dict[str, list[str]]:
    """Column -> names of its numbers, from what Hugging Face's `datasets` writes into the schema."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = json.loads(raw)["info"]["features"]
        found = {}
        for column, feature in features.items():
            inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
            if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
                found[column] = [str(name) for name in inner["names"]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{file}: its 'huggingface' entry cannot be read ({error!r})") from error
    return found


def _writer(names: Sequence[str] | None) -> Callable[[Any], str]:
    """How a column's values become cells; `names` of its numbers, of which −1 means none."""

    def write(value: Any) -> str:
        if value is None or (names and value == -1):
            return ""
        if isinstance(value, list):
            return SEPARATOR.join(map(write, value)) or NO_FINDING
        if names and isinstance(value, int):
            if value < 0:
                raise ValueError(f"class {value} of {len(names)}")
            return names[value]
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return str(value).strip()

    return write


def _table(root: Path, content: dict[str, list[str]]) -> PackedTable:
    rows = list(zip(*content.values(), strict=True))
    if not rows:
        raise DataError(f"{root}: the table has no rows")
    return PackedTable(root, tuple(content), rows, list(range(len(rows))))
