"""Few-shot logistic probes, an episode at one penalty, C = 1: ours against scikit-learn and against torch.

`ours_ms` counts everything from embeddings in memory (float16, as in a store) and episode indices to scores: the pool (and
its Gram matrix, where one pays for 5,000 episodes), shared out over these, and the solution of an episode. `peer_ms` is fit
plus scores of the same queries, in float32. Both are wall time at the threads asked for; `ratio_per_core` compares one
thread with one thread in core seconds (`…_core_ms`), which other work on the machine hardly disturbs.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks import torch_lbfgs
from benchmarks.embeddings import embeddings, foreign, have_real, two_halves
from benchmarks.machine import ratios, seconds, side_by_side
from fastxfer import ops
from fastxfer.episodes import Episodes, EpisodeSpec, sample_episodes
from fastxfer.targets.table import Target

WORK = [(5, 1), (5, 5), (20, 5), (20, 20)]
QUERIES = 15
EPISODES = 5000
SCIKIT = "scikit-learn LogisticRegression, defaults (C = 1), float32"
TORCH = "torch LBFGS, {} episodes at a time, {}, until a gap of 1e-6 or nothing more is gained"

Array = NDArray[Any]


@dataclass
class Case:
    """One kind of episodes on one pool, and what the pool costs an episode."""

    x: Array
    words: str
    target: Target
    episodes: Episodes
    options: Any

    def __post_init__(self) -> None:
        self.stored = self.x.astype(np.float16)  # as `embed` writes them; the peers get the same numbers in float32
        self.x = self.stored.astype(np.float32)
        spec = self.episodes.spec
        assert spec.ways != "all"
        self.ways, self.shots = int(spec.ways), spec.shots
        self.m = self.ways * self.shots
        self.l2 = 1.0 / self.m
        self.support = self.target.rows("train")
        products = EPISODES * ops.products_of(self.m, self.ways * QUERIES, self.ways)
        self.gram = ops.gram_pays(len(self.support), len(self.x), products)

    def pool(self, threads: int) -> ops.Pool:
        pool = ops.Pool(self.stored, support=self.support, gram=self.gram, threads=threads)
        if self.gram:
            pool.gram()
        return pool

    def window(self, turn: int, count: int) -> Episodes:
        start = (turn * count) % max(1, self.episodes.n_episodes - count + 1)
        return self.episodes.window(start, start + count)

    def ours(self, pool: ops.Pool, e: Episodes) -> ops.LogisticResult:
        return ops.logistic(pool, e.support, e.support_labels, e.query, e.ways, [self.l2])

    def scikit(self, e: Episodes) -> list[LogisticRegression]:
        fitted = []
        for support, query in zip(e.support, e.query, strict=True):
            classifier = LogisticRegression(C=1.0).fit(self.x[support], e.support_labels)
            classifier.decision_function(self.x[query])
            fitted.append(classifier)
        return fitted


def run(options: Any) -> list[dict[str, Any]]:
    """One entry a (pool, ways, shots, peer)."""
    entries = []
    for name, case, with_torch in _cases(options):
        with threadpool_limits(options.threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", FutureWarning)
            entries += _entries(case, name, with_torch)
    return entries


def _cases(options: Any) -> Iterator[tuple[str, Case, bool]]:
    """(name, case, whether torch is a peer, too)"""
    count = 40 if options.tiny else EPISODES
    for n_images in (800,) if options.tiny else (2000, 20_000):
        x, labels, words = embeddings(n_images, 256 if options.tiny else 2048, synthetic=options.tiny)
        target = two_halves(labels)
        pool = "" if n_images <= 2000 else f"/{n_images // 1000}k"
        for ways, shots in WORK:
            episodes = sample_episodes(target, EpisodeSpec(ways, shots, QUERIES), options.seed, count)
            yield f"fewshot/{ways}w{shots}s{pool}", Case(x, words, target, episodes, options), n_images <= 2000
    if not options.tiny and have_real():
        # Photographs by a network that was trained on chest X-rays: the solver's hard case, where it preconditions.
        x, labels, words = foreign()
        target = two_halves(labels, classes=10)
        episodes = sample_episodes(target, EpisodeSpec(5, 100, QUERIES), options.seed, count)
        yield "fewshot/foreign/5w100s", Case(x, words, target, episodes, options), False


def _entries(case: Case, name: str, with_torch: bool) -> list[dict[str, Any]]:
    options, tiny = case.options, case.options.tiny
    print(f"{name}: checking", file=sys.stderr)
    shared = case.pool(options.threads)
    gap, same = _check(case, shared, 2 if tiny else 3 if case.m > 200 else 10)
    common = {
        "ways": case.ways,
        "shots": case.shots,
        "queries": QUERIES * case.ways,
        "dim": case.x.shape[1],
        "pool": len(case.x),
        "episodes": EPISODES,
        "l2": case.l2,
        "gram": case.gram,
        "checked": bool(abs(gap) <= 1e-6 and same),
        "largest_gap": gap,
        "threads": options.threads,
        "instruction_set": ops.instruction_set(),
        "embeddings": case.words,
        "tiny": tiny,
    }
    print(f"{name}: timing", file=sys.stderr)
    rounds = 2 if tiny else 5
    share = {count: pool_share(case, count) for count in {options.threads, 1}}
    batch = _batch(case, shared, 0.02 if tiny else 0.5)
    n_peer = 1 if tiny else _fitting(lambda n: case.scikit(case.window(0, n)), 0.6)
    fitted: list[LogisticRegression] = []
    scikit = _timed(
        case, shared, share, batch, lambda i: fitted.extend(case.scikit(case.window(i, n_peer))), n_peer, rounds
    )
    converged = sum(int(f.n_iter_.max() < f.max_iter) for f in fitted) / len(fitted)
    entries = [common | {"name": name, "peer": SCIKIT, "peer_converged": converged} | scikit]
    if not with_torch:
        return entries
    together = 4 if tiny else max(2, min(16, 800 // case.m))
    e = case.window(0, together)
    exact = ops.Pool(case.x, dtype="float64", gram=False, threads=options.threads)
    best = ops.logistic(exact, e.support, e.support_labels, e.query, e.ways, [case.l2], tol=1e-11).objective[:, 0]
    for dtype, short in (("float32", "torch"), ("float64", "torch64")):
        needed, reached = torch_lbfgs.rounds_to(case.x, e, case.l2, best, gap=1e-6, dtype=dtype)
        solve = partial(torch_lbfgs.solve, case.x, e, case.l2, needed, dtype)
        torch = _timed(case, shared, share, batch, lambda i, solve=solve: solve(), together, 2)
        peer = {"peer": TORCH.format(together, dtype), "peer_gap": reached, "peer_converged": float(reached <= 1e-6)}
        entries.append(common | {"name": f"{name}/{short}"} | peer | torch)
    return entries


def pool_share(case: Case, threads: int) -> tuple[float, float]:
    """Milliseconds, wall and of a core, that the pool costs an episode."""
    with threadpool_limits(threads):
        made = [seconds(lambda: case.pool(threads)) for _ in range(3)]
    wall, core = np.median(made, axis=0) * 1e3 / EPISODES
    return float(wall), float(core)


def _timed(
    case: Case,
    shared: ops.Pool,
    share: dict[int, tuple[float, float]],
    batch: int,
    peer: Callable[[int], Any],
    n_peer: int,
    rounds: int,
) -> dict[str, Any]:
    """Both at the threads asked for, then one core against one core; the pool's share is added to ours."""
    threads = case.options.threads
    fields: dict[str, Any] = {}
    for count in dict.fromkeys((threads, 1)):
        with threadpool_limits(count):
            shared.threads = count
            some = side_by_side(
                lambda i: case.ours(shared, case.window(i, batch)), peer, rounds=rounds, work=(batch, n_peer)
            )
        some["ours_ms"] += share[count][0]
        some["ours_core_ms"] += share[count][1]
        # Wall time is that of the threads asked for, core time that of one.
        fields |= {k: v for k, v in some.items() if not fields or "_core_ms" in k}
    shared.threads = threads
    return fields | {"pool_ms_per_episode": share[threads][0]} | ratios(fields)


