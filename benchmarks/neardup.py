"""Near copies: how many are found, how many pairs are none, and the search among 112,120 hashes against FAISS's.

Recall: real images are changed as people change them, and the hashes of both must be near. False pairs: all pairs of
../shared/real that are reported as near without being equal; some of them are copies in truth (dtd10 holds the same
texture in other colours), so the rate is an upper bound. No image there has 1,024 pixels: for "1024 to 224" each is first
enlarged, and the large one is the original. `ours_ms` of these entries is the hash of one image, `peer_ms` its decoding.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import REAL
from benchmarks.machine import side_by_side
from fastxfer.images import EXTENSIONS, decode_image
from fastxfer.targets.likeness import ALIKE, LENGTH, alike, likeness

FOLDERS = ("kermany_pneumonia", "nih_sample", "dtd10", "cifar10_subset", "omniglot_small")  # the sixth has no images
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX)
IMAGES = 112_120  # NIH ChestX-ray14
PEER_SHARE = 10  # the peer is given one query in so many
RECALL, FALSE_PAIRS = 0.99, 1e-5

Pictures = dict[str, list[bytes]]


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a kind of change, one for false pairs, one for the search."""
    pictures, words = _pictures(options.tiny)
    hashes = {name: np.stack([likeness(_open(file)) for file in files]) for name, files in pictures.items()}
    with threadpool_limits(options.threads, "blas"):
        return [
            {"ways": None, "shots": None, "episodes": None, "dim": LENGTH, "threshold": ALIKE, "embeddings": words}
            | {"threads": options.threads, "tiny": options.tiny}
            | entry
            for entry in (*_found(pictures, hashes, options.tiny), _search(list(hashes.values()), options))
        ]


def _pictures(tiny: bool) -> tuple[Pictures, str]:
    """folder -> files, and where they are from."""
    if not tiny and (REAL / "README.md").is_file():
        return {
            name: [p.read_bytes() for p in sorted((REAL / name).rglob("*")) if p.suffix in EXTENSIONS]
            for name in FOLDERS
        }, "images of ../shared/real"
    rng = np.random.default_rng(0)
    made = []
    for _ in range(12):
        image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((96, 80))
        made.append(_png(image))
    return {"clouds": made}, "synthetic clouds"


