"""What is kept inside a store beside embeddings (pixels, digests of images): which table it belongs to, and at what cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_embed import make_backbone, make_images, open_store
from test_store import fill, make_target

from fastxfer.embed import embed, feed
from fastxfer.errors import DataError
from fastxfer.store import EmbeddingStore, files, verify
from fastxfer.targets.changes import digest_of_sizes

OPTIONS: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 8, "cache": "disk"}
SIDES = ("pixels", "contents")


def test_the_table_is_kept_once(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 12), open_store(tmp_path / "s")
    embed(make_backbone(tmp_path), [target], store, **OPTIONS)
    for side in SIDES:
        folder = tmp_path / "s" / side
        assert {p.name for p in (folder / "targets/photos").iterdir()} == {"zarr.json", ".copy", "embeddings"}
        report = verify(folder)
        assert (report.problems, report.incomplete) == ([], {})
        assert report.blocks == 2
        there = EmbeddingStore.open(folder)
        assert there.fingerprint("photos") == target.fingerprint
        with pytest.raises(DataError, match="is in the store that this one lies in"):
            there.target("photos")
    assert store.target("photos").fingerprint == target.fingerprint


def test_sides_with_a_table_of_their_own_serve_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were written up to 0.1."""
    target, store = make_images(tmp_path, 12), open_store(tmp_path / "s")
    one, two = make_backbone(tmp_path), make_backbone(tmp_path, name="two", preprocessing={"mean": 0.1})
    for side in SIDES:
        open_store(tmp_path / "s" / side).add_target(target, files=digest_of_sizes(target.root, target.image_id))
    embed(one, [target], store, **OPTIONS)
    monkeypatch.setattr(feed, "decode_content", lambda *a, **k: pytest.fail("decoded again"))
    embed(two, [target], store, **OPTIONS)
    (done,) = embed(one, [replace(target, name="again")], store, **OPTIONS)
    assert done.reused == 12
    for side in SIDES:
        assert verify(tmp_path / "s" / side).problems == []
        assert EmbeddingStore.open(tmp_path / "s" / side).target("photos").fingerprint == target.fingerprint


def test_another_table_under_the_name_takes_the_place(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 12), open_store(tmp_path / "s")
    embed(make_backbone(tmp_path), [target], store, **OPTIONS)
    store.remove(None, "photos")
    changed = target.take(np.arange(10))
    embed(make_backbone(tmp_path), [changed], store, **OPTIONS)
    for side in SIDES:
        there = EmbeddingStore.open(tmp_path / "s" / side)
        assert there.fingerprint("photos") == changed.fingerprint
        assert all(entry.complete and entry.n_images == 10 for entry in there.entries())


def test_looking_for_what_is_known_reads_each_description_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "s")
    for name in ("one", "two", "three"):
        for backbone in ("x", "y"):
            fill(store, make_target(name=name), backbone=backbone, identity=f"{name == 'two'} {backbone}")
    (tmp_path / "s/targets/one/embeddings/x/zarr.json").write_text("no JSON")  # not what is asked for
    read: list[str] = []
    plain = files.read
    monkeypatch.setattr(files, "read", lambda store, key: read.append(key) or plain(store, key))
    found = store.made_by({"False y", "another"})
    assert {k: [(a.target, a.backbone) for a in v] for k, v in found.items()} == {
        "False y": [("one", "y"), ("three", "y")],
        "another": [],
    }
    each = [read.count(f"targets/{t}/embeddings/{b}/zarr.json") for t in ("one", "two", "three") for b in "xy"]
    assert each == [1, 2, 1, 1, 1, 2]  # those found are opened
