"""The rows that an array lacks, by the checkpoint that its provenance names."""

from __future__ import annotations

from fastxfer.backbones import load_backbone
from fastxfer.embed.run import Embedded, embed
from fastxfer.errors import DataError
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target


def embed_again(
    store: EmbeddingStore, backbone: str, target: Target, *, ckpt: str | None = None, arch: str | None = None
) -> Embedded:
    """Embed what an array lacks, by the checkpoint that its provenance names, or by `ckpt`; as the first run did.

    arch: the architecture if it is code (``FILE.py:function``), which runs only when it is named

    DataError if the checkpoint or its identity is not the recorded one any more.
    """
    told = store.attributes(backbone, target.name)
    if arch is None and ".py" in str(told["architecture"]):
        raise DataError(f"the architecture is code ({told['architecture']}), which runs only when you name it: --arch")
    again = load_backbone(
        ckpt or str(told["checkpoint"]),
        arch=arch or str(told["architecture"]),
        arch_args=told.get("arch_args") or None,
        name=backbone,
        source=told.get("source"),
        pool=str(told["pooling"]),
        precision=str(told.get("precision", "float32")),
        preprocessing=told["preprocessing"],
    )
    if again.identity != told["identity"]:
        raise DataError(f"'{ckpt or told['checkpoint']}' is not the checkpoint that '{backbone}' was made with")
    (done,) = embed(
        again,
        [target],
        store,
        batch_size=told.get("batch_size"),
        dtype=str(told["dtype"]),
        compiled=str(told.get("compiled") or "").replace("True", "plain"),  # which was the only way once
    )
    return done
