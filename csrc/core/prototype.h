// Nearest class mean: -‖q - μ_c‖², or the cosine of q and μ_c. The mean is a combination of the support, so
// q·μ_c = Σ_i A_ci q·x_i with A_ci = 1/(images of class c) for its own images.
#pragma once

#include "episode.h"

namespace FX_NAMESPACE {

using fastxfer::PrototypeParams;

template <class Team, class Real, class Gram>
struct PrototypeMemory {
    FX_FUNCTION PrototypeMemory(Workspace& memory, const PrototypeParams& params)
        : m(params.episodes.m),
          stride(padded<Team, Real>(m)),
          K{memory.take<Real>(static_cast<std::int64_t>(m) * stride), m, stride},
          row_sum(memory.take<double>(m)),
          A(memory.take<Real>(static_cast<std::int64_t>(params.episodes.ways) * stride)),
          KA(memory.take<Real>(static_cast<std::int64_t>(params.episodes.ways) * stride)),
          count(memory.take<int>(params.episodes.ways)),
          square(memory.take<double>(params.episodes.ways)),
          offset(memory.take<double>(params.episodes.ways)),
          queries(memory, m, params.episodes.ways) {}

    int m, stride;
    Panels<Team, Real> K;
    double* row_sum;
    Real* A;
    Real* KA;
    int* count;
    double* square;  // ‖μ_c‖² about the pool's mean
    double* offset;  // what the mean took from μ_c's inner products
    QueryScores<Team, Real, Gram> queries;
};

template <class Real, class Gram, class Team>
FX_BODY void prototype_episode(const Team& team, const PrototypeParams& params, std::int64_t e, void* block) {
    const Episodes& all = params.episodes;
    const Episode<Gram> episode(all, e);
    Workspace memory(block);
    PrototypeMemory<Team, Real, Gram> own(memory, params);
    const int m = all.m, stride = own.stride, ways = all.ways;
    gather_support(team, episode, m, own.K, own.row_sum);
    each_row(team, ways, [&](int way) {
        int count = 0;
        double offset = 0;
        for (int i = 0; i < m; ++i) {
            if (episode.labels[i] != way) continue;
            ++count;
            offset += episode.offset[episode.support[i]];
        }
        own.count[way] = count;
        own.offset[way] = count ? offset / count : 0;
        Real* a = own.A + way * stride;
        for (int i = 0; i < stride; ++i) a[i] = i < m && episode.labels[i] == way ? Real(1) / count : Real(0);
    });
    team.sync();
    product(team, ways, own.A, stride, own.K, own.KA, stride);
    team.sync();
    each_row(team, ways, [&](int way) {
        double square = 0;
        for (int i = 0; i < m; ++i) square += static_cast<double>(own.A[way * stride + i]) * own.KA[way * stride + i];
        own.square[way] = square;
    });
    team.sync();

    for (int first = 0; first < all.q; first += query_block) {
        const int count = first + query_block <= all.q ? query_block : all.q - first;
        own.queries.gather(team, episode, m, first, count);
        own.queries.score(team, ways, own.A, stride);
        each_row(team, count, [&](int j) {
            const std::int64_t image = episode.query[first + j];
            float* to = all.scores + ((e * all.q) + first + j) * ways;
            for (int way = 0; way < ways; ++way) {
                const double inner = own.queries.S[way * query_block + j], square = own.square[way];
                double score = -INFINITY;
                if (own.count[way] && params.cosine) {
                    const double raw = square + 2 * own.offset[way];
                    const double length = raw > 0 ? sqrt(raw) : 0;
                    score = length > 0 ? (inner + episode.offset[image] + own.offset[way]) *
                                             episode.inverse_length[image] / length
                                       : 0;
                } else if (own.count[way]) {
                    score = 2 * inner - episode.square[image] - square;
                }
                to[way] = static_cast<float>(score);
            }
        });
        team.sync();
    }
}

template <class Real, class Gram, class Team>
FX_BODY std::size_t prototype_bytes(const PrototypeParams& params) {
    Workspace memory(nullptr);
    const PrototypeMemory<Team, Real, Gram> own(memory, params);
    return memory.used();
}

}  // namespace FX_NAMESPACE
