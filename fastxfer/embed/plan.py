"""What a run would do, and what it would cost, measured on a few images: `fastxfer embed --plan`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastxfer.backbones import Backbone
from fastxfer.embed.cache import bytes_needed
from fastxfer.embed.checks import path_of
from fastxfer.embed.forward import Forward, default_batch, device_of, one_thread_each
from fastxfer.errors import DataError
from fastxfer.images import decode_content, read_content
from fastxfer.ranks import cores_here
from fastxfer.store import EmbeddingStore
from fastxfer.targets.table import Target

TRIED = 12  # images decoded, spread over the target
_TRIED_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """One (backbone, target). `seconds`: of the whole part, all workers at work; `bytes`: on the disk when it is done.

    n_missing: images still to be embedded;  images_per_second: of this backbone alone, forward and decoding
    """

    backbone: str
    target: str
    n_images: int
    n_missing: int
    dim: int
    batch_size: int
    decode_ms: float
    forward_ms: float
    images_per_second: float
    seconds: float
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plans:
    """All parts of a run, and what they share. `cache_bytes`: of the pixels, were they kept (`--cache disk`)."""

    parts: list[Plan]
    seconds: float
    bytes: int
    cache_bytes: int
    memory_bytes: int
    workers: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    backbones: Sequence[Backbone],
    targets: Sequence[Target],
    store: EmbeddingStore | None,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    dtype: str = "float16",
    device: str = "auto",
) -> Plans:
    """Foretell time, bytes and memory of `embed` with the same arguments; nothing is written. `store` may not exist yet."""
    place = device_of(device)
    threads = workers or cores_here()
    parts, total, memory = [], 0.0, 0
    with one_thread_each(place):
        # Points of one network, which is run once for all of them.
        networks: dict[int, list[Backbone]] = {}
        for b in backbones:
            networks.setdefault(id(b.shared or b), []).append(b)
        forward: dict[str, float] = {}
        for first, *others in networks.values():
            each = _forward_ms(first, batch_size or default_batch(first, place), place)
            forward |= {b.name: each for b in (first, *others)}
        for target in targets:
            missing = {b.name: _missing(b, target, store) for b in backbones}
            decode = _decode_ms(target, backbones) if any(missing.values()) else 0.0
            on_cpu = place.type == "cpu"
            for b in backbones:
                # On a CPU the workers decode and compute; beside a GPU they decode, and the slower of both tells.
                each = (decode + forward[b.name]) / threads if on_cpu else max(decode / threads, forward[b.name])
                seconds = missing[b.name] * each / 1e3
                size = target.n_images * b.dim * np.dtype(dtype).itemsize
                batch = batch_size or default_batch(b, place)
                rate = 1e3 / each if each else 0.0
                parts.append(
                    Plan(b.name, target.name, target.n_images, missing[b.name], b.dim, batch, decode, forward[b.name],
                         rate, seconds, size)
                )  # fmt: skip
            # Together, each image is decoded once.
            shared = decode * max(missing.values(), default=0) / threads
            work = sum(forward[some[0].name] * max(missing[b.name] for b in some) for some in networks.values())
            work /= threads if on_cpu else 1
            total += (shared + work if on_cpu else max(shared, work)) / 1e3
    for b, *_ in networks.values():
        weights = sum(p.numel() * p.element_size() for p in b.network.parameters())
        pixels = int(np.prod(b.preprocessing.input_size))
        # The network and its lean copy; of each batch the pixels twice as floats, and activations, some ten times them.
        memory += 2 * weights + (batch_size or default_batch(b, place)) * pixels * 4 * 12 * threads
    return Plans(
        parts,
        total,
        sum(part.bytes for part in parts),
        bytes_needed(targets, [b.preprocessing for b in backbones]),
        memory,
        threads,
        str(place),
    )


def _missing(backbone: Backbone, target: Target, store: EmbeddingStore | None) -> int:
    """Images that the store lacks of this backbone's."""
    if store is None or target.name not in store.targets():
        return target.n_images
    entry = next((e for e in store.entries(target.name) if e.backbone == backbone.name), None)
    if entry is None or entry.attrs.get("identity") != backbone.identity:
        return target.n_images
    return entry.n_images - entry.n_present


def _decode_ms(target: Target, backbones: Sequence[Backbone]) -> float:
    """Milliseconds of one thread for an image: opened, decoded, and brought into every geometry."""
    wanted = {b.preprocessing.geometry_key: b.preprocessing for b in backbones}.values()
    geometries = [(p.enough, p.geometry()) for p in wanted]
    rows = np.unique(np.linspace(0, target.n_images - 1, TRIED).astype(int))
    spent, seen = 0.0, 0
    for row in rows:
        start = time.perf_counter()
        try:
            path = path_of(target, int(row))
            content, images = read_content(path), {}
            for enough, geometry in geometries:
                if enough not in images:
                    images[enough] = decode_content(content, path, pixels=target.pixels, at_least=enough)
                geometry(images[enough])
        except DataError:
            continue  # named when the run itself looks
        spent, seen = spent + time.perf_counter() - start, seen + 1
        if spent > _TRIED_SECONDS:
            break
    return 1e3 * spent / seen if seen else 0.0


def _forward_ms(backbone: Backbone, batch: int, device: Any) -> float:
    """Milliseconds of one thread (or of the GPU) for an image, the best of a few batches."""
    forward = Forward(backbone, device, batch)
    pixels = np.zeros((batch, *backbone.preprocessing.input_size), np.uint8)
    forward(pixels)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 and (not times or time.perf_counter() - began < _TRIED_SECONDS):
        start = time.perf_counter()
        forward(pixels)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times) / batch
