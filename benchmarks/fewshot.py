"""Few-shot logistic probes, an episode: ours against scikit-learn's LogisticRegression, at one penalty, C = 1.

`ours_ms` counts everything from embeddings in memory and episode indices to scores: the pool, its Gram matrix, shared
out over 5,000 episodes, and the solution of an episode. `peer_ms` is fit plus scores of the same queries. Both are wall
time at the threads asked for; `ratio_per_core` compares one thread with one thread in core seconds (`…_core_ms`), which
other work on the machine hardly disturbs.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import embeddings
from benchmarks.machine import seconds, summary
from fastxfer import ops
from fastxfer.episodes import Episodes, EpisodeSpec, sample_episodes
from fastxfer.targets.table import Target

WORK = [(5, 1), (5, 5), (20, 5), (20, 20)]
QUERIES = 15
EPISODES = 5000
PEER = "scikit-learn LogisticRegression, defaults (C = 1), float32"


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a (ways, shots)."""
    pool, dim = (800, 256) if options.tiny else (2000, 2048)
    x, labels, words = embeddings(pool, dim, synthetic=options.tiny)
    target = _target(labels)
    return [_entry(x, words, target, *work, options) for work in WORK]


def _target(labels: NDArray[np.int64]) -> Target:
    """Both splits draw from a half of each class."""
    n = len(labels)
    return Target(
        name="benchmark",
        image_id=np.array([f"{i:06}" for i in range(n)]),
        class_names=tuple(f"class {c}" for c in range(20)),
        labels=labels,
        split=np.where(np.arange(n) // 20 % 2 == 0, "train", "test"),
    )


def _entry(x: NDArray[np.float32], words: str, target: Target, ways: int, shots: int, options: Any) -> dict[str, Any]:
    tiny = options.tiny
    episodes = sample_episodes(target, EpisodeSpec(ways, shots, QUERIES), options.seed, 40 if tiny else EPISODES)
    l2 = 1.0 / (ways * shots)
    name = f"{ways}w{shots}s"
    print(f"fewshot/{name}: checking", file=sys.stderr)
    with threadpool_limits(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        support = target.rows("train")
        shared = ops.Pool(x, support=support, gram=True, threads=options.threads)
        gap, same = _check(shared, x, episodes, l2, 2 if tiny else 3 if ways * shots > 200 else 10)
        print(f"fewshot/{name}: timing", file=sys.stderr)
        rounds = 2 if tiny else 5
        pools = np.array([_pool_seconds(x, support, options.threads) for _ in range(rounds)])
        batch = _batch(shared, episodes, l2, 0.02 if tiny else 0.5)
        n_peer = 1 if tiny else _peer_batch(x, episodes, 0.6)
        ours, peer, ours_one, peer_one = [], [], [], []
        converged = 0
        for i in range(rounds):  # alternately, so that a change of the machine's mood hits both
            mine, yours = _window(episodes, i, batch), _window(episodes, i, n_peer)
            fitted: list[LogisticRegression] = []
            ours.append(seconds(lambda mine=mine: _ours(shared, mine, l2))[0] / batch)
            peer.append(seconds(lambda yours=yours, fitted=fitted: fitted.extend(_peer(x, yours)))[0] / n_peer)
            converged += sum(int(f.n_iter_.max() < f.max_iter) for f in fitted)
            with threadpool_limits(1):  # the same again, one core against one core, in core seconds
                shared.threads = 1
                ours_one.append(seconds(lambda mine=mine: _ours(shared, mine, l2))[1] / batch)
                peer_one.append(seconds(lambda yours=yours: _peer(x, yours))[1] / n_peer)
                shared.threads = options.threads
    pool_share, pool_share_one = np.median(pools, axis=0) / EPISODES
    middle, spread = summary([pool_share + s for s in ours])
    peer_middle, peer_spread = summary(peer)
    core, core_spread = summary([pool_share_one + s for s in ours_one])
    peer_core, peer_core_spread = summary(peer_one)
    return {
        "name": f"fewshot/{name}",
        "ways": ways,
        "shots": shots,
        "queries": QUERIES * ways,
        "dim": x.shape[1],
        "pool": len(x),
        "episodes": EPISODES,
        "l2": l2,
        "ours_ms": 1e3 * middle,
        "ours_ms_range": [1e3 * s for s in spread],
        "ours_core_ms": 1e3 * core,
        "ours_core_ms_range": [1e3 * s for s in core_spread],
        "pool_ms_per_episode": 1e3 * pool_share,
        "peer": PEER,
        "peer_ms": 1e3 * peer_middle,
        "peer_ms_range": [1e3 * s for s in peer_spread],
        "peer_core_ms": 1e3 * peer_core,
        "peer_core_ms_range": [1e3 * s for s in peer_core_spread],
        "peer_converged": converged / (rounds * n_peer),
        "ratio": peer_middle / middle,
        "ratio_per_core": peer_core / core,
        "checked": bool(abs(gap) <= 1e-6 and same),
        "largest_gap": gap,
        "threads": options.threads,
        "instruction_set": ops.instruction_set(),
        "embeddings": words,
        "tiny": tiny,
    }


def _window(episodes: Episodes, turn: int, count: int) -> Episodes:
    start = (turn * count) % max(1, episodes.n_episodes - count + 1)
    return episodes.window(start, start + count)


def _ours(pool: ops.Pool, e: Episodes, l2: float) -> ops.LogisticResult:
    return ops.logistic(pool, e.support, e.support_labels, e.query, e.ways, [l2])


def _pool_seconds(x: NDArray[np.float32], support: NDArray[np.int64], threads: int) -> tuple[float, float]:
    return seconds(lambda: ops.Pool(x, support=support, gram=True, threads=threads).gram())


def _peer(x: NDArray[np.float32], e: Episodes) -> list[LogisticRegression]:
    fitted = []
    for support, query in zip(e.support, e.query, strict=True):
        classifier = LogisticRegression(C=1.0).fit(x[support], e.support_labels)
        classifier.decision_function(x[query])
        fitted.append(classifier)
    return fitted


def _batch(pool: ops.Pool, episodes: Episodes, l2: float, budget: float) -> int:
    """How many episodes ours solves in about `budget` seconds, in whole blocks of what one call would get."""
    probe = min(64, episodes.n_episodes)
    _ours(pool, episodes.window(0, probe), l2)  # warm
    each = seconds(lambda: _ours(pool, episodes.window(0, probe), l2))[0] / probe
    return int(np.clip(budget / each, probe, episodes.n_episodes))


def _peer_batch(x: NDArray[np.float32], episodes: Episodes, budget: float) -> int:
    _peer(x, episodes.window(0, 1))
    start = time.perf_counter()
    _peer(x, episodes.window(0, 2))
    return int(np.clip(2 * budget / (time.perf_counter() - start), 1, 200))


def _check(pool: ops.Pool, x: NDArray[np.float32], episodes: Episodes, l2: float, count: int) -> tuple[float, bool]:
    """Largest relative gap to scikit-learn in float64 at tolerance 1e-10, and whether predictions are equal but for ties."""
    e = episodes.window(0, count)
    got = _ours(pool, e, l2)
    y = e.support_labels
    gaps, same = [], bool(got.converged.all())
    for i in range(count):
        xs, xq = x[e.support[i]].astype(np.float64), x[e.query[i]].astype(np.float64)
        best = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(xs, y)
        z = best.decision_function(xs)
        loss = (np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]).mean()
        value = loss + 0.5 * l2 * float((best.coef_**2).sum())
        gaps.append(float(got.objective[i, 0]) / value - 1)
        scores = best.decision_function(xq)
        ours = got.scores[i, 0].argmax(axis=1)
        rows = np.arange(len(scores))
        lost = scores.max(axis=1) - scores[rows, ours]
        same &= bool((lost <= 1e-3 * (scores.max(axis=1) - scores.min(axis=1))).all())
    return max(gaps, key=abs), same
