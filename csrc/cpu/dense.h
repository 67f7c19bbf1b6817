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

template <class Real, int NV>
FX_FUNCTION void product_tiles(int rows, const Real* B, int B_row, const Real* panel, int depth, Real* out,
                               int out_row) {
    switch (rows) {
        case 1:
            product_tile<Real, 1, NV>(B, B_row, panel, depth, out, out_row);
            break;
        case 2:
            product_tile<Real, 2, NV>(B, B_row, panel, depth, out, out_row);
            break;
        case 3:
            product_tile<Real, 3, NV>(B, B_row, panel, depth, out, out_row);
            break;
        case 4:
            product_tile<Real, 4, NV>(B, B_row, panel, depth, out, out_row);
            break;
        case 5:
            product_tile<Real, 5, NV>(B, B_row, panel, depth, out, out_row);
            break;
        default:
            product_tile<Real, 6, NV>(B, B_row, panel, depth, out, out_row);
            break;
    }
}

template <class Real>
FX_BODY void product(const SerialTeam&, int c, const Real* B, int B_row, const Panels<SerialTeam, Real>& K, Real* out,
                     int out_row) {
    constexpr int W = SerialTeam::width<Real>;
    const int blocks = (c + 5) / 6;
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

// Four inner products at a time share the loads of x.
template <class Real>
FX_BODY void dots(const SerialTeam&, int count, int n, const Real* const* rows, const Real* x, double* out) {
    constexpr int W = SerialTeam::width<Real>;
    using V = typename Lanes<Real, W>::V;
    for (int j = 0; j < count; j += 4) {
        const Real* row[4];
        for (int r = 0; r < 4; ++r) row[r] = rows[j + r < count ? j + r : count - 1];
        V sum[4] = {}, odd[4] = {};
        int i = 0;
        for (; i + W < n; i += 2 * W) {
            const V here = load<V>(x + i), next = load<V>(x + i + W);
            for (int r = 0; r < 4; ++r) {
                sum[r] += load<V>(row[r] + i) * here;
                odd[r] += load<V>(row[r] + i + W) * next;
            }
        }
        for (; i < n; i += W) {
            for (int r = 0; r < 4; ++r) sum[r] += load<V>(row[r] + i) * load<V>(x + i);
        }
        for (int r = 0; r < 4 && j + r < count; ++r) out[j + r] = static_cast<double>(across<Real, W>(sum[r] + odd[r]));
    }
}

// Eight vectors of the answer at a time stay in registers.
template <class Real>
FX_BODY void combine(const SerialTeam&, int count, int n, const Real* const* rows, const double* weight, double g,
                     const Real* x, Real* out) {
    constexpr int W = SerialTeam::width<Real>, N = 8;
    using V = typename Lanes<Real, W>::V;
    constexpr int most = 64;  // of weights converted at a time; solvers remember fewer pairs
    Real w[most];
    const int now = count < most ? count : most;
    for (int j = 0; j < now; ++j) w[j] = static_cast<Real>(weight[j]);
    const Real of_x = static_cast<Real>(g);
    int i = 0;
    for (; i + (N - 1) * W < n; i += N * W) {
        V sum[N];
        for (int v = 0; v < N; ++v) sum[v] = load<V>(x + i + v * W) * of_x;
        for (int j = 0; j < now; ++j) {
            const Real* row = rows[j] + i;
            for (int v = 0; v < N; ++v) sum[v] += load<V>(row + v * W) * w[j];
        }
        for (int v = 0; v < N; ++v) store(out + i + v * W, sum[v]);
    }
    for (; i < n; i += W) {
        V sum = load<V>(x + i) * of_x;
        for (int j = 0; j < now; ++j) sum += load<V>(rows[j] + i) * w[j];
        store(out + i, sum);
    }
    if (count > most) combine(SerialTeam{}, count - most, n, rows + most, weight + most, 1, out, out);
}

}  // namespace FX_NAMESPACE
