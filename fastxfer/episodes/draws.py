"""Draws without replacement from counter-based random numbers, compiled.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The key is
(seed, purpose), the counter (block, stream, episode, 0), where a stream is a class, or a class's positives or negatives.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

GENERATOR = "philox4x64-10/1"  # part of the hash: another way to draw would be another list of episodes
CLASSES, SUPPORT, QUERY, SIZES, NATURAL_QUERY = 0, 1, 2, 3, 4  # purposes of random numbers

_U = np.uint64  # indices are unsigned throughout: numba would look for negative ones otherwise


def _product_rule(typing_context: Any, a: Any, b: Any) -> Any:
    """Upper and lower 64 bits of the product of two unsigned 64-bit integers: one machine instruction."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        x, y = (builder.zext(value, wide) for value in args)
        product = builder.mul(x, y)
        upper = builder.lshr(product, ir.Constant(wide, 64))
        halves = [builder.trunc(value, ir.IntType(64)) for value in (upper, product)]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), generate


_product: Any = intrinsic(_product_rule)


@numba.njit(cache=True, inline="always")
def _philox(block: Any, stream: Any, episode: Any, seed: Any, purpose: Any) -> Any:
    c0, c1, c2, c3 = _U(block), _U(stream), _U(episode), _U(0)
    k0, k1 = _U(seed), _U(purpose)
    m0, m1 = _U(0xD2E7470EE14C6C93), _U(0xCA5A826395121157)
    w0, w1 = _U(0x9E3779B97F4A7C15), _U(0xBB67AE8584CAA73B)
    for _ in range(10):
        high0, low0 = _product(m0, c0)
        high1, low1 = _product(m1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    return c0, c1, c2, c3


@numba.njit(cache=True)
def philox(block: Any, stream: Any, episode: Any, seed: Any, purpose: Any, out: Any) -> None:
    """Four random 64-bit integers of the counter (block, stream, episode, 0) under the key (seed, purpose)."""
    out[0], out[1], out[2], out[3] = _philox(block, stream, episode, seed, purpose)


@numba.njit(cache=True, inline="always")
def _random(count: Any, stream: Any, episode: Any, seed: Any, purpose: Any, out: Any) -> None:
    """The first `count` random integers of a stream; `out` has room for three more."""
    for block in range((count + _U(3)) >> _U(2)):
        at = _U(block) << _U(2)
        r0, r1, r2, r3 = _philox(block, stream, episode, seed, purpose)
        out[at], out[at + _U(1)], out[at + _U(2)], out[at + _U(3)] = r0, r1, r2, r3


@numba.njit(cache=True, inline="always")
def _deal(n: Any, k: Any, random: Any, deck: Any, swaps: Any, cards: Any) -> None:
    """The first `k` cards of a shuffled deck 0 … n − 1 (Fisher-Yates, cut short and undone, so O(k) whatever n).

    `deck` holds 0, 1, 2, … before and after. Draw i depends on random number i alone, hence prefixes are nested. An
    integer below n is taken as the high half of a 64-bit product; its bias is below n / 2^64.
    """
    for i in range(k):
        swaps[_U(i)] = _U(i) + _product(random[_U(i)], n - _U(i))[0]
    for i in range(k):
        j = _U(swaps[_U(i)])
        cards[_U(i)] = deck[j]
        deck[j] = deck[_U(i)]
    for i in range(k):
        j = swaps[_U(i)]
        deck[_U(j)] = j


@numba.njit(cache=True)
def _scratch(start: Any, k: int) -> Any:
    longest = 0
    for i in range(len(start) - 1):
        longest = max(longest, start[i + 1] - start[i])
    deck = np.arange(longest).astype(np.uint32)
    return deck, np.empty(k + 3, np.uint64), np.empty(k, np.uint32), np.empty(k, np.uint32)


@numba.njit(cache=True, nogil=True)
def draw_rows(pool: Any, start: Any, streams: Any, k: int, seed: Any, first: int, purpose: int) -> Any:
    """`k` different rows from each stream of each episode: (episodes, n * k), stream after stream.

    Stream s may draw from pool[start[s] : start[s + 1]], which holds at least k rows. `streams` (episodes, n).
    """
    episodes, n_streams = streams.shape
    out = np.empty((episodes, n_streams * k), np.int64)
    deck, random, swaps, cards = _scratch(start, k)
    count = _U(k)
    for e in range(episodes):
        line = out[e]
        for i in range(n_streams):
            stream = streams[e, i]
            base = _U(start[stream])
            _random(count, stream, first + e, seed, purpose, random)
            _deal(_U(start[stream + 1]) - base, count, random, deck, swaps, cards)
            at = _U(i) * count
            for j in range(count):
                line[at + _U(j)] = pool[base + _U(cards[_U(j)])]
    return out


@numba.njit(cache=True, nogil=True)
def draw_uneven(pool: Any, start: Any, streams: Any, sizes: Any, seed: Any, first: int, purpose: int) -> Any:
    """As `draw_rows` with sizes[e, i] rows from stream i of episode e, whose sum is the same for all episodes.

    Returns rows and the number of their stream within the episode, both (episodes, total).
    """
    episodes, n_streams = streams.shape
    total = sizes[0].sum()
    out, labels = np.empty((episodes, total), np.int64), np.empty((episodes, total), np.int64)
    deck, random, swaps, cards = _scratch(start, total)
    for e in range(episodes):
        at = 0
        for i in range(n_streams):
            stream, k = streams[e, i], sizes[e, i]
            base = start[stream]
            _random(_U(k), stream, first + e, seed, purpose, random)
            _deal(_U(start[stream + 1] - base), _U(k), random, deck, swaps, cards)
            for j in range(k):
                out[e, at + j] = pool[base + np.int64(cards[j])]
                labels[e, at + j] = i
            at += k
    return out, labels


@numba.njit(cache=True, nogil=True)
def draw_together(pool: Any, start: Any, streams: Any, k: int, seed: Any, first: int, purpose: int) -> Any:
    """`k` different rows an episode from all its streams together, each row as likely as another.

    Returns rows and the number of their stream within the episode, both (episodes, k), in the order drawn.
    """
    episodes, n_streams = streams.shape
    out, labels = np.empty((episodes, k), np.int64), np.empty((episodes, k), np.int64)
    deck, random, swaps, cards = _scratch(np.array([0, len(pool)]), k)
    for e in range(episodes):
        n = 0
        for i in range(n_streams):
            n += start[streams[e, i] + 1] - start[streams[e, i]]
        _random(_U(k), 0, first + e, seed, purpose, random)
        _deal(_U(n), _U(k), random, deck, swaps, cards)
        for j in range(k):
            card, i = np.int64(cards[j]), 0
            while card >= start[streams[e, i] + 1] - start[streams[e, i]]:
                card -= start[streams[e, i] + 1] - start[streams[e, i]]
                i += 1
            out[e, j] = pool[start[streams[e, i]] + card]
            labels[e, j] = i
    return out, labels


@numba.njit(cache=True, nogil=True)
def draw_sizes(room: Any, total: int, alpha: float, seed: Any, first: int, purpose: int) -> Any:
    """Class sizes (episodes, ways) that sum to `total`: one each, the rest by a Pólya urn.

    Each further image goes to class w with probability in proportion to alpha + (images that w has beyond its first),
    so that the sizes are as if drawn from proportions that are Dirichlet(alpha, …, alpha). Classes that have reached
    their `room` (episodes, ways) are passed over. The sizes for a smaller total are never larger in any class.
    """
    episodes, ways = room.shape
    sizes = np.ones((episodes, ways), np.int64)
    random = np.empty(total + 3, np.uint64)
    for e in range(episodes):
        _random(_U(total - ways), 0, first + e, seed, purpose, random)
        for t in range(total - ways):
            weight = 0.0
            for w in range(ways):
                if sizes[e, w] < room[e, w]:
                    weight += alpha + sizes[e, w] - 1
            left = np.float64(random[t] >> _U(11)) * 2.0**-53 * weight
            chosen = -1
            for w in range(ways):
                if sizes[e, w] < room[e, w]:
                    chosen = w  # rounding may leave something beyond the last class: it is the last one's
                    left -= alpha + sizes[e, w] - 1
                    if left < 0:
                        break
            sizes[e, chosen] += 1
    return sizes
