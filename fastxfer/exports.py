"""Results for other programs: Parquet, CSV, xarray (NetCDF), TensorBoard, Weights & Biases.

Aggregates are the cells of `fastxfer.statistics.summarise`, raw rows those of `fastxfer.results.SCHEMA`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.errors import DataError, UsageError
from fastxfer.files import whole_file
from fastxfer.results import CELL, KEY
from fastxfer.statistics import summarise

FILES = {".parquet": "parquet", ".csv": "csv", ".nc": "xarray"}
KINDS = (*FILES.values(), "tensorboard", "wandb")


def kind_of(out: Path | None, kind: str | None) -> str:
    """What to export to: as said, else as the name's ending says; `UsageError` where neither tells, or both differ."""
    by_name = FILES.get(out.suffix) if out else None
    wanted = kind or by_name
    if wanted is None:
        raise UsageError(
            f"--out {out}: expected a name ending in {', '.join(FILES)}, or say --to tensorboard or --to wandb"
        )
    if wanted == "wandb" and out is not None:
        raise UsageError("--to wandb takes no --out: WANDB_DIR, WANDB_PROJECT and WANDB_MODE=offline say where runs go")
    if wanted != "wandb" and out is None:
        raise UsageError(f"--to {wanted} needs --out")
    if wanted in FILES.values() and by_name != wanted:
        ending = next(ending for ending, of in FILES.items() if of == wanted)
        raise UsageError(f"--to {wanted} --out {out}: expected a name ending in {ending}")
    return wanted


def export(
    rows: pd.DataFrame, out: Path | None, *, kind: str, raw: bool = False, about: Mapping[str, str] | None = None
) -> int:
    """Write rows, or their aggregates, as one of `KINDS`; how many lines or scalars that were.

    about: where the rows come from (study, hash), for formats that hold such words

    .nc holds a Dataset of one dimension `row` with the key's columns as coordinates. TensorBoard and W&B get a run a
    backbone: the mean and bounds of each cell as scalars over shots (0 = the full train split), and raw values as
    histograms, or a table. `DataError` where there are no rows; `UsageError` for a missing package.
    """
    if rows.empty:
        raise DataError("there are no rows to export")
    about = dict(about or {})
    if kind in ("tensorboard", "wandb"):
        cells = summarise(rows)
        return (
            _tensorboard(out or Path("."), cells, rows if raw else None, about)
            if kind == "tensorboard"
            else _wandb(cells, rows if raw else None, about)
        )
    table = rows if raw else summarise(rows)
    assert out is not None
    if kind == "xarray":
        _xarray(table, out, list(KEY if raw else CELL), about)
    else:
        with whole_file(out) as file:
            table.to_parquet(file, index=False) if kind == "parquet" else table.to_csv(file, index=False)
    return len(table)


def _xarray(table: pd.DataFrame, out: Path, keys: list[str], about: Mapping[str, str]) -> None:
    xarray = _library("xarray", "xarray")
    columns = {name: _plain(table[name]) for name in table}
    data = xarray.Dataset(
        {name: ("row", values) for name, values in columns.items() if name not in keys},
        coords={name: ("row", columns[name]) for name in keys},
        attrs=dict(about),
    )
    with whole_file(out) as file:
        file.write(data.to_netcdf())  # by SciPy where there is no netCDF4


def _plain(column: pd.Series) -> Any:
    """Text as text, numbers as they are."""
    if column.dtype.kind in "iufb":
        return column.to_numpy()
    return np.array(column.astype(str).tolist())


def _scalars(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with a `tag` that tells all but backbone and shots, and `step`, the shots."""
    named = cells.assign(**{name: cells[name].astype(str) for name in CELL})
    split = named["split"].where(named["split"] != "test", "")
    parts = [named["target"], named["ways"] + "-way", named["probe"], split, named["metric"]]
    # What tells cells apart that are alike else: settings, seeds.
    for name in ("params", "seed"):
        alike = named.groupby(["backbone", "target", "ways", "probe", "split", "metric", "shots"])[name].transform(
            "nunique"
        )
        parts.insert(
            -1, (name + "=" + named[name]).where(alike > 1, "") if name == "seed" else named[name].where(alike > 1, "")
        )
    tags = ["/".join(word for word in words if word) for words in zip(*parts, strict=True)]
    return named.assign(tag=tags, step=[0 if shots == "full" else int(shots) for shots in named["shots"]])


def _values(cell: Any) -> dict[str, float]:
    """What is told of a cell: its mean, and bounds where there are some."""
    told = {"": cell.mean, "/low": cell.low, "/high": cell.high}
    return {f"{cell.tag}{end}": float(value) for end, value in told.items() if math.isfinite(value)}


def _tensorboard(out: Path, cells: pd.DataFrame, rows: pd.DataFrame | None, about: Mapping[str, str]) -> int:
    _library("tensorboard", "logs")
    from torch.utils.tensorboard import SummaryWriter

    told, raw = 0, {} if rows is None else _by_cell(rows)
    for backbone, mine in _scalars(cells).groupby("backbone"):
        with SummaryWriter(str(out / str(backbone))) as writer:
            last: dict[str, float] = {}
            for cell in mine.sort_values("step").itertuples():
                for name, value in _values(cell).items():
                    writer.add_scalar(name, value, cell.step)
                    told += 1
                last |= {f"hparam/{cell.tag}": float(cell.mean)} if math.isfinite(cell.mean) else {}
                values = raw.get(tuple(getattr(cell, name) for name in CELL), ())
                if len(values):
                    writer.add_histogram(f"{cell.tag}/values", values, cell.step)
            settings = {"backbone": str(backbone), "source": str(mine["source"].iloc[0]), **about}
            writer.add_hparams(settings, last, run_name=".")
    return told


def _by_cell(rows: pd.DataFrame) -> dict[tuple[str, ...], Any]:
    """Cell, in texts -> its defined values."""
    values = rows["value"].to_numpy()
    groups = rows.groupby(list(CELL), sort=False, observed=True).indices.items()
    return {tuple(map(str, cell)): values[at][np.isfinite(values[at])] for cell, at in groups}


def _wandb(cells: pd.DataFrame, rows: pd.DataFrame | None, about: Mapping[str, str]) -> int:
    wandb = _library("wandb", "logs")
    told = 0
    for backbone, mine in _scalars(cells).groupby("backbone"):
        config = {"backbone": str(backbone), "source": str(mine["source"].iloc[0]), **about}
        run = wandb.init(name=str(backbone), group=about.get("study"), config=config)
        run.define_metric("*", step_metric="shots")
        for step, some in mine.groupby("step"):
            values = {name: value for cell in some.itertuples() for name, value in _values(cell).items()}
            run.log({"shots": int(str(step)), **values})
            told += len(values)
        if rows is not None:
            raw = rows[rows["backbone"] == backbone]
            run.log({"rows": wandb.Table(dataframe=raw.astype({name: str for name in CELL if name != "seed"}))})
        run.finish()
    return told


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"this export needs the package {name}: pip install 'fastxfer[{extra}]'") from None
