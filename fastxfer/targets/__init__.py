"""Targets: a data set by name -> a table of image path, labels, split and patient."""

from fastxfer.targets.check import check_target, check_targets
from fastxfer.targets.describe import describe_target
from fastxfer.targets.families import Family
from fastxfer.targets.listing import Listing, build_target
from fastxfer.targets.merge import merge_targets
from fastxfer.targets.register import add_target, define_target, how_added, list_targets, load_target
from fastxfer.targets.split import make_split
from fastxfer.targets.table import SPLITS, Target

__all__ = [
    "SPLITS",
    "Family",
    "Listing",
    "Target",
    "add_target",
    "build_target",
    "check_target",
    "check_targets",
    "define_target",
    "describe_target",
    "how_added",
    "list_targets",
    "load_target",
    "make_split",
    "merge_targets",
]
