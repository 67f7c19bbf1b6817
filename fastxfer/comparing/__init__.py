"""Comparisons that are paired: every backbone saw the same episodes, so what counts is the difference in each of them."""

from fastxfer.comparing.contests import Contest, Estimates
from fastxfer.comparing.crossing import crossings
from fastxfer.comparing.lining import contests
from fastxfer.comparing.pairs import compare
from fastxfer.comparing.ranking import Critical, critical_difference, critical_differences, rank
from fastxfer.comparing.tables import cell_table, latex, markdown

__all__ = [
    "Contest",
    "Critical",
    "Estimates",
    "cell_table",
    "compare",
    "contests",
    "critical_difference",
    "critical_differences",
    "crossings",
    "latex",
    "markdown",
    "rank",
]
