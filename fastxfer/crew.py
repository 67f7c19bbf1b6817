"""Threads that share out the blocks of a product, each with a BLAS of one thread: the same bits for any number of them.

A threaded BLAS cuts a product up by the number of its threads, and each cut rounds in its own way. Here the cuts are the
blocks, which are the same for everybody, and what is made of them is summed in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")

# Columns of a product that a thread makes at once.
PANEL = 256


def blas_threads() -> int:
    """As many as BLAS has just now: whoever limits one limits the other."""
    return max((int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


class Crew:
    """What `threads` can do at once; one thread is the caller's own."""

    def __init__(self, threads: int, pool: ThreadPoolExecutor | None) -> None:
        self.threads, self._pool = threads, pool

    def each(self, work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """`work` of each item, in the order of the items, of which no more than two a thread are under way."""
        if self._pool is None:
            yield from map(work, items)
            return
        under_way: deque[Future[Made]] = deque()
        try:
            for item in items:
                under_way.append(self._pool.submit(work, item))
                if len(under_way) >= 2 * self.threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def do(self, work: Callable[[Item], object], items: Iterable[Item]) -> None:
        """`work` of each item, for what it does."""
        for _ in self.each(work, items):
            pass

    def product(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """a @ b, of one float type."""
        made = np.empty((a.shape[0], b.shape[1]), a.dtype)

        def panel(start: int) -> None:
            columns = slice(start, start + PANEL)
            made[:, columns] = a @ b[:, columns]

        self.do(panel, range(0, b.shape[1], PANEL))
        return made


@contextmanager
def crew(threads: int | None = None) -> Iterator[Crew]:
    """A crew of so many threads, or as many as BLAS has; while the block runs, BLAS and OpenMP have one each."""
    threads = threads or blas_threads()
    with threadpool_limits(1):
        if threads == 1:
            yield Crew(1, None)
            return
        # OpenMP asks each thread how many it may have.
        with ThreadPoolExecutor(threads, "crew", initializer=threadpool_limits, initargs=(1,)) as pool:
            yield Crew(threads, pool)
