// The ridge probe: the minimum of (1/m) Σ ½‖W x_i + b - y_i‖² + (l2/2)‖W‖², y_i one-hot with -1 for 0.
//
// The free bias makes the fit pass through the means, so with X and Y centred: W = A X, (K + m·l2·I) A^T = Y.
#pragma once

#include "episode.h"

namespace FX_NAMESPACE {

using fastxfer::RidgeParams;

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
          queries(memory, m, params.episodes.ways) {}

    int m, stride;
    Panels<Team, double> K;
    double* factor;
    double* row_mean;
    double* A;
    double* bias;
    QueryScores<Team, double, Gram> queries;
};

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

    double pivot = 1;
    for (int l = 0; l < params.n_l2; ++l) {
        const double shift = m * params.l2[l] / size;
        each_row(team, m, [&](int i) {
            for (int j = 0; j <= i; ++j) own.factor[static_cast<std::int64_t>(i) * stride + j] = *own.K.at(i, j);
            own.factor[static_cast<std::int64_t>(i) * stride + i] += shift;
        });
        team.sync();
        cholesky(team, m, own.factor, stride, least < shift ? least : shift);
        for (int i = 0; i < m; ++i) {
            const double root = own.factor[static_cast<std::int64_t>(i) * stride + i];
            pivot = root * root < pivot ? root * root : pivot;
        }
        each_row(team, ways, [&](int way) {
            double* a = own.A + (static_cast<std::int64_t>(l) * ways + way) * stride;
            double mean = 0;
            for (int i = 0; i < m; ++i) mean += episode.labels[i] == way ? 1.0 : -1.0;
            mean /= m;
            for (int i = 0; i < m; ++i) a[i] = (episode.labels[i] == way ? 1.0 : -1.0) - mean;
            solve_alone(team, m, own.factor, stride, a);
            double sum = 0, bias = mean;
            for (int i = 0; i < m; ++i) sum += a[i];
            for (int i = 0; i < m; ++i) {
                a[i] = (a[i] - sum / m) / size;
                bias -= a[i] * own.row_mean[i];
            }
            own.bias[static_cast<std::int64_t>(l) * ways + way] = bias;
        });
        team.sync();
    }

    // A score is Σ a_i k_i with k_i as uncertain as the entries of K, and so are the equations that a solves: the worse
    // they are conditioned, the more.
    if (team.rank() == 0) {
        double largest = 0;
        for (int row = 0; row < params.n_l2 * ways; ++row) {
            const double* a = own.A + static_cast<std::int64_t>(row) * stride;
            double square = 0;
            for (int i = 0; i < m; ++i) square += a[i] * a[i];
            largest = square > largest ? square : largest;
        }
        params.doubtful[e] = measured.rounding * size * sqrt(largest / pivot) > 1e-4;
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
