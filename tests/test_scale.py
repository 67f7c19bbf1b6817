"""Sizes that no test has room for: the road of `benchmarks.scale`, and blocks that grow with a target."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_store import ATTRS, make_target

from benchmarks.scale import measure
from fastxfer.store import EmbeddingStore
from fastxfer.store.layout import block_rows_for


@pytest.mark.parametrize(
    ("n_images", "row_bytes", "rows"),
    [
        (10, 4096, 256),
        (1_048_576, 4096, 256),
        (1_048_577, 4096, 512),
        (14_197_122, 2 * 2048, 4096),  # 3,467 files of 16 MiB
        (14_197_122, 2 * 8192, 4096),  # 3,467 files of 64 MiB
        (14_197_122, 4 * 8192, 2048),  # no larger than 64 MiB
        (10**9, 2 * 2048, 16_384),
    ],
)
def test_blocks_grow_with_the_target(n_images: int, row_bytes: int, rows: int) -> None:
    assert block_rows_for(n_images, row_bytes) == rows


def test_a_begun_array_keeps_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore.open(tmp_path, mode="a")
    store.add_target(make_target(30))
    for rows in (16, 8):
        monkeypatch.setattr("fastxfer.store.embeddings.block_rows_for", lambda *_, rows=rows: rows)
        with store.writer("net", "photos", dim=4, dtype="float16", attributes=ATTRS) as out:
            assert out.missing[0] == range(16)


def test_the_simulation(tmp_path: Path) -> None:
    steps = measure(tmp_path, 20_000, dim=64, backbones=2, block_rows=None)
    assert len(steps) == 12
    sizes = [path.stat() for path in tmp_path.rglob("c.*.0") if "embeddings/net1" in path.as_posix()]
    assert sum(size.st_size for size in sizes) > 20_000 * 64 * 2
    assert sum(size.st_blocks for size in sizes) <= 8 * len(sizes)  # nothing but holes
