"""Targets: a data set by name -> a table of image path, labels, split and patient."""

from fastxfer.targets.register import add_target, list_targets, load_target
from fastxfer.targets.split import make_split
from fastxfer.targets.table import SPLITS, Target

__all__ = ["SPLITS", "Target", "add_target", "list_targets", "load_target", "make_split"]
