// Scores of an episode's queries by its weights, W = A X (rows x dim), made where the support is in the cache.
#pragma once

#include "../core/workspace.h"
#include "products.h"

namespace FX_NAMESPACE {

using fastxfer::WeightsParams;

// One stretch of `NV` vectors of `MR` rows of W: sums over the support stay in registers.
template <class Real, int MR, int NV>
FX_BODY void weights_tile(const WeightsParams& p, const double* coefficients, const std::int64_t* support,
                          std::int64_t at, Real* W, std::int64_t W_row) {
    constexpr int lanes = SerialTeam::width<Real>;
    using V = typename Lanes<Real, lanes>::V;
    const Real* images = static_cast<const Real*>(p.images) + at;
    V sum[MR][NV] = {};
    for (int i = 0; i < p.m; ++i) {
        const Real* x = images + support[i] * p.row;
        V right[NV];
        for (int v = 0; v < NV; ++v) right[v] = load<V>(x + v * lanes);
        for (int r = 0; r < MR; ++r) {
            const Real a = static_cast<Real>(coefficients[static_cast<std::int64_t>(r) * p.m + i]);
            for (int v = 0; v < NV; ++v) sum[r][v] += right[v] * a;
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) store(W + r * W_row + at + v * lanes, sum[r][v]);
    }
}

template <class Real, int NV, class... Rest>
FX_FUNCTION void weights_tiles(int rows, const Rest&... rest) {
    switch (rows) {
        case 1:
            return weights_tile<Real, 1, NV>(rest...);
        case 2:
            return weights_tile<Real, 2, NV>(rest...);
        case 3:
            return weights_tile<Real, 3, NV>(rest...);
        default:
            return weights_tile<Real, 4, NV>(rest...);
    }
}

template <class Real>
std::int64_t weights_row(const WeightsParams& p) {
    // An odd number of cache lines, as the pool's own rows.
    constexpr std::int64_t line = 64 / sizeof(Real);
    return ((p.dim + line - 1) / line | 1) * line;
}

template <class Real>
std::size_t weights_bytes(const WeightsParams& p) {
    Workspace memory(nullptr);
    memory.take<Real>(p.rows * weights_row<Real>(p));
    return memory.used();
}

template <class Real>
void weights_episode(const WeightsParams& p, std::int64_t e, void* block) {
    constexpr int lanes = SerialTeam::width<Real>, rows_at_once = 4, vectors = 2;
    Workspace memory(block);
    const std::int64_t W_row = weights_row<Real>(p);
    Real* W = memory.take<Real>(p.rows * W_row);
    const Real* images = static_cast<const Real*>(p.images);
    const std::int64_t *support = p.support + e * p.m, *query = p.query + e * p.q;
    const double *coefficients = p.coefficients + e * p.rows * p.m, *bias = p.bias + e * p.rows;
    for (std::int64_t at = 0; at < p.dim;) {
        const int width = at + vectors * lanes <= p.dim ? vectors * lanes : at + lanes <= p.dim ? lanes : 1;
        for (int row = 0; row < p.rows; row += rows_at_once) {
            const int rows = row + rows_at_once <= p.rows ? rows_at_once : p.rows - row;
            const double* a = coefficients + static_cast<std::int64_t>(row) * p.m;
            Real* to = W + row * W_row;
            if (width == vectors * lanes) {
                weights_tiles<Real, vectors>(rows, p, a, support, at, to, W_row);
            } else if (width == lanes) {
                weights_tiles<Real, 1>(rows, p, a, support, at, to, W_row);
            } else {
                for (int r = 0; r < rows; ++r) {
                    Real sum = 0;
                    for (int i = 0; i < p.m; ++i) {
                        sum += static_cast<Real>(a[r * static_cast<std::int64_t>(p.m) + i]) *
                               images[support[i] * p.row + at];
                    }
                    to[r * W_row + at] = sum;
                }
            }
        }
        at += width;
    }
    const int q = p.q, ways = p.ways;
    float* scores = p.scores + e * p.rows * q;
    all_products<Real>(
        p.rows, q, p.dim, [=](int i) { return W + i * W_row; }, [=, &p](int j) { return images + query[j] * p.row; },
        [](int, int, int) { return false; },
        [=](int i, int j, Real value) {
            scores[(static_cast<std::int64_t>(i / ways) * q + j) * ways + i % ways] =
                static_cast<float>(value + bias[i]);
        });
}

}  // namespace FX_NAMESPACE
