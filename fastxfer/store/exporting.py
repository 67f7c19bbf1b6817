"""Embeddings with their table, for other programs: .npz, .parquet, a .npy that can be memory-mapped, xarray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import UsageError
from fastxfer.files import whole_file, write_npz
from fastxfer.targets.table import ABOUT, Target

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore

SUFFIXES = (".npz", ".parquet", ".npy")
_AT_ONCE = 4096  # rows in memory at a time


def export(store: EmbeddingStore, backbone: str, target: str, out: Path) -> None:
    """Write embeddings and their table to `out`, whole or not at all; rows correspond, in the table's order.

    .npz      embeddings, labels, class_names, split, image_id and what else is known (patient, …), one array each
    .parquet  the same as columns, embeddings as lists of fixed length
    .npy      embeddings alone, for `np.load(out, mmap_mode="r")`, and beside it `NAME.rows.parquet` with the columns

    UsageError for another suffix; DataError if rows are missing or damaged, then nothing is written.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a name ending in {', '.join(SUFFIXES)}")
    table = store.target(target)
    if out.suffix == ".npz":
        columns = {name: values for name in ABOUT if (values := getattr(table, name)) is not None}
        columns |= {"labels": table.labels, "split": table.split, "image_id": table.image_id}
        names = np.array(table.class_names, dtype=np.str_)
        write_npz(out, {"embeddings": store.embeddings(backbone, target), "class_names": names, **columns})
    elif out.suffix == ".parquet":
        _write_parquet(out, table, store, backbone)
    else:
        rows = store.array(backbone, target)
        with whole_file(out) as file:
            header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": rows.shape}
            np.lib.format.write_array_header_2_0(file, header)
            for start in range(0, len(rows), _AT_ONCE):
                file.write(rows[start : start + _AT_ONCE].data)
        _write_parquet(out.with_suffix(".rows.parquet"), table)


def _write_parquet(out: Path, table: Target, store: EmbeddingStore | None = None, backbone: str = "") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"image_id": table.image_id.tolist(), "split": table.split.tolist()}
    columns |= {name: values.tolist() for name in ABOUT if (values := getattr(table, name)) is not None}
    if table.multi_label:
        columns |= {f"label:{name}": table.labels[:, i] for i, name in enumerate(table.class_names)}
    else:
        columns["label"] = np.array(table.class_names)[table.labels].tolist()
    whole = pa.table(columns)
    rows = store.array(backbone, table.name) if store is not None else None
    if rows is not None:
        kind = pa.list_(pa.from_numpy_dtype(rows.dtype), rows.shape[1])
        schema = whole.schema.append(pa.field("embedding", kind))
    else:
        schema = whole.schema
    with whole_file(out) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, table.n_images, _AT_ONCE):
            part = whole.slice(start, _AT_ONCE)
            if rows is not None:
                values = rows[start : start + _AT_ONCE]
                part = part.append_column(
                    schema.field("embedding"), pa.FixedSizeListArray.from_arrays(values.reshape(-1), rows.shape[1])
                )
            writer.write_table(part)


def as_xarray(store: EmbeddingStore, backbone: str, target: str) -> Any:
    """A DataArray (image, dim) around the very array that `embeddings` gives."""
    try:
        import xarray
    except ImportError:
        raise UsageError("xarray is not installed: pip install xarray, or fastxfer[xarray]") from None
    table = store.target(target)
    coords: dict[str, Any] = {"image": table.image_id, "split": ("image", table.split)}
    if not table.multi_label:
        names: NDArray[np.str_] = np.array(table.class_names)
        coords["label"] = ("image", names[table.labels])
    return xarray.DataArray(
        store.embeddings(backbone, target),
        dims=("image", "dim"),
        coords=coords,
        name=backbone,
        attrs={"target": target, "backbone": backbone, "identity": store.attributes(backbone, target)["identity"]},
    )
