"""`embed --compile` against `embed`: the same networks on tensors of pixels in memory, and the seconds that compiling takes.

Not among the default benchmarks: compiling takes most of two minutes. `ours` is what embedding does without being asked
(`backbones.lean`), `peer` the same through torch.compile; `ratio` above 1 says that compiling does not pay however many the
images, and below 1, `pays_after` says after how many it does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.machine import rates
from fastxfer.backbones import load_backbone
from fastxfer.embed.forward import Forward, default_batch, one_thread_each

NETWORKS = ("resnetv2_50x1_bit", "tf_efficientnet_lite0")
SAME = 1e-4


def run(options: Any) -> list[dict[str, Any]]:
    """An entry a network, on one thread."""
    return [_entry(name, options) for name in (NETWORKS[1:] if options.tiny else NETWORKS)]


def _entry(name: str, options: Any) -> dict[str, Any]:
    print(f"compile/{name}", file=sys.stderr)
    size, rounds = (64, 1) if options.tiny else (224, 9)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, one_thread_each(cpu):
        torch.manual_seed(0)
        file = Path(folder) / f"{name}.pt"
        torch.save(timm.create_model(name, pretrained=False).state_dict(), file)
        backbone = load_backbone(file, arch=name, preprocessing={"input_size": (3, size, size)})
        batch = default_batch(backbone, cpu)
        plain = Forward(backbone, cpu, batch)
        start = time.perf_counter()
        compiled = Forward(backbone, cpu, batch, compiled="plain")
        seconds = time.perf_counter() - start
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), np.uint8)
        expected, got = plain(pixels), compiled(pixels)
        ours, peer = [], []
        for _ in range(rounds):
            for forward, times in ((plain, ours), (compiled, peer)):
                start = time.perf_counter()
                for _ in range(max(1, 8 // batch)):
                    forward(pixels)
                times.append((time.perf_counter() - start) / (batch * max(1, 8 // batch)))
    fields = rates(ours, peer)
    saved = 1 / fields["ours"] - 1 / fields["peer"]
    return {
        "name": f"compile/{name}",
        "peer_is": "the same through torch.compile",
        "threads": 1,
        "embeddings": "noise",
        "tiny": options.tiny,
        "versions_of_networks": {"timm": timm.__version__, "torch": torch.__version__},
        "input_size": [3, size, size],
        "batch": batch,
        **fields,
        "compile_s": seconds,
        "pays_after": seconds / saved if saved > 0 else None,
        "checked": bool(np.abs(got - expected).max() <= SAME * np.abs(expected).max()),
    }
