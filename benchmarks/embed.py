"""`fastxfer embed` against the bare network: images from disk to rows in the store, and tensors in memory to features.

`ours` and `peer` are images a second at the same number of threads, `ratio` ours over peer. The peer is timm's network in
evaluation and inference mode on a batch that lies in memory, in whichever memory format and batch size is fastest of those
tried (`peer` says which). Ours is what one more image costs once a run is going: a long run's time less a short run's; what
starting costs is `first_row`, in seconds to the first row in the store, against the same network's import, load and one
forward pass, each in a process of its own.

* bit_r50x1, efficientnet_lite0: JPEGs decoded, resized to 224, embedded, written.
* efficientnet_lite0/cached: the same with pixels from the cache on disk.
* many: five networks in one pass, against the sum of their bare times.

Checked: rows in the store are the bare network's features, to 1e-4 of the largest (float32 stored).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.embeddings import REAL
from benchmarks.machine import rates, summary
from fastxfer.backbones import Backbone, load_backbone
from fastxfer.embed import embed
from fastxfer.images import load_image
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target

FIVE = ("tf_efficientnet_lite0", "mobilenetv2_100", "resnet18", "resnet50", "resnetv2_50x1_bit")
SAME = 1e-4


def run(options: Any) -> list[dict[str, Any]]:
    """Entries of the four kinds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench = _Bench(root, options)
        if options.tiny:
            return [
                bench.entry("efficientnet_lite0", ("tf_efficientnet_lite0",), 8),
                bench.entry("efficientnet_lite0/cached", ("tf_efficientnet_lite0",), 8, cached=True),
                bench.entry("many", ("tf_efficientnet_lite0", "resnet18"), 8),
            ]
        return [
            bench.entry("bit_r50x1", ("resnetv2_50x1_bit",), 64),
            bench.entry("efficientnet_lite0", ("tf_efficientnet_lite0",), 256),
            bench.entry("efficientnet_lite0/cached", ("tf_efficientnet_lite0",), 256, cached=True),
            bench.entry("many", FIVE, 48),
            bench.first_row(),
        ]


