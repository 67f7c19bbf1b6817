"""A whole study from one TOML file: checked whole, priced, run stage by stage by any number of processes, and told of.

keys      every key of the file
file      the file -> a `Study`, all problems at once; its hash
world     the study's targets, store and results on this machine, and whether they fit
units     what a stage is made of
share     how processes share the units out
stages    embed -> fewshot -> probe -> knn -> select -> finetune -> report
price, status, page, choose
"""

from fastxfer.study.file import Study, read_study
from fastxfer.study.price import price
from fastxfer.study.share import Part, read_part
from fastxfer.study.stages import Done, run_study
from fastxfer.study.status import is_complete, status
from fastxfer.study.world import World, check_world, open_world

__all__ = [
    "Done",
    "Part",
    "Study",
    "World",
    "check_world",
    "is_complete",
    "open_world",
    "price",
    "read_part",
    "read_study",
    "run_study",
    "status",
]
