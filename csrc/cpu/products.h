// Inner products of an episode's own images, read where they lie. Every product is one chain of additions over the
// dimensions, whichever tile it is made in: equal images have equal products, to the bit.
#pragma once

#include "../core/lanes.h"
#include "../ops.h"

namespace FX_NAMESPACE {

using fastxfer::ProductsParams;

// So many products are made at a time: their sums and what they are made of fill the registers.
constexpr int tile_rows = 6, tile_columns = FX_REGISTER_BYTES == 64 ? 4 : 2;

// out(r, v) = <left[r], right[v]>. `ahead`: the images of the columns to come, which no cache may hold yet. Each of
// their lines is asked for twice, some time apart: what finds the queue to memory full is dropped.
template <class Real, int MR, int NV, class Out>
FX_BODY void dot_tile(const Real* const* left, const Real* const* right, const Real* const* ahead, std::int64_t dim,
                      const Out& out) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    V sum[MR][NV] = {};
    std::int64_t k = 0;
    for (; k + W <= dim; k += W) {
        V b[NV];
        for (int v = 0; v < NV; ++v) b[v] = load<V>(right[v] + k);
        if (ahead != nullptr) {
            for (int v = 0; v < tile_columns; ++v) {
                __builtin_prefetch(ahead[v] + k, 0, 2);
                __builtin_prefetch(ahead[v] + (k ^ 64), 0, 2);
            }
        }
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

template <class Real, int NV, class... Rest>
FX_FUNCTION void dot_tiles(int rows, const Rest&... rest) {
    switch (rows) {
        case 1:
            return dot_tile<Real, 1, NV>(rest...);
        case 2:
            return dot_tile<Real, 2, NV>(rest...);
        case 3:
            return dot_tile<Real, 3, NV>(rest...);
        case 4:
            return dot_tile<Real, 4, NV>(rest...);
        case 5:
            return dot_tile<Real, 5, NV>(rest...);
        default:
            return dot_tile<Real, 6, NV>(rest...);
    }
}

// out(r, v) = <left(r), right(v)> for rows 0 … rows-1 and columns 0 … columns-1, pointers of both by number. Tiles that
// `known(rows up to, columns from, columns up to)` names are left out.
template <class Real, class Left, class Right, class Known, class Out>
FX_BODY void all_products(int rows, int columns, std::int64_t dim, const Left& left, const Right& right,
                          const Known& known, const Out& out) {
    const int tiles = (rows + tile_rows - 1) / tile_rows;
    for (int j = 0; j < columns;) {
        const int width = j + tile_columns <= columns ? tile_columns : 1;
        const Real *these[tile_columns], *ahead[tile_columns];
        for (int v = 0; v < tile_columns; ++v) {
            these[v] = right(j + v < columns ? j + v : j);
            ahead[v] = right(j + width + v < columns ? j + width + v : columns - 1);
        }
        for (int tile = tiles - 1; tile >= 0; --tile) {  // rows shared out evenly: 25 are five times 5
            const int from = static_cast<int>(static_cast<std::int64_t>(rows) * tile / tiles);
            const int to = static_cast<int>(static_cast<std::int64_t>(rows) * (tile + 1) / tiles);
            if (known(to, j, j + width)) continue;
            const Real* own[tile_rows];
            for (int r = 0; r < to - from; ++r) own[r] = left(from + r);
            const auto write = [&out, from, j](int r, int v, Real value) { out(from + r, j + v, value); };
            const Real* const* soon = tile == tiles - 1 ? ahead : nullptr;
            if (width > 1) {
                dot_tiles<Real, tile_columns>(to - from, own, these, soon, dim, write);
            } else {
                dot_tiles<Real, 1>(to - from, own, these, soon, dim, write);
            }
        }
        j += width;
    }
}

// Block of episode e: products of its support with its support, then with its queries.
template <class Real>
void products_episode(const ProductsParams& p, std::int64_t e) {
    const Real* images = static_cast<const Real*>(p.images);
    const std::int64_t *support = p.support + e * p.m, *query = p.query + e * p.q;
    const int m = p.m, columns = m + p.q;
    Real* block = static_cast<Real*>(p.out) + e * m * columns;
    const auto image = [=, &p](int i) { return images + (i < m ? support[i] : query[i - m]) * p.row; };
    // Known from the other side of the diagonal.
    const auto known = [=](int rows_end, int first, int last) { return rows_end <= first && last <= m; };
    all_products<Real>(m, columns, p.dim, image, image, known, [=](int i, int j, Real value) {
        block[static_cast<std::int64_t>(i) * columns + j] = value;
        if (j < m) block[static_cast<std::int64_t>(j) * columns + i] = value;
    });
}

}  // namespace FX_NAMESPACE
