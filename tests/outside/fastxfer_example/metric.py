"""A metric: top-2 accuracy, the share of queries whose label has one of the two largest scores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.metrics import Metric, nanmean


def top2(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    two = np.argsort(-scores, axis=-1, kind="stable")[..., :2]
    found = (two == labels[..., None]).any(axis=-1)
    return nanmean(np.where(labels < 0, np.nan, found), axis=-1)


TOP2 = Metric(top2, single_label_only=True)