def _batch(case: Case, pool: ops.Pool, budget: float) -> int:
    """How many episodes ours solves in about `budget` seconds, in whole blocks of what one call would get."""
    first = min(64, case.episodes.n_episodes)
    case.ours(pool, case.window(0, first))  # warm
    each = seconds(lambda: case.ours(pool, case.window(0, first)))[0] / first
    return int(np.clip(budget / each, first, case.episodes.n_episodes))


def _fitting(work: Callable[[int], Any], budget: float) -> int:
    work(1)
    start = time.perf_counter()
    work(2)
    return int(np.clip(2 * budget / (time.perf_counter() - start), 1, 200))


def _check(case: Case, pool: ops.Pool, count: int) -> tuple[float, bool]:
    """Largest relative gap to scikit-learn in float64 at tolerance 1e-10, and whether predictions are equal but for ties."""
    e = case.window(0, count)
    got = case.ours(pool, e)
    y = e.support_labels
    gaps, same = [], bool(got.converged.all())
    for i in range(count):
        xs, xq = case.x[e.support[i]].astype(np.float64), case.x[e.query[i]].astype(np.float64)
        best = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(xs, y)
        z = best.decision_function(xs)
        loss = (np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]).mean()
        value = loss + 0.5 * case.l2 * float((best.coef_**2).sum())
        gaps.append(float(got.objective[i, 0]) / value - 1)
        scores = best.decision_function(xq)
        ours = got.scores[i, 0].argmax(axis=1)
        rows = np.arange(len(scores))
        lost = scores.max(axis=1) - scores[rows, ours]
        same &= bool((lost <= 1e-3 * (scores.max(axis=1) - scores.min(axis=1))).all())
    return max(gaps, key=abs), same
