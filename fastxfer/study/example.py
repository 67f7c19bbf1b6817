"""The example that `fastxfer study init` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence

_EXAMPLE = """\
# A study of fastxfer: check and price it by `fastxfer study run THIS.toml --plan`, do it by `fastxfer study run THIS.toml`.
# Paths start at this file's folder. docs/study-file.md explains every key; a table that is not there is not done.

# Names of `fastxfer targets ls`, or folders (with a slash) of class folders.
targets = {targets}

store = "fastxfer-store"        # embeddings; results go beside it
data_root = "fastxfer-data"     # where data sets are registered
{backbones}
[fewshot]
# ways = [5, "all"]             # classes an episode; without it 5, or all of a target that has fewer
shots = [1, 5, 10]
episodes = 1000
seeds = [0]
# Names, or tables with settings of their own.
probes = ["ridge", "prototype", "knn", {{ name = "logistic", l2 = [0.01, 1.0] }}]

[probe]                         # linear probe on the full train split

[knn]                           # nearest neighbours on the full train split

[select]                        # what deserves a fine-tuning, by [probe] on validation
budget = 2                      # fine-tunings at most

# [finetune]                    # takes long; needs the images
# preset = "bit"
# halving = true                # stops the worse half early; wants validation images

[report]
out = "report"
"""

_BACKBONE = """
[[backbone]]
checkpoint = {checkpoint}{comment}
# name = "r50"                  # what results call it
# source = "imagenet1k"         # what it was trained on
"""


def example(targets: Sequence[str] = (), checkpoints: Sequence[str] = ()) -> str:
    """The text of a study's file with these targets and checkpoints."""
    backbones = "".join(
        _BACKBONE.format(
            checkpoint=json.dumps(c, ensure_ascii=False), comment="" if checkpoints else "   # a file, or a timm name"
        )
        for c in (checkpoints or ["resnet50.a1_in1k"])
    )
    return _EXAMPLE.format(targets=json.dumps(list(targets) or ["photos/"], ensure_ascii=False), backbones=backbones)
