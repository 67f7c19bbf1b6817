"""Proximity: how near a target's images are to a source's, as numbers with their errors.

measures   distances and overlaps of two samples of embeddings, functions of arrays
run        over a store: a source, its targets, one or several reference backbones -> a tidy table
"""

from fastxfer.proximity.run import COLUMNS, MEASURES, proximity, reference_agreement

__all__ = ["COLUMNS", "MEASURES", "proximity", "reference_agreement"]
