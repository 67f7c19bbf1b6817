"""One self-contained HTML page from results: the answer, curves, comparisons, costs, provenance. Computes no metric."""

from fastxfer.report.assemble import write_report
from fastxfer.report.learning import read_curves

__all__ = ["read_curves", "write_report"]
