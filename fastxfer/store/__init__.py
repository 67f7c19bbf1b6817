"""EmbeddingStore: targets and their embeddings on disk, in Zarr v3. Self-describing, never half-written, never mixed.

Layout (format 2), readable by any Zarr v3 library; docs/embeddings.md has the whole contract:

    /                                   attributes: fastxfer_format
    /targets/T                          attributes: name, fingerprint, class_names, multi_label, n_images, bad, …
    /targets/T/image_id, labels, split[, patient, …]
    /targets/T/embeddings/B             (n_images, dim) float16 | float32, a shard file a row block, crc32c on chunks;
                                        attributes: identity, weights_sha256, architecture, preprocessing, pooling, …
    …/.copy/zarr.json                   a copy of the zarr.json above it

A row block (a shard) is written in one piece under its final name, so it is there whole or not at all, and what is
missing is known from which shards exist, never from values.
"""

from __future__ import annotations

from fastxfer.store.embeddings import EmbeddingStore, Entry
from fastxfer.store.layout import BLOCK_ROWS, FORMAT, check_name
from fastxfer.store.locks import Team
from fastxfer.store.repairing import Repaired, repair
from fastxfer.store.rows import StoredRows
from fastxfer.store.verifying import Problem, Report, verify
from fastxfer.store.writing import Writer

__all__ = [
    "BLOCK_ROWS",
    "FORMAT",
    "EmbeddingStore",
    "Entry",
    "Problem",
    "Repaired",
    "Report",
    "StoredRows",
    "Team",
    "Writer",
    "check_name",
    "repair",
    "verify",
]