class _Bench:
    def __init__(self, root: Path, options: Any) -> None:
        self.root, self.options, self.threads = root, options, options.threads
        self.size = 64 if options.tiny else 224
        self.rounds = 1 if options.tiny else 3
        self.images, self.words = _images(root, 24 if options.tiny else 640)
        self.runs = 0

    def backbone(self, name: str) -> Backbone:
        file = self.root / f"{name}.pt"
        if not file.exists():
            torch.manual_seed(0)
            torch.save(timm.create_model(name, pretrained=False).state_dict(), file)
        return load_backbone(file, arch=name, name=name, preprocessing={"input_size": (3, self.size, self.size)})

    def entry(self, name: str, networks: tuple[str, ...], each: int, *, cached: bool = False) -> dict[str, Any]:
        print(f"embed/{name}", file=sys.stderr)
        backbones = [self.backbone(n) for n in networks]
        checked = self._check(backbones)
        if cached:
            for count in (each // 2, each + each // 2):  # the pixels that the timed runs find
                self._embed(backbones, count, self.root / f"cached-{count}", "disk")
        bare = [_Bare(b, self.threads) for b in backbones]
        ours, peer = [], []
        for _ in range(self.rounds):
            peer.append(sum(b.seconds_an_image() for b in bare))
            short, long = (self._timed(backbones, count, cached) for count in (each // 2, each + each // 2))
            ours.append((long - short) / each)
        return self._fields(name, f"timm, bare forward of tensors in memory: {', '.join(b.words for b in bare)}") | {
            "networks": list(networks),
            "input_size": [3, self.size, self.size],
            **rates(ours, peer),
            "checked": checked,
        }

    def _fields(self, name: str, peer: str) -> dict[str, Any]:
        return {
            "name": name,
            "peer_is": peer,
            "threads": self.threads,
            "embeddings": self.words,
            "tiny": self.options.tiny,
            "versions_of_networks": {"timm": timm.__version__, "torch": torch.__version__},
        }

    def _timed(self, backbones: list[Backbone], count: int, cached: bool) -> float:
        self.runs += 1
        folder = self.root / (f"cached-{count}" if cached else f"run-{self.runs}")
        if cached:  # only the pixels are there
            store = EmbeddingStore.open(folder, mode="a")
            for backbone in backbones:
                store.remove(backbone.name, "benchmark")
        start = time.perf_counter()
        self._embed(backbones, count, folder, "disk" if cached else "off")
        return time.perf_counter() - start

    def _embed(self, backbones: list[Backbone], count: int, folder: Path, cache: str, dtype: str = "float16") -> None:
        some = self.images.take(np.arange(count))
        store = EmbeddingStore.open(folder, mode="a")
        embed(backbones, [replace(some, root=self.root)], store, workers=self.threads, cache=cache, dtype=dtype)

    def _check(self, backbones: list[Backbone]) -> bool:
        self.runs += 1
        folder = self.root / f"check-{self.runs}"
        self._embed(backbones, 6, folder, "off", "float32")
        store, same = EmbeddingStore.open(folder), True
        for b in backbones:
            pixels = [b.preprocessing.geometry()(load_image(self.root / str(i))) for i in self.images.image_id[:6]]
            with torch.inference_mode():
                expected = b.network(b.preprocessing.normalise(torch.from_numpy(np.stack(pixels)))).numpy()
            got = store.embeddings(b.name, "benchmark")
            same &= bool(np.abs(got - expected).max() <= SAME * np.abs(expected).max())
        return same

    def first_row(self) -> dict[str, Any]:
        """Seconds from nothing to the first row, each in a new process; import, load and one forward beside it."""
        print("embed/first_row", file=sys.stderr)
        name = "resnetv2_50x1_bit"
        file = self.root / f"{name}.pt"
        some = self.images.take(np.arange(8))
        np.savez(self.root / "some.npz", image_id=some.image_id, labels=some.labels, split=some.split)
        ours, peer = [], []
        for i in range(self.rounds + 2):
            peer.append(_process(_PEER, file, name, self.threads))
            ours.append(_process(_OURS, file, name, self.threads, self.root, self.root / f"first-{i}"))
        mine, spread = summary(ours)
        theirs, their_spread = summary(peer)
        return self._fields("first_row", "import of torch and timm, load, one forward pass of one image") | {
            "networks": [name],
            "unit": "s",
            "ours": mine,
            "ours_range": spread,
            "peer": theirs,
            "peer_range": their_spread,
            "ours_ms": 1e3 * mine,
            "peer_ms": 1e3 * theirs,
            "ratio": theirs / mine,
            "ratio_per_core": theirs / mine,
            "times": mine / theirs,
            "checked": True,
        }


class _Bare:
    """timm's network as it is, at its fastest of two memory formats and some batch sizes."""

    def __init__(self, backbone: Backbone, threads: int) -> None:
        self.network, self.threads = backbone.network, threads
        tried = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for batch in (8, 32):
                x = torch.randn(batch, *backbone.preprocessing.input_size).contiguous(memory_format=memory_format)
                tried.append((self._seconds(x, memory_format), batch, memory_format, x))
        _, self.batch, self.format, self.x = min(tried, key=lambda t: t[0] / t[1])
        self.words = f"{backbone.name} {self.batch} at once, {str(self.format).removeprefix('torch.')}"

    def seconds_an_image(self) -> float:
        return min(self._seconds(self.x, self.format) for _ in range(3)) / self.batch

    def _seconds(self, x: torch.Tensor, memory_format: torch.memory_format) -> float:
        self.network.to(memory_format=memory_format)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                self.network(x)
                start = time.perf_counter()
                self.network(x)
                return time.perf_counter() - start
        finally:
            torch.set_num_threads(before)


def _images(root: Path, count: int) -> tuple[Target, str]:
    """`count` JPEGs below `root` and their table: dtd10's, enlarged to a shorter side of 256; noise where it isn't there."""
    (root / "images").mkdir()
    sources = sorted((REAL / "dtd10/images").glob("*/*.jpg"))[:: max(1, 1200 // count)][:count]
    rng = np.random.default_rng(0)
    names = []
    for i in range(count):
        names.append(f"images/{i:04}.jpg")
        if sources:
            with Image.open(sources[i % len(sources)]) as image:
                scale = 256 / min(image.size)
                image.convert("RGB").resize((round(image.width * scale), round(image.height * scale))).save(
                    root / names[-1], quality=90
                )
        else:
            noise = rng.integers(0, 256, (32, 40, 3), np.uint8)
            Image.fromarray(noise).resize((320, 256)).save(root / names[-1], quality=90)
    words = f"{count} JPEGs of {'dtd10' if sources else 'noise'}, shorter side 256"
    table = Target(
        name="benchmark",
        image_id=np.array(names),
        class_names=("a", "b"),
        labels=np.arange(count) % 2,
        split=np.full(count, "train"),
        root=root,
    )
    return table, words


_PEER = """
import sys, torch, timm
torch.set_num_threads(int(sys.argv[3]))
network = timm.create_model(sys.argv[2], pretrained=False, num_classes=0)
state = torch.load(sys.argv[1], weights_only=True)
network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()}, strict=False)
network.eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
"""
_OURS = """
import sys, numpy as np
from pathlib import Path
from fastxfer.backbones import load_backbone
from fastxfer.embed import embed
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target
import torch
file, name, threads, root, store = sys.argv[1:]
torch.set_num_threads(int(threads))
some = np.load(Path(root) / "some.npz")
target = Target(name="t", class_names=("a", "b"), root=Path(root), **some)
backbone = load_backbone(file, arch=name, preprocessing={"input_size": (3, 224, 224)})
embed(backbone, [target.take(np.arange(1))], EmbeddingStore.open(store, mode="a"), workers=int(threads))
"""


def _process(code: str, *arguments: Any) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    return time.perf_counter() - start
