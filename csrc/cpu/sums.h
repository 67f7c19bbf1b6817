// Weighted sums of few kinds of images where they lie: out(r) = Σ_i factor(r, i) image(i).
#pragma once

#include "../core/lanes.h"

namespace FX_NAMESPACE {

// `NV` vectors of MR sums from dimension `at` on; they stay in registers.
template <class Real, int MR, int NV, class Image, class Factor>
FX_BODY void sums_tile(std::int64_t n, std::int64_t at, const Image& image, const Factor& factor, int row, Real* out,
                       std::int64_t out_row) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    V sum[MR][NV] = {};
    for (std::int64_t i = 0; i < n; ++i) {
        const Real* x = image(i) + at;
        V right[NV];
        for (int v = 0; v < NV; ++v) right[v] = load<V>(x + v * W);
        for (int r = 0; r < MR; ++r) {
            const Real a = factor(row + r, i);
            for (int v = 0; v < NV; ++v) sum[r][v] += right[v] * a;
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) store(out + (row + r) * out_row + at + v * W, sum[r][v]);
    }
}

// Sums that a tile takes: with what they are made of they fill the registers.
constexpr int sums_at_once = FX_REGISTER_BYTES == 64 ? 10 : 4;

template <class Real, int NV, int Most = sums_at_once, class... Rest>
FX_FUNCTION void sums_tiles(int rows, const Rest&... rest) {
    if constexpr (Most > 1) {
        if (rows < Most) return sums_tiles<Real, NV, Most - 1>(rows, rest...);
    }
    sums_tile<Real, Most, NV>(rest...);
}

// All `rows` sums over n images, dimensions first … last-1.
template <class Real, class Image, class Factor>
FX_BODY void sums_of_images(int rows, std::int64_t n, std::int64_t first, std::int64_t last, const Image& image,
                            const Factor& factor, Real* out, std::int64_t out_row) {
    constexpr int W = SerialTeam::width<Real>, vectors = 2;
    std::int64_t at = first;
    for (int width = vectors * W; at < last; at += width) {
        if (at + width > last) width = at + W <= last ? W : 1;
        for (int row = 0; row < rows; row += sums_at_once) {
            const int some = row + sums_at_once <= rows ? sums_at_once : rows - row;
            if (width == vectors * W) {
                sums_tiles<Real, vectors>(some, n, at, image, factor, row, out, out_row);
            } else if (width == W) {
                sums_tiles<Real, 1>(some, n, at, image, factor, row, out, out_row);
            } else {
                for (int r = row; r < row + some; ++r) {
                    Real sum = 0;
                    for (std::int64_t i = 0; i < n; ++i) sum += factor(r, i) * image(i)[at];
                    out[r * out_row + at] = sum;
                }
            }
        }
    }
}

}  // namespace FX_NAMESPACE
