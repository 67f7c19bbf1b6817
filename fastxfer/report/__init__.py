"""One self-contained HTML page from results: the answer, curves, comparisons, costs, provenance. Computes no metric."""

from fastxfer.report.assemble import write_report

__all__ = ["write_report"]
