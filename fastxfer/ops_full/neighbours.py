"""`knn_full`: nearest neighbours among the full train split, by FAISS, or on a GPU without it by a kernel of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastxfer.backend import compiled, resolve_backend
from fastxfer.crew import crew
from fastxfer.errors import UsageError
from fastxfer.ops_full.check import check, check_finite
from fastxfer.reference import vote_weights

Array = NDArray[Any]
Floats = NDArray[np.float64]
# (queries, k) -> similarities and rows, (q, k) each
Search = Callable[[Array, int], tuple[Array, Array]]

# Blocks of rows that are made unit vectors and hashed while they are in the processor's inner cache.
CACHE_BYTES = 2**17
# Squared lengths between these neither overflow nor lose digits as float32.
SQUARES = 1e-20, 1e30
INDEXES = ("flat", "ivf", "hnsw")
# Queries that a thread asks the flat index at once.
QUERIES = 512
# Queries whose exact neighbours tell the recall of an approximate index.
RECALL_QUERIES = 200
# HNSW: links of a node, and candidates kept while building and searching (Malkov & Yashunin 2018).
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128


class KnnResult(NamedTuple):
    """scores (K, q, n_classes) float32, in the order of `k`; recall: of the exact nearest neighbours at the largest k,
    the share that was found (1 for the flat index)."""

    scores: NDArray[np.float32]
    recall: float


class Nearest(NamedTuple):
    """similarity (q, k) float32, largest first, and rows (q, k) of the train embeddings; recall as in `KnnResult`."""

    similarity: NDArray[np.float32]
    rows: NDArray[np.int64]
    recall: float


def nearest_full(x: ArrayLike, query: ArrayLike, k: int, *, index: str = "flat") -> Nearest:
    """The k rows of x (m, d) of largest cosine similarity to each row of query (q, d); what `knn_full` lets vote.

    Ties, `index`, memory and errors as there; k at most m.
    """
    x, query = np.asarray(x), np.asarray(query)
    check(x, query, np.zeros(len(x), np.int64), 1)
    if not 1 <= k <= len(x):
        raise UsageError(f"k must be a number from 1 to the {len(x)} images, got {k}")
    if index not in INDEXES:
        raise UsageError(f"index must be one of {', '.join(INDEXES)}, got '{index}'")
    (units, sums), (asked, _) = _unit(x, "train"), _unit(query, "query")
    first, copy_of = _distinct(units, sums)
    distinct = _moved_up(units, first)
    similarity, rows, recall = _search(distinct, asked, min(k, len(first)), index)
    return Nearest(*_with_copies(similarity, rows, copy_of, len(first), k), recall)


def knn_full(
    x: ArrayLike,
    y: ArrayLike,
    query: ArrayLike,
    n_classes: int,
    *,
    k: Sequence[int],
    temperature: float | None = 0.07,
    index: str = "flat",
    by_distance: bool = False,
) -> KnnResult:
    """The k train images of largest cosine similarity vote, for every k of a list from one search.

    x (m, d), query (q, d); y (m,) class indices or (m, n_classes) with 1 / 0 / NaN. A vote weighs
    exp(similarity / temperature) (Wu et al. 2018, DINO), or 1 with `temperature=None`, or with
    `by_distance` 1 / (1 − similarity) as in `fastxfer.reference.knn`; of equally similar images the one of the lower row is nearer (similarities are float32; equal images are equally similar, bit for bit). A k above
    m counts as m; a zero vector is at similarity 0.

    Single-label: shares of the vote. Multi-label: share of the vote for positive among the neighbours where the label
    is known, minus 0.5, so that 0 divides; 0 where none of them knows; NaN for a label that no train image knows.

    index: "flat" is exact. "ivf" (√m lists, an eighth of them searched) and "hnsw" are approximate, for millions of
    images; their `recall` is measured against flat on up to 200 queries. A GPU is used where faiss-gpu finds one
    (hnsw has none); where that isn't installed, flat has a kernel of its own. `UsageError` for arguments that do not fit.

    Memory: 4·d·(m + q) bytes for unit vectors and as much for an approximate index (hnsw: 256·m more), 12·q·k for the
    neighbours.
    """
    x, query, y = np.asarray(x), np.asarray(query), np.asarray(y)
    check(x, query, y, n_classes)
    ks = np.asarray(k)
    if ks.ndim != 1 or not ks.size or ks.dtype.kind not in "iu" or ks.min() < 1:
        raise UsageError(f"k must be a list of whole numbers from 1, got {k}")
    if temperature is not None and not temperature > 0:
        raise UsageError(f"temperature must be positive, got {temperature}")
    similarity, rows, recall = nearest_full(x, query, min(int(ks.max()), len(x)), index=index)
    weights = (temperature, by_distance)
    return KnnResult(np.stack([_vote(similarity[:, :n], rows[:, :n], y, n_classes, *weights) for n in ks]), recall)


def _vote(
    similarity: Array, rows: Array, y: Array, n_classes: int, temperature: float | None, by_distance: bool
) -> NDArray[np.float32]:
    """(q, n_classes) scores from the neighbours, (q, k) each; row −1 is a neighbour that was not found."""
    found = np.where(rows >= 0, similarity.astype(np.float64), -np.inf)
    weight = vote_weights(found, temperature, by_distance)
    q, k = rows.shape
    if y.ndim == 1:
        place = np.arange(q)[:, None] * n_classes + y[rows]
        votes = np.bincount(place.ravel(), weight.ravel(), q * n_classes).reshape(q, n_classes)
        return (votes / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    scores, total = np.zeros((q, n_classes)), np.zeros((q, n_classes))
    for j in range(k):
        label = y[rows[:, j]]
        known = ~np.isnan(label)
        scores += weight[:, j, None] * (known & (label > 0.5))
        total += weight[:, j, None] * known
    share = np.divide(scores, total, out=np.full_like(scores, 0.5), where=total > 0)
    share[:, np.isnan(y).all(axis=0)] = np.nan
    return (share - 0.5).astype(np.float32)


def _search(x: Array, query: Array, k: int, index: str) -> tuple[Array, Array, float]:
    """(q, k) similarities, largest first, and rows of x, the lower row first among equals; and the recall."""
    import faiss

    flat = _flat(faiss, x)
    if index == "flat":
        return *_nearest(flat, len(x), query, k), 1.0
    approximate = _approximate(faiss, x, index)
    if index == "hnsw":
        approximate.hnsw.efSearch = max(HNSW_SEARCH, 2 * k)
    similarity, rows = approximate.search(query, k)
    order = np.lexsort((rows, -similarity), axis=-1)
    similarity, rows = np.take_along_axis(similarity, order, -1), np.take_along_axis(rows, order, -1)
    sample = np.unique(np.linspace(0, len(query) - 1, min(RECALL_QUERIES, len(query))).astype(int))
    exact = _nearest(flat, len(x), query[sample], k)[1]
    found = [len(np.intersect1d(a, b)) for a, b in zip(exact, rows[sample], strict=True)]
    return similarity, rows, float(np.sum(found) / exact.size) if exact.size else 1.0


def _flat(faiss: Any, x: Array) -> Search:
    """Exact search among the rows of x where they lie; on a GPU, among a copy there: by faiss-gpu, else by our own kernel."""
    if _gpus(faiss):
        index = _on_gpu(faiss.IndexFlatIP(x.shape[1]))
        index.add(x)
        return lambda query, k: index.search(query, k)
    if compiled is not None and resolve_backend("auto") == "cuda":
        return _fused(x, "cuda")

    def search(query: Array, k: int) -> tuple[Array, Array]:
        def some(start: int) -> tuple[Array, Array]:
            found: tuple[Array, Array] = faiss.knn(
                query[start : start + QUERIES], x, k, metric=faiss.METRIC_INNER_PRODUCT
            )
            return found

        with crew() as threads:
            parts = list(threads.each(some, range(0, len(query), QUERIES)))
        similarity, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        return similarity, rows

    return search


def _fused(x: Array, place: str) -> Search:
    """Exact search by the kernel that never writes the matrix of products, among a copy of x at a place of torch's."""
    from fastxfer.ops_full.device import nearest, tensors

    (images,) = tensors(place, x)
    return lambda query, k: nearest(images, tensors(place, query)[0], k)


