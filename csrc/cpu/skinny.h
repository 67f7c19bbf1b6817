// Products of many embeddings (rows of X) with few vectors, as a full probe's passes need them: BLAS packs both sides,
// which costs more than the product where one of them is that thin.
#pragma once

#include "products.h"

namespace FX_NAMESPACE {

using fastxfer::SkinnyParams;

// out (c, b) = W Xᵀ for images first … last-1.
template <class Real>
void skinny_logits(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    const Real *X = static_cast<const Real*>(p.images), *W = static_cast<const Real*>(p.few);
    Real* out = static_cast<Real*>(p.out);
    all_products<Real>(
        p.c, static_cast<int>(last - first), p.dim, [=, &p](int i) { return W + i * p.few_row; },
        [=, &p](int j) { return X + (first + j) * p.row; }, [](int, int, int) { return false; },
        [=, &p](int i, int j, Real value) { out[i * p.out_row + first + j] = value; });
}

// `NV` vectors of MR rows of R X; sums over the images stay in registers.
template <class Real, int MR, int NV>
FX_BODY void gradient_tile(const SkinnyParams& p, const Real* R, std::int64_t at, Real* out) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    const Real* x = static_cast<const Real*>(p.images) + at;
    V sum[MR][NV] = {};
    for (std::int64_t i = 0; i < p.n; ++i, x += p.row) {
        V right[NV];
        for (int v = 0; v < NV; ++v) right[v] = load<V>(x + v * W);
        for (int r = 0; r < MR; ++r) {
            const Real a = R[r * p.few_row + i];
            for (int v = 0; v < NV; ++v) sum[r][v] += right[v] * a;
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) store(out + r * p.out_row + at + v * W, sum[r][v]);
    }
}

template <class Real, int NV, int Most = FX_REGISTER_BYTES == 64 ? 10 : 4>
FX_FUNCTION void gradient_rows(const SkinnyParams& p, int rows, const Real* R, std::int64_t at, Real* out) {
    if constexpr (Most > 1) {
        if (rows < Most) return gradient_rows<Real, NV, Most - 1>(p, rows, R, at, out);
    }
    gradient_tile<Real, Most, NV>(p, R, at, out);
}

// out (c, d) = R X for dimensions first … last-1.
template <class Real>
void skinny_gradient(const SkinnyParams& p, std::int64_t first, std::int64_t last) {
    constexpr int W = SerialTeam::width<Real>, vectors = 2, most = FX_REGISTER_BYTES == 64 ? 10 : 4;
    const Real *X = static_cast<const Real*>(p.images), *R = static_cast<const Real*>(p.few);
    Real* out = static_cast<Real*>(p.out);
    std::int64_t at = first;
    for (int width = vectors * W; at < last; at += width) {
        if (at + width > last) width = at + W <= last ? W : 1;
        for (int row = 0; row < p.c; row += most) {
            const int rows = row + most <= p.c ? most : p.c - row;
            const Real* r = R + row * p.few_row;
            Real* to = out + row * p.out_row;
            if (width == vectors * W) {
                gradient_rows<Real, vectors>(p, rows, r, at, to);
            } else if (width == W) {
                gradient_rows<Real, 1>(p, rows, r, at, to);
            } else {
                for (int k = 0; k < rows; ++k) {
                    Real sum = 0;
                    for (std::int64_t i = 0; i < p.n; ++i) sum += r[k * p.few_row + i] * X[i * p.row + at];
                    to[k * p.out_row + at] = sum;
                }
            }
        }
    }
}

}  // namespace FX_NAMESPACE
