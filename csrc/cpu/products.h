// Inner products of an episode's own images, read where they lie. Every product is one chain of additions over the
// dimensions, whichever tile it is made in: equal images have equal products, to the bit.
#pragma once

#include "../core/lanes.h"
#include "../ops.h"

namespace FX_NAMESPACE {

using fastxfer::ProductsParams;

// out(r, v) = <left[r], right[v]>; MR·NV sums stay in registers.
template <class Real, int MR, int NV, class Out>
FX_BODY void dot_tile(const Real* const* left, const Real* const* right, std::int64_t dim, const Out& out) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    V sum[MR][NV] = {};
    std::int64_t k = 0;
    for (; k + W <= dim; k += W) {
        V b[NV];
        for (int v = 0; v < NV; ++v) b[v] = load<V>(right[v] + k);
        for (int r = 0; r < MR; ++r) {
            const V a = load<V>(left[r] + k);
            for (int v = 0; v < NV; ++v) sum[r][v] += a * b[v];
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) {
            Real rest = 0;
            for (std::int64_t i = k; i < dim; ++i) rest += left[r][i] * right[v][i];
            out(r, v, across<Real, W>(sum[r][v]) + rest);
        }
    }
}

template <class Real, int NV, class Out>
FX_FUNCTION void dot_tiles(int rows, const Real* const* left, const Real* const* right, std::int64_t dim,
                           const Out& out) {
    switch (rows) {
        case 1:
            return dot_tile<Real, 1, NV>(left, right, dim, out);
        case 2:
            return dot_tile<Real, 2, NV>(left, right, dim, out);
        case 3:
            return dot_tile<Real, 3, NV>(left, right, dim, out);
        case 4:
            return dot_tile<Real, 4, NV>(left, right, dim, out);
        case 5:
            return dot_tile<Real, 5, NV>(left, right, dim, out);
        default:
            return dot_tile<Real, 6, NV>(left, right, dim, out);
    }
}

// Block of episode e: products of its support with its support, then with its queries.
template <class Real>
void products_episode(const ProductsParams& p, std::int64_t e) {
    const Real* images = static_cast<const Real*>(p.images);
    const std::int64_t *support = p.support + e * p.m, *query = p.query + e * p.q;
    const int m = p.m, columns = m + p.q;
    Real* block = static_cast<Real*>(p.out) + e * m * columns;
    const int tiles = (m + 5) / 6;
    for (int j = 0; j < columns; j += 2) {
        const int width = j + 1 < columns ? 2 : 1;
        const Real* right[2];
        for (int v = 0; v < width; ++v) {
            const int column = j + v;
            right[v] = images + (column < m ? support[column] : query[column - m]) * p.dim;
        }
        for (int tile = 0; tile < tiles; ++tile) {  // rows shared out evenly: 25 are five times 5
            const int from = static_cast<int>(static_cast<std::int64_t>(m) * tile / tiles);
            const int to = static_cast<int>(static_cast<std::int64_t>(m) * (tile + 1) / tiles);
            if (to <= j && j + width <= m) continue;  // known from the other side
            const Real* left[6];
            for (int r = 0; r < to - from; ++r) left[r] = images + support[from + r] * p.dim;
            const auto write = [=](int r, int v, Real value) {
                block[static_cast<std::int64_t>(from + r) * columns + j + v] = value;
                if (j + v < m) block[static_cast<std::int64_t>(j + v) * columns + from + r] = value;
            };
            if (width == 2) {
                dot_tiles<Real, 2>(to - from, left, right, p.dim, write);
            } else {
                dot_tiles<Real, 1>(to - from, left, right, p.dim, write);
            }
        }
    }
}

}  // namespace FX_NAMESPACE
