"""One self-contained HTML page from results: the answer, curves, comparisons, costs, provenance. Computes no metric."""

from fastxfer.report.assemble import write_report
from fastxfer.report.learning import read_curves
from fastxfer.report.tables import Tables, read_tables

__all__ = ["Tables", "read_curves", "read_tables", "write_report"]
