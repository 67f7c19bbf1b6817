"""Drawing episodes: 5,000 at a time, against a loop over NumPy's `Generator.choice`, and against solving them.

`ours_ms` and `peer_ms` are of all 5,000 episodes together, from the target's table to index arrays, on one thread (neither
has more); `share_of_solving` compares core seconds with those of the logistic probe (C = 1, the pool's Gram matrix
included) on the same episodes; `random_core_ms` is the generator's part alone, with nothing drawn: the floor. Checked: some episodes are drawn again with NumPy's Philox and Python's integers.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from benchmarks import fewshot
from benchmarks.embeddings import embeddings, two_halves
from benchmarks.machine import seconds, summary
from fastxfer import ops
from fastxfer.episodes import Episodes, EpisodeSpec, draws, sample_episodes
from fastxfer.targets.table import Target

WORK = [(5, 1), (5, 5), (20, 20)]
PEER = "a loop over numpy.random.Generator.choice"


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a (ways, shots)."""
    n_images, dim = (800, 256) if options.tiny else (2000, 2048)
    x, labels, words = embeddings(n_images, dim, synthetic=options.tiny)
    target = two_halves(labels)
    return [_entry(x, words, target, *work, options) for work in WORK]


def _entry(x: NDArray[np.float32], words: str, target: Target, ways: int, shots: int, options: Any) -> dict[str, Any]:
    count = 40 if options.tiny else fewshot.EPISODES
    spec, name = EpisodeSpec(ways, shots, fewshot.QUERIES), f"sample/{ways}w{shots}s"
    print(f"{name}: checking", file=sys.stderr)
    episodes = sample_episodes(target, spec, options.seed, count)
    checked = all(_redrawn(target, episodes, e) for e in np.linspace(0, count - 1, 5).astype(int))
    print(f"{name}: timing", file=sys.stderr)
    ours, peer = [], []
    for _ in range(3 if options.tiny else 9):
        ours.append(seconds(lambda: sample_episodes(target, spec, options.seed, count)))
        few = max(1, count // 50)
        peer.append(np.array(seconds(lambda few=few: _peer(target, spec, options.seed, few))) * count / few)
    (middle, core), (peer_middle, peer_core) = np.median(ours, axis=0), np.median(peer, axis=0)
    solving = _solving_seconds(x, episodes, 20 if options.tiny else max(20, 4000 // (ways * shots)))
    return {
        "name": name,
        "ways": ways,
        "shots": shots,
        "queries": fewshot.QUERIES * ways,
        "dim": x.shape[1],
        "pool": len(x),
        "episodes": count,
        "ours_ms": 1e3 * middle,
        "ours_ms_range": [1e3 * s for s in summary([wall for wall, _ in ours])[1]],
        "ours_core_ms": 1e3 * core,
        "random_core_ms": 1e3 * _random_seconds(spec, count),
        "peer": PEER,
        "peer_ms": 1e3 * peer_middle,
        "peer_core_ms": 1e3 * peer_core,
        "ratio": peer_middle / middle,
        "ratio_per_core": peer_core / core,
        "solving_core_ms": 1e3 * solving,
        "share_of_solving": core / solving,
        "checked": bool(checked),
        "threads": 1,
        "embeddings": words,
        "tiny": options.tiny,
    }


def _random_seconds(spec: EpisodeSpec, count: int) -> float:
    """Core seconds of as many blocks of four random integers as the episodes take."""
    assert spec.ways != "all"
    each = -(-int(spec.ways) // 4) + int(spec.ways) * (-(-spec.shots // 4) + -(-fewshot.QUERIES // 4))
    _blocks(1, 1)
    return float(np.median([seconds(lambda: _blocks(each, count))[1] for _ in range(9)]))


@numba.njit
def _blocks(each: int, episodes: int) -> np.uint64:
    mixed, out = np.uint64(0), np.empty(4, np.uint64)
    for e in range(episodes):
        for block in range(each):
            draws.philox(block, 3, e, 0, 1, out)
            mixed ^= out[0] ^ out[1] ^ out[2] ^ out[3]
    return mixed


def _peer(target: Target, spec: EpisodeSpec, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    of = {
        split: [np.flatnonzero((target.split == split) & (target.labels == c)) for c in range(20)]
        for split in ("train", "test")
    }
    for _ in range(count):
        classes = rng.choice(20, spec.ways, replace=False)
        np.concatenate([rng.choice(of["train"][c], spec.shots, replace=False) for c in classes])
        np.concatenate([rng.choice(of["test"][c], fewshot.QUERIES, replace=False) for c in classes])


def _solving_seconds(x: NDArray[np.float32], episodes: Episodes, batch: int) -> float:
    """Core seconds of the logistic probe on all the episodes, from those of some; the Gram matrix comes once."""
    pool = ops.Pool(x, gram=True, threads=1)
    gram = seconds(pool.gram)[1]
    l2 = 1.0 / (episodes.ways * episodes.spec.shots)
    batch = min(batch, episodes.n_episodes)
    some = episodes.window(0, batch)
    ops.logistic(pool, some.support, some.support_labels, some.query, some.ways, [l2])
    return (
        gram
        + seconds(lambda: ops.logistic(pool, some.support, some.support_labels, some.query, some.ways, [l2]))[1]
        * episodes.n_episodes
        / batch
    )


def _redrawn(target: Target, episodes: Episodes, e: int) -> bool:
    """Whether episode `e` is what a Fisher-Yates shuffle by NumPy's Philox makes it."""
    spec = episodes.spec
    classes = _shuffled(np.arange(20), episodes.ways, 0, e, episodes.seed, 0)
    same = episodes.classes[e].tolist() == classes
    for drawn, split, k, purpose in ((episodes.support, "train", spec.shots, 1), (episodes.query, "test", 15, 2)):
        rows = drawn[e].reshape(episodes.ways, k)
        for label, c in enumerate(classes):
            own = np.flatnonzero((target.split == split) & (target.labels == c))
            same &= rows[label].tolist() == _shuffled(own, k, c, e, episodes.seed, purpose)
    return same


def _shuffled(rows: NDArray[np.int64], k: int, stream: int, episode: int, seed: int, purpose: int) -> list[int]:
    deck = rows.tolist()
    for i in range(k):
        counter = i // 4 + (int(stream) << 64) + (int(episode) << 128)
        random = np.random.Philox(counter=(counter - 1) % 2**256, key=seed + (purpose << 64)).random_raw(4)
        j = i + (int(random[i % 4]) * (len(deck) - i) >> 64)
        deck[i], deck[j] = deck[j], deck[i]
    return deck[:k]
