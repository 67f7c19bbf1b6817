"""`--compile`: the same embeddings, known to the store, and a sentence where it can't be done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastxfer.embed import embed, embed_again
from fastxfer.errors import UsageError
from tests.test_embed import NETWORK, make_backbone, make_images, open_store

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@needs_compiler
@pytest.mark.slow
def test_a_compiled_network_gives_the_same_embeddings_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no processes that outlive the test
    monkeypatch.setattr("tests.test_embed.NETWORK", NETWORK.replace("time.sleep({pause})", "pass"))
    target, backbone = make_images(tmp_path, 13), make_backbone(tmp_path)
    options: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 4}
    plain, one, three = (open_store(tmp_path / name) for name in ("plain", "one", "three"))
    embed(backbone, [target], plain, **options)
    embed(backbone, [target], one, workers=1, compiled="plain", **options)
    assert "net: compiled in" in capsys.readouterr().err
    embed(backbone, [target], three, workers=3, compiled="plain", **options)
    assert one.digest() == three.digest()
    np.testing.assert_allclose(one.embeddings("net", "photos"), plain.embeddings("net", "photos"), rtol=1e-4, atol=1e-5)
    assert one.attributes("net", "photos")["compiled"] == "plain"
    assert "compiled" not in plain.attributes("net", "photos")
    (tmp_path / "one/targets/photos/embeddings/net/c.1.0").unlink()
    embed_again(one, "net", target, arch=f"{tmp_path / 'net.py'}:build")
    assert one.digest() == three.digest()
    (tmp_path / "one/targets/photos/embeddings/net/c.1.0").unlink()
    capsys.readouterr()
    embed(backbone, [target], one, **options)
    assert "begun with another compiled: last bits may differ" in capsys.readouterr().err


def test_what_cannot_be_compiled_or_differs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, backbone, store = make_images(tmp_path, 2), make_backbone(tmp_path), open_store(tmp_path / "s")

    def broken(network: torch.nn.Module, mode: str) -> Any:
        def forward(_: torch.Tensor) -> None:
            raise RuntimeError("No working C++ compiler found\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        UsageError, match=r"--compile: torch could not compile net \(No working C\+\+ compiler found\).*g\+\+"
    ):
        embed(backbone, [target], store, compiled="plain")
    modes = []

    def wrong(network: torch.nn.Module, mode: str) -> Any:
        modes.append(mode)
        return lambda x: network(x) * 1.001

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(UsageError, match=r"--compile: embeddings of net would differ by 1\.0e-03 of the largest"):
        embed(backbone, [target], store, compiled="plain")
    assert modes == ["default"]
    with pytest.raises(UsageError, match="--compile graphs: CUDA graphs need a CUDA device, and this is cpu"):
        embed(backbone, [target], store, compiled="graphs", device="cpu")
    with pytest.raises(UsageError, match="--compile fast: one of plain, graphs"):
        embed(backbone, [target], store, compiled="fast")


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_embeddings(tmp_path: Path) -> None:
    target, backbone = make_images(tmp_path, 13), make_backbone(tmp_path)
    plain, graph = open_store(tmp_path / "plain"), open_store(tmp_path / "graph")
    embed(backbone, [target], plain, dtype="float32", device="cuda")
    embed(backbone, [target], graph, dtype="float32", device="cuda", compiled="graphs")
    np.testing.assert_allclose(
        graph.embeddings("net", "photos"), plain.embeddings("net", "photos"), rtol=1e-4, atol=1e-5
    )
