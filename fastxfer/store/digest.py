"""One number for what a store holds."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastxfer.store.embeddings import EmbeddingStore


def digest(store: EmbeddingStore) -> str:
    """`EmbeddingStore.digest`."""
    h = hashlib.sha256(b"fastxfer store 1\0")

    def text(*words: object) -> None:
        h.update(json.dumps([str(w) for w in words]).encode() + b"\0")

    for name in store.targets():
        whole = store.target(name, keep_bad=True)
        text("target", name, whole.fingerprint, sorted(store.bad_images(name)))
        for backbone in store.backbones(name):
            array = store.stored(backbone, name)
            text("embeddings", backbone, array.attributes.get("identity"), array.dtype, array.shape)
            absent = {r.start for r in array.missing()}
            for block in array.blocks:
                if block.start in absent:
                    text("missing", *block)
                else:
                    h.update(array.read(block).tobytes())
    return h.hexdigest()
