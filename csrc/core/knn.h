// The k support images of largest cosine similarity vote, with weight exp(similarity / temperature), one over the
// cosine distance 1 - similarity, or one each; scores are shares of the vote. Every k of the list comes from one pass.
// Of equal images the first in the support is nearer.
#pragma once

#include "episode.h"

namespace FX_NAMESPACE {

using fastxfer::KnnParams;

// At a cosine distance below this images count as equal: rounding of float products tells no more.
constexpr double same_image = 1e-5;

// The weight of a vote, where `largest` is the similarity of the nearest image. By distance, equal images outvote all.
FX_FUNCTION double vote_of(const KnnParams& params, double similarity, double largest) {
    if (params.by_distance) {
        if (1 - largest < same_image) return 1 - similarity < same_image ? 1 : 0;
        return (1 - largest) / (1 - similarity);
    }
    return params.temperature > 0 ? exponential<double, 1>((similarity - largest) / params.temperature) : 1;
}

template <class Team, class Gram>
struct KnnMemory {
    FX_FUNCTION KnnMemory(Workspace& memory, const KnnParams& params)
        : k_max(params.k_max),
          similarity(memory.take<double>(static_cast<std::int64_t>(query_block) * k_max)),
          near(memory.take<int>(static_cast<std::int64_t>(query_block) * k_max)),
          votes(memory.take<double>(static_cast<std::int64_t>(query_block) * params.episodes.ways)),
          queries(memory, params.episodes.m, 0) {}

    int k_max;
    double* similarity;
    int* near;
    double* votes;
    QueryScores<Team, Gram, Gram> queries;
};

template <class Gram, class Team>
FX_BODY void knn_episode(const Team& team, const KnnParams& params, std::int64_t e, void* block) {
    const Episodes& all = params.episodes;
    const Episode<Gram> episode(all, e);
    Workspace memory(block);
    KnnMemory<Team, Gram> own(memory, params);
    const int m = all.m, ways = all.ways, k_max = own.k_max;
    for (int first = 0; first < all.q; first += query_block) {
        const int count = first + query_block <= all.q ? query_block : all.q - first;
        own.queries.gather(team, episode, m, first, count);
        each_row(team, count, [&](int j) {
            const std::int64_t image = episode.query[first + j];
            double* similarity = own.similarity + static_cast<std::int64_t>(j) * k_max;
            int* near = own.near + static_cast<std::int64_t>(j) * k_max;
            double* votes = own.votes + static_cast<std::int64_t>(j) * ways;
            int found = 0;
            for (int i = 0; i < m; ++i) {
                const std::int64_t at = episode.support[i];
                const double s = (*own.queries.inner_products.at(i, j) + episode.offset[image] + episode.offset[at]) *
                                 episode.inverse_length[image] * episode.inverse_length[at];
                if (found == k_max && !(s > similarity[found - 1])) continue;
                int place = found < k_max ? found++ : found - 1;
                for (; place > 0 && s > similarity[place - 1]; --place) {
                    similarity[place] = similarity[place - 1];
                    near[place] = near[place - 1];
                }
                similarity[place] = s;
                near[place] = i;
            }
            for (int way = 0; way < ways; ++way) votes[way] = 0;
            double all_votes = 0;
            for (int l = 0, next = 0; l < params.n_k; ++l) {
                for (; next < params.k[l]; ++next) {
                    const double vote = vote_of(params, similarity[next], similarity[0]);
                    votes[episode.labels[near[next]]] += vote;
                    all_votes += vote;
                }
                float* to = all.scores + ((e * params.n_k + l) * all.q + first + j) * ways;
                for (int way = 0; way < ways; ++way) to[way] = static_cast<float>(votes[way] / all_votes);
            }
        });
        team.sync();
    }
}

template <class Gram, class Team>
FX_BODY std::size_t knn_bytes(const KnnParams& params) {
    Workspace memory(nullptr);
    const KnnMemory<Team, Gram> own(memory, params);
    return memory.used();
}

}  // namespace FX_NAMESPACE
