// Dense primitives, each a few lines over a team. Vectors of an episode are (classes x padded) blocks, images
// innermost; padding is zero. Overloads for other teams (cpu/dense.h, cuda/dense.cuh) do the same faster.
#pragma once

#include "lanes.h"
#include "workspace.h"

namespace FX_NAMESPACE {

// f(i) for i = 0, W, 2W … below n (a multiple of W), shared out so that the same member always gets the same i: steps
// that follow each other at the same i need no barrier between them.
template <class Real, class Team, class F>
FX_FUNCTION void each(const Team& team, int n, F f) {
    constexpr int W = Team::template width<Real>;
    for (int i = team.rank() * W; i < n; i += team.size() * W) f(i);
}

// f(row, i) for the same i of every row of a block, shared out like `each` over the rows behind each other.
template <class Real, class Team, class F>
FX_FUNCTION void each_cell(const Team& team, int rows, int stride, F f) {
    constexpr int W = Team::template width<Real>;
    if (team.size() == 1) {  // spares the divisions
        for (int row = 0; row < rows; ++row) {
            for (int i = 0; i < stride; i += W) f(row, i);
        }
    } else {
        each<Real>(team, rows * stride, [&](int at) { f(at / stride, at % stride); });
    }
}

// f(row) for the rows 0 … n-1, shared out.
template <class Team, class F>
FX_FUNCTION void each_row(const Team& team, int n, F f) {
    for (int i = team.rank(); i < n; i += team.size()) f(i);
}

// Sum of the lanes of f(i), known to every member.
template <class Real, class Team, class F>
FX_FUNCTION double total(const Team& team, int n, F f) {
    constexpr int W = Team::template width<Real>;
    using V = typename Lanes<Real, W>::V;
    const int step = team.size() * W;
    V a = V{}, b = V{}, c = V{}, d = V{};
    int i = team.rank() * W;
    for (; i + 3 * step < n; i += 4 * step) {
        a += f(i);
        b += f(i + step);
        c += f(i + 2 * step);
        d += f(i + 3 * step);
    }
    for (; i < n; i += step) a += f(i);
    return team.sum(static_cast<double>(across<Real, W>((a + b) + (c + d))));
}

template <class Real, class Team>
FX_FUNCTION double inner(const Team& team, int n, const Real* x, const Real* y) {
    using V = typename Lanes<Real, Team::template width<Real>>::V;
    return total<Real>(team, n, [=](int i) { return load<V>(x + i) * load<V>(y + i); });
}

template <class Real, class Team>
FX_FUNCTION void fill(const Team& team, int n, Real* x, Real value) {
    using V = typename Lanes<Real, Team::template width<Real>>::V;
    each<Real>(team, n, [=](int i) { store(x + i, V{} + value); });
}

// Σ_{i<n} f(i) by one member alone, in four chains of additions, since one would be waited for.
template <class F>
FX_FUNCTION double lone_sum(int n, F f) {
    double sum[4] = {};
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; ++k) sum[k] += f(i + k);
    }
    for (; i < n; ++i) sum[0] += f(i);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// A matrix in panels of a few columns: the rows of a panel follow each other, so that a product reads it in one stream.
template <class Team, class Real>
struct Panels {
    static constexpr int P = Team::template panel<Real>;
    Real* data;
    int rows;
    int columns;  // padded to whole vectors

    FX_FUNCTION int panel_width(int first) const { return first + P <= columns ? P : columns - first; }
    FX_FUNCTION Real* at(int row, int column) const {
        const int first = column / P * P;
        return data + static_cast<std::int64_t>(first) * rows + static_cast<std::int64_t>(row) * panel_width(first) +
               (column - first);
    }
};

// out (c x columns) = B (c x rows) K (rows x columns). Barrier before and after are the caller's.
template <class Team, class Real>
FX_BODY void product(const Team& team, int c, const Real* B, int B_row, const Panels<Team, Real>& K, Real* out,
                     int out_row) {
    const std::int64_t n = static_cast<std::int64_t>(c) * K.columns;
    for (std::int64_t index = team.rank(); index < n; index += team.size()) {
        const int row = static_cast<int>(index / K.columns), column = static_cast<int>(index % K.columns);
        const Real* b = B + static_cast<std::int64_t>(row) * B_row;
        const Real* k = K.at(0, column);
        const int step = K.panel_width(column / K.P * K.P);
        Real sum = 0;
        for (int i = 0; i < K.rows; ++i) sum += b[i] * k[static_cast<std::int64_t>(i) * step];
        out[static_cast<std::int64_t>(row) * out_row + column] = sum;
    }
}

// Σ_{k<n} x_k y_k by one member alone.
template <class Team, class Real>
FX_FUNCTION Real lone_inner(const Team&, int n, const Real* x, const Real* y) {
    constexpr int W = Team::template width<Real>;
    using V = typename Lanes<Real, W>::V;
    V a = V{}, b = V{};
    int i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        a += load<V>(x + i) * load<V>(y + i);
        b += load<V>(x + i + W) * load<V>(y + i + W);
    }
    Real sum = across<Real, W>(a + b);
    for (; i < n; ++i) sum += x[i] * y[i];
    return sum;
}

// A = L L^T in the lower triangle, in place; a pivot below `least` counts as `least`.
template <class Team, class Real>
FX_BODY void cholesky(const Team& team, int n, Real* A, int row, Real least) {
    for (int j = 0; j < n; ++j) {
        Real* Lj = A + static_cast<std::int64_t>(j) * row;
        if (team.rank() == 0) {
            const Real pivot = Lj[j] - lone_inner(team, j, Lj, Lj);
            Lj[j] = sqrt(pivot > least ? pivot : least);
        }
        team.sync();
        const Real scale = Real(1) / Lj[j];
        each_row(team, n - j - 1, [=, &team](int r) {
            Real* Li = A + static_cast<std::int64_t>(j + 1 + r) * row;
            Li[j] = (Li[j] - lone_inner(team, j, Li, Lj)) * scale;
        });
        team.sync();
    }
}

// x := (L L^T)^-1 x for one right-hand side, by one member alone.
template <class Team, class Real>
FX_BODY void solve_alone(const Team& team, int n, const Real* L, int row, Real* x) {
    for (int i = 0; i < n; ++i) {
        const Real* Li = L + static_cast<std::int64_t>(i) * row;
        x[i] = (x[i] - lone_inner(team, i, Li, x)) / Li[i];
    }
    for (int i = n - 1; i >= 0; --i) {
        const Real* Li = L + static_cast<std::int64_t>(i) * row;
        x[i] /= Li[i];
        const Real value = x[i];
        for (int k = 0; k < i; ++k) x[k] -= value * Li[k];
    }
}

}  // namespace FX_NAMESPACE
