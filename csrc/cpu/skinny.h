// Products of many embeddings (rows of X) with few vectors, as a full probe's passes need them: BLAS packs both sides,
// which costs more than the product where one of them is that thin.
#pragma once

#include "products.h"
#include "sums.h"

namespace FX_NAMESPACE {

using fastxfer::SkinnyParams;

// out (c, b) = W Xᵀ for images first … last-1.
template <class Real>
void skinny_logits(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    const Real *X = static_cast<const Real*>(p.images), *W = static_cast<const Real*>(p.few);
    Real* out = static_cast<Real*>(p.out);
    all_products<Real>(
        p.c, static_cast<int>(last - first), p.dim, [=, &p](int i) { return W + i * p.few_row; },
        AsTheyLie{[=, &p](int j) { return X + (first + j) * p.row; }}, [](int, int, int) { return false; },
        [=, &p](int i, int j, Real value) { out[i * p.out_row + first + j] = value; });
}

// out (c, d) = R X for dimensions first … last-1.
template <class Real>
void skinny_gradient(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    const Real *X = static_cast<const Real*>(p.images), *R = static_cast<const Real*>(p.few);
    sums_of_images<Real>(
        p.c, p.n, first, last, [=, &p](std::int64_t i) { return X + i * p.row; },
        [=, &p](int r, std::int64_t i) { return R[r * p.few_row + i]; }, static_cast<Real*>(p.out), p.out_row);
}

}  // namespace FX_NAMESPACE
