"""The largest full probes, 50,000 x 8,192, against the BLAS products of as many passes over the embeddings.

* large/classes: softmax over 1,000 classes at three strong penalties.
* large/labels: 14 labels, each known for two images in five, the 45 values of `C = 10^linspace(-6, 5)` with warm starts.
* large/on disk: the labels at five of the values, the embeddings in a memory map: the bits must be the same.

The peer is no solver but a floor: X·Wᵀ and Rᵀ·X by BLAS in float32, as often as ours passed over the embeddings; `ratio` is
the fraction of the run that these products would have taken. Memory is what the process had at most, less the embeddings.

The queries are the train images, so that their scores can be checked by duality, without the solver's weights: residuals
R of the scores give weights V = -RᵀX / (m l2), a lower bound of the minimum (the dual objective at R) and an upper one (the
primal objective at V). Checked: every penalty converged; no objective reported lies below the lower bound, nor above the
upper one by more than 1e-6; and for the largest penalties of each entry the two bounds meet to 1e-4. `bounds_apart` says
how far they are apart, relative to the objective, at each penalty: where it is small, little is left to be wrong. They are
computed in float64: in float32 their own rounding is 1e-6 at this size.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit, logsumexp, softmax
from threadpoolctl import threadpool_limits

from benchmarks.embeddings import many
from benchmarks.machine import ratios, seconds
from fastxfer import ops

STRONG = (1e-1, 1e-2, 1e-3)
CS = 10.0 ** np.linspace(-6, 5, 45)
LABELS = 14
KNOWN = 0.4
BLOCK = 5000
SAME = 1e-6  # what `converged` promises, and rounding
MEET = 1e-4


def run(options: Any) -> list[dict[str, Any]]:
    """Three entries."""
    m, dim, digits = (3000, 96, 2) if options.tiny else (50_000, 8192, 3)
    x, y, words = many(m, dim, digits=digits, synthetic=options.tiny)
    rng = np.random.default_rng(1)
    # Label i: whether a digit of the class has a certain value, of the images that somebody looked at.
    marked = np.stack([y // 10 ** (i % digits) % 10 == i // digits for i in range(LABELS)], axis=1)
    labels = np.where(rng.random(marked.shape) < KNOWN, marked, np.nan)
    known = float((~np.isnan(labels)).sum(axis=0).mean())
    grid = list(1 / (CS * known))
    bench = _Bench(x, options, words)
    with threadpool_limits(options.threads):
        single, _ = bench.entry("classes", y, 10**digits, list(STRONG), x)
        path, _ = bench.entry("labels", labels, LABELS, grid, x)
        few = grid[:20:4]
        memory = ops.logistic_full(x, labels, x, LABELS, few)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.npy"
            np.save(file, x)
            disk, got = bench.entry("on disk", labels, LABELS, few, np.load(file, mmap_mode="r"))
        disk["checked"] &= bool(np.array_equal(got.scores, memory.scores))
    return [single, path, disk]


class _Bench:
    """Embeddings in memory, and what all entries say."""

    def __init__(self, x: NDArray[np.float32], options: Any, words: str) -> None:
        self.x, self.options, self.words = x, options, words

    def entry(
        self, name: str, y: NDArray[Any], n_classes: int, l2: list[float], x: Any
    ) -> tuple[dict[str, Any], ops.LogisticResult]:
        """Solve all penalties once, then time the products of as many passes."""
        print(f"large/{name}: {len(l2)} penalties; minutes", file=sys.stderr)
        answers: list[ops.LogisticResult] = []
        wall, core = seconds(lambda: answers.append(ops.logistic_full(x, y, x, n_classes, l2)))
        got = answers[0]
        top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        passes = int(got.iterations.sum())
        a_pass, core_pass = seconds(lambda: self._products(n_classes))
        bounds = self._bounds(y, n_classes, np.array(l2), got.scores)
        apart = (bounds[:, 1] - bounds[:, 0]) / got.objective
        within = (got.objective >= bounds[:, 0] * (1 - SAME)) & (got.objective <= bounds[:, 1] * (1 + SAME))
        fields = {
            "ours_ms": 1e3 * wall,
            "ours_core_ms": 1e3 * core,
            "peer_ms": 1e3 * a_pass * passes,
            "peer_core_ms": 1e3 * core_pass * passes,
        }
        return {
            "name": f"large/{name}",
            "ways": n_classes,
            "shots": None,
            "queries": len(self.x),
            "dim": self.x.shape[1],
            "pool": len(self.x),
            "episodes": None,
            "l2": l2,
            "converged": got.converged.tolist(),
            "objective": got.objective.tolist(),
            "bounds": bounds.tolist(),
            "bounds_apart": apart.tolist(),
            "passes": passes,
            "memory_gib": round(top - self.x.nbytes / 2**30, 2),
            "peer": "the BLAS products of as many passes",
            **fields,
            **ratios(fields),
            "checked": bool(got.converged.all() and within.all() and apart[np.argmax(l2)] < MEET),
            "threads": self.options.threads,
            "embeddings": self.words,
            "tiny": self.options.tiny,
        }, got

    def _products(self, columns: int) -> None:
        w = np.ones((columns, self.x.shape[1]), np.float32)
        for start in range(0, len(self.x), BLOCK):
            rows = self.x[start : start + BLOCK]
            (rows @ w.T).T @ rows

    def _bounds(self, y: NDArray[Any], n_classes: int, l2: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[Any]:
        """(L, 2): below and above the minimum at each of L penalties, by the residuals of the scores (L, m, c)."""
        multi_label = y.ndim == 2
        known = ~np.isnan(y) if multi_label else np.ones((len(y), 1), bool)
        of = known.sum(axis=0)  # images of a problem
        truth = np.where(known, y, 0) if multi_label else np.eye(n_classes)[y]
        lower, residuals = [], []
        for z in scores:
            r = (expit(z) if multi_label else softmax(z, axis=1)) - truth
            r = np.where(known, r, 0)
            r -= np.where(known, r.sum(axis=0) / of, 0)  # the bias asks that they add up to nothing
            p = np.clip(r + truth, 0, 1)
            entropy = entr(p) + entr(1 - p) if multi_label else entr(p)
            lower.append(float((np.where(known, entropy, 0) / of).sum()))
            residuals.append(r / of)
        side_by_side = np.concatenate(residuals, axis=1)
        del residuals
        v = np.zeros((self.x.shape[1], side_by_side.shape[1]))
        mean = self.x.mean(axis=0, dtype=np.float64)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(self.x), BLOCK)]
        for rows in blocks:
            v -= (self.x[rows] - mean).T @ side_by_side[rows]
        v = v.reshape(len(v), len(l2), -1) / l2[:, None]
        penalty = 0.5 * l2 * (v**2).sum(axis=(0, 2))
        weights = v.reshape(len(v), -1)
        fitted = np.concatenate([(self.x[rows] - mean) @ weights for rows in blocks])
        upper = [
            self._loss(y, known, of, fitted[:, at : at + scores.shape[2]], z)
            for at, z in zip(range(0, fitted.shape[1], scores.shape[2]), scores, strict=True)
        ]
        return np.stack([np.array(lower) - penalty, np.array(upper) + penalty], axis=1)

    def _loss(
        self, y: NDArray[Any], known: NDArray[Any], of: NDArray[Any], fitted: NDArray[Any], z: NDArray[Any]
    ) -> float:
        fitted += np.where(known, z - fitted, 0).sum(axis=0) / of  # the bias of the scores, nearly
        if y.ndim == 2:
            loss = np.logaddexp(0, np.where(y > 0.5, -fitted, fitted))
        else:
            loss = (logsumexp(fitted, axis=1) - fitted[np.arange(len(y)), y])[:, None]
        return float((np.where(known, loss, 0) / of).sum())
