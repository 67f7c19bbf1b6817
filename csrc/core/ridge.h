// The ridge probe: the minimum of (1/m) Σ ½‖W x_i + b - y_i‖² + (l2/2)‖W‖², y_i one-hot with -1 for 0.
//
// The free bias makes the fit pass through the means, so with X and Y centred: W = A X, (K + m·l2·I) A^T = Y. A few l2
// have a Cholesky factor each; more share one reduction to tridiagonal form.
#pragma once

#include "episode.h"
#include "tridiagonal.h"

namespace FX_NAMESPACE {

using fastxfer::RidgeParams;

// Whether the reduction is faster than so many factors; from some 200 images on it waits for memory. Measured.
FX_FUNCTION bool many_l2(int n_l2, int m) {
    return n_l2 >= (m < 200 ? 3 : 6);
}

// Factor and right-hand sides are in double: K + m·l2·I may be as badly conditioned as it likes to.
template <class Team, class Gram>
struct RidgeMemory {
    FX_FUNCTION RidgeMemory(Workspace& memory, const RidgeParams& params)
        : m(params.episodes.m),
          stride(padded<Team, double>(m)),
          K{memory.take<double>(static_cast<std::int64_t>(m) * stride), m, stride},
          factor(memory.take<double>(static_cast<std::int64_t>(m) * stride)),
          row_mean(memory.take<double>(m)),
          A(memory.take<double>(static_cast<std::int64_t>(params.n_l2) * params.episodes.ways * stride)),
          bias(memory.take<double>(static_cast<std::int64_t>(params.n_l2) * params.episodes.ways)),
          turned(memory.take<double>(static_cast<std::int64_t>(params.episodes.ways) * stride)),
          solved(memory.take<double>(static_cast<std::int64_t>(params.episodes.ways) * stride)),
          inverse(memory.take<double>(m)),
          pivot(memory.take<double>(1)),
          tridiagonal(memory, m, stride),
          queries(memory, m, params.episodes.ways) {}