def _found(pictures: Pictures, hashes: dict[str, NDArray[np.float32]], tiny: bool) -> list[dict[str, Any]]:
    """Recall of each change, and false pairs."""
    rng = np.random.default_rng(0)
    timed = [file for files in pictures.values() for file in files[:20]]
    opened = [_open(file) for file in timed]
    fields = side_by_side(
        lambda _: [likeness(image) for image in opened],
        lambda _: [_open(file) for file in timed],
        rounds=2 if tiny else 5,
        work=(len(timed), len(timed)),
    ) | {"peer": "decoding the image (Pillow)"}
    recalls: dict[str, dict[str, float]] = {kind: {} for kind in CHANGES}
    for name, files in pictures.items():
        some = [files[n] for n in rng.choice(len(files), min(300, len(files)), replace=False)]
        found: dict[str, list[bool]] = {kind: [] for kind in CHANGES}
        for number, file in enumerate(some):
            for kind, change in CHANGES.items():
                before, after = change(_open(file), FILTERS[number % len(FILTERS)])
                found[kind].append(bool(likeness(before) @ likeness(after) >= ALIKE))
        for kind, hits in found.items():
            recalls[kind][name] = float(np.mean(hits))
    entries = []
    for kind, by_folder in recalls.items():
        n = {name: min(300, len(files)) for name, files in pictures.items()}
        recall = sum(by_folder[name] * n[name] for name in n) / sum(n.values())
        entries.append(
            {"name": f"neardup/{kind}", "pool": sum(n.values()), **fields, "recall": recall, "by_folder": by_folder}
            | {"checked": recall >= RECALL}
        )
    pairs = {name: len(files) * (len(files) - 1) // 2 for name, files in pictures.items()}
    wrong = {name: _false_pairs(hashes[name], pictures[name]) for name in pictures}
    everything = np.concatenate(list(hashes.values()))
    n_pairs = len(everything) * (len(everything) - 1) // 2
    n_wrong = _false_pairs(everything, [file for files in pictures.values() for file in files])
    entries.append(
        {"name": "neardup/false pairs", "pool": len(everything), **fields, "pairs": n_pairs, "false_pairs": n_wrong}
        | {"per_100_000": 1e5 * n_wrong / n_pairs, "checked": n_wrong <= FALSE_PAIRS * n_pairs}
        | {"per_100_000_by_folder": {name: 1e5 * wrong[name] / pairs[name] for name in pictures}}
    )
    return entries


def _false_pairs(hashes: NDArray[np.float32], files: list[bytes]) -> int:
    """Pairs that are near without being equal once decoded."""
    pairs = [(i, j) for rows, others, _ in alike(hashes) for i, j in zip(rows, others, strict=True)]
    return sum(_open(files[i]).tobytes() != _open(files[j]).tobytes() for i, j in pairs)


def _search(hashes: list[NDArray[np.float32]], options: Any) -> dict[str, Any]:
    """All pairs of many hashes, each the sum of two real ones of a folder: as crowded as real ones, and none equal."""
    import faiss

    n = 3000 if options.tiny else IMAGES
    rng = np.random.default_rng(1)
    x = np.empty((n, LENGTH), np.float32)
    at = np.sort(rng.integers(0, len(hashes), n))
    for which, real in enumerate(hashes):
        here = np.flatnonzero(at == which)
        x[here] = real[rng.integers(0, len(real), len(here))] + 0.7 * real[rng.integers(0, len(real), len(here))]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    query = np.arange(0, n, PEER_SHARE)
    faiss.omp_set_num_threads(options.threads)
    index = faiss.IndexFlatIP(LENGTH)
    index.add(x)
    ours: list[Any] = []
    peer: list[Any] = []
    fields = side_by_side(
        lambda _: ours.append([np.concatenate(part) for part in zip(*alike(x), strict=True)]),
        lambda _: peer.append(index.range_search(x[query], ALIKE)),
        rounds=1,
        work=(1, len(query) / n),
    )
    i, j, _ = ours[-1]
    limits, _, found = peer[-1]
    asked = np.repeat(query, np.diff(limits).astype(int))
    theirs = {(min(a, b), max(a, b)) for a, b in zip(asked.tolist(), found.tolist(), strict=True) if a != b}
    among = np.isin(i, query) | np.isin(j, query)
    mine = set(zip(i[among].tolist(), j[among].tolist(), strict=True))
    return {
        "name": "neardup/search",
        "pool": n,
        "peer": f"FAISS IndexFlatIP.range_search, every {PEER_SHARE}th image asked, its time times {PEER_SHARE}",
        **fields,
        "pairs_found": len(i),
        "differ": len(mine ^ theirs),
        # Pairs within float32's rounding of the threshold may fall to either side.
        "checked": len(mine ^ theirs) <= 1e-4 * max(10_000, len(mine)),
    }


def _open(file: bytes) -> Image.Image:
    return decode_image(io.BytesIO(file), "benchmark")


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _scaled(image: Image.Image, factor: float, how: Image.Resampling) -> Image.Image:
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), how)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    stream.seek(0)
    return decode_image(stream, "benchmark")


def _enlarged(image: Image.Image) -> Image.Image:
    return _scaled(image, 1024 / max(image.size), Image.Resampling.BICUBIC)


def _from_1024(image: Image.Image, how: Image.Resampling) -> tuple[Image.Image, Image.Image]:
    large = _enlarged(image)
    return large, _scaled(large, 224 / 1024, how)


CHANGES: dict[str, Callable[[Image.Image, Image.Resampling], tuple[Image.Image, Image.Image]]] = {
    "half": lambda image, how: (image, _scaled(image, 0.5, how)),
    "three quarters": lambda image, how: (image, _scaled(image, 0.75, how)),
    "jpeg 75": lambda image, how: (image, _jpeg(image, 75)),
    "1024 to 224": _from_1024,
}
