"""`--fast-jpeg`: JPEG files decoded at a fraction of their size; other pixels, nearly, and never mixed with the usual."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastxfer.backbones import Preprocessing
from fastxfer.backbones.preprocessing import FAST_JPEG
from fastxfer.demo import lite0_weights
from fastxfer.images import decode_content
from fastxfer.store import EmbeddingStore
from tests.test_cli_embed import OWN, run, run_json, world

__all__ = ["world"]
USUAL = Preprocessing((3, 224, 224), (0.5,), (0.5,), crop_pct=0.875)
FAST = Preprocessing((3, 224, 224), (0.5,), (0.5,), crop_pct=0.875, fast_jpeg=True)


def encoded(width: int, height: int, kind: str = "JPEG", seed: int = 0) -> bytes:
    """A picture with detail at all scales."""
    rng = np.random.default_rng(seed)
    pixels = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (4 * 2**k, 4 * 2**k, 3), np.uint8)).resize((width, height)), float
        )
        * 0.5**k
        for k in range(7)
    )
    pixels = np.clip(pixels / 2, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "scale"), [((256, 192), 2), ((138, 129), 2), ((127, 500), 1), ((563, 521), 8), ((300, 260), 4)]
)
def test_both_sides_keep_as_many_pixels_as_are_asked_for(size: tuple[int, int], scale: int) -> None:
    content = encoded(*size)
    assert decode_content(content, "x.jpg", at_least=64).size == tuple(-(-side // scale) for side in size)
    assert decode_content(content, "x.jpg").size == size
    assert decode_content(encoded(*size, "PNG"), "x.png", at_least=64).size == size
    assert (USUAL.enough, FAST.enough) == (0, FAST_JPEG * 256)


def test_pixels_differ_little_and_only_where_a_jpeg_is_large() -> None:
    usual, fast = USUAL.geometry(), FAST.geometry()

    def both(content: bytes) -> tuple[np.ndarray, np.ndarray]:
        a = usual(decode_content(content, "x", at_least=USUAL.enough))
        return a.astype(float), fast(decode_content(content, "x", at_least=FAST.enough)).astype(float)

    a, b = both(encoded(1600, 1200))
    assert 0 < np.abs(a - b).mean() < 2.0
    for content in (encoded(1600, 1200, "PNG"), encoded(300, 280)):
        np.testing.assert_array_equal(*both(content))


def test_it_is_another_preprocessing_and_the_usual_ones_words_stay() -> None:
    assert "fast_jpeg" not in USUAL.as_dict()
    assert FAST.as_dict()["fast_jpeg"] is True
    assert Preprocessing(**FAST.as_dict()) == FAST
    assert USUAL.geometry_key != FAST.geometry_key


def test_embeddings_are_kept_apart(world: Path) -> None:
    for i, path in enumerate(sorted((world / "big").rglob("*.png"))):
        path.with_suffix(".jpg").write_bytes(encoded(400, 300, seed=i))
        path.unlink()
    assert run("targets", "add", world / "big", "--name", "large").exit_code == 0
    usual = run_json("embed", *OWN, "--target", "large", "--dtype", "float32", "--name", "usual")
    fast = run_json("embed", *OWN, "--target", "large", "--dtype", "float32", "--name", "fast", "--fast-jpeg")
    assert usual["embedded"][0]["embedded"] == fast["embedded"][0]["embedded"] == 8
    assert usual["identity"] != fast["identity"]
    assert fast["preprocessing"]["fast_jpeg"] is True
    refused = run("embed", *OWN, "--target", "large", "--dtype", "float32", "--name", "usual", "--fast-jpeg")
    assert refused.exit_code == 1
    # Beside a network that sees the usual pixels, each has its own.
    both = ("--ckpt", "net.pt", "--arch", "net.py:build", "--mean", "0.5", "--std", "0.5", "--target", "large")
    assert run("embed", *both, "--dtype", "float32", "--name", "usual", "--store", "other").exit_code == 0
    store, other = EmbeddingStore.open("fastxfer-store"), EmbeddingStore.open("other")
    np.testing.assert_array_equal(store.embeddings("usual", "large"), other.embeddings("usual", "large"))
    a, b = store.embeddings("usual", "large"), store.embeddings("fast", "large")
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.slow
def test_a_real_networks_features_move_by_less_than_the_docs_say() -> None:
    import torch

    from fastxfer.backbones import load_backbone

    backbone = load_backbone(str(lite0_weights()), arch="tf_efficientnet_lite0")
    features = []
    for preprocessing in (USUAL, FAST):
        geometry = preprocessing.geometry()
        pixels = [
            geometry(decode_content(encoded(1280, 960, seed=i), "x", at_least=preprocessing.enough)) for i in range(4)
        ]
        with torch.inference_mode():
            features.append(backbone.network(preprocessing.normalise(torch.from_numpy(np.stack(pixels)))))
    a, b = features
    assert ((a - b).norm(dim=1) / a.norm(dim=1)).max() < 0.05
