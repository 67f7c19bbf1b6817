// Scores of an episode's queries by its weights, W = A X (rows x dim), made where the support is in the cache.
#pragma once

#include "../core/workspace.h"
#include "products.h"
#include "sums.h"

namespace FX_NAMESPACE {

using fastxfer::WeightsParams;

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
    Workspace memory(block);
    const std::int64_t W_row = weights_row<Real>(p);
    Real* W = memory.take<Real>(p.rows * W_row);
    const Real* images = static_cast<const Real*>(p.images);
    const std::int64_t *support = p.support + e * p.m, *query = p.query + e * p.q;
    const double *coefficients = p.coefficients + e * p.rows * p.m, *bias = p.bias + e * p.rows;
    sums_of_images<Real>(
        p.rows, p.m, 0, p.dim, [=, &p](std::int64_t i) { return images + support[i] * p.row; },
        [=, &p](int r, std::int64_t i) {
            return static_cast<Real>(coefficients[static_cast<std::int64_t>(r) * p.m + i]);
        },
        W, W_row);
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
