"""A pool's Gram matrix, 20,000 x 2,048: ours against half of BLAS's product of all pairs.

`peer_ms` is half the time of one sgemm of the same embeddings with a copy of themselves (no symmetry to be seen), since half
of its products are enough. Both write into memory that has been used before: what its first touch costs depends on the machine.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import many
from benchmarks.machine import side_by_side
from fastxfer import ops
from fastxfer.ops.pool import fill_gram


def run(options: Any) -> list[dict[str, Any]]:
    """One entry."""
    n, dim = (1000, 64) if options.tiny else (20_000, 2048)
    x, _, words = many(n, dim, synthetic=options.tiny)
    print("gram", file=sys.stderr)
    with threadpool_limits(options.threads):
        pool = ops.Pool(x, gram=True, threads=options.threads)
        left, right = pool.centred, pool.centred.copy()
        gram, out = pool.gram(), np.empty((n, n), np.float32)
        fields = side_by_side(
            lambda _: fill_gram(pool.centred, gram),
            lambda _: np.matmul(left, right.T, out=out),
            rounds=2 if options.tiny else 3,
            work=(1, 2),
        )
        # Entry by entry, by what float32 sums of products of these lengths may be off.
        length = np.sqrt(np.einsum("ij,ij->i", left, left))
        off = max(float((np.abs(gram[i] - out[i]) / (length[i] * length)).max()) for i in range(0, n, 10))
        symmetric = all(np.array_equal(gram[i], gram[:, i]) for i in range(0, n, 100))
    return [
        {
            "name": "gram/pool",
            "ways": None,
            "shots": None,
            "dim": dim,
            "pool": n,
            "episodes": None,
            "peer": "half of BLAS sgemm, all pairs",
            **fields,
            "largest_difference": off,
            "checked": off < 1e-5 and symmetric,
            "threads": options.threads,
            "embeddings": words,
            "tiny": options.tiny,
        }
    ]
