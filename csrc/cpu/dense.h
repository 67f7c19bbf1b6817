// The dense primitives for a CPU thread alone, with registers blocked by hand. Same results as core/linalg.h but for
// the order of additions.
#pragma once

#include "../core/linalg.h"

namespace FX_NAMESPACE {

// `rows` rows of B times one panel of `NV` vectors: rows·NV sums stay in registers.
template <class Real, int MR, int NV>
FX_BODY void product_tile(const Real* B, int B_row, const Real* panel, int depth, Real* out, int out_row) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    V sum[MR][NV] = {};
    for (int k = 0; k < depth; ++k) {
        V right[NV];
        for (int v = 0; v < NV; ++v) right[v] = load<V>(panel + v * W);
        panel += NV * W;
        for (int r = 0; r < MR; ++r) {
            const Real left = B[static_cast<std::int64_t>(r) * B_row + k];
            for (int v = 0; v < NV; ++v) sum[r][v] += right[v] * left;
        }
    }
    for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < NV; ++v) store(out + static_cast<std::int64_t>(r) * out_row + v * W, sum[r][v]);
    }
}

// Rows of B that a tile takes: their sums, and what they are made of, fill the registers.
constexpr int product_rows = FX_REGISTER_BYTES == 64 ? 10 : 6;

template <class Real, int NV, int Most = product_rows>
FX_FUNCTION void product_tiles(int rows, const Real* B, int B_row, const Real* panel, int depth, Real* out,
                               int out_row) {
    if constexpr (Most > 1) {
        if (rows < Most) return product_tiles<Real, NV, Most - 1>(rows, B, B_row, panel, depth, out, out_row);
    }
    product_tile<Real, Most, NV>(B, B_row, panel, depth, out, out_row);
}

template <class Real>
FX_BODY void product(const SerialTeam&, int c, const Real* B, int B_row, const Panels<SerialTeam, Real>& K, Real* out,
                     int out_row) {
    constexpr int W = SerialTeam::width<Real>;
    const int blocks = (c + product_rows - 1) / product_rows;
    for (int first = 0; first < K.columns; first += K.P) {
        const Real* panel = K.data + static_cast<std::int64_t>(first) * K.rows;
        const int vectors = K.panel_width(first) / W;
        for (int block = 0; block < blocks; ++block) {  // rows shared out evenly: 20 are four times 5
            const int from = c * block / blocks, to = c * (block + 1) / blocks;
            const Real* b = B + static_cast<std::int64_t>(from) * B_row;
            Real* o = out + static_cast<std::int64_t>(from) * out_row + first;
            if (vectors == 2) {
                product_tiles<Real, 2>(to - from, b, B_row, panel, K.rows, o, out_row);
            } else {
                product_tiles<Real, 1>(to - from, b, B_row, panel, K.rows, o, out_row);
            }
        }
    }
}

}  // namespace FX_NAMESPACE
