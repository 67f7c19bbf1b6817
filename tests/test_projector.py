"""`store export --format projector`: read back by the rules of projector_config.proto and of TensorBoard's reader."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import blobs_store, blobs_target
from PIL import Image
from test_cli_embed import OWN, run, run_json, world  # noqa: F401
from test_store import fill, make_store, make_target, values_for

import fastxfer.store.projector as module
from fastxfer.errors import DataError
from fastxfer.store import EmbeddingStore
from fastxfer.store.projector import export_projector

# projector_config.proto: message -> field -> (type, repeated)
MESSAGES: dict[str, dict[str, tuple[str, bool]]] = {
    "ProjectorConfig": {
        "model_checkpoint_path": ("string", False),
        "embeddings": ("EmbeddingInfo", True),
        "model_checkpoint_dir": ("string", False),
    },
    "EmbeddingInfo": {
        "tensor_name": ("string", False),
        "metadata_path": ("string", False),
        "bookmarks_path": ("string", False),
        "tensor_shape": ("uint32", True),
        "sprite": ("SpriteMetadata", False),
        "tensor_path": ("string", False),
    },
    "SpriteMetadata": {"image_path": ("string", False), "single_image_dim": ("uint32", True)},
}


def read_config(text: str) -> dict[str, Any]:
    """A protobuf's text as the definition above reads it; anything else is an error."""
    tokens = re.findall(r'"[^"\\\n]*"|\d+|\w+|[{}:]', text)
    assert "".join(tokens) == re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", text)

    def message(kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while tokens and tokens[0] != "}":
            name = tokens.pop(0)
            of, repeated = MESSAGES[kind][name]
            assert tokens.pop(0) == ("{" if of in MESSAGES else ":")
            if of in MESSAGES:
                value: Any = message(of)
                assert tokens.pop(0) == "}"
            else:
                value = json.loads(tokens.pop(0))
                assert isinstance(value, str if of == "string" else int)
            if repeated:
                found.setdefault(name, []).append(value)
            else:
                assert name not in found
                found[name] = value
        return found

    whole = message("ProjectorConfig")
    assert not tokens
    return whole


def read_tensors(folder: Path) -> np.ndarray:
    lines = (folder / "tensors.tsv").read_text("utf-8").splitlines()
    return np.array([[float(cell) for cell in line.split("\t")] for line in lines], np.float32)


def read_metadata(folder: Path) -> list[dict[str, str]]:
    head, *lines = (folder / "metadata.tsv").read_text("utf-8").removesuffix("\n").split("\n")
    assert "\t" in head  # without a tab the first line would count as a value
    names = head.split("\t")
    assert all(line.count("\t") == len(names) - 1 for line in lines)
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def test_values_columns_and_config_correspond(world: Path) -> None:  # noqa: F811
    make_store("s")
    done = run_json("store", "export", "tiny", "photos", "--out", "p", "--format", "projector", "--store", "s")
    assert (done["n_points"], done["n_images"], done["thumbnail"]) == (10, 10, 0)
    folder = Path("p")
    assert sorted(p.name for p in folder.iterdir()) == sorted(done["files"])
    (embedding,) = read_config((folder / "projector_config.pbtxt").read_text())["embeddings"]
    assert embedding == {
        "tensor_name": "tiny on photos",
        "tensor_shape": [10, 5],
        "tensor_path": "tensors.tsv",
        "metadata_path": "metadata.tsv",
    }
    assert np.array_equal(read_tensors(folder), values_for(range(10)))  # every bit of float32
    rows = read_metadata(folder)
    table = EmbeddingStore.open("s").target("photos")
    assert [row["label"] for row in rows] == [table.class_names[i] for i in table.labels]
    assert [row["split"] for row in rows] == table.split.tolist()
    assert [row["row"] for row in rows] == [str(i) for i in range(10)]
    assert set(rows[0]) == {"label", "split", "row"}  # no patient, no path


def test_paths_are_written_to_who_asks_for_them_alone(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    for asked in ({}, {"paths": False}, {"paths": True}):
        export_projector(EmbeddingStore.open(tmp_path / "s"), "tiny", "photos", tmp_path / "p", **asked)
        assert ("path" in read_metadata(tmp_path / "p")[0]) == bool(asked.get("paths"))


def test_some_rows_several_labels_paths_and_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = make_target(multi=True)
    target = replace(target, class_names=("cat\tor\nnot", "dög"), view=np.array(["PA", ""] * 5))
    store = EmbeddingStore.open(tmp_path / "s", mode="a")
    fill(store, target, dtype="float16")
    done = export_projector(
        store, "tiny", "photos", tmp_path / "p", points=4, seed=1, paths=True, url="https://example.org/p/"
    )
    assert (done.n_points, done.n_images) == (4, 10)
    rows = read_metadata(tmp_path / "p")
    chosen = [int(row["row"]) for row in rows]
    assert chosen == sorted(set(chosen))
    assert np.array_equal(read_tensors(tmp_path / "p"), values_for(range(10)).astype(np.float16)[chosen])
    for i, row in zip(chosen, rows, strict=True):
        assert row["path"] == f"a/ä {i}.png"
        assert row["view"] == ("PA" if i % 2 == 0 else "")
        assert row["label: cat or not"] == str(i % 2)
        assert row["label: dög"] == ("" if i % 2 else "0")
        assert row["label"] == ("cat or not" if i % 2 else "no label")
    (embedding,) = json.loads((tmp_path / "p/projector_config.json").read_text())["embeddings"]
    assert embedding["tensorShape"] == [4, 5]
    assert embedding["tensorPath"] == "https://example.org/p/tensors.tsv"
    assert "sprite" not in embedding


def test_thumbnails_lie_in_a_square_sheet(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert run("embed", *OWN, "--target", "big").exit_code == 0
    done = run_json("store", "export", "net", "big", "--out", "p", "--format", "projector", "--thumbnails")
    assert done["thumbnail"] == 64
    (embedding,) = read_config(Path("p/projector_config.pbtxt").read_text())["embeddings"]
    assert embedding["sprite"] == {"image_path": "sprite.png", "single_image_dim": [64, 64]}
    sheet = Image.open("p/sprite.png")
    assert sheet.size == (192, 192)  # 3 x 3 for eight images
    # The fifth image, upright and in its place: row 1, column 1.
    table = EmbeddingStore.open("fastxfer-store").target("big")
    truth = Image.open(Path("big") / str(table.image_id[4]))
    left, top = 64 + (64 - truth.width) // 2, 64 + (64 - truth.height) // 2
    part = sheet.crop((left, top, left + truth.width, top + truth.height))
    assert np.array_equal(np.asarray(part), np.asarray(truth))

    monkeypatch.setattr(module, "SHEET", 30)
    small = run_json("store", "export", "net", "big", "--out", "q", "--format", "projector", "--thumbnails")
    assert small["thumbnail"] == 10
    assert Image.open("q/sprite.png").size == (30, 30)


def test_what_does_not_go_together(world: Path) -> None:  # noqa: F811
    make_store("s")
    Path("file").write_text("x")
    words = ("store", "export", "tiny", "photos", "--store", "s", "--out")
    for more, message in (
        (("x.npz", "--paths"), "--paths goes with --format projector"),
        (("file", "--format", "projector"), "--out file: is a file; --format projector writes a folder"),
        (("p", "--format", "projector", "--thumbnails"), "photos"),
        (("p",), "--out p: expected a name ending in .npz, .parquet, .npy"),
    ):
        result = run(*words, *more)
        assert result.exit_code == 2, more
        assert message in result.stderr
    assert not Path("p").exists()


def test_two_dimensions_are_enough_and_one_is_refused(tmp_path: Path) -> None:
    blobs_store(tmp_path / "flat", blobs_target(n_classes=2, n_train=3, n_test=3), backbones={"b": 1.0}, dim=2)
    assert export_projector(EmbeddingStore.open(tmp_path / "flat"), "b", "blobs", tmp_path / "p").n_points == 12
    assert read_tensors(tmp_path / "p").shape == (12, 2)
    blobs_store(tmp_path / "line", blobs_target(n_classes=2, n_train=3, n_test=3), backbones={"b": 1.0}, dim=1)
    with pytest.raises(DataError, match="one dimension; the projector takes two or more"):
        export_projector(EmbeddingStore.open(tmp_path / "line"), "b", "blobs", tmp_path / "q")
