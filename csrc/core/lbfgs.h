// L-BFGS written in the coefficients of the gradients.
//
// Started from the gradient, L-BFGS never leaves the span of the gradients it has seen. So only those are stored, with
// their products with the kernel: step j is S_j = sum_l sigma[j][l] G_l, the change of gradient is
// Y_j = G_{j+1} - G_j, and all inner products that the two-loop recursion (Nocedal & Wright, alg. 7.4) asks for follow
// from the Gram matrix of the gradients, gram[i][j] = <G_i, G_j>. An iteration costs k inner products and 2k vector
// additions of the problem's size, plus this page of arithmetic on k x k numbers.
#pragma once

#include "workspace.h"

FX_BEGIN

template <class Wide, class Mask>
struct Memory {
    int capacity;
    Wide* gram;    // (capacity, capacity), lower triangle: <G_i, G_j>, j <= i
    Wide* sigma;   // (capacity, capacity), lower triangle: coefficients of S_j
    Wide* sg;      // (capacity, capacity): <S_i, G_j>
    Wide* rho;     // (capacity) 1 / <S_j, Y_j>, 0 where the pair is not used
    Wide* alpha;   // (capacity)
    Wide* q;       // (capacity) coefficients
    Wide* delta;   // (capacity) coefficients of the direction
    Wide* scalar;  // [0] gamma, [1] slope of the direction

    FX_FN void layout(Arena& arena, int n) {
        capacity = n;
        const size_t square = static_cast<size_t>(n) * n;
        gram = arena.take<Wide>(square);
        sigma = arena.take<Wide>(square);
        sg = arena.take<Wide>(square);
        rho = arena.take<Wide>(n);
        alpha = arena.take<Wide>(n);
        q = arena.take<Wide>(n);
        delta = arena.take<Wide>(n);
        scalar = arena.take<Wide>(2);
    }

    // <G_i, G_j> for any order of i and j
    FX_FN Wide g(int i, int j) const { return i >= j ? gram[i * capacity + j] : gram[j * capacity + i]; }

    // Note the step that led from G_{k-1} to G_k: S = step * (last direction). Row k of `gram` stands already.
    FX_FN void add_pair(int k, Wide step) {
        const int n = capacity, j = k - 1;
        for (int l = 0; l <= j; ++l) sigma[j * n + l] = step * delta[l];
        for (int i = 0; i < j; ++i) {
            Wide s(0.0);
            for (int l = 0; l <= i; ++l) s += sigma[i * n + l] * gram[k * n + l];
            sg[i * n + k] = s;
        }
        for (int p = 0; p <= k; ++p) {
            Wide s(0.0);
            for (int l = 0; l <= minimum_int(j, p); ++l) s += sigma[j * n + l] * gram[p * n + l];
            for (int l = p + 1; l <= j; ++l) s += sigma[j * n + l] * gram[l * n + p];
            sg[j * n + p] = s;
        }
        const Wide sy = sg[j * n + k] - sg[j * n + j];
        const Wide yy = g(k, k) - (g(k, j) + g(k, j)) + g(j, j);
        const Mask good = sy > yy * Wide(1e-12);
        rho[j] = select(good, Wide(1.0) / select(good, sy, Wide(1.0)), Wide(0.0));
        scalar[0] = select(good, sy / select(good, yy, Wide(1.0)), scalar[0]);
    }

    // delta: coefficients of the direction -H G_k; scalar[1]: its slope <G_k, D>.
    FX_FN void direction(int k) {
        const int n = capacity;
        for (int l = 0; l < k; ++l) q[l] = Wide(0.0);
        q[k] = Wide(1.0);
        for (int j = k - 1; j >= 0; --j) {
            Wide s(0.0);
            for (int p = j + 1; p <= k; ++p) s += q[p] * sg[j * n + p];
            alpha[j] = rho[j] * s;
            q[j + 1] -= alpha[j];
            q[j] += alpha[j];
        }
        // delta holds <G_l, q> for a moment
        for (int l = 0; l <= k; ++l) {
            Wide s(0.0);
            for (int p = 0; p <= l; ++p) s += q[p] * gram[l * n + p];
            for (int p = l + 1; p <= k; ++p) s += q[p] * gram[p * n + l];
            delta[l] = s;
        }
        const Wide gamma = scalar[0];
        for (int j = 0; j < k; ++j) {  // alpha becomes alpha - beta
            Wide s = gamma * (delta[j + 1] - delta[j]);
            for (int i = 0; i < j; ++i) s += alpha[i] * (sg[i * n + j + 1] - sg[i * n + j]);
            alpha[j] -= rho[j] * s;
        }
        for (int l = 0; l <= k; ++l) delta[l] = -gamma * q[l];
        for (int j = 0; j < k; ++j)
            for (int l = 0; l <= j; ++l) delta[l] -= alpha[j] * sigma[j * n + l];
        Wide slope(0.0);
        for (int l = 0; l <= k; ++l) slope += delta[l] * gram[k * n + l];
        // Rounding can spoil a direction: go down the gradient instead, and forget.
        const Mask bad = !(slope < Wide(0.0));
        if (any(bad)) {
            for (int l = 0; l < k; ++l) {
                delta[l] = select(bad, Wide(0.0), delta[l]);
                rho[l] = select(bad, Wide(0.0), rho[l]);
            }
            delta[k] = select(bad, -gamma, delta[k]);
            slope = select(bad, -gamma * gram[k * n + k], slope);
        }
        scalar[1] = slope;
    }
};

FX_END
