"""A path of 45 penalties, the field's C = 10^linspace(-6, 5), an episode: ours against our own single solve at C = 1.

Both times count everything from embeddings in memory to scores at every penalty, the pool's share included. `times_single`
says how many single solves the 45 cost.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import embeddings, two_halves
from benchmarks.fewshot import EPISODES, QUERIES, WORK, Case, pool_share
from benchmarks.machine import ratios, side_by_side
from fastxfer import ops
from fastxfer.episodes import Episodes, EpisodeSpec, sample_episodes
from fastxfer.targets.table import Target

C = np.logspace(-6, 5, 45)


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a (ways, shots)."""
    pool, dim = (800, 256) if options.tiny else (2000, 2048)
    x, labels, words = embeddings(pool, dim, synthetic=options.tiny)
    target = two_halves(labels)
    return [_entry(x, words, target, *work, options) for work in (WORK[:2] if options.tiny else WORK)]


def _entry(x: NDArray[np.float32], words: str, target: Target, ways: int, shots: int, options: Any) -> dict[str, Any]:
    print(f"path/{ways}w{shots}s", file=sys.stderr)
    m = ways * shots
    batch = 4 if options.tiny else max(2, 16_000 // m**2)
    episodes = sample_episodes(target, EpisodeSpec(ways, shots, QUERIES), options.seed, batch)
    case = Case(x, words, target, episodes, options)
    with threadpool_limits(options.threads):
        shared = case.pool(options.threads)
        gap, converged = _check(shared, case.x, episodes.window(0, min(batch, 4 if m < 200 else 2)))
        wall, core = pool_share(case, options.threads)
        fields = side_by_side(
            lambda _: _solve(shared, episodes, 1 / (m * C)),
            lambda _: _solve(shared, episodes, np.array([1 / m])),
            rounds=2 if options.tiny else 5,
            work=(batch, batch),
        )
    for who in ("ours", "peer"):
        fields[f"{who}_ms"] += wall
        fields[f"{who}_core_ms"] += core
    fields |= ratios(fields)
    return {
        "name": f"path/{ways}w{shots}s",
        "ways": ways,
        "shots": shots,
        "dim": x.shape[1],
        "pool": len(x),
        "episodes": EPISODES,
        "peer": "ours at one l2, C = 1",
        **fields,
        "times_single": 1 / fields["ratio"],
        "penalties": len(C),
        "pool_ms_per_episode": wall,
        "checked": bool(abs(gap) <= 1e-6 and converged),
        "largest_gap": gap,
        "threads": options.threads,
        "embeddings": words,
        "tiny": options.tiny,
    }


def _solve(pool: ops.Pool, e: Episodes, l2: NDArray[np.float64]) -> ops.LogisticResult:
    return ops.logistic(pool, e.support, e.support_labels, e.query, e.ways, list(l2))


def _check(pool: ops.Pool, x: NDArray[np.float32], e: Episodes) -> tuple[float, bool]:
    """Largest relative gap at any of the 45 to the same objective solved in float64 to 1e-10, each from zero."""
    l2 = 1 / (len(e.support_labels) * C)
    got = _solve(pool, e, l2)
    exact = ops.Pool(x, dtype="float64", gram=False, threads=1)
    best = np.stack(
        [ops.logistic(exact, e.support, e.support_labels, e.query, e.ways, [v], tol=1e-10).objective[:, 0] for v in l2],
        axis=1,
    )
    gaps = got.objective / best - 1
    return float(gaps.flat[np.abs(gaps).argmax()]), bool(got.converged.all())
