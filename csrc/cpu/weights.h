// Scores of an episode's queries by its weights, W = A X (rows x dim), made where the support is in the cache.
#pragma once

#include "../core/workspace.h"
#include "products.h"
#include "sums.h"

namespace FX_NAMESPACE {

using fastxfer::WeightsParams;

// Queries of an episode.
template <class Stored>
struct QueryImages {
    const Reader<Stored>& images;
    const std::int64_t* query;
    int first_slot;
    FX_FUNCTION const Stored* stored(int j) const { return images.stored(query[j]); }
    FX_FUNCTION const auto* take(int j, int slot) const { return images.take(query[j], first_slot + slot); }
    FX_FUNCTION bool fresh(int) const { return true; }
    FX_FUNCTION Widening widening(int j, int width, bool keep) const
        requires std::is_same_v<Stored, Half>
    {
        return images.widening(query + j, width, first_slot, keep);
    }
};

template <class Stored>
std::size_t weights_bytes(const WeightsParams& p) {
    using Real = computed_in<Stored>;
    Workspace memory(nullptr);
    memory.take<Real>(p.rows * spread_row<Real>(p.dim));
    const Reader<Stored> images(p.images, p.dim, memory, p.m + tile_columns);
    return memory.used();
}

template <class Stored>
void weights_episode(const WeightsParams& p, std::int64_t e, void* block) {
    using Real = computed_in<Stored>;
    Workspace memory(block);
    const std::int64_t W_row = spread_row<Real>(p.dim);
    Real* W = memory.take<Real>(p.rows * W_row);
    const Reader<Stored> images(p.images, p.dim, memory, p.m + tile_columns);
    const std::int64_t *support = p.support + e * p.m, *query = p.query + e * p.q;
    images.hold(p.m, support);
    const double *coefficients = p.coefficients + e * p.rows * p.m, *bias = p.bias + e * p.rows;
    sums_of_images<Real>(
        p.rows, p.m, 0, p.dim, [=, &images](std::int64_t i) { return images.held(support[i], static_cast<int>(i)); },
        [=, &p](int r, std::int64_t i) {
            return static_cast<Real>(coefficients[static_cast<std::int64_t>(r) * p.m + i]);
        },
        W, W_row);
    const int q = p.q, ways = p.ways;
    float* scores = p.scores + e * p.rows * q;
    all_products<Real>(
        p.rows, q, p.dim, [=](int i) { return W + i * W_row; }, QueryImages<Stored>{images, query, p.m},
        [](int, int, int) { return false; },
        [=](int i, int j, Real value) {
            scores[(static_cast<std::int64_t>(i / ways) * q + j) * ways + i % ways] =
                static_cast<float>(value + bias[i]);
        });
}

}  // namespace FX_NAMESPACE