    int m, stride;
    Panels<Team, double> K;
    double* factor;
    double* row_mean;
    double* A;
    double* bias;
    double* turned;  // right-hand sides, and solutions, in the coordinates of the tridiagonal matrix
    double* solved;
    double* inverse;
    double* pivot;  // the smallest of all factors: about the smallest eigenvalue
    Tridiagonal<Team> tridiagonal;
    QueryScores<Team, double, Gram> queries;
};

template <class Gram>
FX_FUNCTION double mean_label(const Episode<Gram>& episode, int m, int way) {
    const std::int32_t* labels = episode.labels;
    return lone_sum(m, [=](int i) { return labels[i] == way ? 1.0 : -1.0; }) / m;
}

template <class Gram>
FX_FUNCTION void centred_labels(const Episode<Gram>& episode, int m, int way, double* y) {
    const double mean = mean_label(episode, m, way);
    for (int i = 0; i < m; ++i) y[i] = (episode.labels[i] == way ? 1.0 : -1.0) - mean;
}

// Rows of A := rows (K + shift·I)^-1, by a factor of its own.
template <class Team, class Gram>
FX_BODY void factor_and_solve(const Team& team, const RidgeMemory<Team, Gram>& own, int rows, double shift,
                              double least, double* A) {
    const int m = own.m, stride = own.stride;
    each_row(team, m, [&](int i) {
        for (int j = 0; j <= i; ++j) own.factor[static_cast<std::int64_t>(i) * stride + j] = *own.K.at(i, j);
        own.factor[static_cast<std::int64_t>(i) * stride + i] += shift;
    });
    team.sync();
    cholesky(team, m, own.factor, stride, least);
    if (team.rank() == 0) {
        for (int i = 0; i < m; ++i) {
            const double root = own.factor[static_cast<std::int64_t>(i) * stride + i];
            *own.pivot = root * root < *own.pivot ? root * root : *own.pivot;
        }
    }
    each_row(team, rows,
             [&](int row) { solve_alone(team, m, own.factor, stride, A + static_cast<std::int64_t>(row) * stride); });
    team.sync();
}

template <class Gram, class Team>
FX_BODY void ridge_episode(const Team& team, const RidgeParams& params, std::int64_t e, void* block) {
    const Episodes& all = params.episodes;
    const Episode<Gram> episode(all, e);
    Workspace memory(block);
    RidgeMemory<Team, Gram> own(memory, params);
    const int m = all.m, stride = own.stride, ways = all.ways;
    gather_support(team, episode, m, own.K, own.row_mean);
    const Size measured = centre<Gram>(team, m, own.K, own.row_mean);
    const double size = measured.centred;
    // Rounding of the Gram matrix may leave pivots below zero where images coincide.
    const double least = m * static_cast<double>(Format<Gram>::epsilon);

    if (team.rank() == 0) *own.pivot = 1;
    const auto shift_of = [&](int l) { return m * params.l2[l] / size; };
    const auto floor_of = [&](int l) { return least < shift_of(l) ? least : shift_of(l); };
    const auto coefficients = [&](int l) { return own.A + static_cast<std::int64_t>(l) * ways * stride; };
    // The centred K does not see the vector of ones, to which all right-hand sides are orthogonal: giving it an
    // eigenvalue of one there changes no solution, and pivots are small only where it matters.
    each_row(team, m, [&](int i) {
        for (int j = 0; j < m; ++j) *own.K.at(i, j) += 1.0 / m;
    });
    team.sync();
    if (!many_l2(params.n_l2, m)) {
        for (int l = 0; l < params.n_l2; ++l) {
            double* A = coefficients(l);
            each_row(team, ways, [&](int way) { centred_labels(episode, m, way, A + way * stride); });
            factor_and_solve(team, own, ways, shift_of(l), floor_of(l), A);
        }
    } else {
        each_row(team, m, [&](int i) {
            for (int j = 0; j < stride; ++j) own.factor[i * static_cast<std::int64_t>(stride) + j] = *own.K.at(i, j);
        });
        team.sync();
        own.tridiagonal.reduce(team, own.factor);
        own.tridiagonal.expand(team, own.factor, own.K);
        each_row(team, ways, [&](int way) {
            double* row = own.turned + static_cast<std::int64_t>(way) * stride;
            for (int i = m; i < stride; ++i) row[i] = 0;
            centred_labels(episode, m, way, row);
            own.tridiagonal.turn(team, own.factor, row);
        });
        int least_l2 = 0;
        for (int l = 1; l < params.n_l2; ++l) least_l2 = params.l2[l] < params.l2[least_l2] ? l : least_l2;
        for (int l = 0; l < params.n_l2; ++l) {
            if (team.rank() == 0) {
                own.tridiagonal.invert(shift_of(l), floor_of(l), own.inverse);
                if (l == least_l2) *own.pivot = own.tridiagonal.smallest(own.inverse, own.solved);
            }
            team.sync();
            each_row(team, ways, [&](int way) {
                const std::int64_t at = static_cast<std::int64_t>(way) * stride;
                own.tridiagonal.solve(own.inverse, own.turned + at, own.solved + at);
            });
            team.sync();
            product(team, ways, own.solved, stride, own.K, coefficients(l), stride);
            team.sync();
        }
    }
    // Back to the pool's coordinates: coefficients of the raw embeddings, so zero-sum; the mean's part goes to the
    // bias.
    each_row(team, params.n_l2 * ways, [&](int row) {
        double* a = own.A + static_cast<std::int64_t>(row) * stride;
        const double mean = lone_sum(m, [=](int i) { return a[i]; }) / m;
        for (int i = 0; i < m; ++i) a[i] = (a[i] - mean) / size;
        const double* row_mean = own.row_mean;
        own.bias[row] = mean_label(episode, m, row % ways) - lone_sum(m, [=](int i) { return a[i] * row_mean[i]; });
    });
    team.sync();

    // A score is Σ a_i k_i with k_i as uncertain as the entries of K, and so are the equations that a solves: the worse
    // they are conditioned, the more.
    if (team.rank() == 0) {
        double largest = 0, all_of_them = 0;
        for (int row = 0; row < params.n_l2 * ways; ++row) {
            const double* a = own.A + static_cast<std::int64_t>(row) * stride;
            double square = 0;
            for (int i = 0; i < m; ++i) square += a[i] * a[i];
            largest = square > largest ? square : largest;
            all_of_them += square;
        }
        const double error = measured.rounding * size * sqrt(largest / *own.pivot);
        // Where the pivots that are left mean nothing, numbers overflow.
        params.doubtful[e] = !(error <= 1e-4 && all_of_them < 1e300);
    }
    for (int first = 0; first < all.q; first += query_block) {
        const int count = first + query_block <= all.q ? query_block : all.q - first;
        own.queries.gather(team, episode, m, first, count);
        for (int l = 0; l < params.n_l2; ++l) {
            const std::int64_t at = static_cast<std::int64_t>(l) * ways;
            own.queries.score(team, ways, own.A + at * stride, stride);
            float* to = all.scores + ((e * params.n_l2 + l) * all.q + first) * ways;
            each_row(team, count, [&](int j) {
                for (int way = 0; way < ways; ++way) {
                    to[static_cast<std::int64_t>(j) * ways + way] =
                        static_cast<float>(own.queries.S[way * query_block + j] + own.bias[at + way]);
                }
            });
            team.sync();
        }
    }
}

template <class Gram, class Team>
FX_BODY std::size_t ridge_bytes(const RidgeParams& params) {
    Workspace memory(nullptr);
    const RidgeMemory<Team, Gram> own(memory, params);
    return memory.used();
}

}  // namespace FX_NAMESPACE
