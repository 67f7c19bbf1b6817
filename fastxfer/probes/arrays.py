"""Probes of one's own, written for arrays: one function from support to scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer import ops
from fastxfer.choosing import Path
from fastxfer.errors import DataError
from fastxfer.probes.base import Probe, Solution, closed_form

Array = NDArray[Any]


@dataclass(frozen=True)
class ArrayProbe(Probe):
    """A probe that is one function, `score`, called episode by episode, and once for a full train split.

    It has one setting; fields of its own stand in the rows' `params`. What it takes in time is NumPy's, not that of the
    compiled probes.
    """

    @abstractmethod
    def score(self, x: Array, y: Array, query: Array, ways: int) -> Array:
        """Scores (q, ways), larger is likelier, of query (q, dim) by the support x (m, dim), its labels y (m,) 0 … ways − 1."""

    def _settings(self, n_support: int) -> list[str]:
        own = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name not in Probe.__dataclass_fields__]
        return [";".join(own) or "plain"]

    def at(self, position: int, n_support: int) -> Probe:
        return self

    def _path(self, pool: ops.Pool, support: Array, labels: Array, query: Array, ways: int) -> Path:
        labels, query = (np.broadcast_to(a, (len(support), a.shape[-1])) for a in (labels, query))
        each = [self._scored(pool.x[s], y, pool.x[q], ways) for s, y, q in zip(support, labels, query, strict=True)]
        return closed_form(np.stack(each)[:, None])

    def solve_full(self, x: Array, y: Array, query: Array, n_classes: int) -> Iterator[Solution]:
        """Of a multi-label target, label by label from the images where it is known, as yes or no; above 0 is yes."""
        if y.ndim == 1:
            scores = self._scored(x, y, query, n_classes)
        else:
            known = ~np.isnan(y)
            pairs = [
                self._scored(x[known[:, i]], y[known[:, i], i].astype(np.int64), query, 2) for i in range(n_classes)
            ]
            scores = np.stack([pair[:, 1] - pair[:, 0] for pair in pairs], axis=1)
        yield Solution(self.settings(len(x))[0], scores, np.asarray(True))

    def _scored(self, x: Array, y: Array, query: Array, ways: int) -> Array:
        scores = np.asarray(self.score(x, y, query, ways), np.float64)
        if scores.shape != (len(query), ways):
            raise DataError(
                f"probe '{self.name}' gives scores {scores.shape} of {len(query)} queries in {ways} ways: expected "
                f"({len(query)}, {ways})"
            )
        return scores
