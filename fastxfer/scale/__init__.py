"""The paper's question: does scale of model and of source data help transfer, near and far, at few and many shots?

cells    runs (of the paper, or ours) -> cells with their noise; paired differences
own      our rows as runs
mixed    a mixed model of means with known variances
model    gains by size and data as such a model
claims   the paper's claims, with verdicts
"""

from fastxfer.scale.cells import cells_of, paper_cells, paper_cells_by
from fastxfer.scale.claims import STATEMENTS, above, verdicts
from fastxfer.scale.model import SCALES, ScaleModel, fit_scale

__all__ = [
    "SCALES",
    "STATEMENTS",
    "ScaleModel",
    "above",
    "cells_of",
    "fit_scale",
    "paper_cells",
    "paper_cells_by",
    "verdicts",
]
