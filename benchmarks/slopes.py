"""How time grows with the work, as slopes of a double-logarithmic plot, against the slopes that the arithmetic has.

An entry an axis: `points` are [value, milliseconds], `slope` the straight line's through their logarithms, `expected_slope`
the same line's through the counted work, `slope_beyond` the difference: above 0, time grows faster than the work does;
below, small work pays for fixed costs and for vectors that it does not fill.

* episodes, ways, shots: of logistic probes at C = 1, the pool's Gram matrix standing. Counted are multiply-adds: m² a way and
  iteration, m a way and query.
* dim: the same; no growth. threads: one over their number, up to the cores.
* images: the Gram matrix: their square. backbones: `evaluate` over a store of so many, 1,000 episodes: their number.

Checked: all that was solved has converged.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import embeddings, two_halves
from benchmarks.fewshot import QUERIES, Case
from benchmarks.machine import seconds
from fastxfer import EmbeddingStore, evaluate, make_probe, ops
from fastxfer.episodes import EpisodeSpec, sample_episodes

ROUNDS = 5
Done = tuple[bool, float]  # whether all that was solved has converged, and the work that it took


def run(options: Any) -> list[dict[str, Any]]:
    """Seven entries."""
    count = 40 if options.tiny else 2000
    solving = partial(_solving, options)
    cores = range(1, (os.cpu_count() or 1) + 1)
    axes: list[tuple[str, Sequence[int], Callable[[int], Callable[[], Done]]]] = [
        ("episodes", (500, 1000, 2000, 4000, 8000), lambda n: solving(episodes=n)),
        ("ways", (2, 5, 10, 20), lambda n: solving(ways=n, episodes=count)),
        ("shots", (1, 2, 5, 10, 20), lambda n: solving(shots=n, episodes=count)),
        ("dim", (1280, 2560, 5120, 10_240), lambda n: solving(dim=n, episodes=count)),
        ("threads", cores, lambda n: solving(threads=n, episodes=2 * count)),
        ("images", (2000, 4000, 8000, 16_000), partial(_gram, options)),
        ("backbones", (1, 2, 4, 8), partial(_evaluating, options)),
    ]
    with threadpool_limits(options.threads):
        return [_entry(name, values[:2] if options.tiny else values, make, options) for name, values, make in axes]


def _entry(axis: str, values: Sequence[int], make: Callable[[int], Callable[[], Done]], options: Any) -> dict[str, Any]:
    """Each work in turn, several times, so that the machine's moods hit all of them."""
    print(f"slopes/{axis}", file=sys.stderr)
    works = [make(value) for value in values]
    done = [work() for work in works]  # also warms them
    rounds = [[1e3 * seconds(work)[0] for work in works] for _ in range(1 if options.tiny else ROUNDS)]
    times = np.median(rounds, axis=0)
    slope, expected = _slope(values, times), _slope(values, [counted for _, counted in done])
    return {
        "name": f"slopes/{axis}",
        "points": [[value, float(time)] for value, time in zip(values, times, strict=True)],
        "slope": slope,
        "expected_slope": expected,
        "slope_beyond": slope - expected,
        "checked": all(converged for converged, _ in done),
        "threads": options.threads,
        "tiny": options.tiny,
    }


def _slope(values: Sequence[int], work: Sequence[float]) -> float:
    if len(values) < 2:  # one core: there is no second number of threads
        return 0.0
    return float(np.polyfit(np.log(values), np.log(work), 1)[0])


def _solving(
    options: Any, *, ways: int = 5, shots: int = 5, episodes: int, dim: int = 1280, threads: int = 1
) -> Callable[[], Done]:
    x, labels, words = embeddings(800 if options.tiny else 2000, 1280, synthetic=options.tiny)
    x = np.tile(x, (1, dim // 1280)) / np.float32(np.sqrt(dim // 1280))  # the same inner products, whatever the width
    target = two_halves(labels)
    case = Case(x, words, target, sample_episodes(target, EpisodeSpec(ways, shots, QUERIES), 0, episodes), options)
    pool = ops.Pool(x, support=case.support, gram=True, threads=threads)
    pool.gram()

    def work() -> Done:
        got = case.ours(pool, case.episodes)
        m, queries = ways * shots, ways * QUERIES
        multiply_adds = ways * m * (m * float(got.iterations.sum()) + queries * episodes)
        return bool(got.converged.all()), multiply_adds / threads

    return work


def _gram(options: Any, n_images: int) -> Callable[[], Done]:
    x, _, _ = embeddings(n_images, 256 if options.tiny else 2048, synthetic=options.tiny)

    def work() -> Done:
        ops.Pool(x, gram=True, threads=options.threads).gram()
        return True, float(n_images) ** 2

    return work


def _evaluating(options: Any, backbones: int) -> Callable[[], Done]:
    x, labels, _ = embeddings(800 if options.tiny else 2000, 64 if options.tiny else 1280, synthetic=options.tiny)
    target = two_halves(labels)
    drawn = sample_episodes(target, EpisodeSpec(5, 5, QUERIES), 0, 20 if options.tiny else 1000)
    folder = tempfile.TemporaryDirectory()
    store = EmbeddingStore.open(Path(folder.name) / "store", mode="a")
    store.add_target(target)
    for i in range(backbones):
        attributes = {"identity": f"{i:064x}", "architecture": "none"}
        with store.writer(f"b{i}", target.name, dim=x.shape[1], dtype="float32", attributes=attributes) as writer:
            for block in list(writer.missing):
                writer.write(block, np.roll(x, i, axis=1)[block.start : block.stop])

    def work() -> Done:
        rows = evaluate(store, drawn, [make_probe("logistic")])
        return bool(folder and rows["converged"].all()), float(backbones)  # the folder lives as long as the work

    return work