def _approximate(faiss: Any, x: Array, index: str) -> Any:
    m, d = x.shape
    if index == "hnsw":
        made = faiss.IndexHNSWFlat(d, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = HNSW_BUILD
    else:
        lists = max(1, int(np.sqrt(m)))
        made = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        made.nprobe = max(1, lists // 8)
        made.cp.min_points_per_centroid = 1  # no warning on stderr for small splits
        made = _on_gpu(made)
        made.train(x)
    made.add(x)
    return made


def _on_gpu(index: Any) -> Any:
    import faiss

    return faiss.index_cpu_to_all_gpus(index) if _gpus(faiss) else index


def _gpus(faiss: Any) -> int:
    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


def _nearest(search: Search, m: int, query: NDArray[np.float32], k: int) -> tuple[Array, Array]:
    """(q, k) similarities, largest first, and rows, the lower row first among equals."""
    q, wanted = len(query), min(k + 1, m)
    similarity, rows = np.empty((q, k), np.float32), np.empty((q, k), np.int64)
    # One more neighbour than asked for shows whether equals go on beyond the k-th; FAISS keeps any of them, so such
    # queries are asked again, few at a time, for more until all equals are in.
    work = [(np.arange(q), wanted)]
    while work:
        todo, wanted = work.pop()
        s, r = search(query if len(todo) == q else query[todo], wanted)
        order = np.lexsort((r, -s), axis=-1)[:, :k]
        similarity[todo], rows[todo] = np.take_along_axis(s, order, -1), np.take_along_axis(r, order, -1)
        again = todo[(s[:, -1] == s[:, k - 1]) & (wanted < m)]
        work += [(again[i : i + 64], min(4 * wanted, m)) for i in range(0, len(again), 64)]
    return similarity, rows


def _distinct(x: NDArray[np.float32], sums: NDArray[np.uint64]) -> tuple[Array, Array]:
    """Rows that no earlier row equals, ascending, and for each row of x its place among them; `sums` as `_unit` makes them.

    BLAS may give equal rows products of different last bits, by where they stand; so each is searched once.
    """
    # Equal rows have equal sums of their words; where sums meet, a random linear form over 64-bit integers decides, in
    # which rows that differ collide with a chance of 2⁻⁶³ a pair.
    words = x.view(np.uint32)
    _, which, count = np.unique(sums, return_inverse=True, return_counts=True)
    if len(count) == len(x):
        return np.arange(len(x)), np.arange(len(x))
    doubtful = np.flatnonzero(count[which] > 1)
    factors = np.random.default_rng(0).integers(0, 2**64, x.shape[1], np.uint64) | np.uint64(1)
    key = sums * np.uint64(2)
    for some in blocks(len(doubtful), x.shape[1]):
        key[doubtful[some]] = (words[doubtful[some]] * factors).sum(axis=1) * np.uint64(2) + np.uint64(1)
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[place]


def _moved_up(x: NDArray[np.float32], first: Array) -> NDArray[np.float32]:
    """x[first], `first` ascending, in the place of x."""
    holes = np.flatnonzero(first != np.arange(len(first)))
    start = int(holes[0]) if len(holes) else len(first)
    for some in blocks(len(first) - start, x.shape[1]):
        x[start + some.start : start + some.stop] = x[first[start + some.start : start + some.stop]]
    return x[: len(first)]


def _with_copies(similarity: Array, rows: Array, copy_of: Array, n_distinct: int, k: int) -> tuple[Array, Array]:
    """Neighbours among distinct rows -> the k nearest among all rows, each copy as near as the first of its kind."""
    if n_distinct == len(copy_of):
        return similarity, rows
    members = np.argsort(copy_of, kind="stable")
    count = np.bincount(copy_of, minlength=n_distinct)
    start = np.cumsum(count) - count
    out_s, out_r = np.zeros((len(rows), k), np.float32), np.full((len(rows), k), -1)
    n = rows.shape[1]
    out_s[:, :n], out_r[:, :n] = similarity, np.where(rows >= 0, members[start[rows]], -1)
    for i in np.flatnonzero((count[rows] > 1).any(axis=1)):
        s, r = similarity[i][rows[i] >= 0], rows[i][rows[i] >= 0]
        row = np.concatenate([members[start[j] : start[j] + count[j]] for j in r])
        s = np.repeat(s, count[r])
        order = np.lexsort((row, -s))[:k]
        out_s[i, : len(order)], out_r[i, : len(order)] = s[order], row[order]
    return out_s, out_r


def blocks(n: int, dim: int) -> Iterator[slice]:
    """Rows in blocks that stay in the processor's cache."""
    step = max(1, CACHE_BYTES // (4 * dim))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _unit(x: Array, what: str) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """Rows at length 1 in float32, zero rows stay zero; and a sum of each row's bits. `UsageError` for NaN and infinity."""
    unit, sums = np.empty(x.shape, np.float32), np.empty(len(x), np.uint64)
    word = np.uint64 if x.shape[1] % 2 == 0 else np.uint32
    for rows in blocks(*x.shape):
        block, out = x[rows], unit[rows]
        square = np.einsum("ij,ij->i", block, block) if x.dtype == np.float32 else np.array([np.nan])
        if SQUARES[0] < square.min() and square.max() < SQUARES[1]:  # neither holds for NaN
            np.multiply(block, (1 / np.sqrt(square))[:, None], out=out)
        else:
            out[:] = _scaled_unit(block, what, rows.start)
        out += 0.0  # −0 is 0
        out.view(word).sum(axis=1, dtype=np.uint64, out=sums[rows])
    return unit, sums


def _scaled_unit(block: Array, what: str, start: int) -> Array:
    """The same for rows of any float type and length."""
    scale = np.abs(block).max(axis=1, keepdims=True)
    if not np.isfinite(scale).all():
        check_finite(block, what, start)
    wide = np.divide(block, np.where(scale > 0, scale, 1), dtype=np.result_type(block, np.float32))
    norm = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float64))[:, None]
    return np.asarray(wide * (1 / np.where(norm > 0, norm, 1.0)).astype(wide.dtype))
