"""How few-shot logistic probes grow with their work: width of the embeddings, threads, number of episodes, memory.

Ours is held against itself: `peer` says which smaller or other work stands beside it, `ratio` is peer over ours as
everywhere, and `times` its inverse.

* growth/dim: 8,192 columns against 2,048, once both Gram matrices stand. The columns are repeated and halved, so inner
  products are the same and so is the number of iterations.
* growth/N-threads-a-core, growth/one-thread, growth/one-episode-a-call: against one thread a core, all in one call.
* growth/memory: 5,000 episodes of 20-way 20-shot; `bytes_beyond_pool` is the most that the process held above what it
  held before, scores included; its peer is a fifth of the episodes.

Checked: gaps to float64 within 1e-6 (widths), the same bits (threads, calls), the limit (memory).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import embeddings, two_halves
from benchmarks.fewshot import EPISODES, QUERIES, WORK, Case
from benchmarks.machine import side_by_side
from fastxfer import ops
from fastxfer.episodes import EpisodeSpec, sample_episodes

MEMORY_LIMIT = 2 * 2**30


def run(options: Any) -> list[dict[str, Any]]:
    """Entries of the three kinds."""
    return [*_widths(options), *_threads(options), _memory(options)]


def _case(options: Any, ways: int, shots: int, episodes: int, copies: int = 1) -> Case:
    x, labels, words = embeddings(800 if options.tiny else 2000, 64 if options.tiny else 2048, synthetic=options.tiny)
    x = np.tile(x, (1, copies)) / np.float32(np.sqrt(copies))
    target = two_halves(labels)
    spec = EpisodeSpec(ways, shots, QUERIES)
    return Case(x, words, target, sample_episodes(target, spec, options.seed, episodes), options)


def _widths(options: Any) -> list[dict[str, Any]]:
    entries = []
    for ways, shots in WORK[:2] if options.tiny else WORK:
        print(f"growth/dim/{ways}w{shots}s", file=sys.stderr)
        count = 8 if options.tiny else max(8, 20_000 // (ways * shots) ** 2)
        cases = [_case(options, ways, shots, count, copies) for copies in (4, 1)]
        wide, narrow = (case.x.shape[1] for case in cases)
        with threadpool_limits(options.threads):
            pools = [case.pool(options.threads) for case in cases]
            gap = max(_gap(case, pool) for case, pool in zip(cases, pools, strict=True))
            timed = side_by_side(
                lambda _, c=cases, p=pools: c[0].ours(p[0], c[0].episodes),
                lambda _, c=cases, p=pools: c[1].ours(p[1], c[1].episodes),
                rounds=2 if options.tiny else 15,
                work=(count, count),
            )
        entries.append(
            _entry(cases[0], f"growth/dim{wide}/{ways}w{shots}s", f"ours at {narrow:,} columns", timed, options.threads)
            | {"largest_gap": gap, "checked": gap <= 1e-6, "gram": cases[0].gram}
        )
    return entries


def _gap(case: Case, pool: ops.Pool) -> float:
    """Largest relative gap of some episodes to the same in float64."""
    e = case.window(0, min(4, case.episodes.n_episodes))
    got = case.ours(pool, e).objective
    exact = ops.Pool(case.x, dtype="float64", gram=False, threads=1)
    best = ops.logistic(exact, e.support, e.support_labels, e.query, e.ways, [case.l2], tol=1e-10).objective
    return float(np.abs(got / best - 1).max())


def _threads(options: Any) -> list[dict[str, Any]]:
    cores = os.cpu_count() or 1
    count = 64 if options.tiny else EPISODES
    case = _case(options, 5, 5, count)
    pool = case.pool(cores)
    usual = case.ours(pool, case.episodes).scores

    def solve(threads: int, each: int) -> Callable[[int], Any]:
        def work(_: int) -> list[Any]:
            pool.threads = threads
            return [case.ours(pool, case.episodes.window(i, i + each)).scores for i in range(0, count, each)]

        return work

    entries = []
    for name, threads, each in (
        ("4-threads-a-core", 4 * cores, count),
        ("32-threads-a-core", 32 * cores, count),
        ("one-thread", 1, count),
        ("one-episode-a-call", cores, 1),
    ):
        work = solve(threads, each)
        print(f"growth/{name}", file=sys.stderr)
        same = bool(np.array_equal(np.concatenate(work(0)), usual))
        timed = side_by_side(work, solve(cores, count), rounds=2 if options.tiny else 9, work=(count, count))
        peer = "ours, one thread a core, all episodes in one call"
        entries.append(_entry(case, f"growth/{name}", peer, timed, threads) | {"checked": same})
    return entries


def _memory(options: Any) -> dict[str, Any]:
    print("growth/memory", file=sys.stderr)
    count = 20 if options.tiny else EPISODES
    case = _case(options, 20, 5 if options.tiny else 20, count)
    pool = case.pool(os.cpu_count() or 1)
    pool.gram()
    case.ours(pool, case.window(0, 1))
    few = case.episodes.window(0, count // 5)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    timed = side_by_side(
        lambda _: case.ours(pool, case.episodes),
        lambda _: case.ours(pool, few),
        rounds=1,
        work=(count, few.n_episodes),
    )
    beyond = max(0, _resident("VmHWM") - before)  # freed by others meanwhile: less than nothing
    name = "growth/memory/20w20s"
    return _entry(case, name, "ours, a fifth of the episodes, ms an episode", timed, pool.threads) | {
        "episodes": count,
        "bytes_beyond_pool": beyond,
        "limit_bytes": MEMORY_LIMIT,
        "checked": beyond <= MEMORY_LIMIT,
    }


def _resident(which: str) -> int:
    """Bytes of memory that this process holds (VmRSS), or has held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(which):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {which} in /proc/self/status")


def _entry(case: Case, name: str, peer: str, timed: dict[str, Any], threads: int) -> dict[str, Any]:
    return {
        "name": name,
        "ways": case.ways,
        "shots": case.shots,
        "dim": case.x.shape[1],
        "pool": len(case.x),
        "episodes": case.episodes.n_episodes,
        "peer": peer,
        **timed,
        "times": 1 / timed["ratio"],
        "threads": threads,
        "embeddings": case.words,
        "tiny": case.options.tiny,
    }
