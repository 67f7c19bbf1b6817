"""Learning curves of fine-tunings, as `fastxfer finetune --curves` writes them: one table a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastxfer.errors import DataError

POINTS = 100  # of a curve in the report


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The runs of a folder by name: {run, loss: [[step], [mean loss up to there]], metric, split, scores: [[step], [value]]}.

    `DataError` for a folder without tables, or a table that is none of these.
    """
    files = sorted(Path(folder).glob("*.csv"))
    if not files:
        raise DataError(f"no learning curves in '{folder}': `fastxfer finetune --curves {folder}` writes them")
    return [_read(file) for file in files]


def _read(file: Path) -> dict[str, Any]:
    try:
        table = pd.read_csv(file)
        steps, losses = table["step"].to_numpy(int), table["loss"].to_numpy(float)
        metrics = [str(m) for m in table.columns[table.columns.get_loc("split") + 1 :]]
    except (ValueError, KeyError, TypeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"'{file}' is no learning curve of `fastxfer finetune --curves` ({error})") from None
    if not len(steps) or not metrics:
        raise DataError(f"'{file}' is no learning curve of `fastxfer finetune --curves`: it has no steps or no metric")
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    # What was chosen by, where it was measured: else test, which the run watched.
    splits = table["split"].dropna()
    split = "val" if (splits == "val").any() else str(splits.iloc[-1]) if len(splits) else ""
    scored = table[table["split"] == split]
    return {
        "run": file.stem,
        "loss": [[int(steps[p[-1]]) + 1 for p in parts], [round(float(losses[p].mean()), 5) for p in parts]],
        "metric": metrics[0],
        "split": split,
        "scores": [(scored["step"] + 1).tolist(), [round(float(v), 5) for v in scored[metrics[0]]]],
    }
