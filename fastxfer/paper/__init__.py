"""The paper's own results as data: Cherti & Jitsev 2021 (arXiv 2106.00116), 1,440 whole-network fine-tunings.

From the authors' published results (github.com/SLAMPAI/large-scale-pretraining-transfer, folder `results`, commit fe6232b; MIT
licence, Mehdi Cherti and Jenia Jitsev), duplicate rows removed. Names are theirs: target `covidx_cxr2`, source `chexpert_mimic`,
model `bit152x4`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import pandas as pd

from fastxfer.errors import UsageError, nearest

_HEADLINES = {
    "cifar10": "acc",
    "cifar100": "acc",
    "pets": "acc",
    "flowers_oversampling": "acc",
    "covidx_cxr2": "acc",
    "tuberculosis_full": "acc",
    "padchest": "mean_auc",
}


def paper_results() -> pd.DataFrame:
    """Every cell of the paper: (1734,) rows, one a (target, metric, source, model, shots).

    shots "1", "5", … or "full";  n_seeds runs behind `mean` and `sd` (of single runs, n - 1), both as fractions of 1;
    last_step: where most of those runs ended; 400 where they were stopped before their 500
    """
    return _table("paper_results.csv").copy()


def paper_runs() -> pd.DataFrame:
    """Every fine-tuning of the paper: (1440,) rows, one a (target, source, model, shots, seed), `value` its headline metric.

    Few-shot runs of one target, shots and seed were fine-tuned on the same draw of images, whatever the network.
    """
    return _table("paper_runs.csv").copy()


def headline(target: str) -> str:
    """The metric in which the paper reports a target: "acc", or "mean_auc" for padchest; `UsageError` for another name."""
    if target not in _HEADLINES:
        raise UsageError(
            f"'{target}' is no target of the paper; it has {', '.join(_HEADLINES)}.{nearest(target, _HEADLINES)}"
        )
    return _HEADLINES[target]


@cache
def _table(name: str) -> pd.DataFrame:
    with resources.files("fastxfer").joinpath(name).open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"shots": str})
