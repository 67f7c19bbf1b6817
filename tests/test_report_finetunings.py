"""What the report says of fine-tunings: their cost in all its units, and their learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reporting import CURVE, make_rows

from fastxfer.errors import DataError
from fastxfer.report import read_curves, write_report
from fastxfer.report.costs import operations


@pytest.fixture
def curves(tmp_path: Path) -> Path:
    folder = tmp_path / "curves"
    folder.mkdir()
    (folder / "pre-trained.csv").write_text(CURVE)
    (folder / "random.csv").write_text(CURVE.replace("0.5,", "0.3,"))
    return folder


def few_rows() -> pd.DataFrame:
    """Of one target, so that pages are quickly made."""
    rows = make_rows(5)
    return rows[rows["target"] == "dtd10"]


def tuned(rows: pd.DataFrame, **values: float) -> pd.DataFrame:
    """More rows of cost beside the seconds of the fine-tunings there are."""
    seconds = rows[(rows["metric"] == "seconds") & (rows["probe"] == "finetune")]
    return pd.concat([rows, *(seconds.assign(metric=metric, value=value) for metric, value in values.items())])


def test_costs_in_all_units(report_store: Path, tmp_path: Path) -> None:
    rows = tuned(few_rows(), images=32000.0, images_scored=1000.0, flops=2.5e15, joules=1.8e6)
    stopped = rows[rows["probe"] == "finetune"]
    stopped = stopped[stopped["metric"].isin(["seconds", "accuracy"]) & (stopped["split"] != "test")]
    rows = pd.concat([rows, stopped.assign(params=stopped["params"].astype(str) + ";stopped=20", value=0.999)])
    page = write_report(report_store, rows, tmp_path / "r", plan=None, command="fastxfer report").read_text()
    assert (
        "The fine-tunings took 32,000 images forward and backward, 1,000 more forward, 2.5 PFLOP of computing and 0.5 kWh. "
        "1 run more was stopped by validation on the way."
    ) in page
    assert "rest on the 5 min 12 s that a fine-tuning took" in page  # of those that were finished
    assert "stopped=20" not in page  # what was stopped stands beside nothing that was not
    assert [operations(f) for f in (5e9, 5e12, 1.25e17, 2e18)] == ["5 GFLOP", "5 TFLOP", "125 PFLOP", "2 EFLOP"]


def test_curves_are_read(curves: Path) -> None:
    first, second = read_curves(curves)
    assert (first["run"], first["metric"], first["split"]) == ("pre-trained", "accuracy", "val")
    assert first["scores"] == [[2, 4], [0.25, 0.5]]
    assert first["loss"] == [[1, 2, 3, 4], [2.3, 2.1, 1.9, 1.5]]
    assert second["scores"][1] == [0.25, 0.3]
    (curves / "long.csv").write_text(
        "step,lr,loss,split,accuracy\n" + "".join(f"{i},0.1,{i},,\n" for i in range(1000)) + "1000,0,1,test,0.5\n"
    )
    long = read_curves(curves)[0]
    assert len(long["loss"][0]) == 100
    assert long["loss"][1][0] == np.mean(range(11))
    assert long["split"] == "test"


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "step,lr,loss,split,accuracy\n"])
def test_what_is_no_curve_is_named(content: str, curves: Path) -> None:
    (curves / "other.csv").write_text(content)
    with pytest.raises(DataError, match=r"other\.csv' is no learning curve of `fastxfer finetune --curves`"):
        read_curves(curves)
    with pytest.raises(DataError, match="no learning curves in"):
        read_curves(curves / "none")
