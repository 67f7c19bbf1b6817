"""Proximity: how near a target's images are to a source's, as numbers with their errors.

measures   distances and overlaps of two samples of embeddings, functions of arrays
distances  such a table as one distance of each source from each target
run        over a store: a source, its targets, one or several reference backbones -> a tidy table
"""

from fastxfer.proximity.distances import distances, read_proximities
from fastxfer.proximity.run import COLUMNS, MEASURES, proximity, reference_agreement

__all__ = ["COLUMNS", "MEASURES", "distances", "proximity", "read_proximities", "reference_agreement"]
